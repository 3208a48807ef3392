"""Everything that ships passes the checks for third-party plugins."""

from autotl.builtin import (
    adapters,
    augmentations,
    classifiers,
    fine_tuning,
    gradient_methods,
    linear_probe,
    logistic,
    metrics,
    objectives,
    optimizers,
    reference,
    shipped,
    timm_family,
    torchvision_family,
)
from autotl.testing import (
    AdapterTests,
    AugmentationTests,
    BackboneTests,
    GradientMethodTests,
    MethodTests,
    MetricTests,
    ObjectiveTests,
    OptimizerTests,
    StrategyTests,
)


class TestAugmentations(AugmentationTests):
    plugin = augmentations


class TestLogistic(MethodTests):
    plugin = logistic
    options = {"logistic": {"penalty": [1.0, 0.1, 0.01], "class_weights": "balanced"}}


class TestClassifiers(MethodTests):
    plugin = classifiers
    penalised = {"penalty": [1.0, 0.1], "class_weights": "balanced", "temperature": [0.5, 1.0]}
    options = {"ridge": penalised, "svm": penalised, "nearest-class-mean": {"temperature": [0.5, 1.0]}}


class TestGradientMethods(GradientMethodTests):
    plugin = gradient_methods


class TestObjectives(ObjectiveTests):
    plugin = objectives


class TestOptimizers(OptimizerTests):
    plugin = optimizers


class TestAdapters(AdapterTests):
    plugin = adapters


class TestMetrics(MetricTests):
    plugin = metrics


class TestFineTuning(StrategyTests):
    plugin = fine_tuning


class TestLinearProbe(StrategyTests):
    plugin = linear_probe


class TestReference(BackboneTests):
    plugin = reference


class TestShipped(BackboneTests):
    plugin = shipped


class TestTimm(BackboneTests):
    plugin = timm_family
    networks = ("test_resnet.r160_in1k", "test_vit3.r160_in1k")


class TestTorchvision(BackboneTests):
    plugin = torchvision_family
    networks = ("shufflenet_v2_x0_5",)

"""Tests of training on a device that this process only pretends to have, for what a GPU would refuse or wait for.

They run in a process of their own: `test_device.py` starts it. Registering a device cannot be undone.
"""

import math
import traceback

import pytest
import torch
from tiny import Between, after, make_bench, plan, taught
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from autotl.engine import feed, precision, teacher
from autotl.engine.fit import fit
from autotl.export import bundle
from autotl.host import Host
from autotl.plan import HEADS, WIDE, Component, Head, Phase, Stop, Training
from autotl.testing.lab import TinyPlugin, write_stripes

NAME = "pretended"
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
SIZED_BY_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class There(torch.Tensor):
    """A tensor on the device. Its values are in `values`, a tensor on the CPU."""

    @staticmethod
    def __new__(cls, values):
        form = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, values.size(), device=torch.device(NAME, 0), **form)
        made.values = values
        return made

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operator, types, given=(), named=None):
        raise RuntimeError("a tensor of the pretended GPU is used outside of it")


class PretendedGpu(TorchDispatchMode):
    """In this context `NAME` is a device. The CPU computes for it.

    Operators raise an error if they get tensors from the device and from the CPU, as on a GPU. `waits` are the lines of
    autotl at which the CPU would wait for a GPU while `watched`.
    """

    def __init__(self):
        super().__init__()
        self.watched, self.waits, self.operators = False, [], 0

    def watch(self, on):
        self.watched = on

    def __enter__(self):
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(…, device=…) would not get here
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self._before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, operator, types, given=(), named=None):
        named = dict(named or {})
        tensors = [each for each in tree_leaves((given, named)) if isinstance(each, torch.Tensor)]
        there = [each for each in tensors if isinstance(each, There)]
        device = torch.device(named["device"]) if named.get("device") is not None else None
        result_there = device.type == NAME if device else bool(there)
        mixed = bool(there) and any(each.dim() and not isinstance(each, There) for each in tensors)
        if operator in COPIES:
            crosses = mixed or bool(there) != result_there
            waits = crosses and not (named.get("non_blocking") or (operator is COPIES[1] and True in given[2:]))
        elif mixed:
            where = [f"{tuple(each.shape)} on {each.device}" for each in tensors]
            raise RuntimeError(f"{operator} gets tensors of two devices: {', '.join(where)}")
        else:
            waits = there and SIZED_BY_VALUES & set(operator.tags)
            if operator is torch.ops.aten.index.Tensor or "index_put" in operator.name():
                waits = any(each is not None and each.dtype == torch.bool for each in given[1])
        if waits and self.watched:
            lines = [frame for frame in traceback.extract_stack() if "/autotl/" in frame.filename]
            self.waits.append(f"{operator} in {lines[-1].name}: {lines[-1].line}")
        self.operators += bool(there)
        if device:
            named["device"] = torch.device("cpu")
        found = operator(*tree_map(_values, given), **tree_map(_values, named))
        if not result_there:
            return found
        known = {id(each.values): each for each in there}  # an operator may return what it got
        return tree_map(lambda each: known.get(id(each), each) if id(each) in known else _there(each), found)


def _values(value):
    return value.values if isinstance(value, There) else value


def _there(value):
    return There(value) if isinstance(value, torch.Tensor) else value


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())

SIZE, STEPS = 7, 7
"""Images per batch, and steps per epoch, of the plans below."""
KINDS = {kind: Head(pooling="avg", kind=kind, width=16 if kind in WIDE else None) for kind in HEADS}
PROBE = Phase(method="logistic", frozen="2.1", options={"penalty": [0.1, 0.01], "class_weights": "balanced"})


@pytest.fixture
def gpu():
    with PretendedGpu() as made:
        yield made


@pytest.fixture
def images_without_waiting(monkeypatch):
    """A GPU gets its images by pinned memory, which this device does not have."""

    def images(pixels, batches, device):
        return (torch.from_numpy(pixels(keys)).to(device, non_blocking=True) for keys in batches)

    monkeypatch.setattr(feed, "images", images)


def phase(frozen=None, method="gradient-descent", **changes):
    values = {
        "stage_lr": dict.fromkeys(after(frozen), 0.002),
        "head_lr": 0.02,
        "epochs": 2,
        "batch_size": SIZE,
        "optimizer": Component(name="adamw"),
        **changes,
    }
    return Phase(method=method, frozen=frozen, training=Training(**values))


def augmented(name, **params):
    return {"augmentation": Component(name=name, params=params)}


PLANS = {
    "the whole network": ([phase(batch_norm="train", dropout=0.2, label_smoothing=0.1, clip_grad=1.0)], {}),
    "head only": ([phase("2.1")], {}),
    "stages after stored values": ([PROBE, phase("0.2", class_weights="effective", stop=Stop(patience=2))], {}),
    "views": ([phase("0.2", views=2)], {**augmented("flip"), "boundary_dtype": "bfloat16"}),
    "mixing": ([phase(mixup=0.4, cutmix=1.0, ema=0.9, l2_sp=0.1)], {}),
    "sgd and focal loss": ([phase(optimizer=Component(name="sgd"), objective=Component(name="focal"))], {}),
    "sam": ([phase(method="sam")], {}),
    "lora": ([phase(adapter=Component(name="lora"))], {}),
    "rotations": ([phase()], augmented("flip-rotate-zoom", degrees=20, zoom=0.2)),
    **{f"{kind} head": ([phase("1.2", dropout=0.2)], {"head": head}) for kind, head in KINDS.items()},
}


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    """The same images on the CPU and on the device."""
    folder, host = tmp_path_factory.mktemp("benches"), Host()
    host.add(TinyPlugin(), "tiny-plugin")
    stripes = write_stripes(folder / "stripes")
    made = [make_bench(host, stripes, folder / device, device) for device in ("cpu", NAME)]
    assert math.ceil(len(made[0].shas("train")) / SIZE) == STEPS
    return made


def trained(gpu, benches, *phases, **changes):
    """A plan, trained on the CPU and on the device with the same result."""
    here, there = (fit(plan(each, *phases, **changes), each, Between(STEPS, gpu.watch)) for each in benches)
    numbers = {name: value for name, value in here.metrics.items() if name.endswith("loss")}
    assert numbers and {name: there.metrics[name] for name in numbers} == pytest.approx(numbers, rel=1e-3)
    for one, other in ((here.model.stages, there.model.stages), (here.model.head, there.model.head)):
        for name, value in one.state_dict().items():
            found = other.state_dict()[name]
            assert found.device.type == NAME
            torch.testing.assert_close(found.cpu(), value, rtol=1e-3, atol=1e-4)
    return here, there


@pytest.mark.usefixtures("images_without_waiting")
@pytest.mark.parametrize("what", PLANS)
def test_training_is_on_the_device_and_its_steps_wait_for_nothing(gpu, benches, what):
    phases, changes = PLANS[what]
    trained(gpu, benches, *phases, **changes)
    assert gpu.waits == []
    assert gpu.operators > 1000


@pytest.mark.usefixtures("images_without_waiting")
def test_a_teacher_is_on_the_device(gpu, benches, monkeypatch):
    monkeypatch.setattr(teacher, "PENALTIES", (0.1, 1.0))
    trained(gpu, benches, phase(teacher=taught(benches[0], "tiny:net")))
    assert gpu.waits == []


@pytest.mark.usefixtures("images_without_waiting")
@pytest.mark.parametrize(
    ("name", "params"), [("randaugment", {"operations": 2, "magnitude": 9}), ("trivialaugment", {"strength": 1.0})]
)
def test_random_operations_wait_once_in_a_step(gpu, benches, name, params):
    trained(gpu, benches, phase(), **augmented(name, **params))
    assert len(gpu.waits) == STEPS - 1
    assert all("in _operate: counts" in line for line in gpu.waits)


def test_a_model_that_was_trained_on_the_device_predicts_on_both(gpu, benches, tmp_path):
    here, there = trained(gpu, benches, PROBE)
    (bench, _), catalogue = benches, there.model.bench.catalogue
    bundle.save(tmp_path / "bundle", there, bench.dataset.classes, {"validation": there.metrics})
    loaded = bundle.load(tmp_path / "bundle", catalogue)
    images = torch.from_numpy(bench.features.pixels.read(here.plan.input, bench.shas("val")))
    expected = loaded.probabilities(images)
    found = loaded.to(NAME).probabilities(images)
    assert found.device.type == NAME
    torch.testing.assert_close(found.cpu(), expected)


def test_the_fastest_arithmetic_is_measured_on_the_device(gpu, benches, monkeypatch):
    monkeypatch.setitem(precision.BATCH, "cpu", 2)
    bench = benches[1]
    input = bench.catalogue.card("tiny:net").input
    stages = bench.catalogue.structure("tiny:net", input)
    assert precision.fastest(stages, input, bench.memory, [("float32", "channels_last")]).image_seconds > 0
    assert next(stages.parameters()).device.type == NAME


# The device itself


def test_tensors_of_two_devices_are_refused(gpu):
    there, here = torch.arange(3.0, device=NAME), torch.arange(3.0)
    for use in (
        lambda: there + here,
        lambda: here[there.long()],
        lambda: there[here.long()],
        lambda: torch.where(there > 1, here, there),
        lambda: torch.cat([there, here]),
        lambda: torch.nn.functional.linear(there, torch.eye(3)),
    ):
        with pytest.raises((RuntimeError, TypeError), match="two devices"):
            use()
    assert (there + torch.tensor(2.0)).tolist() == [2.0, 3.0, 4.0]  # a single number is passed to the operator
    assert there.device.type == NAME and (there + 1).device.type == NAME and here.device.type == "cpu"


@pytest.mark.parametrize(
    "use",
    [
        lambda there: there.sum().item(),
        lambda there: bool((there > 1).any()),
        lambda there: there.tolist(),
        lambda there: there[there > 1],
        lambda there: there.masked_select(there > 1),
        lambda there: there.nonzero(),
        lambda there: there.long().bincount(minlength=4),
        lambda there: there.unique(),
        lambda there: there.cpu(),
        lambda there: torch.zeros(3).to(there.device),
        lambda there: there.copy_(torch.zeros(3)),
        lambda there: torch.tensor([1.0, 2.0], device=there.device),
        lambda there: torch.equal(there, there),
        lambda there: there.index_put_((there > 1,), torch.ones(1, device=there.device)),
    ],
)
def test_what_waits_for_a_gpu_is_reported_while_watched(gpu, monkeypatch, use):
    monkeypatch.setattr(traceback, "extract_stack", lambda: [traceback.FrameSummary("/autotl/x.py", 1, "x", line="y")])
    there = torch.arange(3.0, device=NAME)
    use(there)
    assert gpu.waits == []
    gpu.watch(True)
    use(there)
    assert gpu.waits
    gpu.watch(False)


def test_what_does_not_wait_for_a_gpu_is_not_reported(gpu):
    there = torch.arange(3.0, device=NAME)
    gpu.watch(True)
    there.to("cpu", non_blocking=True), torch.zeros(3).to(NAME, non_blocking=True)
    there[torch.arange(2, device=NAME)], there[:2], there.masked_fill(there > 1, 0.0)
    torch.nn.functional.one_hot(there.long(), 3), torch.zeros(3, device=NAME), there * 2 + torch.tensor(1.0)
    gpu.watch(False)
    assert gpu.waits == []

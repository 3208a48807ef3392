"""Writes the model card, and the terms of a model's weights."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import ModelCard
from autotl.engine.calibration import Calibration
from autotl.engine.scale import Scale
from autotl.plan import BITS, Input, Made, TransferPlan


class Costs(BaseModel):
    """The costs among the metrics measured before the test."""

    model_config = ConfigDict(extra="allow", strict=True)

    parameters: float
    flops: float


class OfClass(BaseModel):
    """How many test images a class has, and how many of them the model classifies correctly."""

    model_config = ConfigDict(extra="allow", strict=True)

    images: int
    right: int


class Score(BaseModel):
    """The model's score on the test images, with the 95 % interval; older bundles lack the fields with a default."""

    model_config = ConfigDict(extra="allow", strict=True)

    metric: str
    scale: Scale = Scale()
    value: float
    low: float | None
    high: float | None
    images: int
    units: int | None = None
    most_frequent: float | None = None
    classes: dict[str, OfClass] = {}


class Metrics(BaseModel):
    """The part of `metrics.json` that autotl reads."""

    model_config = ConfigDict(extra="allow", strict=True)

    validation: Costs
    test: Score | None = None
    calibration: Calibration | None = None


def license(plan: TransferPlan, catalogue: Catalogue) -> str:
    """The terms of a plan's trained weights: those of the weights that it starts from."""
    known, given = catalogue.card(plan.backbone), catalogue.named.get(plan.backbone)
    if not plan.weights.startswith("sha256:"):
        terms = ["They were trained from random weights, or are fixed: they derive from no other weights."]
    elif given and given.terms:
        terms = [_OF_A_MODEL, _bare(given.terms)]
    elif given:
        terms = [f"{_OF_A_FILE} {plan.backbone}:", *_published(known)]
    else:
        of = f"They were made from the pretrained weights of {plan.backbone}, whose terms also apply to them."
        terms = [of, *_published(known)]
        file = catalogue.file(plan.backbone)
        if file and (known_by := file.provenance):
            own = f"\nIts terms: {known_by.license}" if known_by.license else ""
            terms.append(f"Provided by: {known_by}, from a file with SHA-256 {known_by.published}{own}")
    return "\n\n".join([_TITLE, *terms, _OWN]) + "\n"


def together(terms: Sequence[str]) -> str:
    """The terms of several models as one text, which has each of them once."""
    return "\n\n".join([_TITLE, *dict.fromkeys(map(_bare, terms)), _OWN]) + "\n"


def _bare(terms: str) -> str:
    """The terms of a model without the words that every such text begins and ends with."""
    return terms.removeprefix(_TITLE).removesuffix(f"{_OWN}\n").strip()


def _published(known: ModelCard) -> list[str]:
    """The terms of a backbone's published weights."""
    terms = [f"Pretrained on: {known.source}\nTerms: {known.license}"]
    shipped = known.weights.file.with_name("LICENSE") if known.weights and known.weights.file else None
    if shipped and shipped.is_file():
        terms.append(shipped.read_text(encoding="utf-8").strip())
    return terms


_TITLE = "Terms of the weights in this folder"
_OF_A_MODEL = """They were made from the weights of another model that autotl trained. Its terms also apply to them, and
the images that it was trained on may have their own terms:"""
_OF_A_FILE = """They were made from a weights file that the user gave. The terms of that file also apply to them. If
the file was made from the published weights, so do the terms of"""
_OWN = """The images that they were last trained on may have their own terms.

Scripts (*.py) beside the weights are part of autotl, under the Apache License 2.0."""


def _input(input: Input) -> str:
    """How images are prepared, as a phrase for the card."""
    sides = {"crop": "the short side is", "squash": "both sides are", "pad": "the long side is"}[input.mode]
    filled = ", then padded to a square with one colour" if input.mode == "pad" else ""
    deep = "" if input.bits == BITS else f"; values of integer images are scaled from {input.bits} bits"
    seen = f"the centre {input.size} x {input.size} px are used"
    return f"RGB images: {sides} resized to {input.resize} px{filled}, {seen}{deep}"


def _network(plan: TransferPlan) -> dict[str, str]:
    return {
        "backbone": f"`{plan.backbone}`, cut after `{plan.cut}`",
        "head": f"{plan.head.title}, pooling {plan.head.pooling}",
        "input": _input(plan.input),
    }


def readme(made: Made, classes: Sequence[str], metrics: Metrics, use: str) -> str:
    """The model card, in Markdown. `use` is how to use the model from the card's folder."""
    several = len(made.members) > 1
    facts = {"model": f"the mean of the probabilities of {len(made.members)} models"} if several else {}
    for number, plan in enumerate(made.members, 1):
        facts |= {f"{name} of model {number}" if several else name: fact for name, fact in _network(plan).items()}
    facts |= {
        "parameters": f"{metrics.validation.parameters:,.0f}",
        "FLOPs per image": f"{metrics.validation.flops:,.0f}",
    }
    if (calibration := metrics.calibration) and calibration.temperature != 1:
        facts["temperature of its probabilities"] = (
            f"{calibration.temperature:.3g}, chosen on {calibration.images:,} validation images"
        )
    recalls: dict[str, str] = {}
    if test := metrics.test:
        of_groups = f" of {test.units:,} groups" if test.units and test.units < test.images else ""
        shown, certain = test.scale.text, ""
        if test.low is not None and test.high is not None:
            certain = f", between {shown(test.low)} and {shown(test.high)} with 95 % confidence"
        facts[f"test {test.metric}"] = (
            f"{shown(test.value)}{certain} "
            f"({test.images:,} images{of_groups} that were used neither to train nor to select it)"
        )
        if test.most_frequent is not None:
            facts["the most frequent class alone"] = shown(test.most_frequent)
        recalls = {name: f": {found.right:,} of {found.images:,} correct" for name, found in test.classes.items()}
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in facts.items())])
    version = made.members[0].requires.get("autotl", "")
    names = "\n".join(f"    {name}{recalls.get(name, '')}" for name in classes)
    return f"""# An image classifier for {len(classes)} classes

Made by autotl {version}: plan.json is how it was trained, metrics.json what was measured.

{table}

## Terms

The weights derive from those of the backbone and are under their terms: read LICENSE before you use or share them.

## Use

{use}

## Limits

The model assigns one of its classes to every image, even if the image shows none of them. The measured figures apply
to images like those that it was trained on.

## Classes

{names}
"""

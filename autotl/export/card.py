"""What stands beside a model for people: a model card, and the terms of its weights."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from autotl.backbones.catalogue import Catalogue
from autotl.contracts import ModelCard
from autotl.plan import BITS, Input, TransferPlan


class Costs(BaseModel):
    """Part of what was measured before the test."""

    model_config = ConfigDict(extra="allow", strict=True)

    parameters: float
    flops: float


class OfClass(BaseModel):
    """How many sealed images a class has, and how many of them the model recognises."""

    model_config = ConfigDict(extra="allow", strict=True)

    images: int
    right: int


class Score(BaseModel):
    """The model on the sealed images, with the 95 % interval; what is None or empty older bundles do not say."""

    model_config = ConfigDict(extra="allow", strict=True)

    metric: str
    value: float
    low: float
    high: float
    images: int
    units: int | None = None
    most_frequent: float | None = None
    classes: dict[str, OfClass] = {}


class Metrics(BaseModel):
    """What of `metrics.json` is relied on."""

    model_config = ConfigDict(extra="allow", strict=True)

    validation: Costs
    test: Score | None = None


def licence(plan: TransferPlan, catalogue: Catalogue) -> str:
    """The terms of the weights that a plan leads to: those of the weights that it begins with."""
    known, given = catalogue.card(plan.backbone), catalogue.named.get(plan.backbone)
    if not plan.weights.startswith("sha256:"):
        terms = ["They were trained from random numbers, or are fixed: no weights of others are among them."]
    elif given and given.terms:
        terms = [_OF_A_MODEL, given.terms.removeprefix(_TITLE).removesuffix(f"{_OWN}\n").strip()]
    elif given:
        terms = [f"{_OF_A_FILE} {plan.backbone}:", *_published(known)]
    else:
        of = f"They were made from the pretrained weights of {plan.backbone}, whose terms hold for them too."
        terms = [of, *_published(known)]
    return "\n\n".join([_TITLE, *terms, _OWN]) + "\n"


def _published(known: ModelCard) -> list[str]:
    """The terms of the weights that a backbone has of itself."""
    terms = [f"Pretrained on: {known.source}\nTerms: {known.licence}"]
    shipped = known.weights.file.with_name("LICENSE") if known.weights and known.weights.file else None
    if shipped and shipped.is_file():
        terms.append(shipped.read_text(encoding="utf-8").strip())
    return terms


_TITLE = "Terms of the weights in this folder"
_OF_A_MODEL = """They were made from the weights of another model that autotl trained. Its terms hold for them too, and
the images that it was trained on may have terms of their own:"""
_OF_A_FILE = """They were made from a file of weights that the user gave. The terms of that file hold for them too. If
the file was made from the published weights, so do the terms of"""
_OWN = """The images that they were trained on last may have terms of their own.

Scripts (*.py) beside the weights are part of autotl, under the Apache License 2.0."""


def _input(input: Input) -> str:
    """How an image is prepared, in words."""
    sides = {"crop": "the short side is", "squash": "both sides are", "pad": "the long side is"}[input.mode]
    filled = ", the rest of a square is filled with one colour" if input.mode == "pad" else ""
    deep = "" if input.bits == BITS else f"; values of integer images are scaled from {input.bits} bits"
    seen = f"the middle {input.size} x {input.size} px are seen"
    return f"RGB images: {sides} resized to {input.resize} px{filled}, {seen}{deep}"


def readme(plan: TransferPlan, classes: Sequence[str], metrics: Metrics, use: str) -> str:
    """The model card, in Markdown. `use` says how the model is used from where the card lies."""
    facts = {
        "backbone": f"`{plan.backbone}`, cut after `{plan.cut}`",
        "input": _input(plan.input),
        "parameters": f"{metrics.validation.parameters:,.0f}",
        "FLOPs an image": f"{metrics.validation.flops:,.0f}",
    }
    recalls: dict[str, str] = {}
    if test := metrics.test:
        of_groups = f" of {test.units:,} groups" if test.units and test.units < test.images else ""
        facts[f"test {test.metric}"] = (
            f"{test.value:.1%}, between {test.low:.1%} and {test.high:.1%} with 95 % confidence "
            f"({test.images:,} images{of_groups} that it was neither trained nor chosen on)"
        )
        if test.most_frequent is not None:
            facts["the most frequent class alone"] = f"{test.most_frequent:.1%}"
        recalls = {name: f": {found.right:,} of {found.images:,} recognised" for name, found in test.classes.items()}
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in facts.items())])
    names = "\n".join(f"    {name}{recalls.get(name, '')}" for name in classes)
    return f"""# An image classifier for {len(classes)} classes

Made by autotl {plan.requires.get("autotl", "")}: plan.json says how, metrics.json what was measured.

{table}

## Terms

The weights derive from those of the backbone and come under their terms: read LICENSE before you use or pass them on.

## Use

{use}

## Limits

The model gives one of its classes to every image, also to one that shows none of them. What was measured holds for
images like those that it was trained on.

## Classes

{names}
"""

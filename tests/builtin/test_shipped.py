"""The shipped backbones: their inputs, their recipes, and their figures in the documentation."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autotl.backbones.catalogue import Catalogue
from autotl.study.costs import count

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "autotl/builtin/weights"
NAMES = sorted(file.stem for file in WEIGHTS.glob("*.json"))


def facts(name):
    return json.loads((WEIGHTS / f"{name}.json").read_text())


@pytest.fixture
def catalogue(host, tmp_path):
    return Catalogue(host, tmp_path / "cache")


def test_there_are_several_architectures():
    assert len({facts(name)["model"]["class"] for name in NAMES}) >= 3
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 8e6


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_as_float16_and_loaded_as_float32(name, catalogue):
    stored = load_file(WEIGHTS / f"{name}.safetensors").values()
    assert {value.dtype for value in stored if value.is_floating_point()} == {torch.float16}
    state = catalogue.build(catalogue.network(f"autotl:{name}", seed=0)).state_dict().values()
    assert {value.dtype for value in state if value.is_floating_point()} == {torch.float32}
    assert all(value.isfinite().all() for value in state)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_images_from_32_to_128_px(name, catalogue):
    inputs = catalogue.inputs(f"autotl:{name}")
    assert sorted(input.size for input in inputs) == [32, 64, 96, 128]
    shapes = []
    for input in inputs:
        stages = catalogue.build(catalogue.network(f"autotl:{name}", seed=0, input=input)).eval()
        with torch.no_grad():
            value = stages(torch.randn(2, 3, input.size, input.size))
        assert value.isfinite().all() and value.std() > 0
        assert tuple(value.shape[1:]) == catalogue.info(f"autotl:{name}", input).stages[-1].shape
        shapes.append(value.shape[1:])
    assert len(set(shapes)) == len(inputs)


@pytest.mark.parametrize("name", NAMES)
def test_its_card_states_source_and_terms(name, catalogue):
    card = catalogue.card(f"autotl:{name}")
    assert "Tiny ImageNet" in card.source
    assert "under ImageNet's terms of access" in card.license


@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_is_in_the_repository(name):
    recipe = tomllib.loads((ROOT / f"studies/backbones/{name}.toml").read_text())
    assert recipe.items() >= {key: facts(name)[key] for key in ("model", "epochs", "seed")}.items()


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_gives_its_figures(name, catalogue):
    info, known = catalogue.info(f"autotl:{name}"), facts(name)
    costs = [count(cost(info.names[-1])) for cost in (info.parameters, info.flops)]
    top1, low, high = (f"{100 * value:.1f}" for value in (known["top1"], *known["top1_interval"]))
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if f"| `autotl:{name}` |" in line]
    assert [row.split(" | ")[-3:] for row in rows] == [[*costs, f"{top1} % ({low} to {high}) |"]]
    assert f"{top1} % ({low} to {high})" in (ROOT / "studies/README.md").read_text()

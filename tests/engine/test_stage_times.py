"""How long each stage takes, frozen and trained."""

import pytest

from autotl.backbones.catalogue import Catalogue
from autotl.engine import stage_times
from autotl.engine.memory import Memory
from autotl.engine.precision import Arithmetic
from autotl.engine.stage_times import by_flops, measured

USUAL = Arithmetic("float32", "channels_last")


@pytest.fixture
def catalogue(host, tmp_path):
    return Catalogue(host, tmp_path / "cache")


@pytest.fixture
def measure(catalogue):
    input = catalogue.card("tiny:net").input
    stages = catalogue.structure("tiny:net", input)
    return lambda arithmetic=USUAL: measured(stages, input, arithmetic, Memory("cpu"))


def test_every_stage_is_measured_and_no_gradients_are_left(measure, catalogue):
    times = measure()
    info = catalogue.info("tiny:net")
    assert tuple(times) == info.names
    assert all(0 < each.forward < 1 and 0 < each.training < 1 for each in times.values())
    stages = catalogue.structure("tiny:net", info.input)
    assert all(parameter.grad is None for parameter in stages.parameters())


def test_the_shortest_of_several_turns_counts_and_the_first_is_a_warm_up(measure, monkeypatch):
    really, taken = stage_times._timed, iter([*3 * [(0.1, 0.2)], *3 * [(9, 1)], *3 * [(3, 7)], *3 * [(6, 6)]])
    seconds = iter([each for both in taken for each in both])
    monkeypatch.setattr(stage_times, "_timed", lambda run: (next(seconds), really(run)[1]))
    monkeypatch.setattr(stage_times, "ENOUGH", 1e6)
    batch = stage_times.BATCH["cpu"]
    assert set(measure().values()) == {(3 / batch, 1 / batch)}


def test_seconds_by_flops_add_up_to_those_of_the_network(catalogue):
    info = catalogue.info("tiny:net")
    times = by_flops(info, 0.6)
    assert sum(each.training for each in times.values()) == pytest.approx(0.6)
    first = info.stages[0]
    assert times[first.name].forward == pytest.approx(0.6 * first.flops / info.flops(info.names[-1]))

"""Latencies are medians of whole passes, measured once on a machine."""

import pytest

from autotl.backbones.catalogue import Catalogue
from autotl.engine import latency
from autotl.engine.latency import LEAST, MOST, WARM_UP


@pytest.fixture
def catalogue(host, tmp_path):
    return Catalogue(host, tmp_path / "cache")


@pytest.fixture
def take(monkeypatch):
    """`take(passes)`: let passes through three stages end at these seconds, the last pass for ever."""

    def pretend(passes):
        ends = iter([end for each in passes for end in each])
        last = [*passes[-1]]

        def since(started, device):
            last.append(last.pop(0))
            return next(ends, last[-1])

        monkeypatch.setattr(latency, "_seconds_since", since)

    return pretend


def measured(catalogue, name="tiny:net"):
    input = catalogue.card(name).input
    return latency.milliseconds(catalogue, name, input, "cpu", catalogue.cache_dir)


def test_a_latency_is_the_median_of_passes_without_the_first_ones(catalogue, take):
    slow, quick = (9.0, 9.0, 9.0), (0.001, 0.002, 0.004)
    # Of the passes that count, a third were disturbed in the middle.
    take([slow] * WARM_UP + [(0.001, 5.0, 5.1)] * (MOST // 3) + [quick])
    assert measured(catalogue) == pytest.approx((1.0, 2.0, 4.0))


def test_a_slow_network_is_not_measured_longer_than_needed(catalogue, take, monkeypatch):
    monkeypatch.setattr(latency, "ENOUGH", 0.0)
    # If one more pass counted, the median would be another one.
    odd = [(1.0, 1.0, 1.0)] * (LEAST // 2) + [(2.0, 2.0, 2.0)] * (LEAST // 2)
    take([(0.0, 0.0, 0.0)] * WARM_UP + odd + [(8.0, 8.0, 8.0)])
    assert measured(catalogue) == (1500.0,) * 3


def test_it_is_measured_once_for_each_input_size(catalogue, monkeypatch):
    found = measured(catalogue)
    assert len(found) == 3 and 0 < found[0] <= found[1] <= found[2] < 1000
    monkeypatch.setattr(latency, "measure", lambda stages, input, device: (7.0,) * 3)
    assert measured(catalogue) == found
    larger = catalogue.card("tiny:net").input.at(48)
    assert latency.milliseconds(catalogue, "tiny:net", larger, "cpu", catalogue.cache_dir) == (7.0,) * 3
    assert measured(catalogue, "tiny:deep") == (7.0,) * 3

import threading
import time
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch

from autotl.data.rows import RowStore, StoreError
from autotl.engine import feed


@pytest.fixture
def pixels(tmp_path):
    """Ten rows; the row of key `n` is filled with n."""
    store = RowStore(tmp_path / "rows", (3, 2, 2), np.uint8)
    store.append([f"{n:064x}" for n in range(10)], np.full((10, 3, 2, 2), np.arange(10)[:, None, None, None], np.uint8))
    return store


def test_batches_come_in_the_requested_order(pixels):
    batches = [[f"{n:064x}" for n in group] for group in ([3, 1], [9], [0, 0, 2])]
    found = [batch[:, 0, 0, 0].tolist() for batch in feed.images(pixels.read, batches, "cpu")]
    assert found == [[3, 1], [9], [0, 0, 2]]


@pytest.fixture
def second_gpu(monkeypatch):
    """Torch's calls for `cuda:1` without a GPU, as a list: copies go to the CPU, and fail for batches of one image."""
    calls, main = [], threading.get_ident()

    class Stream:
        device = torch.device("cuda", 1)

        def record_event(self):
            return "copied"

        def wait_event(self, event):
            calls.append(f"wait for {event}")

    @contextmanager
    def within(what):
        calls.append(f"enter {what}")
        yield
        calls.append(f"leave {what}")

    def to(tensor, device, non_blocking):
        assert device == "cuda:1" and non_blocking
        if len(tensor) == 1 and threading.get_ident() != main:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tensor.clone()

    monkeypatch.setattr(feed, "_copying", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "device", lambda device: within(device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: calls.append("record"))
    return calls


def test_a_batch_that_finds_no_memory_on_a_gpu_is_copied_when_it_is_needed(pixels, second_gpu):
    batches = [[f"{n:064x}" for n in group] for group in ([3, 1], [9], [0, 0, 2], [5])]
    found = [batch[:, 0, 0, 0].tolist() for batch in feed.images(pixels.read, batches, "cuda:1")]
    assert found == [[3, 1], [9], [0, 0, 2], [5]]
    assert second_gpu.count("wait for copied") == second_gpu.count("record") == 2


def test_copies_to_a_gpu_do_not_touch_another_one(pixels, second_gpu):
    """Torch sets the stream that a thread had before, and so its GPU, when it leaves a stream of another GPU."""
    list(feed.images(pixels.read, [[f"{n:064x}" for n in (3, 1)]], "cuda:1"))
    assert second_gpu[:4] == ["enter cuda:1", "enter stream", "leave stream", "leave cuda:1"]


def test_threads_that_read_ahead_keep_the_order():
    def read(key):
        time.sleep(0.002 * (key % 3))
        return -key

    assert list(feed._read_ahead(read, range(30))) == [-key for key in range(30)]


def test_nothing_is_read_far_ahead_nor_after_the_end(pixels):
    started = []
    ahead = feed._read_ahead(started.append, count())
    next(ahead)
    ahead.close()
    assert len(started) <= feed.AHEAD + 1


def test_an_error_of_a_reader_is_raised_for_the_caller():
    def read(key):
        if key == 2:
            raise StoreError("gone")
        return key

    ahead = feed._read_ahead(read, range(5))
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(StoreError, match="gone"):
        next(ahead)


def test_a_result_is_waited_for_when_the_next_is_started():
    happened = []

    def start(number):
        happened.append(f"start {number}")
        return lambda: happened.append(f"wait {number}") or number

    assert list(feed._one_behind(map(start, range(3)))) == [0, 1, 2]
    assert happened == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]
    assert list(feed._one_behind([])) == []


def test_a_cpu_gives_each_result_before_it_computes_the_next():
    happened = []
    values = (happened.append(n) or torch.full((2,), n) for n in range(3))
    for seen, value in enumerate(feed.results(values, "cpu")):
        assert value.tolist() == [seen, seen]
        assert happened == [*range(seen + 1)]


@pytest.mark.gpu
def test_a_gpu_gets_the_same_pixels(pixels, cuda):
    batches = [[f"{n % 10:064x}" for n in range(start, start + 4)] for start in range(40)]
    for there, here in zip(
        feed.images(pixels.read, batches, cuda), feed.images(pixels.read, batches, "cpu"), strict=True
    ):
        assert there.device.type == "cuda"
        assert torch.equal(there.cpu(), here)


@pytest.mark.gpu
def test_a_gpu_s_results_are_those_that_it_computed(cuda):
    def values():
        for number in range(20):
            value = torch.full((256, 1000), float(number), device=cuda)
            for _ in range(50):
                value = value @ torch.eye(1000, device=cuda)
            yield value

    for number, value in enumerate(feed.results(values(), cuda)):
        assert value.device.type == "cpu" and value.is_pinned()
        assert bool((value == number).all())
    assert number == 19

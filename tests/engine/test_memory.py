"""A device's memory: what is kept in it, who shares it, and what is done when it runs out."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from autotl.engine.memory import Memory
from autotl.errors import TrainingError

BYTES = 40
"""Of the tensors that are kept here."""


class Device:
    """A device with memory for so many bytes: `memory` keeps tensors in it, and calls compute rows in it."""

    def __init__(self, size, row_bytes=1):
        self.memory = Memory("cpu")
        self.size, self.row_bytes = size, row_bytes
        self.seen, self.held = [], []

    def keep(self, key, size=BYTES):
        return self.memory.keep(key, size, lambda: torch.zeros(size // 4))

    def __call__(self, values):
        self.seen.append(len(values))
        self.held.append(self.memory.held)
        if len(values) * self.row_bytes + self.memory.held > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return values * 2


@pytest.fixture
def free(monkeypatch):
    """`free(bytes)`: what is free on every device from then on, besides what a memory of this process keeps."""

    def set_to(count):
        monkeypatch.setattr(Memory, "_free", lambda self: count - self.held)

    set_to(10**9)
    return set_to


def test_the_least_recently_used_is_given_up_for_another():
    memory, made = Memory("cpu"), []
    memory.most = 3 * BYTES

    def get(key):
        return memory.keep(key, BYTES, lambda: made.append(key) or torch.full((10,), float(ord(key))))

    for key in "abcab":
        assert get(key)[0] == ord(key)
    assert made == ["a", "b", "c"]
    get("d")  # c goes
    for key in "abd":
        get(key)
    assert made == ["a", "b", "c", "d"]
    get("c")  # a goes
    get("b")
    get("a")
    assert made == ["a", "b", "c", "d", "c", "a"]
    assert memory.held == 3 * BYTES


def test_what_there_is_no_room_for_is_not_made_and_costs_nothing_that_is_kept():
    memory = Memory("cpu")
    memory.most = 3 * BYTES
    for key in "ab":
        memory.keep(key, BYTES, lambda: torch.zeros(10))
    assert memory.keep("large", 4 * BYTES, lambda: pytest.fail("made")) is None
    assert "a" in memory and "b" in memory and "large" not in memory


def test_no_more_is_kept_than_a_quarter_of_what_is_free(free):
    memory = Memory("cpu")
    free(400)
    assert memory.room == 100
    for key in "ab":
        memory.keep(key, BYTES, lambda: torch.zeros(10))
    assert memory.room == 100  # what it keeps itself counts as free
    free(160)  # others have taken the rest
    made = []
    for key in "bca":
        memory.keep(key, BYTES, lambda key=key: made.append(key) or torch.zeros(10))
    assert made == ["c", "a"]


def test_on_a_gpu_half_of_what_is_free_is_left_for_computing(free):
    memory = Memory("cuda")
    free(400)
    assert memory.room == 200


# When it runs out


@pytest.mark.parametrize(
    ("rows", "seen"),
    [(9, [7]), (4, [7, 4, 3]), (3, [7, 4, 2, 2, 3]), (1, [7, 4, 2, 1, 1, 2, 1, 1, 3, 2, 1, 1, 1])],
)
def test_what_does_not_fit_goes_through_in_halves(rows, seen):
    device, values = Device(rows), torch.arange(14.0).view(7, 2)
    assert torch.equal(device.memory.in_parts(device, values), values * 2)
    assert device.seen == seen


def test_what_is_kept_is_given_up_before_anything_is_split():
    device, values = Device(8 * BYTES, row_bytes=BYTES), torch.ones(5, 2)
    for key in "abcdefgh":
        device.keep(key)
    assert torch.equal(device.memory.in_parts(device, values), values * 2)
    assert device.seen == [5, 5, 5]
    assert device.held == [8 * BYTES, 4 * BYTES, 2 * BYTES]
    assert all(key in device.memory for key in "gh")  # which were used last


def test_nothing_is_split_while_anything_is_kept():
    device, values = Device(BYTES, row_bytes=BYTES // 4), torch.ones(5, 2)
    device.keep("a")
    device.memory.in_parts(device, values)
    assert device.seen == [5, 5, 3, 2]
    assert device.memory.held == 0


def test_where_not_even_one_row_fits_the_training_fails():
    with pytest.raises(TrainingError, match="not even one image fits into the device's memory"):
        Device(0).memory.in_parts(Device(0), torch.ones(4))


def test_only_the_memory_is_dealt_with():
    def fails(values):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Memory("cpu").in_parts(fails, torch.ones(4))


def test_what_cannot_be_made_even_alone_is_not_kept():
    device, tried = Device(0), []
    device.keep("a")

    def make():
        tried.append(device.memory.held)
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert device.memory.keep("b", BYTES, make) is None
    assert tried == [BYTES, 0]
    assert "b" not in device.memory


def test_recovering_ends_when_nothing_is_kept():
    device = Device(0)
    for key in "abc":
        device.keep(key)
    assert [device.memory.recover() for _ in range(4)] == [True, True, False, False]


def test_tensors_of_a_failed_attempt_are_gone_before_the_next():
    """An error that is being handled keeps the variables of every frame it came through."""
    device, alive = Device(0), []
    device.keep("a")

    class Large:
        def __del__(self):
            alive.remove(self.number)

    def run():
        large = Large()
        large.number = len(alive)
        alive.append(large.number)
        assert len(alive) == 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert device.memory.attempt(run) is None
    assert not alive


# Several processes

SHARER = """
import sys
from pathlib import Path
from autotl.engine.memory import Memory
Memory._free = lambda self: 800
memory = Memory("cpu", Path(sys.argv[1]))
print(memory.room, flush=True)
sys.stdin.readline()
print(memory.room, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def sharer(tmp_path):
    """Starts a process that shares the memory, with 800 bytes free, and tells its room whenever it gets a line."""
    started = []

    def start():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        started.append(subprocess.Popen([sys.executable, "-c", SHARER, str(tmp_path)], env=path, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_processes_divide_what_may_be_kept_and_inherit_from_the_dead(tmp_path, sharer, free):
    free(800)
    memory = Memory("cpu", tmp_path)
    assert memory.room == 200
    other = sharer()
    assert other.stdout.readline() == "100\n"
    assert memory.room == 100
    third = sharer()
    assert third.stdout.readline() == "66\n"
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert memory.room == 100
    third.stdin.write("\n")
    third.stdin.flush()
    assert third.stdout.readline() == "100\n"
    third.communicate("\n")  # ends as usual
    assert memory.room == 200
    assert len(list(tmp_path.glob("memory/*/[!.]*"))) == 1


def test_who_has_not_asked_for_room_has_no_share(tmp_path, free):
    free(800)
    one, _ = Memory("cpu", tmp_path), Memory("cpu", tmp_path)
    assert one.room == 200


def test_a_memory_that_is_no_longer_used_has_no_share(tmp_path, free):
    free(800)
    one, other = Memory("cpu", tmp_path), Memory("cpu", tmp_path)
    assert [other.room, one.room] == [200, 100]
    del other
    assert one.room == 200


# On a GPU


@pytest.mark.gpu
def test_on_a_gpu_the_store_shrinks_before_a_batch_is_split(cuda, tmp_path):
    memory, size = Memory(cuda, tmp_path), 2**26
    memory.clear()
    fraction = (torch.cuda.memory_reserved() + 6 * size) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        for key in "abcd":
            memory.keep(key, size, lambda: torch.zeros(size // 4, device=cuda))
        values, seen = torch.ones(4, size // 16, device=cuda), []

        def run(part):
            seen.append(len(part))
            return torch.cat([part, part, part], 1)[:, : part.shape[1]] * 2

        assert torch.equal(memory.in_parts(run, values), values * 2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert set(seen) == {4} and len(seen) > 1
    assert memory.held < 4 * size


@pytest.mark.gpu
def test_on_a_gpu_torch_s_cached_memory_counts_as_free(cuda):
    memory = Memory(cuda)
    memory.clear()
    before = memory.room
    block = torch.zeros(2**28, device=cuda)
    assert memory.room < before - 2**28
    del block  # cached
    assert memory.room == pytest.approx(before, abs=2**26)

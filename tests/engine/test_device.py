import pytest
import torch

from autotl.engine.device import in_parts, kind
from autotl.errors import TrainingError


class Memory:
    """A function with memory for `rows` rows per call, and for `more` after `make_room`."""

    def __init__(self, rows, more=None):
        self.rows, self.more = rows, rows if more is None else more
        self.seen = []
        self.made_room = 0

    def make_room(self):
        self.made_room += 1
        self.rows = self.more

    def __call__(self, values):
        self.seen.append(len(values))
        if len(values) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return values * 2


@pytest.mark.parametrize(
    ("rows", "seen"),
    [(9, [7]), (4, [7, 4, 3]), (3, [7, 4, 2, 2, 3]), (1, [7, 4, 2, 1, 1, 2, 1, 1, 3, 2, 1, 1, 1])],
)
def test_a_batch_that_does_not_fit_is_halved(rows, seen):
    memory, values = Memory(rows), torch.arange(14.0).view(7, 2)
    assert torch.equal(in_parts(memory, values, memory.make_room), values * 2)
    assert memory.seen == seen
    assert memory.made_room == 0


def test_if_one_row_does_not_fit_memory_is_freed():
    memory, values = Memory(0, more=1), torch.ones(1, 2)
    assert torch.equal(in_parts(memory, values, memory.make_room), values * 2)
    with pytest.raises(TrainingError, match="not even one image fits into the device's memory"):
        in_parts(Memory(0), values)


def test_other_errors_are_raised():
    def fails(values):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        in_parts(fails, torch.ones(4))


def test_the_kind_of_a_device():
    assert [kind(device) for device in ("cpu", "cuda", "cuda:1", "mps")] == ["cpu", "cuda", "cuda", "mps"]

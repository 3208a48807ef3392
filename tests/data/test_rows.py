"""The row store: appended rows are read back, even if the process or other processes die."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from autotl.data.rows import ENTRY_BYTES, FORMAT, DamagedRows, RowStore, StoreError, trim


def key(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def keys(*numbers):
    return [key(number) for number in numbers]


def rows(*numbers, width=3):
    """Rows whose values depend on their number."""
    return np.array([[number] * width for number in numbers], np.float32)


def filled(folder, *numbers):
    store = RowStore(folder, (3,), "float32")
    store.append(keys(*numbers), rows(*numbers))
    return store


def test_rows_are_returned_in_the_requested_order(tmp_path):
    store = filled(tmp_path / "s", 1, 2, 3)
    np.testing.assert_array_equal(store.read(keys(3, 1, 3)), rows(3, 1, 3))
    np.testing.assert_array_equal(RowStore(tmp_path / "s", (3,), "float32").read(keys(2)), rows(2))


def test_images_as_rows(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    store = RowStore(tmp_path / "s", (3, 8, 8), np.uint8)
    store.append(keys(*range(5)), images)
    np.testing.assert_array_equal(store.read(keys(4, 0)), images[[4, 0]])
    with pytest.raises(ValueError, match="only flat rows"):
        store.read(keys(0), slice(0, 1))


def test_columns(tmp_path):
    values = np.arange(20, dtype=np.float32).reshape(2, 10)
    store = RowStore(tmp_path / "s", (10,), "float32")
    store.append(keys(0, 1), values)
    np.testing.assert_array_equal(store.read(keys(1, 0), slice(3, 5)), values[[1, 0], 3:5])


def test_what_is_read_is_a_copy(tmp_path):
    store = filled(tmp_path / "s", 1)
    store.read(keys(1))[:] = 9
    np.testing.assert_array_equal(store.read(keys(1)), rows(1))


def test_missing_and_contains(tmp_path):
    store = filled(tmp_path / "s", 1, 2)
    assert store.missing(keys(5, 1, 4, 5)) == keys(5, 4)
    assert key(1) in store and key(4) not in store and len(store) == 2
    with pytest.raises(KeyError):
        store.read(keys(1, 4))


def test_an_empty_store(tmp_path):
    store = RowStore(tmp_path / "s", (3,), "float32")
    assert store.missing(keys(1)) == keys(1)
    assert store.read([]).shape == (0, 3)
    store.append([], rows(1)[:0])
    assert len(store) == 0


def test_a_key_keeps_its_first_row(tmp_path):
    store = filled(tmp_path / "s", 1)
    store.append(keys(2, 1, 2), rows(2, 8, 9))
    np.testing.assert_array_equal(store.read(keys(1, 2)), rows(1, 2))
    assert (tmp_path / "s/rows.bin").stat().st_size == 2 * 12


def test_rows_that_do_not_fit(tmp_path):
    store = RowStore(tmp_path / "s", (3,), "float32")
    with pytest.raises(ValueError, match="keys, rows"):
        store.append(keys(1), rows(1, width=4))
    with pytest.raises(ValueError, match="keys, rows"):
        store.append(keys(1), rows(1).astype("float64"))
    with pytest.raises(ValueError, match="keys, rows"):
        store.append(keys(1, 2), rows(1))


@pytest.mark.parametrize("row_bytes", [0, 1, 11, 12, 13, 23, 24, 35, 36])
@pytest.mark.parametrize("key_bytes", [0, 1, 35, 36, 37, 71, 72, 107, 108])
def test_a_torn_tail_is_dropped(tmp_path, row_bytes, key_bytes):
    filled(tmp_path / "s", 1, 2, 3)
    os.truncate(tmp_path / "s/rows.bin", row_bytes)
    os.truncate(tmp_path / "s/keys.bin", key_bytes)
    whole = min(row_bytes // 12, key_bytes // ENTRY_BYTES)
    store = RowStore(tmp_path / "s", (3,), "float32")
    assert store.missing(keys(1, 2, 3)) == keys(1, 2, 3)[whole:]
    store.append(keys(4, 3, 2, 1), rows(4, 3, 2, 1))
    for reopened in (store, RowStore(tmp_path / "s", (3,), "float32")):
        np.testing.assert_array_equal(reopened.read(keys(1, 2, 3, 4)), rows(1, 2, 3, 4))


def test_a_tail_that_is_lost_under_an_open_store(tmp_path):
    store = filled(tmp_path / "s", 1, 2, 3)
    os.truncate(tmp_path / "s/keys.bin", 40)
    assert store.missing(keys(1, 2, 3)) == keys(2, 3)


def damage(file, at, bits=0x40):
    """Change one byte of a file, with a later time of modification."""
    data = bytearray(file.read_bytes())
    data[at] ^= bits
    file.write_bytes(data)
    os.utime(file, ns=(0, 2 * file.stat().st_mtime_ns))


@pytest.mark.parametrize(
    ("file", "at"), [("rows.bin", 13), ("keys.bin", ENTRY_BYTES + 33)], ids=["a row", "its checksum"]
)
@pytest.mark.parametrize("known", [False, True], ids=["when it is opened", "while it is open"])
def test_a_damaged_row_is_noticed_and_written_again_in_its_place(tmp_path, file, at, known):
    store = filled(tmp_path / "s", 1, 2, 3)
    if known:
        store.read(keys(1, 2, 3))
    damage(tmp_path / "s" / file, at)
    if not known or file == "keys.bin":  # whose checksums are read when it is opened
        store = RowStore(tmp_path / "s", (3,), "float32")
    np.testing.assert_array_equal(store.read(keys(1, 3)), rows(1, 3))
    with pytest.raises(DamagedRows, match="in 1 place"):
        store.read(keys(1, 2, 3), slice(2, 3))  # though the damage may be in another column
    assert store.missing(keys(1, 2, 3)) == keys(2)
    store.append(keys(4, 2), rows(4, 2))
    for reopened in (store, RowStore(tmp_path / "s", (3,), "float32")):
        np.testing.assert_array_equal(reopened.read(keys(4, 3, 2, 1)), rows(4, 3, 2, 1))
    assert (tmp_path / "s/rows.bin").stat().st_size == 4 * 12


def test_rows_that_a_power_cut_lost_are_missing(tmp_path):
    """The file system kept the keys and the length of the rows, whose last part reads as zeros."""
    filled(tmp_path / "s", 1, 2, 3)
    file = tmp_path / "s/rows.bin"
    file.write_bytes(file.read_bytes()[:12] + bytes(24))
    store = RowStore(tmp_path / "s", (3,), "float32")
    with pytest.raises(DamagedRows, match="in 2 places"):
        store.read(keys(1, 2, 3))
    assert store.missing(keys(1, 2, 3)) == keys(2, 3)
    store.append(keys(2, 3), rows(2, 3))
    np.testing.assert_array_equal(RowStore(tmp_path / "s", (3,), "float32").read(keys(3, 2, 1)), rows(3, 2, 1))


def test_a_row_in_the_place_of_another_counts_as_damaged(tmp_path):
    filled(tmp_path / "s", 1, 2)
    data = (tmp_path / "s/rows.bin").read_bytes()
    (tmp_path / "s/rows.bin").write_bytes(data[12:] + data[:12])
    with pytest.raises(DamagedRows, match="in 2 places"):
        RowStore(tmp_path / "s", (3,), "float32").read(keys(1, 2))


def test_a_row_with_a_damaged_key_counts_as_missing(tmp_path):
    filled(tmp_path / "s", 1, 2)
    damage(tmp_path / "s/keys.bin", 5)
    store = RowStore(tmp_path / "s", (3,), "float32")
    assert store.missing(keys(1, 2)) == keys(1)
    store.append(keys(1), rows(1))
    np.testing.assert_array_equal(store.read(keys(1, 2)), rows(1, 2))


def test_keys_that_are_all_zeros_cost_no_row_of_another_process(tmp_path):
    store = filled(tmp_path / "s", 1, 2, 3)
    (tmp_path / "s/keys.bin").write_bytes(bytes(3 * ENTRY_BYTES))
    reopened = RowStore(tmp_path / "s", (3,), "float32")
    reopened.append(keys(4), rows(4))
    np.testing.assert_array_equal(reopened.read(keys(4)), rows(4))
    np.testing.assert_array_equal(store.read(keys(1, 2, 3)), rows(1, 2, 3))


def test_a_damaged_description_is_written_again(tmp_path):
    filled(tmp_path / "s", 1)
    for text in ("", "{", "\udcff"):
        (tmp_path / "s/store.json").write_bytes(text.encode(errors="surrogateescape"))
        np.testing.assert_array_equal(RowStore(tmp_path / "s", (3,), "float32").read(keys(1)), rows(1))


def test_a_cleared_store_is_an_empty_one(tmp_path):
    store, other = filled(tmp_path / "s", 1, 2), filled(tmp_path / "s", 1, 2)
    store.clear()
    assert store.missing(keys(1, 2)) == other.missing(keys(1, 2)) == keys(1, 2)
    store.append(keys(2), rows(5))
    np.testing.assert_array_equal(other.read(keys(2)), rows(5))


def test_appending_copies_no_stored_rows(tmp_path):
    store = filled(tmp_path / "s", 1)
    positions, sums = store._positions, store._sums
    store.append(keys(2), rows(2))
    assert store._positions is positions and store._sums is sums and len(positions) == len(sums) == 2


WRITER = """
import hashlib, sys
import numpy as np
from autotl.data.rows import RowStore
folder, first, step, count = sys.argv[1], *map(int, sys.argv[2:])
store = RowStore(folder, (1000,), "float32")
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + step * count, step):
    store.append([hashlib.sha256(str(number).encode()).hexdigest()], np.full((1, 1000), number, np.float32))
"""


def writer(folder, first, step, count):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), *map(str, (first, step, count))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_append_at_the_same_time(tmp_path):
    # Every third number is written by both.
    writers = [writer(tmp_path / "s", 0, 2, 90), writer(tmp_path / "s", 0, 3, 60)]
    for process in writers:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    numbers = sorted({*range(0, 180, 2), *range(0, 180, 3)})
    store = RowStore(tmp_path / "s", (1000,), "float32")
    assert len(store) == len(numbers)
    np.testing.assert_array_equal(store.read(keys(*numbers)), rows(*numbers, width=1000))
    assert (tmp_path / "s/keys.bin").stat().st_size == len(numbers) * ENTRY_BYTES


def test_a_killed_process_leaves_whole_rows(tmp_path):
    process = writer(tmp_path / "s", 0, 1, 1_000_000)
    store = RowStore(tmp_path / "s", (1000,), "float32")
    process.stdin.write("go\n")
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while len(store) < 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    numbers = range(len(store))
    assert len(numbers) >= 20
    np.testing.assert_array_equal(store.read(keys(*numbers)), rows(*numbers, width=1000))
    store.append(keys(-1), rows(-1, width=1000))
    np.testing.assert_array_equal(store.read(keys(-1, 0)), rows(-1, 0, width=1000))


def test_another_process_s_rows_are_seen(tmp_path):
    store, other = filled(tmp_path / "s", 1), filled(tmp_path / "s", 2, 3)
    assert key(3) not in store
    assert store.missing(keys(1, 2, 3)) == []
    assert key(3) in store
    np.testing.assert_array_equal(store.read(keys(3, 1)), rows(3, 1))
    store.append(keys(4), rows(4))
    np.testing.assert_array_equal(other.read(keys(4)), rows(4))


def test_a_store_removed_and_created_again_by_another_process(tmp_path):
    store = filled(tmp_path / "s", 1, 2)
    shutil.rmtree(tmp_path / "s")
    # Mapped rows can still be read.
    np.testing.assert_array_equal(store.read(keys(2, 1)), rows(2, 1))
    filled(tmp_path / "s", 7, 8)
    assert store.missing(keys(1, 2, 7, 8)) == keys(1, 2)
    np.testing.assert_array_equal(store.read(keys(8, 7)), rows(8, 7))


def test_appending_to_a_store_that_was_removed(tmp_path):
    store = filled(tmp_path / "s", 1, 2)
    shutil.rmtree(tmp_path / "s")
    store.append(keys(3), rows(3))
    assert RowStore(tmp_path / "s", (3,), "float32").missing(keys(1, 2, 3)) == keys(1, 2)


@pytest.mark.parametrize(
    "meta",
    [
        "[]",
        json.dumps({"schema": FORMAT - 1, "shape": [3], "dtype": "<f4"}),
        json.dumps({"schema": FORMAT, "shape": [4], "dtype": "<f4"}),
        json.dumps({"schema": FORMAT, "shape": [3], "dtype": "<f8"}),
    ],
)
def test_a_folder_that_contains_something_else(tmp_path, meta):
    filled(tmp_path / "s", 1)
    (tmp_path / "s/store.json").write_text(meta)
    with pytest.raises(StoreError, match="Delete this folder") as caught:
        RowStore(tmp_path / "s", (3,), "float32")
    assert str(tmp_path / "s") in str(caught.value) and "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="--cache-dir"):
        RowStore(tmp_path / "file/s", (3,), "float32")


def used(folder, when):
    os.utime(folder / "store.json", (when, when))


def test_trim_removes_the_stores_used_longest_ago(tmp_path):
    for number, name in enumerate(("pixels/a", "pixels/b", "features/x/c")):
        filled(tmp_path / name, *range(10))
        used(tmp_path / name, 1000 - number)
    size = sum(file.stat().st_size for file in (tmp_path / "pixels/a").iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_bytes(b"x" * 100_000)
    assert trim(tmp_path, 3 * size) == []
    assert trim(tmp_path, 2 * size) == [tmp_path / "features/x/c"]
    assert trim(tmp_path, size - 1) == [tmp_path / "pixels/b", tmp_path / "pixels/a"]
    assert (tmp_path / "other/file").exists()
    assert not (tmp_path / "pixels/a").exists()
    assert trim(tmp_path / "nowhere", 0) == []


def test_trim_keeps_what_this_process_uses(tmp_path):
    store = filled(tmp_path / "a", 1)
    used(tmp_path / "a", 1)
    assert trim(tmp_path, 0) == []
    np.testing.assert_array_equal(store.read(keys(1)), rows(1))
    del store
    assert trim(tmp_path, 0) == [tmp_path / "a"]


def test_trim_keeps_what_another_process_writes(tmp_path):
    store = filled(tmp_path / "a", 1)
    with store._lock:
        del store
        assert trim(tmp_path, 0) == []
    assert trim(tmp_path, 0) == [tmp_path / "a"]


def test_reading_counts_as_use(tmp_path):
    first, second = filled(tmp_path / "a", 1), filled(tmp_path / "b", 1)
    used(tmp_path / "a", 1)
    used(tmp_path / "b", 2)
    first.read(keys(1))
    del first, second
    assert trim(tmp_path, 150) == [tmp_path / "b"]

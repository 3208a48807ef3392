"""Every image is read and decoded only once."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from autotl.data import images
from autotl.data.images import decode, prepare
from autotl.data.pixels import PixelStore, Seen
from autotl.data.rows import StoreError
from autotl.errors import DataError
from autotl.plan import Input

SMALL = Input(size=16, resize=20, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
LARGE = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


@pytest.fixture
def photos(tmp_path):
    """Twelve different images, 40 x 30 px."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"photos/{n}.png" for n in range(12)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def store(tmp_path):
    return PixelStore(tmp_path / "cache")


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_holds(store, paths, *inputs):
    for input in inputs:
        expected = np.stack([prepare(decode(path.read_bytes()), input) for path in paths])
        np.testing.assert_array_equal(store.rows(input).read([sha(path) for path in paths]), expected)


def test_all_inputs_from_one_decoding(store, photos):
    assert store.look(photos, [SMALL, LARGE]) == [Seen(sha(path), 40, 30) for path in photos]
    assert store.decoded == 12
    assert_holds(store, photos, SMALL, LARGE)


def test_a_second_call_decodes_nothing(store, photos, tmp_path):
    first = store.look(photos, [SMALL])
    again = PixelStore(tmp_path / "cache")
    assert again.look(photos, [SMALL]) == first
    assert again.decoded == 0


def test_another_input_is_decoded_for_alone(store, photos, monkeypatch):
    store.look(photos, [SMALL])
    fit, prepared = images.fit, []
    monkeypatch.setattr(images, "fit", lambda image, input: prepared.append(input) or fit(image, input))
    store.look(photos, [SMALL, LARGE])
    assert store.decoded == 24 and prepared == [LARGE] * 12
    assert_holds(store, photos, SMALL, LARGE)


def test_only_new_images_are_decoded(store, photos):
    store.look(photos[:5], [SMALL])
    store.look(photos, [SMALL])
    assert store.decoded == 12


def test_mean_and_std_do_not_matter(store, photos):
    other = SMALL.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)})
    assert store.rows(other) is store.rows(SMALL)
    store.look(photos, [SMALL, other])
    assert store.decoded == 12


def test_mean_matters_where_it_fills_a_square(store):
    padded = SMALL.by("pad")
    assert store.rows(padded.model_copy(update={"std": (1.0,) * 3})) is store.rows(padded)
    assert store.rows(padded.model_copy(update={"mean": (0.1, 0.2, 0.3)})) is not store.rows(padded)


@pytest.mark.parametrize(
    "change", [{"size": 18}, {"resize": 24}, {"interpolation": "lanczos"}, {"mode": "squash"}, {"bits": 12}]
)
def test_inputs_with_other_pixels_have_stores_of_their_own(store, change):
    assert store.rows(SMALL.model_copy(update=change)).folder != store.rows(SMALL).folder


def test_another_decoder_has_stores_of_its_own(tmp_path, monkeypatch):
    before = PixelStore(tmp_path).rows(SMALL).folder
    monkeypatch.setattr(images, "DECODER", images.DECODER + 1)
    assert PixelStore(tmp_path).rows(SMALL).folder != before
    monkeypatch.undo()
    monkeypatch.setattr("PIL.__version__", "99.0")
    assert PixelStore(tmp_path).rows(SMALL).folder != before


def test_huge_images_are_decoded_one_at_a_time(store, photos, monkeypatch):
    together, most = [], []
    upright = images.upright

    def slowly(image):
        together.append(image)
        most.append(len(together))
        time.sleep(0.01)
        together.remove(image)
        return upright(image)

    monkeypatch.setattr(images, "upright", slowly)
    monkeypatch.setattr("autotl.data.pixels._HUGE", 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    store.look(photos, [SMALL])
    assert max(most) == 1


def test_more_images_than_a_chunk(store, photos, monkeypatch):
    monkeypatch.setattr("autotl.data.pixels._CHUNK_BYTES", 1)
    copies = []
    for n in range(40):
        copies.append(photos[0].with_name(f"copy{n}.png"))
        Image.new("RGB", (20, 20), (n, 2 * n, 3 * n)).save(copies[-1])
    assert [seen.sha for seen in store.look(copies, [SMALL])] == [sha(path) for path in copies]
    assert_holds(store, copies, SMALL)


def test_duplicates_are_decoded_once(store, photos):
    twin = photos[0].with_name("twin.png")
    twin.write_bytes(photos[0].read_bytes())
    found = store.look([*photos, twin], [SMALL])
    assert found[-1] == found[0] and store.decoded == 12


def test_files_that_give_no_pixels(store, photos, tmp_path):
    whole = photos[0].read_bytes()
    bad = {
        "empty": b"",
        "text": b"no image",
        "torn": whole[: len(whole) // 2],
        "torn too": whole[: len(whole) // 2],
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    paths = [*(tmp_path / name for name in bad), tmp_path / "pipe", tmp_path / "gone", photos[1]]
    found = store.look(paths, [SMALL])
    assert found[0] == "the file is empty"
    assert "not an image" in found[1]
    assert isinstance(found[2], str) and found[2] == found[3]
    assert found[4] == "cannot be read: not a regular file"
    assert found[5] == "cannot be read: No such file or directory"
    assert found[6] == Seen(sha(photos[1]), 40, 30)
    assert store.decoded == 1 and len(store.rows(SMALL)) == 1


def test_a_file_that_may_not_be_read(store, photos, monkeypatch):
    read = type(photos[0]).read_bytes

    def denied(path):
        if path == photos[3]:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(type(photos[0]), "read_bytes", denied)
    found = store.look(photos, [SMALL])
    assert [at for at, seen in enumerate(found) if seen == "cannot be read: Permission denied"] == [3]
    assert store.decoded == 11


def test_a_film_is_not_read(store, photos, monkeypatch):
    monkeypatch.setattr("autotl.data.pixels.LARGEST_FILE", photos[0].stat().st_size - 1)
    (found,) = store.look(photos[:1], [SMALL])
    assert str(found).startswith(f"cannot be read: too large: {photos[0].stat().st_size:,} bytes")


def test_a_decompression_bomb_is_excluded(store, photos, monkeypatch, recwarn):
    Image.new("RGB", (50, 40)).save(photos[3])
    monkeypatch.setattr(images, "PIXELS", 1999)
    found = store.look(photos, [SMALL])
    assert "too many to decode safely" in found[3]
    assert [seen for seen in found if isinstance(seen, str)] == [found[3]] and store.decoded == 11
    assert not recwarn.list


def test_progress_is_reported_from_the_calling_thread(store, photos):
    reported = []
    store.look(photos, [SMALL], lambda done, total: reported.append((done, total, threading.get_ident())))
    assert reported == [(n, 12, threading.get_ident()) for n in range(1, 13)]


def test_without_an_input_pictures_are_decoded_once(store, photos):
    for _ in range(2):
        assert store.look(photos, []) == [Seen(sha(path), 40, 30) for path in photos]
    assert store.decoded == 12


def test_damaged_pictures_are_decoded_again(photos, tmp_path):
    reported = []
    store = PixelStore(tmp_path / "cache", reported.append)
    files = [(sha(path), path) for path in photos]
    store.add(files, [SMALL])
    before = store.pictures(files)
    rows = store.pictures_store.folder / "rows.bin"
    data = bytearray(rows.read_bytes())
    data[40] ^= 1
    rows.write_bytes(data)
    again = PixelStore(tmp_path / "cache", reported.append)
    assert again.pictures(files).tobytes() == before.tobytes()
    assert again.decoded == 1 and len(reported) == 1 and "damaged" in reported[0]


# Known files


def test_add_decodes_what_is_missing(store, photos):
    files = [(sha(path), path) for path in photos]
    store.add(files[:4], [SMALL])
    store.add(files, [SMALL])
    assert store.decoded == 12
    store.add(files, [SMALL, LARGE])
    assert store.decoded == 24
    store.add(files, [SMALL, LARGE])
    assert store.decoded == 24
    assert_holds(store, photos, SMALL, LARGE)


def test_add_does_not_read_images_that_are_stored(store, photos):
    files = [(sha(path), path) for path in photos]
    store.add(files, [SMALL])
    for path in photos:
        path.unlink()
    store.add(files, [SMALL])


def test_add_notices_a_file_that_changed(store, photos):
    files = [(sha(path), path) for path in photos]
    Image.new("RGB", (40, 30)).save(photos[5])
    with pytest.raises(DataError, match=r"5\.png' has changed.*its contents differ"):
        store.add(files, [SMALL])
    photos[5].unlink()
    with pytest.raises(DataError, match=r"5\.png' has changed.*No such file"):
        store.add(files, [SMALL])


# Reading


@pytest.fixture
def noted(tmp_path, photos):
    """A store that has decoded its images, its notes, and its file of rows."""
    notes = []
    store = PixelStore(tmp_path / "cache", notes.append)
    store.locate = lambda shas: {sha(path): path for path in photos if sha(path) in shas}
    store.look(photos, [SMALL])
    return store, notes, store.rows(SMALL).folder / "rows.bin"


def test_damaged_pixels_are_decoded_again_with_one_note(noted, photos):
    store, notes, file = noted
    file.write_bytes(bytes(file.stat().st_size))
    for start in range(0, 12, 4):
        shas = [sha(path) for path in photos[start : start + 4]]
        expected = np.stack([prepare(decode(path.read_bytes()), SMALL) for path in photos[start : start + 4]])
        np.testing.assert_array_equal(store.read(SMALL, shas), expected)
    assert len(notes) == 1 and str(file.parent) in notes[0] and "damaged" in notes[0]
    assert store.decoded == 24
    assert_holds(store, photos, SMALL)  # on the disk, too


def test_threads_that_read_the_same_damaged_pixels_all_get_correct_ones(noted, photos):
    store, notes, file = noted
    file.write_bytes(bytes(file.stat().st_size))
    shas = [sha(path) for path in photos]
    expected = np.stack([prepare(decode(path.read_bytes()), SMALL) for path in photos])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: store.read(SMALL, shas), range(8)):
            np.testing.assert_array_equal(found, expected)
    assert len(notes) == 1


def test_damaged_pixels_of_an_unknown_file_are_an_error(noted, photos):
    store, _, file = noted
    file.write_bytes(bytes(file.stat().st_size))
    store.locate = lambda shas: {}
    with pytest.raises(StoreError, match="Delete this folder"):
        store.read(SMALL, [sha(photos[0])])


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_damaged_pixels_of_a_changed_image_are_an_error(noted, photos, how):
    store, _, file = noted
    file.write_bytes(bytes(file.stat().st_size))
    lost = sha(photos[5])
    store.locate = lambda shas: {lost: photos[5]}
    photos[5].unlink() if how == "gone" else Image.new("RGB", (40, 30)).save(photos[5])
    with pytest.raises(DataError, match=r"5\.png' has changed"):
        store.read(SMALL, [lost])


def test_if_decoding_gives_other_pixels_now_all_are_decoded_again(noted, photos, monkeypatch):
    store, notes, _ = noted
    fit = images.fit
    monkeypatch.setattr(images, "fit", lambda image, input: 255 - fit(image, input))
    found = store.read(SMALL, [sha(photos[2])])[0]
    np.testing.assert_array_equal(found, 255 - prepare_unpatched(photos[2], fit))
    assert len(notes) == 1 and "other pixels" in notes[0]
    assert store.rows(SMALL).missing(map(sha, photos)) == []


def test_pixels_are_compared_once(noted, photos, monkeypatch):
    store, notes, _ = noted
    store.read(SMALL, [sha(photos[2])])
    monkeypatch.setattr(images, "fit", lambda *_: pytest.fail("decoded again"))
    store.read(SMALL, [sha(photos[3])])
    assert notes == []


def prepare_unpatched(path, fit):
    return fit(images.upright(images.open_image(path.read_bytes())), SMALL)


def test_rows_of_another_format_are_another_store(tmp_path, photos, monkeypatch):
    PixelStore(tmp_path).look(photos, [SMALL])
    monkeypatch.setattr("autotl.data.pixels.FORMAT", -1)
    newer = PixelStore(tmp_path)
    newer.look(photos, [SMALL])
    assert newer.decoded == 12

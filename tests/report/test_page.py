"""The report on a study as one HTML page."""

import csv
import json
import math
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

import autotl.api
from autotl.cli.main import main
from autotl.data import stored
from autotl.data.dataset import SealedTest
from autotl.errors import StudyError
from autotl.export import bundle
from autotl.host import Host
from autotl.report import words
from autotl.report.page import chart, facts, study, write
from autotl.report.page.model import Judged, pictures
from autotl.report.page.opened import on_test
from autotl.report.page.situation import situated
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import TinyPlugin, write_stripes
from autotl.tracking import predictions
from autotl.tracking.advice import Advice, AtCut, Similarity, write_advice
from autotl.tracking.folder import StudyFolder
from autotl.tracking.result import OfClass, load

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}</title><svg/onload=alert(1)>")
MOST = 5_000_000
"""Bytes."""


def searched(place, data, **options):
    settings = Settings(
        data=data,
        home=place / "studies",
        cache_dir=place / "cache",
        trials=4,
        backbones=("tiny:net",),
        device="cpu",
        mlflow=False,
        study="stripes",
        **options,
    )
    host = Host()
    host.add(TinyPlugin(), "tiny-plugin")
    search = Search(settings, host, Silent(), time.monotonic())
    search.run()
    return search


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that has ended; tests copy its study and do not change it."""
    place = tmp_path_factory.mktemp("page")
    return searched(place, write_stripes(place / "stripes"), strategies=("linear-probe", "fine-tune"))


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of its folder, with the advice that a pretrained backbone would have given."""
    made = StudyFolder(shutil.copytree(finished.folder.path, tmp_path / "studies" / "stripes"))
    write_advice(made, advice(late=0.9, per_class=24))
    return made


@pytest.fixture
def few_classes(folder):
    """Its records."""
    return study.read(folder)


def advice(late, per_class):
    """That of images which pretrained features separate well, at the last cut by `late`."""
    cuts = tuple(AtCut(cut=f"stages.{at}", pretrained=value, random=0.5) for at, value in enumerate((0.6, 0.9, late)))
    found = Similarity(backbone="tiny:net", images=400, cuts=cuts, references={"reference:pixels": 0.55}, chance=0.34)
    situations = (f"{'few' if per_class < 50 else 'many'}-{'similar' if late > 0.8 else 'different'}",)
    return Advice(
        per_class=per_class,
        similarity=found,
        situations=situations,
        suggested=("linear-probe", "fine-tune", "full"),
        others=(),
    )


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    @property
    def parts(self):
        return [found["id"] for tag, found in self.tags if tag == "section"]


def test_each_completed_trial_keeps_its_predictions_for_the_validation_images(finished):
    images, classes = stored.labelled(finished.folder.path, "val"), finished.folder.definition.classes
    done = [record for record in finished.folder.log.records() if record.state == "complete"]
    assert len(done) >= 2
    for record in done:
        found = predictions.read_predictions(finished.folder, record.number, len(images.labels), len(classes))
        right = [classes[number] == label for number, label in zip(found.classes, images.labels, strict=True)]
        assert np.mean(right) == pytest.approx(record.value)
        assert (found.probabilities >= 1 / len(classes)).all()


def test_the_facts_are_those_of_the_study(few_classes):
    found, result = facts.facts(few_classes), few_classes.result
    assert found.answer.value == result.test.scale.text(result.test.value)
    assert f"{sum(each.right for each in result.test.classes.values())} of 18" in found.answer.sentences[0]
    assert "Their labels were used once to test 1 model." in " ".join(found.answer.measured)
    assert [row.name for row in found.compared.rows] == [*result.comparisons, "always the most frequent class"]
    assert found.validation.images == 15 and found.refit
    assert found.validation.summary.startswith(f"{round(15 * few_classes.winner.value)} of 15 images")
    assert sum(cell.count for row in found.validation.matrix for cell in row.cells) == 15
    assert sum(cell.count for row in found.validation.matrix for cell in row.cells if not cell.right) == (
        found.validation.wrong
    )
    assert len(found.validation.mistakes) == found.validation.wrong
    assert all(each.thumb.startswith("data:image/jpeg;base64,") for each in found.validation.mistakes)
    assert found.made.command.startswith("autotl search ") and json.loads(found.made.plan)["backbone"] == "tiny:net"
    assert found.made.rows[1] == ("images", "train 48, early_stop 9, val 15, test 18")
    assert found.test is None


@pytest.mark.parametrize(
    ("late", "per_class", "here", "left", "top"),
    [
        (0.9, 24, "few, similar", True, True),
        (0.7, 24, "few, different", True, False),
        (0.9, 2400, "many, similar", False, True),
        (0.7, 2400, "many, different", False, False),
    ],
)
def test_the_place_of_the_data_set_is_in_its_situation(few_classes, late, per_class, here, left, top):
    found = situated(replace(few_classes, advice=advice(late, per_class)))
    assert [place.title for place in found.places if place.here] == [here]
    assert ((found.across < 0.5), (found.down < 0.5)) == (left, top)
    assert [len(series.dots) for series in found.chart.series] == [3, 3, 0]
    assert "suggests linear-probe, fine-tune or full. What won here is" in found.sentences[-1]


def test_a_page_lacks_only_the_parts_that_an_older_study_has_no_records_for(folder):
    every = ["answer", "against", "situation", "search", "model", "made"]
    assert Page(write.html(folder)).parts == every
    shutil.rmtree(folder.predictions)
    assert Page(write.html(folder)).parts == [part for part in every if part != "model"]
    result = json.loads(folder.result.read_text())
    folder.result.write_text(json.dumps({**result, "advice": None}))
    for file in (folder.advice, folder.probe, folder.searches, folder.test_openings):
        file.unlink()
    shutil.rmtree(folder.log.folder)
    shutil.rmtree(folder.bundle)
    assert Page(write.html(folder)).parts == ["answer", "against", "made"]


def test_images_that_are_gone_are_named(folder):
    moved = folder.definition.model_copy(update={"data": "/nowhere"})
    folder.define(moved)
    mistakes = facts.facts(study.read(folder)).validation.mistakes
    assert mistakes and not any(each.thumb for each in mistakes)
    assert mistakes[0].path in write.html(folder) and "file not found" in write.html(folder)


def test_damaged_predictions_are_an_error_that_names_the_file(folder):
    (file,) = (file for file in folder.predictions.iterdir() if file.stem == f"{study.read(folder).winner.number:05d}")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(StudyError, match=rf"{file} is damaged.*for 15 images.*Delete it"):
        write.html(folder)


def test_a_page_that_fails_does_not_make_a_search_fail(folder, monkeypatch):
    notes = []
    write.write_at_the_end(folder, notes.append)
    assert folder.report.exists() and not notes
    monkeypatch.setattr(write, "facts", lambda *_: 1 / 0)
    write.write_at_the_end(folder, notes.append)
    (note,) = notes
    assert "The report was not written: ZeroDivisionError" in note and "autotl report stripes" in note


def test_a_search_writes_its_page_and_the_command_writes_it_again(stripes, tmp_path):
    def run(*words):
        return CliRunner().invoke(main, list(map(str, words)))

    words = ["search", stripes, "--trials", 1, "--backbones", "reference:pixels", "--no-compare"]
    done = run(*words, "--no-mlflow", "--strategies", "linear-probe")
    assert done.exit_code == 0, done.output
    page = tmp_path / "studies" / "stripes" / "report.html"
    assert f"Report: {page}" in done.output and "reference:pixels" in page.read_text()
    page.unlink()
    assert run("report", "stripes").stdout == f"Report: {page}\n" and page.exists()
    other = tmp_path / "of" / "stripes.html"
    assert run("report", "stripes", "--out", other).stdout == f"Report: {other}\n"
    assert other.read_text() == page.read_text()
    (page.parent / "result.json").unlink()
    done = run("report", "stripes")
    assert done.exit_code == 2 and "has no result yet; resume it: autotl search" in done.output


def test_test_images_are_shown_only_on_request_which_is_recorded(finished, folder):
    assert "The test images were opened for this page" not in write.html(folder)
    before = folder.test_openings.read_text().splitlines()
    model = bundle.load(folder.bundle, finished.catalogue)
    page = autotl.api.Study(folder, model, load(folder)).report(show_test=True).path.read_text()
    *known, last = folder.test_openings.read_text().splitlines()
    assert known == before and json.loads(last)["use"] == "shown in a report"
    assert json.loads(last)["plan"] == model.plan.hash and json.loads(last)["images"] == 18
    assert Page(page).parts == ["answer", "against", "situation", "search", "model", "test", "made"]
    assert "and once to show them in a report" in page and "The test images were opened for this page" in page
    of_class = {name: each.right for name, each in load(folder).test.classes.items()}
    found = pictures(on_test(study.read(folder), model))
    assert {each.name: each.right for each in (*found.worst, *found.others)} == of_class


def test_labels_of_the_test_split_are_sealed(folder):
    with pytest.raises(SealedTest):
        stored.labelled(folder.path, "test")
    assert len(stored.paths(folder.path, "test")) == 18


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of a study whose class names and file names are code."""
    place = tmp_path_factory.mktemp("hostile")
    images = write_stripes(place / "stripes")
    with open(place / "manifest.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number, kind in enumerate(sorted(images.iterdir())):
            for image in sorted(kind.iterdir()):
                named = image.rename(image.with_name(f"<b onclick=alert(2)>{image.name}"))
                rows.writerow([named.relative_to(place).as_posix(), HOSTILE[number]])
    return write.write_page(searched(place, place / "manifest.csv", strategies=("linear-probe",)).folder)


def _is_harmless(text):
    """Whether a page, as it was written or as a browser has it, loads and runs nothing."""
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "link", "base", "form", "b"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        places = [attributes.get(name, "#") for name in ("href", "src", "srcset", "action", "data")]
        assert all(place.startswith(("#", "data:image/jpeg;base64,")) for place in places)
    policy = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "url(" not in text and "@import" not in text
    shown = "".join(page.text)
    assert all(name in shown for name in HOSTILE) and "<b onclick=alert(2)>" in shown


def test_class_names_and_paths_are_text(hostile):
    _is_harmless(hostile.read_text())


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_shows_the_page_without_a_request(hostile, tmp_path):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=_listen, args=(proxy, asked), daemon=True).start()
        leak = tmp_path / "leak.html"
        leak.write_text("<img src='http://leak.example.org/seen'><p>A page with a request")
        _dom(leak, proxy, tmp_path)
        assert any("leak.example.org/seen" in each for each in asked)  # a request would be noticed
        asked.clear()
        dom = _dom(hostile, proxy, tmp_path)
    assert not [each for each in asked if "google" not in each]  # the browser asks its maker for the time
    _is_harmless(dom)


def _dom(page, proxy, place):
    words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place / 'profile'}"]
    words += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    words += [f"--proxy-server=127.0.0.1:{proxy.getsockname()[1]}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*words, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def _listen(proxy, asked):
    """Note the first line of each request, and refuse it."""
    while True:
        try:
            link, _ = proxy.accept()
        except OSError:
            return
        with link:
            asked.append(link.recv(4096).decode(errors="replace").partition("\r\n")[0])
            link.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def many(few, classes, trials):
    """A study of many classes and trials, made from the records of a small one."""
    draw = np.random.default_rng(0)
    names = tuple(f"class number {number:04d} of many" for number in range(classes))
    result = few.result
    test = result.test.model_copy(update={"classes": {name: OfClass(images=20, right=17) for name in names}})
    known = [record for record in few.records if record.state == "complete"]
    records = [
        replace(known[number % len(known)], number=number, value=draw.random(), plan=_with_seed(known, number))
        for number in range(trials)
    ]
    return replace(
        few,
        definition=few.definition.model_copy(update={"classes": names}),
        result=result.model_copy(update={"test": test}),
        records=tuple(records),
    )


def _with_seed(known, number):
    plan = known[number % len(known)].plan
    return plan.model_copy(update={"seed": number})


def judged(classes, images, place):
    draw = np.random.default_rng(0)
    names = tuple(f"class number {number:04d} of many" for number in range(classes))
    numbers = np.repeat(np.arange(classes), images)
    given = np.where(draw.random(len(numbers)) < 0.7, numbers, draw.integers(classes, size=len(numbers)))
    labelled = stored.Labelled(
        paths=tuple(f"{names[number]}/{at:06d}.jpg" for at, number in enumerate(numbers)),
        labels=tuple(names[number] for number in numbers),
        units=np.arange(len(numbers)),
    )
    return Judged(labelled, predictions.Predictions(given, draw.random(len(numbers))), names, place)


def test_a_page_of_a_thousand_classes_and_ten_thousand_trials_is_small(few_classes, tmp_path):
    large = many(few_classes, classes=1_000, trials=10_000)
    folder = StudyFolder(shutil.copytree(few_classes.folder.path, tmp_path / "stripes"))
    shutil.rmtree(folder.predictions)
    shown = judged(1_000, 20, tmp_path)
    began = time.perf_counter()
    page = write.rendered(facts.facts(replace(large, folder=folder), shown))
    assert time.perf_counter() - began < 60
    assert len(page.encode()) < MOST
    found = pictures(shown)
    assert not found.matrix and len(found.pairs) == 15 and len(found.worst) + len(found.others) == 1_000
    assert [each.right for each in found.worst] == sorted(each.right for each in found.worst)
    assert "trials that are much worse are not shown" in page or "10,000" in page


def test_recall_and_calibration_are_those_of_the_images(tmp_path):
    labelled = stored.Labelled(("a", "b", "c", "d"), ("x", "x", "y", "y"), np.arange(4))
    given = predictions.Predictions(np.array([0, 1, 1, 1]), np.array([0.55, 0.95, 0.95, 0.95]))
    found = pictures(Judged(labelled, given, ("x", "y"), tmp_path))
    assert [(each.name, each.right, each.images) for each in found.worst] == [("x", 1, 2), ("y", 2, 2)]
    assert [(each.true, each.given, each.count, each.images) for each in found.pairs] == [("x", "y", 1, 2)]
    (mistake,) = found.mistakes
    assert (mistake.path, mistake.true, mistake.given, mistake.probability) == ("b", "x", "y", "95%")
    error = 1 / 4 * abs(1 - 0.55) + 3 / 4 * abs(2 / 3 - 0.95)
    assert f"calibration error is {100 * error:.1f} points" in found.calibrated
    assert "more sure than it should be" in found.calibrated


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(folder):
    shown = write.Page(write.write_page(folder))._repr_html_()
    frame = Page(shown)
    assert [tag for tag, _ in frame.tags] == ["iframe"] and "sandbox" in frame.tags[0][1]
    assert frame.tags[0][1]["srcdoc"] == folder.report.read_text()


@pytest.mark.parametrize(
    ("values", "log", "texts"),
    [
        ([0.0, 1.0], False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.871, 0.874], False, ["0.871", "0.872", "0.873", "0.874"]),
        ([3.0], False, None),
        ([0.0], False, None),
        ([1e-5, 1e-1], True, ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        ([1e6], True, None),
    ],
)
def test_axes_have_round_labels_within_the_canvas(values, log, texts):
    dots = [chart.Dot(at, value) for at, value in enumerate(values)]
    axis = chart.Axis("y", log=log)
    drawn = chart.chart("accuracy", [chart.Series("a", dots, 0)], chart.Axis("x"), axis)
    assert texts is None or [tick.text for tick in drawn.ys] == texts
    assert drawn.ys and all(chart.TOP <= tick.at <= chart.HEIGHT - chart.BOTTOM for tick in drawn.ys)
    for dot in drawn.series[0].dots:
        assert chart.LEFT <= dot.x <= chart.WIDTH - chart.RIGHT and chart.TOP <= dot.y <= chart.HEIGHT - chart.BOTTOM


def test_of_many_dots_some_are_drawn_and_all_strong_ones():
    dots = [chart.Dot(at, math.sin(at), strong=at == 4321) for at in range(10_000)]
    kept = chart.thinned(dots)
    assert len(kept) <= chart.MOST + 1 and dots[4321] in kept
    assert chart.chart("nothing", [chart.Series("a", [], 0)], chart.Axis("x"), chart.Axis("y")) is None


def test_the_words_of_the_summary_are_on_the_page(few_classes):
    text = "".join(Page(write.html(few_classes.folder)).text)
    for line in words.pretraining(few_classes.result):
        assert line in text
    assert all(name in text for name in few_classes.result.comparisons)

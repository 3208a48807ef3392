"""The report on a study as one HTML page."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from pages import Page, advice

import autotl.api
from autotl.cli.main import main
from autotl.data import stored
from autotl.data.dataset import SealedTest
from autotl.errors import StudyError
from autotl.export import bundle
from autotl.plan import Ensemble
from autotl.report import words
from autotl.report.page import facts, study, write
from autotl.report.page.model import Judged, pictures
from autotl.report.page.opened import on_test
from autotl.report.page.situation import situated
from autotl.tracking import predictions
from autotl.tracking.result import Averaged, load


def test_each_completed_trial_keeps_its_predictions_for_the_validation_images(finished):
    images, classes = stored.labelled(finished.folder.path, "val"), finished.folder.definition.classes
    done = [record for record in finished.folder.log.records() if record.state == "complete"]
    assert len(done) >= 2
    for record in done:
        found = predictions.read_top(finished.folder.predictions_of(record.plan), len(images.labels), len(classes))
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
    assert found.test is None and not found.averaged


def test_an_ensemble_is_said_to_be_one(few_classes):
    result = few_classes.result
    several = Averaged(
        trials=(1, 0),
        plan=Ensemble(members=(result.final, result.final)),
        validation=0.5,
        metrics={**result.best.metrics, "flops": 2e6},
    )
    found = facts.facts(replace(few_classes, result=result.model_copy(update={"ensemble": several})))
    said = found.answer.sentences[2]
    assert said.startswith("Ensemble: the mean of the probabilities of 2 models, of trials 1, 0; ")
    assert "2 M FLOPs" in said and "The winner alone is tiny:net up to " in said
    assert found.averaged


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
    file = folder.predictions_of(study.read(folder).winner.plan)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(StudyError, match=rf"{file} is damaged.*for 15 images.*Delete it"):
        write.html(folder)


def test_images_of_another_class_are_an_error(folder):
    split = folder.path / "data" / "split.csv"
    split.write_text(split.read_text().replace(",down,val", ",up,val"))
    with pytest.raises(StudyError, match="class 'up', which the model does not know.* Rerun"):
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
    assert run("report", "stripes", "--show-test", "--device", "cpu").stdout == f"Report: {page}\n"
    assert "The test images were opened for this page" in page.read_text()
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


def test_the_words_of_the_summary_are_on_the_page(few_classes):
    text = "".join(Page(write.html(few_classes.folder)).text)
    for line in words.pretraining(few_classes.result):
        assert line in text
    assert all(name in text for name in few_classes.result.comparisons)

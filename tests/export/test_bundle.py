import json
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from autotl.backbones.catalogue import Catalogue
from autotl.errors import PlanError, StudyError
from autotl.export import bundle
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent


@pytest.fixture
def found(host, stripes):
    settings = Settings(data=stripes, trials=2, backbones=("tiny:net",), strategies=("linear-probe",), device="cpu")
    search = Search(settings, host, Silent(), time.monotonic())
    search.run()
    return search.folder.bundle


def test_a_bundle_predicts_what_was_measured(found, host, stripes, tmp_path):
    loaded = bundle.load(found, Catalogue(host, tmp_path / "cache"))
    table = [line.split(",") for line in (found.parent / "data" / "split.csv").read_text().splitlines()]
    header, rows = table[0], table[1:]
    test = [dict(zip(header, row, strict=True)) for row in rows if "test" in row]
    files = [stripes / row["path"] for row in test]
    answers = [loaded.classes[answer.argmax()] for _, answer in loaded.predict(files)]
    right = np.mean([answer == row["label"] for answer, row in zip(answers, test, strict=True)])
    assert right == pytest.approx(loaded.metrics["test"]["value"])


def test_a_bundle_holds_only_the_stages_up_to_the_cut_and_no_pickle(found, host, tmp_path):
    loaded = bundle.load(found, Catalogue(host, tmp_path / "cache"))
    names = set(load_file(found / "weights.safetensors"))
    assert loaded.graph.stages.names[-1] == loaded.plan.cut
    assert names == {f"backbone.{name}" for name in loaded.graph.stages.state_dict()} | {"head.weight", "head.bias"}
    assert not any(file.suffix in (".pkl", ".pt", ".pth") for file in found.iterdir())
    assert json.loads((found / "classes.json").read_text()) == ["across", "checks", "down"]
    assert json.loads((found / "versions.json").read_text())["torch"] == loaded.plan.requires["torch"]


def test_rows_of_probabilities_add_up_to_one_in_any_batch(found, host, tmp_path):
    loaded = bundle.load(found, Catalogue(host, tmp_path / "cache"))
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    rows = loaded.probabilities(images)
    torch.testing.assert_close(rows.sum(1), torch.ones(5))
    torch.testing.assert_close(loaded.probabilities(images[2:3]), rows[2:3], atol=1e-5, rtol=1e-4)


def test_what_is_no_bundle_is_refused(found, host, tmp_path):
    catalogue = Catalogue(host, tmp_path / "cache")
    with pytest.raises(StudyError, match="is no bundle: weights.safetensors"):
        bundle.load(tmp_path, catalogue)
    broken = tmp_path / "broken"
    shutil.copytree(found, broken)
    (broken / "plan.json").write_text("{}")
    with pytest.raises(PlanError, match="plan.json is not a valid TransferPlan"):
        bundle.load(broken, catalogue)


def test_a_new_bundle_replaces_the_old_one_whole(found, host, stripes):
    settings = Settings(data=stripes, trials=5, backbones=("tiny:net",), strategies=("linear-probe",), device="cpu")
    Search(settings, host, Silent(), time.monotonic()).run()
    assert sorted(path.name for path in found.parent.iterdir() if path.name.startswith("bundle")) == ["bundle"]


def test_nothing_but_a_bundle_is_ever_replaced(found, host, stripes, tmp_path):
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for target in (foreign, stripes, foreign / "thesis.tex"):
        with pytest.raises(StudyError, match="holds something that is no bundle"):
            bundle.check_target(target)
    bundle.check_target(found)
    bundle.check_target(tmp_path / "new")

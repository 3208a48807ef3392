"""A damaged file of a study gives one line with the file and what to do, and hides nothing else."""

import os
import shutil

import pytest
from click.testing import CliRunner

from autotl.cli.main import main
from autotl.errors import DamagedFile
from autotl.plan import NO_AUGMENTATION, DataRef, Head, Input, Phase, TransferPlan
from autotl.tracking import result as results
from autotl.tracking.folder import Definition, StudyFolder
from autotl.tracking.log import TrialLog
from autotl.tracking.probe import ProbeRow, read_probe, write_probe

DEFINITION = Definition(
    name="flowers",
    optuna="flowers-1234",
    storage=None,
    fingerprint="f",
    classes=("a", "b"),
    backbones={"tiny:net": "none"},
    strategies=("linear-probe",),
    augmentations=("none",),
    optimizers=("adamw",),
    objectives=("cross-entropy",),
    adapters=("all",),
    methods=("gradient-descent",),
    owners={"strategies linear-probe": {"autotl": "0"}},
    metric="accuracy",
    seed=0,
    device="cpu",
    versions={"torch": "0"},
)
PLAN = TransferPlan(
    backbone="tiny:net",
    weights="none",
    input=Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
    cut="1",
    head=Head(pooling="avg"),
    augmentation=NO_AUGMENTATION,
    data=DataRef(fingerprint="f", split_seed=0),
    seed=0,
    requires={},
    phases=(Phase(method="logistic", frozen="1"),),
)
METRICS = {"val.loss": 0.1, "parameters": 10.0, "flops": 20.0, "seconds": 2.0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study of two trials, as a search leaves it when it is interrupted."""
    monkeypatch.setenv("AUTOTL_HOME", str(tmp_path))
    made = StudyFolder(tmp_path / "flowers")
    made.define(DEFINITION)
    write_probe(made, [ProbeRow("tiny:net", "1", "avg", 0.5)])
    for number in range(2):
        made.log.begin(number, "search")
        made.log.planned(number, {"strategy": "linear-probe"}, PLAN)
        made.log.end(number, "complete", value=0.75, metrics=METRICS)
    return made


def autotl(*words):
    done = CliRunner().invoke(main, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.output


def _bytes(content):
    return lambda file: file.write_bytes(content)


def _folder(file):
    file.unlink(missing_ok=True)
    file.mkdir()


def _pipe(file):
    file.unlink(missing_ok=True)
    os.mkfifo(file)


READERS = {"study.json": lambda folder: folder.definition, "probe.json": read_probe, "result.json": results.load}
CONTENTS = (b"", b"\xff\xfe", b"{", b"[" * 100_000, b"7", b"null", b'{"seed": 0}', b'[{"backbone": 1}]')


@pytest.mark.parametrize("damage", [*map(_bytes, CONTENTS), _folder, _pipe])
@pytest.mark.parametrize("name", READERS)
def test_a_file_with_wrong_contents_is_named(folder, name, damage):
    damage(folder.path / name)
    with pytest.raises(DamagedFile, match=f"{name} is damaged: .*Delete it and rerun the same search") as error:
        READERS[name](folder)
    assert "\n" not in str(error.value)
    code, printed = autotl("show", "flowers")
    assert code == 2 and printed.splitlines()[-1] == f"Error: {error.value}"


LINES = [
    b"{}",
    b"7",
    b"null",
    b'{"event": "nothing"}',
    b'{"event": ["end"]}',
    b'{"event": "epoch", "phase": 1, "epoch": 1, "facts": 3}',
    b'{"event": "epoch", "phase": "1", "epoch": 1, "facts": {}}',
    b'{"event": "end", "state": "happy"}',
    b'{"event": "end", "state": "complete", "value": "much"}',
    b'{"event": "end", "state": "complete", "value": null, "metrics": {"val.loss": 1.0}}',
    b'{"event": "end", "state": "complete", "value": 1.0, "metrics": {"val.loss": 1.0}}',
    b'{"event": "plan", "params": {"strategy": "x"}, "plan": {"schema": 7}}',
]


@pytest.mark.parametrize("line", LINES)
def test_an_invalid_line_of_a_log_is_named(folder, line):
    file = folder.log.files()[1]
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(DamagedFile, match=r"00001\.jsonl is damaged: ") as error:
        list(folder.log.records())
    assert "\n" not in str(error.value)
    assert autotl("show", "flowers")[0] == 2
    assert folder.log.read(0).value == 0.75


@pytest.mark.parametrize("damage", [_folder, _pipe])
def test_a_log_that_is_no_file_is_named(folder, damage):
    damage(folder.log.files()[1])
    with pytest.raises(DamagedFile, match=r"00001\.jsonl is damaged: it is not a regular file"):
        list(folder.log.records())


@pytest.mark.parametrize("half", [b"\xff", b'{"time": 1, "eve', b"\0\0\0\0", b'{"event": "end", "reason": "\xc3'])
def test_half_a_line_is_ignored_and_the_next_one_is_read(folder, half):
    file = folder.log.files()[1]
    file.write_bytes(file.read_bytes() + half)
    assert folder.log.read(1).value == 0.75
    folder.log.begin(1, "search")
    assert folder.log.read(1).state == "running"


def test_other_files_are_not_taken_for_logs(folder):
    shutil.copy(folder.log.files()[0], folder.log.folder / "copy of 00000.jsonl")
    assert [record.number for record in folder.log.records()] == [0, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _bytes(b"\xff")(folder.path / "study.json"),
        lambda folder: _pipe(folder.path / "study.json"),
        lambda folder: (folder.path / "study.json").unlink(),
        lambda folder: _bytes(b"7\n")(folder.log.files()[0]),
        lambda folder: _bytes(b"{}")(folder.path / "result.json"),
    ],
)
def test_one_damaged_study_hides_no_other(folder, damage):
    other = folder.path.with_name("roses")
    shutil.copytree(folder.path, other)
    damage(folder)
    code, printed = autotl("studies")
    assert code == 0
    row, problem = printed.splitlines()[-2:]
    assert row.split() == ["roses", "2", "2", "accuracy"]
    assert problem.startswith("Study 'flowers' cannot be read: ") and str(folder.path) in problem


def test_the_error_about_a_missing_study_file_says_how_to_rebuild_it(folder):
    (folder.path / "study.json").unlink()
    code, printed = autotl("show", "flowers")
    assert code == 2 and printed.endswith("study.json is missing. Rerun the same search to recreate it.\n")


def test_trials_are_sorted_by_number_even_if_there_are_many(tmp_path):
    log = TrialLog(tmp_path)
    for number in (100_000, 99_999):
        log.begin(number, "search")
    assert [record.number for record in log.records()] == [99_999, 100_000]

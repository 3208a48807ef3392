"""A study in MLflow, with a real server or a real database."""

import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autotl.engine import latency
from autotl.engine.scale import Scale
from autotl.export import bundle
from autotl.files import append_line
from autotl.host import Host
from autotl.report.outcome import Outcome
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import TinyPlugin, write_stripes
from autotl.tracking import shipping
from autotl.tracking.folder import StudyFolder
from autotl.tracking.mlflow import Projection
from autotl.tracking.mlflow.projection import _note
from autotl.tracking.result import load

mlflow = pytest.importorskip("mlflow")
from mlflow import MlflowClient  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that has ended; tests copy it and do not change it."""
    place = tmp_path_factory.mktemp("finished")
    settings = Settings(
        data=write_stripes(place / "stripes"),
        home=place / "studies",
        cache_dir=place / "cache",
        trials=4,
        backbones=("tiny:net",),
        strategies=("linear-probe", "fine-tune"),
        device="cpu",
        mlflow=False,
    )
    host = Host()
    host.add(TinyPlugin(), "tiny-plugin")
    search = Search(settings, host, Silent(), time.monotonic())
    search.run()
    return search


@pytest.fixture
def made(finished, tmp_path):
    """A finished study with trials of every end: complete, pruned, failed, killed and run again."""
    place = shutil.copytree(finished.folder.path, tmp_path / "studies" / "stripes")
    search = SimpleNamespace(folder=StudyFolder(place), cache_dir=finished.cache_dir, catalogue=finished.catalogue)
    log = search.folder.log
    complete = next(record for record in log.records() if record.epochs)
    for number, end in ((4, "pruned"), (5, "failed")):
        log.begin(number, "elsewhere:7")
        log.planned(number, complete.params, complete.plan)
        log.epoch(number, 1, 1, {"train.loss": 2.0})
        log.end(number, end, seconds=1.5, reason=f"it was {end}")
    log.begin(6, "search")
    log.planned(6, complete.params, complete.plan)
    log.epoch(6, 1, 1, {"train.loss": 3.0})
    log.begin(6, "search")
    log.planned(6, complete.params, complete.plan)
    log.epoch(6, 1, 1, {"train.loss": 3.0})
    log.end(6, "complete", value=0.25, metrics=complete.metrics, seconds=2.0)
    search.folder.result.touch()  # the result is written after all trials
    return search


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database with MLflow's tables, which take it seconds to create."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(empty, tmp_path):
    (tmp_path / "mlflow").mkdir()
    return f"sqlite:///{shutil.copy(empty, tmp_path / 'mlflow')}"


def projection(folder, uri):
    return Projection(folder, uri)


class Shown(Outcome):
    """What the command logs of a study, with the plugins of the tests."""

    def __init__(self, search):
        super().__init__(search.folder, search.cache_dir)
        self._catalogue = search.catalogue

    def model(self):
        return bundle.load(self._folder.bundle, self._catalogue)


def everything(uri, name="autotl-stripes"):
    """All that a server has of the one study of this name, as plain values without run ids and the model's time."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = []
    for run in runs:
        tags = {key: re.sub("[0-9a-f]{32}", "an id", value) for key, value in run.data.tags.items()}
        parent = names.get(run.data.tags.get("mlflow.parentRunId"))
        metrics = {
            key: sorted(
                (metric.step, metric.timestamp, metric.value)
                for metric in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
            if not key.startswith("system/")
        }
        inputs = [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs]
        files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        found.append((run.info.run_name, parent, run.info.status, tags, run.data.params, metrics, inputs, files))
    return sorted(found, key=str)


def _in_order(run):
    """The study's run first, then the trainings after the trials, then the trials."""
    tags = run[3]
    return run[1] is not None, int(tags.get("autotl.trial", -1)), int(tags.get("autotl.attempt", 0))


def test_limits_and_a_cost_that_is_minimised_are_logged(host, stripes, uri, monkeypatch):
    monkeypatch.setattr(latency, "measure", lambda stages, input, device: (1.0, 2.0, 4.0))
    values = {"data": stripes, "trials": 3, "backbones": ["tiny:net"], "strategies": ["linear-probe"], "device": "cpu"}
    limits = {"max_latency_ms": 2.5, "max_params": "5k", "minimize": "latency"}
    search = Search(Settings.of({**values, **limits, "compare": False}), host, Silent(), time.monotonic())
    result = search.run()
    projection(search.folder, uri).end(Shown(search))
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("autotl-stripes").experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    logged = {name: parent.data.params[name] for name in limits}
    assert logged == {"max_latency_ms": "2.5", "max_params": "5000", "minimize": "latency"}
    ends = {"0.2": 1.0, "1.2": 2.0}
    children = [run for run in runs if run is not parent]
    assert len(children) == 4  # three trials, and the refit of the winner
    assert all(run.data.metrics["latency_ms"] == ends[run.data.params["cut"]] for run in children)
    assert f"{ends[result.final.cut]:g} ms per image" in parent.data.tags["mlflow.note.content"]


def test_every_trial_is_a_run_below_the_study_s(made, uri):
    projection(made.folder, uri).end(Shown(made))
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("autotl-stripes").experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.run_name == "stripes" and parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"].startswith("Winner: ")
    assert parent.data.params["backbones"] == "tiny:net"
    assert parent.data.tags["version.torch"]

    children = [run for run in runs if run is not parent and "autotl.trial" in run.data.tags]
    assert len(children) == 8
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    digest = made.folder.definition.fingerprint[:12]
    for run in runs:
        assert [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs] == [("stripes", digest)]
    for record in made.folder.log.records():
        (run,) = (
            run
            for run in children
            if run.data.tags["autotl.trial"] == str(record.number) and run.data.tags["autotl.state"] == record.state
        )
        name = f"{record.number} {record.params['strategy']} {record.plan.backbone} → {record.plan.cut}"
        assert run.info.run_name == name + ("" if record.state == "complete" else f" ({record.state})")
        assert run.data.params["cut"] == record.plan.cut
        assert run.data.params["searched.cut"] == str(record.params["cut"])
        for number, phase in enumerate(record.plan.phases, 1):
            for stage, rate in (phase.training.stage_lr if phase.training else {}).items():
                assert run.data.params[f"phase{number}.lr.{stage}"] == str(rate)
        for name in {name for epoch in record.epochs for name in epoch} - {"phase", "epoch"}:
            history = client.get_metric_history(run.info.run_id, f"epoch/{name}")
            wanted = [(epoch["epoch"], epoch[name]) for epoch in record.epochs if name in epoch]
            assert sorted((metric.step, metric.value) for metric in history) == wanted
        if record.state == "complete":
            assert "objective" not in run.data.metrics
            shown = {name.replace("/", ".", 1): value for name, value in run.data.metrics.items()}
            assert {name: shown[name] for name in record.metrics} == record.metrics
        plan = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/plan.json")
        assert plan == record.plan.to_json()
        assert 0 <= run.info.end_time - run.info.start_time < 60_000


def test_a_chosen_word_is_a_param_and_a_number_a_metric(made, uri):
    plan = made.folder.log.read(0).plan
    phase = plan.phases[0].model_copy(update={"options": {"penalty": [0.1, 1.0], "kernel": ["near", "far"]}})
    plan = plan.model_copy(update={"phases": (phase,)})
    measured = {**made.folder.log.read(0).metrics, "phase1.kernel": 1.0, "phase1.penalty": 0.1}
    made.folder.log.begin(7, "search")
    made.folder.log.planned(7, made.folder.log.read(0).params, plan)
    made.folder.log.end(7, "complete", value=0.25, metrics=measured)
    rerun = {"time": 9.0, "trial": 7, "plan": "its hash", "metrics": measured}
    made.folder.reruns.write_text(json.dumps({**rerun, "carried_out": plan.model_dump(mode="json") | {"seed": 7}}))
    projection(made.folder, uri).ship()
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("autotl-stripes").experiment_id])
    found = [run.data for run in runs if run.info.run_name.startswith("7 ")]
    assert len(found) == 2
    for data in found:
        assert data.params["chosen.phase1.kernel"] == "far" and "phase1/kernel" not in data.metrics
        assert data.metrics["phase1/penalty"] == 0.1 and "chosen.phase1.penalty" not in data.params


def test_every_training_after_the_trials_is_a_run_too(made, uri):
    made.folder.reruns.write_text(
        json.dumps(
            {
                "time": time.time(),
                "trial": 0,
                "plan": "its hash",
                "metrics": {"val.accuracy": 0.75, "seconds": 2.0},
                "carried_out": made.folder.log.read(0).plan.model_dump(mode="json") | {"seed": 7},
            }
        )
    )
    projection(made.folder, uri).end(Shown(made))
    result = load(made.folder)
    after = {run[0]: run for run in everything(uri) if run[1] and "autotl.trial" not in run[3]}
    rerun = next(run for name, run in after.items() if name.startswith("0 with seed 7: "))
    assert rerun[4]["seed"] == "7" and rerun[5]["val/accuracy"][0][2] == 0.75
    (winner,) = (run for name, run in after.items() if name.startswith("winner, "))
    assert winner[4]["cut"] == result.final.cut and winner[5]["test/accuracy"][0][2] == result.test.value
    for name, comparison in result.comparisons.items():
        run = after.pop(f"comparison: {name}")
        assert run[4]["backbone"] == comparison.plan.backbone
        assert run[5]["test/accuracy"][0][2] == comparison.value
        assert run[3]["mlflow.note.content"].startswith(f"Compared with {name}, accuracy ")
    assert all(run[1] == "stripes" and run[2] == "FINISHED" and run[7] == ["plan.json"] for run in after.values())
    (parent,) = (run for run in everything(uri) if not run[1])
    assert {"report.html", "leaderboard.csv", "trade-offs.png"} <= set(parent[7])
    assert not [name for name in parent[5] if name.startswith("gain")]


def test_the_first_page_has_the_columns_that_matter_and_the_study_how_it_was_searched_last(made, uri):
    shipping = projection(made.folder, uri)
    shipping.ship()
    tags = MlflowClient(uri).get_experiment_by_name("autotl-stripes").tags
    view = json.loads(tags["mlflow.sharedViewState.autotl"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val/accuracy`", False)
    run = next(run for run in everything(uri) if run[3].get("autotl.state") == "complete")
    for column in view["selectedColumns"]:
        kind, _, name = column.partition(".")
        shown = {"metrics": run[5], "params": run[4]}[kind]
        assert name.strip("`") in {*shown, "test/accuracy"}  # a metric of the winner and its controls

    (parent,) = (run for run in everything(uri) if not run[1])
    assert (parent[3]["search.trials"], parent[3]["search.prune"]) == ("4", "True")
    assert " --strategies linear-probe,fine-tune --device cpu --home " in parent[3]["search.command"]

    again = {"time": 0.0, "options": {"trials": 9}, "command": "autotl search there"}
    append_line(made.folder.searches, json.dumps(again))
    shipping.ship()
    (parent,) = (run for run in everything(uri) if not run[1])
    assert parent[3]["search.trials"] == "9"
    assert parent[3]["search.command"] == "autotl search there"


def test_the_best_of_a_metric_that_is_better_where_smaller_comes_first(made, uri):
    scale = Scale(greater_is_better=False, percent=False)
    made.folder.define(made.folder.definition.model_copy(update={"metric": "log-loss", "scale": scale}))
    projection(made.folder, uri).ship()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("autotl-stripes")
    view = json.loads(experiment.tags["mlflow.sharedViewState.autotl"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val/log-loss`", True)
    (parent,) = client.search_runs([experiment.experiment_id], "params.metric = 'log-loss'")
    history = client.get_metric_history(parent.info.run_id, "best/log-loss")
    records = list(made.folder.log.records())
    values = [record.value if record.state == "complete" else math.inf for record in records]
    assert [point.value for point in sorted(history, key=lambda point: point.step)] == [
        min(values[: number + 1]) for number in range(len(values))
    ]
    assert history[-1].value == 0.25 != values[0]


def test_trials_that_did_not_complete_are_never_a_success(made, uri):
    projection(made.folder, uri).end(Shown(made))
    ends = {
        (run[3]["autotl.trial"], run[3]["autotl.attempt"]): (
            run[2],
            run[3]["autotl.state"],
            run[3].get("mlflow.note.content"),
        )
        for run in everything(uri)
        if "autotl.trial" in run[3]
    }
    assert ends["4", "0"] == ("KILLED", "pruned", "**pruned**: it was pruned")
    assert ends["5", "0"] == ("FAILED", "failed", "**failed**: it was failed")
    assert ends["6", "0"] == ("KILLED", "interrupted", "**interrupted**: its process was killed")
    assert ends["6", "1"] == ("FINISHED", "complete", "")


def test_the_description_of_a_run_does_not_repeat_its_state():
    assert _note("pruned", "pruned at 27 % of its epochs") == "**pruned**: at 27 % of its epochs"
    assert _note("failed", "no memory") == "**failed**: no memory"


def test_the_run_of_a_killed_study_is_closed_and_reopened_on_resuming(made, uri):
    made.folder.log.begin(7, "search")
    result = made.folder.result.read_text()
    made.folder.result.unlink()
    projection(made.folder, uri).end(Shown(made))
    parent, *_, last = sorted(everything(uri), key=_in_order)
    assert (parent[2], last[2]) == ("KILLED", "KILLED")

    made.folder.log.begin(7, "search")
    again = projection(made.folder, uri)
    again.ship()
    runs = sorted(everything(uri), key=_in_order)
    assert [run[2] for run in (runs[0], *runs[-2:])] == ["RUNNING", "KILLED", "RUNNING"]
    made.folder.log.end(7, "failed", reason="it was to be")
    made.folder.result.write_text(result)
    again.end(Shown(made))
    runs = sorted(everything(uri), key=_in_order)
    assert [run[2] for run in (runs[0], *runs[-2:])] == ["FINISHED", "KILLED", "FAILED"]


def test_runs_of_a_running_search_are_not_closed(made, uri):
    made.folder.log.begin(7, "search")
    with StudyFolder(made.folder.path).lock():
        projection(made.folder, uri).end(Shown(made))
    runs = sorted(everything(uri), key=_in_order)
    assert (runs[0][2], runs[-1][2]) == ("RUNNING", "RUNNING")
    # A trial that was wrongly taken for killed gets its real end.
    projection(made.folder, uri).end(Shown(made))
    assert sorted(everything(uri), key=_in_order)[-1][0] == "7 (interrupted)"
    made.folder.log.end(7, "complete", value=0.5, metrics={"val.accuracy": 0.5}, seconds=1.0)
    projection(made.folder, uri).end(Shown(made))
    last = sorted(everything(uri), key=_in_order)[-1]
    assert (last[0], last[2], last[3]["mlflow.note.content"]) == ("7", "FINISHED", "")


def test_shipping_again_changes_nothing_wherever_it_failed(made, uri, tmp_path, monkeypatch):
    projection(made.folder, uri).end(Shown(made))
    whole = everything(uri)
    projection(made.folder, uri).end(Shown(made))
    assert everything(uri) == whole

    draw = random.Random(0)
    other = f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    broken = 0
    with monkeypatch.context() as patch:
        for name in ("create_run", "log_batch", "log_text", "log_inputs", "set_tag", "set_terminated"):
            really = getattr(MlflowClient, name)

            def breaking(*args, really=really, **kwargs):
                before, after = draw.random() < 0.05, draw.random() < 0.05
                if before:
                    raise ConnectionError("the server is gone")
                done = really(*args, **kwargs)
                if after:
                    raise ConnectionError("the answer is lost")
                return done

            patch.setattr(MlflowClient, name, breaking)
        while broken < 200:
            try:
                projection(made.folder, other).end(Shown(made))
                break
            except ConnectionError:
                broken += 1
    assert broken > 3
    assert everything(other) == whole


def test_runs_deleted_in_mlflow_are_logged_again_and_no_trial_is_without_its_study(made, uri):
    projection(made.folder, uri).end(Shown(made))
    whole, client = everything(uri), MlflowClient(uri)
    experiment, study = projection(made.folder, uri).find()
    (rerun_or_trial, *_) = client.search_runs([experiment], "tags.`autotl.trial` = '1'")
    for run in (study, rerun_or_trial.info.run_id):
        client.delete_run(run)
    assert projection(made.folder, uri).find() is None
    projection(made.folder, uri).end(Shown(made))
    assert everything(uri) == whole
    _, again = projection(made.folder, uri).find()
    assert again != study
    client.restore_run(study)  # the deleted run is restored: now there are two
    projection(made.folder, uri).end(Shown(made))
    parents = {run.data.tags.get("mlflow.parentRunId") for run in client.search_runs([experiment])}
    assert parents == {None, projection(made.folder, uri).find()[1]}


def test_the_best_model_is_registered_without_pickle(made, uri, stripes, monkeypatch):
    projection(made.folder, uri).end(Shown(made))
    projection(made.folder, uri).end(Shown(made))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    client = MlflowClient(uri)
    (version,) = client.search_model_versions("name = 'autotl-stripes'")
    assert client.get_model_version_by_alias("autotl-stripes", "champion").version == version.version
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    model = mlflow.pytorch.load_model("models:/autotl-stripes@champion")
    served = mlflow.pyfunc.load_model("models:/autotl-stripes@champion")
    own = Shown(made).model()
    draw = np.random.default_rng(0)
    import torch

    for batch in (1, 2, 5):
        images = draw.integers(0, 256, (batch, 3, 32, 32), np.uint8)
        wanted = own.probabilities(torch.from_numpy(images)).numpy()
        with torch.no_grad():
            np.testing.assert_allclose(model(torch.from_numpy(images)).numpy(), wanted, atol=1e-5)
        np.testing.assert_allclose(served.predict(images), wanted, atol=1e-5)
    signature = served.metadata.signature
    assert [(str(spec.type), spec.shape) for spec in signature.inputs] == [("uint8", (-1, 3, 32, 32))]
    place = Path(mlflow.artifacts.download_artifacts("models:/autotl-stripes@champion"))
    assert not [file for file in place.rglob("*") if file.suffix in (".pkl", ".pth", ".pt")]
    assert json.loads(next(place.rglob("classes.json")).read_text()) == ["across", "checks", "down"]
    assert next(place.rglob("LICENSE")).read_text().startswith("Terms of the weights")


def test_an_ensemble_is_registered_with_an_input_for_each_size(uri, host, stripes):
    import torch

    settings = {"strategies": ("linear-probe",), "backbones": ("tiny:net", "autotl:resnet10"), "mlflow": False}
    search = Search(
        Settings(data=stripes, trials=2, ensemble=2, compare=False, device="cpu", **settings),
        host,
        Silent(),
        time.monotonic(),
    )
    result = search.run()
    projection(search.folder, uri).end(Shown(search))
    own = Shown(search).model()
    assert len({input.size for input in own.graph.inputs}) == 2
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    model = mlflow.pytorch.load_model("models:/autotl-stripes@champion")
    shapes = [(5, 3, input.size, input.size) for input in own.graph.inputs]
    images = [torch.randint(0, 256, shape, dtype=torch.uint8) for shape in shapes]
    with torch.no_grad():
        torch.testing.assert_close(model(*images), own.probabilities(*images), atol=1e-5, rtol=0)
    signature = mlflow.models.get_model_info("models:/autotl-stripes@champion").signature
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [
        (name, (-1, *shape[1:])) for name, shape in zip(("images", "images2"), shapes, strict=True)
    ]
    (version,) = MlflowClient(uri).search_model_versions("name = 'autotl-stripes'")
    assert version.tags["backbone"] == ", ".join(plan.backbone for plan in result.made.members)
    experiment = MlflowClient(uri).get_experiment_by_name("autotl-stripes").experiment_id
    runs = {run.info.run_name: run for run in MlflowClient(uri).search_runs([experiment])}
    alone = runs[f"comparison: the winner alone (trial {result.best.trial})"]
    (compared,) = result.comparisons.values()
    assert alone.data.metrics["test/accuracy"] == compared.value


def test_an_unreachable_server_costs_one_line_and_its_process_ends_with_the_search(made, monkeypatch):
    monkeypatch.setattr(shipping, "EVERY", 0.1)
    monkeypatch.setattr(shipping, "LAST_TRIES", (0.1, 0.1))
    notes = []
    reading, writing = os.pipe()
    end = time.monotonic() + 8
    import threading

    threading.Timer(8, lambda: os.close(writing)).start()
    arrived = shipping.follow(
        projection(made.folder, "http://127.0.0.1:9"), Shown(made), notes.append, os.fdopen(reading)
    )
    assert not arrived
    assert time.monotonic() - end < 20
    assert len(notes) == 2
    assert notes[0].startswith("MLflow at http://127.0.0.1:9 fails; the search continues without it: ")
    assert "has received nothing of this search" in notes[1]


def test_a_folder_as_the_store_is_refused_with_what_to_do_and_works_if_it_is_allowed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "EVERY", 0.1)
    folder = projection(made.folder, str(tmp_path / "mlruns"))
    reading, writing = os.pipe()
    notes = []

    def say(text):
        if not notes:
            os.close(writing)  # the search is over
        notes.append(text)

    assert not shipping.follow(folder, Shown(made), say, os.fdopen(reading))
    assert len(notes) == 2
    assert "migrate-filestore" in notes[0] and "MLFLOW_ALLOW_FILE_STORE=true" in notes[0]
    assert notes[1].endswith(
        "has received nothing of this search. It is all in the study's folder; send it later with autotl log."
    )
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder.ship()
    assert sum("autotl.trial" in run[3] for run in everything(folder.uri)) == 8


# With a real server


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    """A tracking server that may be stopped and started again."""

    class Server:
        def __init__(self):
            self.port = _free_port()
            self.uri = f"http://127.0.0.1:{self.port}"
            self.process = None

        def start(self):
            words = ["server", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--workers", "1"]
            words += [
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--artifacts-destination",
                str(tmp_path / "kept"),
            ]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
            self.wait()

        def wait(self):
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                    return
                except OSError:
                    time.sleep(0.2)
            raise AssertionError("the server does not start")

        @property
        def runs(self):
            return self.process is not None

        def stop(self):
            if self.process:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                self.process = None

    made = Server()
    yield made
    made.stop()


def test_a_server_that_was_restarted_has_everything_at_the_end(stripes, tmp_path, server, tiny_installed, gate):
    server.start()
    folder = StudyFolder(tmp_path / "studies" / "stripes")
    words = ["search", str(stripes), "--trials", "12", "--backbones", "tiny:net", "--no-prune", "--reruns", "0"]
    words += ["--strategies", "fine-tune,full", "--augmentations", "gate", "--no-compare"]
    words += ["--tracking-uri", server.uri]
    search = subprocess.Popen(
        [sys.executable, "-m", "autotl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.5"},  # the search is short
    )
    lines = []
    for line in search.stdout:
        lines.append(line)
        if "[4/12]" in line:
            gate.shut()
            while not any(key.startswith("system/") for key in _metric_keys(server.uri)):
                time.sleep(0.5)
            server.stop()
            gate.open()
        if "[8/12]" in line:
            gate.shut()
        if all(any(what in line for line in lines) for what in ("[8/12]", "the search continues without it")):
            if not server.runs:
                server.start()
            gate.open()
    assert search.wait(300) == 0, "".join(lines)
    said = "".join(lines)
    print(said)
    assert said.count("fails; the search continues without it") == 1, said

    runs = [run for run in everything(server.uri) if "autotl.trial" in run[3]]
    records = list(folder.log.records())
    assert len(records) == 12
    assert sorted(int(run[3]["autotl.trial"]) for run in runs) == list(range(12))
    assert {run[2] for run in runs} == {"FINISHED"}
    for run in runs:
        record = records[int(run[3]["autotl.trial"])]
        assert run[5]["val/accuracy"][0][2] == record.value
        assert [step for step, _, _ in run[5].get("epoch/train.loss", [])] == [
            epoch["epoch"] for epoch in record.epochs if "train.loss" in epoch
        ]
        assert run[7] == ["plan.json"]
    (parent,) = (run for run in everything(server.uri) if not run[1])
    assert parent[2] == "FINISHED"
    assert "result.json" in parent[7]
    assert MlflowClient(server.uri).get_model_version_by_alias("autotl-stripes", "champion")
    assert any(key.startswith("system/") for key in _metric_keys(server.uri))


def _metric_keys(uri):
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("autotl-stripes")  # it does not exist before the first run
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return {key for run in runs for key in run.data.metrics}

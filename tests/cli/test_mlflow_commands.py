"""`autotl log` and `autotl ui`, as a user types them; pages in a real browser where chromium is installed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from autotl.cli.main import main
from autotl.tracking.shipping import tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def autotl(*words, code=0):
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def searched(stripes, tmp_path, monkeypatch):
    """A study that its search's logging process has logged to MLflow.

    The working folder and the workspace each have a module that hides one of Python's own.
    """
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "studies"):
        folder.mkdir(exist_ok=True)
        (folder / "timeit.py").write_text("raise SystemExit('not the timeit that was meant')")
    words = ["search", str(stripes), "--trials", "2", "--backbones", "autotl:resnet10", "--strategies", "linear-probe"]
    subprocess.run([sys.executable, "-P", "-m", "autotl", *words], check=True, capture_output=True)
    return tmp_path / "studies"


def test_a_study_is_logged_to_another_server_and_its_pages_are_served(searched, tmp_path):
    assert sorted(path.name for path in searched.glob("ml*")) == ["mlartifacts", "mlflow.db"]
    assert not list(tmp_path.glob("ml*"))  # nothing outside the workspace
    other = f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    assert f"MLflow at {other} has all of study 'stripes'" in autotl("log", "stripes", "--tracking-uri", other)
    own, copy = (MlflowClient(uri) for uri in (f"sqlite:///{searched / 'mlflow.db'}", other))
    names = _run_names(own)
    assert _run_names(copy) == names
    assert {name.partition(" ")[0] for name in names} == {"0", "1", "comparison:", "stripes", "winner,"}
    assert own.get_model_version_by_alias("autotl-stripes", "champion")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-P", "-m", "autotl", "ui", "stripes", "--port", str(port), "--no-browser"]
    words += ["--allowed-hosts", "gpu1.example.org,[fd00::7]"]
    ui = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        address, study = (line.split()[0] for line in islice(ui.stdout, 1, 3))
        experiment = own.get_experiment_by_name("autotl-stripes").experiment_id
        assert address.startswith(f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?")
        assert address.endswith("&viewStateShareKey=autotl")
        with urllib.request.urlopen(address) as page:
            assert b"MLflow" in page.read()
        ours = ("127.0.0.1:9", "localhost", f"gpu1.example.org:{port}", "gpu1.example.org", "[fd00::7]:9")
        assert {_asked(port, name, f"http://{name}") for name in ours} == {200}
        assert _asked(port, "gpu1.example.org", "https://gpu1.example.org") == 200
        foreign = ("evil.example.org", "gpu1.example.org.evil.com", "gpu1.example.orgs:80", "7:9")
        assert {_asked(port, name, "http://localhost") for name in foreign} == {403}
        assert {_asked(port, "localhost", f"http://{name}") for name in foreign} == {403}
        assert "is in use. Use another one: --port" in autotl("ui", "--port", port, "--no-browser", code=2)
        if browser := shutil.which("chromium"):
            words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
            words += ["--window-size=2000,1000", "--dump-dom"]
            dom = lambda page: subprocess.check_output([*words, page], text=True, stderr=subprocess.DEVNULL)  # noqa: E731
            table = dom(address)
            assert "0 linear-probe autotl:resnet10 →" in table
            for column in ("val/accuracy", "val/loss", "flops", "backbone", "cut"):
                assert f'data-testid="sort-header-{column}"' in table
            assert "Winner: autotl:resnet10" in dom(study)
    finally:
        ui.send_signal(signal.SIGTERM)
        ui.wait(30)
    with socket.socket() as probe:  # the server has ended, too
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def _asked(port, host, origin):
    """The status for a page of this origin that requests experiments under this name of the host."""
    headers = {"Host": host, "Origin": origin, "Content-Type": "application/json"}
    place = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/search"
    try:
        with urllib.request.urlopen(urllib.request.Request(place, b'{"max_results": 1}', headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def _run_names(client):
    runs = client.search_runs([client.get_experiment_by_name("autotl-stripes").experiment_id])
    return sorted(run.info.run_name for run in runs)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["log", "nothing"], "Unknown study 'nothing'"),
        (["ui", "nothing"], "Unknown study 'nothing'"),
        (["ui"], "There is nothing to show"),
        (["ui", "--tracking-uri", "sqlite://", "--host", "192.0.2.1"], "cannot listen on port 5000 of 192.0.2.1: "),
        (["ui", "--tracking-uri", "sqlite://", "--host", "no host"], "cannot listen on port 5000 of no host: "),
        (["export", "nothing"], "Unknown study 'nothing'"),
        (["worker", "nothing"], "Unknown study 'nothing'"),
    ],
)
def test_what_does_not_exist_is_an_error_in_one_line(words, says):
    error = autotl(*words, code=2)
    assert error.startswith("Error: ") and says in error and error.count("\n") == 1


def test_pages_that_answer_to_every_name_are_refused():
    assert "lets any web page control MLflow" in autotl("ui", "--allowed-hosts", "gpu1, *", code=2)


def test_an_error_says_why_the_pages_cannot_be_served(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = autotl("ui", "--port", port, "--no-browser", "--tracking-uri", "./mlruns", code=2)
    (error,) = (line for line in said.splitlines() if line.startswith("Error: "))
    assert "is in maintenance mode" in error and "`MLFLOW_ALLOW_FILE_STORE=true`" in error
    log = Path(error.rpartition(" ")[2])
    assert "Traceback" in log.read_text() and log.stat().st_mode & 0o077 == 0


def test_a_relative_database_is_the_same_one_wherever_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    assert tracking_uri(None, tmp_path / "studies") == f"sqlite:///{tmp_path}/here.db"
    assert tracking_uri("sqlite:////there/it.db", tmp_path) == "sqlite:////there/it.db"
    for elsewhere in ("http://somewhere:5000", "databricks", "databricks://mine", f"file://{tmp_path}", str(tmp_path)):
        assert tracking_uri(elsewhere, tmp_path) == elsewhere
    for folder in ("./mlruns", "mlruns", "file:mlruns", "file:./mlruns"):
        assert tracking_uri(folder, tmp_path / "studies") == f"{tmp_path}/mlruns"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(None, Path("studies")) == f"sqlite:///{tmp_path}/studies/mlflow.db"


def test_a_study_that_was_not_logged_to_mlflow(stripes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    autotl("search", stripes, "--trials", 1, "--backbones", "reference:edges", "--strategies", "linear-probe")
    assert "has no study 'stripes'. Log it: autotl log stripes" in autotl("ui", "stripes", code=2)
    error = autotl("log", "stripes", "--tracking-uri", "http://127.0.0.1:9", code=2)
    assert error.startswith("Error: MLflow at http://127.0.0.1:9 cannot be updated: ")
    assert error.count("\n") == 1


def test_a_server_out_of_reach_costs_a_few_lines_and_never_the_search(stripes, tmp_path):
    words = ["search", str(stripes), "--trials", "2", "--backbones", "reference:edges", "--strategies", "linear-probe"]
    words += ["--tracking-uri", "http://me:secret@127.0.0.1:9"]
    done = subprocess.run([sys.executable, "-m", "autotl", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Winner: reference:edges" in done.stdout
    printed = [line for line in done.stdout.splitlines() if "MLflow" in line]
    assert printed[-1].startswith(
        "MLflow does not have the whole study. Log it later: autotl log stripes --tracking-uri 'http"
    )
    assert all("secret" not in line for line in printed)

import shlex
from pathlib import Path

from click.testing import CliRunner

from autotl.cli.search import command
from autotl.study.settings import Settings

SAID = {
    "data": Path("a folder"),
    "trials": 7,
    "budget": "5m",
    "prune": False,
    "backbones": ("autotl:*", "tiny:net"),
    "weights": {"tiny:net": Path("net.safetensors")},
    "strict_plugins": True,
    "storage": "postgresql://me:secret@host/optuna",
    "tracking_uri": "http://me:secret@host:5000",
}


def test_what_is_told_of_a_search_is_a_command_that_says_the_same_without_secrets(tmp_path, monkeypatch):
    told = Settings.of(SAID).told()
    assert "secret" not in str(told)
    assert told["options"]["trials"] == 7 and told["options"]["budget"] == 300
    monkeypatch.chdir(tmp_path)
    for name in ("a folder", "net.safetensors"):
        Path(name).touch()
    heard = {}
    monkeypatch.setattr(command, "callback", lambda as_json, **values: heard.update(values))
    done = CliRunner().invoke(command, shlex.split(told["command"])[2:])
    assert done.exit_code == 0, done.output
    secrets = {"storage", "tracking_uri"}
    assert Settings.of(heard).model_dump(exclude=secrets) == Settings.of(SAID).model_dump(exclude=secrets)


def test_what_is_the_default_is_not_said():
    assert Settings(data=Path("digits")).told()["command"] == "autotl search digits"

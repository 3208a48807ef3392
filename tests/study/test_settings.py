import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from autotl.cli.search import command
from autotl.errors import StudyError
from autotl.study.settings import Settings

SAID = {
    "data": Path("a folder"),
    "trials": 7,
    "budget": "5m",
    "prune": False,
    "backbones": ("autotl:*", "tiny:net"),
    "heads": ("linear", "conv"),
    "weights": {"tiny:net": Path("net.safetensors")},
    "strict_plugins": True,
    "storage": "postgresql://me:secret@host/optuna",
    "tracking_uri": "http://me:secret@host:5000",
}


def test_the_logged_command_gives_the_same_search_without_secrets(tmp_path, monkeypatch):
    logged = Settings.of(SAID).logged()
    assert "secret" not in str(logged)
    assert logged["options"]["trials"] == 7 and logged["options"]["budget"] == 300
    monkeypatch.chdir(tmp_path)
    for name in ("a folder", "net.safetensors"):
        Path(name).touch()
    heard = {}
    monkeypatch.setattr(command, "callback", lambda as_json, **values: heard.update(values))
    done = CliRunner().invoke(command, shlex.split(logged["command"])[2:])
    assert done.exit_code == 0, done.output
    secrets = {"storage", "tracking_uri"}
    assert Settings.of(heard).model_dump(exclude=secrets) == Settings.of(SAID).model_dump(exclude=secrets)


@pytest.mark.parametrize("heads", ["linear,deep", ["linear", "deep"]])
def test_an_unknown_kind_of_head_is_refused_in_one_line(heads):
    with pytest.raises(StudyError, match=r"^heads='deep': Input should be 'linear', 'mlp', 'conv' or 'cosine'\.$"):
        Settings.of({"data": "digits", "heads": heads})


def test_the_logged_command_has_no_defaults():
    assert Settings(data=Path("digits")).logged()["command"] == "autotl search digits"

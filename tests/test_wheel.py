"""The wheel of autotl: its files, and that its backbones load without the repository."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from autotl.cli import plugins

ROOT = Path(__file__).parent.parent
MOST = 8_000_000
"""The most bytes that all shipped weights together may have."""

LOAD = """
import json, sys
from pathlib import Path
import torch
import autotl
from autotl.backbones.catalogue import Catalogue
from autotl.host import Host

torch.set_num_threads(1)
catalogue = Catalogue(Host(), Path(sys.argv[1]))
found = {}
for name in catalogue.expand(["autotl:*"]):
    network = catalogue.network(name, seed=0)
    stages = catalogue.build(network).eval()
    with torch.no_grad():
        value = stages(torch.zeros(2, 3, network.input.size, network.input.size))
    assert value.isfinite().all() and value.std() > 0
    found[name] = [network.weights, str(value.dtype)]
print(json.dumps({"place": autotl.__file__, "backbones": found}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "uv", "build", "--wheel", "--offline", "--no-build-isolation", "--out-dir", folder]
    done = subprocess.run([*build, "--python", sys.executable, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_shipped_weights_are_in_it_and_small(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = [each for each in archive.infolist() if each.filename.startswith("autotl/builtin/weights/")]
        assert "autotl/py.typed" in archive.namelist()
    assert {Path(each.filename).name for each in files} == set(os.listdir(ROOT / "autotl/builtin/weights"))
    assert sum(each.file_size for each in files if each.filename.endswith(".safetensors")) <= MOST


def test_the_templates_are_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("autotl/cli/templates/") for name in archive.namelist()}
    for kind, template in plugins.KINDS_OF_NEW.items():
        own = {f"{kind}/{file.format(template.name.replace('-', '_'))}" for file in plugins.OWN}
        assert own | {f"strategy/{file}" for file in plugins.SHARED} <= names


@pytest.fixture
def unpacked(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    return tmp_path / "site"


def load(site):
    """Runs `LOAD` with the wheel's autotl."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    words = [sys.executable, "-c", LOAD, site.parent / "cache"]
    return subprocess.run(words, cwd=site.parent, env=environment, capture_output=True, text=True)


def test_its_backbones_load_without_the_rest_of_the_project(unpacked):
    done = load(unpacked)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert Path(printed["place"]).is_relative_to(unpacked)
    shipped = sorted((ROOT / "autotl/builtin/weights").glob("*.json"))
    facts = {f"autotl:{file.stem}": json.loads(file.read_text()) for file in shipped}
    assert printed["backbones"] == {name: [f"sha256:{each['sha256']}", "torch.float32"] for name, each in facts.items()}


def test_a_damaged_or_a_swapped_file_is_refused_because_of_its_hash(unpacked):
    file = next((unpacked / "autotl/builtin/weights").glob("*.safetensors"))
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    done = load(unpacked)
    assert done.returncode != 0
    assert f"The weights of 'autotl:{file.stem}'" in done.stderr.splitlines()[-1]
    assert "are damaged or not the right ones" in done.stderr.splitlines()[-1]

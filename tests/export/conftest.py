"""One small study for the tests of bundles and exports; each test gets a copy."""

import shutil
import time

import pytest

from autotl.host import Host
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import TinyPlugin, write_stripes
from autotl.tracking.folder import StudyFolder


@pytest.fixture(scope="session")
def _searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    host = Host()
    host.add(TinyPlugin(), "tiny-plugin")
    settings = Settings(
        data=write_stripes(folder / "stripes"),
        trials=2,
        backbones=("tiny:net",),
        strategies=("linear-probe",),
        compare=False,
        device="cpu",
        mlflow=False,
        home=folder / "studies",
        cache_dir=folder / "cache",
    )
    search = Search(settings, host, Silent(), time.monotonic())
    search.run()
    return search.folder.path


@pytest.fixture
def study(_searched, tmp_path, stripes):
    """A finished search in the test's own workspace, of `tiny:net` on `stripes`."""
    shutil.copytree(_searched, tmp_path / "studies" / "stripes")
    copied = StudyFolder(tmp_path / "studies" / "stripes")
    copied.define(copied.definition.model_copy(update={"data": str(stripes)}))
    return copied

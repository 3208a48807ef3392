"""A finished study of three classes, made by a search."""

import shutil
import time

import pytest
from pages import advice

from autotl.host import Host
from autotl.report.page import study
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import TinyPlugin, write_stripes
from autotl.tracking.advice import write_advice
from autotl.tracking.folder import StudyFolder


@pytest.fixture(scope="session")
def search_stripes():
    """`search_stripes(place, data, …)`: a search that has ended, with its study in `place`."""
    return _searched


def _searched(place, data, **options):
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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A search that has ended; tests copy its study and do not change it."""
    place = tmp_path_factory.mktemp("page")
    return _searched(place, write_stripes(place / "stripes"), strategies=("linear-probe", "fine-tune"))


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

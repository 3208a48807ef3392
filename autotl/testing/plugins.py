"""The tests for every plugin, independent of the kind that it registers."""

import os
import subprocess
import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest

from autotl.testing.lab import Lab, host_with, names_of

HEAVY = ("torch", "torchvision", "timm", "mlflow", "optuna", "pandas", "sklearn", "scipy")
"""Libraries that take long to import: `autotl --help` imports every plugin."""

_LOOK = """
import sys
from importlib import import_module
from importlib.metadata import entry_points
from autotl.host import Host
host = Host(blocked=frozenset(point.name for point in entry_points(group="autotl")))
host.add(import_module(sys.argv[1]), "the-plugin")
print(*[name for name in sys.argv[2:] if name in sys.modules])
"""
"""Loads only one plugin; what the plugin prints comes before the last line."""


class PluginTests:
    """Tests of what `plugin` registers of one `kind`; each is named after what it checks.

    `names` restricts them to some of the registered names.
    """

    plugin: ClassVar[ModuleType]
    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()
    _lab: ClassVar[Lab]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.names or names_of(self.plugin, self.kind))

    @pytest.fixture
    def lab(self, tmp_path_factory: pytest.TempPathFactory) -> Lab:
        """One lab for all tests of a class."""
        cls = type(self)
        if "_lab" not in vars(cls):
            cls._lab = Lab(self.plugin, tmp_path_factory.mktemp("lab"))
        return cls._lab

    def test_it_loads_and_registers_something(self) -> None:
        host, name = host_with(self.plugin)
        problems = [str(problem) for problem in host.problems if problem.owner.plugin == name]
        assert not problems, problems[0]
        assert names_of(self.plugin, self.kind), f"{self.plugin.__name__} registers no {self.kind}."

    def test_its_module_imports_nothing_heavy_and_prints_nothing(self) -> None:
        """Heavy libraries must be imported where they are needed: in `load`, `build` or `fit`."""
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            [sys.executable, "-P", "-c", _LOOK, self.plugin.__name__, *HEAVY],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        *printed, last = done.stdout.splitlines()
        assert not printed, f"Loading {self.plugin.__name__} prints {printed[0]!r}: every command loads it."
        heavy = last.split()
        assert not heavy, f"Loading {self.plugin.__name__} imports {', '.join(heavy)}: import it where it is needed."

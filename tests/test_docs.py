import re
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent

ROOT = Path(__file__).parent.parent


def listings(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


def test_the_plugin_of_the_tutorial_works_as_it_stands(host, stripes):
    plugin = ModuleType("autotl_late_probe")
    exec(listings("plugins/README.md", "python")[0], plugin.__dict__)
    host.add(plugin, "late-probe")
    assert not host.problems
    settings = Settings(data=stripes, trials=3, backbones=("tiny:net",), strategies=("late-probe",), device="cpu")
    result = Search(settings, host, Silent(), time.monotonic()).run()
    assert +Counter(result.trials) == {"complete": 3}
    assert result.best.strategy == "late-probe"
    assert result.best.plan.cut == "2.1"


def test_every_command_is_in_the_readme():
    from autotl.cli.main import COMMANDS

    text = (ROOT / "README.md").read_text()
    missing = [name for name in COMMANDS if f"autotl {name}" not in text]
    assert not missing

"""The runs of a study: searches on one thread without MLflow, their log, and differences paired over the seeds."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from scipy import stats

from autotl.files import append_line, read_lines
from autotl.host import Host
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.tracking.folder import StudyFolder
from autotl.tracking.result import Result

LINE = TypeAdapter(dict[str, Any])
File = click.Path(dir_okay=False, path_type=Path)


def search(table: Path, work: Path, study: str, host: Host | None = None, **options: Any) -> tuple[Result, StudyFolder]:
    """A search on the images of a manifest, without reruns, comparisons and MLflow unless `options` say otherwise."""
    torch.set_num_threads(1)
    common = {"reruns": 0, "compare": False, "mlflow": False, "device": "cpu"}
    folders = {"home": work / "studies", "cache_dir": work / "cache"}
    settings = Settings.of({"data": table, "study": study, **common, **folders, **options})
    made = Search(settings, host or Host(), Silent(), began=time.monotonic())
    return made.run(), made.folder


class Log:
    """The finished runs of a study, one a line. Several processes may add to it; their locks are in `work`."""

    def __init__(self, file: Path, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._file, self._work = file, work

    def read(self) -> list[dict[str, Any]]:
        return list(read_lines(self._file, LINE.validate_python))

    def fill(self, key: Mapping[str, Any], run: Callable[[str], Mapping[str, Any]]) -> None:
        """Add the run that `key` identifies, unless it is there or another process is at it.

        `run(name)` is called with the key as the name of a study.
        """
        name = re.sub(r"[^\w.]+", "-", "-".join(map(str, key.values()))).strip("-")
        try:
            with FileLock(self._work / f"{name}.lock", timeout=0):
                if not any(key.items() <= each.items() for each in self.read()):
                    line = json.dumps({**key, **run(name)})
                    append_line(self._file, line)
                    click.echo(line)
        except Timeout:
            pass


def paired(gain: np.ndarray) -> list[float]:
    """The mean of differences over seeds, and the ends of its 95 % interval."""
    mean, half = gain.mean(), stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return [round(float(value), 6) for value in (mean, mean - half, mean + half)]

"""Kills a search on generated images at random moments and restarts it until it ends.

    python tests/campaigns/kills.py --kills 30 --seed 0
    python tests/campaigns/kills.py --kills 40 --seed 0 --workers 2

Prints counts and exits with 1 unless every trial was run once, the draws and the test are those of a search that was
not killed, no SIGTERM caused a traceback, and no process is left. With workers, the search, one of its workers or all
of them are killed, and the draws are not compared. It takes about 15 s per kill.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import psutil

from autotl.testing.lab import write_stripes
from autotl.tracking import result as results
from autotl.tracking.folder import StudyFolder
from autotl.tracking.log import ENDED, attempts

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MARK = "AUTOTL_CAMPAIGN"
"""The environment variable that marks the processes of this campaign."""
EARLY = 0.2
"""The share of the kills while a search starts; the others come while it runs trials or after them."""
PATIENCE = 60.0
"""Seconds that a process has to end after SIGTERM or SIGINT, and that its children have after it."""


class Campaign:
    """Searches of one data set with one seed, in a folder of their own."""

    def __init__(self, folder: Path, trials: int, seed: int, mlflow: bool, workers: int) -> None:
        self.folder, self.trials, self.workers = folder, trials, workers
        self.data = write_stripes(folder / "stripes")
        self.draw = random.Random(seed)
        self.mark = uuid.uuid4().hex
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.mlflow = mlflow

    def start(self, study: str) -> subprocess.Popen[str]:
        words = [
            *("autotl", "search", self.data, "--study", study, "--home", self.folder / "home"),
            *("--cache-dir", self.folder / "cache", "--trials", self.trials, "--device", "cpu"),
            *("--backbones", "autotl:resnet10", "--strategies", "linear-probe,fine-tune,lp-ft"),
            *("--reruns", 1, "--no-compare", "--max-kills", 10_000, "--mlflow" if self.mlflow else "--no-mlflow"),
            *("--workers", self.workers),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", MARK: self.mark}
        environment["PYTHONFAULTHANDLER"] = "1"
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def study(self, name: str) -> StudyFolder:
        return StudyFolder(self.folder / "home" / name)

    def run(self, kills: int) -> None:
        whole, took, reach = self._undisturbed()
        expected = drawn(whole)
        number = 0
        while self.counts["kills"] < kills:
            number += 1
            study = f"study-{number}"
            while not self._until_it_ends(study, kills, took - reach, reach):
                pass
            self._check(self.study(study), expected, results.load(whole))
        self._check_processes()

    def _undisturbed(self) -> tuple[StudyFolder, float, float]:
        """A search without kills, its duration in seconds, and that from the first line in its logs to the end."""
        study, began = self.study("whole"), time.monotonic()
        process = self.start("whole")
        while process.poll() is None and not written(study):
            time.sleep(0.05)
        first = time.monotonic()
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"The search fails without any kill:\n{output}")
        return study, time.monotonic() - began, time.monotonic() - first

    def _until_it_ends(self, name: str, kills: int, startup: float, reach: float) -> bool:
        """Run one process of a search; kill it unless it ends first or there were enough kills. Whether it ended."""
        study = self.study(name)
        before = written(study)
        process, began = self.start(name), time.monotonic()
        if self.counts["kills"] < kills:
            early = self.draw.random() < EARLY
            after = self.draw.uniform(0, startup if early else reach)
            while not early and process.poll() is None and written(study) == before:
                time.sleep(0.02)
            if not early:
                began = time.monotonic()
            while process.poll() is None and time.monotonic() - began < after:
                time.sleep(0.02)
        if self.counts["kills"] < kills and process.poll() is None:
            return self._kill(process, "early" if early else "in trials or after them")
        output, _ = process.communicate()
        if process.returncode:
            self.violations.append(f"{name} ended with {process.returncode}: {output[-2000:]}")
        return True

    def _kill(self, process: subprocess.Popen[str], when: str) -> bool:
        """Send a signal; whether the search had ended before it, or goes on because it hit only a worker."""
        how = self.draw.choice(SIGNALS)
        if self.workers > 1:
            whom = self.draw.choice(["the search", "a worker", "all"])
            workers = self._workers(process)
            for worker in workers if whom == "all" else workers[:1] if whom == "a worker" else []:
                worker.kill()
                self.counts["workers killed"] += 1
            if whom == "a worker":
                self.counts["kills"] += bool(workers)
                output, _ = process.communicate()
                if process.returncode:
                    self.violations.append(f"it did not survive the end of a worker: {output[-2000:]}")
                return True
        process.send_signal(how)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # it prints where its threads are
            output, _ = process.communicate()
            self.violations.append(f"{how.name} did not end it within {PATIENCE:.0f} s: {output[-4000:]}")
        if process.returncode == 0:
            self.counts["signals that came too late"] += 1
            return True
        self.counts["kills"] += 1
        self.counts[f"kills by {how.name}"] += 1
        self.counts[f"kills {when}"] += 1
        if "Traceback" in output and how != signal.SIGKILL:
            self.violations.append(f"{how.name} left a traceback: {output[-2000:]}")
        return False

    def _check(self, study: StudyFolder, expected: list[Any], result: results.Result | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.counts["studies"] += 1
        found = drawn(study)
        self.counts["trials"] += len(found)
        self.counts["attempts at trials"] += sum(len(attempts(file)) for file in study.log.files())
        stored = optuna.load_study(study_name=None, storage=f"sqlite:///{study.path / 'optuna.db'}").trials
        numbers = list(range(self.trials))
        ends = [
            sum(event["event"] == "end" and event["state"] in ENDED for tried in attempts(file) for event in tried)
            for file in study.log.files()
        ]
        self.counts["trials run once"] += ends.count(1)
        if ends != [1] * self.trials or [trial.number for trial in stored] != numbers:
            self.violations.append(f"{study.name}: trials ended {ends} times, {len(stored)} are in Optuna's storage")
        if not all(trial.state.is_finished() for trial in stored):
            self.violations.append(f"{study.name}: a trial has not ended in Optuna's storage")
        if self.workers > 1:
            if results.load(study) is None:
                self.violations.append(f"{study.name}: there is no result")
            return
        same = sum(one == other for one, other in zip(found, expected, strict=False))
        self.counts["trials with the same draws and values"] += same
        if found != expected:
            self.violations.append(f"{study.name}: only {same} of {self.trials} trials are as without kills")
        made = results.load(study)
        if not (made and result and made.test == result.test and made.final == result.final):
            self.violations.append(f"{study.name}: another model or another test than without kills")

    def _check_processes(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while (left := list(self._left_behind())) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.counts["processes left behind"] = len(left)
        self.violations += [f"left behind: {' '.join(process.cmdline())}" for process in left]

    def _workers(self, process: subprocess.Popen[str]) -> list[psutil.Process]:
        """The living workers of a search."""
        found = []
        with suppress(psutil.Error):  # it has ended
            for child in psutil.Process(process.pid).children():
                with suppress(psutil.Error):
                    if "autotl.study.team" in child.cmdline():
                        found.append(child)
        return found

    def _left_behind(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                    yield process
            except psutil.Error:  # another user's, or ended already
                continue


def written(study: StudyFolder) -> int:
    """The bytes in the logs of a study's trials."""
    return sum(file.stat().st_size for file in study.log.files())


def drawn(study: StudyFolder) -> list[Any]:
    """Everything about the trials of a study that must not depend on kills."""
    return [
        (record.number, record.state, record.params, record.plan and record.plan.hash, record.value)
        for record in study.log.records()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mlflow", action="store_true", help="With the process that logs to MLflow; slower.")
    options = parser.parse_args()
    # A shell starts what runs in the background with SIGINT ignored, which the searches would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="autotl-kills-") as folder:
        campaign = Campaign(Path(folder), options.trials, options.seed, options.mlflow, options.workers)
        campaign.run(options.kills)
    for what, count in campaign.counts.items():
        print(f"{count:6}  {what}")
    for violation in campaign.violations:
        print(f"VIOLATION  {violation}")
    sys.exit(bool(campaign.violations))


if __name__ == "__main__":
    main()

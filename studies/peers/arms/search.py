"""`autotl search` with a time limit; without the comparison with baselines and without MLflow, which no other arm has.

Its caches start empty, and its time limit counts processor time. `--folder` keeps the study for `autotl show`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CLOCK = Path(__file__).with_name("cpu_clock.py")

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--backbone", required=True)
parser.add_argument("--weights", type=Path, required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--seconds", type=int, required=True)
parser.add_argument("--folder", type=Path, required=True)
asked = parser.parse_args()

with tempfile.TemporaryDirectory() as cache:
    words = [
        *(sys.executable, CLOCK, "autotl", "search", asked.data, "--backbones", asked.backbone, "--device", "cpu"),
        *("--seed", asked.seed, "--budget", f"{asked.seconds}s", "--trials", 1000, "--no-compare", "--no-mlflow"),
        *("--weights", f"{asked.backbone}={asked.weights}", "--home", asked.folder, "--cache-dir", cache, "--json"),
    ]
    done = subprocess.run([*map(str, words)], stdout=subprocess.PIPE)
if done.returncode:
    sys.exit(done.returncode)
found = json.loads(done.stdout)
plan = found["best"]["plan"]
told = {"strategy": found["best"]["strategy"], "cut": plan["cut"], "val": found["best"]["validation"]}
print(json.dumps({"test": found["test"]["value"], **told}))

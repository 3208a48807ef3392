import subprocess
import sys
from pathlib import Path

from autotl.engine.device import kind


def test_the_kind_of_a_device():
    assert [kind(device) for device in ("cpu", "cuda", "cuda:1", "mps")] == ["cpu", "cuda", "cuda", "mps"]


def test_training_keeps_to_its_device_and_waits_for_nothing():
    tests = Path(__file__).with_name("pretended_gpu.py")
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]

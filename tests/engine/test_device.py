import platform
import subprocess
import sys
from pathlib import Path

import pytest

from autotl.engine.device import kind

FAULTS = """
import resource
import torch
from autotl.engine import device
device.resolve("cpu")

conv = torch.nn.Conv2d(16, 16, 3, padding=1)

def batch():
    with torch.inference_mode():
        images = torch.zeros(16, 16, 224, 224)  # 51 MB, like each of the values that follow
        torch.relu(conv(torch.relu(conv(images))))

for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_the_kind_of_a_device():
    assert [kind(device) for device in ("cpu", "cuda", "cuda:1", "mps")] == ["cpu", "cuda", "cuda", "mps"]


def test_training_keeps_to_its_device_and_waits_for_nothing():
    tests = Path(__file__).with_name("pretended_gpu.py")
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_a_process_that_computes_on_the_cpu_keeps_the_memory_that_it_frees():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    # Memory that was returned to the system causes more than 100,000 page faults in each batch.
    assert int(done.stdout) < 100_000

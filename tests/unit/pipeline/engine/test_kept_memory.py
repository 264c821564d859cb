"""Freed memory is used again, without page faults, and given back at the end."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine.kept_memory import kept_memory

ROOT = Path(__file__).resolve().parents[4]
MIB = 2**20
CODE = """
import resource
from pathlib import Path

import torch

from pipeline.engine.kept_memory import kept_memory

def step():
    torch.ones(100, 2**20, dtype=torch.uint8)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

with kept_memory("cpu"):
    # A block is aligned inside a somewhat larger one, so that the first ones do not fit again.
    for _ in range(20):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    kept = resident()
print(faults, kept - resident())
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc"
)
def test_steps_use_the_memory_of_the_last_one_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    faults, given_back = map(int, done.stdout.split())
    # Five steps of 100 MiB: 128,000 faults of 4 KiB, if each got its memory anew.
    assert faults < 100 * MIB / resource.getpagesize()
    assert given_back > 90 * MIB


def test_a_gpu_leaves_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)  # calling it would fail
    with kept_memory("cuda"):
        pass

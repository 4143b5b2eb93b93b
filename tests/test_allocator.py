"""Freed memory is used again: the kernel is asked for none in later rounds."""

import os
import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys
import torch
from psa.allocator import keep_freed_memory

done = keep_freed_memory() if sys.argv[1] == "keep" else None

def one_round():
    return [torch.zeros(size << 18) for size in (2, 8, 48)]  # MiB, the last above what glibc keeps by itself

for _ in range(20):  # until the heap has room beside what else lies there
    one_round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    one_round()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="glibc's allocator"
)


def rounds(how: str, **variables: str) -> tuple[str, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ROUNDS, how]
    found = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    done, faults = found.stdout.split()
    return done, int(faults)


def test_later_rounds_ask_the_kernel_for_no_memory():
    kept, plain = rounds("keep"), rounds("leave")
    assert kept[0] == "True"
    assert kept[1] < 500 < plain[1]


def test_a_users_own_settings_are_left_alone():
    assert rounds("keep", MALLOC_TRIM_THRESHOLD_="1048576")[0] == "False"

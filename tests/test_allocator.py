"""Freed memory stays with the process, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource
import accelnet, numpy as np
from accelnet.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(2):
    np.ones(1 << 22)  # 32 MiB
before = faults()
for _ in range(10):
    np.ones(1 << 22)
print(keep_freed_memory(), faults() - before)
"""


def run(**environment):
    """Whether the setting was made, and the page faults of ten arrays of 8,192 pages each."""
    keep = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", CODE]
    out = subprocess.run(command, env=keep | environment, capture_output=True, text=True, check=True).stdout
    made, faults = out.split()
    return made == "True", int(faults)


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="glibc"
)
def test_memory_is_kept_and_three_variables_turn_that_off():
    made, faults = run()
    assert made
    assert faults < 1_000
    made, faults_of_system = run(ACCELNET_MALLOC="system", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1048576")
    assert not made
    assert faults_of_system > 10 * max(faults, 1)
    assert not run(GLIBC_TUNABLES="glibc.malloc.hugetlb=1")[0]
    assert not run(MALLOC_TRIM_THRESHOLD_="1048576")[0]

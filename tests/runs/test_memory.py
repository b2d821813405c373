from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# the faults of a page that taking and freeing 64 MiB again costs
FAULTS = """
import resource
import sys

import torch

from frostline.runs.memory import keep_freed_memory

if sys.argv[1] == "keep":
    print(keep_freed_memory())
for _ in range(20):
    torch.ones(16, 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(16, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def said(argument: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, argument],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is told")
def test_what_is_freed_is_not_asked_for_again() -> None:
    [asked] = said("leave")
    told, kept = said("keep")
    assert told == "True"
    assert int(kept) < 100 < int(asked)


def test_an_allocator_that_the_environment_has_set_is_left_alone() -> None:
    assert said("keep", MALLOC_ARENA_MAX="2")[0] == "False"
    assert said("keep", GLIBC_TUNABLES="glibc.malloc.check=0")[0] == "False"

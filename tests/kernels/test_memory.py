"""Training processes keep the memory they free; what the user has said of the allocator stands."""

import os
import subprocess
import sys

import pytest

from verl_aiops.kernels import memory

# the process touches 64 MiB again and again, and prints how many pages the system had to give for it
PAGES = """
import resource, sys, threading
import torch
from verl_aiops.kernels.memory import keep_memory

if sys.argv[1] == "keep":
    keep_memory()

def work():
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # the heap settles
    for _ in range(20):
        torch.ones(1 << 24)
    before = faults()
    for _ in range(10):
        torch.ones(1 << 24)
    print(faults() - before)

# Ray calls an actor's methods in a thread
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def pages(mode, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    kept |= {"VERL_PLATFORM": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PAGES, mode], env=kept, capture_output=True, text=True, timeout=120, check=True
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_used_again():
    # 64 MiB are 16,384 pages
    assert pages("keep") < 16_384
    assert pages("usual") > 5 * 16_384
    assert pages("keep", MALLOC_ARENA_MAX="4") > 5 * 16_384


@pytest.fixture
def calls(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_", "PYTORCH_"))]:
        monkeypatch.delenv(name)
    made = []
    monkeypatch.setattr(memory, "set_expandable_segments", lambda on: made.append(("segments", on)))
    monkeypatch.setattr(memory, "_tell_malloc", lambda: made.append("malloc"))
    return made


@pytest.mark.parametrize(
    ("device", "variable", "expected"),
    [
        ("cuda", None, [("segments", True)]),
        ("cuda", "PYTORCH_CUDA_ALLOC_CONF", []),
        ("cuda", "PYTORCH_ALLOC_CONF", []),
        ("cuda", "MALLOC_ARENA_MAX", [("segments", True)]),
        ("cpu", None, ["malloc"]),
        ("cpu", "GLIBC_TUNABLES", []),
        ("cpu", "MALLOC_MMAP_MAX_", []),
        ("npu", None, []),
    ],
)
def test_each_device_has_its_own_allocator(monkeypatch, calls, device, variable, expected):
    monkeypatch.setattr(memory, "get_device_name", lambda: device)
    if variable:
        monkeypatch.setenv(variable, "as the user says")
    memory.keep_memory()
    assert calls == expected


@pytest.mark.parametrize("library", [object(), None])
def test_other_c_libraries_are_left_alone(monkeypatch, caplog, library):
    def load(_):
        if library is None:
            raise OSError("none")
        return library

    monkeypatch.setattr(memory.ctypes, "CDLL", load)
    with caplog.at_level("INFO", logger=memory.__name__):
        memory._tell_malloc()
    assert "no glibc" in caplog.text

import ctypes
import subprocess
import sys

import pytest


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc gives memory back so soon"
)
def test_freed_memory_is_taken_again_without_clearing_it():
    """Counted in page faults, of which a tensor fresh from the system takes one for each 4 kB."""
    code = """
import resource, sys, torch
from gdd_diffusers.memory import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16, 1024, 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults()
afresh = page_faults()
keep_freed_memory()
page_faults()
print(afresh, page_faults())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    afresh, kept = map(int, result.stdout.split())
    assert kept < 100 < 10_000 < afresh

"""A few hundred damaged files; `make fuzz` tries thousands."""

import sys

import pytest
from fuzz import fuzz


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_damaged_files_do_nothing_that_no_file_may_do():
    read, problems = fuzz(count=300, seed=0)
    assert problems == []
    assert 50 < read < 250  # or the mutants are all hopeless, or all harmless

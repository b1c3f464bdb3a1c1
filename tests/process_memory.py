"""The peak memory of this process, for scripts that tests start."""

import re
from pathlib import Path


def peak_megabytes() -> float:
    # not `ru_maxrss`, which begins at what the process that started this one had
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

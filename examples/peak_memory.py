"""The peak memory of a process, which other measures mix with that of the process that started it."""

import re
from pathlib import Path


def peak_memory(process: int | str = "self") -> float:
    """Return the peak resident memory of a running process, by its number, in MB; 0 where the system has no /proc."""
    # not `ru_maxrss`, which begins at what the process that started this one had
    file = Path(f"/proc/{process}/status")
    peak = re.search(r"VmHWM:\s*(\d+) kB", file.read_text()) if file.exists() else None
    return int(peak[1]) * 1024 / 1e6 if peak else 0.0

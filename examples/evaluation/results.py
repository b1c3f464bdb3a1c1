"""Measure a denoiser on a picture, and keep what was measured so that a run can be stopped and resumed."""

import ctypes
import hashlib
import json
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyvips
import torch

from .benchmarks import PictureSet
from .peers import best_sigma, blind_sigma


@dataclass
class Method:
    """
    One row of the tables.

    Args:
        name (`str`): What tables call it.
        denoise (`Callable`): A function of a picture, [H, W, 3] float32 in [0, 1], to the same; if `sigma` is set, of
            the picture and the noise level in [0, 1].
        sigma (`"blind"` or `"best"`, *optional*): How the noise level is chosen.
        fingerprint (`str`): Of the weights and settings; figures of others are not taken up by a resumed run.
        model, rule, steps, variant: For models of this package: the folder or repo, the step rule, the number of
            steps, and what tells its rows apart, in words.
    """

    name: str
    denoise: Callable
    sigma: str | None = None
    fingerprint: str = ""
    model: str | None = None
    rule: str | None = None
    steps: int | None = None
    variant: str | None = None


class PeakMemory:
    """The most memory, in MB, in use at one time within a `with` block, beyond what was in use before it."""

    def __enter__(self):
        # what is free, but still held by the allocator, would hide what is taken next
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        self.process = psutil.Process()
        self.before = self.peak = self.process.memory_info().rss
        self.gpu = torch.cuda.is_available()
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            self.gpu_before = torch.cuda.memory_allocated()
        self.finished = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def _watch(self):
        while not self.finished.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_):
        self.finished.set()
        self.watcher.join()
        self.mb = (self.peak - self.before) / 1e6
        self.gpu_mb = (torch.cuda.max_memory_allocated() - self.gpu_before) / 1e6 if self.gpu else None


def measure(
    method: Method, noisy: np.ndarray, clean: np.ndarray | None, metrics: dict[str, Callable], device: torch.device
) -> tuple[dict, np.ndarray]:
    """Denoises one picture; returns its figures, and the result as [H, W, 3] float in [0, 1]."""
    noisy = to_float(noisy)
    sigma = best_sigma(method.denoise, noisy, to_float(clean)) if method.sigma == "best" else None
    with PeakMemory() as memory:
        start = time.perf_counter()
        if method.sigma == "blind":
            sigma = blind_sigma(noisy)
        result = method.denoise(noisy) if method.sigma is None else method.denoise(noisy, sigma)
        seconds = time.perf_counter() - start
    if result.shape != noisy.shape:
        raise ValueError(f"it returned a picture of the shape {result.shape} for one of {noisy.shape}")
    if not np.isfinite(result).all():
        raise ValueError("it returned NaN or infinity")
    result = np.clip(result, 0, 1)
    figures = {
        "megapixels": noisy.shape[0] * noisy.shape[1] / 1e6,
        "seconds": seconds,
        "memory_mb": memory.mb,
        "gpu_memory_mb": memory.gpu_mb,
        "sigma": sigma,
    }
    if clean is not None:
        a, b = (torch.tensor(x, dtype=torch.float32, device=device) for x in (result, to_float(clean)))
        a, b = (x.permute(2, 0, 1)[None] for x in (a, b))
        figures |= {name: metric(a, b).item() for name, metric in metrics.items()}
    return figures, result


def to_float(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture


class Results:
    """
    What has been measured on one data set: a line of JSON for each method and picture, and some of the results.

    Every process appends to a file of its own. A line counts for the same picture, weights and machine only.

    Args:
        folder (`Path`): Where all this is kept.
        pictures (`PictureSet`): The data set.
        chosen (`list[int]`): Numbers of the pictures to measure.
        machine (`str`): What computes.
        process_index (`int`, defaults to 0): Which process this is.
    """

    def __init__(self, folder: Path, pictures: PictureSet, chosen: list[int], machine: str, process_index: int = 0):
        self.folder, self.pictures, self.chosen = folder / slug(pictures.name), pictures, chosen
        self.machine, self.process_index = machine, process_index
        self.digests = {
            i: zlib.crc32(b"".join(x.tobytes() for x in pictures.load(i) if x is not None)) for i in chosen
        }

    def key(self, method: Method, i: int) -> str:
        """Changes with anything that the figures of picture number i depend on."""
        return hashlib.sha256(f"{method.fingerprint} {self.machine} {self.digests[i]}".encode()).hexdigest()[:16]

    def read(self, method: Method) -> dict[int, dict]:
        """The rows of a method by number of the picture; a failure only where there was no success before or after."""
        rows = {}
        for file in sorted((self.folder / "rows").glob(f"{slug(method.name)}.*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # empty, or cut off when the run was stopped
                    continue
                if "error" not in row or row["key"] not in rows:
                    rows[row["key"]] = row
        keys = {i: self.key(method, i) for i in self.chosen}
        return {i: rows[key] for i, key in keys.items() if key in rows}

    def append(self, method: Method, i: int, row: dict):
        row = {"picture": self.pictures.names[i], "key": self.key(method, i)} | row
        file = self.folder / "rows" / f"{slug(method.name)}.{self.process_index}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.write("\n" + json.dumps(row) + "\n")  # the first newline ends a line that was cut off

    def picture_file(self, method: Method, i: int) -> Path:
        return self.folder / "pictures" / slug(method.name) / f"{self.pictures.names[i]}.{self.key(method, i)}.png"

    def write_picture(self, method: Method, i: int, result: np.ndarray):
        file = self.picture_file(method, i)
        file.parent.mkdir(parents=True, exist_ok=True)
        # the pictures of DND are finer than 8 bits
        levels, dtype = (65535, np.uint16) if self.pictures.submission == "dnd" else (255, np.uint8)
        pyvips.Image.new_from_array((result * levels).round().astype(dtype)).write_to_file(str(file))

    def read_picture(self, method: Method, i: int) -> np.ndarray:
        """[H, W, 3], as the data set has it: uint8, or for DND float32 in [0, 1]."""
        pixels = pyvips.Image.new_from_file(str(self.picture_file(method, i))).numpy()
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32) / 65535


def slug(name: str) -> str:
    """A file name made of any name."""
    return re.sub(r"[^\w.=-]+", "-", name).strip("-")

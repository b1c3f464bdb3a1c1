"""Measure denoisers on a picture, and keep what was measured so that a run can be stopped and resumed."""

import ctypes
import functools
import hashlib
import json
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
        sigma (`"blind"`, `"true"` or `"best"`, *optional*): How the noise level is chosen.
        dtype (`str`): What it computes in.
        fingerprint (`str`): Of the weights and settings; figures of others are not taken up by a resumed run.
        model, kind, rule, steps, variant: For models of this package: the folder or repo, the name without rule and
            steps, the step rule (`None` for one step, where all rules are one), the number of steps, and what tells
            its rows apart, in words.
    """

    name: str
    denoise: Callable
    sigma: str | None = None
    dtype: str | None = None
    fingerprint: str = ""
    model: str | None = None
    kind: str | None = None
    rule: str | None = None
    steps: int | None = None
    variant: str | None = None


NOISY_INPUT = Method("noisy input", lambda picture: picture)


class PeakMemory:
    """
    The most memory, in MB, in use at one time within a `with` block beyond what was in use before it.

    Linux keeps the peak of a process and lets the process reset it. Elsewhere, and where that is forbidden, `mb` is
    `None`. `gpu_mb` is the same of a CUDA device, or `None`.
    """

    def __enter__(self):
        self.before = self.mb = self.gpu_mb = None
        try:
            reset = Path("/proc/self/clear_refs").open("w")  # see proc(5)
            # what is free, but still held by the allocator, would hide what is taken next
            ctypes.CDLL(None).malloc_trim(0)
            with reset:
                reset.write("5")
            self.before = self._peak()
        except OSError:
            pass
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.gpu_before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_):
        if self.before is not None:
            self.mb = self._peak() - self.before
        if torch.cuda.is_available():
            self.gpu_mb = (torch.cuda.max_memory_allocated() - self.gpu_before) / 1e6

    def _peak(self) -> float:
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6


@dataclass
class Run:
    result: np.ndarray
    seconds: float
    memory_mb: float | None
    gpu_memory_mb: float | None


def runner(noisy: np.ndarray, warm: set[Callable]) -> Callable[..., Run]:
    """
    A function of a denoiser, and of the noise level if it takes one, to its timed run on one picture.

    The last runs are kept, so that a search for the best noise level costs no run twice. Denoisers not in `warm` run
    once more, before it is timed: many compile, or choose an algorithm, the first time.

    Args:
        noisy (`np.ndarray`): The picture, [H, W, 3] float32 in [0, 1].
        warm (`set[Callable]`): Denoisers that have run on pictures like this one; others are added.
    """

    @functools.lru_cache(maxsize=8)
    def run(denoise, *sigma):
        if denoise not in warm:
            denoise(noisy, *sigma)
            warm.add(denoise)
        with PeakMemory() as memory:
            start = time.perf_counter()
            result = denoise(noisy, *sigma)
            seconds = time.perf_counter() - start
        if result.shape != noisy.shape:
            raise ValueError(f"it returned a picture of the shape {result.shape} for one of {noisy.shape}")
        if not np.isfinite(result).all():
            raise ValueError("it returned NaN or infinity")
        return Run(np.clip(result, 0, 1), seconds, memory.mb, memory.gpu_mb)

    return run


def measure(
    method: Method,
    run: Callable[..., Run],
    noisy: np.ndarray,
    clean: np.ndarray | None,
    true_sigma: float | None,
    metrics: dict[str, Callable],
    device: torch.device,
) -> tuple[dict, np.ndarray]:
    """
    Denoises one picture.

    Args:
        method (`Method`): By what.
        run (`Callable`): Of this picture, as [`runner`] gives it.
        noisy, clean (`np.ndarray`): [H, W, 3] float32 in [0, 1].
        true_sigma (`float`, *optional*): The noise level in [0, 1], where it is known.
        metrics (`dict[str, Callable]`): Functions of the result and the clean picture, [1, 3, H, W] on `device`; the
            clean one is `None` where it is not known.

    Returns:
        `tuple[dict, np.ndarray]`: The figures, and the result, [H, W, 3] float in [0, 1].
    """
    sigma, seconds = None, 0.0
    if method.sigma == "blind":
        start = time.perf_counter()
        sigma = blind_sigma(noisy)
        seconds = time.perf_counter() - start
    elif method.sigma == "true":
        sigma = true_sigma
    elif method.sigma == "best":
        sigma = best_sigma(lambda sigma: run(method.denoise, sigma).result, noisy, clean)
    done = run(method.denoise) if sigma is None else run(method.denoise, sigma)
    figures = {
        "megapixels": noisy.shape[0] * noisy.shape[1] / 1e6,
        "seconds": seconds + done.seconds,
        "memory_mb": done.memory_mb,
        "gpu_memory_mb": done.gpu_memory_mb,
        "sigma": sigma,
    }
    result, clean = (
        None if x is None else torch.tensor(x, dtype=torch.float32, device=device).permute(2, 0, 1)[None]
        for x in (done.result, clean)
    )
    return figures | {name: metric(result, clean).item() for name, metric in metrics.items()}, done.result


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
        self.digests = {}

    def load(self, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        noisy, clean = self.pictures.load(i)
        self.digests[i] = zlib.crc32(b"".join(x.tobytes() for x in (noisy, clean) if x is not None))
        return noisy, clean

    def key(self, method: Method, i: int) -> str:
        """Changes with anything that the figures of picture number i depend on."""
        if i not in self.digests:
            self.load(i)
        return hashlib.sha256(f"{method.fingerprint} {self.machine} {self.digests[i]}".encode()).hexdigest()[:16]

    def read(self, method: Method) -> dict[str, dict]:
        """The rows of a method by key; a failure only where there was no success before or after."""
        rows = {}
        # a glob for "strength-0.*" would find "strength-0.5.0.jsonl"
        name = re.compile(re.escape(slug(method.name)) + r"\.\d+\.jsonl")
        for file in sorted(file for file in (self.folder / "rows").glob("*.jsonl") if name.fullmatch(file.name)):
            for line in file.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # empty, or cut off when the run was stopped
                    continue
                if "error" not in row or row["key"] not in rows:
                    rows[row["key"]] = row
        return rows

    def read_chosen(self, method: Method) -> list[dict]:
        """The rows of the chosen pictures, in their order."""
        rows = self.read(method)
        keys = [self.key(method, i) for i in self.chosen]
        return [rows[key] for key in keys if key in rows]

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

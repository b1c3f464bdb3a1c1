"""Measure denoisers on an image, and store the figures so that a run can be stopped and resumed."""

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
from peak_memory import peak_memory

from gdd_diffusers.image_processor import pixels_to_tensor, tensor_to_pixels

from .benchmarks import ImageSet
from .peers import best_sigma, blind_sigma


@dataclass
class Method:
    """
    One row of the tables.

    Args:
        name: What tables call it.
        denoise: Maps an image, [H, W, 3] or [H, W, 1] float32 in [0, 1], to an image; takes the noise level in [0, 1]
            as well if `sigma` is set.
        sigma: How the noise level is chosen: `"blind"`, `"true"` or `"best"`.
        dtype: What it computes in.
        fingerprint: Of the weights and settings. A resumed run reuses the figures of the same fingerprint only.
        kind: The name without what distinguishes the rows of one denoiser.
        model, rule, steps, variant: For models of this package: the folder or repo, the step rule (`None` for one
            step, where all rules agree), the number of steps, and what distinguishes its rows.
    """

    name: str
    denoise: Callable
    sigma: str | None = None
    dtype: str | None = None
    fingerprint: str = ""
    kind: str | None = None
    model: str | None = None
    rule: str | None = None
    steps: int | None = None
    variant: str | None = None


NOISY_INPUT = Method("noisy input", lambda image: image)


class PeakMemory:
    """
    Measure the peak memory, in MB, of a `with` block beyond what was in use before it.

    `mb` is `None` where the system has no peak that a process may reset, as Linux has; `gpu_mb` without CUDA.
    """

    def __enter__(self):
        self.before = self.mb = self.gpu_mb = None
        try:
            reset = Path("/proc/self/clear_refs").open("w")  # see proc(5)
            # free memory that the allocator still holds would hide what is taken next
            ctypes.CDLL(None).malloc_trim(0)
            with reset:
                reset.write("5")
            self.before = peak_memory()
        except OSError:
            pass
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.gpu_before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_):
        if self.before is not None:
            self.mb = peak_memory() - self.before
        if torch.cuda.is_available():
            self.gpu_mb = (torch.cuda.max_memory_allocated() - self.gpu_before) / 1e6


def runner(noisy: np.ndarray, warm: set[Callable]) -> Callable[..., tuple[np.ndarray, dict]]:
    """
    Return a function that runs a denoiser, with the noise level if it needs one, on `noisy`, and measures its cost.

    The last results are cached, so that a search for the best noise level repeats none. Denoisers that are not in
    `warm` run once untimed and are added to it, since many compile or choose an algorithm the first time.
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
            raise ValueError(f"it returned an image of shape {result.shape} for one of {noisy.shape}")
        if not np.isfinite(result).all():
            raise ValueError("it returned NaN or infinity")
        cost = {"seconds": seconds, "memory_mb": memory.mb, "gpu_memory_mb": memory.gpu_mb}
        return np.clip(result, 0, 1), cost

    return run


def measure(
    method: Method,
    run: Callable[..., tuple[np.ndarray, dict]],
    noisy: np.ndarray,
    clean: np.ndarray | None,
    true_sigma: float | None,
    metrics: dict[str, Callable],
    device: torch.device,
) -> tuple[dict, np.ndarray]:
    """
    Return the figures of a method on one image, and its result, [H, W, C] float in [0, 1].

    `run` is what [`runner`] returned for the image. `metrics` are functions of the result and the clean image,
    [1, 3, H, W] on `device`, grey ones with three equal channels; the clean one is `None` where it is not known.
    """
    sigma, seconds = None, 0.0
    if method.sigma == "blind":
        start = time.perf_counter()
        sigma = blind_sigma(noisy)
        seconds = time.perf_counter() - start
    elif method.sigma == "true":
        sigma = true_sigma
    elif method.sigma == "best":
        sigma = best_sigma(lambda sigma: run(method.denoise, sigma)[0], noisy, clean)
    result, cost = run(method.denoise) if sigma is None else run(method.denoise, sigma)
    figures = {"megapixels": noisy.shape[0] * noisy.shape[1] / 1e6, "sigma": sigma} | cost
    figures["seconds"] += seconds
    images = [x if x is None else pixels_to_tensor(x).expand(3, -1, -1)[None].to(device) for x in (result, clean)]
    for name, metric in metrics.items():
        try:
            figures[name] = metric(*images).item()
        except Exception as error:  # of pyiqa's metrics, some need images of a certain size
            height, width = noisy.shape[:2]
            raise ValueError(f"{name} cannot measure an image of {width} x {height} pixels: {error}") from error
    return figures, result


class Results:
    """
    The figures of one test set, a line of JSON for each method and image, and some of the results as images.

    Every process appends to a file of its own. A line is valid for the same image, weights and machine only. `chosen`
    are the indices of the images to measure.
    """

    def __init__(self, folder: Path, images: ImageSet, chosen: list[int], machine: str, process_index: int = 0):
        self.folder, self.images, self.chosen = folder / slug(images.name), images, chosen
        self.machine, self.process_index = machine, process_index
        self.checksums = {}

    def load(self, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        noisy, clean = self.images.load(i)
        self.checksums[i] = zlib.crc32(b"".join(x.tobytes() for x in (noisy, clean) if x is not None))
        return noisy, clean

    def key(self, method: Method, i: int) -> str:
        """Return a key that changes with anything that the figures of image number i depend on."""
        if i not in self.checksums:
            self.load(i)
        return hashlib.sha256(f"{method.fingerprint} {self.machine} {self.checksums[i]}".encode()).hexdigest()[:16]

    def read(self, method: Method) -> dict[str, dict]:
        """Read the rows of a method by key; a failure counts only where there was never a success."""
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
        """Read the rows of the chosen images, in their order."""
        rows = self.read(method)
        keys = [self.key(method, i) for i in self.chosen]
        return [rows[key] for key in keys if key in rows]

    def append(self, method: Method, i: int, row: dict):
        row = {"picture": self.images.names[i], "key": self.key(method, i)} | row
        file = self.folder / "rows" / f"{slug(method.name)}.{self.process_index}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.write("\n" + json.dumps(row) + "\n")  # the first newline ends a line that was cut off

    def image_file(self, method: Method, i: int) -> Path:
        return self.folder / "pictures" / slug(method.name) / f"{self.images.names[i]}.{self.key(method, i)}.png"

    def write_image(self, method: Method, i: int, result: np.ndarray):
        file = self.image_file(method, i)
        file.parent.mkdir(parents=True, exist_ok=True)
        # DND has more than 8 bits
        dtype = np.uint16 if self.images.submission == "dnd" else np.uint8
        pyvips.Image.new_from_array(tensor_to_pixels(pixels_to_tensor(result), dtype)).write_to_file(str(file))

    def read_image(self, method: Method, i: int) -> np.ndarray:
        """Read a result as the test set has its images: [H, W, C], uint8, or float32 in [0, 1] for DND."""
        pixels = np.atleast_3d(pyvips.Image.new_from_file(str(self.image_file(method, i))).numpy())
        return pixels if pixels.dtype == np.uint8 else pixels / np.float32(65535)


def slug(name: str) -> str:
    """Turn any name into a file name."""
    return re.sub(r"[^\w.=-]+", "-", name).strip("-")

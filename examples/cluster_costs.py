#!/usr/bin/env python
"""Measure what a Ray cluster costs beside `gdd denoise`, and estimate how long many images take.

    python examples/cluster_costs.py measure  # two cores; about ten minutes
    python examples/cluster_costs.py simulate --report clean/__report__ --num_workers 1 8 64

`measure` counts the processor time of all processes, which other programs on the machine hardly change, and the time
by the clock, which they do. `simulate` draws service times from the report of a run of denoise_dataset.py, and lets
workers fail and some of them be slow.
"""

import argparse
import heapq
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from options import HelpFormatter
from PIL import Image

from gdd_diffusers.hub import markdown_table


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("measure", formatter_class=HelpFormatter).add_argument
    add("--model", default="gdd-fast", help="A name, a folder or a Hub repo.")
    add(
        "--num_images",
        type=int,
        default=2000,
        help="To denoise by every method, in a second run after one of a quarter.",
    )
    add("--side", type=int, default=64, help="Of these images, in pixels.")
    add("--threads", type=int, nargs="+", default=[1, 2], help="Several on an idle machine only: they wait actively.")
    add("--batch_size", type=int, default=8, help="Images that a worker takes at a time.")
    add = commands.add_parser("simulate", formatter_class=HelpFormatter).add_argument
    add("--report", help="Folder of reports whose service times are drawn.")
    add("--seconds", type=float, nargs="+", default=[], help="Service times to draw from instead.")
    add("--num_workers", type=int, nargs="+", default=[1, 8, 64], help="Workers, a table's row each.")
    add("--num_images", type=int, default=1_000_000, help="To denoise.")
    add("--megapixels", type=float, default=12, help="Of each image: the times in a report grow with it.")
    add("--batch_size", type=int, default=8, help="Images that are done again if their worker dies.")
    add("--hours_between_failures", type=float, default=24, help="Of a worker, on average.")
    add("--restart_seconds", type=float, default=30, help="Until another worker takes its place.")
    add("--slow_share", type=float, default=0.05, help="Share of the workers that take twice as long.")
    args = parser.parse_args()
    if args.command == "simulate" and not (args.report or args.seconds):
        parser.error("simulate needs --report or --seconds.")
    return args


# Measuring


class Watch:
    """Run a command, and add up the processor time of all processes below this one meanwhile."""

    def __init__(self, command: list[str], **environment: str):
        self.cpu_seconds, self.memory, self.earlier = {}, {}, set()
        self.look()
        self.earlier = set(self.memory)  # workers of the run before that have not ended yet
        before, start = self.look(), time.monotonic()
        process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            after = self.look()
            time.sleep(0.2)
        self.seconds = time.monotonic() - start
        if process.returncode:
            raise OSError(f"{' '.join(command)} failed.")
        self.seconds_of_workers, self.seconds_of_rest = (b - a for a, b in zip(before, after, strict=True))

    def look(self) -> tuple[float, float]:
        """Return the processor time of workers that denoise, and of the rest. Note the memory of these workers."""
        for process in psutil.Process().children(recursive=True):
            try:
                times, key = process.cpu_times(), (process.pid, process.create_time())
                is_worker = "Denoiser" in " ".join(process.cmdline()) and key not in self.earlier
                self.cpu_seconds[key] = (is_worker, times.user + times.system)
                if is_worker:
                    self.memory.setdefault(key, []).append(process.memory_info().rss / 1e6)
            except psutil.Error:
                pass  # it has just ended
        parts = {True: 0.0, False: 0.0}
        for is_worker, seconds in self.cpu_seconds.values():
            parts[is_worker] += seconds
        return parts[True], parts[False]


def make_images(folder: Path, count: int, side: int) -> Path:
    """Make JPEGs of waves with noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    waves = 128 + 60 * np.sin(np.arange(side) / 40)[:, None, None] * np.ones((1, side, 3))
    for i in range(count):
        noisy = waves + rng.normal(0, 15, waves.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=95)
    return folder


def measure(args):
    """Print the time of an image, without that of the start, and the memory of workers."""
    gdd = [Path(sys.executable).with_name("gdd"), "denoise", "--quiet", "--model", args.model]
    cluster = [sys.executable, Path(__file__).with_name("denoise_dataset.py"), "--model", args.model]
    methods = {}
    for threads in args.threads:
        methods[f"`gdd denoise`, threads: {threads}"] = (threads, [*gdd, "{source}", "--output", "{target}"])
        options = ["--input", "{source}", "--output", "{target}", "--num_cpus", f"{threads}"]
        options += ["--batch_size", f"{args.batch_size}"]
        methods[f"workers of a cluster, threads of each: {threads}"] = (threads, [*cluster, *options])
    ray = ray_on_two_cores()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        few, many = (
            make_images(Path(name, f"{count}"), count, args.side) for count in (args.num_images // 4, args.num_images)
        )
        for method, (threads, command) in methods.items():
            watches = []
            for source in (few, many):
                places = {"source": source, "target": Path(name, f"{method} {source.name}")}
                command_of_source = [str(word).format(**places) for word in command]
                watches.append(Watch(command_of_source, RAY_ADDRESS=ray, OMP_NUM_THREADS=f"{threads}"))
            seconds = np.array([[w.seconds, w.seconds_of_workers, w.seconds_of_rest] for w in watches])
            each = 1000 * (seconds[1] - seconds[0]) / (args.num_images - args.num_images // 4)
            memory = max(watches[1].memory.values(), key=len) if command[0] == cluster[0] else []
            quarters = [f"{max(part):.0f}" for part in np.array_split(memory, 4)] if memory else ["-"] * 4
            rows.append([method, *(f"{part:.1f}" for part in each), *quarters])
    header = ["", "ms an image", "processor time of workers", "of the rest"]
    header += [f"MB in quarter {i}" for i in range(1, 5)]
    print(markdown_table(header, rows))


def ray_on_two_cores() -> str:
    """Start a cluster below this process, and return its address."""
    import ray

    options = {"object_store_memory": 200_000_000, "include_dashboard": False, "log_to_driver": False}
    return ray.init("local", num_cpus=2, **options).address_info["gcs_address"]


# Simulating


def simulate(args):
    """Print for each number of workers how long all images take."""
    seconds = np.array(args.seconds)
    if args.report:
        report = pq.read_table(args.report, columns=["megapixels", "seconds"]).to_pandas().dropna()
        seconds = (args.megapixels * report["seconds"] / report["megapixels"]).to_numpy()
    print(f"{seconds.mean():.2f} s an image on average, of {len(seconds)} measured ones\n")
    rows = []
    for num_workers in args.num_workers:
        hours, num_failures = simulate_run(seconds, num_workers, args)
        ideal = seconds.mean() * args.num_images / num_workers / 3600
        rate = args.num_images / hours
        rows.append([f"{num_workers}", f"{hours:,.1f}", f"{rate:,.0f}", f"{ideal / hours:.1%}", f"{num_failures}"])
    header = ["workers", "hours", "images an hour", "of the sum of the workers", "failures"]
    print(markdown_table(header, rows))


def simulate_run(seconds: np.ndarray, num_workers: int, args) -> tuple[float, int]:
    """Give each batch to the worker that is free first; return hours, and how often a worker failed."""
    rng = np.random.default_rng(0)
    pace = np.where(np.arange(num_workers) < round(args.slow_share * num_workers), 2, 1)
    free = [(0.0, worker) for worker in range(num_workers)]
    mean_life = 3600 * args.hours_between_failures
    dies = rng.exponential(mean_life, num_workers)
    num_failures = 0
    for _ in range(-(-args.num_images // args.batch_size)):
        work = rng.choice(seconds, args.batch_size).sum()
        now, worker = heapq.heappop(free)
        while now + work * pace[worker] > dies[worker]:  # done again by the worker that takes its place
            now = dies[worker] + args.restart_seconds
            dies[worker] = now + rng.exponential(mean_life)
            num_failures += 1
        heapq.heappush(free, (now + work * pace[worker], worker))
    return max(free)[0] / 3600, num_failures


if __name__ == "__main__":
    args = parse_args()
    try:
        {"measure": measure, "simulate": simulate}[args.command](args)
    except OSError as error:
        sys.exit(f"error: {error}")

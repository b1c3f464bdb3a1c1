#!/usr/bin/env python
"""Denoise a folder, a bucket or a data set on every machine of a Ray cluster, or on this one if there is none.

    python examples/denoise_dataset.py --input photos --output clean
    python examples/denoise_dataset.py --input s3://bucket/noisy --output s3://bucket/clean --num_gpus 0.5
    python examples/denoise_dataset.py --input hf://datasets/org/name --output clean --column image

Image files become the files that `gdd denoise` makes. Parquet files keep their columns and get one more. A result has
its name once it is whole, and the same command again makes those that are missing. docs/clusters.md says more.
"""

import argparse
import logging
import os
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from options import HelpFormatter
from tqdm import tqdm


try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    sys.exit(f"error: {error}; install the extra: pip install 'gdd-diffusers[ray]'")

from gdd_diffusers.app.batch import FileOptions, run
from gdd_diffusers.app.denoising import configure, first_line, load_model
from gdd_diffusers.app.planning import Batch
from gdd_diffusers.app.storage import FileJob, RowGroup, Storage, missing_images, missing_row_groups
from gdd_diffusers.data.decoding import image_size
from gdd_diffusers.files import output_suffix, printable


ROWS_PER_REPORT = 1000
REPORT = pa.schema(
    [(name, pa.string()) for name in ("name", "error", "notes", "worker")]
    + [(name, pa.float64()) for name in ("megapixels", "seconds")]
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--input", required=True, help="Folder or URL of images or of Parquet files; folders within it count, too.")
    add("--output", required=True, help="Folder or URL for the results, and for a report in __report__.")
    add("--column", default="image", help="Column of images in Parquet files; results go into COLUMN_denoised.")
    add("--model", help="gdd-small, gdd-fast, a folder, or ORG/NAME[@REVISION] on the Hub; gdd-small if not given.")
    add("--steps", type=int, help="Denoising steps; the model's own if not given.")
    add("--strength", type=float, default=1.0, help="0 leaves an image as it is, 1 removes all noise.")
    add(
        "--num_gpus",
        type=float,
        default=0,
        help="Per worker, which computes on the CPU with 0; with 0.5, two share one.",
    )
    add("--num_cpus", type=int, default=1, help="Per worker, which computes with as many threads.")
    add("--batch_size", type=int, default=8, help="Images that a worker takes at a time; give more if they are small.")
    add("--max_tries", type=int, default=3, help="Workers that may die with an image in hand before it is left out.")
    args = parser.parse_args()
    if min(args.num_cpus, args.batch_size, args.max_tries) < 1 or args.num_gpus < 0 or not 0 <= args.strength <= 1:
        parser.error("--num_cpus, --batch_size and --max_tries start at 1, --num_gpus at 0; --strength is in [0, 1].")
    return args


@ray.remote(num_cpus=0)
class Tries:
    """Count how often workers have begun with the images that they have in hand."""

    def __init__(self):
        self.counts = Counter()

    def begin(self, names: list[str]) -> list[int]:
        """Return the counts so far. Several images at once are counted only if all are new."""
        earlier = [self.counts[name] for name in names]
        if len(names) == 1 or not any(earlier):
            self.counts.update(names)
        return earlier

    def end(self, names: list[str]):
        for name in names:
            del self.counts[name]


class Denoiser:
    """A worker, which loads the model once."""

    def __init__(self, args, source: Storage, target: Storage, tries):
        torch.set_num_threads(args.num_cpus)
        self.args, self.source, self.target, self.tries = args, source, target, tries
        self.pipe = load_model(args.model, "cuda" if args.num_gpus else "cpu")
        configure(self.pipe, args.steps)
        self.worker = f"{socket.gethostname()}, process {os.getpid()}"

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.denoise_files(table) if "names" in table.column_names else self.denoise_row_groups(table)

    def denoise_files(self, table: pa.Table) -> pa.Table:
        """Denoise image files; a row of the table has the names of one and of the XMP files beside it."""
        rows_of_names = [list(map(os.fsdecode, names)) for names in table["names"].to_pylist()]
        jobs = [FileJob(names, self.source, self.target) for names in rows_of_names]
        return pa.Table.from_pylist(self.denoise(jobs), REPORT)

    def denoise_row_groups(self, table: pa.Table) -> pa.Table:
        """Denoise the images of Parquet files; a row of the table is one row group."""
        rows = []
        for row in table.to_pylist():
            group, rows_of_group = RowGroup(os.fsdecode(row["name"]), row["index"]), []
            try:
                if self.target.exists(group.result):  # the worker before this one died when it was done
                    continue
                images = group.read(self.source)
                jobs = group.jobs(images, self.args.column)
                for start in range(0, len(jobs), self.args.batch_size):
                    rows_of_group += self.denoise(jobs[start : start + self.args.batch_size])
                group.store(images, self.args.column, jobs, self.target)
                rows += rows_of_group
            except Exception as error:  # of any kind: the other row groups can still be denoised
                rows.append(self.row(f"{group.name}#{group.index}", first_line(error)))
        return pa.Table.from_pylist(rows, REPORT)

    def row(self, name: str, error: str | None = None) -> dict:
        """Return a row of the report."""
        return {"name": printable(name), "error": error, "worker": self.worker}

    def denoise(self, jobs: list) -> list[dict]:
        """Denoise images, and return a row of the report for each."""
        names = [printable(job.name) for job in jobs]
        earlier = ray.get(self.tries.begin.remote(names))
        if len(jobs) > 1 and any(earlier):
            # a worker died with these in hand: one at a time, so that only the culprit is counted
            return [row for job in jobs for row in self.denoise([job])]
        if earlier[0] >= self.args.max_tries:
            rows = [self.row(jobs[0].name, f"{earlier[0]} workers died with this image in hand.")]
        else:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    rows = self.denoise_in(Path(folder), jobs, is_retry=any(earlier))
            except OSError as error:  # the disk for temporary files is full
                rows = [self.row(job.name, first_line(error)) for job in jobs]
        self.tries.end.remote(names)
        return rows

    def denoise_in(self, folder: Path, jobs: list, is_retry: bool) -> list[dict]:
        """Fetch images into a folder, denoise them as `gdd denoise` does, and store the results."""
        start = time.monotonic()
        rows, batch, job_of = {job.name: self.row(job.name) for job in jobs}, Batch(), {}
        for i, job in enumerate(jobs):
            try:
                if is_retry and job.is_done():
                    continue
                path = job.fetch(folder / f"{i}")
                batch.jobs[path] = folder / f"{i}-denoised" / f"{path.stem}{output_suffix(path)}"
                job_of[path] = job
            except Exception as error:  # of any kind: the other images can still be denoised
                rows[job.name]["error"] = first_line(error)
        if batch.jobs:
            # images of equal size become neighbours, which are denoised together
            sizes = {path: image_size({"path": path, "bytes": None}) or (0, 0) for path in batch.jobs}
            batch.jobs = {path: batch.jobs[path] for path in sorted(sizes, key=sizes.__getitem__)}
            options = {"num_inference_steps": self.args.steps, "strength": self.args.strength}
            run(batch, self.pipe, quiet=True, files=FileOptions(), **options)
        if batch.interrupted:
            raise KeyboardInterrupt
        if any("CUDA error" in reason for reason in batch.failed.values()):
            os._exit(1)  # a GPU that has failed fails with every image from then on; Ray starts a new process
        for path in batch.done:
            row = rows[job_of[path].name]
            try:
                job_of[path].store(batch.jobs[path])
            except Exception as error:
                row["error"] = first_line(error)
            row["notes"] = "; ".join(note for note, paths in batch.remarks.items() if path in paths)
            row["megapixels"] = batch.megapixels[path]
        for path, reason in batch.failed.items():
            rows[job_of[path].name]["error"] = re.sub(rf"{re.escape(str(folder))}/[^/]*/", "", reason)
        seconds = time.monotonic() - start
        for path, megapixels in batch.megapixels.items():
            rows[job_of[path].name]["seconds"] = seconds * megapixels / sum(batch.megapixels.values())
        return list(rows.values())


class Report:
    """What happened to each image: a table, stored in parts as the run goes on, and sums."""

    def __init__(self, target: Storage, total: int):
        self.target, self.start = target, time.time()
        self.rows, self.num_parts, self.counts = [], 0, Counter()
        self.megapixels, self.seconds = Counter(), Counter()  # by worker
        try:
            self.store()  # without rows, to see at once whether results can be stored there
        except Exception as error:  # of many classes: each kind of storage has its own
            raise OSError(f"{printable(target.url)} cannot be written: {first_line(error)}") from error
        self.bar = tqdm(total=total, unit=" images", disable=None)

    def add(self, rows: list[dict]):
        for row in rows:
            self.counts["failed" if row["error"] else "done"] += 1
            self.megapixels[row["worker"]] += row["megapixels"] or 0
            self.seconds[row["worker"]] += row["seconds"] or 0
        self.bar.update(len(rows))
        self.rows += rows
        if len(self.rows) >= ROWS_PER_REPORT:
            self.store()

    def store(self):
        name = f"__report__/{time.strftime('%Y%m%d-%H%M%S', time.gmtime(self.start))}-{self.num_parts:05d}.parquet"
        with tempfile.TemporaryDirectory() as folder:
            pq.write_table(pa.Table.from_pylist(self.rows, REPORT), f"{folder}/part.parquet")
            self.target.store(Path(folder, "part.parquet"), name)
        self.rows, self.num_parts = [], self.num_parts + 1

    def close(self):
        self.bar.close()
        if self.rows:
            self.store()
        seconds = time.time() - self.start
        print(f"{self.counts['done']} denoised, {self.counts['failed']} failed in {seconds:.0f} s")
        for worker in sorted(worker for worker in self.seconds if self.seconds[worker]):
            print(f"{self.megapixels[worker] / self.seconds[worker]:8.3f} Mpx/s  {worker}")
        print(f"{sum(self.megapixels.values()) / seconds:8.3f} Mpx/s  in all, with the start of the workers")
        if self.counts["failed"]:
            print(f"{self.target.path('__report__')} says why; the same command tries image files again.")


def list_jobs(source: Storage, target: Storage, column: str) -> tuple[list[dict], int]:
    """Return the jobs that are not done, as rows of a table, and the number of their images."""
    groups, num_rows = missing_row_groups(source, target, column)
    if groups is not None:
        return [{"name": os.fsencode(group.name), "index": group.index} for group in groups], num_rows
    images = missing_images(source, target)
    return [{"names": list(map(os.fsencode, names))} for names in images], len(images)


def main(args):
    source, target = Storage(args.input), Storage(args.output)
    jobs, total = list_jobs(source, target, args.column)
    if not jobs:
        print(f"Nothing to do: {args.output} holds all results.")
        return
    if args.model and os.path.isdir(args.model):
        args.model = os.path.abspath(args.model)  # workers have other folders to start from
    configure(load_model(args.model, "cpu"), args.steps)  # what is wrong here would be wrong in every worker
    report = Report(target, total)
    ray.init(log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    sizes = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in ray.nodes()]
    if not any(cpus >= args.num_cpus and gpus >= args.num_gpus for cpus, gpus in sizes):
        print(f"No machine has {args.num_cpus} cores and {args.num_gpus:g} GPUs. Waiting for one.", file=sys.stderr)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tries = Tries.options(scheduling_strategy=here).remote()
    rows_per_block = 1 if "index" in jobs[0] else args.batch_size
    dataset = ray.data.from_arrow(pa.Table.from_pylist(jobs), override_num_blocks=-(-len(jobs) // rows_per_block))
    dataset = dataset.map_batches(
        Denoiser,
        fn_constructor_args=(args, source, target, tries),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=args.num_cpus,
        num_gpus=args.num_gpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_tasks_in_flight_per_actor=2),
    )
    logging.getLogger("ray.data").setLevel("CRITICAL")  # errors are raised; it has just set another level
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            report.add(table.to_pylist())
    finally:
        report.close()


if __name__ == "__main__":
    try:
        main(parse_args())
    # errors that a user can cause are one sentence
    except ray.exceptions.RayError as error:
        sys.exit(f"error: {str(error).strip().splitlines()[-1]}")  # below the traceback of a worker
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {first_line(error)}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with the rest.")

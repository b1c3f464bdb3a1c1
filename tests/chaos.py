"""
Denoise images on a cluster of three nodes on this machine, and kill its workers and nodes as they work.

    python tests/chaos.py --num_images 300 --num_broken 10 --num_kills 10
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from gdd_diffusers.files import printable


EXAMPLE = Path(__file__).parents[1] / "examples" / "denoise_dataset.py"
FORMATS = ["png", "jpg", "tif", "webp"]
POISON = "poison.png"
# Kills whoever opens it, as Linux does with a process that takes more memory than there is.
KILL_WHO_OPENS_IT = f"""
import os, signal, sys

def kill(event, args):
    if event == "open" and str(args[0]).endswith("{POISON}"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""


def make_images(folder: Path, num_images: int, num_broken: int, sides: tuple[int, int]):
    """Make images of mixed sizes and formats, of which some are broken, and one kills its workers."""
    rng = np.random.default_rng(0)
    for i in range(num_images - 1):
        path = folder / f"{i % 3}" / f"{i:03d}.{FORMATS[i % len(FORMATS)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*rng.integers(*sides, 2), 3), dtype=np.uint8)).save(path)
        if i < num_broken:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / POISON).write_bytes(path.read_bytes())


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def gdd_denoise(source: Path, target: Path, model: str):
    """Denoise a folder as a user without a cluster does."""
    gdd = Path(sys.executable).with_name("gdd")
    subprocess.run([gdd, "denoise", source, "-o", target, "--recursive", "--model", model, "--device", "cpu"])


@contextmanager
def cluster_of_three(folder: Path, **environment: str):
    """Run a head and two nodes of one core each, in processes that `POISON` kills."""
    (folder / "sitecustomize.py").write_text(KILL_WHO_OPENS_IT)
    before = os.environ.copy()
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"} | environment
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = patiently(Cluster, initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            add_node(cluster)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ |= before


def add_node(cluster):
    return patiently(cluster.add_node, num_cpus=1, object_store_memory=80_000_000)


def patiently(start, **options):
    """Start a part of a cluster again if the machine is so busy that it is not there in half a minute."""
    for _ in range(3):
        try:
            return start(**options)
        except Exception as error:
            if "timed out" not in str(error):
                raise
            failure = error
    raise failure


def start(*options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, EXAMPLE, *map(str, options)], stdout=subprocess.PIPE, text=True)


def workers() -> list[psutil.Process]:
    """List the processes that denoise."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "Denoiser" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass  # it has just ended
    return found


def kill_while_running(driver: subprocess.Popen, cluster, target: Path, kinds: list[str], every: int = 1):
    """Kill a worker or a node, as `kinds` says, whenever there are so many more results, until the driver ends."""
    rng, start, killed = random.Random(0), time.monotonic(), 0
    while driver.poll() is None:
        time.sleep(0.2)
        num_results = sum(path.is_file() and path.parent.name != "__report__" for path in target.rglob("*"))
        if killed < len(kinds) and num_results >= (killed + 1) * every and (found := workers()):
            if kinds[killed] == "node":
                cluster.remove_node(rng.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
                add_node(cluster)
            else:
                rng.choice(found).kill()
            print(f"{time.monotonic() - start:4.0f} s, {num_results} results: killed a {kinds[killed]}", flush=True)
            killed += 1
    assert killed == len(kinds), f"the run was over after {killed} kills"


def check(source: Path, target: Path, expected: Path, num_broken: int):
    """Compare the results with those of `gdd denoise`, and the report with what is wrong with the images."""
    report = pq.read_table(target / "__report__").to_pylist()
    results = {name: data for name, data in files_in(target).items() if not name.startswith("__report__")}
    assert results == files_in(expected)
    failed = {row["name"]: row["error"] for row in report if row["error"]}
    assert failed.pop(POISON) == "3 workers died with this image in hand."
    assert len(failed) == num_broken and all("damaged" in reason for reason in failed.values())
    assert sorted(row["name"] for row in report) == sorted(map(printable, files_in(source)))
    print(f"{len(results)} results, each that of gdd denoise; {1 + len(failed)} reported; no other file")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=300)
    parser.add_argument("--num_broken", type=int, default=10)
    parser.add_argument("--num_kills", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target, expected = (Path(folder, name) for name in ("in", "out", "expected"))
        make_images(source, args.num_images, args.num_broken, sides=(60, 600))
        with cluster_of_three(Path(folder)) as cluster:
            driver = start("--input", source, "--output", target, "--model", "gdd-fast")
            kinds = [["worker", "worker", "node"][i % 3] for i in range(args.num_kills)]
            kill_while_running(driver, cluster, target, kinds, every=args.num_images // (args.num_kills + 1))
            print(driver.stdout.read())
        (source / POISON).rename(Path(folder, POISON))
        gdd_denoise(source, expected, "gdd-fast")
        Path(folder, POISON).rename(source / POISON)
        check(source, target, expected, args.num_broken)

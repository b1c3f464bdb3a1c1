"""Denoise images on a cluster of three nodes on this machine, whose workers and nodes are killed as they work.

python tests/chaos.py --num_images 300 --num_kills 10
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from ray.cluster_utils import Cluster


EXAMPLE = Path(__file__).parents[1] / "examples" / "denoise_dataset.py"
POISON = "poison.png"  # whoever opens it is killed, as if it needed more memory than there is
KILL_WHO_OPENS_IT = f"""
import os, signal, sys

def kill(event, args):
    if event == "open" and str(args[0]).endswith("{POISON}"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""


def make_images(folder: Path, num_images: int, num_broken: int, largest: int):
    """Make images of mixed sizes and formats, of which some are broken and one kills its worker."""
    rng = np.random.default_rng(0)
    for i in range(num_images - 1):
        suffix = ["png", "jpg", "tif", "webp"][i % 4]
        path = folder / f"{i % 3}" / f"{i:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(16, largest, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        if i < num_broken:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / POISON).write_bytes(path.read_bytes())


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment of processes that `POISON` kills."""
    (folder / "python").mkdir(exist_ok=True)
    (folder / "python" / "sitecustomize.py").write_text(KILL_WHO_OPENS_IT)
    path = [str(folder / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"} | variables


def workers() -> list[psutil.Process]:
    """List the processes of this cluster that denoise."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "Denoiser" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def kill_at_random(cluster: Cluster, rng: random.Random) -> str:
    """Kill a worker or, one time in three, a node, which another replaces."""
    if rng.random() < 1 / 3:
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        return "a node"
    found = workers()
    if found:
        rng.choice(found).kill()
    return "a worker" if found else "nobody"


def run(folder: Path, num_kills: int, options: list[str], seed: int = 0):
    """Denoise `in` to `out`, and kill so many workers and nodes while results appear."""
    os.environ |= environment(folder)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False},
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        command = [sys.executable, EXAMPLE, "--input", folder / "in", "--output", folder / "out", *options]
        driver = subprocess.Popen(
            command, env=os.environ | {"RAY_ADDRESS": cluster.address}, stdout=subprocess.PIPE, text=True
        )
        rng, killed, start = random.Random(seed), [], time.monotonic()
        num_images = sum(path.is_file() for path in (folder / "in").rglob("*"))
        while driver.poll() is None:
            time.sleep(0.2)
            num_results = sum(path.is_file() for path in (folder / "out").rglob("*"))
            if num_results > len(killed) * num_images / (num_kills + 1) and len(killed) < num_kills and workers():
                killed.append(kill_at_random(cluster, rng))
                print(f"{time.monotonic() - start:5.0f} s, {num_results} results: killed {killed[-1]}", flush=True)
        return driver.returncode, driver.stdout.read(), killed
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_images", type=int, default=300)
    parser.add_argument("--num_broken", type=int, default=10)
    parser.add_argument("--num_kills", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder, "in"), args.num_images, args.num_broken, largest=500)
        code, said, killed = run(Path(folder), args.num_kills, ["--model", "gdd-fast", "--batch_size", "4"])
        print(said, code)
        print(len([p for p in Path(folder, "out").rglob("*") if p.is_file()]))
        import pyarrow.parquet as pq

        t = pq.read_table(f"{folder}/out/__report__")
        print(t.num_rows, [r for r in t.to_pylist() if r["error"]])
        print([p for p in Path(folder, "out").rglob(".*")])

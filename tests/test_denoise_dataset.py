"""examples/denoise_dataset.py on a cluster of three nodes on this machine, with a Hub and a bucket beside it."""

import os
import runpy
import shutil
import sys
import time

import datasets
import pytest
from chaos import (
    EXAMPLE,
    POISON,
    check,
    cluster_of_three,
    files_in,
    gdd_denoise,
    kill_while_running,
    make_images,
    start,
)
from conftest import make_pipeline, save_image
from hub_server import TOKEN, Hub, Repo


s3fs = pytest.importorskip("s3fs")
pytest.importorskip("ray")
moto_server = pytest.importorskip("moto.server")
NUM_IMAGES, NUM_BROKEN, INTACT = 26, 2, "1/004.png"


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, images, and what `gdd denoise` makes of them."""
    folder = tmp_path_factory.mktemp("cluster")
    make_pipeline(tile_size=64, tile_overlap=16).save_pretrained(folder / "model")
    make_images(folder / "in", NUM_IMAGES, NUM_BROKEN, sides=(20, 200))
    (folder / "in" / POISON).rename(folder / POISON)
    gdd_denoise(folder / "in", folder / "expected", str(folder / "model"))
    return folder


@pytest.fixture(scope="module")
def cluster(folder, hub):
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
    with cluster_of_three(folder, HF_HUB_DISABLE_XET="1", **environment) as cluster:
        yield cluster
    server.stop()


def finish(driver) -> str:
    said = driver.communicate(timeout=900)[0]
    assert driver.returncode == 0, said
    return said


@pytest.mark.slow
def test_whatever_is_killed_each_image_has_one_result_or_a_reason(cluster, folder, tmp_path):
    (folder / POISON).rename(folder / "in" / POISON)
    odd = os.fsdecode(b"no UTF-8 \xff #?%20*.png")
    for place in ("in", "expected"):
        shutil.copy(folder / place / INTACT, folder / place / odd)
    driver = start("--input", folder / "in", "--output", tmp_path / "out", "--model", folder / "model")
    kill_while_running(driver, cluster, tmp_path / "out", ["worker", "node"])
    said = finish(driver)
    check(folder / "in", tmp_path / "out", folder / "expected", NUM_BROKEN)
    assert f"{NUM_IMAGES - NUM_BROKEN} denoised, {NUM_BROKEN + 1} failed" in said
    (folder / "in" / POISON).rename(folder / POISON)
    for place in ("in", "expected"):
        (folder / place / odd).unlink()


def results_in(bucket) -> dict[str, dict]:
    bucket.invalidate_cache()
    found = bucket.find("photos/clean", detail=True)
    return {path: about for path, about in found.items() if about["type"] == "file" and "__report__" not in path}


@pytest.mark.slow
def test_a_bucket_is_denoised_once_though_the_driver_is_killed(cluster, folder):
    bucket = s3fs.S3FileSystem()
    bucket.mkdir("photos")
    bucket.put(f"{folder}/in/", "photos/noisy/", recursive=True)
    options = ["--input", "s3://photos/noisy", "--output", "s3://photos/clean", "--model", folder / "model"]
    driver = start(*options, "--batch_size", 1)
    while driver.poll() is None and not (first := results_in(bucket)):
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    said = finish(start(*options))
    results = results_in(bucket)
    assert 0 < len(first) < NUM_IMAGES - NUM_BROKEN - 1
    assert all(results[path]["LastModified"] == first[path]["LastModified"] for path in first)
    contents = {path.removeprefix("photos/clean/"): bucket.cat(path) for path in results}
    assert contents == files_in(folder / "expected")
    assert "Nothing to do" not in said


@pytest.mark.slow
def test_a_dataset_comes_from_the_hub_and_returns_with_one_more_column(cluster, folder, hub, tmp_path):
    names = sorted(files_in(folder / "expected"))
    cells = [{"bytes": (folder / "in" / name).read_bytes(), "path": name} for name in names]
    cells.append({"bytes": b"nothing that could be an image", "path": "broken.png"})
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    noisy = datasets.Dataset.from_dict({"photo": cells, "label": list(range(len(cells)))}, features=features)
    noisy.to_parquet(tmp_path / "noisy.parquet", batch_size=5)
    noisy.select([0]).to_parquet(tmp_path / "damaged.parquet")
    whole, damaged = ((tmp_path / f"{name}.parquet").read_bytes() for name in ("noisy", "damaged"))
    damaged = damaged[:4] + bytes(100) + damaged[104:]  # its schema is in the end
    for name, files in {
        "noisy": {"data/train.parquet": whole, "data/damaged.parquet": damaged},
        "clean": {},
    }.items():
        hub.repos[f"org/{name}"] = Repo()
        hub.repos[f"org/{name}"].commit(files)

    options = ["--input", "hf://datasets/org/noisy", "--output", "hf://datasets/org/clean", "--column", "photo"]
    said = finish(start(*options, "--model", folder / "model"))
    repo = hub.repos["org/clean"]
    for name, data in repo.commits[repo.sha].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    clean = datasets.load_dataset("parquet", data_dir=str(tmp_path / "data"), split="train", cache_dir=str(tmp_path))
    assert clean.column_names == ["photo", "label", "photo_denoised"] and clean[0]["photo_denoised"].size
    raw = clean.cast_column("photo_denoised", datasets.Image(decode=False)).sort("label")["photo_denoised"]
    assert raw[len(names)] is None
    for name, cell in zip(names, raw, strict=False):
        assert cell["bytes"] == (folder / "expected" / name).read_bytes()
    assert f"{len(names)} denoised, 2 failed" in said


@pytest.mark.parametrize(
    "options, said",
    [
        (["--input", "missing"], "missing does not exist, or holds no image"),
        (["--input", ".", "--output", "."], "the results need another place"),
        (["--input", ".", "--model", "missing"], "there is no folder missing"),
        (["--input", ".", "--steps", "2000"], "steps must be at most 1000"),
        (["--input", "nothing://photos"], "Protocol not known: nothing"),
        (["--input", ".", "--output", "/dev/null/out"], "/dev/null/out cannot be written"),
    ],
)
def test_what_is_wrong_is_one_sentence(options, said, tmp_path, monkeypatch):
    save_image(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--output", "out", *options])
    with pytest.raises(SystemExit, match=f"^error: .*{said}"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    with pytest.raises(SystemExit, match=r"ray.*pip install 'gdd-diffusers\[ray\]'"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")

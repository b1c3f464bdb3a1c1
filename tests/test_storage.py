import io
import logging
import os
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import save_image
from PIL import Image

from gdd_diffusers.app.storage import CellJob, FileJob, RowGroup, Storage, missing_images, missing_row_groups


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"content")


def places(folder):
    return Storage(str(folder / "in")), Storage(str(folder / "out"))


# Image files


def test_images_without_a_result_are_listed_with_their_sidecars(tmp_path):
    touch(
        tmp_path / "in",
        "a.jpg",
        "a.xmp",
        "sub/b.png",
        "sub/b.png.xmp",
        "c.tif",
        ".hidden.png",
        "sub/.h/d.png",
        "e.txt",
    )
    touch(tmp_path / "out", "c.tif", "__report__/1.parquet")
    assert missing_images(*places(tmp_path)) == [["a.jpg", "a.xmp"], ["sub/b.png", "sub/b.png.xmp"]]


def test_heic_and_raw_files_are_done_under_the_names_of_their_results(tmp_path):
    touch(tmp_path / "in", "a.heic", "b.heic", "c.HEIC", "d.tif")
    touch(tmp_path / "out", "a.jpg", "b.png")
    assert missing_images(*places(tmp_path)) == [["c.HEIC"], ["d.tif"]]


def test_two_images_with_one_result_are_an_error(tmp_path):
    touch(tmp_path / "in", "a.heic", "a.jpg")
    with pytest.raises(ValueError, match="a.heic and a.jpg would both become a.jpg"):
        missing_images(*places(tmp_path))


def test_results_among_the_images_are_left_out(tmp_path):
    touch(tmp_path, "a.jpg", "out/b.jpg", "outside.jpg")
    names = missing_images(Storage(str(tmp_path)), Storage(str(tmp_path / "out")))
    assert names == [["a.jpg"], ["outside.jpg"]]


def test_results_need_another_place_than_the_images(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match="the results need another place than"):
        missing_images(Storage(str(tmp_path)), Storage(f"{tmp_path}/../{tmp_path.name}/"))


def test_a_place_without_images_is_an_error(tmp_path):
    touch(tmp_path / "in", "a.txt")
    with pytest.raises(FileNotFoundError, match="in does not exist, or holds no image and no Parquet file"):
        missing_images(*places(tmp_path))


def test_a_file_is_no_place(tmp_path):
    touch(tmp_path, "in/b.jpg", "a.jpg")
    with pytest.raises(ValueError, match="a.jpg is a file; give the folder that it is in"):
        missing_images(Storage(str(tmp_path / "a.jpg")), Storage(str(tmp_path / "out")))
    with pytest.raises(ValueError, match="a.jpg is a file"):
        missing_images(Storage(str(tmp_path / "in")), Storage(str(tmp_path / "a.jpg")))


def test_a_folder_that_appears_while_it_is_listed_is_no_file(monkeypatch):
    place = Storage("memory://photos/clean")
    monkeypatch.setattr(place.fs, "find", lambda root, detail: {root: {"name": root, "type": "directory"}})
    assert place.names == []


def test_a_place_that_cannot_be_listed_is_named(monkeypatch, tmp_path):
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match="s3://photos/noisy cannot be listed: Unable to locate credentials"):
        Storage("s3://photos/noisy").names  # noqa: B018
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_image_that_has_gone_is_named(tmp_path):
    touch(tmp_path / "in", "a.jpg")
    with pytest.raises(FileNotFoundError, match="^sub/b.jpg does not exist.$"):
        FileJob(["sub/b.jpg"], *places(tmp_path)).fetch(tmp_path / "copy")


def test_a_relative_place_stays_the_same_in_another_process(tmp_path, monkeypatch):
    touch(tmp_path / "in", "a.jpg")
    monkeypatch.chdir(tmp_path)
    place = pickle.dumps(Storage("in"))
    monkeypatch.chdir("/")
    assert pickle.loads(place).names == ["a.jpg"]


def test_an_image_is_stored_after_its_sidecars(tmp_path, monkeypatch):
    touch(tmp_path / "in", "sub/a.heic", "sub/a.xmp")
    touch(tmp_path, "result/a.jpg", "result/a.xmp")
    job = FileJob(["sub/a.heic", "sub/a.xmp"], *places(tmp_path))
    assert job.fetch(tmp_path / "copy") == tmp_path / "copy" / "a.heic"
    assert sorted(os.listdir(tmp_path / "copy")) == ["a.heic", "a.xmp"]
    stored = []
    monkeypatch.setattr(os, "replace", lambda part, path: stored.append(path.name))
    job.store(tmp_path / "result" / "a.jpg")
    assert stored == ["a.xmp", "a.jpg"] and not job.is_done()
    monkeypatch.undo()
    job.store(tmp_path / "result" / "a.jpg")
    assert job.is_done() and sorted(os.listdir(tmp_path / "out" / "sub")) == ["a.jpg", "a.xmp"]


def test_what_stops_the_storing_leaves_no_file(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg")
    monkeypatch.setattr(os, "fsync", lambda file: os.stat(tmp_path / "no disk"))
    with pytest.raises(OSError):
        Storage(str(tmp_path / "out")).store(tmp_path / "a.jpg", "sub/a.jpg")
    assert os.listdir(tmp_path / "out" / "sub") == []


@pytest.fixture
def bucket(monkeypatch):
    """The URL of an empty bucket on this machine."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("stored")
    yield "s3://stored"  # of a name of its own: the buckets of a process outlive their server
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_what_is_missing_in_a_bucket_is_found_by_few_requests(bucket, tmp_path, caplog):
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    source, target = Storage(f"{bucket}/noisy"), Storage(f"{bucket}/clean")
    touch(tmp_path, "a.jpg")
    for i in range(1200):
        for folder in ("noisy", "clean")[: 1 + (i < 1100)]:
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("stored", f"{folder}/{i}.jpg", b"")
    with caplog.at_level(logging.INFO, logger="werkzeug"):
        assert len(missing_images(source, target)) == 100
    assert 0 < len(caplog.records) < 10
    target.store(tmp_path / "a.jpg", "1100.jpg")
    assert len(missing_images(source, Storage(target.url))) == 99
    assert target.fetch("1100.jpg", tmp_path / "copy").read_bytes() == b"content"


# Parquet files


@pytest.fixture
def parquet(tmp_path):
    """Five rows in two files of row groups of two."""
    cells = []
    for i in range(5):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": f"{i}.png"})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (tmp_path / "in").mkdir()
    for name, rows in {"train-0": [0, 1, 2], "train-1": [3, 4]}.items():
        table = {"image": [cells[row] for row in rows], "label": rows}
        part = datasets.Dataset.from_dict(table, features=features)
        part.to_parquet(tmp_path / "in" / f"{name}.parquet", batch_size=2)
    return tmp_path


def test_row_groups_without_a_result_are_listed(parquet):
    touch(parquet, "out/train-0-00000.parquet")
    groups, num_rows = missing_row_groups(*places(parquet), "image")
    assert groups == [RowGroup("train-0.parquet", 1), RowGroup("train-1.parquet", 0)] and num_rows == 3


def test_a_missing_column_is_named(parquet):
    with pytest.raises(ValueError, match="train-0.parquet has no column photo, but image, label"):
        missing_row_groups(*places(parquet), "photo")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"image": ["a.png"]}, "The column image of a.parquet does not hold images, but string"),
        ({"image": [[b"a"]]}, "does not hold images, but list"),
        ({"image": [{"path": "a.png"}]}, "does not hold images, but struct<path: string>"),
        ({"image": [b"a"], "image_denoised": [b"a"]}, "a.parquet has a column image_denoised already"),
    ],
)
def test_a_column_without_images_is_an_error(tmp_path, columns, message):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
    with pytest.raises(ValueError, match=message):
        missing_row_groups(*places(tmp_path), "image")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    touch(tmp_path / "in", "a.parquet")
    with pytest.raises(ValueError, match="a.parquet cannot be read: "):
        missing_row_groups(*places(tmp_path), "image")


def test_a_row_group_keeps_its_columns_and_gets_one_more(parquet):
    source, target = places(parquet)
    group = RowGroup("train-0.parquet", 0)
    table = group.read(source)
    jobs = group.jobs(table, "image")
    assert [job.name for job in jobs] == ["train-0.parquet#0.0", "train-0.parquet#0.1"]
    jobs[1].store(jobs[1].fetch(parquet / "copy"))
    group.store(table, "image", jobs, target)
    assert target.exists(group.result)
    rows = datasets.Dataset.from_parquet(str(parquet / "out" / group.result), cache_dir=str(parquet / "cache"))
    assert rows.column_names == ["image", "label", "image_denoised"]
    assert rows[0]["image_denoised"] is None and rows[0]["image"].size == (8, 8)
    assert rows[1]["image_denoised"].getpixel((0, 0)) == (1, 1, 1)


def test_a_column_of_bytes_is_read_as_well(tmp_path):
    save_image(tmp_path / "a.png")
    path = CellJob("a", (tmp_path / "a.png").read_bytes()).fetch(tmp_path / "copy")
    assert path.read_bytes() == (tmp_path / "a.png").read_bytes()
    with pytest.raises(OSError, match="b holds no image"):
        CellJob("b", None).fetch(tmp_path / "b")


@pytest.mark.parametrize("name", [None, "", ".", "sub/"])
def test_a_cell_needs_no_name(tmp_path, name):
    assert CellJob("a", {"bytes": b"content", "path": name}).fetch(tmp_path / "copy").read_bytes() == b"content"

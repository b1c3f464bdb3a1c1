import logging
import pickle
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from conftest import save_image
from PIL import Image

from gdd_diffusers.data.batches import PairedImages, Source, TrainingBatches
from gdd_diffusers.data.camera_noise import CameraNoise
from gdd_diffusers.data.layouts import (
    find_images,
    load_clean,
    load_hub_dataset,
    load_pairs,
)


pytestmark = pytest.mark.usefixtures("datasets_cache")


def add_noise(clean, generator):
    """The smallest simulator: white noise on the uint8 grid."""
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    return clean, (noisy.clamp(0, 1) * 255).round() / 255


def batches_of(dataset, simulator=None, batch_size=8, crop_schedule=((24, 1.0),), num_batches=20, **options):
    return TrainingBatches([Source(dataset, 1.0, simulator)], batch_size, crop_schedule, num_batches, **options)


def assert_equal(a, b):
    assert a["files"] == b["files"]
    for name in ("noisy", "clean", "u"):
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


# Reading images


def break_file(path):
    path.write_bytes(path.read_bytes()[:500])


def test_an_unreadable_file_is_named_skipped_and_counted(clean_dir, caplog):
    break_file(clean_dir / "2.png")
    batches = batches_of(load_clean(clean_dir), add_noise)
    with caplog.at_level(logging.WARNING):
        files = [file for k in range(10) for file in batches[k]["files"]]
    assert not any("2.png" in file for file in files)
    assert {file[-5:] for file in files} == {"0.png", "1.png", "3.png", "4.png"}
    warnings = [record for record in caplog.records if "2.png cannot be read and is left out" in record.message]
    assert len(warnings) == 1


def test_more_than_one_percent_unreadable_is_an_error(clean_dir):
    break_file(clean_dir / "2.png")
    (clean_dir / "3.png").write_bytes(b"")
    batches = batches_of(load_clean(clean_dir), add_noise)
    with pytest.raises(ValueError, match=r"2 of 5 images cannot be read, which is more than 1%: .*[23].png.*[23].png"):
        [batches[k] for k in range(10)]


def test_images_whose_white_is_unknown_are_not_trained_on(tmp_path):
    for name in ("noisy", "clean"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((32, 32), 20_000, np.int32)).save(tmp_path / name / f"{i}.tif")
    batches = batches_of(load_pairs(tmp_path / "noisy", tmp_path / "clean"))
    with pytest.raises(ValueError, match=r"2 of 3 images cannot be read.*\.tif \(it holds signed or 32-bit integers"):
        batches[0]


def test_the_only_image_must_be_readable(tmp_path):
    save_image(tmp_path / "photos" / "0.png")
    break_file(tmp_path / "photos" / "0.png")
    with pytest.raises(ValueError, match=r"1 of 1 images cannot be read.*0.png"):
        batches_of(load_clean(tmp_path / "photos"), add_noise)[0]


def test_the_unreadable_half_of_a_pair_is_the_one_that_is_named(pair_dirs, caplog):
    break_file(pair_dirs[0] / "3.png")
    assert PairedImages(load_pairs(*pair_dirs))[3] is None
    assert "noisy/3.png cannot be read" in caplog.text


def test_a_row_without_an_image_is_left_out(clean_dir, caplog):
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in find_images(clean_dir)]
    rows = [*cells[:3], None, cells[4]]
    dataset = datasets.Dataset.from_dict({"clean": rows}, features=datasets.Features({"clean": datasets.Image()}))
    for source in (dataset, dataset.to_iterable_dataset()):
        files = batches_of(source, add_noise, batch_size=5)[0]["files"]
        assert set(files) <= {"0.png", "1.png", "2.png", "4.png"} and len(files) == 5
    assert caplog.text.count("cannot be read and is left out: the image is missing") == 2


def test_images_are_read_once_while_memory_lasts(clean_dir):
    images = PairedImages(load_clean(clean_dir))
    assert images[1] is images[1]
    before = images[1]["clean"].copy()
    (clean_dir / "1.png").unlink()
    np.testing.assert_array_equal(images[1]["clean"], before)


def test_images_smaller_than_the_crop_are_named_before_any_work(clean_dir):
    with pytest.raises(ValueError, match=r"0.png is 48x40, but training needs sides of at least 48 px"):
        batches_of(load_clean(clean_dir), add_noise, crop_schedule=[(24, 0.5), (48, 1.0)])


def test_small_images_within_a_dataset_are_named_when_read(clean_dir):
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in find_images(clean_dir)]
    dataset = datasets.Dataset.from_dict({"clean": cells}, features=datasets.Features({"clean": datasets.Image()}))
    batches = batches_of(dataset, add_noise, crop_schedule=[(48, 1.0)])
    with pytest.raises(ValueError, match=r"\d.png is 48x40, but training needs sides of at least 48 px"):
        batches[0]


def test_clean_images_need_a_simulator(clean_dir):
    with pytest.raises(ValueError, match="needs a simulator"):
        batches_of(load_clean(clean_dir))


def test_batches_depend_on_seed_and_number_alone(clean_dir):
    dataset = load_clean(clean_dir)
    in_order = [batches_of(dataset, add_noise)[k] for k in range(4)]
    batches = batches_of(dataset, add_noise)
    for k in (3, 1, 2):
        assert_equal(batches[k], in_order[k])
    assert not torch.equal(in_order[0]["clean"], in_order[1]["clean"])
    other_seed = batches_of(dataset, add_noise, seed=1)[0]
    assert not torch.equal(other_seed["clean"], in_order[0]["clean"])


def test_two_processes_together_see_what_one_sees_with_twice_the_batch(clean_dir):
    dataset = load_clean(clean_dir)
    whole = batches_of(dataset, add_noise, batch_size=16)[5]
    halves = [batches_of(dataset, add_noise, process_index=i, num_processes=2)[5] for i in range(2)]
    joined = {name: torch.cat([half[name] for half in halves]) for name in ("noisy", "clean", "u")}
    assert_equal(joined | {"files": halves[0]["files"] + halves[1]["files"]}, whole)


def test_a_worker_process_changes_nothing(clean_dir):
    batches = batches_of(load_clean(clean_dir), add_noise)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(3, 6), num_workers=1)
    for k, batch in zip(range(3, 6), loader, strict=True):
        assert_equal(batch, batches[k])


def test_noisy_and_clean_are_cut_flipped_and_turned_alike(pair_dirs, tmp_path):
    for path in find_images(pair_dirs[1]):
        pixels = np.asarray(Image.open(path))
        Image.fromarray(255 - pixels).save(pair_dirs[0] / path.name)
    batch = batches_of(load_pairs(*pair_dirs), batch_size=32)[0]
    torch.testing.assert_close(batch["noisy"], 255 - batch["clean"], rtol=0, atol=0)


def test_all_eight_orientations_come(tmp_path):
    pixels = save_image(tmp_path / "photos" / "0.png", size=(24, 24))
    Image.fromarray(pixels).save(tmp_path / "photos" / "1.png")
    dataset = load_pairs(tmp_path / "photos", tmp_path / "photos")
    batch = batches_of(dataset, batch_size=64)[0]
    expected = {np.rot90(p, turns).tobytes() for p in (pixels, pixels[:, ::-1]) for turns in range(4)}
    seen = {np.ascontiguousarray(clean.permute(1, 2, 0).numpy()).tobytes() for clean in batch["clean"]}
    assert seen == expected


def test_crops_grow_and_batches_shrink_by_the_schedule(clean_dir):
    batches = batches_of(
        load_clean(clean_dir), add_noise, batch_size=16, crop_schedule=[(8, 0.5), (16, 0.75), (32, 1.0)], num_batches=8
    )
    shapes = [tuple(batches[k]["clean"].shape) for k in range(8)]
    assert shapes == [(16, 3, 8, 8)] * 4 + [(4, 3, 16, 16)] * 2 + [(1, 3, 32, 32)] * 2


def test_crop_sizes_can_come_in_random_order(clean_dir):
    of_process = [
        batches_of(
            load_clean(clean_dir),
            add_noise,
            crop_schedule=[(16, 0.9), (8, 1.0)],
            num_batches=200,
            shuffle_crop_sizes=True,
            process_index=i,
            num_processes=2,
        )
        for i in range(2)
    ]
    sizes = of_process[0].crop_sizes
    assert (sizes == of_process[1].crop_sizes).all()
    small = np.flatnonzero(sizes == 8)
    assert len(small) == 20 and small.min() < 60 and small.max() > 140
    shapes = {size: of_process[0][list(sizes).index(size)]["clean"].shape for size in (16, 8)}
    assert shapes == {16: (8, 3, 16, 16), 8: (32, 3, 8, 8)}


@pytest.mark.parametrize("mode", ["L", "RGB"])  # of the files
def test_crops_of_a_grey_photograph_get_grey_noise(tmp_path, mode):
    (tmp_path / "photos").mkdir()
    Image.effect_noise((48, 40), 50).convert(mode).save(tmp_path / "photos" / "grey.png")
    black = np.zeros((40, 48, 3), np.uint8)
    black[0, 0] = 1, 2, 3  # in colour, though most of its crops have equal channels
    Image.fromarray(black).save(tmp_path / "photos" / "black.png")
    batch = batches_of(load_clean(tmp_path / "photos"), CameraNoise("gaussian"), batch_size=64)[0]
    assert batch["noisy"].shape == (64, 3, 24, 24) and (batch["noisy"] != batch["clean"]).any()
    is_grey = (batch["noisy"] == batch["noisy"][:, :1]).flatten(1).all(1)
    of_grey = torch.tensor(["grey.png" in file for file in batch["files"]])
    assert is_grey[of_grey].all()
    assert is_grey[~of_grey].float().mean() < 0.5  # 20% expected


def test_sources_are_mixed_by_weight(clean_dir, pair_dirs):
    sources = [Source(load_clean(clean_dir), 3.0, add_noise), Source(load_pairs(*pair_dirs), 1.0)]
    batches = TrainingBatches(sources, 100, [(24, 1.0)], 5)
    simulated = sum("photos" in file for k in range(5) for file in batches[k]["files"])
    assert 340 < simulated < 410  # 375 expected, with a standard deviation of 10
    sample = batches[0]
    assert sample["noisy"].shape == sample["clean"].shape == (100, 3, 24, 24)


@pytest.mark.parametrize("batch_size", [8, 6])
def test_noise_can_be_left_to_a_device(clean_dir, pair_dirs, batch_size):
    def of_device(device):
        sources = [Source(load_clean(clean_dir), 3.0, add_noise), Source(load_pairs(*pair_dirs), 1.0)]
        return TrainingBatches(sources, batch_size, [(24, 1.0)], 6, device=device)

    on_cpu, left = of_device(None), of_device("cuda")
    items = [left[k] for k in range(6)]  # made without touching the device, as in a worker
    left.device = torch.device("cpu")
    for k, item in enumerate(items):
        assert item["clean"].shape == (batch_size, 3, 24, 24)
        finished, expected = left.simulate(item), on_cpu[k]
        assert not torch.equal(item["noisy"], expected["noisy"])
        assert finished.keys() == expected.keys() and finished["files"] == expected["files"]
        for name in ("clean", "noisy", "u"):
            assert torch.equal(finished[name], expected[name])
        assert torch.equal(on_cpu.simulate(expected)["noisy"], expected["noisy"])


def test_a_device_that_is_not_cuda_leaves_the_noise_to_the_cpu(clean_dir):
    """Not every version of torch has all that the simulator needs for the GPUs of Macs."""
    batches = batches_of(load_clean(clean_dir), add_noise, device="mps")
    assert_equal(batches[0], batches_of(load_clean(clean_dir), add_noise)[0])
    assert_equal(batches.simulate(batches[0]), batches[0])


@pytest.mark.parametrize("device, expected_sizes", [("cpu", [8, 8, 4]), ("cuda", [20])])
def test_a_cpu_simulates_groups_and_a_gpu_a_whole_batch_at_once(clean_dir, device, expected_sizes):
    sizes = []

    def simulator(clean, generator):
        sizes.append(len(clean))
        return add_noise(clean, generator)

    batches = batches_of(load_clean(clean_dir), simulator, batch_size=20, device=device)
    batches.device = torch.device("cpu")
    batches.simulate(batches[0])
    assert sizes == expected_sizes


def test_noise_left_to_a_cpu_is_that_of_its_workers(clean_dir):
    batches = batches_of(load_clean(clean_dir), add_noise, batch_size=20, device="cpu")
    item, expected = batches[0], batches_of(load_clean(clean_dir), add_noise, batch_size=20)[0]
    num_threads = torch.get_num_threads()
    for _ in range(2):  # and the item stays as it is
        assert_equal(batches.simulate(item), expected)
    assert torch.get_num_threads() == num_threads


# Streams


@pytest.fixture
def streamed(tmp_path):
    """Forty rows in four files, one of them unreadable."""
    cells = []
    for i in range(40):
        save_image(tmp_path / "tiles" / f"{i:02d}.png", seed=i, size=(32, 32))
        data = (tmp_path / "tiles" / f"{i:02d}.png").read_bytes()
        cells.append({"bytes": data[:500] if i == 17 else data, "path": f"{i:02d}.png"})
    (tmp_path / "hub").mkdir()
    features = datasets.Features({"clean": datasets.Image()})
    for shard in range(4):
        part = datasets.Dataset.from_dict({"clean": cells[shard::4]}, features=features)
        part.to_parquet(tmp_path / "hub" / f"train-{shard}.parquet")
    return lambda: load_hub_dataset(str(tmp_path / "hub"), streaming=True)


def test_a_stream_yields_every_row_once_per_epoch_in_shuffled_order(streamed):
    batches = batches_of(streamed(), add_noise, batch_size=8)
    passes = [[file for k in range(5 * i, 5 * i + 5) for file in batches[k]["files"]] for i in range(2)]
    for files in passes:
        assert len(files) == 40
        assert set(files) == {f"{i:02d}.png" for i in range(40)} - {"17.png"}
    assert passes[0] != passes[1]
    assert passes[0] != sorted(passes[0])


def test_a_stream_goes_on_where_it_was(streamed):
    in_order = batches_of(streamed(), add_noise)
    expected = [in_order[k] for k in range(8)]
    for start in range(8):
        assert_equal(batches_of(streamed(), add_noise)[start], expected[start])
    assert_equal(in_order[2], expected[2])  # backwards too


def test_batches_reach_workers_under_every_start_method(streamed, clean_dir):
    for batches in (batches_of(streamed(), add_noise), batches_of(load_clean(clean_dir), add_noise)):
        assert_equal(pickle.loads(pickle.dumps(batches))[1], batches[1])


@pytest.mark.parametrize("num_processes", [2, 4, 8])  # of four files
def test_processes_divide_every_epoch_of_a_stream(streamed, num_processes):
    rows = 40 // num_processes
    batches = [
        batches_of(streamed(), add_noise, batch_size=rows, process_index=i, num_processes=num_processes)
        for i in range(num_processes)
    ]
    for epoch in range(3):
        files = [file for of_process in batches for file in of_process[epoch]["files"]]
        # the unreadable row is replaced by the one before
        assert len(files) == 40 and len(set(files)) == 39
    again = batches_of(streamed(), add_noise, batch_size=rows, process_index=1, num_processes=num_processes)
    assert_equal(again[2], batches[1][2])  # exact resume


def test_a_process_reads_its_own_files_of_a_stream():
    def rows_of(files, log):
        for file in files:
            log.append(file)
            for _ in range(10):
                yield {"clean": Image.effect_noise((32, 32), 50).convert("RGB")}

    logs = [], []
    for process, log in enumerate(logs):
        features = datasets.Features({"clean": datasets.Image()})
        stream = datasets.IterableDataset.from_generator(
            partial(rows_of, log=log), gen_kwargs={"files": [0, 1, 2, 3]}, features=features
        )
        batches_of(stream, add_noise, batch_size=20, process_index=process, num_processes=2)[0]
    assert sorted(logs[0] + logs[1]) == [0, 1, 2, 3] and len(logs[0]) == len(logs[1]) == 2


def test_more_processes_than_rows_are_an_error():
    features = datasets.Features({"clean": datasets.Image()})
    stream = datasets.Dataset.from_dict({"clean": [None]}, features=features).to_iterable_dataset()
    with pytest.raises(ValueError, match="too few rows for 2 processes"):
        batches_of(stream, add_noise, process_index=1, num_processes=2)[0]


def test_an_empty_stream_is_an_error():
    features = datasets.Features({"clean": datasets.Image()})
    empty = datasets.IterableDataset.from_generator(lambda: iter(()), features=features)
    with pytest.raises(ValueError, match="stream.* is empty"):
        batches_of(empty, add_noise)[0]

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub_server import TOKEN, Hub
from PIL import Image

from gdd_diffusers.data.layouts import load_hub_dataset


EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import prepare_data  # noqa: E402


pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def pairs(tmp_path):
    """Two pairs in each of four scenes, every pixel different; the noisy one is the clean one's negative."""
    rng = np.random.default_rng(0)
    for name in ("noisy", "clean"):
        for scene in range(4):
            (tmp_path / name / f"scene{scene}").mkdir(parents=True)
    for i in range(8):
        pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "clean" / f"scene{i // 2}" / f"{i}.png")
        Image.fromarray(255 - pixels).save(tmp_path / "noisy" / f"scene{i // 2}" / f"{i}.png")
    return tmp_path


def run(pairs, **options):
    options = {
        "noisy_dir": pairs / "noisy",
        "gt_dir": pairs / "clean",
        "output_dir": pairs / "tiles",
        "tile_size": 32,
        "tiles_per_file": 12,
        "validation_share": 0.25,
    } | options
    arguments = []
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    prepare_data.main(prepare_data.parse_args(arguments))
    return {path.name: path.read_bytes() for path in sorted((pairs / "tiles" / "data").iterdir())}


@pytest.mark.parametrize(
    "side, tile", [(1, 32), (31, 32), (32, 32), (33, 32), (64, 32), (65, 32), (500, 32), (97, 16)]
)
def test_tiles_cover_a_side_without_leaving_it(side, tile):
    positions = prepare_data.tile_positions(side, tile)
    covered = {i for start in positions for i in range(start, start + min(tile, side))}
    assert covered == set(range(side))
    assert len(positions) == -(-side // tile)


def test_tiles_are_losslessly_what_the_images_were(pairs):
    files = run(pairs)
    assert list(files) == [
        "train-00000-of-00003.parquet",
        "train-00001-of-00003.parquet",
        "train-00002-of-00003.parquet",
        "validation-00000-of-00001.parquet",
    ]
    tiles = load_hub_dataset(str(pairs / "tiles"), "train")
    assert len(tiles) == 6 * 2 * 3  # 6 images of 50x70 px
    for tile in tiles:
        clean, noisy = np.asarray(tile["clean"]), np.asarray(tile["noisy"])
        assert clean.shape == (32, 32, 3)
        np.testing.assert_array_equal(noisy, 255 - clean)
    tile = tiles.cast_column("clean", datasets.Image(decode=False))[0]
    stem, top, left = Path(tile["clean"]["path"]).stem.split("_")
    image = np.asarray(Image.open(pairs / "clean" / tile["scene"] / f"{stem}.png"))
    expected = image[int(top) : int(top) + 32, int(left) : int(left) + 32]
    np.testing.assert_array_equal(np.asarray(tiles[0]["clean"]), expected)


def test_no_scene_is_in_two_splits_and_streams_are_mixed(pairs):
    run(pairs, tiles_per_file=100)
    train, validation = (load_hub_dataset(str(pairs / "tiles"), split) for split in ("train", "validation"))
    assert len(set(train["scene"])) == 3
    assert len(set(validation["scene"])) == 1
    assert not set(train["scene"]) & set(validation["scene"])
    first_rows = load_hub_dataset(str(pairs / "tiles"), streaming=True).take(12)
    assert len({row["scene"] for row in first_rows}) == 3


def test_stopped_and_run_again_it_makes_the_same_files(pairs):
    files = run(pairs)
    folder = pairs / "tiles" / "data"
    kept = folder / "train-00000-of-00003.parquet"
    kept_time = kept.stat().st_mtime_ns
    (folder / "train-00001-of-00003.parquet").unlink()
    (folder / "train-00001-of-00003.partial").write_bytes(b"half of it")
    (folder / "validation-00000-of-00001.parquet").unlink()
    assert run(pairs) == files
    assert kept.stat().st_mtime_ns == kept_time


def test_other_options_in_the_same_folder_are_refused(pairs):
    run(pairs)
    with pytest.raises(ValueError, match=r"holds files made with other options \(tile_size was 32 and is 16\)"):
        run(pairs, tile_size=16)
    with pytest.raises(ValueError, match="noisy_dir was .*noisy and is .*clean"):  # as many, but other images
        run(pairs, noisy_dir=pairs / "clean")


def test_the_card_names_splits_and_licence(pairs):
    run(pairs, license="cc-by-4.0")
    card = (pairs / "tiles" / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "path: data/validation-*.parquet" in card
    assert "48 tiles of at most 32x32 px, cut from 8 images" in card
    assert "in `noisy` and `clean`" in card
    assert str(pairs) not in card


def test_clean_images_alone_and_without_held_out_ones(pairs):
    files = run(pairs, noisy_dir=None, gt_dir=None, layout="clean", folder=pairs / "clean", validation_share=0)
    assert all(name.startswith("train") for name in files)
    assert set(load_hub_dataset(str(pairs / "tiles")).features) == {"clean", "scene"}


def test_pairs_by_marks_and_pairs_from_a_dataset(pairs):
    (pairs / "marked").mkdir()
    for name in ("noisy", "clean"):
        for path in (pairs / name).rglob("*.png"):
            path.rename(pairs / "marked" / f"{path.stem}_{name}.png")
    options = {"noisy_dir": None, "gt_dir": None}
    run(pairs, **options, marks=["_noisy", "_clean"], folder=pairs / "marked")
    run(pairs, **options, dataset_name=pairs / "tiles", output_dir=pairs / "smaller", tile_size=16)
    tiles = load_hub_dataset(str(pairs / "smaller"), "train")
    assert {tile["clean"].size for tile in tiles} == {(16, 16)}


@pytest.mark.slow
def test_it_goes_to_the_hub(pairs):
    words = ["--noisy_dir", pairs / "noisy", "--gt_dir", pairs / "clean", "--output_dir", pairs / "tiles"]
    words += ["--push_to_hub", "--hub_dataset_id", "org/tiles", "--hub_private_repo"]
    with Hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(pairs / "home")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        subprocess.run(
            [sys.executable, EXAMPLES / "prepare_data.py", *words], env=os.environ | environment, check=True
        )
    repo = hub.repos["org/tiles"]
    assert repo.private
    files = {path: content for path, content in repo.commits[repo.sha].items() if path != ".gitattributes"}
    tiles = sorted((pairs / "tiles").rglob("*.parquet"))
    assert sorted(files) == ["README.md", *(f"data/{path.name}" for path in tiles)]
    assert all(files[f"data/{path.name}"] == path.read_bytes() for path in tiles)
    assert b"--dataset_name org/tiles" in files["README.md"]


def test_an_unreadable_image_is_left_out(pairs, caplog):
    path = pairs / "noisy" / "scene1" / "3.png"
    path.write_bytes(path.read_bytes()[:1000])
    run(pairs, validation_share=0)
    assert "3.png cannot be read and is left out" in caplog.text
    assert len(load_hub_dataset(str(pairs / "tiles"))) == 7 * 6


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give one of"),
        (["--noisy_dir", "a"], "go together"),
        (["--layout", "sidd"], "need --folder"),
        (["--layout", "sidd", "--folder", "a", "--dataset_name", "b"], "give one of"),
        (["--dataset_name", "a", "--tile_size", "8"], "--tile_size must be at least 16"),
        (["--dataset_name", "a", "--output_dir", "caf\udce9"], "'caf\\udce9' is not UTF-8"),
    ],
)
def test_wrong_arguments_are_named(words, message, capsys):
    with pytest.raises(SystemExit):
        prepare_data.parse_args(["--output_dir", "out", *words])
    assert message in capsys.readouterr().err

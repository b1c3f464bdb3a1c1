import io
import os
import struct
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import save_image
from PIL import Image

from gdd_diffusers.data.batches import PairedImages, check_sizes
from gdd_diffusers.data.decoding import UNREADABLE, decode, image_size
from gdd_diffusers.data.layouts import (
    LAYOUTS,
    find_images,
    load_clean,
    load_hub_dataset,
    load_marked_pairs,
    load_pairs,
    scene_of_name,
    split_by_scene,
)


pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_finds_images_in_subfolders_and_in_order(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.tif", ".hidden.png", ".thumbnails/1.png"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    assert [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)] == ["a.tif", "b/1.png", "b/2.JPG"]


def test_no_folder_and_no_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        find_images(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="No images were found in"):
        find_images(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf_8_are_named(clean_dir):
    (clean_dir / "2.png").rename(os.fsdecode(bytes(clean_dir) + b"/caf\xe9.png"))
    with pytest.raises(ValueError, match=r"The name '.*caf\\udce9.png' is not UTF-8; rename the file"):
        load_clean(clean_dir)


def test_pairs_match_by_name_whatever_the_suffix(tmp_path):
    noisy = save_image(tmp_path / "noisy" / "sub" / "1.png", seed=1)
    save_image(tmp_path / "clean" / "sub" / "1.jpg", seed=2)
    dataset = load_pairs(tmp_path / "noisy", tmp_path / "clean")
    assert dataset.column_names == ["noisy", "clean", "scene"]
    assert dataset["scene"][0] == "sub"
    np.testing.assert_array_equal(np.asarray(dataset[0]["noisy"]), noisy)


def test_a_missing_partner_is_named(pair_dirs):
    noisy, clean = pair_dirs
    (clean / "3.png").unlink()
    with pytest.raises(ValueError, match=rf"noisy/3.png has no partner named 3\.\* in {clean}"):
        load_pairs(noisy, clean)
    (noisy / "3.png").unlink()
    (noisy / "4.png").unlink()
    with pytest.raises(ValueError, match=rf"clean/4.png has no partner named 4\.\* in {noisy}"):
        load_pairs(noisy, clean)


def test_two_candidates_for_one_partner_are_named(pair_dirs):
    save_image(pair_dirs[1] / "3.jpg")
    with pytest.raises(ValueError, match=r"3.jpg and .*3.png have one name"):
        load_pairs(*pair_dirs)


def test_a_pair_of_two_sizes_is_named(pair_dirs):
    save_image(pair_dirs[1] / "2.png", size=(40, 48))
    with pytest.raises(ValueError, match=r"noisy/2.png is 48x40 and .*clean/2.png is 40x48"):
        load_pairs(*pair_dirs)


def test_marked_pairs_in_one_folder(tmp_path):
    noisy = save_image(tmp_path / "a_noisy.png", seed=1)
    clean = save_image(tmp_path / "a_clean.png", seed=2)
    save_image(tmp_path / "unrelated.png")
    dataset = load_marked_pairs(tmp_path, "_noisy", "_clean")
    assert len(dataset) == 1
    np.testing.assert_array_equal(np.asarray(dataset[0]["noisy"]), noisy)
    np.testing.assert_array_equal(np.asarray(dataset[0]["clean"]), clean)

    save_image(tmp_path / "b_clean.png")
    with pytest.raises(ValueError, match="b_clean.png has no partner b_noisy.png"):
        load_marked_pairs(tmp_path, "_noisy", "_clean")
    (tmp_path / "b_clean.png").rename(tmp_path / "b_noisy.png")
    with pytest.raises(ValueError, match="b_noisy.png has no partner b_clean.png"):
        load_marked_pairs(tmp_path, "_noisy", "_clean")
    with pytest.raises(FileNotFoundError, match="'_grainy'"):
        load_marked_pairs(tmp_path, "_grainy", "_clean")


def test_clean_images_without_a_mark(tmp_path):
    noisy, clean = save_image(tmp_path / "a_noisy.png", seed=1), save_image(tmp_path / "a.png", seed=2)
    save_image(tmp_path / "unrelated.png")
    (pair,) = load_marked_pairs(tmp_path, "_noisy", "")
    np.testing.assert_array_equal(np.asarray(pair["noisy"]), noisy)
    np.testing.assert_array_equal(np.asarray(pair["clean"]), clean)


def test_an_implausible_header_is_left_to_the_reader(pair_dirs, monkeypatch):
    """The image counts as unreadable when it is decoded, and does not end the search for pairs."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # Image.open raises DecompressionBombError
    dataset = load_pairs(*pair_dirs)
    assert len(dataset) == 5
    images = PairedImages(dataset)
    check_sizes(images, 8)
    with pytest.raises(ValueError, match="2 of 5 images cannot be read"):
        [images[row] for row in range(5)]


def test_sidd_medium_as_downloaded(tmp_path):
    for folder, number in (("0001_001_S6_00100_00060_3200_L", "0001"), ("0002_001_S6_00100_00020_3200_N", "0002")):
        for shot in ("010", "011"):
            save_image(tmp_path / "Data" / folder / f"{number}_NOISY_SRGB_{shot}.PNG")
            save_image(tmp_path / "Data" / folder / f"{number}_GT_SRGB_{shot}.PNG")
    dataset = LAYOUTS["sidd"](tmp_path)
    assert len(dataset) == 4
    assert set(dataset["scene"]) == {"001"}
    for kind in ("NOISY", "GT"):
        save_image(tmp_path / "flat" / f"0001_{kind}_SRGB_010.PNG")
    with pytest.raises(
        ValueError, match="0001_NOISY_SRGB_010.PNG must lie in the folder it came in, such as 0001_001"
    ):
        LAYOUTS["sidd"](tmp_path / "flat")


@pytest.mark.parametrize(
    "name, scene",
    [
        ("door_10", "door"),
        ("door__11", "door"),
        ("door 12", "door"),
        ("door (13)", "door"),
        ("door14", "door"),
        ("0042", "0042"),
        ("kitchen/door_1", "kitchen"),
        ("door_iso100_b", "door_iso100_b"),
    ],
)
def test_scene_of_a_name(name, scene):
    assert scene_of_name(Path(name)) == scene


def test_polyu_and_cc_crops_of_one_scene_stay_together(tmp_path):
    for name in ("Canon5D2_5_160_3200_chair_5", "Canon5D2_5_160_3200_chair__14", "d800_iso1600_1"):
        save_image(tmp_path / f"{name}_real.JPG")
        save_image(tmp_path / f"{name}_mean.JPG")
    for layout in ("polyu", "cc"):
        scenes = LAYOUTS[layout](tmp_path)["scene"]
        assert sorted(scenes) == ["Canon5D2_5_160_3200_chair", "Canon5D2_5_160_3200_chair", "d800_iso1600"]


def test_scene_folders_of_renoir_and_nind(tmp_path):
    for name in ("IMG_1Reference.bmp", "IMG_2Noisy.bmp", "IMG_3Noisy.bmp", "IMG_4Full.bmp"):
        save_image(tmp_path / "Batch_001" / name, seed=len(name) * 7 + int(name[4]))
    for iso in ("200", "6400", "H1"):
        save_image(tmp_path / "tree" / f"NIND_tree_ISO{iso}.png", size=(32, 32))
    dataset = LAYOUTS["scenes"](tmp_path)
    rows = dataset.cast_column("noisy", datasets.Image(decode=False)).cast_column(
        "clean", datasets.Image(decode=False)
    )
    names = sorted(
        (row["scene"], row["noisy"]["path"].split("/")[-1], row["clean"]["path"].split("/")[-1]) for row in rows
    )
    assert names == [
        ("Batch_001", "IMG_2Noisy.bmp", "IMG_1Reference.bmp"),
        ("Batch_001", "IMG_3Noisy.bmp", "IMG_1Reference.bmp"),
        ("tree", "NIND_tree_ISO6400.png", "NIND_tree_ISO200.png"),
        ("tree", "NIND_tree_ISOH1.png", "NIND_tree_ISO200.png"),
    ]


def test_a_scene_without_reference_or_without_noise_is_named(tmp_path):
    save_image(tmp_path / "tree" / "1.png")
    with pytest.raises(ValueError, match="tree has no reference"):
        LAYOUTS["scenes"](tmp_path)
    (tmp_path / "tree" / "1.png").rename(tmp_path / "tree" / "tree_ISO100.png")
    with pytest.raises(ValueError, match="tree has a reference, tree_ISO100.png, but no noisy"):
        LAYOUTS["scenes"](tmp_path)


def pairs_of(dataset):
    """Scene, and names of the noisy and the clean file with their folder, of each row."""
    for column in ("noisy", "clean"):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    names = [["/".join(Path(row[column]["path"]).parts[-2:]) for column in ("noisy", "clean")] for row in dataset]
    return [(row["scene"], *pair) for row, pair in zip(dataset, names, strict=True)]


def test_oct_of_2012_and_of_2013(tmp_path):
    for eye in ("1", "2"):
        for name in (f"{eye}_Raw Image", f"{eye}_Averaged Image"):
            save_image(tmp_path / "2012" / eye / f"{name}.tif")
        for name in ("test", "average", "seg_test", "1"):  # the last two are no pair
            save_image(tmp_path / "2013" / eye / f"{name}.tif")
    assert pairs_of(LAYOUTS["oct"](tmp_path / "2012")) == [
        (eye, f"{eye}/{eye}_Raw Image.tif", f"{eye}/{eye}_Averaged Image.tif") for eye in ("1", "2")
    ]
    assert pairs_of(LAYOUTS["oct"](tmp_path / "2013")) == [(i, f"{i}/test.tif", f"{i}/average.tif") for i in "12"]
    (tmp_path / "2013" / "2" / "average.tif").unlink()
    with pytest.raises(ValueError, match="2/test.tif has no partner .*2/average.tif"):
        LAYOUTS["oct"](tmp_path / "2013")


def test_fmd_fields_of_view_and_mixed_test_set(tmp_path):
    for field in ("1", "2"):
        save_image(tmp_path / "Confocal_MICE" / "gt" / field / "avg50.png")
        for level in ("raw", "avg4"):
            for shot in ("a", "b"):
                save_image(tmp_path / "Confocal_MICE" / level / field / f"{level}_{shot}.png")
    for level in ("raw", "avg4", "gt"):
        save_image(tmp_path / "test_mix" / level / "a.png")
    expected = [
        (f"Confocal_MICE/gt/{i}/avg50.png", f"{i}/raw_{shot}.png", f"{i}/avg50.png") for i in "12" for shot in "ab"
    ]
    scene_of_root = [(f"{tmp_path.name}/{scene}", *pair) for scene, *pair in expected]
    mixed = (f"{tmp_path.name}/test_mix/gt/a.png", "raw/a.png", "gt/a.png")
    assert pairs_of(LAYOUTS["fmd"](tmp_path)) == [*scene_of_root, mixed]
    assert pairs_of(LAYOUTS["fmd"](tmp_path / "Confocal_MICE")) == expected
    assert {noisy for _, noisy, _ in pairs_of(LAYOUTS["fmd"](tmp_path / "Confocal_MICE" / "avg4"))} == {
        f"{i}/avg4_{shot}.png" for i in "12" for shot in "ab"
    }
    assert pairs_of(LAYOUTS["fmd"](tmp_path / "test_mix" / "avg4")) == [("gt/a.png", "avg4/a.png", "gt/a.png")]
    with pytest.raises(FileNotFoundError, match="No image of FMD was found in .*looked for raw/"):
        LAYOUTS["fmd"](tmp_path / "test_mix" / "gt")
    (tmp_path / "test_mix" / "gt" / "a.png").unlink()
    with pytest.raises(ValueError, match="raw/a.png has no partner .*test_mix/gt/avg50.png"):
        LAYOUTS["fmd"](tmp_path)


def test_sidd_validation_blocks(tmp_path):
    io = pytest.importorskip("scipy.io")
    blocks = {name: np.random.randint(0, 256, (2, 3, 16, 12, 3), dtype=np.uint8) for name in ("Noisy", "Gt")}
    with pytest.raises(FileNotFoundError, match="no file .*ValidationNoisyBlocksSrgb.mat"):
        LAYOUTS["sidd-validation"](tmp_path)
    for name, array in blocks.items():
        io.savemat(tmp_path / f"Validation{name}BlocksSrgb.mat", {f"Validation{name}BlocksSrgb": array})
    dataset = LAYOUTS["sidd-validation"](tmp_path)
    assert list(dataset["scene"]) == ["0000"] * 3 + ["0001"] * 3
    np.testing.assert_array_equal(np.asarray(dataset[4]["noisy"]), blocks["Noisy"][1, 1])
    np.testing.assert_array_equal(np.asarray(dataset[4]["clean"]), blocks["Gt"][1, 1])


def test_any_dataset_with_two_image_columns(tmp_path, pair_dirs):
    dataset = load_pairs(*pair_dirs).rename_columns({"noisy": "lq", "clean": "hq"})
    (tmp_path / "hub").mkdir()
    dataset.to_parquet(tmp_path / "hub" / "train.parquet")
    for streaming in (False, True):
        loaded = load_hub_dataset(str(tmp_path / "hub"), "train", "lq", "hq", streaming)
        assert set(loaded.features) == {"noisy", "clean", "scene"}
        assert len(list(loaded)) == 5
    with pytest.raises(ValueError, match="no image column 'gt'; its columns are lq, hq, scene"):
        load_hub_dataset(str(tmp_path / "hub"), "train", "lq", "gt")
    with pytest.raises(ValueError, match="no image column 'scene'"):
        load_hub_dataset(str(tmp_path / "hub"), "train", "lq", "scene")
    numbered = dataset.remove_columns("scene").add_column("scene", [1, 1, 2, 2, None])
    numbered.to_parquet(tmp_path / "hub" / "train.parquet")
    parts = split_by_scene(load_hub_dataset(str(tmp_path / "hub"), "train", "lq", "hq"), 0.3)
    assert sum(map(len, parts)) == 5 and not set(parts[0]["scene"]) & set(parts[1]["scene"])
    clean_only = load_hub_dataset(str(tmp_path / "hub"), "train", clean_column="hq")
    assert set(clean_only.features) == {"clean", "scene"}


def test_splits_are_by_scene_and_do_not_move(clean_dir):
    dataset = load_clean(clean_dir)
    dataset = datasets.concatenate_datasets([dataset, dataset])  # two rows of each scene
    train, held_out = split_by_scene(dataset, share=0.4)
    assert len(train) + len(held_out) == 10 and len(held_out) % 2 == 0 < len(held_out) < 10
    assert not set(train["scene"]) & set(held_out["scene"])
    without_scenes = dataset.remove_columns("scene")
    assert [len(part) for part in split_by_scene(without_scenes, share=0)] == [9, 1]
    assert [len(part) for part in split_by_scene(without_scenes, share=1)] == [1, 9]


def test_a_scene_is_held_out_or_not_whatever_else_there_is(tmp_path):
    features = datasets.Features({"clean": datasets.Image(), "scene": datasets.Value("string")})

    def held_out(names):
        dataset = datasets.Dataset.from_dict({"clean": [None] * len(names), "scene": names}, features=features)
        return set(split_by_scene(dataset)[1]["scene"])

    names = [f"IMG_{i:04d}" for i in range(400)]
    whole = held_out(names)
    assert 10 < len(whole) < 32  # 20 expected, with a standard deviation of 4.4
    assert held_out(names[:300]) == whole & set(names[:300])
    # the same photographs at another size, of which some were left out and all have another suffix
    for folder, suffix, numbers in (("full", "jpg", (1, 2, 3)), ("half", "png", (1, 2, 3, 4, 5))):
        for i in numbers:
            save_image(tmp_path / folder / f"{i}.{suffix}", seed=i)
    full, half = (load_clean(tmp_path / folder)["scene"] for folder in ("full", "half"))
    assert full == half[:3]


def test_one_scene_cannot_be_split(clean_dir):
    with pytest.raises(ValueError, match="of one scene"):
        split_by_scene(load_clean(clean_dir).select([2]))


# How they are read


def test_images_are_decoded_upright_to_8_bits(tmp_path):
    pixels = save_image(tmp_path / "turned.png", exif=(exif := Image.Exif()))
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    Image.fromarray(grey).save(tmp_path / "turned16.png", exif=exif)
    Image.fromarray(pixels).convert("P").save(tmp_path / "palette.png")
    cells = {path.stem: {"bytes": None, "path": str(path)} for path in find_images(tmp_path)}
    np.testing.assert_array_equal(decode(cells["turned"]), np.rot90(pixels, -1))
    np.testing.assert_array_equal(decode(cells["grey16"]), np.repeat((grey >> 8)[..., None], 3, axis=2))
    np.testing.assert_array_equal(decode(cells["turned16"]), np.rot90(decode(cells["grey16"]), -1))
    assert decode(cells["palette"]).shape == (40, 48, 3)


def tiff_cell(values, bits, sample_format=1, photometric=1):
    """A cell that holds the bytes `values` as an uncompressed grey TIFF of 2x2 px."""
    tags = [(256, 2), (257, 2), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 2)]
    tags += [(279, len(values)), (339, sample_format)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(values))
    return {"bytes": header + values + struct.pack("<H", len(tags)) + directory + bytes(4), "path": None}


GREY = np.array([[0, 255], [128, 64]], np.uint8)


@pytest.mark.parametrize(
    "cell",
    [
        tiff_cell((GREY * np.uint16(257)).tobytes(), 16),
        tiff_cell((65535 - GREY * np.uint16(257)).tobytes(), 16, photometric=0),  # zero is white
        tiff_cell(bytes.fromhex("000fff 800400"), 12),
        tiff_cell((GREY / 255).astype(np.float32).tobytes(), 32, sample_format=3),
        {"bytes": b"P5 2 2 65535\n" + (GREY * np.uint16(257)).astype(">u2").tobytes(), "path": None},
    ],
    ids=["uint16", "uint16 inverted", "uint12", "float32", "PGM"],
)
def test_grey_of_any_depth_is_scaled_to_8_bits(cell):
    np.testing.assert_array_equal(decode(cell), np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "values, message",
    [
        (GREY.astype(np.float32), r"must lie in \[0, 1\], not \[0, 255\]; save it as 8 or 16 bits"),
        (np.where(GREY, np.nan, 0).astype(np.float32), r"must lie in \[0, 1\], not \[nan, nan\]"),
        (GREY.astype(np.int32), "32-bit integers, whose white level is unknown; save it as 8 or 16 bits"),
        (GREY.astype(np.uint32), "32-bit integers"),
        (GREY.astype(np.int16), "signed"),
    ],
    ids=lambda x: str(getattr(x, "dtype", "")),
)
def test_grey_whose_white_is_unknown_is_refused(values, message):
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    with pytest.raises(ValueError, match=message):
        decode(tiff_cell(values.tobytes(), values.itemsize * 8, sample_format))


def test_metadata_that_pillow_cannot_turn_makes_an_image_unreadable():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "x"  # orientation and camera
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG", exif=exif)
    data = file.getvalue().replace(b"\x01\x0f\x00\x02", b"\x01\x01\x00\x02")  # the height, as text
    with pytest.raises(UNREADABLE):
        decode({"bytes": data, "path": None})


@pytest.mark.parametrize("orientation, size", [(b"\0\3\0\0\0\1\0\6\0\0", (4, 6)), (b"\0\2\0\0\0\4up!\0", (6, 4))])
def test_size_of_an_image_that_is_turned_by_a_number_or_by_text(tmp_path, orientation, size):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12" + orientation + b"\0\0\0\0"  # TIFF with one tag
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size({"path": str(tmp_path / "turned.jpg"), "bytes": None}) == size


def test_a_damaged_avif_is_unreadable(tmp_path):
    file = tmp_path / "damaged.avif"
    Image.new("RGB", (6, 4)).save(file)
    cell = {"path": None, "bytes": file.read_bytes().replace(b"iloc", b"free")}
    assert image_size(cell) is None
    with pytest.raises(UNREADABLE):
        decode(cell)

"""Raw files: levels, colours and metadata come out as the camera saw them."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import pyvips
from PIL import Image
from raw_files import BAYER, NEUTRAL, XTRANS, XYZ_FROM_P3, expose, scene, write_dng

from gdd_diffusers.files import ImageFileError, RawOptions, list_images, read_image, write_image
from gdd_diffusers.files.raw import _read_tags


rawpy = pytest.importorskip("rawpy")

XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" crs:Exposure2012="+1"
 crs:AlreadyApplied="False"/></x:xmpmeta>"""


def srgb(linear):
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def linear(pixels):
    encoded = pixels / 65535
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def inner(image):
    """Without the border, where demosaicing has to guess."""
    return image[8:-8, 8:-8]


@pytest.mark.parametrize("pattern", [BAYER, XTRANS], ids=["bayer", "xtrans"])
def test_levels_and_colours_are_those_of_the_scene(tmp_path, pattern):
    truth = scene(516, 528)  # LibRaw takes no smaller X-Trans
    write_dng(tmp_path / "a.dng", expose(truth, pattern), pattern)
    image = read_image(tmp_path / "a.dng")
    assert image.pixels.shape == (516, 528, 3) and image.pixels.dtype == np.uint16
    assert np.abs(inner(image.pixels / 65535 - srgb(truth))).max() < 0.003
    # an independent reading of the file that is written
    write_image(tmp_path / "a.tif", image.pixels, like=image)
    seen = pyvips.Image.new_from_file(str(tmp_path / "a.tif")).icc_transform("srgb", depth=16)
    assert np.abs(inner(seen.numpy() / 65535 - srgb(truth))).max() < 0.003


def test_rawpy_s_own_development_is_the_same_but_for_its_automatic_brightness(tmp_path):
    truth = scene(96, 128)
    write_dng(tmp_path / "a.dng", expose(truth))
    image = read_image(tmp_path / "a.dng")
    with rawpy.imread(str(tmp_path / "a.dng")) as raw:
        brightened = raw.postprocess(use_camera_wb=True, output_bps=16, gamma=(2.4, 12.92))
        plain = raw.postprocess(
            use_camera_wb=True, output_bps=16, gamma=(2.4, 12.92), no_auto_bright=True, adjust_maximum_thr=0
        )
    assert np.abs(inner(image.pixels.astype(int) - plain)).max() < 100
    assert inner(brightened).mean() > 1.2 * inner(image.pixels).mean()


def test_noise_is_neither_reduced_nor_sharpened(tmp_path):
    grey, shot, read = 0.3, 0.004, 1e-4
    write_dng(tmp_path / "a.dng", expose(np.full((200, 200, 3), grey), noise=(shot, read)))
    developed = linear(read_image(tmp_path / "a.dng").native[20:-20, 20:-20])
    # of the sensor's noise, what is measured at the pixels' own colours: demosaicing averages the others
    expected = np.sqrt(shot * grey * NEUTRAL + read) / NEUTRAL
    assert developed.mean((0, 1)) == pytest.approx(grey, rel=0.01)
    for channel, sigma in enumerate(expected):
        assert 0.6 * sigma < developed[..., channel].std() < 1.1 * sigma


def test_highlights_stay_white(tmp_path):
    truth = scene(96, 128)
    truth[30:60, 30:60] = 4
    write_dng(tmp_path / "a.dng", expose(truth))
    image = read_image(tmp_path / "a.dng")
    assert (image.pixels[35:55, 35:55] == 65535).all()


def test_colours_outside_srgb_survive(tmp_path):
    green = np.array([0.02, 0.5, 0.02])
    write_dng(tmp_path / "a.dng", expose(np.zeros((64, 64, 3)) + green), colours=XYZ_FROM_P3)
    image = read_image(tmp_path / "a.dng")
    assert image.pixels[32, 32, 0] == 0  # sRGB holds no such green
    write_image(tmp_path / "a.tif", image.pixels, like=image)
    written = pyvips.Image.new_from_file(str(tmp_path / "a.tif")).numpy()
    assert np.abs(written[32, 32] / 65535 - srgb(green)).max() < 0.003


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_orientation_is_applied_once(tmp_path, orientation, corner):
    truth = np.full((60, 80, 3), 0.1)
    truth[:30, :40] = 0.6
    write_dng(tmp_path / "a.dng", expose(truth), orientation=orientation)
    image = read_image(tmp_path / "a.dng")
    assert image.pixels.shape == ((80, 60, 3) if orientation > 4 else (60, 80, 3))
    assert image.pixels[corner].min() > 40000
    write_image(tmp_path / "a.tif", image.pixels, like=image)
    assert Image.open(tmp_path / "a.tif").getexif().get(274, 1) == 1


def test_options_brighten_balance_and_halve(tmp_path):
    truth = scene(96, 128) / 4
    write_dng(tmp_path / "a.dng", expose(truth))
    brighter = read_image(tmp_path / "a.dng", raw=RawOptions(exposure=1.0)).pixels
    assert np.abs(inner(linear(brighter) - 2 * truth)).max() < 0.005
    half = read_image(tmp_path / "a.dng", raw=RawOptions(half_size=True)).pixels
    assert half.shape == (48, 64, 3)
    # in daylight, this sensor sees white as grey: its matrix is that of sRGB
    daylight = read_image(tmp_path / "a.dng", raw=RawOptions(white_balance="daylight")).pixels
    assert linear(daylight)[48, 64] == pytest.approx(truth[48, 64] * NEUTRAL, rel=0.05)
    auto = read_image(tmp_path / "a.dng", raw=RawOptions(white_balance="auto")).pixels
    assert np.ptp(linear(auto).mean((0, 1))) < 0.2 * linear(auto).mean()


def exif_bytes(orientation=1):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model 1", orientation
    camera = exif.get_ifd(0x8769)
    camera[0x829A], camera[0x8827], camera[0x9003], camera[0xA434] = 1 / 60, 3200, "2025:01:02 03:04:05", "A lens"
    camera[0x927C], camera[0xA001] = b"Maker" + bytes(100), 1
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.0)})
    return exif.tobytes().removeprefix(b"Exif\0\0")


def test_metadata_of_the_shot_is_kept_and_that_of_the_sensor_is_not(tmp_path):
    tags = [(700, 1, len(XMP), XMP, True), (306, 2, 0, "2025:01:02 03:04:05", True), (37500, 7, 4, b"abcd", True)]
    write_dng(tmp_path / "a.dng", expose(scene(60, 80)), orientation=6, tags=tags)
    image = read_image(tmp_path / "a.dng")
    assert image.notes == ["the settings of another raw developer in it were not applied"]
    write_image(tmp_path / "a.tif", image.pixels, like=image)
    written = Image.open(tmp_path / "a.tif").getexif()
    assert (written[271], written[272], written[306]) == ("Maker", "Model 1", "2025:01:02 03:04:05")
    assert not {33421, 33422, 50706, 50714, 50717, 50721, 50728} & set(written)
    assert written.get_ifd(0x8769)[0xA001] == 0xFFFF  # not sRGB
    assert (written.get_ifd(0x8769)[0xA002], written.get_ifd(0x8769)[0xA003]) == (60, 80)
    assert b'tiff:Orientation="1"' in written[700] and b'crs:AlreadyApplied="True"' in written[700]


def bmff_boxes(**boxes):
    return b"".join(struct.pack(">I4s", len(content) + 8, name.encode()) + content for name, content in boxes.items())


def test_exif_is_found_where_each_maker_puts_it():
    """In a TIFF, in a TIFF with another number in place of 42, in the JPEG of a RAF, and in the boxes of a CR3."""
    block = exif_bytes()
    jpeg = Image.new("RGB", (16, 16))
    raf = b"FUJIFILMCCD-RAW ".ljust(84, b"\0")
    preview = io.BytesIO()
    jpeg.save(preview, "jpeg", exif=b"Exif\0\0" + block)
    raf += struct.pack(">II", 100, preview.tell()).ljust(16, b"\0") + preview.getvalue()
    part = Image.Exif()
    part[0x8827], part[0xA434] = 3200, "A lens"
    first = Image.Exif()
    first[0x010F] = "Maker"
    gps = Image.Exif()
    gps[1] = "N"
    parts = (exif.tobytes().removeprefix(b"Exif\0\0") for exif in (first, part, gps))
    cr3 = b"\0\0\0\x18ftypcrx " + bytes(12) + bmff_boxes(**dict(zip(("CMT1", "CMT2", "CMT4"), parts, strict=True)))
    order = block[:2]
    olympus = order + {b"II": b"RO", b"MM": b"OR"}[order] + block[4:]
    for data in (block, olympus, raf, cr3):
        tags = _read_tags(data)
        assert tags[0x010F][2].startswith(b"Maker")
        camera = tags[0x8769][2]
        assert int.from_bytes(camera[0x8827][2], "little") == 3200 and camera[0xA434][2].startswith(b"A lens")
        assert tags[0x8825][2][1][2].startswith(b"N")
    for data in (b"FUJIFILM", b"FUJIFILM" + bytes(100), b"", b"\0\0\0\x18ftypcrx ", b"II"):
        assert 0x010F not in _read_tags(data)


def test_damaged_raw_files_are_errors_of_one_sentence_and_print_nothing(tmp_path):
    write_dng(tmp_path / "a.dng", expose(scene(60, 80)))
    data = (tmp_path / "a.dng").read_bytes()
    (tmp_path / "cut.dng").write_bytes(data[: len(data) // 2])
    (tmp_path / "b.raf").write_bytes(b"FUJIFILMCCD-RAW " + bytes(1000))
    script = f"""
from gdd_diffusers.files import ImageFileError, read_image
for name in ("cut.dng", "b.raf"):
    try:
        read_image({str(tmp_path)!r} + "/" + name)
    except ImageFileError as error:
        assert "\\n" not in str(error)
        print(name, "looks like a raw file, but LibRaw cannot develop it" in str(error))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("cut.dng True\nb.raf True\n", "")


def test_the_limit_of_pixels_is_met_before_decoding(tmp_path):
    write_dng(tmp_path / "a.dng", expose(scene(60, 80)))
    assert read_image(tmp_path / "a.dng", max_pixels=9600).pixels.shape == (60, 80, 3)
    with pytest.raises(ImageFileError, match="80 x 60 pixels.*the limit for raw files"):
        read_image(tmp_path / "a.dng", max_pixels=9599)


def test_without_rawpy_the_extra_is_named_and_folders_leave_raw_files_out(tmp_path, monkeypatch):
    write_dng(tmp_path / "a.dng", expose(scene(60, 80)))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert [path.name for path in list_images([tmp_path])] == ["a.dng", "b.png"]
    monkeypatch.setitem(sys.modules, "rawpy", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImageFileError, match=r'a raw file; to read it, pip install "gdd-diffusers\[raw\]"'):
        read_image(tmp_path / "a.dng")
    assert [path.name for path in list_images([tmp_path])] == ["b.png"]


def test_raw_files_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="cannot be written as .dng"):
        write_image(tmp_path / "a.dng", np.zeros((8, 8, 3), np.uint8))

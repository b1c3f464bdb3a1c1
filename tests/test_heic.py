"""HEIC: decoded as it is, with what belongs to the image, and written as something that opens everywhere."""

import io
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import pyvips
from PIL import Image
from test_image_files import decoded, exif_block, exif_of, p3_profile, smooth, with_profile

from gdd_diffusers.files import ImageFileError, output_suffix, read_image, write_image


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d xmp:Rating="4"/></x:xmpmeta>'
ALPHA = b"urn:mpeg:hevc:2015:auxid:1"


def save_heic(path, pixels, bits=8, **options):
    """Encode without loss (x265 has its own matrix, so that a level may change by one)."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]] + (";16" if bits > 8 else "")
    image = pillow_heif.from_bytes(mode, pixels.shape[1::-1], pixels.tobytes())
    image.info.update(options.pop("info", {}))
    image.save(path, quality=-1, chroma=444, **options)


def test_8_bits_come_out_as_jpeg_with_profile_exif_and_xmp(tmp_path):
    pixels = smooth()
    save_heic(tmp_path / "a.heic", pixels, info={"icc_profile": p3_profile()}, exif=exif_block(), xmp=XMP)
    image = read_image(tmp_path / "a.heic")
    assert (image.format, image.bits, image.pixels.dtype) == ("heic", 8, np.uint8)
    assert np.abs(image.native.astype(int) - pixels).max() <= 2
    assert output_suffix(tmp_path / "a.heic") == ".jpg"
    write_image(tmp_path / "a.jpg", image.pixels, like=image)
    assert np.abs(decoded(tmp_path / "a.jpg").astype(int) - pixels).max() <= 8
    written = Image.open(tmp_path / "a.jpg")
    assert written.info["icc_profile"] == p3_profile()
    assert exif_of(tmp_path / "a.jpg")[1:3] == ("Model 1", 3200)
    assert written.info["xmp"] == XMP


def test_10_bits_stay_10(tmp_path):
    codes = (smooth(dtype=np.uint16).astype(int) * 1023 // 65535).astype(np.uint16)
    codes[0, 0], codes[0, 1] = 1023, 0
    save_heic(tmp_path / "a.heic", codes << 6, bits=10)
    image = read_image(tmp_path / "a.heic")
    assert (image.bits, image.pixels.dtype) == (10, np.uint16)
    assert np.abs((image.pixels >> 6).astype(int) - codes).max() <= 2
    assert len(np.unique(image.pixels >> 6 & 3)) == 4
    assert image.pixels.max() == 65535
    assert output_suffix(tmp_path / "a.heic") == ".png"
    write_image(tmp_path / "a.png", image.pixels, like=image)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png") >> 6, image.pixels >> 6)


def test_grey_and_alpha(tmp_path):
    save_heic(tmp_path / "grey.heic", smooth()[..., :1])
    assert read_image(tmp_path / "grey.heic").pixels.shape == (48, 64, 1)
    alpha = np.dstack([smooth(), smooth()[..., 0]])
    save_heic(tmp_path / "alpha.heic", alpha)
    image = read_image(tmp_path / "alpha.heic")
    assert np.abs(image.pixels.astype(int) - alpha).max() <= 2 and image.notes == []
    assert output_suffix(tmp_path / "alpha.heic") == ".png"


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0)), (2, (0, -1))])
def test_orientation_is_applied_once(tmp_path, orientation, corner):
    """Cameras state it twice, in the container and in EXIF; only that of the container counts."""
    pixels = np.full((48, 64, 3), 20, np.uint8)
    pixels[:24, :32] = 220
    save_heic(tmp_path / "a.heic", pixels, exif=exif_block(orientation))
    data = (tmp_path / "a.heic").read_bytes()
    # the encoder has moved the orientation from EXIF to the container: put it back into EXIF as well
    at = data.index(b"\x12\x01\x03\x00\x01\x00\x00\x00", data.index(b"Exif\0\0")) + 8
    (tmp_path / "a.heic").write_bytes(data[:at] + bytes([orientation]) + data[at + 1 :])
    image = read_image(tmp_path / "a.heic")
    assert image.pixels.shape == ((64, 48, 3) if orientation > 4 else (48, 64, 3))
    assert image.pixels[corner].min() > 200
    write_image(tmp_path / "a.jpg", image.pixels, like=image)
    assert exif_of(tmp_path / "a.jpg")[0] == 1


def test_sides_stated_as_they_were_before_turning_are_turned(tmp_path):
    """As iPhones state them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769).update({0xA002: 64, 0xA003: 48})
    save_heic(tmp_path / "a.heic", smooth(), exif=exif.tobytes())
    image = read_image(tmp_path / "a.heic")
    write_image(tmp_path / "a.jpg", image.pixels, like=image)
    written = Image.open(tmp_path / "a.jpg")
    camera = written.getexif().get_ifd(0x8769)
    assert written.size == (48, 64) == (camera[0xA002], camera[0xA003])


@pytest.mark.parametrize("primaries, transfer", [(1, 13), (12, 13), (9, 16)])
def test_colours_given_by_codes(tmp_path, primaries, transfer):
    path = tmp_path / "a.heic"
    save_heic(path, smooth(), color_primaries=primaries, transfer_characteristics=transfer)
    data = path.read_bytes()
    at = data.index(b"colrnclx") + 8
    path.write_bytes(data[:at] + bytes([0, primaries, 0, transfer]) + data[at + 4 :])
    if transfer == 16:
        with pytest.raises(ImageFileError, match="HDR or wide-gamut colour"):
            read_image(path)
    elif primaries == 12:
        image = read_image(path)
        assert np.abs(image.native.astype(int) - smooth()).max() <= 2
        write_image(tmp_path / "a.png", image.pixels, like=image)
        seen = pyvips.Image.new_from_file(str(tmp_path / "a.png")).icc_transform("srgb").numpy()
        expected = with_profile(smooth(), p3_profile()).icc_transform("srgb").numpy()
        assert np.abs(seen.astype(int) - expected).mean() < 1
    else:
        assert read_image(path).native is None


def test_of_several_images_the_main_one_is_read(tmp_path):
    pixels = smooth()
    images = pillow_heif.from_bytes("RGB", (64, 48), pixels.tobytes())
    images.add_frombytes("RGB", (64, 48), (255 - pixels).tobytes())
    images.save(tmp_path / "a.heic", quality=-1, chroma=444, primary_index=1)
    image = read_image(tmp_path / "a.heic")
    assert np.abs(image.pixels.astype(int) - (255 - pixels)).max() <= 2
    assert image.notes == ["it holds 2 images, and only the main image was read"]


def test_of_a_burst_the_main_image_is_read(tmp_path):
    save_heic(tmp_path / "a.heic", smooth())
    data = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "a.heic").write_bytes(data[:8] + b"msf1" + data[12:])
    image = read_image(tmp_path / "a.heic")
    assert np.abs(image.pixels.astype(int) - smooth()).max() <= 2
    assert image.notes == ["it is a sequence, and only the main image was read"]


@pytest.mark.parametrize(
    "kind, name",
    [(b"urn:mpeg:hevc:2015:auxid:2", "depth map"), (b"urn:com:apple:x:hdrgainmap", "gain map for HDR screens")],
    ids=["depth", "gain"],
)
def test_depth_and_gain_maps_are_left_out_and_said(tmp_path, kind, name):
    save_heic(tmp_path / "a.heic", np.dstack([smooth(), smooth()[..., 0]]))
    data = (tmp_path / "a.heic").read_bytes()
    assert data.count(ALPHA) == 1 and len(kind) == len(ALPHA)
    (tmp_path / "a.heic").write_bytes(data.replace(ALPHA, kind))
    image = read_image(tmp_path / "a.heic")
    assert image.pixels.shape == (48, 64, 3)
    assert image.notes == [f"what it holds beside the image was left out: {name}"]


def test_limits_and_damage_are_one_sentence(tmp_path):
    save_heic(tmp_path / "a.heic", smooth())
    data = (tmp_path / "a.heic").read_bytes()
    with pytest.raises(ImageFileError, match="the limit for HEIC"):
        read_image(tmp_path / "a.heic", max_pixels=48 * 64)
    (tmp_path / "cut.heic").write_bytes(data[:-200])
    at = data.index(b"ispe") + 8
    lie = data[:at] + bytes([0, 0, 0, 8, 0, 0, 0, 8]) + data[at + 8 :]
    (tmp_path / "lie.heic").write_bytes(lie)
    for name in ("cut.heic", "lie.heic"):
        with pytest.raises(ImageFileError, match="is damaged or of an unknown kind") as error:
            read_image(tmp_path / name)
        assert str(error.value).isprintable()
    assert output_suffix(tmp_path / "cut.heic") == output_suffix(tmp_path / "nothing.heic") == ".jpg"


def test_other_files_keep_their_extension(tmp_path):
    assert [output_suffix(Path(name)) for name in ("a.JPG", "a.png", "a", "a.NEF")] == [".JPG", ".png", "", ".tif"]
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, "jpeg")
    (tmp_path / "a.heic").write_bytes(buffer.getvalue())  # as some phones name what they share
    assert output_suffix(tmp_path / "a.heic") == ".jpg"

"""What is read and written again is the same to other programs, or it was said."""

import shutil

import numpy as np
import pytest
from PIL import Image
from round_trips import FORMATS, OF_A_FORMAT, PROFILES, differing_tags, gradient, largest_difference, make_source

from gdd_diffusers.files import read_image, write_image


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d xmp:Rating="4"/></x:xmpmeta>'


def exif_block():
    exif = Image.Exif()
    exif[0x010F], exif[0x013B], exif[0x4746] = "Maker", "Jose", 4
    exif.get_ifd(0x8769).update({0x8827: 800, 0x9400: 20.0, 0xFDE9: "a tag that nobody knows"})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 0.0)})
    return exif


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_exif_xmp_and_profile_cross_all_formats(tmp_path, source, target):
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(source, {})
    exif, profile = exif_block(), PROFILES["Display P3"]
    if source == "tif":
        exif[700] = XMP
    elif source != "png":
        options["xmp"] = XMP
    Image.fromarray(gradient()).save(tmp_path / f"in.{source}", exif=exif.tobytes(), icc_profile=profile, **options)
    image = read_image(tmp_path / f"in.{source}")
    if source == "png":
        # Pillow writes none
        image.metadata["xmp-data"] = XMP
    write_image(tmp_path / f"out.{target}", image.pixels, like=image)

    before, after = exif_block(), Image.open(tmp_path / f"out.{target}")
    written = after.getexif()
    for tag, value in before.items():
        assert tag in (0x8769, 0x8825) or written[tag] == value
    for directory in (0x8769, 0x8825):
        assert dict(written.get_ifd(directory)) == dict(before.get_ifd(directory))
    assert after.info["icc_profile"] == profile
    xmp = after.tag_v2[700] if target == "tif" else after.info["xmp"]
    assert bytes(xmp) == XMP
    assert image.notes == []


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs ExifTool")
@pytest.mark.parametrize("source", FORMATS)
def test_exiftool_finds_every_tag_or_it_was_said(tmp_path, source):
    for target, (groups, notes) in differing_tags(make_source(tmp_path, source)).items():
        expected = set()
        if target in ("webp", "avif") and source in OF_A_FORMAT:
            expected.add("IPTC")
        if source != target:
            expected |= {"jpg": {"comment"}, "png": {"text and time"}}.get(source, set())
        assert groups == expected
        assert any("IPTC" in note for note in notes) == ("IPTC" in groups)
        assert any("what only a" in note for note in notes) == bool(groups - {"IPTC"})


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("target", FORMATS)
def test_unchanged_pixels_stay_what_they_were(tmp_path, target, bits, name):
    largest = largest_difference(tmp_path, PROFILES[name], bits, target)
    assert largest == 0 if target in ("png", "tif") else largest <= 8


def test_wide_gamut_of_few_levels_shows_no_bands(tmp_path):
    """A ramp of 16 bits keeps all its levels through a linear profile, where 8 bits in between would leave 256."""
    ramp = np.linspace(0, 65535, 4096).round().astype(np.uint16).reshape(1, -1, 1).repeat(3, 2).repeat(8, 0)
    write_image(tmp_path / "in.png", ramp)
    image = read_image(tmp_path / "in.png")
    image.metadata["icc-profile-data"] = PROFILES["linear Rec. 2020"]
    write_image(tmp_path / "wide.png", image.pixels, like=image)
    image = read_image(tmp_path / "wide.png")
    assert len(np.unique(image.pixels[0, :, 1])) > 4000
    write_image(tmp_path / "out.tif", image.pixels - np.minimum(image.pixels, 40), like=image)  # darker by a little
    assert len(np.unique(read_image(tmp_path / "out.tif").native[0, :, 1])) > 3900

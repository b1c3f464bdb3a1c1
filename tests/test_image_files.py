"""Image files: what goes in must come out, upright, to the bit where the format allows, or one clear sentence."""

import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from gdd_diffusers.files import ImageFile, ImageFileError, check_output, list_images, read_image, write_image


GPS = {1: "N", 2: (48.0, 51.0, 30.0), 3: "E", 4: (2.0, 17.0, 40.0), 6: 35.5}
MAKER_NOTE = b"Maker\0" + bytes(range(256))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" rating="5"/></x:xmpmeta>'
IPTC = b"\x1c\x02\x78\0\x0bA caption \xe9" + b"\x1c\x02\x50\0\2me" + b"\x1c\x02\x19\0\4word"


def noise(height=24, width=40, channels=3, dtype=np.uint8):
    rng = np.random.default_rng(height * width + channels)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


def smooth(height=48, width=64, dtype=np.uint8):
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    image = np.stack([x, y, 1 - x], axis=-1) * 0.8 + 0.1
    return (image * np.iinfo(dtype).max).round().astype(dtype)


def vips(pixels):
    kinds = {
        (np.uint8, True): "b-w",
        (np.uint8, False): "srgb",
        (np.uint16, True): "grey16",
        (np.uint16, False): "rgb16",
    }
    kind = kinds[pixels.dtype.type, pixels.shape[2] < 3]
    return pyvips.Image.new_from_array(pixels).copy(interpretation=kind)


def decoded(path):
    """The file's own numbers, read without the code under test."""
    image = pyvips.Image.new_from_file(str(path))
    return image.numpy().reshape(image.height, image.width, image.bands)


def p3_profile():
    return pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb").icc_transform("p3").get("icc-profile-data")


def with_profile(pixels, profile):
    image = vips(pixels).copy()
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image


def exif_block(orientation=1, endian="<"):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0110], exif[0x0112] = "Camera", "Model 1", orientation
    camera = exif.get_ifd(0x8769)
    camera[0x829A], camera[0x8827], camera[0x927C], camera[0xFDE9] = 0.01, 3200, MAKER_NOTE, "an unknown tag"
    exif.get_ifd(0x8825).update(GPS)
    return exif.tobytes()  # with the six bytes that precede it in a JPEG


def exif_of(path):
    """(orientation, model, ISO, maker's note, unknown tag, GPS) by Pillow."""
    exif = Image.open(path).getexif()
    camera = exif.get_ifd(0x8769)
    gps = {tag: exif.get_ifd(0x8825)[tag] for tag in GPS}
    return exif.get(0x0112, 1), exif[0x0110], camera[0x8827], camera.get(0x927C), camera.get(0xFDE9), gps


def add_segments(path, *segments):
    """Put (marker, content) into a JPEG, before all else."""
    data = path.read_bytes()
    segments = [struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments]
    path.write_bytes(data[:2] + b"".join(segments) + data[2:])


def add_chunk(path, kind, content, broken=False):
    """Put a chunk into a PNG, before all else."""
    data, checksum = path.read_bytes(), zlib.crc32(kind + content) ^ broken
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    path.write_bytes(data[:33] + chunk + data[33:])


def photoshop_resource(kind, content):
    return b"8BIM" + struct.pack(">HHI", kind, 0, len(content)) + content + bytes(len(content) % 2)


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_formats_return_every_bit(tmp_path, extension, dtype, channels):
    pixels = noise(channels=channels, dtype=dtype)
    vips(pixels).write_to_file(str(tmp_path / f"in.{extension}"))
    image = read_image(tmp_path / f"in.{extension}")
    assert image.pixels.dtype == dtype and image.pixels.flags.writeable
    np.testing.assert_array_equal(image.pixels, pixels)
    write_image(tmp_path / f"out.{extension}", image.pixels, like=image)
    np.testing.assert_array_equal(decoded(tmp_path / f"out.{extension}"), pixels)
    assert decoded(tmp_path / f"out.{extension}").dtype == dtype


@pytest.mark.parametrize("channels", [3, 4])
def test_lossless_webp_stays_lossless_unless_a_quality_is_asked_for(tmp_path, channels):
    pixels = noise(channels=channels)
    Image.fromarray(pixels).save(tmp_path / "in.webp", lossless=True, exact=True, icc_profile=p3_profile())
    image = read_image(tmp_path / "in.webp")
    write_image(tmp_path / "out.webp", image.pixels, like=image)
    np.testing.assert_array_equal(decoded(tmp_path / "out.webp"), pixels)
    write_image(tmp_path / "lossy.webp", image.pixels, like=image, quality=80)
    assert (tmp_path / "lossy.webp").stat().st_size < 0.7 * (tmp_path / "out.webp").stat().st_size


@pytest.mark.parametrize("extension", ["jpg", "webp", "avif"])
def test_lossy_formats_stay_near(tmp_path, extension):
    pixels = smooth()
    write_image(tmp_path / f"a.{extension}", pixels)
    image = read_image(tmp_path / f"a.{extension}")
    assert image.format == {"jpg": "jpeg"}.get(extension, extension) and image.bits == 8
    assert np.abs(image.pixels.astype(int) - pixels).max() <= 8
    write_image(tmp_path / f"b.{extension}", image.pixels, like=image)
    assert np.abs(decoded(tmp_path / f"b.{extension}").astype(int) - image.pixels).max() <= 8


@pytest.mark.parametrize("size", [(1, 1), (5000, 3), (3, 5000), (1, 17)])
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp", "avif"])
def test_extreme_sizes(tmp_path, extension, size):
    pixels = np.full((*size, 3), 90, np.uint8)
    write_image(tmp_path / f"a.{extension}", pixels)
    image = read_image(tmp_path / f"a.{extension}")
    write_image(tmp_path / f"b.{extension}", image.pixels, like=image)
    assert decoded(tmp_path / f"b.{extension}").shape == pixels.shape
    assert np.abs(decoded(tmp_path / f"b.{extension}").astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_keeps_its_depth_and_its_white(tmp_path, bits):
    levels = 2**bits - 1
    codes = (smooth(dtype=np.uint16).astype(int) * levels // 65535).astype(np.uint16)
    codes[0, 0], codes[0, 1] = levels, 0
    vips(codes << (16 - bits)).heifsave(str(tmp_path / "in.avif"), compression="av1", bitdepth=bits, lossless=True)
    image = read_image(tmp_path / "in.avif")
    assert image.bits == bits and image.pixels[0, 0].tolist() == [65535] * 3
    np.testing.assert_array_equal(image.pixels >> (16 - bits), codes)
    image.saving = {"lossless": True}
    write_image(tmp_path / "out.avif", image.pixels, like=image)
    assert pyvips.Image.new_from_file(str(tmp_path / "out.avif")).get("bits-per-sample") == bits
    np.testing.assert_array_equal(read_image(tmp_path / "out.avif").pixels, image.pixels)


def test_palettes_and_bilevel_images_are_expanded(tmp_path):
    palette = Image.fromarray(smooth()).quantize(32)
    for name in ("p.png", "p.tif"):
        palette.save(tmp_path / name)
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(image.pixels, np.asarray(palette.convert("RGB")))
        write_image(tmp_path / f"out-{name}", image.pixels, like=image)
        np.testing.assert_array_equal(decoded(tmp_path / f"out-{name}"), image.pixels)
    palette.save(tmp_path / "t.png", transparency=0)
    assert read_image(tmp_path / "t.png").pixels.shape == (48, 64, 4)
    bilevel = Image.fromarray(noise(channels=1)[..., 0] > 127)
    for name in ("b.png", "b.tif"):
        bilevel.save(tmp_path / name)
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(image.pixels[..., 0], np.asarray(bilevel) * 255)
        half = image.pixels // 2
        write_image(tmp_path / f"out-{name}", half, like=image)
        np.testing.assert_array_equal(decoded(tmp_path / f"out-{name}"), half)


def test_progressive_jpeg_stays_progressive_and_quality_never_falls(tmp_path):
    for quality, expected in ((60, 95), (95, 95), (98, 98), (100, 100)):
        Image.fromarray(smooth()).save(tmp_path / "in.jpg", quality=quality, progressive=quality == 98)
        image = read_image(tmp_path / "in.jpg")
        assert image.saving == {"interlace": quality == 98, "Q": expected}
        write_image(tmp_path / "out.jpg", image.pixels, like=image, overwrite=True)
        out = Image.open(tmp_path / "out.jpg")
        assert ("progressive" in out.info) == (quality == 98)
        assert {layer[1:3] for layer in out.layer} == {(1, 1)}  # 4:4:4
        assert read_image(tmp_path / "out.jpg").saving["Q"] == expected
    write_image(tmp_path / "small.jpg", image.pixels, like=image, quality=50)
    assert (tmp_path / "small.jpg").stat().st_size < (tmp_path / "out.jpg").stat().st_size / 2


def test_cmyk_comes_out_as_rgb(tmp_path):
    # white, black ink, and pure cyan, magenta and yellow
    inks = np.zeros((1, 5, 4), np.uint8)
    inks[0, 1, 3] = inks[0, 2, 0] = inks[0, 3, 1] = inks[0, 4, 2] = 255
    inks = inks.repeat(16, 0).repeat(16, 1)
    Image.fromarray(inks, "CMYK").save(tmp_path / "in.jpg", quality=100, subsampling=0)
    Image.fromarray(inks, "CMYK").save(tmp_path / "in.tif")
    for name in ("in.jpg", "in.tif"):
        image = read_image(tmp_path / name)
        white, black, cyan, magenta, yellow = image.pixels[8, 8::16].astype(int)
        assert white.min() > 250 and black.max() < 60
        assert cyan[0] < 60 < 130 < cyan[2] and magenta[1] < 60 < 180 < magenta[0] and yellow[2] < 80 < 220 < yellow[0]
        write_image(tmp_path / f"out-{name}", image.pixels, like=image)
        out = pyvips.Image.new_from_file(str(tmp_path / f"out-{name}"))
        assert out.interpretation == "srgb" and "icc-profile-data" not in out.get_fields()
        assert np.abs(out.numpy().astype(int) - image.pixels).max() <= 2


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_metadata_stays(tmp_path, extension, orientation):
    upright = smooth()
    stored = vips(upright)
    undo = {1: [], 2: ["fliphor"], 3: ["rot180"], 4: ["flipver"], 6: ["rot270"], 8: ["rot90"]}
    undo |= {5: ["rot270", "flipver"], 7: ["rot90", "flipver"]}
    for step in undo[orientation]:
        stored = getattr(stored, step)()
    Image.fromarray(stored.numpy()).save(tmp_path / "in.png", exif=exif_block(orientation))
    if extension == "tif":
        # Pillow writes no EXIF into a TIFF, so let the code under test do it, and set the orientation by hand
        pixels = stored.numpy()
        write_image(tmp_path / "in.tif", pixels, like=ImageFile(pixels, "tiff", 8, exif=exif_block()[6:]))
        tiff = bytearray((tmp_path / "in.tif").read_bytes())
        entry = tiff.rindex(bytes([0x12, 0x01, 3, 0, 1, 0, 0, 0]))
        tiff[entry + 8] = orientation
        (tmp_path / "in.tif").write_bytes(tiff)
    elif extension != "png":
        options = {"quality": 100, "subsampling": 0} if extension == "jpg" else {"lossless": True}
        Image.open(tmp_path / "in.png").save(tmp_path / f"in.{extension}", exif=exif_block(orientation), **options)
    image = read_image(tmp_path / f"in.{extension}")
    assert np.abs(image.pixels.astype(int) - upright).max() <= (3 if extension == "jpg" else 0)
    write_image(tmp_path / f"out.{extension}", image.pixels, like=image)
    assert np.abs(decoded(tmp_path / f"out.{extension}").astype(int) - upright).max() <= (
        5 if extension == "jpg" else 0
    )
    assert exif_of(tmp_path / f"out.{extension}") == (1, "Model 1", 3200, MAKER_NOTE, "an unknown tag", GPS)


@pytest.mark.parametrize("source", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("target", ["jpg", "png", "tif", "webp", "avif"])
def test_metadata_crosses_formats(tmp_path, source, target):
    pixels = smooth()
    first = ImageFile(pixels, "png", 8, resolution=(300 / 25.4, 300 / 25.4), exif=exif_block()[6:])
    profile = p3_profile()
    for name, value in {"xmp-data": XMP, "icc-profile-data": profile}.items():
        first.metadata[name] = value
    write_image(tmp_path / f"in.{source}", pixels, like=first)
    image = read_image(tmp_path / f"in.{source}")
    write_image(tmp_path / f"out.{target}", image.pixels, like=image)
    out = pyvips.Image.new_from_file(str(tmp_path / f"out.{target}"))
    assert out.get("icc-profile-data") == profile
    assert out.get("xmp-data") == XMP.replace(b'Orientation="6"', b'Orientation="1"')
    assert exif_of(tmp_path / f"out.{target}") == (1, "Model 1", 3200, MAKER_NOTE, "an unknown tag", GPS)
    if target in ("webp", "avif"):
        stated = Image.open(tmp_path / f"out.{target}").getexif()
        assert round(stated[0x011A] * {2: 1, 3: 2.54}[stated[0x0128]]) == 300
    else:
        assert round(out.xres * 25.4) == 300


@pytest.mark.parametrize("endian", ["<", ">"])
def test_jpeg_exif_stays_byte_for_byte_but_for_orientation_and_thumbnail(tmp_path, endian):
    block = exif_block(6, endian)
    # hang a second directory behind the first, as cameras do for the thumbnail
    next_directory = 6 + 8 + 2 + 12 * 5
    assert block[next_directory : next_directory + 4] == bytes(4)
    thumbnail = struct.pack(endian + "IHI", len(block) - 6, 0, 0)
    Image.fromarray(smooth()).save(
        tmp_path / "in.jpg", exif=block[:next_directory] + thumbnail[:4] + block[next_directory + 4 :] + thumbnail[4:]
    )
    image = read_image(tmp_path / "in.jpg")
    assert image.pixels.shape == (64, 48, 3)
    orientation = struct.pack(endian + "HHIH", 0x0112, 3, 1, 6)
    expected = block.replace(orientation, struct.pack(endian + "HHIH", 0x0112, 3, 1, 1)) + thumbnail[4:]
    for name in ("out.jpg", "out.png"):
        write_image(tmp_path / name, image.pixels, like=image)
        out = Image.open(tmp_path / name)
        assert b"Exif\0\0" + out.info["exif"].removeprefix(b"Exif\0\0") == expected
    for name in ("out.tif", "out.webp"):
        write_image(tmp_path / name, image.pixels, like=image)
        assert exif_of(tmp_path / name)[:4] == (1, "Model 1", 3200, MAKER_NOTE)


def test_exif_too_long_for_a_jpeg_loses_its_longest_tags_only(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "Model 1"
    exif.get_ifd(0x8769).update({0x8827: 3200, 0x927C: bytes(70_000)})
    exif.get_ifd(0x8825).update(GPS)
    pixels = smooth()
    image = ImageFile(pixels, "tiff", 8, exif=exif.tobytes()[6:])
    write_image(tmp_path / "out.jpg", pixels, like=image)
    assert exif_of(tmp_path / "out.jpg")[1:] == ("Model 1", 3200, None, None, GPS)
    exif[0x9C9C] = bytes(70_000)
    image.exif = exif.tobytes()[6:]
    write_image(tmp_path / "out.jpg", pixels, like=image, overwrite=True)
    assert exif_of(tmp_path / "out.jpg")[1:] == ("Model 1", 3200, None, None, GPS)
    assert image.notes == ["the longest tags of its EXIF were left out, since jpeg holds 64 KB of it"]


@pytest.mark.parametrize("iptc", [IPTC, IPTC + b"\x1c\x02\x69\0\2!!"], ids=["even length", "odd length"])
@pytest.mark.parametrize("target", ["jpg", "tif"])
@pytest.mark.parametrize("source", ["jpg", "tif"])
def test_iptc_crosses_jpeg_and_tiff(tmp_path, source, target, iptc):
    path, clipping = tmp_path / f"in.{source}", bytes(range(9))
    others = photoshop_resource(2000, clipping)
    Image.fromarray(smooth()).save(path, **{"tiffinfo": {33723: iptc, 34377: others}} if source == "tif" else {})
    if source == "jpg":
        blocks = photoshop_resource(0x0404, iptc), others
        add_segments(path, *[(0xED, b"Photoshop 3.0\0" + block) for block in blocks])
    image = read_image(path)
    write_image(tmp_path / f"out.{target}", image.pixels, like=image)
    out = Image.open(tmp_path / f"out.{target}")
    if target == "jpg":
        assert out.info["photoshop"] == {0x0404: iptc, 2000: clipping}
    else:
        assert out.tag_v2[33723] == iptc and out.tag_v2[34377].endswith(others)


def test_iptc_that_calls_itself_numbers_is_not_turned_round(tmp_path):
    iptc = IPTC + bytes(-len(IPTC) % 4)
    big_endian = noise(channels=1, dtype=np.uint16)[..., 0].astype(">u2")
    Image.fromarray(big_endian).save(tmp_path / "in.tif", tiffinfo={33723: iptc})
    data, entry = (tmp_path / "in.tif").read_bytes(), struct.pack(">HHI", 33723, 7, len(iptc))
    assert data.startswith(b"MM") and data.count(entry) == 1
    (tmp_path / "in.tif").write_bytes(data.replace(entry, struct.pack(">HHI", 33723, 4, len(iptc) // 4)))
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.tif", image.pixels, like=image)
    assert Image.open(tmp_path / "out.tif").tag_v2[33723] == iptc


def test_more_iptc_than_a_segment_of_a_jpeg_holds(tmp_path):
    iptc = IPTC + b"\x1c\x02\xca\x80\4" + struct.pack(">I", 150_000) + bytes(range(250)) * 600
    Image.fromarray(smooth()).save(tmp_path / "in.tif", tiffinfo={33723: iptc})
    for source, target in (("in.tif", "a.jpg"), ("a.jpg", "b.jpg"), ("b.jpg", "out.tif")):
        image = read_image(tmp_path / source)
        write_image(tmp_path / target, image.pixels, like=image)
    assert Image.open(tmp_path / "out.tif").tag_v2[33723] == iptc


@pytest.mark.parametrize("source", ["jpg", "png", "tif"])
def test_xmp_as_long_as_a_segment_of_a_jpeg(tmp_path, source):
    pixels, xmp = smooth(), XMP.replace(b'"6"', b'"1"').ljust(65_502)
    first = ImageFile(pixels, "png", 8, metadata={"xmp-data": xmp})
    write_image(tmp_path / f"in.{source}", pixels, like=first)
    image = read_image(tmp_path / f"in.{source}")
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    assert pyvips.Image.new_from_file(str(tmp_path / "out.jpg")).get("xmp-data") == xmp
    image.metadata["xmp-data"] = xmp + b" "
    with pytest.raises(ImageFileError, match="its XMP is too long for jpeg; use png, tiff, webp or avif"):
        check_output(tmp_path / "longer.jpg", image.pixels, like=image)


def test_extended_xmp_stays_in_a_jpeg_and_goes_nowhere_else(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "in.jpg")
    parts = [
        b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", 80_000, at) + bytes(40_000)
        for at in (0, 40_000)
    ]
    # the order is free
    add_segments(tmp_path / "in.jpg", *[(0xE1, part) for part in (*parts, b"http://ns.adobe.com/xap/1.0/\0" + XMP)])
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    out = Image.open(tmp_path / "out.jpg")
    assert [content for _, content in out.applist if b"extension" in content] == parts
    assert out.info["xmp"] == XMP.replace(b'"6"', b'"1"')
    with pytest.raises(ImageFileError, match="png cannot hold XMP of several parts; use jpeg"):
        check_output(tmp_path / "out.png", image.pixels, like=image)


def test_text_of_a_png_stays_byte_for_byte(tmp_path):
    text = PngInfo()
    text.add_text("Title", "Café")
    text.add_text("Comment", "long " * 100, zip=True)
    text.add_itxt("Author", "José, 東京", lang="es", tkey="Autor")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode() + "東京")
    Image.fromarray(smooth()).save(tmp_path / "in.png", pnginfo=text)
    data = (tmp_path / "in.png").read_bytes()
    start = data.index(b"tEXt") - 4
    title_to_author = data[start : data.index(b"XML:com") - 8]
    image = read_image(tmp_path / "in.png")
    write_image(tmp_path / "out.png", image.pixels, like=image)
    assert title_to_author in (tmp_path / "out.png").read_bytes()
    out = Image.open(tmp_path / "out.png")
    expected = {"Title": "Café", "Comment": "long " * 100, "Author": "José, 東京"}
    expected["XML:com.adobe.xmp"] = XMP.decode().replace('"6"', '"1"') + "東京"
    assert out.text == expected


def test_broken_text_of_a_png_is_left_out(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "in.png")
    add_chunk(tmp_path / "in.png", b"tEXt", b"Title\0Broken", broken=True)
    assert read_image(tmp_path / "in.png").verbatim == b""


def test_no_metadata_is_made_up(tmp_path):
    for extension in ("jpg", "png", "tif", "webp", "avif"):
        write_image(tmp_path / f"a.{extension}", smooth())
        fields = pyvips.Image.new_from_file(str(tmp_path / f"a.{extension}")).get_fields()
        assert not {"exif-data", "icc-profile-data", "xmp-data"} & set(fields)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_left_out(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\0")
    image = read_image(tmp_path / "a.jpg")
    assert image.exif == b""
    write_image(tmp_path / "b.tif", image.pixels, like=image)


def test_tiff_keeps_its_compression_and_descriptions(tmp_path):
    for compression, expected in ((None, 1), ("tiff_lzw", 5), ("tiff_adobe_deflate", 8), ("jpeg", 8), ("packbits", 8)):
        tags = {270: "a description", 305: "a program", 33432: "somebody"}
        Image.fromarray(smooth()).save(tmp_path / "in.tif", compression=compression, tiffinfo=tags)
        image = read_image(tmp_path / "in.tif")
        write_image(tmp_path / "out.tif", image.pixels, like=image, overwrite=True)
        out = Image.open(tmp_path / "out.tif")
        assert out.tag_v2[259] == expected
        assert {tag: out.tag_v2[tag] for tag in tags} == tags


@pytest.mark.parametrize("big", [False, True])
def test_bigtiff_keeps_its_compression_and_descriptions(tmp_path, big):
    tags = {270: "a description", 305: "a program", 33432: "somebody", 33723: IPTC}
    Image.fromarray(smooth()).save(tmp_path / "in.tif", tiffinfo=tags, big_tiff=True)
    assert (tmp_path / "in.tif").read_bytes().startswith(b"II+\0")
    image = read_image(tmp_path / "in.tif")
    image.saving["bigtiff"] = big
    write_image(tmp_path / "out.tif", image.pixels, like=image)
    assert (tmp_path / "out.tif").read_bytes().startswith(b"II+\0" if big else b"II*\0")
    np.testing.assert_array_equal(decoded(tmp_path / "out.tif"), smooth())
    out = Image.open(tmp_path / "out.tif")
    assert out.tag_v2[259] == 1
    assert {tag: out.tag_v2[tag] for tag in tags} == tags


def test_bigtiff_keeps_exif(tmp_path):
    image = ImageFile(smooth(), "tiff", 8, exif=exif_block()[6:], saving={"bigtiff": True})
    write_image(tmp_path / "in.tif", image.pixels, like=image)
    assert (tmp_path / "in.tif").read_bytes().startswith(b"II+\0")
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.tif", image.pixels, like=image)
    for name in ("in.tif", "out.tif"):
        assert exif_of(tmp_path / name) == (1, "Model 1", 3200, MAKER_NOTE, "an unknown tag", GPS)


def test_profiles_that_mean_srgb_change_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = noise()
    with_profile(pixels, profile).pngsave(str(tmp_path / "in.png"))
    image = read_image(tmp_path / "in.png")
    assert image.native is None
    np.testing.assert_array_equal(image.pixels, pixels)
    write_image(tmp_path / "out.png", image.pixels, like=image)
    np.testing.assert_array_equal(decoded(tmp_path / "out.png"), pixels)
    assert pyvips.Image.new_from_file(str(tmp_path / "out.png")).get("icc-profile-data") == profile


def test_profiles_that_cannot_be_used_leave_the_numbers_alone(tmp_path):
    press = vips(noise(channels=4)).copy(interpretation="cmyk").icc_transform("cmyk").get("icc-profile-data")
    for profile in (b"not a profile", press):
        Image.fromarray(noise()).save(tmp_path / "in.tif", icc_profile=profile)
        image = read_image(tmp_path / "in.tif")
        np.testing.assert_array_equal(image.pixels, noise())
        write_image(tmp_path / "out.tif", image.pixels, like=image, overwrite=True)
        np.testing.assert_array_equal(decoded(tmp_path / "out.tif"), noise())


P3 = np.array([[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0, 0.0451134, 1.0439444]])
SRGB = np.array(
    [[0.4123908, 0.3575843, 0.1804808], [0.2126390, 0.7151687, 0.0721923], [0.0193308, 0.1191948, 0.9505322]]
)


def convert(values, source, target):
    """[0, 1] values of one set of primaries in another, with the sRGB curve on both sides (IEC 61966-2-1)."""
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ source.T @ np.linalg.inv(target).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [3, 4])
def test_wide_gamut_is_shown_as_srgb_and_kept_to_the_bit(tmp_path, dtype, channels):
    white = np.iinfo(dtype).max
    pixels = noise(channels=channels, dtype=dtype)
    pixels[0, :6, :3] = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]) * white
    with_profile(pixels, p3_profile()).tiffsave(str(tmp_path / "in.tif"))
    image = read_image(tmp_path / "in.tif")
    expected = convert(pixels[..., :3] / white, P3, SRGB)
    assert np.abs(image.pixels[..., :3] / white - expected).max() < 0.04
    assert np.abs(image.pixels[..., :3] / white - expected).mean() < 0.003
    assert np.abs(expected - pixels[..., :3] / white).max() > 0.3  # or the test would say nothing
    write_image(tmp_path / "out.tif", image.pixels, like=image)
    np.testing.assert_array_equal(decoded(tmp_path / "out.tif"), pixels)
    write_image(tmp_path / "float.tif", image.pixels / np.float32(white), like=image)
    np.testing.assert_array_equal(decoded(tmp_path / "float.tif"), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_denoising_a_wide_gamut_image_denoises_it_in_its_own_colours(tmp_path, dtype):
    white = np.iinfo(dtype).max
    rng = np.random.default_rng(0)
    srgb = 0.3 + 0.4 * smooth() / 255
    clean = convert(srgb, SRGB, P3)
    noisy = (np.clip(clean + rng.normal(0, 0.03, clean.shape), 0, 1) * white).round().astype(dtype)
    with_profile(noisy, p3_profile()).pngsave(str(tmp_path / "in.png"))
    image = read_image(tmp_path / "in.png")
    write_image(tmp_path / "out.png", (srgb * white).round().astype(dtype), like=image)
    error = decoded(tmp_path / "out.png") / white - clean
    print(np.abs(error).max(), np.abs(error).mean(), np.abs(noisy / white - clean).max(), np.abs(clean - srgb).max())
    assert np.abs(error).max() < 0.012 and np.abs(error).mean() < 0.003


def test_colours_beyond_srgb_survive_denoising(tmp_path):
    rng = np.random.default_rng(0)
    red = np.full((32, 32, 3), (250, 10, 10), np.uint8)
    noisy = np.clip(red + rng.normal(0, 3, red.shape), 0, 255).round().astype(np.uint8)
    with_profile(noisy, p3_profile()).pngsave(str(tmp_path / "in.png"))
    image = read_image(tmp_path / "in.png")
    flat = np.broadcast_to(image.pixels.mean((0, 1)).round(), image.pixels.shape).astype(np.uint8)
    write_image(tmp_path / "out.png", flat, like=image)
    out = decoded(tmp_path / "out.png").astype(float)
    # plain conversion there and back would give (234, 51, 35): sRGB has no such red
    assert np.abs(out.mean((0, 1)) - noisy.mean((0, 1))).max() < 1.5
    assert np.abs(out - noisy).max() <= 3


def test_grey_keeps_its_numbers_and_its_profile(tmp_path):
    lab = vips(noise(channels=1)).colourspace("lab")
    pixels = noise(channels=1)
    profile = lab.icc_export(output_profile="srgb").get("icc-profile-data")
    with_profile(pixels, profile).pngsave(str(tmp_path / "in.png"))
    image = read_image(tmp_path / "in.png")
    np.testing.assert_array_equal(image.pixels, pixels)


def test_gain_map_of_an_hdr_jpeg_is_kept_and_turned(tmp_path):
    bright = vips(smooth()).colourspace("scrgb") * 3
    bright.copy(interpretation="scrgb").uhdrsave(str(tmp_path / "hdr.jpg"), keep="none")
    plain = read_image(tmp_path / "hdr.jpg")
    ((what, gain_map),) = plain.attached
    assert what == "gain map"
    plain.metadata["xmp-data"] = XMP.replace(b"<d", b'<Item:Length="%d"/><d' % len(gain_map))
    plain.exif = exif_block(6)[6:]
    write_image(tmp_path / "in.jpg", plain.pixels, like=plain)
    assert (tmp_path / "in.jpg").read_bytes().endswith(gain_map)
    image = read_image(tmp_path / "in.jpg")
    assert image.format == "jpeg" and image.pixels.shape == (64, 48, 3)
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    out = pyvips.Image.new_from_file(str(tmp_path / "out.jpg"))
    assert out.get("vips-loader") == "uhdrload"
    gain = pyvips.Image.jpegload_buffer(out.get("gainmap-data"))
    assert (gain.width, gain.height) == (24, 32)
    assert exif_of(tmp_path / "out.jpg")[0:2] == (1, "Model 1")
    ((_, turned),) = image.attached
    xmp = XMP.replace(b'"6"', b'"1"').replace(b"<d", b'<Item:Length="%d"/><d' % len(turned))
    assert Image.open(tmp_path / "out.jpg").info["xmp"] == xmp
    own = image.pixels if image.native is None else image.native
    assert np.abs(decoded(tmp_path / "out.jpg").astype(int) - own).max() <= 6


def test_depth_is_reduced_by_rounding(tmp_path):
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    write_image(tmp_path / "a.png", pixels)
    image = read_image(tmp_path / "a.png")
    assert image.bits == 16
    write_image(tmp_path / "a.webp", pixels.repeat(3, 2))
    write_image(tmp_path / "a.jpg", pixels, like=image, quality=100)
    expected = (pixels / 257.0).round()
    assert np.abs(decoded(tmp_path / "a.jpg") - expected).max() <= 1
    image.bits = 8
    write_image(tmp_path / "8.png", pixels, like=image)
    np.testing.assert_array_equal(decoded(tmp_path / "8.png"), expected)
    write_image(tmp_path / "f.png", (expected / 255).astype(np.float32))
    np.testing.assert_array_equal(decoded(tmp_path / "f.png"), expected)


def test_float_pixels_are_clipped_and_take_the_depth_of_the_file(tmp_path):
    pixels = noise(dtype=np.uint16)
    write_image(tmp_path / "in.tif", pixels)
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.tif", pixels / np.float32(65535), like=image)
    np.testing.assert_array_equal(decoded(tmp_path / "out.tif"), pixels)
    write_image(tmp_path / "clipped.png", np.float32([[[-0.1, 0.5, 1.1]]]))
    assert decoded(tmp_path / "clipped.png").tolist() == [[[0, 128, 255]]]


def test_pixels_need_not_be_contiguous(tmp_path):
    pixels = noise(dtype=np.uint16)[::-1, ::2].astype(">u2")
    write_image(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png"), pixels)


def test_a_file_that_changed_is_read_anew(tmp_path):
    for value in (10, 200):
        write_image(tmp_path / "a.png", np.full((4, 4, 3), value, np.uint8), overwrite=True)
        assert read_image(tmp_path / "a.png").pixels.max() == value


def test_names_that_libvips_would_misread(tmp_path):
    folder = tmp_path / "2024 [raw]"
    folder.mkdir()
    write_image(folder / "a[page=3].png", noise())
    (folder / "a[page=3].png").rename(folder / "b.png[1]")
    np.testing.assert_array_equal(read_image(folder / "b.png[1]").pixels, noise())
    assert list_images([folder / "b.png[1]"]) == [folder / "b.png[1]"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere names are Unicode")
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp", "avif"])
def test_names_that_are_not_utf_8(tmp_path, extension):
    folder = tmp_path / os.fsdecode(b"\xe9t\xe9")
    folder.mkdir()
    write_image(folder / os.fsdecode(b"caf\xe9." + extension.encode()), noise())
    (file,) = list_images([folder])
    image = read_image(file)
    write_image(file, image.pixels, like=image, overwrite=True)
    assert read_image(file).pixels.shape == (24, 40, 3)
    file.write_bytes(b"hello, world")
    with pytest.raises(ImageFileError, match="is no JPEG"):
        read_image(file)
    write_image(tmp_path / f"a.{extension}", noise())  # what libvips said of the bad name is no more


# what cannot be read


def test_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(FileNotFoundError, match="no.jpg does not exist"):
        read_image(tmp_path / "no.jpg")
    with pytest.raises(ImageFileError, match="empty.jpg is empty"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageFileError, match="is not a file"):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"hello, world\n", b"1,2,3\n4,5,6\n", bytes(1000)])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageFileError, match="a.jpg is no JPEG, PNG, TIFF, WebP, AVIF, HEIC or raw image"):
        read_image(tmp_path / "a.jpg")


def test_formats_that_libvips_knows_but_we_do_not(tmp_path):
    (tmp_path / "a.png").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    vips(noise()).gifsave(str(tmp_path / "b.gif"))
    for name in ("a.png", "b.gif"):
        with pytest.raises(ImageFileError, match="is no JPEG"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize(
    "name", ["a.jpg", "progressive.jpg", "a.png", "a.tif", "lzw.tif", "a.webp", "lossless.webp", "a.avif"]
)
def test_truncated_files_are_errors(tmp_path, name, share):
    options = {
        "progressive.jpg": {"interlace": True},
        "lzw.tif": {"compression": "lzw"},
        "lossless.webp": {"lossless": True},
        "a.avif": {"compression": "av1", "effort": 0},
    }.get(name, {})
    vips(noise(200, 300)).write_to_file(str(tmp_path / name), **options)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageFileError, match="damaged"):
        read_image(tmp_path / name)


def bomb(path):
    """A file whose header promises 20000x10000 pixels, and whose body has a few."""
    small = noise(64, 64)
    if path.suffix == ".png":
        vips(small).pngsave(str(path), interlace="interlaced" in path.name)
        data = bytearray(path.read_bytes())
        data[16:24] = struct.pack(">II", 20000, 10000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif path.suffix == ".jpg":
        vips(small).jpegsave(str(path), interlace="progressive" in path.name)
        data = bytearray(path.read_bytes())
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[at + 5 : at + 9] = (10000).to_bytes(2, "big") + (20000).to_bytes(2, "big")
    else:
        vips(small).tiffsave(str(path), tile="tiled" in path.name, tile_width=16, tile_height=16)
        data = bytearray(path.read_bytes())
        for tag, value in ((256, 20000), (257, 10000)):
            at = data.rindex(tag.to_bytes(2, "little") + b"\3\0\1\0\0\0")
            data[at + 8 : at + 10] = value.to_bytes(2, "little")
    path.write_bytes(data)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
@pytest.mark.parametrize("name", ["a.png", "interlaced.png", "a.jpg", "progressive.jpg", "a.tif", "tiled.tif"])
def test_header_bomb_fails_without_taking_the_memory(tmp_path, name):
    bomb(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 20_000
    script = f"""
from gdd_diffusers.files import ImageFileError, read_image
from process_memory import peak_megabytes

before = peak_megabytes()
try:
    read_image({str(tmp_path / name)!r})
except ImageFileError as error:
    print(error)
print(peak_megabytes() - before)
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    message, megabytes = run.stdout.splitlines()
    assert "damaged" in message and run.stderr == ""
    assert float(megabytes) < 60  # the pixels would be 600


def test_more_pixels_than_the_limit(tmp_path):
    write_image(tmp_path / "a.png", noise())
    with pytest.raises(ImageFileError, match="a.png has 40 x 24 pixels.*max_pixels"):
        read_image(tmp_path / "a.png", max_pixels=900)
    assert read_image(tmp_path / "a.png", max_pixels=960).pixels.shape == (24, 40, 3)


def test_several_images_in_a_file(tmp_path):
    frames = [Image.fromarray(noise()), Image.fromarray(noise() // 2)]
    for name in ("a.tif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageFileError, match="holds 2 images"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16])
def test_other_depths(tmp_path, dtype):
    pyvips.Image.new_from_array(np.zeros((4, 4, 3), dtype)).tiffsave(str(tmp_path / "a.tif"))
    with pytest.raises(ImageFileError, match="convert it to grey, RGB or CMYK of 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    write_image(tmp_path / "a.png", noise())
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(ImageFileError, match="permission denied"):
        read_image(tmp_path / "a.png")


def test_other_channels(tmp_path):
    pyvips.Image.new_from_array(np.zeros((4, 4, 5), np.uint8)).copy(interpretation="srgb").tiffsave(
        str(tmp_path / "a.tif")
    )
    vips(noise()).colourspace("lab").tiffsave(str(tmp_path / "b.tif"))
    for name in ("a.tif", "b.tif"):
        with pytest.raises(ImageFileError, match="convert it"):
            read_image(tmp_path / name)


def test_colours_by_code_are_kept_or_refused(tmp_path):
    vips(smooth()).heifsave(str(tmp_path / "a.avif"), compression="av1", lossless=True)
    write_image(tmp_path / "a.png", smooth())
    avif, png = (tmp_path / "a.avif").read_bytes(), (tmp_path / "a.png").read_bytes()
    for primaries, transfer in ((1, 13), (9, 16), (9, 18), (12, 13)):
        colour = b"colrnclx" + struct.pack(">HH", primaries, transfer)
        at = avif.index(b"colrnclx")
        (tmp_path / "b.avif").write_bytes(avif[:at] + colour + avif[at + len(colour) :])
        (tmp_path / "b.png").write_bytes(png)
        add_chunk(tmp_path / "b.png", b"cICP", bytes([primaries, transfer, 0, 1]))
        for name in ("b.avif", "b.png"):
            if transfer == 13:
                image = read_image(tmp_path / name)
                expected = convert(smooth() / 255, P3 if primaries == 12 else SRGB, SRGB)
                assert np.abs(image.pixels / 255 - expected).max() < 0.03
                assert bool(image.implied_profile) == (primaries == 12)
            else:
                with pytest.raises(ImageFileError, match="HDR or wide-gamut colour"):
                    read_image(tmp_path / name)


def test_raw_files_are_not_taken_for_their_thumbnail(tmp_path):
    vips(noise()).tiffsave(str(tmp_path / "a.tif"))
    (tmp_path / "a.tif").rename(tmp_path / "a.nef")
    with pytest.raises(ImageFileError, match="a.nef looks like a raw file"):
        read_image(tmp_path / "a.nef")


def test_no_warning_of_libvips_reaches_the_terminal(tmp_path):
    vips(noise(200, 300)).jpegsave(str(tmp_path / "a.jpg"), interlace=True)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "a.jpg").write_bytes(data)
    Image.fromarray(noise()).save(tmp_path / "b.tif", icc_profile=b"broken", tiffinfo={65000: "a tag of nobody"})
    script = f"""
from gdd_diffusers.files import ImageFileError, read_image, write_image
image = read_image({str(tmp_path / "b.tif")!r})
write_image({str(tmp_path / "c.tif")!r}, image.pixels, like=image)
try:
    read_image({str(tmp_path / "a.jpg")!r})
except ImageFileError:
    print("damaged")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "damaged\n", "")


# what cannot be written


def test_an_existing_file_is_replaced_only_on_purpose(tmp_path):
    write_image(tmp_path / "a.png", noise())
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(FileExistsError, match="a.png exists already"):
        write_image(tmp_path / "a.png", noise(5, 5))
    assert (tmp_path / "a.png").read_bytes() == before
    os.chmod(tmp_path / "a.png", 0o640)
    write_image(tmp_path / "a.png", noise(5, 5), overwrite=True)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png"), noise(5, 5))
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_symbolic_link_stays_one(tmp_path):
    write_image(tmp_path / "a.png", noise())
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    write_image(tmp_path / "link.png", noise(5, 5), overwrite=True)
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(decoded(tmp_path / "a.png"), noise(5, 5))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_what_stops_the_writing_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, stop, extension):
    write_image(tmp_path / f"a.{extension}", noise())
    before = (tmp_path / f"a.{extension}").read_bytes()

    def replace(*args):
        raise stop

    monkeypatch.setattr(os, "replace", replace)
    expected, match = (KeyboardInterrupt, None) if stop is KeyboardInterrupt else (ImageFileError, "No space left")
    with pytest.raises(expected, match=match):
        write_image(tmp_path / f"a.{extension}", noise(5, 5), overwrite=True)
    assert os.listdir(tmp_path) == [f"a.{extension}"]
    assert (tmp_path / f"a.{extension}").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a timer's signal")
def test_ctrl_c_within_libvips_is_not_lost(tmp_path, monkeypatch):
    pixels = noise(2000, 2000, dtype=np.uint16)  # read in 80 ms, written in 500
    write_image(tmp_path / "a.png", pixels)
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda *args: pytest.fail("goes on after libvips"))
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for work in (
            lambda: read_image(tmp_path / "a.png"),
            lambda: write_image(tmp_path / "a.png", pixels, overwrite=True),
        ):
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                work()
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp", "avif"])
def test_a_full_disk_leaves_the_old_file(tmp_path, extension):
    write_image(tmp_path / f"a.{extension}", noise(8, 8))
    before = (tmp_path / f"a.{extension}").read_bytes()
    script = f"""
import resource, signal
import numpy as np
from gdd_diffusers.files import ImageFileError, write_image
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_image({str(tmp_path / f"a.{extension}")!r}, pixels, overwrite=True)
except ImageFileError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == f"{tmp_path}/a.{extension} could not be written: File too large.\n" and run.stderr == ""
    assert os.listdir(tmp_path) == [f"a.{extension}"]
    assert (tmp_path / f"a.{extension}").read_bytes() == before


def test_folders_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "a.png", tmp_path / "file" / "a.png"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            write_image(path, noise())
    with pytest.raises(ImageFileError, match="is not a file"):
        write_image(tmp_path, noise(), format="png", overwrite=True)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder that even root cannot write to")
def test_an_unwritable_folder(tmp_path):
    with pytest.raises(ImageFileError, match="/proc/a.png cannot be written: "):
        write_image("/proc/a.png", noise())


def test_the_format_is_the_asked_one_or_the_extension_or_the_old_one(tmp_path):
    write_image(tmp_path / "a.webp", noise())
    image = read_image(tmp_path / "a.webp")
    for name, asked, expected in (
        ("b.png", None, "png"),
        ("c", None, "webp"),
        ("d.png", "JPG", "jpeg"),
        ("e", "tif", "tiff"),
    ):
        assert check_output(tmp_path / name, image.pixels, image, asked) == expected
        write_image(tmp_path / name, image.pixels, like=image, format=asked)
        if expected != "tiff":
            assert read_image(tmp_path / name).format == expected
    for name, like, asked in (("a", None, None), ("a.bmp", image, None), ("a.png", image, "gif")):
        with pytest.raises(ValueError, match="use one of"):
            write_image(tmp_path / name, image.pixels, like=like, format=asked)


def test_transparency_is_not_thrown_away_by_a_jpeg(tmp_path):
    for channels in (2, 4):
        pixels = noise(channels=channels)
        with pytest.raises(ImageFileError, match="jpeg has no transparency"):
            write_image(tmp_path / "a.jpg", pixels)
        pixels[..., -1] = 255
        write_image(tmp_path / f"{channels}.jpg", pixels, quality=100)
        assert decoded(tmp_path / f"{channels}.jpg").shape[2] == channels - 1


def test_sides_longer_than_a_format_holds(tmp_path):
    with pytest.raises(ImageFileError, match="webp holds at most 16383 pixels a side"):
        write_image(tmp_path / "a.webp", np.zeros((1, 16384, 3), np.uint8))


def test_heic_says_in_a_sentence_when_it_cannot_be_encoded(tmp_path):
    try:
        pyvips.Image.black(16, 16).heifsave_buffer(compression="hevc")
    except pyvips.Error:
        with pytest.raises(ImageFileError, match="this libvips has no heic encoder"):
            write_image(tmp_path / "a.heic", noise())
    else:
        write_image(tmp_path / "a.heic", smooth())
        assert read_image(tmp_path / "a.heic").format == "heic"


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4), np.uint8), "height, width, 1 to 4 channels"),
        (np.zeros((4, 4, 5), np.uint8), "height, width, 1 to 4 channels"),
        (np.zeros((0, 4, 3), np.uint8), "height, width, 1 to 4 channels"),
        (np.zeros((4, 4, 3), np.int32), "uint8, uint16, or float"),
        (np.full((4, 4, 3), np.nan, np.float32), "finite"),
        (np.full((4, 4, 3), np.inf), "finite"),
    ],
)
def test_wrong_pixels(tmp_path, pixels, message):
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / "a.png", pixels)
    assert os.listdir(tmp_path) == []


def test_wrong_size_and_quality(tmp_path):
    write_image(tmp_path / "a.png", noise())
    image = read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="those of the file to follow"):
        write_image(tmp_path / "b.png", noise(5, 5), like=image)
    for quality in (0, 101):
        with pytest.raises(ValueError, match="Quality must be 1 to 100"):
            write_image(tmp_path / "b.jpg", noise(), quality=quality)


# which files are meant


def test_list_images(tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    files = ["b.JPG", "a.png", "notes.txt", ".c.png", "more/d.tiff", "more/deep/e.avif", ".hidden/f.png", "[g].png"]
    for file in files:
        (tmp_path / file).touch()
    found = lambda *inputs, **kw: [str(path.relative_to(tmp_path)) for path in list_images(inputs, **kw)]  # noqa: E731
    assert found(tmp_path) == ["[g].png", "a.png", "b.JPG"]
    assert found(tmp_path, recursive=True) == ["[g].png", "a.png", "b.JPG", "more/d.tiff", "more/deep/e.avif"]
    assert found(tmp_path / "notes.txt", tmp_path / "a.png", tmp_path) == ["[g].png", "a.png", "b.JPG", "notes.txt"]
    assert found(f"{tmp_path}/*.png") == ["[g].png", "a.png"]
    assert found(f"{tmp_path}/**/*.tiff") == ["more/d.tiff"]
    assert found(tmp_path / "[g].png") == ["[g].png"]
    assert found(f"{tmp_path}/mor?") == ["more/d.tiff"]


def test_list_images_names_what_is_missing(tmp_path):
    (tmp_path / "notes.txt").touch()
    for given, message in ((tmp_path / "no.jpg", "no.jpg does not exist"), (tmp_path / "*.jpg", "does not exist")):
        with pytest.raises(FileNotFoundError, match=message):
            list_images([given])
    for given in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(FileNotFoundError, match="holds no image"):
            list_images([given])

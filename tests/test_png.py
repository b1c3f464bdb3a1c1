"""Everything in a PNG counts wherever it stands, and its colours look the same afterwards."""

import struct
import zlib

import numpy as np
import pytest
import pyvips
from PIL import Image

from gdd_diffusers.files import ImageFileError, read_image, write_image


RATING = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d xmp:Rating="4" tiff:Orientation="8"/></x:xmpmeta>'
LINEAR = b"gAMA", struct.pack(">I", 100_000)
SRGB = b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
ADOBE = b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def chunks_of(path):
    data, at, chunks = path.read_bytes(), 8, {}
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        chunks[kind] = data[at + 8 : at + 8 + size]
        at += size + 12
    return chunks


def write_png(path, pixels, *before, behind=()):
    """Write a PNG with chunks before and behind its pixels."""
    height, width, channels = pixels.shape
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), *before, (b"IDAT", body), *behind, (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))


def gradient(channels=3, dtype=np.uint8):
    rng, white = np.random.default_rng(0), np.iinfo(dtype).max
    image = np.linspace(0.2, 0.8, 48)[None, :, None] + rng.normal(0, 0.02, (32, 48, channels))
    return (image.clip(0, 1) * white).round().astype(dtype)


def exif_block(orientation=6):
    exif = Image.Exif()
    exif[0x013B], exif[0x0112] = "X", orientation
    return exif.tobytes()[6:]


def hexadecimal(name, content):
    """As ImageMagick and ExifTool write it."""
    return b"\n%s\n%8d\n%s\n" % (name, len(content), content.hex("\n", 36).encode())


BEHIND = {
    "eXIf": (b"eXIf", exif_block()),
    "raw EXIF": (b"tEXt", b"Raw profile type exif\0" + hexadecimal(b"exif", b"Exif\0\0" + exif_block())),
    "raw APP1": (
        b"zTXt",
        b"Raw profile type APP1\0\0" + zlib.compress(hexadecimal(b"generic profile", b"Exif\0\0" + exif_block())),
    ),
}
XMP_BEHIND = {
    "plain": (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + RATING),
    "compressed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(RATING)),
    "raw": (b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(hexadecimal(b"xmp", RATING))),
}


@pytest.mark.parametrize("stands", ["before", "behind"])
@pytest.mark.parametrize("form", BEHIND)
def test_exif_counts_wherever_it_stands(tmp_path, form, stands):
    chunks = [BEHIND[form], (b"tEXt", b"Title\0roses"), (b"tIME", bytes([7, 234, 11, 27, 5, 0, 0]))]
    before, behind = (chunks, []) if stands == "before" else ([], chunks)
    write_png(tmp_path / "in.png", gradient(), *before, behind=behind)
    image = read_image(tmp_path / "in.png")
    np.testing.assert_array_equal(image.pixels, np.rot90(gradient(), -1))
    write_image(tmp_path / "out.png", image.pixels, like=image)
    exif = Image.open(tmp_path / "out.png").getexif()
    assert (exif[0x013B], exif[0x0112]) == ("X", 1)
    kept = chunks_of(tmp_path / "out.png")
    assert (kept[b"tEXt"], kept[b"tIME"]) == (b"Title\0roses", bytes([7, 234, 11, 27, 5, 0, 0]))
    assert image.notes == []


@pytest.mark.parametrize("form", XMP_BEHIND)
def test_xmp_counts_wherever_it_stands(tmp_path, form):
    write_png(tmp_path / "in.png", gradient(), behind=[XMP_BEHIND[form]])
    image = read_image(tmp_path / "in.png")
    np.testing.assert_array_equal(image.pixels, np.rot90(gradient()))
    for name in ("out.png", "out.jpg"):
        write_image(tmp_path / name, image.pixels, like=image)
        xmp = pyvips.Image.new_from_file(str(tmp_path / name)).get("xmp-data")
        assert xmp == RATING.replace(b'"8"', b'"1"')


def test_damaged_metadata_behind_the_pixels_is_said(tmp_path):
    damaged = (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(RATING)[:-9])
    write_png(tmp_path / "in.png", gradient(), behind=[damaged, (b"tEXt", b"Raw profile type exif\0no digits")])
    assert read_image(tmp_path / "in.png").notes == ["a text in it is damaged and was left out"] * 2


def linear_to_srgb(values):
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_network_sees_srgb_of_a_linear_png(tmp_path, channels, dtype):
    pixels, white = gradient(channels, dtype), np.iinfo(dtype).max
    write_png(tmp_path / "in.png", pixels, LINEAR)
    image = read_image(tmp_path / "in.png")
    colours = min(channels, 3)
    expected = linear_to_srgb(pixels[..., :colours] / white)
    assert np.abs(image.pixels[..., :colours] / white - expected).max() < 0.005
    np.testing.assert_array_equal(image.pixels[..., colours:], pixels[..., colours:])
    write_image(tmp_path / "out.png", image.pixels, like=image)
    np.testing.assert_array_equal(
        pyvips.Image.new_from_file(str(tmp_path / "out.png")).numpy().reshape(pixels.shape), pixels
    )
    assert chunks_of(tmp_path / "out.png")[b"gAMA"] == LINEAR[1]


@pytest.mark.parametrize(
    "chunks",
    [[LINEAR], [(b"gAMA", struct.pack(">I", 45455)), ADOBE], [ADOBE], [(b"cICP", bytes([12, 13, 0, 1]))]],
    ids=["gAMA", "gAMA and cHRM", "cHRM", "cICP"],
)
@pytest.mark.parametrize("extension", ["jpg", "tif", "webp", "avif"])
def test_colours_by_numbers_look_the_same_in_other_formats(tmp_path, extension, chunks):
    smooth = (np.mgrid[0.35:0.65:32j, 0.35:0.65:48j][[0, 1, 0]].transpose(1, 2, 0) * 255).round().astype(np.uint8)
    write_png(tmp_path / "in.png", smooth, *chunks)
    image = read_image(tmp_path / "in.png")
    assert np.abs(image.pixels.astype(int) - smooth).max() > 3  # or the test would say nothing
    write_image(tmp_path / f"out.{extension}", image.pixels, like=image)
    again = read_image(tmp_path / f"out.{extension}")
    difference = np.abs(again.pixels.astype(int) - image.pixels)
    # few pixels of strong colours differ more, where sRGB ends
    assert difference.max() == 0 if extension == "tif" else np.percentile(difference, 95) <= 6


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"sRGB", b"\0"), LINEAR],  # the first one counts
        [(b"gAMA", bytes(4)), (b"cHRM", bytes(32))],
        [(b"gAMA", b"\xff" * 4), (b"cHRM", b"\xff" * 32)],
        [SRGB],
    ],
    ids=["sRGB", "zero", "huge", "sRGB's primaries"],
)
def test_numbers_that_mean_srgb_or_nothing_change_no_pixel(tmp_path, chunks):
    write_png(tmp_path / "in.png", gradient(), *chunks)
    image = read_image(tmp_path / "in.png")
    np.testing.assert_array_equal(image.pixels, gradient())
    write_image(tmp_path / "out.png", image.pixels, like=image)
    assert {kind: chunks_of(tmp_path / "out.png")[kind] for kind, _ in chunks} == dict(chunks)


@pytest.mark.parametrize(
    "beside",
    [[LINEAR], [LINEAR, SRGB], [(b"sRGB", b"\0")], [(b"cICP", bytes([12, 13, 0, 1]))]],
    ids=["gAMA", "gAMA and cHRM", "sRGB", "cICP"],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_profile_counts_and_stays_whatever_stands_beside_it(tmp_path, beside, is_first):
    """Most programs that embed a profile write gAMA and cHRM, too."""
    black = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    profile = black.icc_transform("p3").get("icc-profile-data")
    chunks = [(b"iCCP", b"Display P3\0\0" + zlib.compress(profile)), *beside]
    write_png(tmp_path / "in.png", gradient(), *(chunks if is_first else chunks[::-1]))
    image = read_image(tmp_path / "in.png")
    seen = pyvips.Image.new_from_array(gradient()).icc_transform("srgb", input_profile="p3").numpy()
    assert np.abs(image.pixels.astype(int) - seen).max() <= 2
    np.testing.assert_array_equal(image.native, gradient())
    write_image(tmp_path / "out.png", image.pixels, like=image)
    assert {kind: chunks_of(tmp_path / "out.png")[kind] for kind, _ in chunks} == dict(chunks)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), gradient())
    if beside[0][0] != b"cICP":
        write_image(tmp_path / "out.tif", image.pixels, like=image)
        assert Image.open(tmp_path / "out.tif").info["icc_profile"] == profile


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("beside", [(b"iCCP", b"x\0\0"), (b"tEXt", b"Comment\0" + b"long " * 60_000)])
def test_hdr_is_refused_whatever_stands_beside_it(tmp_path, beside, transfer):
    kind, content = beside
    if kind == b"iCCP":
        lab = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
        content += zlib.compress(lab.icc_transform("p3").get("icc-profile-data"))
    write_png(tmp_path / "in.png", gradient(), (kind, content), (b"cICP", bytes([9, transfer, 0, 1])))
    with pytest.raises(ImageFileError, match="HDR or wide-gamut colour"):
        read_image(tmp_path / "in.png")


def test_other_chunks_are_kept_or_said(tmp_path):
    chunks = {
        b"pHYs": struct.pack(">IIB", 3, 2, 0),
        b"bKGD": bytes(6),
        b"sBIT": b"\5\6\5",
        b"oFFs": bytes(9),
        b"prVt": b"private, but safe to copy",
    }
    write_png(tmp_path / "in.png", gradient(), *chunks.items(), (b"caBX", b"content credentials"))
    image = read_image(tmp_path / "in.png")
    assert image.notes == ["what belongs to the old pixels was left out (caBX)"]
    write_image(tmp_path / "out.png", image.pixels, like=image)
    kept = chunks_of(tmp_path / "out.png")
    assert {kind: kept[kind] for kind in chunks} == chunks and b"caBX" not in kept
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    assert image.notes[1:] == ["what only a png holds was left out (oFFs, prVt)"]
    Image.fromarray(gradient()).quantize(16).save(tmp_path / "palette.png")
    data = (tmp_path / "palette.png").read_bytes()
    (tmp_path / "palette.png").write_bytes(data[:33] + chunk(b"bKGD", b"\1") + data[33:])
    image = read_image(tmp_path / "palette.png")
    write_image(tmp_path / "rgb.png", image.pixels, like=image)
    assert b"bKGD" not in chunks_of(tmp_path / "rgb.png")  # it named a colour of the palette


def test_no_resolution_is_made_up(tmp_path):
    write_png(tmp_path / "in.png", gradient())
    image = read_image(tmp_path / "in.png")
    for name in ("out.png", "out.jpg", "out.tif"):
        write_image(tmp_path / name, image.pixels, like=image)
    assert b"pHYs" not in chunks_of(tmp_path / "out.png")
    assert Image.open(tmp_path / "out.jpg").info["jfif_unit"] == 0
    assert Image.open(tmp_path / "out.tif").tag_v2[296] == 1


def test_iptc_crosses_png(tmp_path):
    iptc = b"\x1c\x02\x78\0\5roses"
    Image.fromarray(gradient()).save(tmp_path / "in.tif", tiffinfo={33723: iptc})
    for source, target in (("in.tif", "a.png"), ("a.png", "b.png"), ("b.png", "out.tif")):
        image = read_image(tmp_path / source)
        write_image(tmp_path / target, image.pixels, like=image)
        assert image.notes == []
    assert Image.open(tmp_path / "out.tif").tag_v2[33723] == iptc


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_a_grey_image_keeps_its_profile_of_rgb(tmp_path, extension):
    black = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    profile = black.icc_transform("p3").get("icc-profile-data")
    Image.fromarray(gradient(1)[..., 0]).save(tmp_path / f"in.{extension}", icc_profile=profile)
    for target in ("png", "jpg", "tif", "webp", "avif"):
        image = read_image(tmp_path / f"in.{extension}")
        assert image.notes == [] and image.pixels.shape == (32, 48, 1)
        write_image(tmp_path / f"out.{target}", image.pixels, like=image, overwrite=True)
        assert Image.open(tmp_path / f"out.{target}").info["icc_profile"] == profile

"""TIFF, WebP and AVIF keep what is in their files, and nothing is made up."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from gdd_diffusers.files import ImageFileError, read_image, write_image
from gdd_diffusers.files.xmp import copy_sidecars


TURNED = {
    "attribute": b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d xmp:Rating="4" tiff:Orientation="6"/></x:xmpmeta>',
    "single quotes": b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><d tiff:Orientation = '6'/></x:xmpmeta>",
    "element": b"<x:xmpmeta><d><tiff:Orientation>6</tiff:Orientation></d></x:xmpmeta>",
}


def smooth(height=32, width=48, dtype=np.uint8):
    y, x = np.mgrid[0.1 : 0.9 : height * 1j, 0.1 : 0.9 : width * 1j]
    return (np.stack([x, y, 1 - x], axis=-1) * np.iinfo(dtype).max).round().astype(dtype)


def exif_of_unknown_tags():
    """Tags that libexif does not know, and without those that it adds."""
    exif = Image.Exif()
    exif[0x013B], exif[0x4746], exif[0x4749] = "X", 4, 75  # artist, rating, rating in percent
    exif.get_ifd(0x8769)[0x9400] = 20.0  # ambient temperature
    return exif


@pytest.mark.parametrize("source", ["jpg", "png", "webp", "avif"])
@pytest.mark.parametrize("target", ["jpg", "png", "webp", "avif"])
def test_exif_stays_byte_for_byte(tmp_path, source, target):
    options = {"lossless": True} if source == "webp" else {}
    block = exif_of_unknown_tags().tobytes()
    Image.fromarray(smooth()).save(tmp_path / f"in.{source}", exif=block, **options)
    image = read_image(tmp_path / f"in.{source}")
    write_image(tmp_path / f"out.{target}", image.pixels, like=image)
    assert Image.open(tmp_path / f"out.{target}").info["exif"].removeprefix(b"Exif\0\0") == block[6:]


@pytest.mark.parametrize("source", ["jpg", "png", "tif", "webp", "avif"])
def test_no_tag_is_made_up_in_a_tiff(tmp_path, source):
    exif = exif_of_unknown_tags()
    Image.fromarray(smooth()).save(tmp_path / f"in.{source}", exif=exif.tobytes())
    image = read_image(tmp_path / f"in.{source}")
    write_image(tmp_path / "out.tif", image.pixels, like=image)
    out = Image.open(tmp_path / "out.tif")
    assert {tag: out.tag_v2[tag] for tag in (0x013B, 0x4746, 0x4749)} == dict(exif)
    assert dict(out.getexif().get_ifd(0x8769)) == {0x9400: 20.0}


@pytest.mark.parametrize("target", ["png", "tif", "webp", "avif"])
def test_exif_may_be_longer_than_libexif_reads(tmp_path, target):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x927C] = bytes(range(256)) * 1000
    Image.fromarray(smooth()).save(tmp_path / "in.webp", exif=exif.tobytes(), lossless=True)
    image = read_image(tmp_path / "in.webp")
    write_image(tmp_path / f"out.{target}", image.pixels, like=image)
    assert Image.open(tmp_path / f"out.{target}").getexif().get_ifd(0x8769)[0x927C] == bytes(range(256)) * 1000


@pytest.mark.parametrize("form", TURNED)
@pytest.mark.parametrize("extension", ["jpg", "tif", "webp"])
def test_xmp_alone_may_say_how_an_image_is_turned(tmp_path, extension, form):
    xmp, options = TURNED[form], {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(extension, {})
    options |= {"tiffinfo": {700: xmp}} if extension == "tif" else {"xmp": xmp}
    Image.fromarray(smooth()).save(tmp_path / f"in.{extension}", **options)
    image = read_image(tmp_path / f"in.{extension}")
    assert image.orientation == 6 and image.pixels.shape == (48, 32, 3)
    write_image(tmp_path / f"out.{extension}", image.pixels, like=image)
    again = read_image(tmp_path / f"out.{extension}")
    assert again.orientation == 1 and again.pixels.shape == (48, 32, 3)


def test_exif_counts_before_xmp(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(smooth()).save(tmp_path / "in.jpg", exif=exif, xmp=TURNED["attribute"])
    assert read_image(tmp_path / "in.jpg").pixels.shape == (32, 48, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("kind", "number"), [("unspecified", 0), ("assocalpha", 1), ("unassalpha", 2)])
def test_an_extra_channel_of_a_tiff_stays_what_it_is(tmp_path, kind, number, dtype):
    half = np.iinfo(dtype).max // 2
    pixels = np.dstack([smooth(dtype=dtype) // 2, np.full((32, 48), half, dtype)])
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", extrasamples=[kind])
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.tif", image.pixels, like=image)
    page = tifffile.TiffFile(tmp_path / "out.tif").pages[0]
    assert page.extrasamples == (number,)
    np.testing.assert_array_equal(page.asarray(), pixels)

    write_image(tmp_path / "out.png", image.pixels, like=image)
    png = read_image(tmp_path / "out.png").pixels
    if kind == "unspecified":
        np.testing.assert_array_equal(png, pixels[..., :3])
        assert image.notes == [
            "its extra channel, which is not transparency, was left out, since png has no place for it"
        ]
        write_image(tmp_path / "out.jpg", image.pixels, like=image)
    else:
        expected = pixels.astype(float)
        if kind == "assocalpha":
            expected[..., :3] *= np.iinfo(dtype).max / half
        assert np.abs(png - expected).max() <= 1 and png.dtype == dtype
        with pytest.raises(ImageFileError, match="jpeg has no transparency"):
            write_image(tmp_path / "out.jpg", image.pixels, like=image)


@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_thumbnail_on_another_page_is_left_out_and_said(tmp_path, place):
    pages = [(smooth(), 0), (smooth()[::4, ::4], 1)]
    with tifffile.TiffWriter(tmp_path / "in.tif") as tiff:
        for pixels, kind in pages if place == "behind" else reversed(pages):
            tiff.write(pixels, photometric="rgb", subfiletype=kind, metadata=None, software=f"page {kind}")
    image = read_image(tmp_path / "in.tif")
    assert image.notes == ["the smaller copies or masks on its other pages were left out"]
    write_image(tmp_path / "out.tif", image.pixels, like=image)
    (page,) = tifffile.TiffFile(tmp_path / "out.tif").pages
    np.testing.assert_array_equal(page.asarray(), smooth())
    assert page.software == "page 0"


def test_images_within_an_image_and_layers_are_said(tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as tiff:
        tiff.write(smooth(), photometric="rgb", subifds=1, extratags=[(37724, 7, 4, b"8BIM", True)], metadata=None)
        tiff.write(smooth()[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    assert read_image(tmp_path / "in.tif").notes == [
        "the smaller or further images within it were left out",
        "its Photoshop layers were left out",
    ]


@pytest.mark.parametrize("name", ["in.jpg", "in.png", "in.JPEG"])
def test_a_tiff_may_have_the_name_of_another_format(tmp_path, name):
    pixels = smooth(dtype=np.uint16)
    tifffile.imwrite(tmp_path / name, pixels, photometric="rgb")
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image.pixels, pixels)
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    assert image.notes == ["its 16 bits became 8, all that jpeg holds"]


@pytest.mark.parametrize("brightest", [1, 7.5])
def test_floating_point_is_refused_in_a_sentence(tmp_path, brightest):
    tifffile.imwrite(tmp_path / "in.tif", smooth().astype(np.float32) * brightest / 255, photometric="rgb")
    with pytest.raises(
        ImageFileError, match="in.tif holds floating-point pixels, whose white is not known; convert it"
    ):
        read_image(tmp_path / "in.tif")


@pytest.mark.parametrize(("extension", "bits"), [("jpg", 8), ("webp", 8), ("avif", 12)])
def test_fewer_bits_are_said(tmp_path, extension, bits):
    write_image(tmp_path / "in.png", smooth(dtype=np.uint16))
    image = read_image(tmp_path / "in.png")
    write_image(tmp_path / f"out.{extension}", image.pixels, like=image)
    format = {"jpg": "jpeg"}.get(extension, extension)
    assert image.notes == [f"its 16 bits became {bits}, all that {format} holds"]
    write_image(tmp_path / "out.tif", image.pixels, like=image)
    assert len(image.notes) == 1


def test_colours_stated_behind_the_pixels_of_an_avif(tmp_path):
    """HDR is refused wherever the box that says so stands."""
    Image.fromarray(smooth()).save(tmp_path / "in.avif")
    data = (tmp_path / "in.avif").read_bytes()
    colour = data.index(b"colrnclx") + 8
    data = data[:colour] + struct.pack(">HH", 9, 16) + data[colour + 4 :]
    start = int.from_bytes(data[:4], "big")
    (tmp_path / "in.avif").write_bytes(
        data[:start] + struct.pack(">I4s", 200_008, b"free") + bytes(200_000) + data[start:]
    )
    with pytest.raises(ImageFileError, match="HDR or wide-gamut colour|damaged"):
        read_image(tmp_path / "in.avif")


@pytest.mark.parametrize("extension", ["tif", "jpg", "png"])
def test_iptc_that_imagemagick_cuts_off_is_whole(tmp_path, extension):
    iptc = b"\x1c\x02\x19\0\4rose\x1c\x02\x19\0\4lily"
    block = b"8BIM\4\4\0\0" + struct.pack(">I", len(iptc)) + iptc
    tags = [(33723, 7, 5, iptc[:5], True), (34377, 1, len(block), block, True)]
    tifffile.imwrite(tmp_path / "in.tif", smooth(), photometric="rgb", extratags=tags)
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / f"out.{extension}", image.pixels, like=image)
    kept = read_image(tmp_path / f"out.{extension}").metadata
    assert iptc in kept.get("iptc-data", b"") + kept.get("photoshop-data", b"")


def test_sidecars_go_along_and_say_that_the_result_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.xmp").write_bytes(TURNED["attribute"])
    (tmp_path / "a.jpg.xmp").write_bytes(TURNED["element"])
    image = read_image(tmp_path / "a.jpg")
    (tmp_path / "results").mkdir()
    copy_sidecars(tmp_path / "a.jpg", tmp_path / "a_denoised.jpg", image)
    assert len(list(tmp_path.glob("*.xmp"))) == 2  # only another folder needs its own
    copy_sidecars(tmp_path / "a.jpg", tmp_path / "results" / "a.png", image)
    assert (tmp_path / "results" / "a.xmp").read_bytes() == TURNED["attribute"].replace(b'"6"', b'"1"')
    assert (tmp_path / "results" / "a.png.xmp").read_bytes() == TURNED["element"].replace(b">6<", b">1<")
    (tmp_path / "results" / "a.xmp").write_bytes(b"edited")
    copy_sidecars(tmp_path / "a.jpg", tmp_path / "results" / "a.png", image)
    assert (tmp_path / "results" / "a.xmp").read_bytes() == b"edited"

"""What stands in and behind a JPEG is kept where it is still true, and named where it is not."""

import struct

import numpy as np
import pytest
import pyvips
from PIL import Image

from gdd_diffusers.files import read_image, write_image


VIDEO = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 512, b"isom") + bytes(range(250)) * 12
RDF = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description %s</rdf:Description></x:xmpmeta>'
DIRECTORY = b'<Container:Directory><rdf:li Item:Mime="video/mp4" Item:Length="%d"/></Container:Directory>' % len(VIDEO)
MOTION_PHOTO = {
    "directory": RDF % (b'xmp:Rating="4" GCamera:MotionPhoto="1">' + DIRECTORY),
    "offset": RDF % (b'xmp:Rating="4" GCamera:MicroVideo=\'1\' GCamera:MicroVideoOffset="%d">' % len(VIDEO)),
    "elements": RDF % b'xmp:Rating="4"><GCamera:MotionPhoto>1</GCamera:MotionPhoto>',
}


def smooth(height=32, width=48):
    y, x = np.mgrid[0.1 : 0.9 : height * 1j, 0.1 : 0.9 : width * 1j]
    return (np.stack([x, y, 1 - x], axis=-1) * 255).round().astype(np.uint8)


def write_jpeg(path, *segments, behind=b"", **options):
    """Write a JPEG with (marker, content) before all else, and bytes behind its end."""
    Image.fromarray(smooth()).save(path, quality=95, subsampling=0, **options)
    data = path.read_bytes()
    segments = [struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments]
    path.write_bytes(data[:2] + b"".join(segments) + data[2:] + behind)


def xmp_segment(xmp):
    return 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x0100], exif[0x0101] = orientation, 48, 32
    exif.get_ifd(0x8769).update({0xA002: 48, 0xA003: 32})
    return exif


def test_comments_and_other_segments_are_kept(tmp_path):
    segments = [
        (0xFE, b"Bed 7, roses"),
        (0xFE, b"caf\xe9"),
        (0xE5, b"RMETA\0abc"),
        (0xEC, b"Ducky\0\1\0\4\0\0\0\x50\0\0"),
    ]
    write_jpeg(tmp_path / "in.jpg", *segments)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    kept = Image.open(tmp_path / "out.jpg").applist
    assert [content for _, content in kept if content in dict(segments).values() or content == segments[0][1]] == [
        content for _, content in segments
    ]
    assert image.notes == []
    write_image(tmp_path / "out.png", image.pixels, like=image)
    assert image.notes == ["what only a jpeg holds was left out (APP5 segment, APP12 segment, comment)"]


def test_further_segments_of_exif_and_xmp_are_said(tmp_path):
    exif = turned(1).tobytes()
    write_jpeg(tmp_path / "in.jpg", (0xE1, exif), (0xE1, exif), *[xmp_segment(RDF % b"xmp:Rating='4'>")] * 2)
    notes = read_image(tmp_path / "in.jpg").notes
    assert notes == [f"all but the first segment of its {name} was left out" for name in ("EXIF", "XMP")]


def test_content_credentials_of_the_old_pixels_are_left_out_and_said(tmp_path):
    write_jpeg(tmp_path / "in.jpg", (0xEB, b"JP\0\1\0\0\0\1 a manifest"))
    image = read_image(tmp_path / "in.jpg")
    assert image.notes == ["its content credentials, which vouch for the old pixels, were left out"]
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    assert b"a manifest" not in (tmp_path / "out.jpg").read_bytes()


@pytest.mark.parametrize("kind", MOTION_PHOTO)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_motion_photo_keeps_its_video(tmp_path, kind, orientation):
    xmp = MOTION_PHOTO[kind]
    write_jpeg(tmp_path / "in.jpg", xmp_segment(xmp), behind=VIDEO, exif=turned(orientation))
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    assert (tmp_path / "out.jpg").read_bytes().endswith(b"\xff\xd9" + VIDEO)
    assert Image.open(tmp_path / "out.jpg").info["xmp"] == xmp
    assert image.notes == []


@pytest.mark.parametrize("kind", MOTION_PHOTO)
@pytest.mark.parametrize("extension", ["png", "tif", "webp", "avif"])
def test_where_no_video_fits_none_is_described(tmp_path, kind, extension):
    write_jpeg(tmp_path / "in.jpg", xmp_segment(MOTION_PHOTO[kind]), behind=VIDEO)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / f"out.{extension}", image.pixels, like=image)
    xmp = pyvips.Image.new_from_file(str(tmp_path / f"out.{extension}")).get("xmp-data")
    assert b'xmp:Rating="4"' in xmp
    assert not any(word in xmp for word in (b"Motion", b"Micro", b"Container:", b"Item:"))
    assert image.notes == ["what only a jpeg holds was left out (video)"]


def test_what_samsung_puts_behind_is_kept(tmp_path):
    trailer = b"\0\0\x30\x0a\x10\0\0\0MotionPhoto_Data" + VIDEO + b"SEFH" + bytes(20) + b"SEFT"
    write_jpeg(tmp_path / "in.jpg", behind=trailer)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    assert (tmp_path / "out.jpg").read_bytes().endswith(b"\xff\xd9" + trailer)
    write_jpeg(tmp_path / "padded.jpg", behind=bytes(1000))
    assert read_image(tmp_path / "padded.jpg").attached == []


def write_stereo(path, *others, orientation=1):
    images = [Image.fromarray(pixels) for pixels in others]
    Image.fromarray(smooth()).save(
        path, format="MPO", save_all=True, append_images=images, exif=turned(orientation), quality=95
    )


def frames(path):
    image = Image.open(path)
    decoded = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        decoded.append(np.asarray(image))
    return decoded


@pytest.mark.parametrize("orientation", [1, 6])
def test_second_pictures_are_kept(tmp_path, orientation):
    write_stereo(tmp_path / "in.jpg", smooth()[::-1], smooth(90, 60), orientation=orientation)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    before, after = frames(tmp_path / "in.jpg"), frames(tmp_path / "out.jpg")
    assert len(after) == 3 and after[0].shape[:2] == image.pixels.shape[:2]
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[2], before[2])
    write_image(tmp_path / "out.png", image.pixels, like=image)
    assert image.notes == ["what only a jpeg holds was left out (second picture)"]


def test_smaller_copies_of_the_old_pixels_are_left_out_and_said(tmp_path):
    write_stereo(tmp_path / "in.jpg", smooth()[::2, ::2], smooth()[::-1])
    data = bytearray((tmp_path / "in.jpg").read_bytes())
    start = data.index(b"MPF\0") + 4
    entry = data.index(struct.pack("<HHI", 0xB002, 7, 48))
    (first,) = struct.unpack_from("<I", data, entry + 8)
    struct.pack_into("<I", data, start + first + 16, 0x010002)
    (tmp_path / "in.jpg").write_bytes(data)
    image = read_image(tmp_path / "in.jpg")
    assert image.notes == ["a smaller copy of the old pixels was left out"]
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    after = frames(tmp_path / "out.jpg")
    assert [len(one) for one in after] == [32, 32]
    np.testing.assert_array_equal(after[1], frames(tmp_path / "in.jpg")[2])


def test_a_damaged_list_of_pictures_does_not_stop_the_reading(tmp_path):
    write_stereo(tmp_path / "in.jpg", smooth()[::-1])
    data = bytearray((tmp_path / "in.jpg").read_bytes())
    at = data.index(b"MPF\0") + 4
    for damage in (b"\xff" * 4, b"II*\0\xff\xff\xff\xff", bytes(60)):
        damaged = data.copy()
        damaged[at : at + len(damage)] = damage
        (tmp_path / "damaged.jpg").write_bytes(damaged)
        image = read_image(tmp_path / "damaged.jpg")
        write_image(tmp_path / "out.jpg", image.pixels, like=image, overwrite=True)
        assert len(frames(tmp_path / "out.jpg")) == 1


def test_a_gain_map_beside_a_video_is_kept_and_turned(tmp_path):
    bright = pyvips.Image.new_from_array(smooth()).copy(interpretation="srgb").colourspace("scrgb") * 2
    bright.copy(interpretation="scrgb").uhdrsave(str(tmp_path / "hdr.jpg"), keep="none")
    data = (tmp_path / "hdr.jpg").read_bytes()
    exif = turned(6).tobytes()
    segment = struct.pack(">BBH", 0xFF, 0xE1, len(exif) + 2) + exif
    # the places in the list of pictures count from the list, which moves along
    (tmp_path / "in.jpg").write_bytes(data[:2] + segment + data[2:] + VIDEO)
    image = read_image(tmp_path / "in.jpg")
    assert [what for what, _ in image.attached] == ["gain map", "video"]
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    assert (tmp_path / "out.jpg").read_bytes().endswith(VIDEO)
    out = pyvips.Image.new_from_file(str(tmp_path / "out.jpg"))
    gain = pyvips.Image.jpegload_buffer(out.get("gainmap-data"))
    assert out.get("vips-loader") == "uhdrload" and (gain.width, gain.height) == (16, 24)
    write_image(tmp_path / "out.png", image.pixels, like=image)
    assert image.notes == ["what only a jpeg holds was left out (gain map, video)"]


def test_stated_sides_turn_with_the_image(tmp_path):
    write_jpeg(tmp_path / "in.jpg", exif=turned(6))
    image = read_image(tmp_path / "in.jpg")
    for name in ("out.jpg", "out.png", "out.webp", "out.avif"):
        write_image(tmp_path / name, image.pixels, like=image)
        exif = Image.open(tmp_path / name).getexif()
        camera = exif.get_ifd(0x8769)
        assert (exif[0x0100], exif[0x0101], camera[0xA002], camera[0xA003]) == (32, 48, 32, 48)


@pytest.mark.parametrize(
    "stated, turned",
    [
        (b' tiff:ImageWidth="48" tiff:ImageLength="32">', b' tiff:ImageLength="48" tiff:ImageWidth="32">'),
        (b' exif:PixelXDimension="48">', b' exif:PixelYDimension="48">'),
        (b"><exif:PixelYDimension>32</exif:PixelYDimension>", b"><exif:PixelXDimension>32</exif:PixelXDimension>"),
    ],
)
def test_sides_stated_by_xmp_turn_with_the_image(tmp_path, stated, turned):
    write_jpeg(tmp_path / "in.jpg", xmp_segment(RDF % (b'tiff:Orientation="6"' + stated)))
    xmp = read_image(tmp_path / "in.jpg").metadata["xmp-data"]
    assert xmp == RDF % (b'tiff:Orientation="1"' + turned)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
def test_thumbnails_in_xmp_and_photoshop_s_block_are_left_out(tmp_path, extension):
    """They show the old pixels, and would not be turned."""
    thumbnail = b"<xmp:Thumbnails><rdf:Alt><rdf:li>old pixels</rdf:li></rdf:Alt></xmp:Thumbnails>"
    caption = b"\x1c\x02\x78\0\5roses"
    resources = [(0x0404, caption), (0x0409, b"old pixels"), (0x040C, b"old pixels"), (0x040A, b"\1")]
    block = b"".join(
        struct.pack(">4sHHI", b"8BIM", kind, 0, len(data)) + data + bytes(len(data) % 2) for kind, data in resources
    )
    segments = [(0xED, b"Photoshop 3.0\0" + block), xmp_segment(RDF % (b'xmp:Rating="4">' + thumbnail))]
    write_jpeg(tmp_path / "in.jpg", *segments)
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / f"out.{extension}", image.pixels, like=image)
    again = read_image(tmp_path / f"out.{extension}")
    for result in (image, again):
        assert not any(b"old pixels" in value for value in result.metadata.values())
        assert b'xmp:Rating="4"' in result.metadata["xmp-data"]
        assert b"roses" in result.metadata["photoshop-data"] + result.metadata.get("iptc-data", b"")
        assert struct.pack(">4sH", b"8BIM", 0x040A) in result.metadata["photoshop-data"]


def test_no_jfif_and_no_resolution_are_made_up(tmp_path):
    write_jpeg(tmp_path / "in.jpg")
    image = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.jpg", image.pixels, like=image)
    assert Image.open(tmp_path / "out.jpg").info["jfif_unit"] == 0
    data = (tmp_path / "in.jpg").read_bytes()
    exif = turned(1).tobytes()
    (tmp_path / "camera.jpg").write_bytes(
        data[:2] + struct.pack(">BBH", 0xFF, 0xE1, len(exif) + 2) + exif + data[4 + int.from_bytes(data[4:6], "big") :]
    )
    image = read_image(tmp_path / "camera.jpg")
    write_image(tmp_path / "camera-out.jpg", image.pixels, like=image)
    assert b"JFIF" not in (tmp_path / "camera-out.jpg").read_bytes()

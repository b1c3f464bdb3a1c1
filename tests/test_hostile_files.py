"""What no image file may do: reach foreign code, take much memory or time, spoil the next file, lose pixels unsaid."""

import gzip
import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from gdd_diffusers.files import ImageFileError, list_images, printable, read_image, write_image


needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux' kinds of files and names")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
RULES = "it breaks rules of its format, but no pixel is missing"


def noise(height=24, width=40, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)


def encode(format, image=None, **options):
    data = io.BytesIO()
    (image or Image.fromarray(noise())).save(data, format, **options)
    return data.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks):
    """A sound PNG with these chunks behind its header."""
    data = encode("png")
    return data[:33] + b"".join(chunks) + data[33:]


def png_of(width, height, depth=8, colour=2, interlaced=0, body=bytes(100)):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_of(width, height, *entries, compression=1, channels=1, data=bytes(100)):
    """A TIFF of one strip; an entry is (tag, type, count, value), and a value of bytes lies behind the directory."""
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1 if channels == 1 else 2}
    tags |= {277: channels, 278: height, 279: len(data)}
    entries = [(tag, 4, 1, value) for tag, value in tags.items()] + [(273, 4, 1, data), *entries]
    end = 8 + 2 + 12 * len(entries) + 4
    directory, values, places = struct.pack("<H", len(entries)), b"", {}
    for tag, kind, count, value in sorted(entries, key=lambda entry: entry[0]):
        if isinstance(value, bytes):
            if value not in places:
                places[value] = end + len(values)
                values += value
            value = places[value]
        directory += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + values


def with_size(jpeg, width, height):
    at = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def read_within_limits(path):
    """What becomes of a file, seconds of CPU and megabytes, in a process of its own that must print nothing else."""
    script = f"""
import resource, time
from gdd_diffusers.files import ImageFileError, read_image, write_image
from process_memory import peak_megabytes
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
usage = lambda: resource.getrusage(resource.RUSAGE_SELF)
before, peak_before = usage(), peak_megabytes()
try:
    image = read_image({os.fspath(path)!r})
    write_image({os.fspath(path) + ".png"!r}, image.pixels[:, :1000], overwrite=True)
    print("read", *image.notes)
except ImageFileError as error:
    print("refused", error)
print(usage().ru_utime + usage().ru_stime - before.ru_utime - before.ru_stime)
print(peak_megabytes() - peak_before)
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, errors="replace")
    assert (run.returncode, run.stderr) == (0, "")
    said, seconds, megabytes = run.stdout.splitlines()
    return said, float(seconds), float(megabytes)


# which loaders are reached


@pytest.mark.parametrize(
    "content",
    [
        SVG,
        b'<?xml version="1.0"?>' + SVG,
        gzip.compress(SVG),
        SVG.decode().encode("utf-16"),
        b"%PDF-1.4\n",
        encode("gif"),
        encode("bmp"),
        encode("ppm"),
        b"2 2\n1 2\n3 4\n",
        b"1,2\n3,4\n",
        b"\xb6\xa6\xf2\x08" + bytes(100),
        b"#?RADIANCE\n",
        b"SIMPLE  =                    T" + bytes(100),
        b"\x76\x2f\x31\x01" + bytes(100),
        b"\xff\x0a" + bytes(50),
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50),
        b"\0\0\0\x18ftypisom" + bytes(50),
        b"8BPS\0\1" + bytes(50),
    ],
    ids="svg xml svgz utf16 pdf gif bmp ppm matrix csv vips hdr fits exr jxl jp2 mp4 psd".split(),
)
@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_no_other_loader_is_reached_by_content(tmp_path, content, extension):
    (tmp_path / f"a.{extension}").write_bytes(content)
    with pytest.raises(ImageFileError, match="is no JPEG, PNG, TIFF, WebP, AVIF, HEIC or raw image"):
        read_image(tmp_path / f"a.{extension}")


@pytest.mark.skipif(not hasattr(pyvips.Image, "svgload_buffer"), reason="this libvips has no loader for SVG")
def test_untrusted_loaders_are_blocked():
    with pytest.raises(pyvips.Error, match="blocked"):
        pyvips.Image.svgload_buffer(SVG)


@needs_linux
def test_pipes_devices_folders_and_circles_have_their_own_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    os.mkfifo("fifo.jpg")
    os.mkdir("folder.jpg")
    os.symlink("circle.jpg", "circle.jpg")
    os.symlink("nowhere", "dangling.jpg")
    os.symlink("/dev/zero", "zero.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        for name, message in {
            "fifo.jpg": "fifo.jpg is not a file but a pipe",
            "folder.jpg": "folder.jpg is not a file but a folder",
            "circle.jpg": "circle.jpg is a symbolic link that leads back to itself",
            "dangling.jpg": "dangling.jpg is a link to a file that does not exist",
            "zero.jpg": "zero.jpg is not a file but a device",
            "socket.jpg": "socket.jpg is not a file but a socket",
            "fifo.jpg/a.png": "does not exist",
        }.items():
            with pytest.raises(OSError, match=message):
                read_image(name)
    assert list_images(["fifo.jpg", "circle.jpg"]) == [Path("circle.jpg"), Path("fifo.jpg")]


def test_an_animated_avif_is_not_called_damaged(tmp_path):
    frames = [Image.fromarray(noise()), Image.fromarray(noise()).rotate(180)]
    (tmp_path / "a.avif").write_bytes(encode("avif", frames[0], save_all=True, append_images=frames[1:]))
    with pytest.raises(ImageFileError, match="a.avif is an animation; split it up first"):
        read_image(tmp_path / "a.avif")


# what a file may cost


def shared_blobs(count, size, kind=7):
    blob = b"a" * size
    return tiff_of(4, 4, *((30_000 + i, kind, size, blob) for i in range(count)))


def scan_bomb():
    """A progressive JPEG of many pixels and many scans that hold next to nothing."""
    jpeg = encode("jpeg", Image.new("L", (64, 64), 128), progressive=True)
    last = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    return with_size(jpeg[:-2], 8000, 8000) + last * 20_000 + bytes(200_000) + b"\xff\xd9"


def large_gain_map():
    bright = pyvips.Image.new_from_array(noise() / 64).cast("float").copy(interpretation="scrgb")
    jpeg = bright.uhdrsave_buffer(keep="none")
    at = jpeg.rfind(b"\xff\xc0")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif = exif.tobytes()
    jpeg = jpeg[: at + 5] + struct.pack(">HH", 65_500, 65_500) + jpeg[at + 9 :]
    return jpeg[:2] + struct.pack(">BBH", 0xFF, 0xE1, len(exif) + 2) + exif + jpeg[2:]


def flat_webp():
    """A lossless WebP of one colour, whose pixels take no bits, so that its header may say any size."""
    webp = encode("webp", Image.new("RGB", (16, 16), (3, 4, 5)), lossless=True)
    at = webp.index(b"VP8L") + 9
    return webp[:at] + struct.pack("<I", 0x0FFF_FFFF & ~0x4001) + webp[at + 4 :]


COSTLY = {
    "wide.tif": (lambda: tiff_of(99_000_000, 10, channels=3), "too short for 99000000 x 10 pixels"),
    "fax.tif": (lambda: tiff_of(99_000_000, 10, compression=4), "990 million; the limit for TIFF is 250"),
    "long.tif": (lambda: tiff_of(20_000_000, 10, compression=4), "more than 1 million a side"),
    "lzw.tif": (lambda: tiff_of(900_000, 270, compression=5), "too short for 900000 x 270 pixels"),
    "blobs.tif": (lambda: shared_blobs(9000, 100_000), "read some of its tags are damaged, repeat others or share"),
    "texts.tif": (lambda: shared_blobs(9000, 100_000, kind=2), "read some of its tags are damaged, repeat others"),
    "flat.webp": (flat_webp, "268 million; the limit for WEBP is 250 million"),
    "interlaced.png": (lambda: png_of(15_800, 15_800, 16, 6, 1), "too short for 15800 x 15800 pixels"),
    "texts.png": (lambda: png(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(7_900_000)))] * 100), "read"),
    "profile.png": (lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000)))), "read its colour prof"),
    "large.jpg": (lambda: with_size(encode("jpeg"), 65_500, 65_500), "too short for 65500 x 65500 pixels"),
    "progressive.jpg": (
        lambda: with_size(encode("jpeg", progressive=True), 15_000, 16_000) + bytes(600_000),
        "the limit for a progressive JPEG is 125 million",
    ),
    "scans.jpg": (scan_bomb, "scans, far more than any camera or program writes"),
    "gain.jpg": (large_gain_map, "read its gain map for HDR screens is damaged and was left out"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("name", COSTLY)
def test_no_file_costs_more_than_it_holds(tmp_path, name):
    make, message = COSTLY[name]
    (tmp_path / name).write_bytes(make())
    said, seconds, megabytes = read_within_limits(tmp_path / name)
    assert message in said
    assert seconds < 5 and megabytes < 150


def test_flat_webp_meets_the_limit_of_pixels(tmp_path):
    flat = Image.new("RGB", (1000, 1000), (3, 4, 5))
    (tmp_path / "a.webp").write_bytes(encode("webp", flat, lossless=True))
    assert (tmp_path / "a.webp").stat().st_size < 200
    with pytest.raises(ImageFileError, match="1 million; the limit for WEBP is 0.9 million .max_pixels."):
        read_image(tmp_path / "a.webp", max_pixels=900_000)
    assert read_image(tmp_path / "a.webp", max_pixels=1_000_000).pixels.shape == (1000, 1000, 3)


# what one file does to the next, and what is printed


def test_a_bad_file_does_not_spoil_the_next(tmp_path):
    sound = {name: encode(format) for name, format in (("a.jpg", "jpeg"), ("a.png", "png"), ("a.avif", "avif"))}
    with_alpha = pyvips.Image.new_from_array(noise(channels=4)).copy(interpretation="srgb")
    property_without_name = with_alpha.heifsave_buffer(compression="av1").replace(b"auxC", b"\xc8uxC")
    for content in (property_without_name, encode("avif")[:-200], encode("png")[:-200]):
        (tmp_path / "bad.avif").write_bytes(content)
        with pytest.raises(ImageFileError, match="bad.avif is damaged"):
            read_image(tmp_path / "bad.avif")
        for name, data in sound.items():
            (tmp_path / name).write_bytes(data)
            assert read_image(tmp_path / name).pixels.shape == (24, 40, 3)


@needs_linux
def test_names_do_not_break_a_message(tmp_path):
    assert printable("a b\n\x1b[31mé東.png") == "a b\\n\\x1b[31mé東.png"
    assert printable(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"
    for name in (b"a\nb.png", b"caf\xe9.png", b"\x1b[31m.png"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        path.write_bytes(encode("png")[:-200])
        with pytest.raises(ImageFileError) as raised:
            read_image(path)
        assert str(raised.value).startswith(printable(path)) and str(raised.value).isprintable()
        for target in (path, path / "b.png"):
            with pytest.raises(OSError) as raised:
                write_image(target, noise())
            assert str(raised.value).isprintable()
    with pytest.raises(FileNotFoundError) as raised:
        list_images([tmp_path / "no\nfile"])
    assert str(raised.value).isprintable()


@needs_linux
@pytest.mark.slow
def test_libraries_print_nothing(tmp_path):
    avif = encode("avif")
    at = avif.index(b"ispe") + 8
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 70_000)
    files = {
        "width.avif": avif[:at] + struct.pack(">I", 2**31 - 1) + avif[at + 4 :],
        "exif.jpg": encode("jpeg", exif=exif),
        "date.png": png(chunk(b"tIME", b"xx"), chunk(b"gAMA", bytes(4))),
        "tag.tif": tiff_of(4, 4, (305, 3, 1, 7), (270, 2, 5, b"caf\xe9s")),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        read_within_limits(tmp_path / name)  # which asserts that stderr is empty


# sound files that break a rule


def test_text_of_a_png_may_have_any_keyword(tmp_path):
    texts = chunk(b"tEXt", b"caf\xe9\0x"), chunk(b"zTXt", b"\xe9t\xe9\0\0" + zlib.compress(b"x"))
    (tmp_path / "a.png").write_bytes(png(*texts))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels, noise())
    assert image.notes == []
    write_image(tmp_path / "b.png", image.pixels, like=image)
    assert b"".join(texts) in (tmp_path / "b.png").read_bytes()


def test_a_description_that_occurs_twice(tmp_path):
    data = b"".join(row.tobytes() for row in noise(8, 8, 1))
    twice = (270, 2, 6, b"first\0"), (270, 2, 20, b'{"shape": [8, 8]}\0\0\0')
    (tmp_path / "a.tif").write_bytes(tiff_of(8, 8, *twice, data=data))
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, noise(8, 8, 1))
    assert RULES in image.notes
    write_image(tmp_path / "b.tif", image.pixels, like=image)
    assert Image.open(tmp_path / "b.tif").tag_v2[270] == "first"


@pytest.mark.parametrize("fault", ["scan header", "stray bytes", "after SOI", "JFIF version", "no end"])
def test_faults_of_a_jpeg_that_concern_no_pixel(tmp_path, fault):
    sound = encode("jpeg", quality=95)
    scan = sound.rindex(b"\xff\xda") + 2 + int.from_bytes(sound[sound.rindex(b"\xff\xda") + 2 :][:2], "big")
    tables = sound.index(b"\xff\xdb")
    data = {
        "scan header": sound[: scan - 3] + bytes(3) + sound[scan:],
        "stray bytes": sound[:tables] + bytes(range(9)) + sound[tables:],
        "after SOI": sound[:2] + bytes(7) + sound[2:],
        "JFIF version": sound[:11] + b"\x02" + sound[12:],
        "no end": sound[:-2],
    }[fault]
    (tmp_path / "a.jpg").write_bytes(data)
    image = read_image(tmp_path / "a.jpg")
    np.testing.assert_array_equal(image.pixels, pyvips.Image.jpegload_buffer(sound).numpy())
    assert image.notes == [RULES]
    (tmp_path / "cut.jpg").write_bytes(data[:-300])
    with pytest.raises(ImageFileError, match="cut.jpg is damaged"):
        read_image(tmp_path / "cut.jpg")


def test_a_progressive_jpeg_without_its_last_scans_is_damaged(tmp_path):
    data = encode("jpeg", progressive=True)
    (tmp_path / "a.jpg").write_bytes(data[: data.rindex(b"\xff\xda")])
    with pytest.raises(ImageFileError, match="a.jpg is damaged"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("tag", [324, 325])
@pytest.mark.parametrize("value", [0, 7, 2**31])
def test_tiles_that_are_not_there_are_damage(tmp_path, tag, value):
    # beside a fault that concerns no pixel
    pyvips.Image.new_from_array(noise(64, 64)).tiffsave(
        str(tmp_path / "a.tif"), tile=True, tile_width=16, tile_height=16, compression="lzw"
    )
    data = bytearray((tmp_path / "a.tif").read_bytes())
    entry = data.rindex(struct.pack("<H", tag) + b"\x04\0" if tag == 324 else struct.pack("<H", tag))
    kind, count, offset = struct.unpack_from("<HII", data, entry + 2)
    size = {3: 2, 4: 4}[kind]
    data[offset + 3 * size : offset + 4 * size] = (value % 256**size).to_bytes(size, "little")
    resolution_unit = data.rindex(struct.pack("<HHII", 296, 3, 1, 2))
    data[resolution_unit + 2] = 12  # a float, which it may not be
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ImageFileError, match="a.tif is damaged"):
        read_image(tmp_path / "a.tif")


# colour profiles


def display_profile(curve=None, gamma=2.2, red=(0.6097, 0.3111, 0.0195)):
    """Build an ICC profile of Adobe RGB's primaries, without a checksum; `curve` is 1024 numbers in [0, 1]."""
    fixed = lambda *values: b"".join(struct.pack(">i", round(value * 65536)) for value in values)  # noqa: E731
    if curve is None:
        tone = struct.pack(">IHxx", 1, round(gamma * 256))
    else:
        tone = struct.pack(">I", len(curve)) + np.round(np.multiply(curve, 65535)).astype(">u2").tobytes()
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, 2) + b"a\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249),
        b"rXYZ": b"XYZ " + bytes(4) + fixed(*red),
        b"gXYZ": b"XYZ " + bytes(4) + fixed(0.2053, 0.6257, 0.0609),
        b"bXYZ": b"XYZ " + bytes(4) + fixed(0.1492, 0.0632, 0.7446),
    } | {name: b"curv" + bytes(4) + tone for name in (b"rTRC", b"gTRC", b"bTRC")}
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"", b"acsp"
    )
    return (header.ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + table + body


X = np.linspace(0, 1, 1024)
DAMAGED_PROFILES = {
    "hole": lambda: display_profile(np.where((X > 0.4) & (X < 0.5), 0, X**2.2)),
    "step": lambda: display_profile(np.where(X > 0.4, 1, X**2.2)),
    "gamma": lambda: display_profile(gamma=100),
    "primary": lambda: display_profile(red=(4, 0.3111, 0.0195)),
    "checksum": lambda: p3_profile()[:468] + b"\x08" + p3_profile()[469:],
}


def p3_profile():
    grey = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    return grey.icc_transform("p3").get("icc-profile-data")


@pytest.mark.parametrize("damage", DAMAGED_PROFILES)
@pytest.mark.parametrize("format", ["png", "tiff", "jpeg"])
def test_a_damaged_profile_is_left_out_and_said(tmp_path, damage, format):
    (tmp_path / f"a.{format}").write_bytes(encode(format, icc_profile=DAMAGED_PROFILES[damage]()))
    image = read_image(tmp_path / f"a.{format}")
    assert image.notes == ["its colour profile is damaged and was left out"]
    assert image.native is None and "icc-profile-data" not in image.metadata
    if format != "jpeg":
        np.testing.assert_array_equal(image.pixels, noise())
    write_image(tmp_path / f"b.{format}", image.pixels, like=image)
    assert "icc_profile" not in Image.open(tmp_path / f"b.{format}").info


@pytest.mark.parametrize("profile", [lambda: display_profile(), lambda: display_profile(gamma=1), p3_profile])
def test_sound_profiles_are_kept(tmp_path, profile):
    (tmp_path / "a.png").write_bytes(encode("png", icc_profile=profile()))
    image = read_image(tmp_path / "a.png")
    assert image.notes == [] and image.metadata["icc-profile-data"] == profile()
    np.testing.assert_array_equal(image.native, noise())


def test_a_profile_without_a_readable_name(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile, notes in (
        (b"caf\xe9", b"broken" * 40, ["its colour profile is damaged and was left out"]),
        (b"caf\xe9", srgb, []),
        (b"\n" * 90, srgb, ["its colour profile is damaged and was left out"]),
    ):
        (tmp_path / "a.png").write_bytes(png(chunk(b"iCCP", name + b"\0\0" + zlib.compress(profile))))
        image = read_image(tmp_path / "a.png")
        np.testing.assert_array_equal(image.pixels, noise())
        assert image.notes == notes
        write_image(tmp_path / "b.png", image.pixels, like=image, overwrite=True)


# what a killed program leaves


WRITE_AND_WAIT = """
import os, signal, sys
import numpy as np
from gdd_diffusers.files import write_image
def wait(*args):
    print("waiting", flush=True)
    sys.stdin.readline()
os.fsync = wait
write_image(sys.argv[1], np.zeros((8, 8, 3), np.uint8))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no open file anyway")
def test_parts_that_nobody_writes_are_removed_and_others_are_not(tmp_path):
    writers = []
    for name in ("killed.png", "alive.png"):
        command = [sys.executable, "-c", WRITE_AND_WAIT, str(tmp_path / name)]
        writers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert writers[-1].stdout.readline() == "waiting\n"
    killed, alive = writers
    killed.kill()
    killed.wait()
    (tmp_path / ".mine.part").touch()
    assert len(list(tmp_path.glob(".*.part"))) == 3
    write_image(tmp_path / "a.png", noise())
    assert len(list(tmp_path.glob(".*.part"))) == 2  # one is being written, and one is not ours
    alive.communicate("go on\n")
    assert alive.returncode == 0
    assert sorted(os.listdir(tmp_path)) == [".mine.part", "a.png", "alive.png"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_to_be_in_the_meantime_is_not_replaced(tmp_path, monkeypatch, links):
    monkeypatch.setattr(os, "fsync", lambda file: (tmp_path / "a.png").write_bytes(b"another's"))
    if not links:
        monkeypatch.setattr(os, "link", lambda *args: os.stat(tmp_path / "no such file"))
    with pytest.raises(FileExistsError, match="a.png exists already"):
        write_image(tmp_path / "a.png", noise())
    assert (tmp_path / "a.png").read_bytes() == b"another's"
    assert os.listdir(tmp_path) == ["a.png"]
    write_image(tmp_path / "a.png", noise(), overwrite=True)
    assert read_image(tmp_path / "a.png").pixels.shape == (24, 40, 3)

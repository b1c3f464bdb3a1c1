"""
Read image files and write them again unchanged, in every format, and say what other programs find changed.

    python tests/round_trips.py

prints the tables of docs/files.md. Tags are read by ExifTool, which must be installed; pixels by Pillow and tifffile.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyvips
import tifffile
from PIL import Image

from gdd_diffusers.files import read_image, write_image
from gdd_diffusers.files.profiles import LINEAR, SRGB_CURVE, build_profile


FORMATS = ("jpg", "png", "tif", "webp", "avif")
D65 = (0.3127, 0.3290)
PROFILES = {
    "none (sRGB)": b"",
    "Display P3": build_profile((D65, (0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), SRGB_CURVE),
    "Adobe RGB": build_profile((D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256),
    "ProPhoto RGB": build_profile(((0.3457, 0.3585), (0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), 1.8),
    "linear Rec. 2020": build_profile((D65, (0.708, 0.292), (0.17, 0.797), (0.131, 0.046)), LINEAR),
}
TAGS = {
    "EXIF:Make": "Maker",
    "EXIF:Model": "Model 1",
    "EXIF:Artist": "José",
    "EXIF:Rating": 4,
    "EXIF:RatingPercent": 75,
    "EXIF:ISO": 800,
    "EXIF:ExposureTime": "1/50",
    "EXIF:AmbientTemperature": 20,
    "EXIF:LensModel": "50mm",
    "EXIF:DateTimeOriginal": "2026:11:27 10:00:00",
    "EXIF:OffsetTimeOriginal": "+01:00",
    "EXIF:UserComment": "a comment in EXIF",
    "EXIF:GPSLatitude": 48.85,
    "EXIF:GPSLatitudeRef": "N",
    "XMP-xmp:Rating": 4,
    "XMP-dc:Subject": "roses",
    "XMP-lr:HierarchicalSubject": "garden|roses",
}
OF_A_FORMAT = {
    "jpg": {"Comment": "Bed 7", "IPTC:Keywords": "roses", "IPTC:Caption-Abstract": "Bed 7"},
    "png": {"PNG:Title": "Roses", "PNG:ModifyDate": "2026:11:27 10:00:00", "IPTC:Keywords": "roses"},
    "tif": {"IPTC:Keywords": "roses", "IPTC:Caption-Abstract": "Bed 7"},
}
# how ExifTool calls what one format has its own place for
GROUPS = {"File": "comment", "PNG": "text and time"}
# what is not kept in a file but found out about it, and how pixels are stored
UNKEPT_GROUPS = ("System", "ExifTool", "Composite", "JFIF", "PNG-pHYs", "RIFF", "Meta", "QuickTime")
UNKEPT_TAGS = """
BitDepth BitsPerSample ColorComponents ColorType Compression CurrentIPTCDigest EncodingProcess ExifByteOrder
ExtraSamples FileType FileTypeExtension FillOrder Filter HorizontalScale ImageHeight ImageWidth Interlace MIMEType
Orientation PhotometricInterpretation PlanarConfiguration Predictor ProfileName ResolutionUnit RowsPerStrip
SampleFormat SamplesPerPixel StripByteCounts StripOffsets SubfileType VP8Version VerticalScale XMPToolkit XResolution
YCbCrPositioning YCbCrSubSampling YResolution
""".split()


def gradient(height=64, width=96, dtype=np.uint8):
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([x, y, 1 - x], axis=-1) * np.iinfo(dtype).max).round().astype(dtype)


def exiftool(*arguments) -> str:
    return subprocess.run(["exiftool", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def make_source(folder: Path, extension: str) -> Path:
    """Write a file with a profile and all metadata that ExifTool can put into its format."""
    path = folder / f"in.{extension}"
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(extension, {})
    Image.fromarray(gradient()).save(path, icc_profile=PROFILES["Display P3"], **options)
    tags = TAGS | OF_A_FORMAT.get(extension, {})
    exiftool("-q", "-m", "-overwrite_original", *(f"-{name}={value}" for name, value in tags.items()), path)
    return path


def is_kept(name: str) -> bool:
    """Whether a tag is kept in a file, and not only stated of it."""
    group, _, tag = name.rpartition(":")
    return bool(group) and group not in UNKEPT_GROUPS and tag not in UNKEPT_TAGS


def differing_tags(path: Path) -> dict[str, tuple[set[str], list[str]]]:
    """
    Convert a file to all formats.

    Returns:
        {format: (groups of tags of which some are lost, changed or new, what was said)}.
    """
    results, notes = [path.with_name(f"out.{target}") for target in FORMATS], []
    for result in results:
        image = read_image(path)
        write_image(result, image.pixels, like=image)
        notes.append(image.notes)
    old, *all_new = json.loads(exiftool("-json", "-G1", "-a", "-n", path, *results))
    differences = {}
    for target, new, said in zip(FORMATS, all_new, notes, strict=True):
        groups = {name.rpartition(":")[0] for name in old | new if is_kept(name) and old.get(name) != new.get(name)}
        differences[target] = {GROUPS.get(group, group) for group in groups}, said
    return differences


def numbers(path: Path) -> np.ndarray:
    """Read a file's own numbers; those of 16 bits in a PNG by libvips, as Pillow reads 8 of them."""
    if path.suffix == ".tif":
        return tifffile.imread(path)
    image = pyvips.Image.new_from_file(str(path))
    return image.numpy() if image.format == "ushort" else np.asarray(Image.open(path))


def largest_difference(folder: Path, profile: bytes, bits: int, target: str) -> float:
    """Read a TIFF, write it unchanged, and return the largest difference in levels of 8 bits."""
    before, path = gradient(dtype=np.uint8 if bits == 8 else np.uint16), folder / f"out.{target}"
    tags = [(34675, 7, len(profile), profile, True)] if profile else []
    tifffile.imwrite(folder / "in.tif", before, photometric="rgb", extratags=tags, metadata=None)
    image = read_image(folder / "in.tif")
    write_image(path, image.pixels, like=image)
    after = numbers(path)
    white = np.iinfo(after.dtype).max
    expected = before if after.dtype == before.dtype else before * (white / np.iinfo(before.dtype).max)
    return float(np.abs(after - expected.astype(float)).max() * 255 / white)


def print_row(*cells) -> None:
    print("|", " | ".join(map(str, cells)), "|")


def main():
    said: dict[str, None] = {}
    print_row("from, to", *FORMATS)
    print_row(*["---"] * (len(FORMATS) + 1))
    for source in FORMATS:
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            for groups, notes in differing_tags(make_source(Path(folder), source)).values():
                cells.append(f"all but {', '.join(sorted(groups))}" if groups else "all")
                said |= dict.fromkeys(notes)
        print_row(source, *cells)
    print("\nSaid:", *said, sep="\n- ")
    print()
    print_row("profile", "bits", *FORMATS)
    print_row(*["---"] * (len(FORMATS) + 2))
    for name, profile in PROFILES.items():
        for bits in (8, 16):
            with tempfile.TemporaryDirectory() as folder:
                cells = [largest_difference(Path(folder), profile, bits, target) for target in FORMATS]
            print_row(name, bits, *(f"{cell:.2g}" for cell in cells))


if __name__ == "__main__":
    main()

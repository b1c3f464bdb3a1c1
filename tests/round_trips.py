"""
Read image files and write them again without denoising, in every format, and say what other programs find changed.

    python tests/round_trips.py

prints the tables of docs/files.md. Tags are read by ExifTool, which must be installed; pixels by Pillow and tifffile.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from gdd_diffusers.files import read_image, write_image


FORMATS = ("jpg", "png", "tif", "webp", "avif")
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
    "EXIF:GPSLatitude": 48.85,
    "EXIF:GPSLatitudeRef": "N",
    "EXIF:UserComment": "a comment in EXIF",
    "XMP-xmp:Rating": 4,
    "XMP-dc:Subject": "roses",
    "XMP-lr:HierarchicalSubject": "garden|roses",
}
IPTC = {"IPTC:Keywords": "roses", "IPTC:Caption-Abstract": "Bed 7"}
# what says how the pixels are stored, and what ExifTool computes
OWN_GROUPS = ("System", "File", "ExifTool", "Composite", "JFIF", "PNG", "RIFF", "Meta", "QuickTime", "ICC-header")
OWN_TAGS = "ImageWidth ImageHeight BitsPerSample Compression PhotometricInterpretation StripOffsets SamplesPerPixel"
OWN_TAGS += (
    " RowsPerStrip StripByteCounts PlanarConfiguration Predictor SampleFormat Orientation XMPToolkit SubfileType"
)
OWN_TAGS += (
    " ExtraSamples FillOrder PageNumber XResolution YResolution ResolutionUnit CurrentIPTCDigest YCbCrPositioning"
)


def pixels(height=64, width=96, dtype=np.uint8):
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    image = np.stack([x, y, 1 - x], axis=-1) + np.random.default_rng(0).normal(0, 0.02, (height, width, 3))
    return (image.clip(0, 1) * np.iinfo(dtype).max).round().astype(dtype)


def exiftool(*arguments) -> str:
    return subprocess.run(["exiftool", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def make_source(folder: Path, extension: str) -> Path:
    """Write a file with all metadata that ExifTool can put into its format, and comments or text of its own."""
    path = folder / f"in.{extension}"
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(extension, {})
    Image.fromarray(pixels()).save(path, **options)
    tags = TAGS | (IPTC if extension in ("jpg", "tif", "png") else {})
    tags |= {"jpg": {"Comment": "Bed 7"}, "png": {"PNG:Title": "Roses", "PNG:ModifyDate": "2026:11:27 10:00:00"}}.get(
        extension, {}
    )
    exiftool("-q", "-overwrite_original", *(f"-{name}={value}" for name, value in tags.items()), path)
    return path


def read_tags(path: Path) -> dict:
    """Return {group:tag: value} as ExifTool reads them, without those that only concern the file and the pixels."""
    (tags,) = json.loads(exiftool("-json", "-G1", "-a", "-n", path))
    kept = {}
    for name, value in tags.items():
        group, _, tag = name.rpartition(":")
        if group and group not in OWN_GROUPS and tag not in OWN_TAGS.split():
            kept[name] = value
    return kept


def compare(before: Path, after: Path) -> list[str]:
    """Return the tags that are lost, changed or new."""
    old, new = read_tags(before), read_tags(after)
    lost = [f"-{name}" for name in old if name not in new]
    changed = [f"{name}: {old[name]} -> {new[name]}" for name in old if name in new and old[name] != new[name]]
    return lost + changed + [f"+{name}" for name in new if name not in old]


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in FORMATS:
            path = make_source(folder, source)
            for target in FORMATS:
                image = read_image(path)
                result = folder / f"out.{target}"
                write_image(result, image.pixels, like=image, overwrite=True)
                print(source, target, compare(path, result), image.notes)


if __name__ == "__main__":
    main()

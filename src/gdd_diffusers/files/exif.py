"""Read and write the tags of EXIF blocks and TIFF files (TIFF 6.0, BigTIFF, EXIF 2.3)."""

import struct
from dataclasses import dataclass
from mmap import mmap

import numpy as np


COMPRESSION, IPTC = 259, 33723
MAKER_NOTE, EXIF = 0x927C, 0x8769
_ORIENTATION, _GPS, _INTEROPERABILITY = 0x0112, 0x8825, 0xA005
_SUBDIRECTORIES = {EXIF: {_INTEROPERABILITY: {}}, _GPS: {}}
# bytes per number of the types 0 to 18
_UNITS = (0, 1, 1, 2, 4, 4, 1, 1, 2, 4, 4, 4, 8, 4, 0, 0, 8, 8, 8)
_RATIONALS = (5, 10)
# first bytes of a file: byte order, and struct's letters for the number of entries and for counts and offsets
_LAYOUTS = {
    b"II*\0": ("<", "H", "I"),
    b"MM\0*": (">", "H", "I"),
    b"II+\0": ("<", "Q", "Q"),
    b"MM\0+": (">", "Q", "Q"),
}
# the layout of the pixels, and what is kept elsewhere: XMP, IPTC, Photoshop, ICC
_PIXEL_TAGS = {*range(254, 267), *range(273, 285), *range(288, 298), 301, *range(317, 348), *range(512, 533)}
_PIXEL_TAGS |= {700, IPTC, 34377, 34675, 37724}


def read_tags(data: bytes | mmap) -> tuple[dict, bool]:
    """
    Read the tags of the first image.

    Returns {tag: (type, count, value)}, empty if `data` is no TIFF; and whether tags were left out because they are
    damaged, repeat an earlier one, or share bytes, as in files made to fill the memory. A value is little-endian
    bytes, or for EXIF, GPS and interoperability a dictionary again.
    """
    budget = _Budget(len(data))
    try:
        layout = _LAYOUTS[data[:4]]
        tags = _read_directory(data, _first_directory(data, layout), layout, _SUBDIRECTORIES, budget)
    except (KeyError, struct.error, OverflowError):
        tags = {}
    return tags, budget.incomplete


def with_pixel_tags_only(data: bytes) -> bytes:
    """Return a TIFF file with the tags that locate and describe the pixels, but no others that could be wrong."""
    order, counter, word = layout = _LAYOUTS[data[:4]]
    start, step = _first_directory(data, layout), 4 + 2 * struct.calcsize("<" + word)
    (count,) = struct.unpack_from(order + counter, data, start)
    start += struct.calcsize("<" + counter)
    entries = (data[at : at + step] for at in range(start, min(start + step * count, len(data)), step))
    # of repeated entries the first one counts, so it comes last here
    entries = {struct.unpack(order + "H", entry[:2]): entry for entry in reversed(list(entries))}
    kept = [entry for (tag,), entry in sorted(entries.items()) if tag in _PIXEL_TAGS]
    padding = bytes(len(data) % 2)
    pointer = struct.pack(order + word, len(data) + len(padding))
    directory = struct.pack(order + counter, len(kept)) + b"".join(kept) + bytes(len(pointer))
    return data[: len(pointer)] + pointer + data[2 * len(pointer) :] + padding + directory


def without_pixel_tags(tags: dict) -> dict:
    return {tag: tags[tag] for tag in tags if tag not in _PIXEL_TAGS}


def pack_exif(tags: dict) -> bytes:
    return b"II*\0\x08\0\0\0" + _pack_directory(tags, 8, _LAYOUTS[b"II*\0"]) if tags else b""


def append_tags(data: bytes | mmap, tags: dict) -> tuple[bytes, bytes]:
    """Add tags to a little-endian TIFF file: return its new first bytes, and what to append."""
    layout = _LAYOUTS[data[:4]]
    padding = len(data) % 2
    start = len(data) + padding
    pointer = struct.pack("<" + layout[2], start)
    return data[: len(pointer)] + pointer, bytes(padding) + _pack_directory(tags | read_tags(data)[0], start, layout)


def upright_exif(exif: bytes) -> bytes:
    """Set the orientation of an EXIF block to 1 and drop its thumbnail; every other byte stays where it was."""
    exif = bytearray(exif.removeprefix(b"Exif\0\0"))
    try:
        order = _LAYOUTS[bytes(exif[:4])][0]
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        end = at + 2 + 12 * entries
        for entry in range(at + 2, end, 12):
            if struct.unpack_from(order + "H", exif, entry)[0] == _ORIENTATION:
                struct.pack_into(order + "HIHH", exif, entry + 2, 3, 1, 1, 0)
        struct.pack_into(order + "I", exif, end, 0)
    except (KeyError, struct.error):
        # not EXIF at all
        return b""
    return bytes(exif)


@dataclass
class _Budget:
    """The bytes that values may still take; those of a sound file are no more than the file."""

    left: int
    incomplete: bool = False


def _first_directory(data: bytes | mmap, layout: tuple[str, str, str]) -> int:
    # its offset is at 4 in a TIFF and at 8 in a BigTIFF, which is also its size
    word = layout[0] + layout[2]
    return struct.unpack_from(word, data, struct.calcsize(word))[0]


def _read_directory(
    data: bytes | mmap, at: int, layout: tuple[str, str, str], subdirectories: dict, budget: _Budget
) -> dict:
    order, counter, word = layout
    width = struct.calcsize(order + word)
    tags = {}
    (entries,) = struct.unpack_from(order + counter, data, at)
    first, step = at + struct.calcsize(order + counter), 4 + 2 * width
    for entry in range(first, first + step * entries, step):
        tag, kind, count, offset = struct.unpack_from(order + "HH" + word + word, data, entry)
        unit = _UNITS[kind] if kind < len(_UNITS) else 0
        size = unit * count * (2 if kind in _RATIONALS else 1)
        start = offset if size > width else entry + 4 + width
        if not size or start + size > len(data):
            continue
        if tag in tags or size > budget.left:
            budget.incomplete = True
            continue
        budget.left -= size
        value = data[start : start + size]
        if order == ">" and tag != IPTC:
            # IPTC is bytes even where its type says numbers
            value = np.frombuffer(value, f">u{unit}").astype(f"<u{unit}").tobytes()
        if tag in subdirectories:
            try:
                value = _read_directory(data, int.from_bytes(value, "little"), layout, subdirectories[tag], budget)
            except struct.error:
                budget.incomplete = True
                continue
        tags[tag] = kind, count, value
    return tags


def _pack_directory(tags: dict, at: int, layout: tuple[str, str, str]) -> bytes:
    """Return a little-endian directory for offset `at`, followed by its values."""
    _, counter, word = layout
    width = struct.calcsize("<" + word)
    entries, values = bytearray(struct.pack("<" + counter, len(tags))), bytearray()
    behind = at + len(entries) + (4 + 2 * width) * len(tags) + width
    for tag, (kind, count, value) in sorted(tags.items()):
        offset = behind + len(values)
        if isinstance(value, dict):
            kind = 4 if width == 4 else 16
            value = _pack_directory(value, offset, layout)
        if len(value) > width:
            values += value + b"\0" * (len(value) % 2)
            value = struct.pack("<" + word, offset)
        entries += struct.pack("<HH" + word, tag, kind, count) + value.ljust(width, b"\0")
    return bytes(entries + bytes(width) + values)

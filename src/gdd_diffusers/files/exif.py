"""Read and write the tags of EXIF blocks and TIFF files (TIFF 6.0, BigTIFF, EXIF 2.3)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from mmap import mmap

import numpy as np


COMPRESSION, EXTRA_SAMPLES, SUB_IMAGES = 259, 338, 330
XMP, IPTC, PHOTOSHOP, ICC, PHOTOSHOP_LAYERS = 700, 33723, 34377, 34675, 37724
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 274, 282, 283, 296
EXIF, _GPS, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
EXIF_SIDES = 0xA002, 0xA003
_WIDTHS_AND_HEIGHTS = [(0x0100, 0x0101), EXIF_SIDES]
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
_PIXEL_TAGS = {*range(254, 267), *range(273, 285), *range(288, 298), 317, *range(320, 348), *range(512, 533)}
_PIXEL_TAGS -= {ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT}
_PIXEL_TAGS |= {XMP, IPTC, PHOTOSHOP, ICC, PHOTOSHOP_LAYERS}
_SUBFILE_TYPE, _OLD_SUBFILE_TYPE = 254, 255
_MAX_PAGES = 1000


def read_tags(data: bytes | mmap, page: int = 0) -> tuple[dict, bool]:
    """
    Read the tags of the first image, or of another page.

    Returns {tag: (type, count, value)}, empty if `data` is no TIFF; and whether tags were left out because they are
    damaged, repeat an earlier one, or share bytes, as in files made to fill the memory. A value is little-endian
    bytes, or for EXIF, GPS and interoperability a dictionary again.
    """
    budget = _Budget(len(data))
    try:
        layout = _LAYOUTS[data[:4]]
        (at,) = islice(_directories(data, layout), page, page + 1)
        tags = _read_directory(data, at, layout, _SUBDIRECTORIES, budget)
    except (KeyError, ValueError, struct.error, OverflowError):
        tags = {}
    return tags, budget.incomplete


def full_pages(data: bytes | mmap) -> tuple[list[int], int]:
    """Return which pages of a TIFF file are neither smaller copies nor masks of another, and the number of all."""
    pages, page = [], -1
    try:
        order, counter, word = layout = _LAYOUTS[data[:4]]
        width = struct.calcsize("<" + word)
        for page, at in enumerate(islice(_directories(data, layout), _MAX_PAGES)):
            pages.append(page)
            # tags are sorted, so these come first
            for entry in range(2):
                start = at + struct.calcsize("<" + counter) + entry * (4 + 2 * width)
                tag, kind = struct.unpack_from(order + "HH", data, start)
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, start + 4 + width)
                if (tag == _SUBFILE_TYPE and value & 5) or (tag == _OLD_SUBFILE_TYPE and value == 2):
                    pages.pop()
                    break
    except (KeyError, struct.error, OverflowError):
        # what libvips thinks of it counts
        pass
    return pages, page + 1


def with_pixel_tags_only(data: bytes, page: int) -> bytes:
    """Return a page of a TIFF file with the tags that locate and describe the pixels, but no others to be wrong."""
    order, counter, word = layout = _LAYOUTS[data[:4]]
    (start,), step = islice(_directories(data, layout), page, page + 1), 4 + 2 * struct.calcsize("<" + word)
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


def with_number(data: bytes, page: int, tag: int, value: int) -> bytes:
    """Return a TIFF file in which a tag of a page has another value, below 65536."""
    order, counter, word = layout = _LAYOUTS[data[:4]]
    (start,), width = islice(_directories(data, layout), page, page + 1), struct.calcsize("<" + word)
    (count,) = struct.unpack_from(order + counter, data, start)
    block, start = bytearray(data), start + struct.calcsize("<" + counter)
    for entry in range(start, start + count * (4 + 2 * width), 4 + 2 * width):
        if struct.unpack_from(order + "H", block, entry)[0] == tag:
            struct.pack_into(order + "H", block, entry + 4 + width, value)
            break
    return bytes(block)


def without_pixel_tags(tags: dict) -> dict:
    return {tag: tags[tag] for tag in tags if tag not in _PIXEL_TAGS}


def pack_exif(tags: dict) -> bytes:
    return b"II*\0\x08\0\0\0" + _pack_directory(tags, 8, _LAYOUTS[b"II*\0"]) if tags else b""


def append_tags(data: bytes | mmap, tags: dict) -> tuple[bytes, bytes]:
    """Put tags into a little-endian TIFF file: return its new first bytes, and what to append."""
    layout = _LAYOUTS[data[:4]]
    padding = len(data) % 2
    start = len(data) + padding
    pointer = struct.pack("<" + layout[2], start)
    return data[: len(pointer)] + pointer, bytes(padding) + _pack_directory(read_tags(data)[0] | tags, start, layout)


def number(tags: dict, tag: int, default: int = 0) -> int:
    """Return the first number of a tag of `read_tags`, or the default if there is no such tag."""
    kind, _, value = tags.get(tag, (0, 0, b""))
    return int.from_bytes(value[: _UNITS[kind]], "little") if value else default


def exif_resolution(exif: bytes) -> tuple[float, float]:
    """Return the pixels per millimetre that an EXIF block states, or (1, 1), libvips' value for unknown."""
    tags, _ = read_tags(exif.removeprefix(b"Exif\0\0"))
    unit = {2: 25.4, 3: 10.0}.get(number(tags, RESOLUTION_UNIT, 2))
    values = [tags.get(tag, (0, 0, b""))[2] for tag in (X_RESOLUTION, Y_RESOLUTION)]
    if unit and all(len(value) == 8 and any(value[:4]) and any(value[4:]) for value in values):
        x, y = (struct.unpack("<II", value) for value in values)
        return x[0] / x[1] / unit, y[0] / y[1] / unit
    return 1.0, 1.0


def upright_exif(exif: bytes, swap_sides: bool = False) -> bytes:
    """
    Set the orientation of an EXIF block to 1 and drop its thumbnail; every other byte stays where it was.

    `swap_sides` also exchanges the width and the height that it states.
    """
    block = bytearray(exif.removeprefix(b"Exif\0\0"))
    try:
        order = _LAYOUTS[bytes(block[:4])][0]
        (at,) = struct.unpack_from(order + "I", block, 4)
        entries, end = _entries(block, order, at)
        if EXIF in entries:
            (at,) = struct.unpack_from(order + "I", block, entries[EXIF] + 8)
            entries = _entries(block, order, at)[0] | entries
        if ORIENTATION in entries:
            struct.pack_into(order + "HIHH", block, entries[ORIENTATION] + 2, 3, 1, 1, 0)
        for width, height in _WIDTHS_AND_HEIGHTS if swap_sides else ():
            if width in entries and height in entries:
                first, second = (slice(entries[side] + 2, entries[side] + 12) for side in (width, height))
                block[first], block[second] = block[second], block[first]
        struct.pack_into(order + "I", block, end, 0)
    except (KeyError, struct.error):
        # not EXIF at all
        return b""
    return bytes(block)


def _entries(block: bytearray, order: str, at: int) -> tuple[dict[int, int], int]:
    """Return {tag: offset of its entry} of a directory, and the offset of what follows them."""
    (count,) = struct.unpack_from(order + "H", block, at)
    end = at + 2 + 12 * count
    return {struct.unpack_from(order + "H", block, entry)[0]: entry for entry in range(at + 2, end, 12)}, end


@dataclass
class _Budget:
    """The bytes that values may still take; those of a sound file are no more than the file."""

    left: int
    incomplete: bool = False


def _directories(data: bytes | mmap, layout: tuple[str, str, str]) -> Iterator[int]:
    """Yield the offsets of the directories of a file's pages."""
    order, counter, word = layout
    # the offset of the first is at 4 in a TIFF and at 8 in a BigTIFF, which is also its size
    size, seen = struct.calcsize(order + word), set()
    (at,) = struct.unpack_from(order + word, data, size)
    while at and at not in seen:
        yield at
        seen.add(at)
        (entries,) = struct.unpack_from(order + counter, data, at)
        (at,) = struct.unpack_from(
            order + word, data, at + struct.calcsize(order + counter) + entries * (4 + 2 * size)
        )


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

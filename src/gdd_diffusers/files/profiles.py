"""Write ICC profiles for colours that a file states by numbers: gAMA and cHRM of a PNG, codes of ITU-T H.273."""

import struct
from pathlib import Path

import numpy as np

from .image_file import ImageFileError, printable


SRGB_CURVE, LINEAR = 0.0, 1.0
_D65, _D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
SRGB_PRIMARIES = (_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
# white, red, green, blue (H.273, table 2); 2 means not specified
_PRIMARIES = {
    1: SRGB_PRIMARIES,
    2: SRGB_PRIMARIES,
    5: (_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: (_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
# viewers decode the curves of television (1, 6, 14, 15) as that of sRGB, since a display undoes them so
_CURVES = dict.fromkeys((1, 2, 6, 13, 14, 15), SRGB_CURVE) | {4: 2.2, 5: 2.8, 8: LINEAR}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def profile_of_codes(primaries: int, transfer: int) -> bytes | None:
    """Return the profile of two codes of H.273, empty if they mean sRGB, or `None` for HDR and unknown codes."""
    if primaries not in _PRIMARIES or transfer not in _CURVES:
        return None
    if primaries in (1, 2) and _CURVES[transfer] == SRGB_CURVE:
        return b""
    return build_profile(_PRIMARIES[primaries], _CURVES[transfer])


def unknown_colours(path: Path) -> ImageFileError:
    name = printable(path)
    return ImageFileError(f"{name} is in HDR or wide-gamut colour of a kind that gdd cannot keep; convert it first.")


def build_profile(primaries: tuple, gamma: float) -> bytes:
    """
    Return the ICC profile (ICC.1:2010) of a display; empty if there is no such display.

    Args:
        primaries: CIE xy of white, red, green and blue.
        gamma: The exponent that decodes it, or `SRGB_CURVE`.
    """
    try:
        with np.errstate(all="raise"):
            xy = np.array(primaries, float)
            xyz = np.column_stack([xy, 1 - xy.sum(1)]) / xy[:, 1:]
            white, colours = xyz[0], xyz[1:].T
            to_d50 = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
            colours = to_d50 @ colours * np.linalg.solve(colours, white)
        curve = _numbers(b"para", 0, gamma)
        if gamma == SRGB_CURVE:
            curve = _numbers(b"para", 3 << 16, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        tags = {
            b"desc": _text("as stated by the file"),
            b"cprt": _text("CC0"),
            b"wtpt": _numbers(b"XYZ ", None, *_D50),
            b"chad": _numbers(b"sf32", None, *to_d50.ravel()),
        }
        tags |= {
            name + b"XYZ": _numbers(b"XYZ ", None, *colour)
            for name, colour in zip(b"r g b".split(), colours.T, strict=True)
        }
        tags |= {name + b"TRC": curve for name in b"r g b".split()}
    except (ArithmeticError, np.linalg.LinAlgError, struct.error):
        return b""
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = start + len(data)
    header = struct.pack(">I4xI4s4s4s12x4s28x3i", size, 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp", *_fixed(*_D50))
    return header.ljust(128, b"\0") + table + data


def _fixed(*values: float) -> list[int]:
    return [round(65536 * float(value)) for value in values]


def _numbers(kind: bytes, function: int | None, *values: float) -> bytes:
    head = struct.pack(">4s4x", kind) + (b"" if function is None else struct.pack(">I", function))
    return head + struct.pack(f">{len(values)}i", *_fixed(*values))


def _text(text: str) -> bytes:
    content = text.encode("utf-16-be")
    return struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", len(content), 28) + content

"""Take IPTC out of, and put it into, what Photoshop writes to files (Adobe Photoshop File Formats)."""

import struct


_IPTC = b"\x04\x04"
_THUMBNAILS = (b"\x04\x09", b"\x04\x0c")


def photoshop_resources(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Split a Photoshop block into [(kind, whole resource, its content)]."""
    resources, at = [], 0
    while at + 12 <= len(data):
        # after signature and kind: the length of a name, the name, padded to even, and the length of the content
        start = at + 6 + (data[at + 6] // 2 + 1) * 2 + 4
        size = int.from_bytes(data[start - 4 : start], "big")
        end = start + size + size % 2
        resources.append((data[at + 4 : at + 6], data[at:end], data[start : start + size]))
        at = end
    return resources


def iptc_of(photoshop: bytes) -> bytes:
    return b"".join(content for kind, _, content in photoshop_resources(photoshop) if kind == _IPTC)


def without_iptc(photoshop: bytes) -> bytes:
    return b"".join(resource for kind, resource, _ in photoshop_resources(photoshop) if kind != _IPTC)


def without_thumbnails(photoshop: bytes) -> bytes:
    return b"".join(resource for kind, resource, _ in photoshop_resources(photoshop) if kind not in _THUMBNAILS)


def with_iptc(photoshop: bytes, iptc: bytes) -> bytes:
    """Return a Photoshop block with this IPTC, or as it is if there is none."""
    if not iptc:
        return photoshop
    header = b"8BIM" + _IPTC + struct.pack(">HI", 0, len(iptc))
    return header + iptc + b"\0" * (len(iptc) % 2) + without_iptc(photoshop)

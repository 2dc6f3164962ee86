"""A PNG that ends too early, or is damaged inside -> one that decoders take, with the rows that are there.

Browsers show such a file as far as it goes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  #: of PNG's kinds of colour
_STEP = 64  #: bytes inflated at once: what comes before the damage in such a piece is kept
_INTERLACED = 28  #: place of the byte that says so


@dataclass(frozen=True)
class MendedPng:
    """A whole file."""

    data: bytes = field(repr=False)
    rows: int  #: of the picture that are there; those below are made up


def mend_png(data: bytes) -> MendedPng | None:
    """None where no row can be had: the header is damaged, the file ends before its pixels, or it is interlaced."""
    chunks = list(_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 or data[_INTERLACED]:
        return None
    width, height, depth, colour = struct.unpack(">IIBB", chunks[0][1][:10])
    if colour not in _CHANNELS or not width or not height:
        return None
    line = 1 + (width * depth * _CHANNELS[colour] + 7) // 8
    found = _inflated(b"".join(content for kind, content in chunks if kind == b"IDAT"), line * height)
    rows = len(found) // line
    if not rows:
        return None
    pack = zlib.compressobj(1)
    packed = [pack.compress(found[: rows * line]), *(pack.compress(bytes(line)) for _ in range(rows, height))]
    kept = [chunk for chunk in chunks if chunk[0] in (b"IHDR", b"PLTE", b"tRNS", b"eXIf")]
    kept += [(b"IDAT", b"".join([*packed, pack.flush()])), (b"IEND", b"")]
    return MendedPng(_SIGNATURE + b"".join(_written(*chunk) for chunk in kept), rows)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each, as far as the file goes; the last one may be cut short. A checksum that is wrong ends
    the file, as in a browser.
    """
    at = len(_SIGNATURE)
    while at + 8 < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        yield kind, content
        if len(checksum) == 4 and struct.unpack(">I", checksum)[0] != zlib.crc32(kind + content):
            return
        at += 12 + length


def _inflated(data: bytes, most: int) -> bytes:
    """At most so many bytes, those before the damage."""
    inflate, found = zlib.decompressobj(), bytearray()
    for start in range(0, len(data), _STEP):
        try:
            found += inflate.decompress(data[start : start + _STEP], most - len(found) or 1)
        except zlib.error:
            break
        if len(found) >= most:
            break
    return bytes(found[:most])


def _written(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

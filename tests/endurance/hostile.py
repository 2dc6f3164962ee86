"""What nobody sends by accident: bodies of every route with anything in any place of them, and bombs."""

from __future__ import annotations

import base64
import copy
import io
import json
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests.backend.annotations import CONFIG, annotation, brush_row, event, square
from tests.endurance.clicks import click

DEEP = 100_000  #: levels of nesting

PREDICT = click(1, "0000.png") | {"params": {"login": "x", "password": "y"} | click(1, "0000.png")["params"]}
SETUP = {
    "project": "1.1769860800",
    "schema": CONFIG,
    "hostname": "http://127.0.0.1:8080",
    "access_token": "0123456789abcdef",
    "extra_params": "{}",
}
_ROWS = [
    brush_row("a", square(1, 1, 9)),
    brush_row("b", square(9, 9, 9), type="polygonlabels", value={"points": [[1, 1], [9, 1], [9, 9]]}),
    brush_row("c", square(9, 9, 9), type="ellipse", value={"x": 5, "y": 5, "radiusX": 3, "radiusY": 2, "rotation": 3}),
    {"id": "a", "type": "choices", "from_name": "level", "to_name": "image", "value": {"choices": ["level 2"]}},
]
WEBHOOKS = [
    event("ANNOTATION_CREATED", annotation=annotation(1, _ROWS, parent_prediction=3)),
    event("ANNOTATION_UPDATED", annotation=annotation(1, _ROWS, updated=5)),
    event("ANNOTATIONS_CREATED", annotations=[annotation(2, _ROWS), annotation(3, [])]),
    event("ANNOTATIONS_DELETED", annotations=[{"id": 2}]),
    event("TASKS_DELETED", tasks=[{"id": 5}]),
    event("PROJECT_UPDATED"),
]
#: Route -> bodies as Label Studio sends them. START_TRAINING, which asks for minutes of work, is left out.
SENT: dict[str, list[Any]] = {"/predict": [PREDICT], "/setup": [SETUP], "/webhook": WEBHOOKS}

_ODD = st.sampled_from(
    [
        *(None, True, False, 0, -1, 2**31, 2**63, 2**64, 10**400, -0.0, 1e308, float("nan"), float("inf")),
        *("", " ", "\0", "\ud800", "%00", "x" * 5000, "$image", "1.1769860800", "null", "0x10", "１"),
        *("../../../../etc/passwd", "file:///etc/passwd", "/data/local-files/?d=../../etc/passwd", "\\\\host\\share"),
        *("http://169.254.169.254/latest/meta-data/", "http://[::1]:22/", "http://127.0.0.1:1/x", "gopher://x/"),
        *("data:image/png;base64,AAAA", "data:,", "data:image/svg+xml,<svg/>", "s3://bucket/x", "http://["),
        *(
            "<script>alert(1)</script>",
            "'; DROP TABLE regions; --",
            "2026-13-45T99:99:99Z",
            "9999-12-31T23:59:59+14:00",
        ),
        *([], {}, [[]], [None], {"": None}, [[[[[[[[]]]]]]]], {"rle": [1, 2]}, {"points": [[1e9, -1e9]] * 3}),
    ]
)
JUNK = _ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a body; of long lists to the first values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*at, key)
        yield from _places(each, (*at, key))


@st.composite
def bodies(draw: st.DrawFn, route: str) -> Any:
    """A body of a route with up to three things in it replaced, left out or doubled."""
    body = copy.deepcopy(draw(st.sampled_from(SENT[route])))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(body))
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        holder = body
        for key in way:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "replace", "leave out", "double"]))
        if change == "replace":
            holder[last] = copy.deepcopy(draw(JUNK))  # it may be changed in turn
        elif change == "leave out":
            del holder[last]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
    return body if draw(st.integers(0, 30)) else draw(JUNK)


# -------------------------------------------------------------------------------------------------------------- bombs


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side: int) -> bytes:
    """A PNG of side x side black pixels, small as a file."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    pack = zlib.compressobj(9)
    rows = b"".join(pack.compress(bytes(3 * side + 1)) for _ in range(min(side, 4000))) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def png_of_endless_text() -> bytes:
    """A PNG whose compressed text is 200 MB."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    text = _chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(200 * 2**20), 9))
    rows = _chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return b"\x89PNG\r\n\x1a\n" + head + text + rows + _chunk(b"IEND", b"")


def tiff_bomb(side: int) -> bytes:
    """A TIFF that says it has side x side pixels, all in one strip of four bytes."""
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, 4)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 12) + b"\0\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def webp_bomb() -> bytes:
    """A lossless WebP of 16383 x 16383 pixels, by its header."""
    bits = 16382 | 16382 << 14
    content = b"\x2f" + struct.pack("<I", bits) + bytes(16)
    chunk = b"VP8L" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def many_frames() -> bytes:
    """A GIF of 2,000 pictures."""
    file, picture = io.BytesIO(), Image.fromarray(np.zeros((8, 8), np.uint8))
    picture.save(file, "GIF", save_all=True, append_images=[picture.copy() for _ in range(1999)], optimize=False)
    return file.getvalue()


def photo_bombs() -> dict[str, str]:
    """Addresses that bring a photo along: name -> data URL."""
    made = {
        "PNG of 400 million pixels": png_bomb(20_000),
        "PNG of 16 million pixels": png_bomb(4_000),
        "PNG of endless text": png_of_endless_text(),
        "TIFF of 1,000 million pixels": tiff_bomb(32_000),
        "WebP of 268 million pixels": webp_bomb(),
        "GIF of many pictures": many_frames(),
    }
    return {name: f"data:image/x;base64,{base64.b64encode(data).decode()}" for name, data in made.items()}


def config_bombs() -> dict[str, str]:
    """Labeling configs."""
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    return {
        "nested": "<View>" * DEEP + "</View>" * DEEP,
        "entities": f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "ha">{entities}]><View>&e9;</View>',
        "file": '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><View><Image name="&e;" value="$image"/></View>',
        "long": CONFIG.replace("</View>", f"<Header value='{'x' * 2**21}'/></View>", 1),
        "many labels": CONFIG.replace("<Label ", "<Label value='l'/>" * 50_000 + "<Label ", 1),
        "repeated": CONFIG.replace("$image", "$" + "image[0]." * 5_000 + "x", 1),
    }


def region_bombs() -> dict[str, dict[str, Any]]:
    """Rows of annotations."""
    row = partial(brush_row, "a", square(1, 1, 9))
    huge = {"original_width": 2**30, "original_height": 2**30}
    picture = f"data:image/png;base64,{base64.b64encode(png_bomb(4_000)).decode()}"
    points = [[k % 100, (7 * k) % 100] for k in range(100_000)]
    return {
        "brush of 2^60 pixels": row() | huge,
        "polygon on 2^60 pixels": brush_row("a", square(1, 1, 9), type="polygonlabels", value={"points": points[:9]})
        | huge,
        "polygon of many points": brush_row("a", square(1, 1, 9), type="polygonlabels", value={"points": points}),
        "bitmask of 16 million": brush_row("a", square(1, 1, 9), type="bitmask", value={"imageDataURL": picture}),
        "ellipse far away": brush_row(
            "a", square(1, 1, 9), type="ellipse", value={"x": 1e300, "y": -1e300, "radiusX": 1e300, "radiusY": 1e300}
        ),
    }


def raw_bombs() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Bodies with their headers."""
    zipped = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = zipped.compress(b'{"tasks": [' + b" " * 50_000_000) + zipped.flush()
    json_type = {"Content-Type": "application/json"}
    return {
        "nested lists": (b"[" * DEEP + b"]" * DEEP, json_type),
        "nested objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, json_type),
        "nested inside": (b'{"tasks": ' + b"[" * 900 + b"]" * 900 + b', "label_config": "x"}', json_type),
        "gzip": (packed, json_type | {"Content-Encoding": "gzip"}),
        "lists": (b'{"tasks": [' + b"[]," * 2_500_000 + b"[]]}", json_type),
        "objects": (b'{"tasks": [' + b"{}," * 600_000 + b"{}]}", json_type),
        "a number of a million digits": (b'{"project": ' + b"9" * 1_000_000 + b"}", json_type),
        "not UTF-8": (b'{"project": "\xff\xfe"}', json_type),
        "UTF-16": (json.dumps(SETUP).encode("utf-16"), json_type),
        "a form": (b"a=1&b=2", {"Content-Type": "application/x-www-form-urlencoded"}),
        "pieces": (b"--x\r\n" * 1000, {"Content-Type": "multipart/form-data; boundary=x"}),
        "nothing": (b"", json_type),
    }

from __future__ import annotations

import base64
import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from backend.errors import ImageFormatError, ImageTooLarge
from backend.images import Photo, decode_photo, load_photo, probe_size
from semsam_model.data.samples import PhotoFile
from tests.backend.web.browsing import browser_page

LIMITS: dict[str, int] = {"max_bytes": 1_000_000, "max_pixels": 100_000}
LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP")
pictures = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if kind == "WEBP":
        options.setdefault("lossless", True)
        options.setdefault("exact", True)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(pixels: np.ndarray, extension: str) -> bytes:
    """A 16-bit file of RGB(A) or grey pixels."""
    order = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]] if pixels.ndim == 3 else pixels
    ok, data = cv2.imencode(extension, np.ascontiguousarray(order))
    assert ok
    return data.tobytes()


def decoded(data: bytes) -> Photo:
    return decode_photo(data, **LIMITS)


def scene(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(deadline=None, max_examples=25)
@given(pixels=pictures)
def test_lossless_pictures_come_back_as_they_were(kind: str, pixels: np.ndarray) -> None:
    data = encoded(pixels, kind)
    photo = decoded(data)
    assert np.array_equal(photo.rgb, pixels)
    assert photo.rgb.dtype == np.uint8
    assert photo.rgb.flags.c_contiguous
    assert photo.size == pixels.shape[:2] == probe_size(data, max_pixels=100_000)
    assert photo.sha256 == hashlib.sha256(data).hexdigest()


def test_a_jpeg_comes_back_nearly_as_it_was_with_red_still_red() -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16, 0] = 200
    pixels[:, 16:, 2] = 200
    assert np.abs(decoded(encoded(pixels, "JPEG", quality=95, subsampling=0)).rgb.astype(int) - pixels).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@settings(deadline=None, max_examples=30)
@given(pixels=pictures, orientation=st.integers(1, 8))
def test_a_turned_picture_equals_the_picture_in_every_orientation(
    kind: str, pixels: np.ndarray, orientation: int
) -> None:
    # To store a picture so that it is seen as `pixels`, its pixels are turned the other way round.
    undo = {2: 2, 3: 4, 4: 3, 5: 5, 6: 1, 7: 6, 8: 0}
    methods = (
        Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_90,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.ROTATE_180,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
    )
    image = Image.fromarray(pixels)
    stored = image.transpose(methods[undo[orientation]]) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif)
    photo = decoded(data)
    assert np.array_equal(photo.rgb, pixels)
    assert photo.size == probe_size(data, max_pixels=100_000) == pixels.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_orientation_agrees_with_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(40, 24), "JPEG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(decoded(data).rgb, expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow says so, rightly
@pytest.mark.parametrize("block", [b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""])
def test_a_broken_exif_block_leaves_the_picture_as_stored(block: bytes) -> None:
    pixels = scene(8, 16)
    data = encoded(pixels, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    photo = decoded(data[:2] + segment + data[2:])
    assert np.array_equal(photo.rgb, decoded(data).rgb)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(decoded(encoded(scene(), exif=exif)).rgb, scene())


def test_an_orientation_in_xmp_alone_is_ignored_as_browsers_do() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decoded(encoded(scene(8, 16), "JPEG", xmp=xmp)).size == (8, 16)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [None, 3, 4])
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_an_8_bit_picture_stored_in_16_bits_comes_back(extension: str, channels: int | None, data: Any) -> None:
    shape = (4, 5) if channels is None else (4, 5, channels)
    pixels = data.draw(arrays.arrays(np.uint8, shape))
    pixels[0, 0] = 255  # the full range is used, and one pixel is opaque
    if channels == 4:
        pixels[..., 3] = 255
    wide = pixels.astype(np.uint16) * 257
    expected = np.repeat(pixels[..., None], 3, 2) if channels is None else pixels[..., :3]
    assert np.array_equal(decoded(deep(wide, extension)).rgb, expected)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [None, 3])
def test_data_of_fewer_bits_in_a_16_bit_file_uses_the_whole_range(bits: int, channels: int | None) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    values = ramp if channels is None else np.repeat(ramp[..., None], 3, 2)
    grey = decoded(deep(values, ".png")).rgb[..., 0].ravel()
    assert grey[0] == 0
    assert grey[-1] == 255
    assert np.array_equal(np.sort(grey), grey)


def test_a_picture_of_fractions_is_stretched_and_survives_not_a_number() -> None:
    values = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)
    values[1, 1] = np.nan
    rgb = decoded(encoded(Image.fromarray(values), "TIFF")).rgb
    assert rgb[0, 0].tolist() == [0, 0, 0]
    assert rgb[2, 3].tolist() == [255, 255, 255]
    assert rgb[1, 1].tolist() == [0, 0, 0]


def test_an_all_black_16_bit_picture_is_black() -> None:
    assert not decoded(deep(np.zeros((3, 3), np.uint16), ".png")).rgb.any()


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_black_and_white_and_palette_pictures_agree_with_pillow(mode: str) -> None:
    image = Image.fromarray(scene()).convert(mode)
    assert np.array_equal(decoded(encoded(image)).rgb, np.asarray(image.convert("RGB")))


def test_cmyk_comes_back_in_about_its_colours() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8) + np.array([200, 30, 60], np.uint8)
    found = decoded(encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95)).rgb
    assert np.abs(found.astype(int) - pixels).max() < 12


@settings(deadline=None, max_examples=30)
@given(arrays.arrays(np.uint8, (3, 4, 4)))
def test_transparent_parts_are_seen_over_white(rgba: np.ndarray) -> None:
    found = decoded(encoded(rgba)).rgb.astype(float)
    alpha = rgba[..., 3:] / 255
    assert np.abs(found - (rgba[..., :3] * alpha + 255 * (1 - alpha))).max() <= 0.51


def test_a_transparent_palette_colour_is_seen_as_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert (decoded(encoded(image, transparency=1)).rgb == 255).all()
    assert (decoded(encoded(image, transparency=0)).rgb == [40, 50, 60]).all()


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG"])
def test_the_first_of_several_pictures_is_taken(kind: str) -> None:
    first, second = scene(), 255 - scene()
    data = encoded(first, kind, save_all=True, append_images=[Image.fromarray(second)])
    assert np.array_equal(decoded(data).rgb, first)


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "AVIF", "GIF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_cut_short_is_refused_by_name(kind: str, share: float) -> None:
    data = encoded(scene(60, 80), kind)
    with pytest.raises(ImageFormatError, match=f"(?i){kind}"):
        decoded(data[: int(len(data) * share)])


def test_a_deep_tiff_cut_short_is_refused() -> None:
    data = deep(scene(40, 40).astype(np.uint16) * 257, ".tiff")
    with pytest.raises(ImageFormatError):
        decoded(data[: len(data) // 2])


TORN = {
    "colour": lambda: encoded(scene(60, 80)),
    "grey": lambda: encoded(Image.fromarray(scene(60, 80)).convert("L")),
    "palette": lambda: encoded(Image.fromarray(scene(60, 80)).convert("P")),
    "black and white": lambda: encoded(Image.fromarray(scene(60, 80)).convert("1")),
    "transparent": lambda: encoded(Image.fromarray(np.dstack([scene(60, 80), scene(60, 80)[..., 0]]))),
    "16 bits": lambda: deep(scene(60, 80).astype(np.uint16) * 257, ".png"),
}


def torn_pngs(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "cut short": data[:middle],
        "nearly whole": data[:-20],
        "hardly begun": data[: data.index(b"IDAT") + 4 + (len(data) - data.index(b"IDAT")) // 8],
        "damaged": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
    }


@pytest.mark.parametrize("kind", TORN)
def test_a_png_that_is_torn_is_decoded_as_far_as_it_goes_and_white_below(kind: str) -> None:
    data = TORN[kind]()
    whole = decoded(data).rgb
    for name, torn in torn_pngs(data).items():
        part = decoded(torn).rgb
        there = (part == whole).all((1, 2))
        rows = int(there.argmin()) if not there.all() else len(there)
        assert part.shape == whole.shape
        if name != "damaged":  # of the piece with the damage in it something may be there
            assert (part[rows:] == 255).all() and (rows < 60 or name == "nearly whole"), name
        assert rows >= {"nearly whole": 50, "hardly begun": 4}.get(name, 20), (name, rows)
    with pytest.raises(ImageFormatError, match="PNG"):
        decoded(data[: data.index(b"IDAT") + 6])


@pytest.mark.browser
def test_a_torn_png_has_the_rows_that_chromium_shows() -> None:
    rows_shown = """address => new Promise((resolve) => {
        const image = new Image();
        image.onerror = () => resolve(null);
        image.onload = () => {
            const canvas = Object.assign(document.createElement("canvas"), {width: 80, height: 60});
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            const alpha = context.getImageData(0, 0, 80, 60).data.filter((_, place) => place % 4 === 3);
            resolve(alpha.reduce((sum, value) => sum + (value > 0), 0) / 80);
        };
        image.src = address;
    })"""
    data = encoded(np.minimum(scene(60, 80), 254))
    whole = decoded(data).rgb
    with browser_page() as page:
        for name in ("cut short", "nearly whole", "hardly begun"):
            torn = torn_pngs(data)[name]
            ours = (decoded(torn).rgb == whole).all((1, 2)).sum()
            shown = page.evaluate(rows_shown, f"data:image/png;base64,{base64.b64encode(torn).decode()}")
            assert shown == pytest.approx(ours, abs=1), name


@settings(deadline=None, max_examples=80)
@given(st.binary(max_size=80), st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]), st.integers(0, 120))
def test_damage_anywhere_gives_a_picture_or_an_image_error_and_nothing_else(junk: bytes, kind: str, at: int) -> None:
    data = encoded(scene(), kind)
    damaged = data[:at] + junk + data[at + len(junk) :]
    try:
        photo = decoded(damaged)
    except (ImageFormatError, ImageTooLarge):
        return
    assert photo.rgb.shape == (*photo.size, 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (encoded(Image.fromarray(scene()), "PPM"), "something else"),
    ],
)
def test_other_formats_are_refused_and_named(data: bytes, said: str) -> None:
    with pytest.raises(ImageFormatError, match=said):
        decoded(data)


@pytest.mark.parametrize("form", ["GIF", "AVIF", "JPEG", "PNG", "WEBP"])
def test_what_a_browser_shows_is_decoded(form: str) -> None:
    assert decoded(encoded(scene(), form)).rgb.shape == scene().shape


def test_a_jpeg_without_its_end_is_decoded_as_far_as_it_goes() -> None:
    data = encoded(np.kron(scene(16, 16), np.ones((8, 8, 1), np.uint8)), "JPEG")
    whole = decoded(data).rgb
    np.testing.assert_array_equal(decoded(data[:-2]).rgb, whole)
    part = decoded(data[: len(data) * 3 // 4]).rgb
    assert part.shape == whole.shape
    np.testing.assert_array_equal(part[: len(part) // 4], whole[: len(part) // 4])
    with pytest.raises(ImageFormatError):
        decoded(data[:200])  # before the first line


def test_too_many_bytes_are_refused_with_the_setting_to_change() -> None:
    data = encoded(scene())
    assert decode_photo(data, max_bytes=len(data), max_pixels=1000)
    with pytest.raises(ImageTooLarge, match="max_image_bytes"):
        decode_photo(data, max_bytes=len(data) - 1, max_pixels=1000)


def test_too_many_pixels_are_refused_with_the_setting_to_change() -> None:
    data = encoded(scene(6, 9))
    assert decode_photo(data, max_bytes=10_000, max_pixels=54)
    for read in (probe_size, lambda data, max_pixels: decode_photo(data, max_bytes=10_000, max_pixels=max_pixels)):
        with pytest.raises(ImageTooLarge, match=r"9x6.*max_image_pixels"):
            read(data, max_pixels=53)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    for read in (lambda data: probe_size(data, max_pixels=80_000_000), decoded):
        with pytest.raises(ImageTooLarge, match="max_image_pixels"):
            read(png_header(side, side))


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "CMYK", "P", "turned"])
def test_training_sees_the_pixels_that_clicks_see(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 4), dtype=np.uint8)
    file = tmp_path / "photo"
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(file, "PNG")
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x112] = 6
        Image.fromarray(pixels[..., :3]).save(file, "JPEG", exif=exif)
    else:
        image = Image.fromarray(pixels, "RGBA")
        kind = "TIFF" if mode == "CMYK" else "PNG"
        (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(file, kind)
    served = load_photo(file, max_bytes=10**6, max_pixels=10**6).rgb
    assert np.array_equal(PhotoFile(file).pixels(), served)


def test_a_photo_is_loaded_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(scene()))
    assert np.array_equal(load_photo(path, **LIMITS).rgb, scene())


def test_errors_about_a_file_on_disk_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    with pytest.raises(ImageFormatError, match=r"b\.png"):
        load_photo(path, **LIMITS)
    path.write_bytes(b"text")
    with pytest.raises(ImageFormatError, match=r"b\.png"):
        load_photo(path, **LIMITS)
    path.write_bytes(encoded(scene()))
    with pytest.raises(ImageTooLarge, match=r"b\.png.*max_image_bytes"):
        load_photo(path, max_bytes=10, max_pixels=1000)

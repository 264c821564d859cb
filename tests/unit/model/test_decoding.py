"""Any file becomes upright RGB or one of seven fixed reasons, never another error."""

import csv
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.decoding import BadImageError, decode_image

REASONS = {
    *("empty file", "not an image", "unsupported format", "unsupported values"),
    *("too many pixels", "animated", "broken image"),
}
MANY = 50_000_000
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def reason(data: bytes, max_pixels: int = MANY) -> str:
    with pytest.raises(BadImageError) as caught:
        decode_image(data, max_pixels)
    assert caught.value.reason in REASONS
    return caught.value.reason


def outcome(data: bytes) -> str:
    """Return the mode of the decoded image, or the reason why there is none."""
    try:
        return decode_image(data, MANY).mode
    except BadImageError as error:
        return error.reason


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data, MANY)
    assert image.mode == "RGB"
    return np.asarray(image)


def quadrants() -> Image.Image:
    """A 40x20 image, red above left, green above right, blue below left, white below right."""
    values = np.full((20, 40, 3), 255, np.uint8)
    values[:10, :20], values[:10, 20:], values[10:, :20] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return Image.fromarray(values)


def png(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG built chunk by chunk, for what Pillow does not write."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + name + data)
        parts.append(struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {} if kind == "PNG" else {"quality": 95}
    image = decode_image(encoded(quadrants(), kind, exif=exif, **quality), MANY)
    right = quadrants().transpose(undo[orientation]) if orientation > 1 else quadrants()
    assert image.size == right.size
    for place in ((4, 4), (-5, 4), (4, -5), (-5, -5)):
        near = np.asarray(image).astype(int)[place] - np.asarray(right).astype(int)[place]
        assert np.abs(near).max() < 40


def test_cmyk_keeps_its_colours() -> None:
    cyan, black = (255, 0, 0, 0), (0, 0, 0, 255)
    for ink, rgb in ((cyan, (0, 255, 255)), (black, (0, 0, 0))):
        for kind in ("JPEG", "TIFF"):
            found = pixels(encoded(Image.new("CMYK", (16, 16), ink), kind))
            assert np.abs(found.astype(int) - rgb).max() < 8


def test_greyscale_and_one_bit_become_three_equal_channels() -> None:
    assert (pixels(encoded(Image.new("L", (4, 4), 77), "JPEG")) == 77).all()
    assert (pixels(encoded(Image.new("L", (4, 4), 77))) == 77).all()
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    for kind in ("PNG", "BMP", "TIFF"):
        assert pixels(encoded(bits, kind))[:, :, 1].tolist() == [[0, 255], [255, 0]]


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1))
    rgba.putdata([(255, 0, 0, 255), (10, 20, 30, 0)])
    assert pixels(encoded(rgba)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    la = Image.new("LA", (2, 1))
    la.putdata([(40, 255), (0, 0)])
    assert pixels(encoded(la)).tolist() == [[[40, 40, 40], [255, 255, 255]]]
    half = pixels(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert 125 <= half[0, 0, 0] <= 129


def test_a_palette_with_a_transparent_entry_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 9, 9, 9])
    image.putdata([0, 1])
    assert pixels(encoded(image, transparency=1)).tolist() == [[[0, 0, 255], [255, 255, 255]]]
    assert pixels(encoded(image, transparency=bytes([255, 0])))[0, 1].tolist() == [255, 255, 255]
    assert pixels(encoded(image, "GIF", transparency=1))[0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_scale_and_do_not_clip_to_white(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = pixels(encoded(Image.fromarray(ramp), kind))[:, :, 0].reshape(-1).astype(int)
    assert np.abs(found - np.arange(256)).max() <= 1


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    dark = np.full((8, 8), 200, np.uint16)  # 200 of 65535 is nearly black
    assert pixels(encoded(Image.fromarray(dark))).max() <= 1


def tiff(*values: float, dtype: type = np.float32) -> bytes:
    """Return a TIFF of one row, of 32-bit floats or integers."""
    return encoded(Image.fromarray(np.array([values], dtype)), "TIFF")


@pytest.mark.parametrize(
    ("values", "greys"),
    [
        ((0, 0.25, 0.5, 1), [0, 64, 128, 255]),
        ((0, 1, 1, 0), [0, 255, 255, 0]),  # a mask
        ((0, 0.5, 1.0000001), [0, 128, 255]),
        ((0, 100, 254.6), [0, 100, 255]),
    ],
)
def test_floats_are_seen_from_black_to_white(values: tuple[float, ...], greys: list[int]) -> None:
    assert pixels(tiff(*values))[0, :, 0].tolist() == greys


def test_every_grey_survives_as_a_float() -> None:
    greys = np.arange(256)
    assert pixels(tiff(*greys))[0, :, 0].tolist() == greys.tolist()
    assert pixels(tiff(*greys / 255))[0, :, 0].tolist() == greys.tolist()


@pytest.mark.parametrize(
    ("values", "greys"),
    [((0, 100, 255), [0, 100, 255]), ((0, 257, 25700, 65535), [0, 1, 100, 255])],
)
def test_integers_of_32_bits_are_read_as_8_or_16(values: tuple[int, ...], greys: list[int]) -> None:
    assert pixels(tiff(*values, dtype=np.int32))[0, :, 0].tolist() == greys


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (tiff(-3.14, 3.14), "pixels from -3.14 to 3.14"),
        (tiff(0, 256), "pixels from 0 to 256"),
        (tiff(0, np.nan), "pixels from nan to nan"),
        (tiff(0, np.inf), "pixels from 0 to inf"),
        (tiff(-1, 255, dtype=np.int32), "pixels from -1 to 255"),
        (tiff(0, 65536, dtype=np.int32), "pixels from 0 to 65536"),
        (tiff(0, 2**31 - 1, dtype=np.int32), "pixels from 0 to 2.14748e+09"),
    ],
)
def test_values_without_a_known_white_are_refused_and_not_black_or_white(
    data: bytes, told: str
) -> None:
    with pytest.raises(BadImageError) as caught:
        decode_image(data, MANY)
    assert (caught.value.reason, caught.value.detail) == ("unsupported values", told)


def test_a_sixteen_bit_grey_png_with_a_transparent_value_is_laid_on_white() -> None:
    rows = b"\0" + struct.pack(">HH", 32768, 5)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    data = png(header, (b"tRNS", struct.pack(">H", 5)), (b"IDAT", zlib.compress(rows)))
    assert pixels(data)[0, :, 0].tolist() == [127, 255]


def test_sixteen_bit_colour_is_scaled() -> None:
    rows = b"\0" + struct.pack(">HHH", 65535, 32768, 0)
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    found = pixels(png(header, (b"IDAT", zlib.compress(rows))))
    assert found[0, 0].tolist() in ([255, 128, 0], [255, 127, 0])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert reason(data) == "animated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_cut_short_is_broken(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    assert reason(whole[: len(whole) // 2]) in {"broken image", "not an image"}


@pytest.mark.parametrize(
    "data", [b"<!DOCTYPE html><html><title>404</title></html>", LFS_POINTER, b"x", b"\0" * 500]
)
def test_what_is_no_image_says_how_it_starts(data: bytes) -> None:
    with pytest.raises(BadImageError, match="not an image") as caught:
        decode_image(data, MANY)
    assert repr(data[:16]) in caught.value.detail


def test_no_bytes_are_an_empty_file() -> None:
    assert reason(b"") == "empty file"


def test_formats_that_run_other_programs_are_not_read() -> None:
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n") == (
        "not an image"
    )


def test_too_many_pixels_are_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    assert reason(png(header, (b"IDAT", b"no pixels at all"))) == "too many pixels"
    small = struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0)
    assert reason(png(small, (b"IDAT", b"no pixels at all")), 9_999) == "too many pixels"
    assert reason(png(small, (b"IDAT", b"no pixels at all")), 10_000) == "broken image"


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_odd_sizes_are_kept(size: tuple[int, int]) -> None:
    assert decode_image(encoded(Image.new("RGB", size)), MANY).size == size


def test_the_name_of_the_format_is_taken_from_the_content() -> None:
    assert decode_image(encoded(quadrants(), "BMP"), MANY).size == (40, 20)


def test_threads_leave_the_filters_of_warnings_as_they_were() -> None:
    torn = encoded(quadrants(), "TIFF")[:-40]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(outcome, [torn, encoded(quadrants(), "JPEG")] * 200)) == {
            "broken image",
            "RGB",
        }
    assert list(warnings.filters) == before


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_give_a_fixed_reason(data: bytes) -> None:
    assert reason(data) in REASONS


KINDS: dict[str, Callable[[], bytes]] = {
    kind: (lambda kind=kind: encoded(quadrants(), kind))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
}


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.floats(0.1, 1.0),
)
def test_a_damaged_image_is_decoded_or_refused(
    kind: str, edits: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(KINDS[kind]())
    for place, value in edits:
        data[int(place * len(data))] = value
    assert outcome(bytes(data[: int(cut * len(data))])) in {"RGB", *REASONS}


@pytest.mark.realdata
def test_every_file_of_the_collection_is_decoded_or_refused(realdata: Path) -> None:
    folder = realdata / "badimages"
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as handle:
        listed = list(csv.DictReader(handle))
    assert len(listed) == len(list(folder.iterdir())) - 1
    outcomes: dict[str, str] = {}
    for row in listed:
        data = (folder / row["file"]).read_bytes()
        outcomes[row["file"]] = outcome(data)
        assert outcomes[row["file"]] in {"RGB", *REASONS}, row["file"]
        if outcomes[row["file"]] == "RGB":
            width, height = decode_image(data, MANY).size
            assert row["transposed"] == f"[{width}, {height}]", row["file"]
            assert row["decodes"] == "True", row["file"]
    assert outcomes["lfs_pointer_COCO_val2014_000000001393.jpg"] == "not an image"
    assert outcomes["decompression_bomb.gif"] == "too many pixels"
    assert outcomes["truncated_jpeg.jpg"] == "broken image"
    assert outcomes["iss634.webp"] == outcomes["apng_mode_palette_alpha.png"] == "animated"
    assert outcomes["avif_hopper.avif"] == outcomes["balloon.jpf"] == "unsupported format"
    assert outcomes["broken.png"] == "broken image"
    assert outcomes["orientation_rectangle.jpg"] == outcomes["pil_sample_cmyk.jpg"] == "RGB"
    assert sum(found == "RGB" for found in outcomes.values()) >= 24


@pytest.mark.realdata
def test_the_collections_angles_are_refused_and_its_dark_sixteen_bits_stay_dark(
    realdata: Path,
) -> None:
    folder = realdata / "badimages"
    assert reason((folder / "10ct_32bit_128.tiff").read_bytes()) == "unsupported values"
    # Its 16 bits go from 0 to 255, so black but for what is see-through and lies on white.
    assert set(np.unique(pixels((folder / "i_trns.png").read_bytes()))) == {0, 255}

"""Seventy kinds of files through the `images` stage: each is used rightly or told why not."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.decoding import decode_image
from tests.unit.pipeline.data.test_images import TRAIN, VAL, coco, jpeg, lay_out, record, run, table

SIZE = (40, 20)
LIMIT = 200_000  # pixels, and bytes of a file
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def scene() -> Image.Image:
    """A red left half and a blue right half with some noise, so that no format packs it away."""
    noise = np.random.default_rng(0).integers(0, 40, (SIZE[1], SIZE[0], 3), np.uint8)
    noise[:, :20, 0] += 200
    noise[:, 20:, 2] += 200
    return Image.fromarray(noise)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """The scene as a camera stores it that was held so; upright it is the scene again."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(scene().transpose(back), kind, exif=exif)


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return SIGNATURE + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def sixteen_bit_colour() -> bytes:
    wide = np.asarray(scene()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    return png(*SIZE, zlib.compress(rows), depth=16)


def grey(dtype: type, factor: float, kind: str = "TIFF") -> bytes:
    values = np.asarray(scene().convert("L")).astype(dtype) * factor
    return saved(Image.fromarray(values.astype(dtype)), kind)


def frames(kind: str) -> bytes:
    others = [Image.new("RGB", SIZE, colour) for colour in ("green", "white")]
    return saved(scene(), kind, save_all=True, append_images=others)


def see_through(mode: str, kind: str) -> bytes:
    image = scene().convert(mode)
    image.putalpha(Image.new("L", SIZE, 255))
    return saved(image, kind)


def torn(kind: str, share: float = 0.5) -> bytes:
    data = saved(scene(), kind)
    return data[: int(share * len(data))]


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x20ftyp" + brand + bytes(100)


def not_finite() -> bytes:
    values = np.full((SIZE[1], SIZE[0]), np.nan, np.float32)
    return saved(Image.fromarray(values), "TIFF")


def flipped() -> bytes:
    data = bytearray(saved(scene(), "PNG"))
    data[len(data) // 2] ^= 255  # the chunk's CRC tells
    return bytes(data)


# Images that must be used: upright, with the scene's own size and colours.
GOOD: dict[str, Callable[[], bytes]] = {
    "rgb.jpg": lambda: saved(scene(), "JPEG", quality=95),
    "progressive.jpg": lambda: saved(scene(), "JPEG", progressive=True, quality=95),
    "cmyk.jpg": lambda: saved(scene().convert("CMYK"), "JPEG", quality=95),
    "mirrored.jpg": lambda: turned(2),
    "upside-down.jpg": lambda: turned(3),
    "transposed.jpg": lambda: turned(5),
    "on-its-side.jpg": lambda: turned(6),
    "on-its-other-side.png": lambda: turned(8, "PNG"),
    "two-views.jpg": lambda: frames("MPO"),
    "trailing.jpg": lambda: saved(scene(), "JPEG", quality=95) + b"\0and then some" * 9,
    "rgb.png": lambda: saved(scene(), "PNG"),
    "a-png.jpg": lambda: saved(scene(), "PNG"),
    "a-jpeg.png": lambda: saved(scene(), "JPEG", quality=95),
    "a-webp.jpg": lambda: saved(scene(), "WEBP", lossless=True),
    "alpha.png": lambda: see_through("RGB", "PNG"),
    "sixteen-bit.png": sixteen_bit_colour,
    "lossless.webp": lambda: saved(scene(), "WEBP", lossless=True),
    "alpha.webp": lambda: see_through("RGB", "WEBP"),
    "rgb.bmp": lambda: saved(scene(), "BMP"),
    "rgb.tiff": lambda: saved(scene(), "TIFF"),
    "packed.tiff": lambda: saved(scene(), "TIFF", compression="tiff_lzw"),
    "cmyk.tiff": lambda: saved(scene().convert("CMYK"), "TIFF"),
    "pages.tiff": lambda: frames("TIFF"),
    "palette.gif": lambda: saved(scene(), "GIF"),
    "palette.png": lambda: saved(scene().quantize(200), "PNG"),
}
# Greyscale images that must be used, neither white nor black.
GREY: dict[str, Callable[[], bytes]] = {
    "grey.jpg": lambda: saved(scene().convert("L"), "JPEG"),
    "grey.png": lambda: saved(scene().convert("L"), "PNG"),
    "grey-alpha.png": lambda: see_through("L", "PNG"),
    "one-bit.png": lambda: saved(scene().convert("1"), "PNG"),
    "sixteen-bit-grey.png": lambda: grey(np.uint16, 257, "PNG"),
    "sixteen-bit.tiff": lambda: grey(np.uint16, 257),
    "integers.tiff": lambda: grey(np.int32, 200),
    "floats.tiff": lambda: grey(np.float32, 1.0),
    "floats-to-one.tiff": lambda: grey(np.float32, 1 / 255),
}
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "empty file"),
    "page.jpg": (lambda: b"<!DOCTYPE html><title>404</title>", "not an image"),
    "error.jpg": (lambda: b'{"error": "not found"}', "not an image"),
    "pointer.jpg": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "not an image"),
    "zeros.jpg": (lambda: bytes(500), "not an image"),
    "script.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", "not an image"),
    "film.mp4": (lambda: box(b"isom"), "not an image"),
    "cut.jpg": (lambda: torn("JPEG"), "broken image"),
    "cut.png": (lambda: torn("PNG"), "broken image"),
    "cut.gif": (lambda: torn("GIF", 0.9), "broken image"),
    "cut.webp": (lambda: torn("WEBP"), "broken image"),
    "cut.bmp": (lambda: torn("BMP"), "broken image"),
    "cut.tiff": (lambda: torn("TIFF"), "broken image"),
    "begun.jpg": (lambda: b"\xff\xd8\xff\xe0\0\x10JFIF", "broken image"),
    "begun.png": (lambda: SIGNATURE + b"and no chunk", "broken image"),
    "begun.webp": (lambda: b"RIFF\x10\0\0\0WEBPVP8?", "broken image"),
    "flipped.png": (flipped, "broken image"),
    "no-pixels.png": (lambda: png(*SIZE, b"no deflate at all"), "broken image"),
    "not-finite.tiff": (not_finite, "unsupported values"),
    "angles.tiff": (lambda: grey(np.float32, -0.01), "unsupported values"),
    "heights.tiff": (lambda: grey(np.int32, 9000), "unsupported values"),
    "moves.gif": (lambda: frames("GIF"), "animated"),
    "moves.png": (lambda: frames("PNG"), "animated"),
    "moves.webp": (lambda: frames("WEBP"), "animated"),
    "bomb.png": (lambda: png(60_000, 60_000, b""), "too many pixels"),
    "wide.png": (lambda: png(LIMIT + 1, 1, b""), "too many pixels"),
    "hopper.avif": (lambda: box(b"avif"), "unsupported format"),
    "phone.heic": (lambda: box(b"heic"), "unsupported format"),
    "balloon.jp2": (lambda: saved(scene(), "JPEG2000"), "unsupported format"),
    "new.jxl": (lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "unsupported format"),
    "layers.psd": (lambda: b"8BPS\0\1" + bytes(99), "unsupported format"),
    "plain.ppm": (lambda: saved(scene(), "PPM"), "unsupported format"),
    "drawn.svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported format"),
    "large.bmp": (lambda: bytes(LIMIT + 1), "file refused"),
    "up/../../outside.jpg": (lambda: b"", "unsafe file name"),
    "/etc/passwd": (lambda: b"", "unsafe file name"),
    "back\\slash.jpg": (lambda: b"", "unsafe file name"),
    "nowhere.jpg": (lambda: b"", "file missing"),
    "folder.jpg": (lambda: b"", "file missing"),
}
LINK = "link.jpg"  # leads out of the folder, which is the user's own
UNWRITTEN = ("unsafe file name", "file missing")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what the stage makes of a dataset that has one image of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    files = {name: build() for name, build in (*GOOD.items(), *GREY.items())}
    names = [*files, *BAD, LINK]
    files |= {n: build() for n, (build, why) in BAD.items() if why not in UNWRITTEN}
    train = {**coco([]), "images": [record(n, name) for n, name in enumerate(names)]}
    images = {f"{TRAIN}/{name}": data for name, data in files.items()}
    root = lay_out(folder / "coco", train, coco([999]), images | {f"{VAL}/{999:012d}.jpg": jpeg(9)})
    (folder / "elsewhere.jpg").write_bytes(jpeg(1))
    (root / TRAIN / LINK).symlink_to(folder / "elsewhere.jpg")
    (root / TRAIN / "folder.jpg").mkdir()
    _, out = run(root, folder, max_bad_share=1.0, max_pixels=LIMIT, max_bytes=LIMIT)
    return out


def test_every_file_is_used_or_told_of_with_its_reason(made: Path) -> None:
    used = {row["file_name"] for row in table(made, "images")} - {f"{999:012d}.jpg"}
    dropped = {row["file"]: row["reason"] for row in table(made, "drops")}
    assert dropped == {name: why for name, (_, why) in BAD.items()}
    assert used == GOOD.keys() | GREY.keys() | {LINK}
    assert len(used) + len(dropped) >= 70


def test_what_is_used_is_upright_and_has_its_colours(made: Path) -> None:
    files = {row["sha256"]: row["data"] for row in table(made, "files-00000")}
    for row in table(made, "images"):
        name = row["file_name"]
        if name not in GOOD and name not in GREY:
            continue
        assert (row["width"], row["height"]) == SIZE, name
        pixels = np.asarray(decode_image(files[row["sha256"]], LIMIT)).astype(int)
        assert pixels.shape == (SIZE[1], SIZE[0], 3), name
        if name in GREY:
            assert 30 < pixels.mean() < 225, name
            assert np.ptp(pixels, axis=2).max() == 0, name
        else:
            left, right = pixels[:, :18].mean((0, 1)), pixels[:, 22:].mean((0, 1))
            assert left[0] > 150 > 90 > left[2], name
            assert right[2] > 150 > 90 > right[0], name


def test_the_bytes_of_what_was_read_and_refused_are_kept_apart(made: Path) -> None:
    unread = {*UNWRITTEN, "file refused", "empty file"}
    kept = {row["file"]: row["data"] for row in table(made, "quarantine")}
    assert kept == {name: build() for name, (build, why) in BAD.items() if why not in unread}


@pytest.mark.realdata
def test_the_collection_of_bad_images_goes_through_the_stage(
    realdata: Path, tmp_path: Path
) -> None:
    source = realdata / "badimages"
    names = sorted(path.name for path in source.iterdir() if path.suffix != ".csv")
    train = {**coco([]), "images": [record(n, name) for n, name in enumerate(names)]}
    good = {f"{VAL}/{999:012d}.jpg": jpeg(9)}
    images = {f"{TRAIN}/{name}": (source / name).read_bytes() for name in names}
    root = lay_out(tmp_path / "coco", train, coco([999]), images | good)
    _, out = run(root, tmp_path, max_bad_share=1.0)
    used = {row["file_name"] for row in table(out, "images")} - {f"{999:012d}.jpg"}
    dropped = {row["file"]: row["reason"] for row in table(out, "drops")}
    assert used | dropped.keys() == set(names)
    assert not used & dropped.keys()
    assert dropped["avif_hopper.avif"] == dropped["balloon.jpf"] == "unsupported format"
    assert dropped["broken.png"] == dropped["truncated_jpeg.jpg"] == "broken image"
    assert dropped["10ct_32bit_128.tiff"] == "unsupported values"
    assert dropped["iss634.webp"] == "animated"
    assert dropped["decompression_bomb.gif"] == "too many pixels"
    assert {"pil_sample_cmyk.jpg", "hopper_orientation_7.jpg", "p_16.png"} <= used
    assert len(used) >= 24

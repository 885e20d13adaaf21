"""Values are scaled by what a file says they are, or the file is refused by name."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from src.datamodules.picture_files import ENDINGS
from src.datamodules.picture_pixels import decode

RAMP = np.linspace(0, 1, 8)[None].repeat(8, 0)  # from black to white, left to right
LEVELS = (RAMP * 255).round()


def pixels_of(path: Path, channels: int, img_size: int, white: float | None = None) -> np.ndarray:
    """The picture as [H, W, C]."""
    images, _ = decode([path], channels, img_size, white)
    return images[0].permute(1, 2, 0).numpy()


def tiff(path: Path, values: np.ndarray, **tags: float) -> Path:
    """A TIFF file of the values as they are, with tags such as t340=0."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[int(name[1:])] = value
    Image.fromarray(values).save(path, tiffinfo=info)
    return path


def png16(path: Path, values: np.ndarray, colour_type: int) -> Path:
    """A PNG file of 16 bits a channel, which Pillow does not write in colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def pgm(path: Path, most: int) -> None:
    path.write_bytes(b"P5 8 8 %d\n" % most + (RAMP * most).round().astype(">u2").tobytes())


def twelve_bit_tiff(path: Path) -> None:
    """Twelve bits a pixel, packed."""
    values = (RAMP * 4095).round().astype(int)
    packed = bytes(b for a, c in values.reshape(-1, 2) for b in (a >> 4, (a & 15) << 4 | c >> 8, c & 255))
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
    entries += [(278, 3, 8), (279, 4, len(packed))]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    content = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    path.write_bytes(content.ljust(200, b"\0") + packed)


FULL, ALPHA = (RAMP * 65_535).round().astype(np.uint16), np.full((8, 8), 65_535, np.uint16)


def of_most(most: int, kind: type = np.uint16) -> np.ndarray:
    return (RAMP * most).round().astype(kind)


STORED = {  # the file's name and how it is written
    "png16": ("a.png", lambda path: Image.fromarray(FULL).save(path)),
    "rgb16": ("a.png", lambda path: png16(path, np.stack([FULL] * 3, -1), 2)),
    "rgba16": ("a.png", lambda path: png16(path, np.stack([FULL, FULL, FULL, ALPHA], -1), 6)),
    "la16": ("a.png", lambda path: png16(path, np.stack([FULL, ALPHA], -1), 4)),
    "tiff16": ("a.tif", lambda path: tiff(path, FULL)),
    "big endian": ("a.tif", lambda path: Image.fromarray(FULL.astype(">u2")).save(path)),
    "tags": ("a.tif", lambda path: tiff(path, 100 + of_most(3_995), t340=100, t341=4_095)),
    "max tag": ("a.tif", lambda path: tiff(path, of_most(4_095), t281=4_095)),
    "float": ("a.tif", lambda path: tiff(path, RAMP.astype(np.float32))),
    "float tags": ("a.tif", lambda path: tiff(path, (RAMP * 2 - 1).astype(np.float32), t340=-1.0, t341=1.0)),
    "int32 tags": ("a.tif", lambda path: tiff(path, of_most(1_000_000, np.int32), t340=0, t341=1_000_000)),
    "white is zero": ("a.tif", lambda path: tiff(path, 65_535 - FULL, t262=0)),
    "12 bits": ("a.tif", twelve_bit_tiff),
    **{f"pgm{b}": ("a.pgm", lambda path, b=b: pgm(path, 2**b - 1)) for b in (10, 12, 16)},
    "float white=255": ("a.tif", lambda path: tiff(path, (RAMP * 255).astype(np.float32))),
    "int32 white=70000": ("a.tif", lambda path: tiff(path, of_most(70_000, np.int32))),
    "12 in 16 white=4095": ("a.tif", lambda path: tiff(path, of_most(4_095))),
}
if ".pfm" in ENDINGS:  # not in old versions of Pillow
    lines = RAMP[::-1].astype("<f4").tobytes()
    STORED["pfm"] = ("a.pfm", lambda path: path.write_bytes(b"Pf\n8 8\n-1.0\n" + lines))


@pytest.mark.parametrize("kind", STORED)
def test_a_ramp_is_a_ramp_whatever_it_is_stored_as(tmp_path: Path, kind: str) -> None:
    name, write = STORED[kind]
    write(tmp_path / name)
    white = float(kind.partition("white=")[2] or 0) or None
    for channels in (1, 3):
        pixels = pixels_of(tmp_path / name, channels, 8, white).astype(int)
        assert np.abs(pixels - LEVELS[..., None]).max() <= 1, pixels[0, :, 0]


@pytest.mark.parametrize(
    ("values", "white", "says"),
    [
        ((RAMP * 300).astype(np.float32), None, "floats from 0 to 300, and does not say.*datamodule.white=VALUE"),
        ((RAMP * 2 - 1).astype(np.float32), None, "floats from -1 to 1, and does not say"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), None, "values that are not finite"),
        ((RAMP * 255).astype(np.int32), None, "32-bit numbers from 0 to 255, and does not say"),
        ((RAMP * 5_000).astype(np.uint16), 4_095, "values from 0 to 5000, but black is 0 and white is 4095"),
        ((RAMP * 2 - 1).astype(np.float32), 1, "values from -1 to 1, but black is 0 and white is 1"),
    ],
)
def test_values_that_nothing_explains(tmp_path: Path, values: np.ndarray, white: float | None, says: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.tif cannot be decoded \(it has {says}"):
        decode([tiff(tmp_path / "a.tif", values)], 1, 8, white)


def test_pictures_of_16_bits_that_are_all_dark_are_asked_about(tmp_path: Path) -> None:
    grey = (RAMP * 4_095).round().astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    colour = png16(tmp_path / "c.png", np.stack([grey] * 3, -1), 2)
    for path in (tmp_path / "a.png", colour):
        with pytest.raises(ValueError, match=r"^white must be set.*value above 4095 of 65535 .*datamodule\.white=4095"):
            decode([path], 1, 8, None)
        images, _ = decode([path], 1, 8, 65_535)
        assert int(images.max()) in (15, 16)
    with pytest.raises(ValueError, match=r"16-bit colour can only be read where 65535 is white"):
        decode([colour], 3, 8, 4_095)
    Image.fromarray((RAMP * 65_535).astype(np.uint16)).save(tmp_path / "b.png")
    images, _ = decode([tmp_path / "a.png", tmp_path / "b.png"], 1, 8, None)  # one dark picture among others
    assert images.amax((1, 2, 3)).tolist() == [16, 255]


def lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image.convert("RGB"), *profiles, outputMode="LAB")


ORANGE, GREY, WHITE, BLACK = (200, 120, 40), (135, 135, 135), (255, 255, 255), (0, 0, 0)
BITS = Image.fromarray(np.repeat([[True] * 4 + [False] * 4], 8, 0))


@pytest.mark.parametrize(
    ("name", "convert", "options", "left", "right"),
    [
        ("palette.png", lambda image: image.convert("RGB").quantize(4), {}, ORANGE, ORANGE),
        ("palette.gif", lambda image: image.convert("RGB").quantize(4), {}, ORANGE, ORANGE),
        ("palette-alpha.png", lambda image: image.quantize(4), {}, ORANGE, WHITE),
        ("LA.png", lambda image: image.convert("LA"), {}, GREY, WHITE),
        ("RGBA.webp", lambda image: image, {"lossless": True}, ORANGE, WHITE),
        ("RGBa.tif", lambda image: image, {"tiffinfo": {338: 1}}, ORANGE, WHITE),  # alpha has been multiplied in
        ("1.png", lambda image: BITS, {}, WHITE, BLACK),
        ("CMYK.jpg", lambda image: image.convert("CMYK"), {"quality": 100}, ORANGE, ORANGE),
        ("YCbCr.jpg", lambda image: image.convert("RGB"), {"quality": 100}, ORANGE, ORANGE),
        ("CMYK.tif", lambda image: image.convert("CMYK"), {}, ORANGE, ORANGE),
        ("grey.jpg", lambda image: image.convert("L"), {"quality": 100}, GREY, GREY),
        ("large.bmp", lambda image: image.convert("RGB").resize((400, 400)), {}, ORANGE, ORANGE),
        ("LAB.tif", lab, {}, ORANGE, ORANGE),
    ],
)
def test_colours_survive_every_mode(
    tmp_path: Path, name: str, convert: Callable[[Image.Image], Image.Image], options: dict, left: tuple, right: tuple
) -> None:
    """Orange on the left; on the right the same, or nothing where there can be nothing."""
    image = Image.new("RGBA", (8, 8), (*ORANGE, 255))
    if right == WHITE:
        image.paste((0, 0, 0, 0), (4, 0, 8, 8))
    convert(image).save(tmp_path / name, **options)
    pixels = pixels_of(tmp_path / name, 3, 8).astype(int)
    assert np.abs(pixels[4, 1] - left).max() <= 4 and np.abs(pixels[4, 6] - right).max() <= 4, pixels[4]


def test_the_central_square_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.T).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        assert pixels_of(tmp_path / name, 1, 10).min() == 255


def test_photos_stand_upright(tmp_path: Path) -> None:
    upper_half = Image.fromarray(np.repeat([255] * 8 + [0] * 8, 16).reshape(16, 16).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter: show it turned clockwise
    upper_half.save(tmp_path / "photo.jpg", exif=exif)
    seen = pixels_of(tmp_path / "photo.jpg", 1, 16)
    assert seen[:, :7].max() < 10 and seen[:, 9:].min() > 245


def test_all_damaged_pictures_are_named_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(14)]
    for path in paths:
        Image.new("L", (4, 4)).save(path)
    for i in range(12):
        paths[i].write_bytes([b"", b"<html>404</html>", paths[i].read_bytes()[:40]][i % 3])
    says = r"^12 pictures cannot be used: .*; and 2 more: replace or delete them$"
    with pytest.raises(ValueError, match=says) as error:
        decode(paths, 1, 4, None)
    assert all(str(path) in str(error.value) for path in paths[:10]) and str(paths[11]) not in str(error.value)
    for i in range(3):
        with pytest.raises(ValueError, match=rf"^{paths[i]} cannot be decoded \(.*\): replace or delete it$"):
            decode(paths[i : i + 1], 1, 4, None)


def test_the_first_frame_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (255, 0)]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    (tmp_path / "a.gif").rename(tmp_path / "a.jpg")  # the content says what it is
    paths = sorted(tmp_path.iterdir())
    images, animated = decode(paths, 1, 8, None)
    assert images.min() > 250 and animated == paths


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded .*exceeds limit"):
        decode([tmp_path / "a.png"], 1, 8, None)

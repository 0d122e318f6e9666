from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from convlens_server.codec import decode
from convlens_server.errors import InvalidImage

LIMIT = 50_000_000
GREY = np.array([[0, 60, 120], [180, 240, 255]], np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (2, 3, 3), np.uint8)


def file(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(data: bytes, *shape: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(decode(data, shape, LIMIT), np.uint8).reshape(shape)  # type: ignore[arg-type]


def grey(data: bytes) -> list[list[int]]:
    return pixels(data, 2, 3, 1)[..., 0].tolist()


def png(width: int, height: int, depth: int, colour_type: int, raw: bytes) -> bytes:
    """A PNG file made by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def error(data: bytes, limit: int = LIMIT, index: int = 0) -> InvalidImage:
    with pytest.raises(InvalidImage) as caught:
        decode(data, (2, 2, 3), limit, index)
    return caught.value


class TestModes:
    def test_grey(self) -> None:
        assert grey(file(Image.fromarray(GREY), "PNG")) == GREY.tolist()

    def test_grey_to_colour(self) -> None:
        assert pixels(file(Image.fromarray(GREY), "PNG"), 2, 3, 3).tolist() == np.dstack([GREY] * 3).tolist()

    @pytest.mark.parametrize("form", ["PNG", "WEBP"])
    def test_colour(self, form: str) -> None:
        options = {"lossless": True} if form == "WEBP" else {}
        assert pixels(file(Image.fromarray(COLOUR), form, **options), 2, 3, 3).tolist() == COLOUR.tolist()

    def test_colour_to_grey(self) -> None:
        expected = COLOUR.astype(float) @ [0.299, 0.587, 0.114]
        assert np.abs(pixels(file(Image.fromarray(COLOUR), "PNG"), 2, 3, 1)[..., 0] - expected).max() <= 1

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_jpeg(self, mode: str) -> None:
        image = Image.new(mode, (16, 16), 200 if mode == "L" else (200, 100, 50))
        expected = [200, 200, 200] if mode == "L" else [200, 100, 50]
        assert np.abs(pixels(file(image, "JPEG", quality=100), 1, 1, 3)[0, 0].astype(int) - expected).max() <= 1

    def test_cmyk_jpeg(self) -> None:
        image = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
        decoded = pixels(file(image, "JPEG", quality=100), 1, 1, 3)[0, 0].astype(int)
        assert np.abs(decoded - [200, 100, 50]).max() <= 2

    def test_grey_with_alpha_lies_on_black(self) -> None:
        alpha = np.array([[255, 255, 0], [128, 0, 255]], np.uint8)
        image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
        assert grey(file(image, "PNG")) == [[0, 60, 0], [90, 0, 255]]

    @pytest.mark.parametrize("form", ["PNG", "WEBP"])
    def test_colour_with_alpha_lies_on_black(self, form: str) -> None:
        alpha = np.array([[255, 255, 0], [255, 0, 255]], np.uint8)
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        image = Image.fromarray(np.dstack([COLOUR, alpha]))
        expected = np.where(alpha[..., None] == 0, 0, COLOUR)
        assert pixels(file(image, form, **options), 2, 3, 3).tolist() == expected.tolist()

    def test_palette(self) -> None:
        image = Image.fromarray(COLOUR).quantize(6)
        assert pixels(file(image, "PNG"), 2, 3, 3).tolist() == np.asarray(image.convert("RGB")).tolist()

    @pytest.mark.parametrize("transparency", [3, bytes([255, 255, 255, 0, 255, 255])])
    def test_palette_with_a_transparent_colour(self, transparency: int | bytes) -> None:
        image = Image.fromarray(COLOUR).quantize(6)
        expected = np.where(np.asarray(image)[..., None] == 3, 0, np.asarray(image.convert("RGB")))
        data = file(image, "PNG", transparency=transparency)
        assert pixels(data, 2, 3, 3).tolist() == expected.tolist()
        assert 0 in pixels(data, 2, 3, 1)

    def test_a_transparent_grey(self) -> None:
        assert grey(file(Image.fromarray(GREY), "PNG", transparency=240)) == [[0, 60, 120], [180, 0, 255]]

    def test_a_transparent_colour(self) -> None:
        data = file(Image.fromarray(COLOUR), "PNG", transparency=tuple(int(v) for v in COLOUR[1, 1]))
        expected = COLOUR.copy()
        expected[1, 1] = 0
        assert pixels(data, 2, 3, 3).tolist() == expected.tolist()

    def test_one_bit(self) -> None:
        image = Image.fromarray(GREY > 100)
        assert image.mode == "1"
        assert grey(file(image, "PNG")) == [[0, 0, 255], [255, 255, 255]]

    def test_sixteen_bits(self) -> None:
        values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
        assert grey(file(Image.fromarray(values), "PNG")) == [[0, 0, 1], [128, 255, 255]]

    def test_sixteen_bits_with_a_transparent_grey(self) -> None:
        values = np.array([[0, 255, 300], [32768, 32769, 65535]], np.uint16)
        assert grey(file(Image.fromarray(values), "PNG", transparency=32768)) == [[0, 0, 1], [0, 128, 255]]

    @pytest.mark.parametrize(
        ("colour_type", "values", "expected"),
        [
            (2, [100, 50, 255], [100, 50, 255]),
            (6, [100, 50, 255, 255], [100, 50, 255]),
            (6, [100, 50, 255, 0], [0, 0, 0]),
            (4, [100, 255], [100, 100, 100]),
            (4, [100, 0], [0, 0, 0]),
        ],
    )
    def test_sixteen_bits_a_channel(self, colour_type: int, values: list[int], expected: list[int]) -> None:
        raw = b"\0" + struct.pack(f">{len(values)}H", *[value * 256 for value in values])
        assert pixels(png(1, 1, 16, colour_type, raw), 1, 1, 3).flatten().tolist() == expected

    def test_first_picture_of_several(self) -> None:
        first, second = Image.new("RGB", (16, 16), (10, 20, 30)), Image.new("RGB", (16, 16), (200, 200, 200))
        for form, options in (("WEBP", {"lossless": True}), ("PNG", {}), ("MPO", {"quality": 100})):
            data = file(first, form, save_all=True, append_images=[second], **options)
            assert np.abs(pixels(data, 1, 1, 3).flatten().astype(int) - [10, 20, 30]).max() <= 1


class TestOrientation:
    # Where each pixel of an upright 2 × 3 image lies in the file, by the EXIF orientation.
    STORED = {  # noqa: RUF012
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
    def test_turned_upright(self, form: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = np.ascontiguousarray(self.STORED[orientation](GREY))
        if form == "JPEG":
            # Blocks of 8 × 8 equal pixels survive the compression.
            data = file(Image.fromarray(np.kron(stored, np.ones((8, 8), np.uint8))), form, quality=100, exif=exif)
            decoded = pixels(data, 16, 24, 1)[4::8, 4::8, 0].astype(int)
            assert np.abs(decoded - GREY).max() <= 2
        elif form == "WEBP":
            assert grey(file(Image.fromarray(np.dstack([stored] * 3)), form, lossless=True, exif=exif)) == GREY.tolist()
        else:
            assert grey(file(Image.fromarray(stored), form, exif=exif)) == GREY.tolist()

    @pytest.mark.parametrize(
        "exif",
        [
            b"Exif\0\0damaged",
            b"Exif\0\0II*\0\xff\xff\xff\x7f",
            # Orientation 77.
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x4d\0\0\0\0\0\0\0",
        ],
    )
    def test_damaged_exif_says_nothing_of_the_pixels(self, exif: bytes) -> None:
        assert grey(file(Image.fromarray(GREY), "PNG", exif=exif)) == GREY.tolist()
        image = Image.fromarray(np.dstack([GREY] * 3))
        assert grey(file(image, "WEBP", lossless=True, exif=exif)) == GREY.tolist()

    def test_with_transparency(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3
        data = file(Image.fromarray(GREY), "PNG", exif=exif, transparency=255)
        assert grey(data) == [[0, 240, 180], [120, 60, 0]]


class TestSize:
    def test_one_pixel(self) -> None:
        data = file(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")
        assert pixels(data, 1, 1, 3).tolist() == [[[1, 2, 3]]]
        assert pixels(data, 5, 4, 3).reshape(-1, 3).tolist() == [[1, 2, 3]] * 20

    @pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (3, 20_000)])
    def test_extreme_proportions(self, size: tuple[int, int]) -> None:
        assert (pixels(file(Image.new("L", size, 77), "PNG"), 28, 28, 3) == 77).all()

    def test_shrinking_is_antialiased(self) -> None:
        stripes = np.zeros((64, 64), np.uint8)
        stripes[::2] = 255
        shrunk = pixels(file(Image.fromarray(stripes), "PNG"), 8, 8, 1).astype(int)
        assert np.abs(shrunk[1:-1] - 127).max() <= 3

    def test_exactly_at_the_limit(self) -> None:
        data = file(Image.new("L", (100, 50)), "PNG")
        assert len(decode(data, (2, 2, 1), 5000)) == 4
        assert "has 100 × 50 pixels, over the limit of 4999: send it smaller" in str(error(data, 4999))

    @pytest.mark.filterwarnings("error")
    def test_a_limit_over_the_one_of_pillow_counts(self) -> None:
        assert error(png(14_000, 14_000, 8, 2, b"\0" * 100), 10**9).reason == "UNDECODABLE_IMAGE"


class TestBombs:
    """Refused by what the header says: nothing is decoded, and little memory is touched."""

    @pytest.mark.parametrize("side", [8000, 20_000, 2**31 - 1])
    def test_png(self, side: int) -> None:
        refused = error(png(side, side, 8, 2, bytes(1000)))
        assert refused.reason == "TOO_MANY_PIXELS"
        assert f"has {side} × {side} pixels, over the limit of {LIMIT}" in str(refused)

    def test_jpeg(self) -> None:
        refused = error(self.jpeg(60_000))
        assert (refused.reason, "60000 × 60000" in str(refused)) == ("TOO_MANY_PIXELS", True)

    def test_they_take_no_memory(self, tmp_path: Path) -> None:
        """In a process of its own, for its peak is the process's."""
        for number, data in enumerate(
            (png(20_000, 20_000, 8, 2, bytes(1000)), self.jpeg(60_000), self.webp(8000, 8000))
        ):
            (tmp_path / str(number)).write_bytes(data)
        code = """if True:
            import pathlib, resource, sys
            from convlens_server.codec import decode
            from convlens_server.errors import InvalidImage
            peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            before, refused = peak(), 0
            for path in pathlib.Path(sys.argv[1]).iterdir():
                try:
                    decode(path.read_bytes(), (28, 28, 3), 50_000_000)
                except InvalidImage:
                    refused += 1
            print(refused, peak() - before)
            """
        output = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True, timeout=50
        )
        refused, kib = map(int, output.stdout.split())
        assert refused == 3
        assert kib < 20_000

    @pytest.mark.parametrize("size", [(8000, 8000), (2**24, 2**7), (65_535, 65_535)])
    def test_webp_canvas(self, size: tuple[int, int]) -> None:
        assert error(self.webp(*size)).reason == "TOO_MANY_PIXELS"

    def test_text_that_inflates(self) -> None:
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", "x" * 20_000_000, zip=True)
        assert error(file(Image.new("L", (2, 2)), "PNG", pnginfo=info)).reason == "UNDECODABLE_IMAGE"

    @staticmethod
    def jpeg(side: int) -> bytes:
        """A small one whose header lies."""
        data = file(Image.new("L", (8, 8)), "JPEG")
        assert data.count(b"\xff\xc0\0\x0b\x08\0\x08\0\x08") == 1
        return data.replace(b"\x08\0\x08\0\x08", b"\x08" + struct.pack(">HH", side, side), 1)

    @staticmethod
    def webp(width: int, height: int) -> bytes:
        """One frame of 1 × 1 pixel on a large canvas."""
        frame = file(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
        frame_header = bytes(6) + bytes(6) + (100).to_bytes(3, "little") + b"\0"
        animation = b"ANMF" + struct.pack("<I", len(frame_header) + len(frame)) + frame_header + frame
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
        body = b"WEBP" + chunks + animation
        return b"RIFF" + struct.pack("<I", len(body)) + body


class TestBadFiles:
    def test_empty(self) -> None:
        refused = error(b"", index=3)
        assert (refused.reason, str(refused)) == ("EMPTY_IMAGE", "image 3 is empty")
        assert refused.metadata == {"image": "3"}
        assert refused.field == "images"

    @pytest.mark.parametrize("form", ["GIF", "TIFF", "BMP", "PPM", "ICO", "JPEG2000", "TGA", "PCX"])
    def test_other_formats(self, form: str) -> None:
        refused = error(file(Image.new("RGB", (16, 16)), form))
        assert (refused.reason, str(refused)) == ("NOT_AN_IMAGE", "image 0 is not a JPEG, PNG or WebP file")

    @pytest.mark.parametrize(
        "data", [b"x", b"hello", bytes(1000), b"RIFF\0\0\0\0WAVE", b"\xff\xd8", b"%!PS-Adobe-3.0 EPSF"]
    )
    def test_no_images(self, data: bytes) -> None:
        assert error(data).reason == "NOT_AN_IMAGE"

    @pytest.mark.parametrize(("form", "name"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WebP")])
    def test_truncated(self, form: str, name: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        whole = file(Image.fromarray(noise), form)
        for size in (12, 20, len(whole) // 10, len(whole) // 2, len(whole) - len(whole) // 20):
            refused = error(whole[:size], index=1)
            assert refused.reason == "UNDECODABLE_IMAGE"
            assert str(refused).startswith(f"image 1 is a {name} file that cannot be decoded (")

    def test_no_pixels(self) -> None:
        assert error(png(0, 5, 8, 0, b"")).reason == "UNDECODABLE_IMAGE"

    @given(
        form=st.sampled_from(["JPEG", "PNG", "WEBP"]),
        changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=20),
    )
    @pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO:UserWarning")
    def test_damage_is_decoded_or_refused(self, form: str, changes: list[tuple[int, int]]) -> None:
        data = bytearray(file(Image.fromarray(COLOUR).resize((40, 30)), form))
        for position, value in changes:
            data[position % len(data)] = value
        try:
            assert len(decode(bytes(data), (4, 4, 3), 10_000)) == 48
        except InvalidImage as refused:
            assert len(str(refused)) < 250  # noqa: PT017

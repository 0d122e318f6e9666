from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convlens.v1 import convlens_pb2 as pb
from convlens_server.errors import InvalidImage, InvalidRequest
from convlens_server.images import RequestImages

SHAPE = (2, 3, 1)


def raw(**changes: Any) -> pb.Images:
    return pb.Images(
        raw=pb.RawImages(**{"pixels": bytes(range(12)), "height": 2, "width": 3, "channels": 1, **changes})
    )


def encoded(*files: bytes) -> pb.Images:
    return pb.Images(encoded=pb.EncodedImages(files=files))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (5, 5), value).save(buffer, "PNG")
    return buffer.getvalue()


def read(images: pb.Images, max_images: int = 4) -> RequestImages:
    return RequestImages(images, SHAPE, max_images, "--max-images")


def test_raw() -> None:
    images = read(raw())
    assert images.count == 2
    assert images.pixels == images.decode(100) == bytes(range(12))


def test_files() -> None:
    images = read(encoded(png(1), png(2), png(3)))
    assert images.count == 3
    assert images.pixels is None
    expected = bytes([1] * 6 + [2] * 6 + [3] * 6)
    assert images.decode(100) == expected
    assert images.pixels == images.decode(100) == expected


def test_a_bad_file_is_named() -> None:
    images = read(encoded(png(1), b"junk"))
    with pytest.raises(InvalidImage, match="image 1 is not a JPEG, PNG or WebP file"):
        images.decode(100)
    with pytest.raises(InvalidImage, match="image 0 has 5 × 5 pixels, over the limit of 24"):
        images.decode(24)


@pytest.mark.parametrize("images", [pb.Images(), encoded(), raw(pixels=b"")])
def test_no_images(images: pb.Images) -> None:
    with pytest.raises(InvalidRequest, match="the request has no images: send at least one") as caught:
        read(images)
    assert caught.value.reason == "NO_IMAGES"


@pytest.mark.parametrize("images", [encoded(*[b"x"] * 5), raw(pixels=bytes(30))])
def test_too_many(images: pb.Images) -> None:
    with pytest.raises(InvalidRequest, match=r"has 5 images, over the limit of 4: .*larger --max-images") as caught:
        read(images)
    assert (caught.value.reason, caught.value.metadata) == ("TOO_MANY_IMAGES", {"images": "5", "limit": "4"})
    assert read(images, max_images=5).count == 5


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"channels": 3}, "WRONG_CHANNELS", "raw images have 3 channels, but the model takes 1"),
        ({"channels": 0}, "WRONG_CHANNELS", "raw images have 0 channels, but the model takes 1"),
        ({"height": 3, "width": 2}, "WRONG_SIZE", "raw images are 3 × 2 pixels, but the model takes 2 × 3"),
        ({"height": 0}, "WRONG_SIZE", "raw images are 0 × 3 pixels"),
        ({"width": 2**32 - 1}, "WRONG_SIZE", "4294967295 pixels"),
        ({"pixels": bytes(13)}, "WRONG_PIXEL_BYTES", "13 bytes, which is not a multiple of 6 = 2 × 3 × 1"),
        ({"pixels": b"x"}, "WRONG_PIXEL_BYTES", "1 bytes, which is not a multiple of 6"),
    ],
)
def test_pixels_that_do_not_fit(changes: dict[str, Any], reason: str, text: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        read(raw(**changes))
    assert caught.value.reason == reason
    assert text in str(caught.value)
    assert caught.value.field.startswith("images.raw")


def test_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8).tobytes()
    message = pb.Images(raw=pb.RawImages(pixels=pixels, height=4, width=5, channels=3))
    images = RequestImages(message, (4, 5, 3), 3, "--max-images")
    assert (images.count, images.pixels) == (3, pixels)

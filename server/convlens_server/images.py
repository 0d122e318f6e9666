"""Reads the images of a request: checks, and for files the decoding."""

from __future__ import annotations

from convlens.v1 import convlens_pb2 as pb
from convlens_server.codec import decode
from convlens_server.errors import InvalidImage, InvalidRequest


class RequestImages:
    """The images of one request, checked against a model's input.

    Args:
        images: From the request.
        shape: Height, width, channels of the model's input.
        max_images: Most images.
        limit_name: The flag that sets `max_images`, for the error; empty if none does.

    Attributes:
        count: Number of images, ≥ 1.
        pixels: count × height × width × channels bytes; None for files, which `decode` has to read first.
        size: Bytes of the files, or of the pixels.

    Raises:
        InvalidRequest: No images, or too many.
        InvalidImage: Pixels that do not fit the model.
    """

    __slots__ = ("_files", "_shape", "count", "pixels", "size")

    def __init__(self, images: pb.Images, shape: tuple[int, int, int], max_images: int, limit_name: str) -> None:
        self._shape = shape
        self._files: tuple[bytes, ...] = ()
        self.pixels: bytes | None = None
        self.size = 0
        source = images.WhichOneof("source")
        if source == "raw":
            self.pixels = images.raw.pixels
            self.count = _count(images.raw, self.pixels, shape)
            self.size = len(self.pixels)
        elif source == "encoded":
            self._files = tuple(images.encoded.files)
            self.count = len(self._files)
            self.size = sum(len(file) for file in self._files)
        else:
            self.count = 0
        if self.count == 0:
            raise InvalidRequest("the request has no images: send at least one", reason="NO_IMAGES", field="images")
        if self.count > max_images:
            or_raise = f", or start the server with a larger {limit_name}" if limit_name else ""
            raise InvalidRequest(
                f"the request has {self.count} images, over the limit of {max_images}: send them in several "
                f"requests{or_raise}",
                reason="TOO_MANY_IMAGES",
                field="images",
                metadata={"images": self.count, "limit": max_images},
            )

    def decode(self, max_pixels: int) -> bytes:
        """The joined pixels, files decoded. Raises InvalidImage."""
        if self.pixels is None:
            files = enumerate(self._files)
            self.pixels = b"".join([decode(file, self._shape, max_pixels, index) for index, file in files])
            self._files = ()
        return self.pixels


def _count(raw: pb.RawImages, pixels: bytes, shape: tuple[int, int, int]) -> int:
    height, width, channels = shape
    if raw.channels != channels:
        raise InvalidImage(
            f"raw images have {raw.channels} channels, but the model takes {channels}: convert them, or send files, "
            "which the server converts",
            reason="WRONG_CHANNELS",
            field="images.raw.channels",
            metadata={"channels": raw.channels, "expected": channels},
        )
    if raw.height != height or raw.width != width:
        raise InvalidImage(
            f"raw images are {raw.height} × {raw.width} pixels, but the model takes {height} × {width} (height × "
            "width): resize them, or send files, which the server resizes",
            reason="WRONG_SIZE",
            field="images.raw",
            metadata={"height": raw.height, "width": raw.width, "expected": f"{height}x{width}"},
        )
    size = height * width * channels
    count, rest = divmod(len(pixels), size)
    if rest:
        raise InvalidImage(
            f"raw pixels are {len(pixels)} bytes, which is not a multiple of {size} = {height} × {width} × {channels}",
            reason="WRONG_PIXEL_BYTES",
            field="images.raw.pixels",
            metadata={"bytes": len(pixels), "image_bytes": size},
        )
    return count

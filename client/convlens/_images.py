"""Turns what users have (paths, file contents, arrays, Pillow images) into the contract's Images message."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from convlens._errors import InvalidImage
from convlens.v1 import convlens_pb2 as pb

_KINDS = "a path, the bytes of an image file, a uint8 array or a Pillow image"
# The modes that PNG can hold as they are.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


def is_many(images: object) -> bool:
    """Whether these are images, and not one image: a list or tuple, or an array N × H × W × C."""
    return isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)


def takes_long(images: object) -> bool:
    """Whether `to_message` has to read or to encode files."""
    if isinstance(images, list | tuple):
        return any(map(takes_long, images))
    return not isinstance(images, bytes | np.ndarray)


def to_message(images: object) -> pb.Images:
    """The message for one image or for many.

    Args:
        images: An ImageLike, an array N × H × W × C, or a list or tuple of ImageLike.

    Raises:
        InvalidImage: There is none, one is of a wrong type, dtype or shape, a file cannot be read, or files and
            arrays are mixed.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return _raw(_pixels(images, "the array"))
    if not isinstance(images, list | tuple):
        if isinstance(images, np.ndarray):
            return _raw(_pixels(images, "the array")[None])
        return pb.Images(encoded=pb.EncodedImages(files=[_file(images, "the image")]))
    if not images:
        raise InvalidImage("there are no images: give at least one", reason="NO_IMAGES")
    arrays = [isinstance(image, np.ndarray) for image in images]
    if all(arrays):
        return _raw(_joined(images))
    if any(arrays):
        raise InvalidImage(
            f"image {arrays.index(True)} is an array, and image {arrays.index(False)} is not: a request has either "
            "pixels or files, so make two calls, or use stream",
            reason="MIXED_IMAGES",
        )
    return pb.Images(encoded=pb.EncodedImages(files=[_file(image, f"image {i}") for i, image in enumerate(images)]))


def _file(image: object, name: str) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        try:
            return Path(os.fsdecode(path)).read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise InvalidImage(f"{name}, {path!r}, cannot be read: {reason}", reason="UNREADABLE_FILE") from None
    if _is_pillow(image):
        return _png(image, name)
    raise InvalidImage(f"{name} is of type {type(image).__name__}, but must be {_KINDS}", reason="WRONG_TYPE")


def _is_pillow(image: object) -> TypeGuard[Any]:
    # Who holds such an image has imported this module; nobody else has to pay for it.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _png(image: Any, name: str) -> bytes:
    buffer = io.BytesIO()
    try:
        if image.mode not in _PNG_MODES:
            image = image.convert("RGB")
        # Level 1: a photograph of 500 × 375 takes 4 ms and 300 KB, at the default of 6 it takes 22 ms and 285 KB.
        image.save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidImage(f"{name}, a Pillow image, cannot be encoded: {error}", reason="UNREADABLE_FILE") from None
    return buffer.getvalue()


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    pixels = []
    for index, array in enumerate(arrays):
        if array.ndim == 4:
            raise InvalidImage(
                f"image {index} is an array of shape {array.shape}, a batch of its own: give it alone, or its images "
                "one by one",
                reason="WRONG_SHAPE",
            )
        pixels.append(_pixels(array, f"image {index}"))
        if pixels[-1].shape != pixels[0].shape:
            raise InvalidImage(
                f"image {index} has shape {array.shape}, but image 0 has {arrays[0].shape}: arrays of one call must "
                "have one shape, height × width × channels",
                reason="WRONG_SHAPE",
            )
    return np.stack(pixels)


def _pixels(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """The array with a channel dimension, checked."""
    if array.dtype != np.uint8:
        raise InvalidImage(
            f"{name} has dtype {array.dtype}, but pixels are uint8, 0 … 255: convert it, for values of 0 … 1 with "
            "(array * 255).round().astype('uint8')",
            reason="WRONG_DTYPE",
        )
    shape = array.shape
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3):
        raise InvalidImage(f"{name} has shape {shape}, but {_shape_cure(shape)}", reason="WRONG_SHAPE")
    if 0 in shape:
        raise InvalidImage(f"{name} has shape {shape}: there are no pixels in it", reason="WRONG_SHAPE")
    return array


def _shape_cure(shape: tuple[int, ...]) -> str:
    if len(shape) in (3, 4) and shape[-1] == 4:
        return "an image has 1 or 3 channels: drop the transparency with array[..., :3]"
    if len(shape) in (3, 4) and shape[-3] in (1, 3):
        return "channels come last: move them there with numpy.moveaxis(array, -3, -1)"
    if len(shape) == 3:
        return "an image has 1 or 3 channels, last; a batch of grey images is array[..., None]"
    return "an image is height × width (× 1 or 3 channels), and a batch is images × height × width × channels"


def _raw(pixels: npt.NDArray[np.uint8]) -> pb.Images:
    _, height, width, channels = pixels.shape
    return pb.Images(raw=pb.RawImages(pixels=pixels.tobytes(), height=height, width=width, channels=channels))

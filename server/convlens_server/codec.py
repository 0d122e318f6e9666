"""The codec: JPEG, PNG and WebP files to pixels, and pixels to PNG. The only module that knows image formats."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from convlens_server.errors import InvalidImage

# Of files that may be images, in lower case.
ENDINGS = frozenset({".jpeg", ".jpg", ".png", ".webp"})

# Opened directly: Image.open has a pixel limit of its own, which is global, and only warns below the double of it.
_OPENERS = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_ORIENTATION = 0x0112
# What turns an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(file: bytes, shape: tuple[int, int, int], max_pixels: int, index: int = 0) -> bytes:
    """Decodes one file to the pixels a model takes.

    The image is turned upright by its EXIF orientation, laid on black where it is transparent, converted to grey
    (ITU-R 601) or RGB, and resized bilinearly with antialiasing, without keeping its proportions.

    Args:
        file: A whole JPEG, PNG or WebP file.
        shape: Height, width and channels (1 or 3) of the result.
        max_pixels: Most height × width of the file, checked before decoding.
        index: Position in the request, for the errors.

    Returns:
        height × width × channels bytes, row by row.

    Raises:
        InvalidImage: Not such a file, incomplete, or too large.
    """
    height, width, channels = shape
    if not file:
        raise _error(index, "is empty", "EMPTY_IMAGE")
    form = format_of(file)
    if form is None:
        raise _error(index, "is not a JPEG, PNG or WebP file", "NOT_AN_IMAGE")
    try:
        opened = _OPENERS[form](io.BytesIO(file), "")
    except Image.DecompressionBombError as error:
        # Pillow's WebP plugin asks for the limit itself.
        raise _error(index, f"has more pixels than can be decoded: {error}", "TOO_MANY_PIXELS") from None
    except Exception as error:
        raise _undecodable(index, form, error) from None
    if opened.width * opened.height > max_pixels:
        text = f"has {opened.width} × {opened.height} pixels, over the limit of {max_pixels}: send it smaller"
        raise _error(index, text, "TOO_MANY_PIXELS")
    try:
        opened.load()
        image = _convert(_upright(opened), "L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:
        raise _undecodable(index, form, error) from None
    return image.tobytes()


def encode_png(pixels: bytes, shape: tuple[int, int, int]) -> bytes:
    """Pixels as a PNG file.

    Args:
        pixels: height × width × channels bytes, row by row.
        shape: Height, width and channels (1 or 3).
    """
    height, width, channels = shape
    file = io.BytesIO()
    Image.frombytes("L" if channels == 1 else "RGB", (width, height), pixels).save(file, "PNG")
    return file.getvalue()


def format_of(file: bytes) -> str | None:
    """The format of a file by its first bytes: "JPEG", "PNG" or "WebP"; None if it is none of them."""
    if file.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if file.startswith(b"RIFF") and file[8:12] == b"WEBP":
        return "WebP"
    return None


def _undecodable(index: int, form: str, error: Exception) -> InvalidImage:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return _error(index, f"is a {form} file that cannot be decoded ({reason})", "UNDECODABLE_IMAGE")


def _error(index: int, text: str, reason: str) -> InvalidImage:
    return InvalidImage(f"image {index} {text}", reason=reason, field="images", metadata={"image": index})


def _upright(image: Image.Image) -> Image.Image:
    # Asking for EXIF costs 10 µs, so only where the file has some.
    if "exif" not in image.info:
        return image
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Damaged EXIF says nothing of the pixels.
        return image
    return image if turn is None else image.transpose(turn)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow would clip at 255.
        grey = np.asarray(image.convert("I"))
        image = Image.fromarray(np.where(grey == image.info.get("transparency"), 0, grey >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image if image.mode == mode else image.convert(mode)

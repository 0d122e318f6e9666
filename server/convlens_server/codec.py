"""The codec: JPEG, PNG and WebP files to pixels. The only module that knows image formats."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from convlens_server.errors import InvalidImage

FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112


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
    try:
        image: Image.Image = Image.open(io.BytesIO(file), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _error(index, f"has far more than {max_pixels} pixels, the limit", "TOO_MANY_PIXELS") from None
    except Exception:
        raise _error(index, "is not a JPEG, PNG or WebP file", "NOT_AN_IMAGE") from None
    if image.width * image.height > max_pixels:
        text = f"has {image.width} × {image.height} pixels, over the limit of {max_pixels}: send it smaller"
        raise _error(index, text, "TOO_MANY_PIXELS")
    form = image.format
    try:
        image.load()
        image = _convert(_upright(image), "L" if channels == 1 else "RGB")
    except Exception as error:
        text = f"is a {form} file that cannot be decoded ({' '.join(str(error).split())[:120]})"
        raise _error(index, text, "UNDECODABLE_IMAGE") from None
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.tobytes()


def _error(index: int, text: str, reason: str) -> InvalidImage:
    return InvalidImage(f"image {index} {text}", reason=reason, field="images", metadata={"image": index})


def _upright(image: Image.Image) -> Image.Image:
    # Asking for EXIF costs 10 µs, so only where the file has some.
    if "exif" not in image.info or image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith(("I", "F")):
        # 16-bit grey: Pillow would clip at 255.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert(mode)

"""Images that are published beside a model, for people to try it with: one of each class of the held-out part."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from convlens_training.datasets import Split

FOLDER = "samples"
# The server gives no more.
_MOST = 64
# Pixels of the longer side. Larger images as PNG files would be over what the server gives of one model.
_LARGEST_PNG = 96


def samples(labels: Sequence[str], held_out: Split) -> dict[str, bytes]:
    """The first held-out image of each class; of more than 64 classes, of 64 spread evenly over them.

    Args:
        labels: By class index.
        held_out: The network has not been trained on it.

    Returns:
        Files by their paths in a version's folder, PNG, or WebP where images are large. Their names are those of the
        labels, with the index before them where the names alone are not in the order of the classes.
    """
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _MOST)).round().astype(int))
    ending = ".png" if max(held_out.images.shape[1:3]) <= _LARGEST_PNG else ".webp"
    names = [f"{_safe(labels[index])}{ending}" for index in chosen]
    if names != sorted(set(names)):
        digits = len(str(len(labels) - 1))
        names = [f"{index:0{digits}}_{name}" for index, name in zip(chosen, names, strict=True)]
    files = {}
    for index, name in zip(chosen, names, strict=True):
        places = np.flatnonzero(held_out.labels == index)
        if places.size:
            files[f"{FOLDER}/{name}"] = _file(held_out, int(places[0]), ending)
    return files


def _file(held_out: Split, place: int, ending: str) -> bytes:
    pixels = held_out.images[place]
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if ending == ".png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WebP", quality=90)
    return buffer.getvalue()


def _safe(label: str) -> str:
    return re.sub(r"[^\w-]+", "_", label).strip("_")[:60] or "class"

"""Builds the contract's requests from the clients' arguments. Everything here raises InvalidRequest."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from convlens._errors import InvalidImage, InvalidRequest
from convlens._images import is_many, to_message
from convlens.v1 import convlens_pb2 as pb

_VALUE_TYPES: dict[str, pb.ValueType.ValueType] = {
    "float32": pb.VALUE_TYPE_FLOAT32,
    "float16": pb.VALUE_TYPE_FLOAT16,
    "uint8": pb.VALUE_TYPE_UINT8,
}


class Query:
    """What calls of `classify` and `stream` share: everything but the images, checked.

    Args:
        model: Name.
        version: Positive, or 0 for the default.
        top_k: Positive; None for the server's default.
        scores: Whether to ask for all scores.
        logits: Whether to ask for all logits.
    """

    def __init__(self, model: str, version: int, top_k: int | None, scores: bool, logits: bool) -> None:
        self._template = pb.ClassifyRequest(
            model=name("model", model),
            version=version_number(version),
            top_k=None if top_k is None else integer("top_k", top_k, 1, 2**32),
            include_scores=bool(scores),
            include_logits=bool(logits),
        )

    def request(self, images: object) -> pb.ClassifyRequest:
        """The request for one image or many."""
        request = pb.ClassifyRequest(images=to_message(images))
        request.MergeFrom(self._template)
        return request

    def single(self, image: object) -> pb.ClassifyRequest:
        """The request for an image of a stream."""
        if is_many(image):
            raise InvalidImage("an item of a stream is one image, but this one is a batch", reason="WRONG_TYPE")
        return self.request(image)


def maps(
    images: object,
    model: str,
    version: int,
    layers: str | Iterable[str],
    kinds: str | Iterable[str],
    all_layers: bool,
    channels: Iterable[int],
    dtype: str,
) -> pb.GetFeatureMapsRequest:
    """The request for `maps`."""
    return pb.GetFeatureMapsRequest(
        model=name("model", model),
        version=version_number(version),
        images=to_message(images),
        layers=names("layers", layers),
        kinds=names("kinds", kinds),
        all_layers=bool(all_layers),
        channels=channel_numbers(channels),
        value_type=value_type(dtype),
    )


def model(wanted: str, version: int) -> pb.GetModelRequest:
    """The request for `model` and `layers`."""
    return pb.GetModelRequest(model=name("model", wanted), version=version_number(version))


def in_flight(value: int) -> int:
    """The bound of a stream, checked."""
    return integer("in_flight", value, 1, 2**16)


def version_number(version: int) -> int:
    """A version, checked."""
    return integer("version", version, 0, 2**63)


def channel_numbers(channels: Iterable[int]) -> list[int]:
    """Channels, checked."""
    return [integer("channels", channel, 0, 2**32) for channel in channels]


def value_type(dtype: str) -> pb.ValueType.ValueType:
    """How values travel, by the name of their dtype."""
    if dtype not in _VALUE_TYPES:
        raise InvalidRequest(f"dtype is {dtype!r}, but must be one of {', '.join(_VALUE_TYPES)}", field="dtype")
    return _VALUE_TYPES[dtype]


def integer(field: str, value: int, low: int, end: int) -> int:
    """An integer, low … end − 1, checked."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidRequest(f"{field} is {value!r}, but must be an integer", field=field) from None
    if not low <= number < end:
        raise InvalidRequest(f"{field} is {number}, but must be {low} … {end - 1}", field=field)
    return number


def name(field: str, value: str) -> str:
    """A name, checked."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{field} is {value!r}, but must be a string", field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{field} is {value!r}, which is not valid Unicode", field=field) from None
    return value


def names(field: str, values: str | Iterable[str]) -> list[str]:
    """One name or several, checked."""
    # A string is an iterable of strings too, but nobody means its letters.
    return [name(field, value) for value in ([values] if isinstance(values, str) else values)]

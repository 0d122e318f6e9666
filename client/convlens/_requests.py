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
            model=_name("model", model),
            version=_version(version),
            top_k=None if top_k is None else _integer("top_k", top_k, 1, 2**32),
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
    if dtype not in _VALUE_TYPES:
        raise InvalidRequest(f"dtype is {dtype!r}, but must be one of {', '.join(_VALUE_TYPES)}", field="dtype")
    return pb.GetFeatureMapsRequest(
        model=_name("model", model),
        version=_version(version),
        images=to_message(images),
        layers=_names("layers", layers),
        kinds=_names("kinds", kinds),
        all_layers=bool(all_layers),
        channels=[_integer("channels", channel, 0, 2**32) for channel in channels],
        value_type=_VALUE_TYPES[dtype],
    )


def model(name: str, version: int) -> pb.GetModelRequest:
    """The request for `model` and `layers`."""
    return pb.GetModelRequest(model=_name("model", name), version=_version(version))


def in_flight(value: int) -> int:
    """The bound of a stream, checked."""
    return _integer("in_flight", value, 1, 2**16)


def _version(version: int) -> int:
    return _integer("version", version, 0, 2**63)


def _integer(field: str, value: int, low: int, end: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidRequest(f"{field} is {value!r}, but must be an integer", field=field) from None
    if not low <= number < end:
        raise InvalidRequest(f"{field} is {number}, but must be {low} … {end - 1}", field=field)
    return number


def _name(field: str, value: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{field} is {value!r}, but must be a string", field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{field} is {value!r}, which is not valid Unicode", field=field) from None
    return value


def _names(field: str, values: str | Iterable[str]) -> list[str]:
    # A string is an iterable of strings too, but nobody means its letters.
    return [_name(field, value) for value in ([values] if isinstance(values, str) else values)]

"""The protocol's requests and answers as JSON, with binary tensors behind it where asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from convlens_server.errors import InvalidRequest, shown
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import invalid
from convlens_server.v2.tensors import BYTES, DATATYPES, packed

HEADER_LENGTH = "Inference-Header-Content-Length"

_BY_NAME = {datatype.name: datatype for datatype in DATATYPES.values()}
_BINARY_SIZE = "binary_data_size"
_BINARY = "binary_data"
_ALL_BINARY = "binary_data_output"


class Binary:
    """Which outputs go behind the JSON.

    Attributes:
        all: Whether those do that say nothing of it.
        outputs: By name, what the outputs say of it.
    """

    def __init__(self, all_outputs: bool = False) -> None:
        self.all = all_outputs
        self.outputs: dict[str, bool] = {}

    def __getitem__(self, name: str) -> bool:
        return self.outputs.get(name, self.all)


def header_length(value: str | None, size: int) -> int:
    """The bytes of a body that are JSON, from the header. Raises InvalidRequest."""
    if value is None:
        return size
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise invalid(f"{HEADER_LENGTH} is {shown(value)!r}, but must be a number of bytes", HEADER_LENGTH)
    length = int(value)
    if length > size:
        raise invalid(f"{HEADER_LENGTH} is {length}, but the body has {size} bytes", HEADER_LENGTH)
    return length


def document(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises InvalidRequest."""
    try:
        value = json.loads(data) if data else {}
    except (ValueError, RecursionError) as error:
        raise invalid(f"failed to parse the request JSON buffer: {str(error)[:200]}", "body", "NOT_JSON") from None
    if not isinstance(value, dict):
        raise invalid(f"the request is a JSON {type(value).__name__}, but must be an object", "body", "NOT_JSON")
    return value


def read_request(body: bytes, json_bytes: int, name: str, version: str) -> tuple[pb.ModelInferRequest, Binary]:
    """A ModelInferRequest. Fields that the protocol does not know are passed over: KServe's client sends some.

    Args:
        body: JSON, and behind it the binary tensors.
        json_bytes: How much of it is JSON.
        name: Of the model.
        version: Of the model; may be empty.

    Raises:
        InvalidRequest: The body is none.
    """
    fields = document(body[:json_bytes])
    request = pb.ModelInferRequest(model_name=name, model_version=version, id=_take(fields, "id", str, ""))
    parameters = _take(fields, "parameters", dict, {})
    binary = Binary(_take(parameters, _ALL_BINARY, bool, False))
    _set(request.parameters, {key: value for key, value in parameters.items() if key != _ALL_BINARY})
    position = json_bytes
    for given in _objects(fields, "inputs"):
        tensor = request.inputs.add(
            name=_take(given, "name", str), datatype=_take(given, "datatype", str), shape=_shape(given)
        )
        more = _take(given, "parameters", dict, {})
        size = more.get(_BINARY_SIZE)
        _set(tensor.parameters, {key: value for key, value in more.items() if key != _BINARY_SIZE})
        if size is not None:
            if "data" in given:
                raise invalid(f"input {shown(tensor.name)!r} has both data and {_BINARY_SIZE}", "inputs")
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise invalid(f"{_BINARY_SIZE} of input {shown(tensor.name)!r} must be a number of bytes", "inputs")
            if position + size > len(body):
                raise invalid(
                    f"{_BINARY_SIZE} of input {shown(tensor.name)!r} is {size}, but {len(body) - position} bytes are "
                    "left in the body",
                    "inputs",
                )
            request.raw_input_contents.append(body[position : position + size])
            position += size
        elif "data" in given:
            request.raw_input_contents.append(_data(given["data"], tensor))
    if position < len(body):
        raise invalid(
            f"the body has {len(body) - position} bytes behind its JSON and the binary data that this speaks of", "body"
        )
    for given in _objects(fields, "outputs", optional=True):
        output = request.outputs.add(name=_take(given, "name", str))
        more = _take(given, "parameters", dict, {})
        if _BINARY in more:
            binary.outputs[output.name] = _take(more, _BINARY, bool)
        _set(output.parameters, {key: value for key, value in more.items() if key != _BINARY})
    return request, binary


def write_response(response: pb.ModelInferResponse, binary: Binary) -> tuple[bytes, list[bytes]]:
    """The answer's JSON, and the binary tensors behind it.

    Raises:
        InvalidRequest: A value is not finite, which JSON cannot say.
    """
    fields: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        fields["id"] = response.id
    if response.parameters:
        fields["parameters"] = _plain(response.parameters)
    behind = []
    outputs = fields["outputs"] = []
    for tensor, content in zip(response.outputs, response.raw_output_contents, strict=True):
        output: dict[str, Any] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape),
        }  # fmt: skip
        parameters = _plain(tensor.parameters)
        if "shared_memory_region" not in parameters:
            if binary[tensor.name]:
                parameters[_BINARY_SIZE] = len(content)
                behind.append(content)
            else:
                output["data"] = _listed(tensor, content)
        if parameters:
            output["parameters"] = parameters
        outputs.append(output)
    return json.dumps(fields, allow_nan=False).encode(), behind


def _listed(tensor: pb.ModelInferResponse.InferOutputTensor, content: bytes) -> list[Any]:
    if tensor.datatype == BYTES:
        texts = []
        while content:
            size = int.from_bytes(content[:4], "little")
            texts.append(content[4 : 4 + size].decode())
            content = content[4 + size :]
        return texts
    values: npt.NDArray[Any] = np.frombuffer(content, _BY_NAME[tensor.datatype].dtype)
    if not np.isfinite(values).all():
        raise invalid(
            f"output {tensor.name!r} has values that are not finite, which JSON cannot say: ask for it as binary data",
            "outputs",
            "NOT_FINITE",
        )
    listed: list[Any] = values.tolist()
    return listed


def _data(data: object, tensor: pb.ModelInferRequest.InferInputTensor) -> bytes:
    """JSON values as the raw bytes of a datatype."""
    name = shown(tensor.name)
    if tensor.datatype == BYTES:
        texts = list(_flat(data))
        if not all(isinstance(text, str) for text in texts):
            raise invalid(f"data of input {name!r} must be texts, since it is BYTES", "inputs")
        return packed([str(text).encode(errors="surrogatepass") for text in texts])
    datatype = _BY_NAME.get(tensor.datatype)
    if datatype is None:
        # The model says what it expects.
        return b""
    try:
        values: npt.NDArray[Any] = np.array(data)
    except (ValueError, OverflowError):
        values = np.zeros(0, object)
    whole = datatype.dtype.kind == "u"
    if values.size == 0 and isinstance(data, list) and not any(_flat(data)):
        return b""
    if values.dtype.kind not in ("iu" if whole else "iuf"):
        kind = "whole numbers" if whole else "numbers"
        raise invalid(f"data of input {name!r} must be {kind}, in a list or lists of one length", "inputs")
    if whole and (values.min() < 0 or values.max() > 255):
        raise invalid(f"data of input {name!r} is not within 0 … 255, since it is {tensor.datatype}", "inputs")
    with np.errstate(over="ignore"):
        return values.astype(datatype.dtype).tobytes()


def _flat(data: object) -> Any:
    if isinstance(data, list):
        for each in data:
            yield from _flat(each)
    else:
        yield data


def _shape(given: Mapping[str, Any]) -> list[int]:
    shape: list[int] = _take(given, "shape", list)
    if not all(isinstance(dim, int) and not isinstance(dim, bool) and abs(dim) < 2**63 for dim in shape):
        raise invalid("shape of an input must be a list of whole numbers", "inputs")
    return shape


def _objects(fields: Mapping[str, Any], key: str, optional: bool = False) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = _take(fields, key, list, [] if optional else None)
    if not all(isinstance(each, dict) for each in values):
        raise invalid(f"{key} must be a list of objects", key)
    return values


def _take(fields: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = fields.get(key, default)
    if value is None:
        raise InvalidRequest(f"the request JSON has no {key!r}", field=key)
    if not isinstance(value, kind):
        raise invalid(f"{key!r} is a JSON {type(value).__name__}, but must be a {kind.__name__}", key)
    return value


def _set(target: Any, parameters: Mapping[str, Any]) -> None:
    for key, value in parameters.items():
        if isinstance(value, bool):
            target[key].bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**64:
            if value < 2**63:
                target[key].int64_param = value
            else:
                target[key].uint64_param = value
        elif isinstance(value, float) and math.isfinite(value):
            target[key].double_param = value
        elif isinstance(value, str):
            target[key].string_param = value
        else:
            raise invalid(f"parameter {shown(key)!r} must be a truth value, a number or a text", "parameters")


def _plain(parameters: Any) -> dict[str, Any]:
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in parameters.items()}

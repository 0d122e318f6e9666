"""ModelInfer and ModelStreamInfer: reads requests, and writes their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from convlens_server.answers import field
from convlens_server.errors import ServiceError, shown
from convlens_server.items import Computed, RequestItem, Stream
from convlens_server.metrics import ModelMetrics
from convlens_server.transport.base import Call, log_failure
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import invalid, translated
from convlens_server.v2.face import Face, Plan, place_of
from convlens_server.v2.shared_memory import SharedMemory
from convlens_server.v2.tensors import BYTES, typed, typed_bytes, unpacked, whole, written

_NO_MAPS: Mapping[str, npt.NDArray[np.float32]] = {}
_NO_VALUES = np.zeros((0, 0), np.float32)

_ID = b"\x1a"  # ModelInferResponse.id = 3
# ModelInferResponse.parameters = 4: {"triton_final_response": {bool_param: true}}, with which Triton ends a request.
_FINAL = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()
_STREAM_ERROR = b"\x0a"  # ModelStreamInferResponse.error_message = 1
_STREAM_ANSWER = b"\x12"  # ModelStreamInferResponse.infer_response = 2

# Parameters whose names begin so are Triton's own; this one alone may be sent.
_RESERVED = "triton_"
_ALLOWED = "triton_enable_empty_final_response"


class InferItem(RequestItem):
    """One ModelInfer in the batcher.

    Attributes:
        identity: Chosen by the caller.
        named: The model and the version that the request names.
        plan: How it is answered.
        maps: What the lens has computed for it.
        release: Lets go what is held for the answer, when that has left or never will; may be called more than once.
    """

    __slots__ = ("identity", "maps", "named", "plan", "priority", "release", "timeout", "unanswerable")

    method = "ModelInfer"
    plan: Plan

    def __init__(self, call: Call, arrived: float, metrics: ModelMetrics) -> None:
        super().__init__(call, arrived, metrics)
        self.identity = ""
        self.named = ("", "")
        self.maps = _NO_MAPS
        self.priority = 0
        self.timeout = 0.0
        self.release: Callable[[], None] | None = None
        self.unanswerable: ServiceError | None = None

    def response(self, computed: Computed, start: int) -> bytes:
        """The ModelInferResponse, from the rows of a batch."""
        end = start + self.count
        return self.written(computed.scores[start:end], computed.logits[start:end])

    def written(
        self, scores: npt.NDArray[np.float32] = _NO_VALUES, logits: npt.NDArray[np.float32] = _NO_VALUES
    ) -> bytes:
        """The ModelInferResponse. If shared memory cannot be written, `answer` sends that instead."""
        identity = field(_ID, self.identity.encode()) if self.identity else b""
        try:
            return self.plan.answer(self.count, identity, scores, logits, self.maps)
        except ServiceError as error:
            self.unanswerable = error
            return b""

    def answer(self, response: bytes) -> None:
        """Sends the answer."""
        if self.unanswerable is not None:
            self.fail(self.unanswerable)
            return
        self.call.reply(response)

    def hold(self, release: Callable[[], None]) -> None:
        """Has `release` called when the answer has left, or the caller."""
        self.release = self.call.on_close = release
        if self.call.cancelled:
            # It may have left before that was set.
            release()

    def fail(self, error: BaseException) -> None:
        """Sends the error and counts it."""
        super().fail(translated(error, *self.named))
        if self.release is not None:
            self.release()


class InferStream(Stream):
    """One ModelStreamInfer."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._release_lock = threading.Lock()
        self._releases: list[Callable[[], None]] = []
        call.on_writable = call.on_close = self._sent

    def release_when_sent(self, release: Callable[[], None]) -> None:
        """Calls it when everything has left that was sent until then, or the call is over."""
        with self._release_lock:
            self._releases.append(release)

    def _sent(self) -> None:
        with self._release_lock:
            releases, self._releases = self._releases, []
        for release in releases:
            release()


class InferStreamItem(InferItem):
    """One request of a ModelStreamInfer."""

    __slots__ = ("stream",)

    method = "ModelStreamInfer"

    def __init__(self, call: Call, arrived: float, metrics: ModelMetrics, stream: InferStream) -> None:
        super().__init__(call, arrived, metrics)
        self.stream = stream

    def answer(self, response: bytes) -> None:
        """Sends the answer into the stream."""
        if self.unanswerable is not None:
            self.fail(self.unanswerable)
            return
        if self.release is not None:
            self.stream.release_when_sent(self.release)
        self.stream.answer(field(_STREAM_ANSWER, response + _FINAL))
        if self.release is not None and self.call.cancelled:
            # The stream may have ended before it was told.
            self.release()

    def hold(self, release: Callable[[], None]) -> None:
        """Has `release` called when the answer has left, or the caller."""
        self.release = release

    def fail(self, error: BaseException) -> None:
        """Answers this request by its error and counts it; the stream goes on."""
        error = translated(error, *self.named)
        self.count_failure(error)
        log_failure(self.call, error)
        if not isinstance(error, ServiceError):
            error = ServiceError("internal error")
        answer = pb.ModelInferResponse(id=self.identity).SerializeToString()
        text = str(error).encode(errors="replace")
        self.stream.answer(field(_STREAM_ERROR, text) + field(_STREAM_ANSWER, answer + _FINAL))
        if self.release is not None:
            self.release()


def read_parameters(request: pb.ModelInferRequest, item: InferItem) -> None:
    """Takes over `timeout` and `priority`. Raises InvalidRequest."""
    for name, parameter in request.parameters.items():
        if name == "timeout":
            item.timeout = whole(parameter, name) / 1e6
        elif name == "priority":
            item.priority = whole(parameter, name)
        elif name.startswith(_RESERVED) and name != _ALLOWED:
            raise invalid(
                f"parameter keys starting with {_RESERVED!r} are reserved, but the request has {shown(name)!r}; only "
                f"{_ALLOWED!r} may be sent",
                "parameters",
            )


def read_input(
    request: pb.ModelInferRequest, face: Face, memory: SharedMemory | None
) -> tuple[int, bytes, Sequence[bytes]]:
    """The number of images, and the input's bytes, or, if it is BYTES, the image files.

    Raises:
        InvalidRequest: The inputs are not those of the model.
        NotFound, SharedMemoryFailed: What the input says of shared memory does not hold.
    """
    model = face.name
    tensor = _only_input(request, face)
    shape = tuple(tensor.shape)
    encoded = tensor.datatype == BYTES
    if encoded:
        fits = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    elif tensor.datatype == face.datatype.name:
        fits = shape[1:] == face.shape and len(shape) == len(face.shape) + 1
    else:
        raise invalid(
            f"inference input {face.input_name!r} data-type is {shown(tensor.datatype)!r}, but model {model!r} expects "
            f"{face.datatype.name!r} (or 'BYTES', each a JPEG, PNG or WebP file)",
            "inputs",
            "WRONG_DATATYPE",
            datatype=shown(tensor.datatype),
            expected=face.datatype.name,
        )
    if not fits or shape[0] < 0:
        expected = "[-1] or [-1,1]" if encoded else written((-1, *face.shape))
        raise invalid(
            f"unexpected shape for input {face.input_name!r} for model {model!r}. Expected {expected}, got "
            f"{written(shape[:16])}",
            "inputs",
            "WRONG_SHAPE",
            shape=written(shape[:16]),
            expected=expected,
        )
    count = shape[0]
    if count == 0:
        raise invalid(f"inference request batch-size must be >= 1 for {model!r}", "inputs", "NO_IMAGES")
    if count > face.max_images:
        raise invalid(
            f"inference request batch-size must be <= {face.max_images} for {model!r}, but it is {count}: send several "
            "requests, or start the server with a larger --max-images (and max_batch_size, if the model has one)",
            "inputs",
            "TOO_MANY_IMAGES",
            images=count,
            limit=face.max_images,
        )

    def mismatch(text: str) -> ServiceError:
        return invalid(
            f"input byte size mismatch for input {face.input_name!r} for model {model!r}: {text}",
            "inputs",
            "WRONG_BYTES",
        )

    if encoded:
        return count, b"", _files(request, tensor, face, memory, count, mismatch)
    data = _data(request, tensor, face, memory)
    size = count * face.image_bytes
    if len(data) != size:
        raise mismatch(f"Expected {size}, got {len(data)}")
    return count, data, ()


def _only_input(request: pb.ModelInferRequest, face: Face) -> pb.ModelInferRequest.InferInputTensor:
    inputs = request.inputs
    model = face.name
    if len(inputs) == 1:
        # Each look into a message costs 0.1 µs.
        tensor = inputs[0]
        if tensor.name == face.input_name:
            return tensor
    names = [shown(each.name) for each in inputs[:8]]
    if len(inputs) > 1 and len(set(names)) < len(names):
        raise invalid(
            f"input {names[0]!r} already exists in request for model {model!r}: expected 1 inputs but got "
            f"{len(inputs)} inputs",
            "inputs",
        )
    if len(inputs) == 1:
        raise invalid(
            f"unexpected inference input {names[0]!r} for model {model!r}, which takes {face.input_name!r}", "inputs"
        )
    got = f"Got input(s) {names}" if names else "Got none"
    missing = "" if face.input_name in names else f", but missing required input(s) [{face.input_name!r}]"
    raise invalid(
        f"expected 1 inputs but got {len(inputs)} inputs for model {model!r}. {got}{missing}. Please provide all "
        "required input(s) and no other.",
        "inputs",
    )


def _raw(
    request: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    face: Face,
    memory: SharedMemory | None,
) -> bytes | None:
    """What is in shared memory or in raw_input_contents; None if that is empty."""
    raw = request.raw_input_contents
    model = face.name
    place = place_of(tensor.parameters, f"input {face.input_name!r}", memory) if tensor.parameters else None
    if (raw or place is not None) and tensor.HasField("contents"):
        raise invalid(
            "contents field must not be specified when using raw_input_contents (or shared memory) for "
            f"{face.input_name!r} for model {model!r}",
            "inputs",
        )
    if place is not None:
        if raw:
            raise invalid(
                f"raw_input_contents must be empty when input {face.input_name!r} for model {model!r} is in shared "
                "memory",
                "raw_input_contents",
            )
        assert memory is not None
        return memory.read(place)
    if len(raw) > 1:
        raise invalid(
            f"expected 1 inputs but got {len(raw)} raw_input_contents for model {model!r}", "raw_input_contents"
        )
    return raw[0] if raw else None


def _data(
    request: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    face: Face,
    memory: SharedMemory | None,
) -> bytes:
    raw = _raw(request, tensor, face, memory)
    if raw is not None:
        return raw
    if not tensor.HasField("contents"):
        return b""
    return typed(tensor.contents, face.datatype, face.input_name, face.name)


def _files(
    request: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    face: Face,
    memory: SharedMemory | None,
    count: int,
    mismatch: Callable[[str], ServiceError],
) -> Sequence[bytes]:
    raw = _raw(request, tensor, face, memory)
    if raw is not None:
        return unpacked(raw, count, mismatch)
    files = typed_bytes(tensor.contents, face.input_name, face.name)
    if len(files) != count:
        raise mismatch(f"expected {count} elements, got {len(files)}")
    return files

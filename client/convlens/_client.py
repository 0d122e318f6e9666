"""The client for ordinary code."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, overload

import grpc
import numpy as np
import numpy.typing as npt

from convlens import _answers, _requests
from convlens._channel import DEFAULT_TIMEOUT, TLS, Attempts, Endpoint
from convlens._errors import Error
from convlens._images import is_many
from convlens._types import (
    Classification,
    FeatureMap,
    FileLike,
    ImageLike,
    Layer,
    MapDtype,
    Model,
    ModelVersion,
    Outcome,
)
from convlens._window import Window
from convlens.v1 import convlens_pb2 as pb
from convlens.v1.convlens_pb2_grpc import ConvLensStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")
# What a stream waits for: an answer, an image that could not be sent, the failure of all, or the end.
_Event: TypeAlias = pb.ClassifyStreamResponse | Outcome | Exception | None


class Client:
    """Asks a convlens server. Threads may share one; close it, or use it in a `with` statement.

    Every call has a deadline. While the server cannot be reached, a call is tried up to 5 times with growing pauses,
    1.5 s in all; when its queue is full and it says when to come back, until the deadline. Several addresses of one
    name are used in turn.

    Args:
        target: "host:port", or an address with one of grpc's schemes: dns, ipv4, ipv6, unix, …
        timeout: Seconds that a call may take, repetitions included, unless it is given another number.
        tls: True to trust the certificates that come with grpc; a TLS for one's own.
        metadata: Sent with every call, e.g. {"authorization": "Bearer …"}.

    Raises:
        InvalidRequest: An argument is wrong.

    All methods raise the errors of `convlens.Error`'s tree, and no others; see `convlens._errors`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        tls: bool | TLS = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._endpoint = endpoint = Endpoint(target, timeout, tls, metadata)
        self._channel = (
            grpc.secure_channel(endpoint.address, endpoint.credentials, endpoint.options)
            if endpoint.credentials
            else grpc.insecure_channel(endpoint.address, endpoint.options)
        )
        self._stub = ConvLensStub(self._channel)
        self._closed = False

    # A path is a sequence of strings, hence of images; the first signature that fits is meant. What an array gives
    # depends on its number of dimensions, of which its type seldom tells.
    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        images: FileLike,
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Classification: ...
    @overload
    def classify(
        self,
        images: Sequence[ImageLike],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> list[Classification]: ...
    @overload
    def classify(
        self,
        images: npt.NDArray[np.uint8],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Any: ...
    def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Classification | list[Classification]:
        """Classifies one image or many.

        Args:
            images: One image: a path, the bytes of a JPEG, PNG or WebP file, a Pillow image, or a uint8 array H×W or
                H×W×C of the model's input size, C 1 (grey) or 3 (RGB). Files of any size are resized by the server.
                Or many: a list or tuple of these, either all arrays of one shape or none; or an array N×H×W×C.
            model: Name; may be empty where the server has exactly one.
            version: Positive; 0 is the default version.
            top_k: How many predictions, 1 … the number of classes; None means 5, or all if there are fewer.
            scores: Whether to return the scores of all classes.
            logits: Whether to return the logits of all classes.
            timeout: Seconds; None means the client's.

        Returns:
            A Classification for one image; a list, in the order given, for many.
        """
        request = _requests.Query(model, version, top_k, scores, logits).request(images)
        results = self._classify(request, timeout)
        return results if is_many(images) else results[0]

    def stream(
        self,
        images: Iterable[ImageLike],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
        in_flight: int = 64,
    ) -> Iterator[Outcome]:
        """Classifies any number of images, each on its own, over one call.

        An image that fails does not disturb the others: its Outcome carries the error. One that the server refuses
        because its queue is full is sent again. The iterator itself raises when the connection breaks, when the
        timeout passes, and whatever `images` raises.

        Args:
            images: One image an item, as in `classify`. Another thread draws them, as places become free.
            model: As in `classify`; so are `version`, `top_k`, `scores` and `logits`.
            version: Positive; 0 is the default version.
            top_k: How many predictions.
            scores: Whether to return the scores of all classes.
            logits: Whether to return the logits of all classes.
            timeout: Seconds that the stream may go without an answer while images are in flight; the stream as a
                whole may take any time. None means the client's.
            in_flight: Most images sent whose outcome has not been yielded, 1 … 65535.

        Returns:
            One Outcome for each image, in the order given, each as soon as it is there.
        """
        query = _requests.Query(model, version, top_k, scores, logits)
        return self._stream(images, query, self._endpoint.seconds(timeout), _requests.in_flight(in_flight))

    def maps(
        self,
        images: ImageLike | Sequence[ImageLike],
        model: str = "",
        version: int = 0,
        layers: str | Iterable[str] = (),
        kinds: str | Iterable[str] = (),
        all_layers: bool = False,
        channels: Iterable[int] = (),
        dtype: MapDtype = "float32",
        timeout: float | None = None,
    ) -> list[FeatureMap]:
        """Computes the feature maps of any layers.

        Args:
            images: One or many, as in `classify`.
            model: Name; may be empty where the server has exactly one.
            version: Positive; 0 is the default version.
            layers: Names of layers. Of layers, kinds and all_layers at least one is given; their union is answered.
            kinds: Kinds of layers: conv, relu, max_pool, dense, …
            all_layers: Every layer.
            channels: Which channels (or units), without repeats; none given means all. Every layer must have them.
            dtype: How values travel: "float32" exact; "float16" in half the bytes, relative error ≤ 2^-11, magnitudes
                over 65504 clipped; "uint8" in a quarter, error ≤ a 510th of the channel's range. What comes out is
                float32 in any case.
            timeout: Seconds; None means the client's.

        Returns:
            One FeatureMap for each layer, in the order of computation.
        """
        request = _requests.maps(images, model, version, layers, kinds, all_layers, channels, dtype)

        def read(seconds: float) -> list[FeatureMap]:
            reader = _answers.MapsReader(single=not is_many(images))
            call = self._stub.GetFeatureMaps(request, timeout=seconds, metadata=self._endpoint.metadata)
            try:
                for chunk in call:
                    reader.add(chunk)
            finally:
                call.cancel()
            return reader.maps()

        return self._repeat(read, timeout)

    def models(self, timeout: float | None = None) -> list[ModelVersion]:
        """Every version of every model that the server knows, ready or failed, by name, then version."""
        request = pb.ListModelsRequest()
        return _answers.model_versions(self._unary(self._stub.ListModels, request, timeout))

    def model(self, name: str = "", version: int = 0, timeout: float | None = None) -> Model:
        """One version of a model, in full.

        Args:
            name: May be empty where the server has exactly one model.
            version: Positive; 0 is the default version.
            timeout: Seconds; None means the client's.
        """
        return _answers.model(self._unary(self._stub.GetModel, _requests.model(name, version), timeout))

    def layers(self, model: str = "", version: int = 0, timeout: float | None = None) -> list[Layer]:
        """The layer catalogue of a model: every layer, in the order of computation. Arguments as in `model`."""
        return list(self.model(model, version, timeout).layers)

    def close(self) -> None:
        """Ends the connection; calls under way raise Cancelled. May be called twice."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(
        self, images: Iterable[ImageLike], query: _requests.Query, seconds: float, bound: int
    ) -> Iterator[Outcome]:
        window = Window(seconds)
        events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        places = threading.Semaphore(bound)
        stopped = threading.Event()

        def send() -> Iterator[pb.ClassifyStreamRequest]:
            try:
                for position, image in enumerate(images):
                    places.acquire()
                    if stopped.is_set():
                        return
                    try:
                        message = window.sent(position, query.single(image))
                    except Error as error:
                        events.put(Outcome(position, error))
                    else:
                        yield message
            except Exception as error:
                events.put(error)

        def receive() -> None:
            try:
                for response in call:
                    events.put(response)
                events.put(None)
            except grpc.RpcError as failure:
                events.put(self._endpoint.error(failure))

        metadata = self._endpoint.metadata
        call = self._repeat(lambda _: self._stub.ClassifyStream(send(), metadata=metadata), seconds)
        receiver = threading.Thread(target=receive, name="convlens-stream", daemon=True)
        receiver.start()
        try:
            while (event := _wait(events, window)) is not None:
                if isinstance(event, Exception):
                    raise event
                for outcome, request in window.arrived(event):
                    places.release()
                    yield self._settled(outcome, request, seconds)
            window.ended()
        finally:
            stopped.set()
            places.release()
            call.cancel()
            receiver.join()

    def _settled(self, outcome: Outcome, request: pb.ClassifyRequest | None, seconds: float) -> Outcome:
        """The outcome, after another try where the server asks for one."""
        if outcome.error is None or request is None:
            return outcome
        try:
            return Outcome(outcome.position, None, self._classify(request, seconds, outcome.error)[0])
        except Error as error:
            return Outcome(outcome.position, error)

    def _classify(
        self, request: pb.ClassifyRequest, timeout: float | None, refusal: Error | None = None
    ) -> list[Classification]:
        response = self._unary(self._stub.Classify, request, timeout, refusal)
        return _answers.classifications(response, request.images)

    def _unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None,
        refusal: Error | None = None,
    ) -> _Response:
        metadata = self._endpoint.metadata
        return self._repeat(lambda left: method(request, timeout=left, metadata=metadata), timeout, refusal)

    def _repeat(
        self, attempt: Callable[[float], _Result], timeout: float | None, refusal: Error | None = None
    ) -> _Result:
        """Makes attempts, each told the seconds left, until one succeeds; after a refusal, first waits as it says."""
        attempts = Attempts(self._endpoint.seconds(timeout))
        while True:
            if refusal is not None:
                time.sleep(attempts.pause(refusal))
            self._check_open()
            try:
                return attempt(attempts.remaining())
            except grpc.RpcError as failure:
                refusal = self._endpoint.error(failure)
            except ValueError:
                # What grpc raises on a channel that another thread has just closed.
                self._check_open()
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise self._endpoint.closed() from None


def _wait(events: queue.SimpleQueue[_Event], window: Window) -> _Event:
    since = time.monotonic()
    while True:
        try:
            return events.get(timeout=window.patience(since))
        except queue.Empty:
            continue

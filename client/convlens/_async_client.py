"""The client for asyncio."""

# ruff: noqa: ASYNC109 - the timeouts become deadlines of grpc, which the server is told

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from convlens import _answers, _lens_answers, _lens_requests, _requests
from convlens._async_connection import AsyncConnection, built
from convlens._async_streaming import stream
from convlens._channel import DEFAULT_TIMEOUT, TLS, Endpoint
from convlens._explanation import Explanation
from convlens._images import is_many
from convlens._lens_types import (
    Attribution,
    AttributionMethod,
    Comparison,
    Graph,
    Kernels,
    MaximizingImages,
    Sample,
)
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
from convlens.v1 import convlens_pb2 as pb


class AsyncClient:
    """Asks a convlens server from asyncio: `Client`, with `await` before its calls.

    It can be made anywhere, and connects in the event loop of its first call, to which it then belongs. Close it, or
    use it in an `async with` statement. Files are read in a thread.

    Args:
        target: As for `Client`; so are the others.
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
        self._connection = AsyncConnection(Endpoint(target, timeout, tls, metadata))

    # A path is a sequence of strings, hence of images; the first signature that fits is meant. What an array gives
    # depends on its number of dimensions, of which its type seldom tells.
    @overload
    async def classify(  # type: ignore[overload-overlap]
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
    async def classify(
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
    async def classify(
        self,
        images: npt.NDArray[np.uint8],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Any: ...
    async def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Classification | list[Classification]:
        """Classifies one image or many. See `Client.classify`."""
        query = _requests.Query(model, version, top_k, scores, logits)
        request = await built(query.request, images)
        response = await self._connection.unary(lambda stub: stub.Classify, request, timeout)
        results = _answers.classifications(response, request.images)
        return results if is_many(images) else results[0]

    def stream(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        model: str = "",
        version: int = 0,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        timeout: float | None = None,
        in_flight: int = 64,
    ) -> AsyncIterator[Outcome]:
        """Classifies any number of images, each on its own, over one call. See `Client.stream`.

        `images` may be an asynchronous iterable too; an ordinary one is drawn from in the event loop.
        """
        query = _requests.Query(model, version, top_k, scores, logits)
        seconds = self._connection.endpoint.seconds(timeout)
        return stream(self._connection, images, query, seconds, _requests.in_flight(in_flight))

    async def maps(
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
        """Computes the feature maps of any layers. See `Client.maps`."""
        request = await built(
            lambda given: _requests.maps(given, model, version, layers, kinds, all_layers, channels, dtype), images
        )
        single = not is_many(images)
        return await self._connection.read(
            lambda stub: stub.GetFeatureMaps, request, lambda: _answers.MapsReader(single), timeout
        )

    async def models(self, timeout: float | None = None) -> list[ModelVersion]:
        """Every version of every model. See `Client.models`."""
        request = pb.ListModelsRequest()
        return _answers.model_versions(await self._connection.unary(lambda stub: stub.ListModels, request, timeout))

    async def model(self, name: str = "", version: int = 0, timeout: float | None = None) -> Model:
        """One version of a model, in full. See `Client.model`."""
        request = _requests.model(name, version)
        return _answers.model(await self._connection.unary(lambda stub: stub.GetModel, request, timeout))

    async def layers(self, model: str = "", version: int = 0, timeout: float | None = None) -> list[Layer]:
        """The layer catalogue of a model. See `Client.layers`."""
        return list((await self.model(model, version, timeout)).layers)

    async def samples(self, model: str = "", version: int = 0, timeout: float | None = None) -> list[Sample]:
        """The images that stand beside a model for people to try it with, by name. See `Client.samples`."""
        request = _lens_requests.samples(model, version)
        return _lens_answers.samples(await self._connection.unary(lambda stub: stub.GetSamples, request, timeout))

    async def graph(self, model: str = "", version: int = 0, timeout: float | None = None) -> Graph:
        """A network as a graph to draw. See `Client.graph`."""
        request = _lens_requests.graph(model, version)
        return _lens_answers.graph(await self._connection.unary(lambda stub: stub.GetGraph, request, timeout))

    async def kernels(
        self,
        layer: str,
        model: str = "",
        version: int = 0,
        channels: Iterable[int] = (),
        dtype: MapDtype = "float32",
        timeout: float | None = None,
    ) -> Kernels:
        """The weights and biases of one layer. See `Client.kernels`."""
        request = _lens_requests.kernels(layer, model, version, channels, dtype)
        return await self._connection.read(lambda stub: stub.GetKernels, request, _lens_answers.KernelsReader, timeout)

    async def explain(
        self,
        image: ImageLike,
        layer: str,
        channel: int,
        row: int = 0,
        column: int = 0,
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> Explanation:
        """Explains one unit for one image. See `Client.explain`."""
        request = await built(
            lambda given: _lens_requests.explain(given, layer, channel, row, column, model, version), image
        )
        return _lens_answers.explanation(await self._connection.unary(lambda stub: stub.ExplainUnit, request, timeout))

    async def attribute(
        self,
        image: ImageLike,
        model: str = "",
        version: int = 0,
        method: AttributionMethod = "occlusion",
        class_index: int | None = None,
        layer: str = "",
        window: int | None = None,
        stride: int | None = None,
        overlay: bool = False,
        timeout: float | None = None,
    ) -> Attribution:
        """Finds where in an image a class's score comes from. See `Client.attribute`."""
        request = await built(
            lambda given: _lens_requests.attribute(
                given, model, version, method, class_index, layer, window, stride, overlay
            ),
            image,
        )
        return _lens_answers.attribution(await self._connection.unary(lambda stub: stub.Attribute, request, timeout))

    async def maximizing(
        self,
        layer: str,
        model: str = "",
        version: int = 0,
        channels: Iterable[int] = (),
        dataset: str = "",
        count: int | None = None,
        images: bool = False,
        progress: Callable[[int, int], object] | None = None,
        timeout: float | None = None,
    ) -> list[MaximizingImages]:
        """Finds the images that activate a layer's channels most. See `Client.maximizing`."""
        request = _lens_requests.maximizing(layer, model, version, channels, dataset, count, images)
        return await self._connection.read(
            lambda stub: stub.MaximizingImages, request, lambda: _lens_answers.MaximizingReader(progress), timeout
        )

    async def compare(
        self,
        images: ImageLike | Sequence[ImageLike],
        other_images: ImageLike | Sequence[ImageLike] | None = None,
        model: str = "",
        version: int = 0,
        other_model: str | None = None,
        other_version: int | None = None,
        layers: str | Iterable[str] = (),
        differences: bool = False,
        dtype: MapDtype = "float32",
        timeout: float | None = None,
    ) -> list[Comparison]:
        """Compares two images, or two models or versions, layer by layer. See `Client.compare`."""
        request = await built(
            lambda given: _lens_requests.compare(
                given, model, version, other_model, other_version, layers, differences, dtype
            ),
            (images, other_images),
        )
        single = not is_many(images)
        return await self._connection.read(
            lambda stub: stub.Compare, request, lambda: _lens_answers.ComparisonReader(single), timeout
        )

    async def close(self) -> None:
        """Ends the connection; calls under way raise Cancelled. May be called twice."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

"""The client for ordinary code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from convlens import _answers, _lens_answers, _lens_requests, _requests
from convlens._channel import DEFAULT_TIMEOUT, TLS, Endpoint
from convlens._connection import Connection
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
from convlens._streaming import stream
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
        self._connection = Connection(Endpoint(target, timeout, tls, metadata))
        self._stub = self._connection.stub

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
        response = self._connection.unary(self._stub.Classify, request, timeout)
        results = _answers.classifications(response, request.images)
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
        seconds = self._connection.endpoint.seconds(timeout)
        return stream(self._connection, images, query, seconds, _requests.in_flight(in_flight))

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
        single = not is_many(images)
        return self._connection.read(self._stub.GetFeatureMaps, request, lambda: _answers.MapsReader(single), timeout)

    def models(self, timeout: float | None = None) -> list[ModelVersion]:
        """Every version of every model that the server knows, ready or failed, by name, then version."""
        request = pb.ListModelsRequest()
        return _answers.model_versions(self._connection.unary(self._stub.ListModels, request, timeout))

    def model(self, name: str = "", version: int = 0, timeout: float | None = None) -> Model:
        """One version of a model, in full.

        Args:
            name: May be empty where the server has exactly one model.
            version: Positive; 0 is the default version.
            timeout: Seconds; None means the client's.
        """
        return _answers.model(self._connection.unary(self._stub.GetModel, _requests.model(name, version), timeout))

    def layers(self, model: str = "", version: int = 0, timeout: float | None = None) -> list[Layer]:
        """The layer catalogue of a model: every layer, in the order of computation. Arguments as in `model`."""
        return list(self.model(model, version, timeout).layers)

    def samples(self, model: str = "", version: int = 0, timeout: float | None = None) -> list[Sample]:
        """The images that stand beside a model for people to try it with, by name. Arguments as in `model`."""
        request = _lens_requests.samples(model, version)
        return _lens_answers.samples(self._connection.unary(self._stub.GetSamples, request, timeout))

    def graph(self, model: str = "", version: int = 0, timeout: float | None = None) -> Graph:
        """A network as a graph to draw. Arguments as in `model`."""
        request = _lens_requests.graph(model, version)
        return _lens_answers.graph(self._connection.unary(self._stub.GetGraph, request, timeout))

    def kernels(
        self,
        layer: str,
        model: str = "",
        version: int = 0,
        channels: Iterable[int] = (),
        dtype: MapDtype = "float32",
        timeout: float | None = None,
    ) -> Kernels:
        """The weights and biases of one layer.

        Args:
            layer: Its name: a convolution, a dense layer, or another with trained values for each channel.
            model: Name; may be empty where the server has exactly one.
            version: Positive; 0 is the default version.
            channels: Which output channels (or units), without repeats; none given means all.
            dtype: How values travel, as in `maps`.
            timeout: Seconds; None means the client's.
        """
        request = _lens_requests.kernels(layer, model, version, channels, dtype)
        return self._connection.read(self._stub.GetKernels, request, _lens_answers.KernelsReader, timeout)

    def explain(
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
        """Explains one unit for one image: the exact arithmetic that makes its activation of the values before it.

        Args:
            image: One, as in `classify`.
            layer: The layer's name.
            channel: 0 … channels − 1; for a layer without positions the unit.
            row: Of the feature map, from the top; 0 for a layer without positions.
            column: Of the feature map; 0 for a layer without positions.
            model: Name; may be empty where the server has exactly one.
            version: Positive; 0 is the default version.
            timeout: Seconds; None means the client's.
        """
        request = _lens_requests.explain(image, layer, channel, row, column, model, version)
        return _lens_answers.explanation(self._connection.unary(self._stub.ExplainUnit, request, timeout))

    def attribute(
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
        """Finds where in an image a class's score comes from.

        Args:
            image: One, as in `classify`.
            model: Name; may be empty where the server has exactly one.
            version: Positive; 0 is the default version.
            method: "occlusion": how far the score falls when a patch of the image is covered; "score_cam": a layer's
                maps, weighted by the class's logit for the image seen through each; "eigen_cam": the first principal
                component of a layer's maps, which is of no class; "grad_cam": a layer's maps, weighted by the mean
                gradient of the class's logit.
            class_index: The class; None is the one with the highest score.
            layer: The layer whose maps are used, which must have channels with more than one position; empty is, behind
                the last such convolution, the last layer of as many positions that pools nothing: its activation, the
                last residual block's, …. Not for occlusion.
            window: For occlusion, side of the covering square in pixels of the model's input; None is an eighth of the
                image's smaller side.
            stride: For occlusion, pixels between squares, 1 … window; None is half the window.
            overlay: Whether to return the image with the map laid over it.
            timeout: Seconds; None means the client's.
        """
        request = _lens_requests.attribute(image, model, version, method, class_index, layer, window, stride, overlay)
        return _lens_answers.attribution(self._connection.unary(self._stub.Attribute, request, timeout))

    def maximizing(
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
        """Finds the images of a dataset of the server's that activate a layer's channels most.

        The first who asks waits while all images are computed, so give a timeout that is long enough; after that the
        server has the result.

        Args:
            layer: The layer's name.
            model: Name; may be empty where the server has exactly one.
            version: Positive; 0 is the default version.
            channels: Which channels (or units), without repeats; none given means all.
            dataset: Its name on the server; "samples" are the model's own. Empty is the server's only one, or the
                samples where it has none.
            count: Images for a channel, 1 … 16; None means 9.
            images: Whether to return the images themselves.
            progress: Called with the number of images done and that of all, now and then while they are computed.
            timeout: Seconds; None means the client's.

        Returns:
            One for each channel, in the order asked for.
        """
        request = _lens_requests.maximizing(layer, model, version, channels, dataset, count, images)
        return self._connection.read(
            self._stub.MaximizingImages, request, lambda: _lens_answers.MaximizingReader(progress), timeout
        )

    def compare(
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
        """Compares two images, or two models or versions, layer by layer. At least one `other_…` is given.

        Args:
            images: One or many, as in `classify`.
            other_images: As many, each compared with its place in `images`; None means the same.
            model: Name; may be empty where the server has exactly one.
            version: Positive; 0 is the default version.
            other_model: Of the second side; None means the same.
            other_version: Of the second side; None means the same for the same model, the default for another.
            layers: Names of layers that both have; none given means all that both have by the same name and shape.
            differences: Whether to return difference maps.
            dtype: How difference maps travel, as in `maps`.
            timeout: Seconds; None means the client's.

        Returns:
            One Comparison for each layer, in the order of computation.
        """
        request = _lens_requests.compare(
            (images, other_images), model, version, other_model, other_version, layers, differences, dtype
        )
        single = not is_many(images)
        return self._connection.read(
            self._stub.Compare, request, lambda: _lens_answers.ComparisonReader(single), timeout
        )

    def close(self) -> None:
        """Ends the connection; calls under way raise Cancelled. May be called twice."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

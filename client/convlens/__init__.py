"""Asks a convlens server: the classes of images, and what a network computes inside.

    import convlens

    with convlens.Client("localhost:8001") as client:
        print(client.classify("digit.png", model="lecture_cnn").label)
        for layer in client.maps("digit.png", model="lecture_cnn", kinds="conv"):
            print(layer.layer, layer.activation.shape)
        print(client.explain("digit.png", "conv_1", channel=3, row=10, column=12, model="lecture_cnn"))
        client.attribute("digit.png", model="lecture_cnn").plot().savefig("where.png")

`AsyncClient` has the same methods for asyncio. Errors are those of `Error`'s tree.
"""

from convlens._async_client import AsyncClient
from convlens._channel import TLS
from convlens._client import Client
from convlens._errors import (
    AccessDenied,
    Cancelled,
    DeadlineExceeded,
    Error,
    InvalidImage,
    InvalidRequest,
    ModelNotReady,
    NotFound,
    ResourceExhausted,
    ServerError,
    Unavailable,
    Unsupported,
    UnusableClient,
)
from convlens._explanation import (
    Arithmetic,
    Elementwise,
    Explanation,
    Function,
    Patch,
    Pooling,
    Region,
    Selection,
    Softmax,
    WeightedSum,
)
from convlens._lens_types import (
    Attribution,
    AttributionMethod,
    Comparison,
    Graph,
    GraphBlock,
    GraphLayer,
    Kernels,
    MaximizingImage,
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
    ModelState,
    ModelVersion,
    Outcome,
    Prediction,
)

__all__ = [
    "TLS",
    "AccessDenied",
    "Arithmetic",
    "AsyncClient",
    "Attribution",
    "AttributionMethod",
    "Cancelled",
    "Classification",
    "Client",
    "Comparison",
    "DeadlineExceeded",
    "Elementwise",
    "Error",
    "Explanation",
    "FeatureMap",
    "FileLike",
    "Function",
    "Graph",
    "GraphBlock",
    "GraphLayer",
    "ImageLike",
    "InvalidImage",
    "InvalidRequest",
    "Kernels",
    "Layer",
    "MapDtype",
    "MaximizingImage",
    "MaximizingImages",
    "Model",
    "ModelNotReady",
    "ModelState",
    "ModelVersion",
    "NotFound",
    "Outcome",
    "Patch",
    "Pooling",
    "Prediction",
    "Region",
    "ResourceExhausted",
    "Sample",
    "Selection",
    "ServerError",
    "Softmax",
    "Unavailable",
    "Unsupported",
    "UnusableClient",
    "WeightedSum",
]

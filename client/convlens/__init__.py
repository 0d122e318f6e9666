"""Asks a convlens server: the classes of images, and what a network computes inside.

    import convlens

    with convlens.Client("localhost:8001") as client:
        print(client.classify("digit.png", model="lecture_cnn").label)
        for layer in client.maps("digit.png", model="lecture_cnn", kinds="conv"):
            print(layer.layer, layer.activation.shape)

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
    Prediction,
)

__all__ = [
    "TLS",
    "AccessDenied",
    "AsyncClient",
    "Cancelled",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "Error",
    "FeatureMap",
    "FileLike",
    "ImageLike",
    "InvalidImage",
    "InvalidRequest",
    "Layer",
    "MapDtype",
    "Model",
    "ModelNotReady",
    "ModelVersion",
    "NotFound",
    "Outcome",
    "Prediction",
    "ResourceExhausted",
    "ServerError",
    "Unavailable",
    "Unsupported",
    "UnusableClient",
]

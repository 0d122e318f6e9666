"""The methods of our own service that look into a network, beyond its feature maps."""

from __future__ import annotations

from functools import partial

from convlens.v1 import convlens_pb2 as pb
from convlens_server.aside import Aside
from convlens_server.attribution.answering import Attribution
from convlens_server.compare import Comparison
from convlens_server.drawing import get_graph
from convlens_server.explain import explain_unit
from convlens_server.kernels import get_kernels
from convlens_server.maps import FeatureMaps
from convlens_server.maximizing.answering import MaximizingImages
from convlens_server.samples import get_samples
from convlens_server.transport.base import Method

_SERVICE = pb.DESCRIPTOR.services_by_name["ConvLens"].full_name


def lens_methods(
    quick: Aside, slow: Aside, feature_maps: FeatureMaps, maximizing: MaximizingImages
) -> tuple[Method, ...]:
    """What a transport has to serve.

    Args:
        quick: For what takes milliseconds.
        slow: For what may run a network many times.
        feature_maps: Bounds the bytes of maps and kernels that all callers together hold.
        maximizing: Searches datasets.
    """
    return (
        quick.method(_path("GetSamples"), pb.GetSamplesRequest, get_samples),
        quick.method(_path("GetGraph"), pb.GetGraphRequest, get_graph),
        quick.method(_path("GetKernels"), pb.GetKernelsRequest, partial(get_kernels, feature_maps), streams=True),
        quick.method(_path("ExplainUnit"), pb.ExplainUnitRequest, partial(explain_unit, quick)),
        slow.method(_path("Attribute"), pb.AttributeRequest, Attribution(slow).answer),
        slow.method(
            _path("Compare"),
            pb.CompareRequest,
            Comparison(slow, feature_maps).answer,
            streams=True,
            model_of=lambda request: request.first,
        ),
        maximizing.aside.method(_path("MaximizingImages"), pb.MaximizingImagesRequest, maximizing.answer, streams=True),
    )


def _path(method: str) -> str:
    return f"/{_SERVICE}/{method}"

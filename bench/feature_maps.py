"""What feature maps cost: the first block of a torchvision ResNet-18 beside its whole forward pass.

Run by serving.py in processes of its own; torch is imported only in the one that makes the network.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from answers import AnswerError, open_channel
from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from convlens_server.catalogue import build_catalogue
from convlens_server.cgroup import default_threads
from convlens_server.device import Device, make_session
from convlens_server.lens import Lens
from convlens_server.network import load_network
from in_process import sample_images

MODEL = "resnet18"
_SIZE = 224
# The first residual block ends with this layer.
_BLOCK = "layer1.0."


def export(models: Path) -> list[str]:
    """Puts a ResNet-18 with random weights into a model repository.

    Returns:
        The names that its layers should have: its modules as often as they are called, and the additions of its eight
        blocks. Batch normalisation is not among them: torch's exporter folds it into the convolutions.
    """
    import logging
    import warnings

    import torch
    import torchvision

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    calls: dict[str, int] = {}
    for name, module in network.named_modules():
        if not list(module.children()) and not isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    example = torch.randn(2, 3, _SIZE, _SIZE)
    network(example)
    expected = [name if n == 0 else f"{name}_{n}" for name, count in calls.items() for n in range(count)]
    blocks = [name for name, module in network.named_modules() if type(module).__name__ == "BasicBlock"]

    program = torch.onnx.export(
        network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False
    )
    assert program is not None
    path = models / MODEL / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(program.model_proto, path)
    return [*expected, *(f"{name}.add" for name in blocks), "flatten", "softmax"]


def measure(path: Path, seconds: float) -> dict[str, Any]:
    """Median times of one image's forward pass, of all layers of its first block, and of that block's output alone."""
    network = load_network(path)
    catalogue = build_catalogue(network)
    names = [layer.name for layer in catalogue.layers]
    end = max(n for n, name in enumerate(names) if name.startswith(_BLOCK)) + 1

    def session(content: bytes) -> Any:
        return make_session(content, Device("cpu"), default_threads())

    lens = Lens(network, catalogue, session)
    whole = session(network.model.SerializeToString())
    images = sample_images((_SIZE, _SIZE, 3), 1)
    outputs = [network.scores_name, network.logits_name]
    forward, block, output = _medians(
        seconds,
        lambda: whole.run(outputs, {network.input_name: images}),
        lambda: lens.maps(images, catalogue.layers[:end]),
        lambda: lens.maps(images, catalogue.layers[end - 1 : end]),
    )
    return {
        "layers": names,
        "first_block": names[:end],
        "forward_ms": forward,
        "first_block_ms": block,
        "first_block_output_ms": output,
    }


def measure_served(port: int, layers: list[str], seconds: float) -> dict[str, float]:
    """The same from a server: median times of Classify and GetFeatureMaps over gRPC.

    Args:
        port: The server's.
        layers: Of the first block.
        seconds: For all together.

    Raises:
        AnswerError: It answers other layers.
    """
    pixels = sample_images((_SIZE, _SIZE, 3), 1).tobytes()
    images = pb.Images(raw=pb.RawImages(pixels=pixels, height=_SIZE, width=_SIZE, channels=3))
    with open_channel(port) as channel:
        stub = convlens_pb2_grpc.ConvLensStub(channel)
        classify = pb.ClassifyRequest(model=MODEL, images=images, top_k=1)
        block = pb.GetFeatureMapsRequest(model=MODEL, images=images, layers=layers)
        output = pb.GetFeatureMapsRequest(model=MODEL, images=images, layers=layers[-1:])
        answered = {chunk.layer for chunk in stub.GetFeatureMaps(block, timeout=60)}
        if answered != set(layers):
            raise AnswerError(f"the server was asked for layers {layers}, but answers {sorted(answered)}")
        whole, first, last = _medians(
            seconds,
            lambda: stub.Classify(classify, timeout=60),
            lambda: list(stub.GetFeatureMaps(block, timeout=60)),
            lambda: list(stub.GetFeatureMaps(output, timeout=60)),
        )
    return {"classify_ms": whole, "first_block_ms": first, "first_block_output_ms": last}


def _medians(seconds: float, *calls: Callable[[], object]) -> list[float]:
    """Median milliseconds of each call; they take turns, so that what disturbs one disturbs all."""
    for call in calls * 2:
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times[0]:
        for call, own in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            own.append((time.perf_counter() - began) * 1000)
    return [statistics.median(own) for own in times]


if __name__ == "__main__":
    what, place, *rest = sys.argv[1:]
    print(json.dumps(export(Path(place)) if what == "export" else measure(Path(place), float(rest[0]))))

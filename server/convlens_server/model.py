"""One version of a model, loaded and warm: its engine, its queue, its lens and its metrics."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from convlens.v1 import convlens_pb2 as pb
from convlens_server.answers import Answers
from convlens_server.batcher import Batcher
from convlens_server.catalogue import Layer, build_catalogue
from convlens_server.classify import ClassifyItem, Responder
from convlens_server.device import make_session
from convlens_server.engine import Engine, EngineThreads
from convlens_server.lens import Lens
from convlens_server.metrics import ModelMetrics
from convlens_server.network import load_network
from convlens_server.settings import EngineSettings


class Model:
    """A version that answers. Made by reading, checking, building and warming; what fails raises.

    Args:
        name: In the repository.
        version: Positive.
        path: The ONNX file.
        precision: Of the file; None leaves what its manifest says.
        settings: How it runs.

    Attributes:
        name: As given.
        version: As given.
        device: Where it runs, "cpu" or "cuda:<index>".
        manifest: What the file says of itself, or what was derived for it; its precision is that of what answers.
        shape: Height, width and channels of the image it takes.
        classes: Number of classes.
        catalogue: Its layers.
        lens: Computes its feature maps.
        batcher: Takes its classifications.
        metrics: Counts them.

    Raises:
        ModelError: The file cannot be served.
    """

    def __init__(self, name: str, version: int, path: Path, precision: str | None, settings: EngineSettings) -> None:
        network = load_network(path)
        image = network.manifest.input
        self.name = name
        self.version = version
        self.device = str(settings.device)
        self.manifest = replace(network.manifest, precision=precision or network.manifest.precision)
        self.shape = (image.height, image.width, image.channels)
        self.classes = network.classes
        self.catalogue = build_catalogue(network)
        self.lens = Lens(network, self.catalogue, lambda part: make_session(part, settings.device, settings.threads))
        max_batch, buckets = _batch_sizes(network.fixed_batch, settings)
        content = network.model.SerializeToString()

        def make_engine(threads: int) -> Engine:
            session = make_session(content, settings.device, threads)
            outputs = (network.scores_name, network.logits_name)
            engine = Engine(session, network.input_name, outputs, self.shape, max_batch, buckets)
            engine.warm()
            return engine

        # Runs of one thread use the cores best, where a queue fills them all; a batch that runs alone is done sooner by
        # all cores. A CUDA device runs one batch after another.
        cores = settings.threads if settings.device.kind == "cpu" else 1
        engine = make_engine(1)
        alone = make_engine(cores) if cores > 1 else None
        self.batcher: Batcher[ClassifyItem] = Batcher(
            max_batch, settings.max_queue, settings.max_queue_delay, help_from=2 * max_batch
        )
        self.metrics = ModelMetrics(name, str(version), lambda: self.batcher.waiting)
        responder = Responder(Answers(name, version, network.manifest.labels), self.metrics)
        self._engines = EngineThreads(f"{name}:{version}", engine, self.batcher, responder, cores, alone)

    def close(self) -> None:
        """Answers what is in the queue, refuses the rest, and ends the engines' threads."""
        self.batcher.close()
        self._engines.join()

    @cached_property
    def layer_messages(self) -> tuple[pb.Layer, ...]:
        """The catalogue as messages."""
        fields = [field.name for field in pb.Layer.DESCRIPTOR.fields]
        return tuple(_message(layer, fields) for layer in self.catalogue.layers)


def _message(layer: Layer, fields: list[str]) -> pb.Layer:
    return pb.Layer(**{name: getattr(layer, name) for name in fields})


def _batch_sizes(fixed: int | None, settings: EngineSettings) -> tuple[int, tuple[int, ...]]:
    """The most images of a batch, and the sizes that batches are padded to."""
    if fixed is not None:
        return fixed, (fixed,)
    if settings.device.kind == "cpu":
        return settings.max_batch, ()
    powers = tuple(1 << n for n in range(settings.max_batch.bit_length()) if 1 << n < settings.max_batch)
    return settings.max_batch, (*powers, settings.max_batch)

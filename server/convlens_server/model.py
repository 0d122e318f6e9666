"""One version of a model, loaded and warm: its engine, its queue, its lens and its metrics."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from convlens.v1 import convlens_pb2 as pb
from convlens_server.answers import Answers
from convlens_server.attribution.gradient import Gradients
from convlens_server.batcher import Batcher
from convlens_server.catalogue import Layer, build_catalogue
from convlens_server.device import Device, make_session
from convlens_server.engine import Engine, Engines, EngineThreads
from convlens_server.errors import ModelError
from convlens_server.items import RequestItem, Responder
from convlens_server.lens import Lens
from convlens_server.metrics import Metrics
from convlens_server.network import Network, load_network
from convlens_server.pool import BoundedPool
from convlens_server.samples import Sample
from convlens_server.settings import ModelSettings
from convlens_server.v2 import model_config_pb2


class TensorPath(NamedTuple):
    """What takes a network's own float tensors, past the preprocessing.

    Attributes:
        engines: The batch key of such items.
        lens: Computes feature maps of them.
    """

    engines: Engines
    lens: Lens


class Model:
    """A version that answers. Made by reading, checking, building and warming; what fails raises.

    Args:
        name: In the repository.
        version: Positive.
        path: The ONNX file.
        precision: Of the file; None leaves what its manifest says.
        threads: Cores to use on the CPU: batches that run at the same time, or threads of one that runs alone.
        settings: How it runs.
        metrics: Of the server.
        labels: By class index; None leaves the manifest's.
        config: Its config.pbtxt; None if it has none.
        samples: Images to try it with.

    Attributes:
        name: As given.
        version: As given.
        folder: Of its files.
        network: As it was read from the file.
        device: Where it runs, "cpu" or "cuda:<index>".
        manifest: What the file says of itself, or what was derived for it; its precision is that of what answers.
        shape: Height, width and channels of the image it takes.
        classes: Number of classes.
        catalogue: Its layers.
        lens: Computes its feature maps.
        batcher: Takes its classifications.
        metrics: Counts them.
        settings: As given.
        config: As given.
        samples: As given.
        used: When a request last asked for it, seconds of `time.monotonic()`.

    Raises:
        ModelError: The file cannot be served.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: Path,
        precision: str | None,
        threads: int,
        settings: ModelSettings,
        metrics: Metrics,
        labels: tuple[str, ...] | None = None,
        config: model_config_pb2.ModelConfig | None = None,
        samples: tuple[Sample, ...] = (),
    ) -> None:
        network = load_network(path)
        if labels is not None and len(labels) != network.classes:
            raise ModelError(f"config.pbtxt names {len(labels)} labels, but the model has {network.classes} classes")
        image = network.manifest.input
        self.name = name
        self.version = version
        self.folder = path.parent
        self.network = network
        self.device = str(settings.device)
        self.manifest = replace(
            network.manifest,
            precision=precision or network.manifest.precision,
            labels=network.manifest.labels if labels is None else labels,
        )
        self.shape = (image.height, image.width, image.channels)
        self.classes = network.classes
        self.catalogue = build_catalogue(network)
        self.settings = settings
        self.config = config
        self.samples = samples
        self.used = 0.0
        self._threads = threads
        self._tensors: TensorPath | None = None
        self._tensors_lock = threading.Lock()
        self.lens = self._make_lens(network)
        max_batch, _ = _batch_sizes(network.fixed_batch, settings)
        engines = self._make_engines(network)
        further = [self._make_engines(network).beside for _ in range(settings.instances - 1)]
        cores = threads if settings.device.kind == "cpu" and not settings.instances else 1
        batcher: Batcher[RequestItem] = Batcher(
            max_batch,
            settings.queue,
            settings.queue_delay,
            help_from=2 * max_batch,
            preferred=settings.preferred,
            levels=settings.levels,
            default_level=settings.default_level,
        )
        self.batcher = batcher
        self.metrics = metrics.of(name, str(version))
        responder = Responder(Answers(name, version, self.manifest.labels), self.metrics)
        self._engines = EngineThreads(f"{name}:{version}", engines, batcher, responder, cores, further)
        # Nothing that outlives a model may keep it: this is all that the metrics keep of it.
        self._waiting = (lambda: batcher.waiting), (lambda: batcher.waiting_items)
        self.metrics.waiting, self.metrics.waiting_requests = self._waiting

    def close(self) -> None:
        """Answers what is in the queue, refuses the rest, and ends the engines' threads."""
        self.batcher.close()
        self._engines.join()

    def retire(self, pool: BoundedPool) -> None:
        """Answers what is in the queue, and ends the engines' threads.

        What has got the model before may still submit to it: that is answered from the pool, one by one.
        """
        late = self._engines.late()
        self.batcher.close(lambda item: pool.submit(lambda: late(item), len(item.pixels)))
        self._engines.join()
        if self.metrics.waiting is self._waiting[0]:
            # No other model has come in its place.
            self.metrics.waiting = self.metrics.waiting_requests = _nothing

    @property
    def tensors_if_built(self) -> TensorPath | None:
        """What `tensors` gives, if somebody has asked before."""
        return self._tensors

    def tensors(self) -> TensorPath:
        """What takes the network's own tensors, where those are no images. Built and warmed by the first who asks.

        Not at once: it has the weights a second time, and a model that is only asked by images does without.

        Raises:
            ModelError: `make_session` refuses the network.
        """
        with self._tensors_lock:
            if self._tensors is None:
                network = self.network.for_tensors()
                self._tensors = TensorPath(self._make_engines(network), self._make_lens(network))
            return self._tensors

    def _make_lens(self, network: Network) -> Lens:
        device, threads = self.settings.device, self._threads
        return Lens(network, self.catalogue, lambda part: make_session(part, device, threads))

    def _make_engines(self, network: Network) -> Engines:
        settings = self.settings
        max_batch, buckets = _batch_sizes(network.fixed_batch, settings)
        content = network.model.SerializeToString()

        def make(threads: int) -> Engine:
            session = make_session(content, settings.device, threads)
            outputs = (network.scores_name, network.logits_name)
            engine = Engine(session, network.input_name, outputs, *network.input_form, max_batch, buckets)
            engine.warm()
            return engine

        if settings.device.kind == "cpu" and settings.instances:
            # The instances share the cores.
            engine = make(max(1, self._threads // settings.instances))
            return Engines(engine, engine)
        # Runs of one thread use the cores best, where a queue fills them all; a batch that runs alone is done sooner by
        # all cores. A CUDA device runs one batch after another.
        beside = make(1)
        return Engines(beside, make(self._threads) if settings.device.kind == "cpu" and self._threads > 1 else beside)

    @cached_property
    def gradients(self) -> Gradients:
        """Computes gradients within the network.

        On the CPU wherever the network runs: it is one image, and the gradient's operators need not exist elsewhere.
        """
        device, threads = Device("cpu"), self._threads
        return Gradients(self.network, self.catalogue, lambda part: make_session(part, device, threads))

    @cached_property
    def fingerprint(self) -> str:
        """Another one for another network: what was computed with one of the same is still right."""
        return hashlib.sha256(self.network.model.SerializeToString(deterministic=True)).hexdigest()[:32]

    @cached_property
    def layer_messages(self) -> tuple[pb.Layer, ...]:
        """The catalogue as messages."""
        fields = [field.name for field in pb.Layer.DESCRIPTOR.fields]
        return tuple(_message(layer, fields) for layer in self.catalogue.layers)


def _message(layer: Layer, fields: list[str]) -> pb.Layer:
    return pb.Layer(**{name: getattr(layer, name) for name in fields})


def _nothing() -> int:
    return 0


def _batch_sizes(fixed: int | None, settings: ModelSettings) -> tuple[int, tuple[int, ...]]:
    """The most images of a batch, and the sizes that batches are padded to."""
    if fixed is not None:
        return fixed, (fixed,)
    if settings.device.kind == "cpu":
        return settings.max_batch, ()
    if settings.preferred:
        # One image alone has a size of its own, as in any other case.
        return settings.max_batch, tuple(sorted({1, *settings.preferred, settings.max_batch}))
    powers = tuple(1 << n for n in range(settings.max_batch.bit_length()) if 1 << n < settings.max_batch)
    return settings.max_batch, (*powers, settings.max_batch)

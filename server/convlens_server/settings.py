"""What the parts of the server are told by its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from convlens_server.device import Device

# By kind of device, unless the configuration says another. On the CPU larger batches compute no faster, and what waits
# for them idles the transport.
MAX_BATCH = {"cpu": 16, "cuda": 128}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How models run.

    Attributes:
        device: Where.
        precision: Of the files that are taken where a version has them; other versions run as float32.
        threads: Cores to use on the CPU: batches that run at the same time, or threads of one that runs alone.
        max_batch: Most images of a batch.
        max_queue: Most images that wait for one version of a model.
        max_queue_delay: Seconds that an incomplete batch may wait for more images; 0 never waits.
    """

    device: Device
    precision: str
    threads: int
    max_batch: int
    max_queue: int
    max_queue_delay: float


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How requests wait for their batch.

    Attributes:
        max_queue: Most images that wait.
        max_wait: Seconds that a request may wait; 0: as long as its own deadline.
        shorter_waits: Whether a request may name a shorter wait.
        delays: Whether one that has waited so long is taken after those that have not, instead of being refused.
    """

    max_queue: int = 4096
    max_wait: float = 0.0
    shorter_waits: bool = True
    delays: bool = False


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How one model runs: as its config.pbtxt says, else as the server's configuration does.

    Attributes:
        device: Where.
        max_batch: Most images of a batch.
        preferred: Sizes that batches are padded to on CUDA, and at which a batch does not wait for more; ascending.
        queue_delay: Seconds that an incomplete batch may wait for more images; 0 never waits.
        queue: How requests wait.
        levels: How those of each priority level wait, the first being level 1; empty: all requests are alike.
        default_level: Of requests that name none, 1 … the number of levels.
        instances: Engines that run batches beside each other; 0: as many threads of one as suit the device.
    """

    device: Device
    max_batch: int
    preferred: tuple[int, ...] = ()
    queue_delay: float = 0.0
    queue: QueuePolicy = QueuePolicy()
    levels: tuple[QueuePolicy, ...] = ()
    default_level: int = 1
    instances: int = 0


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may ask for.

    Attributes:
        images: Most images of a classification.
        feature_map_images: Most images of a feature-map request.
        feature_map_bytes: Most bytes of float32 feature maps computed for one request.
        pixels: Most height × width of an image file.
    """

    images: int = 256
    feature_map_images: int = 16
    feature_map_bytes: int = 256 * 2**20
    pixels: int = 50_000_000

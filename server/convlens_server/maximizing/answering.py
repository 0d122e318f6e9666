"""MaximizingImages: has a ranking computed once, tells how far that is, and answers from it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from convlens.v1 import convlens_pb2 as pb
from convlens_server.aside import Aside
from convlens_server.catalogue import Layer
from convlens_server.codec import decode, encode_png
from convlens_server.errors import Cancelled, DeadlineExceeded, InvalidImage, InvalidRequest
from convlens_server.lens import check_channels
from convlens_server.maximizing.datasets import Dataset, dataset_of
from convlens_server.maximizing.jobs import Jobs, Progress, Report
from convlens_server.maximizing.keeping import Keeping
from convlens_server.maximizing.ranking import MOST, Best, Ranking
from convlens_server.model import Model
from convlens_server.receptive_field import ReceptiveFields
from convlens_server.transport.base import Call

_DEFAULT_COUNT = 9
# Most bytes of a layer's maps that are in memory at a time.
_MAP_BYTES = 64 * 2**20
# Most encoded images that are remembered while one request is answered: channels share them.
_REMEMBERED = 256


class MaximizingImages:
    """Answers MaximizingImages.

    Args:
        aside: Makes the method; its threads only wait for the one that computes.
        folders: Names and places of the server's datasets.
        cache: Folder for what cannot be kept beside a model.

    Attributes:
        aside: As given.
    """

    def __init__(self, aside: Aside, folders: Sequence[tuple[str, Path]], cache: Path) -> None:
        self.aside = aside
        self._folders = tuple(folders)
        self._keeping = Keeping(cache)
        self._jobs: Jobs[Ranking] = Jobs()

    def close(self) -> None:
        """Stops what is computed."""
        self._jobs.close()

    def answer(
        self, model: Model, request: pb.MaximizingImagesRequest, call: Call
    ) -> Iterator[pb.MaximizingImagesResponse]:
        """The progress, then the channels."""
        layer = model.lens.layer(request.layer)
        count = request.count if request.HasField("count") else _DEFAULT_COUNT
        if not 1 <= count <= MOST:
            raise InvalidRequest(
                f"count is {count}, but must be 1 … {MOST}",
                reason="COUNT_OUT_OF_RANGE",
                field="count",
                metadata={"count": count, "limit": MOST},
            )
        size = layer.shape[0] if layer.shape else 1
        channels = check_channels(request.channels, layer.name, size) or range(size)
        dataset = dataset_of(request.dataset, model, self._folders)
        message = functools.partial(
            pb.MaximizingImagesResponse,
            model=model.name,
            version=model.version,
            layer=layer.name,
            dataset=dataset.name,
        )
        for step in self._ranking(model, layer, dataset, call):
            if isinstance(step, Progress):
                yield message(progress=pb.MaximizingProgress(**step._asdict()))
                continue
            picture = self._pictures(model, dataset) if request.include_images else None
            for channel in channels:
                images = list(_images(step, layer, model.catalogue.anatomy.fields, channel, count, picture))
                yield message(channel=pb.MaximizingChannel(channel=channel, images=images))

    def _ranking(self, model: Model, layer: Layer, dataset: Dataset, call: Call) -> Iterator[Progress | Ranking]:
        kept = self._keeping.read(model, layer, dataset)
        if kept is not None:
            yield Progress(kept.total, kept.total, kept.skipped)
            yield kept
            return
        key = (model.name, model.version, model.fingerprint, layer.name, dataset.name, dataset.stamp)
        yield from self._jobs.follow(
            key, functools.partial(self._compute, model, layer, dataset), functools.partial(_check, call)
        )

    def _compute(self, model: Model, layer: Layer, dataset: Dataset, report: Report) -> Ranking:
        # Another caller's computation may have ended in between.
        if (kept := self._keeping.read(model, layer, dataset)) is not None:
            return kept
        files = dataset.files
        report(Progress(0, len(files), 0))
        best = Best(layer.shape)
        skipped = 0
        step = max(1, min(model.batcher.max_batch, _MAP_BYTES // (4 * math.prod(layer.shape))))
        for start in range(0, len(files), step):
            images, numbers = [], []
            for number in range(start, min(start + step, len(files))):
                try:
                    file = dataset.read(files[number])
                    images.append(decode(file, model.shape, self.aside.limits.pixels))
                    numbers.append(number)
                except (OSError, InvalidImage):
                    skipped += 1
            if images:
                pixels = np.frombuffer(b"".join(images), np.uint8).reshape(-1, *model.shape)
                best.add(model.lens.maps(pixels, [layer])[0], numbers)
            report(Progress(min(start + step, len(files)), len(files), skipped))
        ranking = best.ranking(files, skipped)
        self._keeping.write(model, layer, dataset, ranking)
        return ranking

    def _pictures(self, model: Model, dataset: Dataset) -> Callable[[str], bytes]:
        """Gives the images as the model takes them, as PNG; nothing for one that has become unreadable meanwhile."""

        @functools.lru_cache(_REMEMBERED)
        def picture(file: str) -> bytes:
            try:
                return encode_png(decode(dataset.read(file), model.shape, self.aside.limits.pixels), model.shape)
            except (OSError, InvalidImage):
                return b""

        return picture


def _images(
    ranking: Ranking,
    layer: Layer,
    fields: ReceptiveFields,
    channel: int,
    count: int,
    picture: Callable[[str], bytes] | None,
) -> Iterator[pb.MaximizingImage]:
    for index, activation, row, column in zip(
        ranking.index[channel, :count].tolist(),
        ranking.activation[channel].tolist(),
        ranking.row[channel].tolist(),
        ranking.column[channel].tolist(),
        strict=False,
    ):
        if index < 0:
            return
        file = ranking.files[index]
        yield pb.MaximizingImage(
            file=file,
            activation=activation,
            row=row,
            column=column,
            receptive_field=fields.region(layer.tensor, row, column),
            image=picture(file) if picture else b"",
        )


def _check(call: Call) -> None:
    """Whether the caller still waits."""
    if call.cancelled:
        raise Cancelled("the caller left before the images were all computed; nothing is kept unless others wait")
    if time.monotonic() >= call.deadline:
        raise DeadlineExceeded(
            "deadline passed before the images were all computed: allow more time, or ask without a deadline"
        )

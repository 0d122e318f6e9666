"""The images that stand beside a version, for people to try it with: <model>/<version>/samples/*.png, .jpg or .webp."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convlens.v1 import convlens_pb2 as pb
from convlens_server.codec import ENDINGS, format_of

if TYPE_CHECKING:
    from convlens_server.model import Model
    from convlens_server.transport.base import Call

log = logging.getLogger(__name__)

FOLDER = "samples"
MOST = 64
# Together they go in one message: a caller's own limit is 4 MiB unless it sets another.
MOST_BYTES = 3 * 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to try a model with.

    Attributes:
        name: The file's name without its ending; unique among a version's samples.
        file: JPEG, PNG or WebP.
    """

    name: str
    file: bytes


def read_samples(version: Path) -> tuple[Sample, ...]:
    """The samples of a version, by name; none where it has no such folder.

    Read together with the model, and like every file of a version part of its stamp: others come with the next load.
    What cannot be given is left out, with a warning: unreadable files, those that are no images, a second file of a
    name, and what is over MOST in number or MOST_BYTES together.

    Args:
        version: The version's folder.
    """
    folder = version / FOLDER
    if not folder.is_dir():
        return ()
    samples: dict[str, Sample] = {}
    size = 0
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.name[0] != "."):
        try:
            with path.open("rb") as file:
                # What is larger than all may be together need not be in memory.
                content = file.read(MOST_BYTES + 1)
            path.stem.encode()
        except (OSError, UnicodeEncodeError) as error:
            _skipped(path, f"it cannot be read ({error})")
            continue
        if format_of(content) is None:
            _skipped(path, "it is not a JPEG, PNG or WebP file")
        elif path.stem in samples:
            _skipped(path, "another sample has its name")
        elif len(samples) == MOST:
            _skipped(path, f"there are {MOST} before it, and no more are served")
        elif size + len(content) > MOST_BYTES:
            _skipped(path, f"with it the samples are over the limit of {MOST_BYTES} bytes")
        else:
            samples[path.stem] = Sample(path.stem, content)
            size += len(content)
    return tuple(samples.values())


def get_samples(model: Model, request: pb.GetSamplesRequest, call: Call) -> Iterator[pb.GetSamplesResponse]:
    """Answers GetSamples."""
    samples = [pb.Sample(name=sample.name, file=sample.file) for sample in model.samples]
    yield pb.GetSamplesResponse(samples=samples, model=model.name, version=model.version)


def _skipped(path: Path, reason: str) -> None:
    # The folder's place is the operator's: model and version are in it.
    log.warning("sample %a is left out: %s", str(path), reason)

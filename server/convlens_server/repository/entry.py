"""One model of the repository as the server knows it, and what is to be done to bring it up to date."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from convlens_server.model import Model
from convlens_server.repository.model_config import ModelOptions
from convlens_server.repository.store import Found

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"
# The error of a version that was unloaded by request.
UNLOADED = "unloaded"

# What failed and may succeed later is tried again after this time: on demand by the first request, not by each.
_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Version:
    """One version in the repository.

    Attributes:
        name: Of the model.
        number: Positive; 0 stands for a model of which no version can be served.
        model: The loaded model; None if there is none in memory.
        state: READY, LOADING, UNLOADING or UNAVAILABLE. A version that is loaded on demand is READY without a model.
        error: Why it does not answer, or why what answers is not what stands in the repository; else empty.
        is_default: Whether a request that names no version gets this one.
    """

    name: str
    number: int
    model: Model | None
    state: str
    error: str
    is_default: bool


@dataclass
class Slot:
    """A version of an entry. Changed only under the repository's lock.

    Attributes:
        model: What answers; None if it is not in memory.
        stamp: Of the files that it was made of.
        error: Why it is not there, or not as new as its files.
        loading: Whether it is being loaded.
        on_demand: Whether a request may have it loaded.
        failed: When loading it failed, seconds of `time.monotonic()`.
        passing: Whether that was for a reason that passes.
    """

    model: Model | None = None
    stamp: str = ""
    error: str = ""
    loading: bool = False
    on_demand: bool = False
    failed: float = -_RETRY_SECONDS
    passing: bool = False

    @property
    def loadable(self) -> bool:
        """Whether the next request has it loaded."""
        return self.on_demand and (not self.error or self._rested)

    @property
    def due(self) -> bool:
        """Whether loading it failed for a reason that may have passed by now."""
        return bool(self.error) and self.passing and self._rested

    @property
    def _rested(self) -> bool:
        return time.monotonic() - self.failed >= _RETRY_SECONDS

    @property
    def answers(self) -> bool:
        """Whether requests are answered, at once or after loading."""
        return self.model is not None or (self.on_demand and not self.error)


@dataclass
class Entry:
    """A model of the repository.

    Attributes:
        name: Of its folder.
        change: Held by who changes it: one at a time.
        found: As it stood in the repository when it was last looked at.
        options: From its config.pbtxt; None before it was read.
        aliases: Versions by name.
        error: Why what stands in the repository now is not what is served; empty if it is.
        passing: Whether that is for a reason that passes.
        slots: By version: those that are served or should be.
        leaving: Versions that answer what they have before they go.
        unloaded: Whether it was unloaded by request.
    """

    name: str
    change: threading.RLock = field(default_factory=threading.RLock)
    found: Found | None = None
    options: ModelOptions | None = None
    aliases: dict[str, int] = field(default_factory=dict)
    error: str = ""
    passing: bool = False
    slots: dict[int, Slot] = field(default_factory=dict)
    leaving: set[int] = field(default_factory=set)
    unloaded: bool = False

    @property
    def default(self) -> int:
        """The highest version that answers; 0 if none does."""
        return max((number for number, slot in self.slots.items() if slot.answers), default=0)

    def answers(self, number: int) -> bool:
        """Whether requests for a version are answered, at once or after loading."""
        return number in self.slots and self.slots[number].answers

    @property
    def due(self) -> bool:
        """Whether there is a version to be tried again."""
        return any(slot.due for slot in list(self.slots.values()))

    def models(self) -> Iterable[tuple[int, Model]]:
        """What is in memory."""
        return [(number, slot.model) for number, slot in self.slots.items() if slot.model is not None]

    def versions(self) -> list[Version]:
        """Every version, ascending."""
        if self.unloaded:
            numbers = [*(self.found.stamps if self.found else ())] or [0]
            return [self._gone(number, UNLOADED) for number in numbers]
        if not self.slots:
            return [self._gone(0, self.error)]
        default = self.default
        return [
            Version(
                self.name,
                number,
                slot.model,
                READY if slot.answers else LOADING if slot.loading or not slot.error else UNAVAILABLE,
                slot.error or self.error,
                number == default,
            )
            for number, slot in sorted(self.slots.items())
        ] + [self._gone(number, UNLOADED) for number in sorted(self.leaving - self.slots.keys())]

    def _gone(self, number: int, error: str) -> Version:
        state = UNLOADING if number in self.leaving else UNAVAILABLE
        return Version(self.name, number, None, state, error, is_default=False)

"""What the repository holds: its models, and in one look-up the one that a request asks for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NoReturn

from convlens_server.errors import InvalidRequest, ModelNotReady, NotFound, NotLoaded, near, shown
from convlens_server.metrics import Metrics
from convlens_server.model import Model
from convlens_server.pool import BoundedPool
from convlens_server.repository.entry import LOADING, UNLOADED, UNLOADING, Entry, Slot, Version
from convlens_server.repository.loading import LoadError

log = logging.getLogger(__name__)


class Table:
    """The models by name and version. Thread-safe.

    Args:
        metrics: Told of versions that are there no more.

    Attributes:
        lock: Of the entries and their slots. Held for look-ups and swaps, never while a model is built or drained.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        # What requests get, by name and by number or alias; version 0 stands for the default, and no name for the only
        # model. Never changed, but replaced.
        self._ready: Mapping[tuple[str, int | str], Model] = MappingProxyType({})
        # Runs what was sent to a model just before it left.
        self._late = BoundedPool("a model that left", 1, max_waiting=4096)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        with self.lock:
            return tuple(self._known())

    @property
    def versions(self) -> tuple[Version, ...]:
        """Every version of every model, by name, then number."""
        with self.lock:
            return tuple(version for _, entry in sorted(self._known().items()) for version in entry.versions())

    @property
    def models(self) -> tuple[Model, ...]:
        """What is in memory."""
        with self.lock:
            return tuple(model for entry in self._entries.values() for _, model in entry.models())

    def resolve(self, name: str, version: int | str) -> Model:
        """`Repository.resolve`."""
        model = self._ready.get((name, version)) or self._find(name, version)
        model.used = time.monotonic()
        return model

    def get(self, name: str) -> Entry | None:
        """The entry of a model, if there is one."""
        with self.lock:
            return self._entries.get(name)

    def entry(self, name: str) -> Entry:
        """The entry of a model. The lock is held.

        Args:
            name: May be empty where there is only one.

        Raises:
            InvalidRequest: No name, and not one model.
            NotFound: No such model.
        """
        known = self._known()
        if not name:
            if len(known) == 1:
                return next(iter(known.values()))
            what = f"has several: {', '.join([*known][:12])}" if known else "has none"
            raise InvalidRequest(f"the request names no model, and the server {what}", reason="NO_MODEL", field="model")
        if name not in known:
            self.not_found(name)
        return known[name]

    @contextmanager
    def change(self, name: str) -> Iterator[Entry]:
        """Holds a model's entry, which is made if there is none and dropped if nothing comes of it."""
        while True:
            with self.lock:
                entry = self._entries.setdefault(name, Entry(name))
            with entry.change:
                if self.get(name) is not entry:
                    continue  # It was dropped while this waited for it.
                try:
                    yield entry
                finally:
                    with self.lock:
                        if entry.found is None:
                            del self._entries[name]
                        self.publish()
                return

    def publish(self) -> None:
        """Makes what the entries hold what requests get, in one step. The lock is held."""
        ready: dict[tuple[str, int | str], Model] = {}
        for name, entry in self._entries.items():
            default = entry.default
            for number, model in entry.models():
                ready[name, number] = model
                if number == default:
                    ready[name, 0] = model
            for alias, number in entry.aliases.items():
                if (name, number) in ready:
                    ready[name, alias] = ready[name, number]
        if len(self._known()) == 1:
            ready.update({("", version): model for (_, version), model in list(ready.items())})
        self._ready = ready

    def swap(
        self,
        entry: Entry,
        slots: Mapping[int, Slot],
        new: Mapping[int, tuple[Model, str]],
        failed: Mapping[int, LoadError] = MappingProxyType({}),
        aliases: Mapping[str, int] | None = None,
    ) -> None:
        """Puts slots in the place of an entry's, and new models into them; returns when what they replace has gone.

        Args:
            entry: Held by the caller.
            slots: By version.
            new: Models with their stamps, for some of the slots.
            failed: Why others of them have no new model.
            aliases: From now on; None leaves them.
        """
        with self.lock:
            leaving = {number: model for number, model in entry.models() if number not in slots or number in new}
            gone = entry.slots.keys() - slots.keys()
            entry.slots = dict(slots)
            for number, (model, stamp) in new.items():
                slot = entry.slots[number]
                slot.model, slot.stamp, slot.error = model, stamp, ""
            for number, error in failed.items():
                slot = entry.slots[number]
                slot.error, slot.passing, slot.failed = str(error), error.passing, time.monotonic()
            if aliases is not None:
                entry.aliases = dict(aliases)
            entry.leaving |= leaving.keys()
            self.publish()
        for model in leaving.values():
            model.retire(self._late)
        with self.lock:
            entry.leaving -= leaving.keys()
        for number in gone:
            self._metrics.forget(entry.name, str(number))

    def make_room(self, limit: int, entry: Entry, number: int) -> None:
        """Drops what was not asked for longest until one more than a version's own model has room below a limit."""
        while True:
            with self.lock:
                loaded = [
                    (model.used, other, found)
                    for other in self._entries.values()
                    for found, model in other.models()
                    if other is not entry or found != number
                ]
                if not loaded or len(loaded) < limit:
                    return
                _, other, found = min(loaded, key=lambda each: each[0])
                slot = other.slots[found]
                model, slot.model = slot.model, None
                self.publish()
            assert model is not None
            log.info("version %d of model %s leaves the memory", found, other.name)
            model.retire(self._late)
            del model

    def close(self) -> None:
        """Lets every engine answer what it has, and ends it."""
        for model in self.models:
            model.close()
        self._late.close()

    def _known(self) -> dict[str, Entry]:
        """The entries of what stands in the repository; another may be there that is just looked for."""
        return {name: entry for name, entry in self._entries.items() if entry.found is not None}

    def not_found(self, name: str) -> NoReturn:
        """Raises NotFound for a model."""
        raise NotFound(
            f"model {shown(name)!r} is not in the repository{near(shown(name), self._known())}",
            reason="MODEL_NOT_FOUND",
            field="model",
            metadata={"model": shown(name)},
        )

    def number(self, name: str, version: int | str) -> int:
        """`Repository.version_number`."""
        if isinstance(version, int):
            return version
        with self.lock:
            return _number(self.entry(name), version)

    def _find(self, name: str, version: int | str) -> Model:
        """What the one look-up did not give: mostly an error."""
        with self.lock:
            entry = self.entry(name)
            name = entry.name
            number = _number(entry, version)
            if number < 0:
                raise InvalidRequest(
                    f"version is {number}, but must be positive, or 0 for the default",
                    reason="VERSION_OUT_OF_RANGE",
                    field="version",
                    metadata={"version": number},
                )
            asked = number or entry.default or max((n for n, slot in entry.slots.items() if slot.loadable), default=0)
            slot = entry.slots.get(asked)
            if slot is not None and slot.model is not None:
                return slot.model
            if slot is not None and slot.loadable:
                raise NotLoaded(
                    f"version {asked} of model {name!r} is not loaded yet",
                    field="model",
                    metadata={"model": name, "version": asked},
                )
            versions = entry.versions()
        for each in versions:
            if number in (each.number, 0) or each.number == 0:
                failed = each if number else versions[-1]
                raise ModelNotReady(_why_not(failed), field="model", metadata={"model": name, "version": failed.number})
        return no_version(name, number, [each.number for each in versions])


def _number(entry: Entry, version: int | str) -> int:
    """The version that an alias of a model names. Raises InvalidRequest."""
    if isinstance(version, int):
        return version
    if version not in entry.aliases:
        raise InvalidRequest(
            f"failed to get model version from specified version string {shown(version)!r} (should be an integral "
            f"value > 0, or an alias){near(shown(version), entry.aliases)}",
            reason="VERSION_NOT_A_NUMBER",
            field="version",
            metadata={"version": shown(version)},
        )
    return entry.aliases[version]


def no_version(name: str, number: int, versions: list[int]) -> NoReturn:
    """Raises NotFound for a version of a model that has others."""
    raise NotFound(
        f"model {name!r} has no version {number} (there are {', '.join(map(str, versions)) or 'none'})",
        reason="VERSION_NOT_FOUND",
        field="version",
        metadata={"model": name, "version": number},
    )


def _why_not(version: Version) -> str:
    of = f"version {version.number} of model {version.name!r}" if version.number else f"model {version.name!r}"
    if version.state == LOADING:
        return f"{of} is being loaded: try again later"
    if version.state == UNLOADING or version.error == UNLOADED:
        return f"{of} was unloaded"
    return f"{of} could not be loaded: {version.error}"

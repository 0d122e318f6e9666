"""Brings what is served of a model up to date with what stands in the repository."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from functools import partial

from convlens_server.errors import ModelError
from convlens_server.metrics import Metrics
from convlens_server.model import Model
from convlens_server.repository import aliases
from convlens_server.repository.entry import Entry, Slot
from convlens_server.repository.loading import Loader, LoadError
from convlens_server.repository.model_config import ModelOptions, read_options
from convlens_server.repository.store import Found, RepositoryError, Store
from convlens_server.repository.table import Table
from convlens_server.settings import EngineSettings

log = logging.getLogger(__name__)


class Updater:
    """Loads what a model should be served from, and has the table hold it.

    Args:
        store: Of the files.
        settings: How the models run.
        metrics: Of the server.
        table: Holds what is served.
        lazy: Whether versions are loaded on demand.
        max_loaded: Most versions in memory; 0: any number.
    """

    def __init__(
        self, store: Store, settings: EngineSettings, metrics: Metrics, table: Table, lazy: bool, max_loaded: int
    ) -> None:
        self._store = store
        self._settings = settings
        self._loader = Loader(store, settings, metrics)
        self._table = table
        self._lazy = lazy
        self._max_loaded = max_loaded
        # One model is built at a time: building takes all cores, and so the bound on what is loaded is exact.
        self._building = threading.Lock()

    def update(self, entry: Entry, found: Found, now: bool, also: Collection[int] = (), only_due: bool = False) -> None:
        """Brings a model up to date with what stands in the repository; what fails is noted in it.

        Args:
            entry: Held by the caller.
            found: What stands there.
            now: Whether to load what is not in memory; what is there, and has changed, is loaded anew in any case.
            also: Versions to serve, whatever the policy and the aliases say.
            only_due: Whether nothing has changed, and only what failed for a passing reason is tried again.
        """
        name = entry.name
        try:
            options, names = self._read(entry, found)
        except (ModelError, RepositoryError) as error:
            log.error("model %s cannot be served as it stands in the repository: %s", name, error)
            with self._table.lock:
                entry.found, entry.error, entry.unloaded = found, str(error), False
                entry.passing = isinstance(error, RepositoryError)
                for number in found.stamps:
                    entry.slots.setdefault(number, Slot(error=str(error)))
            return
        wanted = options.policy.choose(found.stamps) | set(names.values()) | set(also)
        with self._table.lock:
            # Files beside the versions hold for all of them.
            same = entry.found is not None and entry.found.stamp == found.stamp and not entry.error
            entry.found, entry.error, entry.unloaded, entry.options = found, "", False, options
            old = {
                number
                for number, slot in entry.slots.items()
                if slot.model is not None or (slot.answers and number in found.stamps)
            }
            slots = {number: entry.slots.get(number) or Slot() for number in wanted | old}
            for slot in slots.values():
                slot.on_demand = self._lazy
                if slot.model is None and not only_due:
                    slot.error = ""
            entry.slots = slots
        new: dict[int, tuple[Model, str]] = {}
        failed: dict[int, LoadError] = {}
        for number in sorted(wanted, reverse=True):
            slot = slots[number]
            full = 0 < self._max_loaded <= len(new)
            if only_due and not slot.due:
                continue
            if slot.model is None:
                load = now and not full
            else:
                load = not same or slot.stamp != found.stamps.get(number) or bool(slot.error)
            if load:
                try:
                    new[number] = self._build(entry, number, len(new))
                except LoadError as error:
                    failed[number] = error
        # As long as what should be served cannot be, what was served is, and an alias stays where it was.
        answering = {n for n, slot in slots.items() if n in new or slot.model or (slot.answers and n not in failed)}
        before = entry.aliases
        holds = {
            alias: before[alias] if number not in answering and before.get(alias) in answering else number
            for alias, number in names.items()
        }
        kept = wanted | old if failed or any(slots[number].error for number in wanted - new.keys()) else wanted
        self._table.swap(entry, {number: slots[number] for number in kept}, new, failed, holds)

    def alias(self, entry: Entry, names: dict[str, int]) -> None:
        """Lets aliases name versions that are served, and goes on serving what is named and what the policy says.

        Args:
            entry: Held by the caller.
            names: The aliases.
        """
        assert entry.found is not None
        wanted = set(names.values())
        wanted |= entry.options.policy.choose(entry.found.stamps) if entry.options is not None else entry.slots.keys()
        # What failed has the versions stay that it should have replaced.
        whole = not entry.error and not any(slot.error for slot in entry.slots.values())
        kept = wanted & entry.slots.keys() if whole else entry.slots.keys()
        self._table.swap(entry, {number: entry.slots[number] for number in kept}, {}, aliases=names)

    def demanded(self, name: str, number: int) -> Model:
        """A version that a request asks for, loaded if it was not. Raises as `Repository.resolve`."""
        with self._table.change(name) as entry:
            slot = entry.slots.get(number)
            if slot is None or slot.model is not None or not slot.loadable:
                return self._table.resolve(name, number)
            try:
                built = self._build(entry, number)
            except LoadError as error:
                self._table.swap(entry, entry.slots, {}, {number: error})
                return self._table.resolve(name, number)
            self._table.swap(entry, entry.slots, {number: built})
            return self._table.resolve(name, number)

    def remove(self, entry: Entry) -> None:
        """Ends a model that has left the repository."""
        self._table.swap(entry, {}, {}, aliases={})
        with self._table.lock:
            entry.found = None
        log.info("model %s has left the repository", entry.name)

    def _read(self, entry: Entry, found: Found) -> tuple[ModelOptions, dict[str, int]]:
        """The files beside the versions. Raises ModelError and RepositoryError."""
        name = entry.name
        for folder in found.ignored:
            log.warning("%s/%s is not served: a version's folder is named by a positive whole number", name, folder)
        if found.error:
            raise ModelError(found.error)
        options = read_options(name, partial(self._store.read, name), self._settings)
        for option in options.ignored:
            log.warning("config.pbtxt of model %s: %s is not honoured", name, option)
        names = aliases.read(self._store.read(name, aliases.FILE))
        for alias, number in names.items():
            if number not in found.stamps:
                raise ModelError(f"{aliases.FILE}: {alias!r} is version {number}, but there is none")
        return options, names

    def _build(self, entry: Entry, number: int, built: int = 0) -> tuple[Model, str]:
        """A version, warm, and its stamp, with room made for it and what was built with it. Raises LoadError."""
        assert entry.options is not None
        slot = entry.slots[number]
        with self._building:
            with self._table.lock:
                slot.loading = True
            try:
                if self._max_loaded:
                    self._table.make_room(self._max_loaded - built, entry, number)
                return self._loader.load(entry.name, number, entry.options)
            finally:
                with self._table.lock:
                    slot.loading = False

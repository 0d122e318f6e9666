"""The repository: resolves names to models, and changes what it holds while it serves.

A change of a model reads, checks, builds and warms everything new first, and then puts it in the place of the old in
one step. What was there before goes on serving if that fails, and leaves when it has answered what it has.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable
from functools import partial

from convlens_server.device import DeviceError
from convlens_server.errors import (
    InvalidRequest,
    ModelError,
    ModelNotReady,
    NotLoaded,
    RepositoryRefused,
    near,
    shown,
)
from convlens_server.metrics import Metrics
from convlens_server.model import Model
from convlens_server.repository import aliases
from convlens_server.repository.entry import READY, Entry, Slot, Version
from convlens_server.repository.loading import Loader, LoadError
from convlens_server.repository.model_config import read_options
from convlens_server.repository.on_demand import OnDemand, Waiting
from convlens_server.repository.store import Found, RepositoryError, Store
from convlens_server.repository.table import Table, no_version
from convlens_server.settings import EngineSettings

log = logging.getLogger(__name__)


class Control(enum.StrEnum):
    """What changes the models that are served while the server runs."""

    FIXED = "fixed"  # Nothing.
    EXPLICIT = "explicit"  # Requests to load and to unload.
    POLL = "poll"  # The repository: it is looked at every few seconds.


class Repository:
    """The models of a store. Thread-safe.

    Args:
        store: Of the files.
        settings: How the models run.
        metrics: Of the server.
        control: What changes the models while it runs.
        poll_seconds: Between two looks at the store, with Control.POLL.
        lazy: Whether a version is loaded by the first request for it, not before.
        max_loaded: Most versions in memory, with `lazy`: the one that was not asked for longest goes first; 0: any
            number. While a version is replaced, both are there.

    Raises:
        RepositoryError: The store cannot be read; or, with Control.FIXED, it has nothing that can be served.
    """

    def __init__(
        self,
        store: Store,
        settings: EngineSettings,
        metrics: Metrics,
        control: Control = Control.FIXED,
        poll_seconds: float = 15.0,
        lazy: bool = False,
        max_loaded: int = 0,
    ) -> None:
        self._store = store
        self._settings = settings
        self._control = control
        self._lazy = lazy
        self._max_loaded = max_loaded
        self._loader = Loader(store, settings, metrics)
        self._table = Table(metrics)
        self._on_demand = OnDemand(self._demanded)
        # One model is built at a time: building takes all cores, and so the bound on what is loaded is exact.
        self._building = threading.Lock()
        self._closed = threading.Event()
        self._poller: threading.Thread | None = None
        metrics.loaded = lambda: len(self.models)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        if control is Control.POLL:
            self._poller = threading.Thread(target=self._poll, args=(poll_seconds,), name="repository", daemon=True)
            self._poller.start()

    @property
    def versions(self) -> tuple[Version, ...]:
        """Every version of every model, by name, then number."""
        return self._table.versions

    @property
    def models(self) -> tuple[Model, ...]:
        """The loaded ones."""
        return self._table.models

    def resolve(self, name: str, number: int) -> Model:
        """The model that a request asks for.

        A request that has got it is answered by it, even if it leaves in the meantime.

        Args:
            name: Of the model; may be empty where there is only one.
            number: Version; 0 is the default.

        Raises:
            InvalidRequest: No name, and several models; or a negative version.
            NotFound: No such model or version.
            NotLoaded: The version is loaded on demand; see `when_ready`.
            ModelNotReady: The version could not be loaded, is being loaded or was unloaded.
        """
        return self._table.resolve(name, number)

    def when_ready(self, name: str, number: int, item: Waiting, use: Callable[[Model], None]) -> None:
        """Calls `use` with the model that a request asks for: at once if it is loaded, else from another thread.

        What fails in that thread fails the item. Never blocks.

        Args:
            name: As `resolve`.
            number: As `resolve`.
            item: The request. If its caller leaves or its deadline passes before the model is loaded, it is failed.
            use: May raise.

        Raises:
            ServiceError: As `resolve`, but for NotLoaded; and what `use` raises, where it is called at once.
            QueueFull: Too many requests wait for the version to be loaded.
            Draining: The server is shutting down.
        """
        try:
            model = self._table.resolve(name, number)
        except NotLoaded as missing:
            self._on_demand.wait(missing.metadata["model"], int(missing.metadata["version"]), item, use)
            return
        use(model)

    def version_number(self, name: str, text: str) -> int:
        """The number of a version that is named by a text: a number, an alias of the model, or "" for the default.

        Raises:
            InvalidRequest: It is neither.
            NotFound: There is no such model.
        """
        if not text:
            return 0
        if text.isascii() and text.isdigit() and len(text) <= 18:
            return int(text)
        with self._table.lock:
            known = self._table.entry(name).aliases
        if text in known:
            return known[text]
        raise InvalidRequest(
            f"failed to get model version from specified version string {shown(text)!r} (should be an integral value > "
            f"0, or an alias){near(shown(text), known)}",
            reason="VERSION_NOT_A_NUMBER",
            field="version",
            metadata={"version": shown(text)},
        )

    def is_ready(self, name: str, number: int) -> bool:
        """Whether requests are answered, if need be after loading. Raises as `resolve`, but for ModelNotReady."""
        try:
            self._table.resolve(name, number)
        except NotLoaded:
            return True
        except ModelNotReady:
            return False
        return True

    def ready_versions(self, name: str) -> list[int]:
        """The numbers of a model's versions that answer, ascending."""
        return [each.number for each in self.versions if each.name == name and each.state == READY]

    def load(self, name: str) -> None:
        """Loads what stands in the repository of a model, or what has changed of it; returns when it is served.

        Raises:
            RepositoryRefused: Models are not loaded by request here.
            InvalidRequest: The name is none.
            NotFound: There is no such model in the repository.
            ModelNotReady: It, or a version of it, could not be loaded; what was served before still is.
        """
        self._check_explicit("load")
        with self._table.change(_checked(name)) as entry:
            found = self._look(name)
            if found is None:
                self._remove(entry)
                self._table.not_found(name)
            self._update(entry, found, now=True)
            with self._table.lock:
                failed = [version for version in entry.versions() if version.error]
        if failed:
            reasons = "; ".join(f"version {version.number}: {version.error}" for version in failed)
            raise ModelNotReady(
                f"model {name!r} could not be loaded: {reasons}", field="model", metadata={"model": name}
            )

    def unload(self, name: str) -> None:
        """Takes no more requests for a model; returns when those that it has are answered.

        Raises:
            RepositoryRefused: Models are not unloaded by request here.
            InvalidRequest: The name is none.
            NotFound: There is no such model.
        """
        self._check_explicit("unload")
        with self._table.lock:
            self._table.entry(_checked(name))
        with self._table.change(name) as entry:
            with self._table.lock:
                entry.unloaded = True
            self._table.swap(entry, {}, {})
        log.info("model %s was unloaded", name)

    def move_alias(self, name: str, alias: str, number: int) -> None:
        """Lets an alias name another version, which is loaded first if it is not served; returns when it holds.

        Raises:
            RepositoryRefused: Models are not changed by request here.
            InvalidRequest: The name or the alias is none.
            NotFound: There is no such model or version.
            ModelNotReady: The version could not be loaded, or the alias not be written; it is left where it was.
        """
        self._check_explicit("move an alias of")
        try:
            aliases.check(alias, number)
        except ModelError as error:
            raise InvalidRequest(str(error), reason="NO_ALIAS", field="alias") from None
        with self._table.change(_checked(name)) as entry:
            found = self._look(name)
            if found is None:
                self._table.not_found(name)
            if number not in found.stamps:
                no_version(name, number, list(found.stamps))
            before = entry.aliases
            moved = {**before, alias: number}
            self._update(entry, found, now=not self._lazy, moved=moved)
            slot = entry.slots.get(number)
            reason = entry.error or (slot.error if slot else "")
            try:
                if slot is None or not slot.answers:
                    raise ModelError(f"version {number} could not be loaded: {reason}")
                self._store.write(name, aliases.FILE, aliases.written(moved))
            except ModelError as error:
                with self._table.lock:
                    entry.aliases = before
                raise ModelNotReady(
                    f"alias {alias!r} of model {name!r} is left where it was: {error}",
                    field="alias",
                    metadata={"model": name, "version": number},
                ) from None
        log.info("alias %s of model %s is version %d", alias, name, number)

    def close(self) -> None:
        """Lets every engine answer what it has, and ends it."""
        self._closed.set()
        if self._poller is not None:
            self._poller.join()
        self._on_demand.close()
        self._table.close()

    def _start(self) -> None:
        models = self._store.models()
        fixed = self._control is Control.FIXED
        if not models and fixed:
            raise RepositoryError(
                f"no models in {self._store}: it must hold <name>/<version>/model.onnx, e.g. digits/1/model.onnx"
            )
        for name, found in models.items():
            with self._table.change(name) as entry:
                self._update(entry, found, now=not self._lazy)
        if fixed and not any(version.state == READY for version in self.versions):
            failures = "; ".join(f"{each.name} version {each.number}: {each.error}" for each in self.versions)
            raise RepositoryError(f"no model in {self._store} could be loaded: {failures}")

    def _poll(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            try:
                self._compare(self._store.models())
            except RepositoryError as error:
                log.error("the repository could not be looked at, what is loaded serves on: %s", error)
            except Exception:
                log.exception("the repository could not be looked at, what is loaded serves on")

    def _compare(self, models: dict[str, Found]) -> None:
        """Brings every model up to date that is not as it stands in the repository."""
        for name in self._table.names:
            if name not in models:
                with self._table.change(name) as entry:
                    self._remove(entry)
        for name, found in models.items():
            known = self._table.get(name)
            if not self._closed.is_set() and (known is None or known.found != found):
                with self._table.change(name) as entry:
                    self._update(entry, found, now=not self._lazy)

    def _update(self, entry: Entry, found: Found, now: bool, moved: dict[str, int] | None = None) -> None:
        """Brings a model up to date with what stands in the repository; what fails is noted in it.

        Args:
            entry: Held by the caller.
            found: What stands there.
            now: Whether to load what is not in memory; what is there, and has changed, is loaded anew in any case.
            moved: The aliases to be; None reads them.
        """
        name = entry.name
        for folder in found.ignored:
            log.warning("%s/%s is not served: a version's folder is named by a positive whole number", name, folder)
        try:
            if found.error:
                raise ModelError(found.error)
            options = read_options(name, partial(self._store.read, name), self._settings)
            names = aliases.read(self._store.read(name, aliases.FILE)) if moved is None else moved
            for alias, number in names.items():
                if number not in found.stamps:
                    raise ModelError(f"{aliases.FILE}: {alias!r} is version {number}, but there is none")
        except ModelError as error:
            log.error("model %s cannot be served as it stands in the repository: %s", name, error)
            with self._table.lock:
                entry.found, entry.error, entry.unloaded = found, str(error), False
                for number in found.stamps:
                    entry.slots.setdefault(number, Slot(error=str(error)))
            return
        for option in options.ignored:
            log.warning("config.pbtxt of model %s: %s is not honoured", name, option)
        wanted = options.policy.choose(found.stamps) | set(names.values())
        with self._table.lock:
            # Files beside the versions hold for all of them.
            same = entry.found is not None and entry.found.stamp == found.stamp and not entry.error
            entry.found, entry.error, entry.unloaded = found, "", False
            entry.options, entry.aliases = options, names
            old = {number for number, _ in entry.models()}
            slots = {number: entry.slots.get(number) or Slot() for number in wanted | old}
            for slot in slots.values():
                slot.on_demand = self._lazy
                if slot.model is None:
                    slot.error = ""
            entry.slots = slots
        new: dict[int, tuple[Model, str]] = {}
        failed: dict[int, str] = {}
        for number in sorted(wanted, reverse=True):
            slot = slots[number]
            full = 0 < self._max_loaded <= len(new)
            if (now and not full) if slot.model is None else (not same or slot.stamp != found.stamps.get(number)):
                try:
                    new[number] = self._build(entry, number, len(new))
                except (LoadError, DeviceError) as error:
                    failed[number] = str(error)
        # As long as what should be served cannot be, what was served is.
        kept = wanted | old if failed else wanted
        self._table.swap(entry, {number: slots[number] for number in kept}, new, failed)

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

    def _demanded(self, name: str, number: int) -> Model:
        """`OnDemand`'s load."""
        with self._table.change(name) as entry:
            slot = entry.slots.get(number)
            if slot is None or slot.model is not None or not slot.loadable:
                return self._table.resolve(name, number)
            try:
                built = self._build(entry, number)
            except (LoadError, DeviceError) as error:
                self._table.swap(entry, entry.slots, {}, {number: str(error)})
                return self._table.resolve(name, number)
            self._table.swap(entry, entry.slots, {number: built})
            return self._table.resolve(name, number)

    def _remove(self, entry: Entry) -> None:
        self._table.swap(entry, {}, {})
        with self._table.lock:
            entry.found = None
        log.info("model %s has left the repository", entry.name)

    def _look(self, name: str) -> Found | None:
        try:
            return self._store.model(name)
        except RepositoryError as error:
            raise ModelNotReady(str(error), field="model", metadata={"model": name}) from None

    def _check_explicit(self, what: str) -> None:
        if self._control is not Control.EXPLICIT:
            raise RepositoryRefused(
                f"cannot {what} a model by request: the server runs with --model-control {self._control}; start it "
                f"with --model-control {Control.EXPLICIT}",
                metadata={"model_control": str(self._control)},
            )


def _checked(name: str) -> str:
    """A model's name. Raises InvalidRequest for what can be none, such as a path."""
    if not name or name.startswith(".") or {"/", "\\", "\0"} & set(name):
        raise InvalidRequest(
            f"{shown(name)!r} is no model's name: it must be that of a folder in the repository, without '/' and not "
            "beginning with '.'",
            reason="NO_MODEL_NAME",
            field="model",
        )
    return name

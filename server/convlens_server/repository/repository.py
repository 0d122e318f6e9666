"""The repository: resolves names to models, and changes what it holds while it serves.

A change of a model reads, checks, builds and warms everything new first, and then puts it in the place of the old in
one step. What was there before goes on serving if that fails, and leaves when it has answered what it has.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable

from convlens_server.errors import (
    AliasNotMoved,
    InvalidRequest,
    ModelError,
    ModelNotReady,
    NotFound,
    NotLoaded,
    RepositoryRefused,
    near,
    shown,
)
from convlens_server.metrics import Metrics
from convlens_server.model import Model
from convlens_server.repository import aliases
from convlens_server.repository.entry import READY, Entry, Version
from convlens_server.repository.on_demand import OnDemand, Waiting
from convlens_server.repository.store import Found, RepositoryError, Store
from convlens_server.repository.table import Table, no_version
from convlens_server.repository.updating import Updater
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
        self._control = control
        self._lazy = lazy
        self._table = Table(metrics)
        self._updater = Updater(store, settings, metrics, self._table, lazy, max_loaded)
        self._on_demand = OnDemand(self._updater.demanded)
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

    def resolve(self, name: str, version: int | str) -> Model:
        """The model that a request asks for.

        A request that has got it is answered by it, even if it leaves in the meantime.

        Args:
            name: Of the model; may be empty where there is only one.
            version: Its number, 0 being the default; or an alias.

        Raises:
            InvalidRequest: No name, and several models; a negative version; or no alias of the model.
            NotFound: No such model or version.
            NotLoaded: The version is loaded on demand; see `when_ready`.
            ModelNotReady: The version could not be loaded, is being loaded or was unloaded.
        """
        return self._table.resolve(name, version)

    def when_ready(self, name: str, version: int | str, item: Waiting, use: Callable[[Model], None]) -> None:
        """Calls `use` with the model that a request asks for: at once if it is loaded, else from another thread.

        What fails in that thread fails the item. Never blocks.

        Args:
            name: As `resolve`.
            version: As `resolve`.
            item: The request. If its caller leaves or its deadline passes before the model is loaded, it is failed.
            use: May raise.

        Raises:
            ServiceError: As `resolve`, but for NotLoaded; and what `use` raises, where it is called at once.
            QueueFull: Too many requests wait for the version to be loaded.
            Draining: The server is shutting down.
        """
        try:
            model = self._table.resolve(name, version)
        except NotLoaded as missing:
            self._on_demand.wait(missing.metadata["model"], int(missing.metadata["version"]), item, use)
            return
        use(model)

    def version_number(self, name: str, version: int | str) -> int:
        """The number of a version that may be given by an alias. Raises InvalidRequest and NotFound, as `resolve`."""
        return self._table.number(name, version)

    def is_ready(self, name: str, version: int | str) -> bool:
        """Whether requests are answered, if need be after loading. Raises as `resolve`, but for ModelNotReady."""
        try:
            self._table.resolve(name, version)
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
                self._updater.remove(entry)
                self._table.not_found(name)
            self._updater.update(entry, found, now=True)
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

    def aliases(self, name: str) -> dict[str, int]:
        """A model's aliases and the versions that they name. Raises NotFound, and InvalidRequest for no name."""
        with self._table.lock:
            return dict(self._table.entry(_checked(name)).aliases)

    def move_alias(self, name: str, alias: str, number: int) -> None:
        """Lets an alias name another version, or begin to name one; returns when it does.

        A version that is not served is loaded first, and with it what else of the model has changed. To one that is
        served it moves at once. The file aliases.json is written before it moves.

        Raises:
            RepositoryRefused: Models are not changed by request here.
            InvalidRequest: The name or the alias is none.
            NotFound: There is no such model or version.
            ModelNotReady: The repository cannot be read.
            AliasNotMoved: The version could not be loaded, or aliases.json not be written.
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
            if not entry.answers(number):
                self._updater.update(entry, found, now=not self._lazy, also={number})
            try:
                if not entry.answers(number):
                    reason = entry.error or entry.slots[number].error
                    raise ModelError(f"version {number} could not be loaded: {reason}")
                self._write(entry, alias, number)
            except (ModelError, RepositoryError) as error:
                # What was loaded for it alone leaves.
                self._updater.alias(entry, entry.aliases)
                raise AliasNotMoved(
                    f"alias {alias!r} of model {name!r} is left where it was: {error}",
                    field="alias",
                    metadata={"model": name, "version": number},
                ) from None
            self._updater.alias(entry, {**entry.aliases, alias: number})
        log.info("alias %s of model %s is version %d", alias, name, number)

    def remove_alias(self, name: str, alias: str) -> None:
        """Ends an alias; a version that is served for it alone leaves.

        Raises:
            RepositoryRefused: Models are not changed by request here.
            InvalidRequest: The name is none.
            NotFound: There is no such model or alias.
            AliasNotMoved: aliases.json could not be written.
        """
        self._check_explicit("remove an alias of")
        with self._table.lock:
            self._table.entry(_checked(name))
        with self._table.change(name) as entry:
            left = {other: number for other, number in entry.aliases.items() if other != alias}
            if len(left) == len(entry.aliases):
                raise NotFound(
                    f"model {name!r} has no alias {shown(alias)!r}{near(shown(alias), entry.aliases)}",
                    reason="ALIAS_NOT_FOUND",
                    field="alias",
                    metadata={"model": name, "alias": shown(alias)},
                )
            try:
                self._write(entry, alias, None)
            except (ModelError, RepositoryError) as error:
                raise AliasNotMoved(
                    f"alias {alias!r} of model {name!r} is left where it was: {error}",
                    field="alias",
                    metadata={"model": name},
                ) from None
            self._updater.alias(entry, left)
        log.info("alias %s of model %s was removed", alias, name)

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
                self._updater.update(entry, found, now=not self._lazy)
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
                    self._updater.remove(entry)
        for name, found in models.items():
            known = self._table.get(name)
            same = known is not None and known.found == found and not (known.error and known.passing)
            if self._closed.is_set() or (known is not None and same and not known.due):
                continue
            with self._table.change(name) as entry:
                self._updater.update(entry, found, now=not self._lazy, only_due=same)

    def _write(self, entry: Entry, alias: str, number: int | None) -> None:
        """Changes one alias in aliases.json; None removes it. Raises ModelError and RepositoryError."""
        names = aliases.read(self._store.read(entry.name, aliases.FILE))
        names.pop(alias, None)
        if number is not None:
            names[alias] = number
        self._store.write(entry.name, aliases.FILE, aliases.written(names))

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

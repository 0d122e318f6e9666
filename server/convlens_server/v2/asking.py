"""Methods that ask the server something, or change it, beside inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from convlens_server.classify import parse
from convlens_server.errors import NotFound
from convlens_server.items import Question
from convlens_server.metrics import ModelMetrics
from convlens_server.model import Model
from convlens_server.pool import BoundedPool
from convlens_server.repository import Repository
from convlens_server.repository.aliases import version_of
from convlens_server.transport.base import Call, Method
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import translated

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

R = TypeVar("R", bound=Message)


def _named(request: Message) -> tuple[str, str]:
    """The model and the version that a request names."""
    return getattr(request, "name", ""), getattr(request, "version", "")


class Asking:
    """Makes methods of functions from a request to its response.

    Args:
        repository: Of the models.
        metrics: Count what is asked.
        pool: For what takes long.
    """

    def __init__(self, repository: Repository, metrics: ModelMetrics, pool: BoundedPool) -> None:
        self._repository = repository
        self._metrics = metrics
        self._pool = pool

    def at_once(
        self, path: str, kind: type[R], respond: Callable[[R], Message], named: Callable[[R], tuple[str, str]] = _named
    ) -> Method:
        """A method that is answered at once; arguments as of `changing`."""

        def begin(request: R, ask: _Ask) -> None:
            ask.named = named(request)
            ask.answer(respond(request))

        return self._method(path, kind, begin)

    def of_model(self, path: str, kind: type[R], respond: Callable[[Model], Message]) -> Method:
        """A method that needs the model of the request's `name` and `version`, loaded."""

        def begin(request: R, ask: _Ask) -> None:
            ask.named = name, version = _named(request)
            self._repository.when_ready(name, asked(name, version), ask, lambda model: ask.answer(respond(model)))

        return self._method(path, kind, begin)

    def changing(
        self, path: str, kind: type[R], respond: Callable[[R], Message], named: Callable[[R], tuple[str, str]]
    ) -> Method:
        """A method that changes what is loaded, and so takes long.

        Args:
            path: Of the method.
            kind: Of its request.
            respond: Changes it.
            named: Gives the model and the version that a request names.
        """

        def begin(request: R, ask: _Ask) -> None:
            ask.named = named(request)

            def work() -> None:
                try:
                    ask.answer(respond(request))
                except Exception as error:
                    ask.fail(error)

            self._pool.submit(work)

        return self._method(path, kind, begin)

    def _method(self, path: str, kind: type[R], begin: Callable[[R, _Ask], None]) -> Method:
        def handle(data: bytes, call: Call) -> None:
            ask = _Ask(call, path.rpartition("/")[2], self._metrics)
            try:
                begin(parse(kind, data), ask)
            except Exception as error:
                ask.fail(error)

        return Method(path, handle)


class _Ask(Question):
    """A request that is no inference."""

    def __init__(self, call: Call, method: str, metrics: ModelMetrics) -> None:
        super().__init__(call, method, metrics)
        self.named = ("", "")

    def answer(self, response: Message) -> None:
        """Sends the answer and counts it."""
        content = response.SerializeToString()
        self.metrics.count(self.method, "OK")
        self.call.reply(content)

    def fail(self, error: BaseException) -> None:
        """Sends the error, in the protocol's words, and counts it."""
        super().fail(translated(error, *self.named))


def asked(name: str, version: str) -> int | str:
    """The version that a request asks for: a number, 0 for the default, or an alias. Raises NotFound for no name."""
    if not name:
        raise NotFound("the request names no model", reason="MODEL_NOT_FOUND", field="model_name")
    return version_of(version)


def path(method: str) -> str:
    """Of a method of the protocol's service."""
    return f"/{SERVICE}/{method}"

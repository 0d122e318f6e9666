"""The whole server: starts its parts in order, and lets them finish in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import Mount

from convlens_server import service
from convlens_server.aside import Aside
from convlens_server.config import Config
from convlens_server.connect import Connect
from convlens_server.device import Device, choose_device, device_memory, gpu_figures
from convlens_server.explorer import explorer_routes
from convlens_server.health import SERVICE as HEALTH
from convlens_server.health import Health
from convlens_server.http import HttpServer, make_app
from convlens_server.inference import Inference
from convlens_server.lens_methods import lens_methods
from convlens_server.maps import FeatureMaps
from convlens_server.maximizing.answering import MaximizingImages
from convlens_server.metrics import Metrics
from convlens_server.pool import BoundedPool
from convlens_server.reflection import reflection_methods
from convlens_server.repository import Control, LocalStore, RemoteStore, Repository, Store, default_cache
from convlens_server.repository.memory import check_room
from convlens_server.service import ConvLensService
from convlens_server.settings import MAX_BATCH, EngineSettings, RequestLimits
from convlens_server.tracing import Tracing
from convlens_server.transport.base import Method, Transport, TransportOptions
from convlens_server.transport.choose import make_transport
from convlens_server.v2 import service as v2
from convlens_server.v2.metrics import TritonMetrics
from convlens_server.v2.rest import Rest

log = logging.getLogger(__name__)

# Callers who may wait for searches of datasets at the same time; others wait for these.
_SEARCHES = 16


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers.

    Attributes:
        port: Of gRPC.
        http_port: Of HTTP.
        transport: Name of the transport.
        device: Where models run.
        repository: Of its models, which may be changed by it while the server runs.
    """

    port: int
    http_port: int
    transport: str
    device: Device
    repository: Repository


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    """Starts a server; it is ready inside the block, and drains at its end.

    HTTP answers first, so that a probe sees a server that is alive but not ready while models load. At the end
    health says NOT_SERVING, and after `drain_delay` seconds new requests are refused and open ones finish, for
    `drain_timeout` seconds at most.

    Raises:
        DeviceError: The device does not work here.
        RepositoryError: There is nothing to serve.
        TracingError: What tracing needs is not installed.
        TransportUnavailableError: The transport does not work here.
        OSError: A port is taken.
    """
    device = await asyncio.to_thread(choose_device, config.device)
    log.info("device %s: %s", device, device.reason)
    metrics = Metrics(str(device), lambda: device_memory(device))
    metrics.registry.register(TritonMetrics(metrics, lambda: gpu_figures(device)))
    health = Health((service.SERVICE, v2.SERVICE))
    taking = False

    def is_taking() -> bool:
        return taking

    def is_ready() -> bool:
        return taking and health.serving

    async def leave(transport: Transport) -> None:
        nonlocal taking
        health.drain()
        if config.drain_delay:
            log.info("not serving, says health; requests are taken for %g s more", config.drain_delay)
            await asyncio.sleep(config.drain_delay)
        taking = False
        await _drain(transport, config.drain_timeout)

    async with contextlib.AsyncExitStack() as stack:
        rest = Rest(is_ready, is_taking, config.max_message_bytes)
        connect = Connect(service.DESCRIPTOR, is_taking, config.max_message_bytes)
        routes = (*rest.routes(), Mount(connect.path, connect.app), *explorer_routes())
        http = HttpServer(make_app(metrics.registry, is_ready, routes), config.host, config.http_port)
        stack.push_async_callback(http.stop)

        repository = await asyncio.to_thread(_repository, config, device, metrics)
        stack.push_async_callback(asyncio.to_thread, repository.close)
        limits = RequestLimits(
            config.max_images, config.max_feature_map_images, config.max_feature_map_bytes, config.max_pixels
        )
        inference = Inference(repository, limits, metrics, config.threads)
        stack.callback(inference.close)
        maps = FeatureMaps(repository, limits, config.threads, metrics.unknown)
        stack.callback(maps.close)

        tracing = None
        if config.trace_endpoint:
            tracing = Tracing(config.trace_share, config.trace_endpoint, str(device))
            stack.push_async_callback(asyncio.to_thread, tracing.close)

        open_inference = v2.InferenceService(inference, maps, is_ready, config.allow_shared_memory)
        stack.callback(open_inference.close)

        # Computations that take long have threads of their own: maps and questions about one unit do not wait for them.
        analysis = BoundedPool("analysis", config.threads, max_waiting=64)
        stack.callback(analysis.close)
        # Those who wait for a search of a dataset have threads that do nothing else.
        searches = BoundedPool("maximizing images", _SEARCHES, max_waiting=64)
        maximizing = MaximizingImages(
            Aside(repository, searches, limits, metrics.unknown),
            config.datasets,
            config.model_cache or default_cache(),
        )
        stack.callback(searches.close)
        stack.callback(maximizing.close)
        quick = Aside(repository, maps.pool, limits, metrics.unknown)
        slow = Aside(repository, analysis, limits, metrics.unknown)
        own = (*ConvLensService(inference, maps).methods(), *lens_methods(quick, slow, maps, maximizing))
        others = open_inference.methods()
        if tracing is not None:
            own, others = tracing.traced(own), tracing.traced(others)
        rest.serve((*others, *open_inference.alias_methods()))
        connect.serve(own)
        for drain in (rest.drain, connect.drain):
            stack.push_async_callback(drain, config.drain_timeout)
        methods = (
            *own,
            *others,
            *health.methods(),
            *reflection_methods((service.SERVICE, v2.SERVICE, HEALTH)),
        )
        transport = await make_transport(config.transport, _transport_options(config, methods))
        port = await transport.start()
        stack.push_async_callback(leave, transport)
        # What loading left behind will never be garbage; without this each full collection walks through it.
        gc.collect()
        gc.freeze()
        taking = True
        log.info(
            "ready: gRPC on port %d (%s), HTTP on port %d, the explorer at %s",
            port, transport.name, http.port, _page(config.host, http.port),
        )  # fmt: skip
        yield Running(port, http.port, transport.name, device, repository)


def _page(host: str, port: int) -> str:
    """The explorer's URL, for a browser on this machine where that can be."""
    if host in ("127.0.0.1", "0.0.0.0", "::", "::1"):
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


async def _drain(transport: Transport, timeout: float) -> None:  # noqa: ASYNC109 - passed on
    log.info("draining: new requests are refused, open ones have %g s", timeout)
    if await transport.drain(timeout):
        log.info("drained: every open request was answered")
    else:
        log.warning("not all open requests ended within %g s: the rest is cancelled", timeout)
    await transport.stop()


def _repository(config: Config, device: Device, metrics: Metrics) -> Repository:
    store: Store
    if isinstance(config.models, Path):
        if not config.lazy:
            check_room(config.models, config.precision)
        store = LocalStore(config.models)
    else:
        store = RemoteStore(config.models, config.model_cache or default_cache())
        store.reach()
    return Repository(
        store,
        _engine_settings(config, device),
        metrics,
        Control(config.model_control),
        config.poll_seconds,
        config.lazy,
        config.max_loaded,
    )


def _engine_settings(config: Config, device: Device) -> EngineSettings:
    return EngineSettings(
        device=device,
        precision=config.precision,
        threads=config.threads,
        max_batch=config.max_batch or MAX_BATCH[device.kind],
        max_queue=config.max_queue,
        max_queue_delay=config.max_queue_delay_ms / 1000,
    )


def _transport_options(config: Config, methods: tuple[Method, ...]) -> TransportOptions:
    return TransportOptions(
        address=f"{config.host}:{config.port}",
        methods=methods,
        max_message_bytes=config.max_message_bytes,
        tls_certificate=_content(config.tls_certificate),
        tls_key=_content(config.tls_key),
        tls_client_ca=_content(config.tls_client_ca),
        max_connection_age=config.max_connection_age,
    )


def _content(path: Path | None) -> bytes:
    return path.read_bytes() if path is not None else b""

"""How both clients connect: address, security, channel options, deadlines and when to try again."""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from convlens._errors import Error, InvalidRequest, UnusableClient, from_rpc

# Seconds.
DEFAULT_TIMEOUT = 30.0

_SCHEMES = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|passthrough):")
_METADATA_KEY = re.compile(r"[a-z0-9_.-]+")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):\d{1,5}")

# grpc makes at most 5 attempts, whatever is written here.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "convlens.v1.ConvLens"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # A request that does not fit is not tried again. The default of 256 KiB is less than one photograph.
    ("grpc.per_rpc_retry_buffer_size", 64 * 2**20),
    # The server bounds its messages; feature maps are the larger ones.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection that a router has dropped in silence is noticed before the default timeout.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


@dataclass(frozen=True, slots=True, repr=False)
class TLS:
    """How to secure the connection. Each is PEM: as bytes, or the path of a file.

    Attributes:
        root_certificates: Whom to trust; None means the certificates that come with grpc.
        certificate: The client's own chain, where the server asks for one; needs `key`.
        key: The private key of `certificate`.
        server_name: The name to expect in the server's certificate, where it is not the host of the address.
    """

    root_certificates: bytes | str | os.PathLike[str] | None = None
    certificate: bytes | str | os.PathLike[str] | None = None
    key: bytes | str | os.PathLike[str] | None = None
    server_name: str = ""


class Endpoint:
    """Where and how to connect: what the constructors of both clients take, checked.

    Args:
        target: "host:port", or an address with one of grpc's schemes: dns, ipv4, ipv6, unix, …
        timeout: Seconds, for calls that give none.
        tls: True to trust the certificates that come with grpc, or a TLS.
        metadata: Sent with every call, e.g. {"authorization": "Bearer …"}.

    Raises:
        InvalidRequest: One of them is wrong, or a PEM file cannot be read.
    """

    def __init__(self, target: str, timeout: float, tls: bool | TLS, metadata: Mapping[str, str] | None) -> None:
        self.target = target
        self.address = _address(target)
        self.timeout = _seconds(timeout)
        self.options = list(_OPTIONS)
        self.credentials: grpc.ChannelCredentials | None = None
        if tls:
            tls = TLS() if tls is True else tls
            self.credentials = _credentials(tls)
            if tls.server_name:
                self.options.append(("grpc.ssl_target_name_override", tls.server_name))
        self.metadata = tuple(_metadatum(key, value) for key, value in (metadata or {}).items())

    def seconds(self, timeout: float | None) -> float:
        """The timeout of a call, checked; None means the client's. Raises InvalidRequest."""
        return self.timeout if timeout is None else _seconds(timeout)

    def error(self, failure: grpc.RpcError) -> Error:
        """Our exception for grpc's."""
        return from_rpc(failure, self.target)

    def closed(self) -> UnusableClient:
        """What a closed client raises."""
        return UnusableClient(f"the client of {self.target} is closed: make a new one")


class Attempts:
    """The time that a call and its repetitions have together.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds, ≥ 0."""
        return max(0.0, self._end - time.monotonic())

    def pause(self, error: Error) -> float:
        """How long to wait before the next attempt, in seconds. Raises `error` where there should be none."""
        if error.retry_after is None:
            raise error
        # Not all at the same moment: those who were refused together would be refused again.
        delay = max(error.retry_after, 0.001) * random.uniform(1, 1.5)
        if delay >= self.remaining():
            raise error
        return delay


def _seconds(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise InvalidRequest(f"timeout is {timeout!r}, but must be a positive number of seconds")
    return float(timeout)


def _metadatum(key: str, value: str) -> tuple[str, str]:
    # grpc takes names in lower case only.
    key = key.lower()
    if not _METADATA_KEY.fullmatch(key) or not (value.isascii() and value.isprintable()):
        # The value may be a secret.
        raise InvalidRequest(
            f"metadata {key!r} cannot be sent: a name has letters, digits and _ . -, and a value printable ASCII only"
        )
    return key, value


def _address(target: str) -> str:
    if _SCHEMES.match(target):
        return target
    if not _HOST_PORT.fullmatch(target):
        cure = "for https give host:port and tls=True" if target.startswith("https:") else "e.g. localhost:8001"
        raise InvalidRequest(f"the server's address is {target!r}, but must be host:port: {cure}")
    # dns:/// finds every address of the name, between which round_robin then takes turns.
    return f"dns:///{target}"


def _credentials(tls: TLS) -> grpc.ChannelCredentials:
    if (tls.certificate is None) != (tls.key is None):
        raise InvalidRequest("tls has a certificate or a key, but needs both or none of them")
    return grpc.ssl_channel_credentials(_pem(tls.root_certificates), _pem(tls.key), _pem(tls.certificate))


def _pem(source: bytes | str | os.PathLike[str] | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"the PEM file {os.fspath(source)!r} cannot be read: {error.strerror}") from None

"""TLS and mutual TLS, on both transports."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
import trustme


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> dict[str, bytes]:
    certificate = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    return {"tls_certificate": chain, "tls_key": certificate.private_key_pem.bytes()}


def client(authority: trustme.CA, identity: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    root = authority.cert_pem.bytes()
    if identity is None:
        return grpc.ssl_channel_credentials(root)
    chain = b"".join(blob.bytes() for blob in identity.cert_chain_pems)
    return grpc.ssl_channel_credentials(root, identity.private_key_pem.bytes(), chain)


async def ask(port: int, credentials: grpc.ChannelCredentials | None, tools: Any) -> bytes:
    address = f"localhost:{port}"
    channel = (
        grpc.aio.secure_channel(address, credentials, options=tools.client_options)
        if credentials
        else grpc.aio.insecure_channel(address, options=tools.client_options)
    )
    async with channel:
        answer: bytes = await channel.unary_unary("/test.Test/Echo")(b"secret", timeout=20)
        return answer


async def refused(port: int, credentials: grpc.ChannelCredentials | None, tools: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(port, credentials, tools)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls(serve: Any, tools: Any, authority: trustme.CA, server_tls: dict[str, bytes]) -> None:
    async with serve(**server_tls) as peer:
        assert await ask(peer.port, client(authority), tools) == b"secret"
        await refused(peer.port, None, tools)
        await refused(peer.port, client(trustme.CA()), tools)
        assert await ask(peer.port, client(authority), tools) == b"secret"


async def test_mutual_tls(serve: Any, tools: Any, authority: trustme.CA, server_tls: dict[str, bytes]) -> None:
    async with serve(**server_tls, tls_client_ca=authority.cert_pem.bytes()) as peer:
        known = client(authority, authority.issue_cert("client@example.org"))
        assert await ask(peer.port, known, tools) == b"secret"
        await refused(peer.port, client(authority), tools)
        await refused(peer.port, client(authority, trustme.CA().issue_cert("client@example.org")), tools)
        assert await ask(peer.port, known, tools) == b"secret"


async def test_certificate_that_is_none(transport_class: Any, tools: Any, server_tls: dict[str, bytes]) -> None:
    from convlens_server.transport.base import TransportOptions

    for broken in ({"tls_certificate": b"nonsense"}, {"tls_key": b"nonsense"}):
        options = TransportOptions("127.0.0.1:0", (), **{**server_tls, **broken})
        with pytest.raises(OSError, match="cannot listen"):
            await transport_class(options).start()

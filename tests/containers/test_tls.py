"""deploy/compose.tls.yml: callers come by TLS, its files are secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import convlens
from containers.system import ROOT, Expected, Load, System, ended, logs, wait_for

pytestmark = pytest.mark.timeout(600)

# Of Envoy in docker-compose.yml.
USER = 10002


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secrets(authority: trustme.CA, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Paths of a certificate for localhost and of its key, which is for Envoy's user alone."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("localhost")
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    key.chmod(0o400)
    if os.geteuid() == 0:
        os.chown(key, USER, USER)
        yield certificate, key
    else:
        pytest.skip("only root can give the key to Envoy's user")


def system(certificate: Path, key: Path) -> System:
    files = (ROOT / "docker-compose.yml", ROOT / "deploy" / "compose.tls.yml")
    return System("convlens-test-tls", *files, TLS_CERTIFICATE=str(certificate), TLS_KEY=str(key))


def test_callers_come_by_tls(image: str, authority: trustme.CA, secrets: tuple[Path, Path], expected: Expected) -> None:
    secure = system(*secrets)
    try:
        secure.compose("up", "--wait", "server", "envoy", timeout=300)
        wait_for("Envoy has a server", lambda: secure.healthy() == 1)
        trusted = convlens.TLS(root_certificates=authority.cert_pem.bytes())
        with Load(secure.address, expected, callers=2, tls=trusted) as load:
            load.wait(100)
        assert load.failures == []
        with convlens.Client(secure.address, timeout=10) as plain, pytest.raises(convlens.Error):
            plain.models()
    finally:
        secure.down()


def test_a_key_that_envoy_may_not_read(image: str, secrets: tuple[Path, Path]) -> None:
    certificate, key = secrets
    os.chown(key, 0, 0)
    secure = system(certificate, key)
    try:
        started = secure.compose("up", "--wait", "server", "envoy", check=False, timeout=300)
        assert started.returncode != 0
        assert ended(secure.container("envoy"))["ExitCode"] == 1
        line = "envoy: /run/secrets/tls_key cannot be read by user 10002: see deploy/compose.tls.yml"
        assert set(logs(secure.container("envoy"))) == {line}
    finally:
        secure.down()


def test_a_secret_that_is_not_there(image: str, tmp_path: Path) -> None:
    secure = system(tmp_path / "none.pem", tmp_path / "none.key")
    try:
        started = secure.compose("up", "--wait", "envoy", check=False, timeout=300)
        assert started.returncode != 0
        assert "none.pem" in started.stderr
    finally:
        secure.down()

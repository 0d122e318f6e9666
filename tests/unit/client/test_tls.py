"""Secured connections, with and without a certificate of the client."""

from __future__ import annotations

import grpc
import pytest
import trustme

import convlens
from convlens.cli import main
from convlens.v1 import convlens_pb2 as pb


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def pem(blobs):
    return b"".join(blob.bytes() for blob in blobs)


@pytest.fixture
def secure(authority, fake, serve):
    """Starts a server whose certificate is for 127.0.0.1 or for another name."""

    def start(name="127.0.0.1", client_certificate=False):
        certificate = authority.issue_cert(name)
        pair = (certificate.private_key_pem.bytes(), pem(certificate.cert_chain_pems))
        root = authority.cert_pem.bytes() if client_certificate else None
        return serve(fake, grpc.ssl_server_credentials([pair], root, client_certificate))

    return start


def test_a_root_certificate_as_bytes_and_as_a_path(connect, secure, authority, fake, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    address = secure()
    for root in (authority.cert_pem.bytes(), path, str(path)):
        fake.expect("ListModels", pb.ListModelsResponse())
        assert connect(address, tls=convlens.TLS(root_certificates=root)).models() == []


def test_another_name(connect, secure, authority, fake):
    fake.expect("ListModels", pb.ListModelsResponse())
    address = secure("convlens.example")
    tls = convlens.TLS(root_certificates=authority.cert_pem.bytes(), server_name="convlens.example")
    assert connect(address, tls=tls).models() == []


def test_both_sides_show_certificates(connect, secure, authority, fake):
    fake.expect("ListModels", pb.ListModelsResponse())
    own = authority.issue_cert("client.example")
    tls = convlens.TLS(
        root_certificates=authority.cert_pem.bytes(),
        certificate=pem(own.cert_chain_pems),
        key=own.private_key_pem.bytes(),
    )
    assert connect(secure(client_certificate=True), tls=tls).models() == []


def test_a_server_that_nobody_vouches_for(connect, secure):
    with pytest.raises(convlens.Unavailable, match="cannot reach"):
        connect(secure(), tls=True).models()


def test_a_certificate_needs_its_key(connect):
    with pytest.raises(convlens.InvalidRequest, match="needs both or none"):
        connect("localhost:1", tls=convlens.TLS(certificate=b"x"))


def test_a_file_that_is_missing(connect):
    with pytest.raises(convlens.InvalidRequest, match=r"'/no/such\.pem' cannot be read: No such file"):
        connect("localhost:1", tls=convlens.TLS(root_certificates="/no/such.pem"))


def test_keys_are_not_printed():
    assert "secret" not in repr(convlens.TLS(certificate=b"c", key=b"secret"))


def test_the_commands_options(secure, authority, fake, tmp_path, capsys):
    own = authority.issue_cert("client.example")
    files = {"--ca": authority.cert_pem, "--key": own.private_key_pem, "--certificate": own.cert_chain_pems[0]}
    arguments = ["models", "--json", "--server", secure(client_certificate=True)]
    for flag, blob in files.items():
        blob.write_to_path(tmp_path / flag)
        arguments += [flag, str(tmp_path / flag)]
    fake.expect("ListModels", pb.ListModelsResponse())
    assert main(arguments) == 0
    assert capsys.readouterr().out == "[]\n"


def test_the_command_without_them(secure, capsys):
    assert main(["models", "--server", secure(), "--timeout", "5"]) == 1
    assert "cannot reach" in capsys.readouterr().err

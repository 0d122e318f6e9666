from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import grpc
import numpy as np
import pytest

from convlens_server.v2 import service_pb2 as pb
from integration.v2.asking import Asked, arrays, normalised, outputs, tensor
from support import pixels, serving

SHM = Path("/dev/shm")


@pytest.fixture
def memory():
    """A shared memory object of 4096 bytes: its key and its file."""
    key = f"convlens-test-{uuid.uuid4().hex}"
    path = SHM / key
    path.write_bytes(bytes(4096))
    yield key, path
    path.unlink(missing_ok=True)


def place(region, size, offset=None):
    parameters = {
        "shared_memory_region": pb.InferParameter(string_param=region),
        "shared_memory_byte_size": pb.InferParameter(int64_param=size),
    }
    if offset is not None:
        parameters["shared_memory_offset"] = pb.InferParameter(int64_param=offset)
    return parameters


@contextlib.contextmanager
def registered(server, key, size=4096, offset=0, name="region"):
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    server.ask("SystemSharedMemoryRegister", request)
    try:
        yield
    finally:
        server.ask("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name))


def status(server, name=""):
    return server.ask("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name)).regions


@pytest.mark.parametrize("slash", ["", "/"])
def test_inputs_and_outputs(server, memory, slash):
    key, path = memory
    images = pixels(3)
    plain = arrays(server.infer(model_name="native", outputs=outputs("scores", "logits"), **tensor("image", images)))
    with path.open("r+b") as file:
        file.seek(128)
        file.write(images.tobytes())
    with registered(server, slash + key, size=4000, offset=96):
        assert status(server)["region"] == pb.SystemSharedMemoryStatusResponse.RegionStatus(
            name="region", key=slash + key, offset=96, byte_size=4000
        )
        given = pb.ModelInferRequest.InferInputTensor(
            name="image", datatype="UINT8", shape=images.shape, parameters=place("region", images.nbytes, 32)
        )
        wanted = outputs("scores", "logits")
        for name, parameter in place("region", 200, 1000).items():
            wanted[0].parameters[name].CopyFrom(parameter)
        response = server.infer(model_name="native", inputs=[given], outputs=wanted)

        assert response.raw_output_contents[0] == b""
        assert response.outputs[0].parameters["shared_memory_region"].string_param == "region"
        written = np.frombuffer(path.read_bytes()[1096 : 1096 + 192], "<f4").reshape(3, 16)
        np.testing.assert_array_equal(written, plain["scores"])
        np.testing.assert_array_equal(np.frombuffer(response.raw_output_contents[1], "<f4"), plain["logits"].ravel())
        assert path.read_bytes()[1096 + 192 :] == bytes(4096 - 1096 - 192)
    assert not status(server)


def test_layers_and_texts_go_there_too(server, memory):
    key, path = memory
    images = pixels(1)
    plain = server.infer(model_name="native", outputs=outputs("scores", classification=2), **tensor("image", images))
    maps = server.maps("native", images, "output")
    wanted = [*outputs("scores", classification=2), *outputs("output")]
    for each, at in zip(wanted, (0, 512), strict=True):
        for name, parameter in place("region", 512, at).items():
            each.parameters[name].CopyFrom(parameter)
    with registered(server, key):
        response = server.infer(model_name="native", outputs=wanted, **tensor("image", images))
    assert list(response.raw_output_contents) == [b"", b""]
    content = path.read_bytes()
    assert content.startswith(plain.raw_output_contents[0])
    np.testing.assert_array_equal(np.frombuffer(content[512 : 512 + 64], "<f4"), maps["output"].ravel())


@pytest.mark.parametrize(
    ("key", "size", "offset", "text"),
    [
        ("convlens-test-missing", 1, 0, "Unable to open shared memory region: 'convlens-test-missing'"),
        ("../../etc/passwd", 1, 0, "a key has no slash but one at the beginning"),
        ("/../etc/passwd", 1, 0, "a key has no slash but one at the beginning"),
        ("//etc/passwd", 1, 0, "a key has no slash"),
        ("..", 1, 0, "a key has no slash"),
        (".", 1, 0, "a key has no slash"),
        ("", 1, 0, "a key has no slash"),
        ("a\0b", 1, 0, "a key has no slash"),
        ("KEY", 4097, 0, "has 4096 bytes, but offset and byte_size reach to 4097"),
        ("KEY", 4096, 1, "reach to 4097"),
        ("KEY", 2**64 - 1, 2**64 - 1, "has 4096 bytes"),
        ("KEY", 0, 0, "must have a byte_size"),
    ],
)
def test_registrations_that_are_refused(server, failing, memory, key, size, offset, text):
    request = pb.SystemSharedMemoryRegisterRequest(
        name="region", key=key.replace("KEY", memory[0]), offset=offset, byte_size=size
    )
    failure = failing(lambda: server.ask("SystemSharedMemoryRegister", request))

    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert text in failure.text
    assert not status(server)


def test_a_symbolic_link_and_a_folder_are_refused(server, failing, memory, tmp_path):
    for make in (lambda path: path.symlink_to(memory[1]), lambda path: path.mkdir(), lambda path: os.mkfifo(path)):
        path = SHM / f"convlens-test-{uuid.uuid4().hex}"
        make(path)
        try:
            request = pb.SystemSharedMemoryRegisterRequest(name="region", key=path.name, byte_size=1)
            failure = failing(lambda: server.ask("SystemSharedMemoryRegister", request))  # noqa: B023
            assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
            assert "Unable to open shared memory region" in failure.text
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_name_that_is_taken_and_names_that_are_not_there(server, failing, memory):
    key, _ = memory
    with registered(server, key):
        request = pb.SystemSharedMemoryRegisterRequest(name="region", key=key, byte_size=1)
        failure = failing(lambda: server.ask("SystemSharedMemoryRegister", request))
        assert failure.code == grpc.StatusCode.ALREADY_EXISTS
        assert "already in manager" in failure.text
    failure = failing(lambda: status(server, "region"))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    assert "Unable to find system shared memory region: 'region'" in failure.text
    server.ask("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="region"))
    server.ask("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest())


@pytest.mark.parametrize(
    ("region", "size", "offset", "code", "text"),
    [
        ("other", 192, 0, grpc.StatusCode.NOT_FOUND, "Unable to find system shared memory region: 'other'"),
        ("region", 192, 4000, grpc.StatusCode.INVALID_ARGUMENT, "Invalid offset + byte size for shared memory region"),
        ("region", 5000, 0, grpc.StatusCode.INVALID_ARGUMENT, "Invalid offset + byte size"),
        ("region", 100, 0, grpc.StatusCode.INVALID_ARGUMENT, "input byte size mismatch"),
        ("region", 192, -1, grpc.StatusCode.INVALID_ARGUMENT, "'shared_memory_offset' is -1, but must be 0 or more"),
    ],
)
def test_inputs_that_are_not_within_a_region(server, failing, memory, region, size, offset, code, text):
    given = pb.ModelInferRequest.InferInputTensor(
        name="image", datatype="UINT8", shape=[3, 8, 8, 1], parameters=place(region, size, offset)
    )
    with registered(server, memory[0]):
        failure = failing(lambda: server.infer(model_name="native", inputs=[given]))

    assert failure.code == code
    assert text in failure.text


def test_an_output_that_does_not_fit(server, failing, memory):
    wanted = outputs("scores")
    for name, parameter in place("region", 63).items():
        wanted[0].parameters[name].CopyFrom(parameter)
    with registered(server, memory[0]):
        failure = failing(lambda: server.infer(model_name="native", outputs=wanted, **tensor("image", pixels(1))))

    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "(63 bytes) should be at least 64 bytes" in failure.text


def test_an_object_that_becomes_smaller_ends_no_server(server, failing, memory):
    key, path = memory
    given = pb.ModelInferRequest.InferInputTensor(
        name="image", datatype="UINT8", shape=[1, 8, 8, 1], parameters=place("region", 64, 4000)
    )
    wanted = outputs("scores")
    for name, parameter in place("region", 64, 4000).items():
        wanted[0].parameters[name].CopyFrom(parameter)
    with registered(server, key):
        os.truncate(path, 100)
        failure = failing(lambda: server.infer(model_name="native", inputs=[given]))
        assert "has become smaller" in failure.text
        failure = failing(lambda: server.infer(model_name="native", outputs=wanted, **tensor("image", pixels(1))))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert path.stat().st_size == 100


def test_contents_beside_shared_memory_are_refused(server, failing, memory):
    fields = tensor("image", pixels(1))
    for name, parameter in place("region", 64).items():
        fields["inputs"][0].parameters[name].CopyFrom(parameter)
    with registered(server, memory[0]):
        failure = failing(lambda: server.infer(model_name="native", **fields))

    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents must be empty" in failure.text


def test_without_the_flag_there_is_none(models, failing, memory):
    with serving(models) as server:
        server.__class__ = Asked
        request = pb.SystemSharedMemoryRegisterRequest(name="region", key=memory[0], byte_size=1)
        failure = failing(lambda: server.ask("SystemSharedMemoryRegister", request))
        assert failure.code == grpc.StatusCode.UNIMPLEMENTED
        extensions = server.ask("ServerMetadata", pb.ServerMetadataRequest()).extensions
        assert "system_shared_memory" not in extensions
        fields = tensor("x", normalised(pixels(1)))
        fields["inputs"][0].parameters["shared_memory_region"].string_param = "region"
        fields["inputs"][0].parameters["shared_memory_byte_size"].int64_param = 64
        failure = failing(lambda: server.infer(model_name="linear", **fields))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert "--allow-shared-memory" in failure.text


def test_everything_is_forgotten_at_the_end(models, memory):
    with serving(models, allow_shared_memory=True) as server:
        server.__class__ = Asked
        request = pb.SystemSharedMemoryRegisterRequest(name="region", key=memory[0], byte_size=1)
        server.ask("SystemSharedMemoryRegister", request)
        assert memory[1] in open_files()
    assert memory[1] not in open_files()
    assert memory[1].exists()


def open_files():
    files = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            files.add(each.readlink())
    return files

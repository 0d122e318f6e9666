"""What operators use: health, reflection, metrics, readiness."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client.parser import text_string_to_metric_families

from convlens.v1 import convlens_pb2 as pb
from support import pixels, put, raw

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("service", ["", "convlens.v1.ConvLens"])
def test_health_check(server, service):
    stub = health_pb2_grpc.HealthStub(server.channel)

    assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == SERVING


def test_health_of_an_unknown_service(server, failing):
    stub = health_pb2_grpc.HealthStub(server.channel)

    failure = failing(lambda: stub.Check(health_pb2.HealthCheckRequest(service="convlens.v1.ConvLen"), timeout=10))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert "did you mean convlens.v1.ConvLens?" in failure.text
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"), timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


@pytest.mark.parametrize("transport", ["completion_queue", "aio"])
def test_health_watch_until_the_drain(serve, models, transport):
    with serve(models, transport=transport) as server:
        channel = server.connect()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        next(watch)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    channel.close()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(server, version):
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    call = server.channel.stream_stream(
        path,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="convlens.v1.ConvLens"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
    ]

    services, file, missing = call(iter(requests), timeout=10)

    names = {service.name for service in services.list_services_response.service}
    assert {"convlens.v1.ConvLens", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= names
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(each)
        for each in file.file_descriptor_response.file_descriptor_proto
    ]
    assert "convlens/v1/convlens.proto" in {each.name for each in files}
    assert missing.error_response.error_code == 5


def test_http(server):
    assert server.http("/healthz") == (200, "alive\n")
    assert server.http("/readyz") == (200, "ready\n")
    assert server.http("/nothing")[0] == 404


def test_metrics(server):
    labels = {"model": "linear", "version": "2"}
    names = ("convlens_images_total", "convlens_batch_images_count", "convlens_compute_seconds_count")
    before = {name: server.metric(name, **labels) for name in names}
    total = server.metric("convlens_request_seconds_count", **labels)

    server.stub.Classify(pb.ClassifyRequest(model="linear", images=raw(pixels(5))), timeout=10)

    while server.metric("convlens_request_seconds_count", **labels) == total:
        pass
    assert server.metric("convlens_images_total", **labels) == before["convlens_images_total"] + 5
    assert server.metric("convlens_batch_images_count", **labels) == before["convlens_batch_images_count"] + 1
    assert server.metric("convlens_compute_seconds_count", **labels) == before["convlens_compute_seconds_count"] + 1
    assert server.metric("convlens_models_loaded") == 3
    assert server.metric("convlens_queue_images", **labels) == 0
    families = {family.name for family in text_string_to_metric_families(server.http("/metrics")[1])}
    assert {
        "convlens_requests", "convlens_images", "convlens_feature_map_requests", "convlens_queue_images",
        "convlens_request_seconds", "convlens_queue_seconds", "convlens_compute_seconds", "convlens_batch_images",
        "convlens_models_loaded", "process_resident_memory_bytes",
    } <= families  # fmt: skip


def test_nothing_to_serve(serve, tmp_path):
    from convlens_server.repository import RepositoryError

    with pytest.raises(RepositoryError, match="cannot be read: No such file"), serve(tmp_path / "missing"):
        pass
    with pytest.raises(RepositoryError, match="it must hold <name>"), serve(tmp_path):
        pass
    put(tmp_path, "bad", 1, b"junk")
    with pytest.raises(RepositoryError, match="could be loaded: bad version 1: not an ONNX model"), serve(tmp_path):
        pass

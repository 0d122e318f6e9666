"""Spans, as a collector gets them from a server."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as collector_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from PIL import Image

from convlens.v1 import convlens_pb2 as pb
from convlens_server.config import parse_config
from convlens_server.v2 import service_pb2 as v2
from support import TRANSPORTS, pixels, raw, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-0{flag}") for flag in (1, 0))
INFER = "/inference.GRPCInferenceService/"


class Collector(collector_grpc.TraceServiceServicer):
    """Takes spans, as an OpenTelemetry collector does."""

    def __init__(self):
        self.spans = []
        self.resource = {}

    def Export(self, request, context):  # noqa: N802 - gRPC's name
        for resource in request.resource_spans:
            self.resource = attributes(resource.resource)
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return collector_pb.ExportTraceServiceResponse()

    def trees(self):
        """For each root its span and, by name, those within it; checks that they belong together."""
        roots = [span for span in self.spans if span.kind == trace_pb2.Span.SPAN_KIND_SERVER]
        trees, within = [], 0
        for root in roots:
            inside = [span for span in self.spans if span.parent_span_id == root.span_id]
            for span in inside:
                assert span.trace_id == root.trace_id
                assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
                assert span.end_time_unix_nano <= root.end_time_unix_nano
            within += len(inside)
            trees.append((root, {span.name: span for span in inside}))
        assert len(self.spans) == len(roots) + within
        return trees


def attributes(thing):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in thing.attributes}


@pytest.fixture
def collector(monkeypatch):
    """A collector that listens, with its endpoint."""
    # The machine may be busy.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    collector_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None).wait()


@pytest.fixture(params=TRANSPORTS)
def traced(request, models, collector):
    """Serves; what was traced is at the collector when the block has ended."""

    @contextlib.contextmanager
    def traced(share=0.0, **options):
        with serving(
            models, transport=request.param, trace_endpoint=collector.endpoint, trace_share=share, **options
        ) as served:
            yield served

    return traced


def question(**options):
    return pb.ClassifyRequest(model="linear", images=raw(pixels(3)), **options)


def test_a_classification_of_a_caller_who_traces(traced, collector):
    with traced() as server:
        server.stub.Classify(question(), metadata=[SAMPLED, ("x-request-id", "the id")], timeout=20)

    [(root, parts)] = collector.trees()
    assert root.name == "convlens.v1.ConvLens/Classify"
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT
    assert attributes(root) == {
        "rpc.system": "grpc",
        "rpc.service": "convlens.v1.ConvLens",
        "rpc.method": "Classify",
        "rpc.grpc.status_code": 0,
        "convlens.request_id": "the id",
        "convlens.model": "linear",
        "convlens.version": "2",
        "convlens.images": 3,
    }
    assert root.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert sorted(parts) == ["compute", "queue"]
    assert attributes(parts["compute"]) == {"convlens.batch_images": 3, "convlens.batch_requests": 1}
    assert parts["queue"].end_time_unix_nano == parts["compute"].start_time_unix_nano
    assert collector.resource["service.name"] == "convlens"
    assert collector.resource["convlens.device"] == "cpu"


def test_the_caller_decides_and_otherwise_the_share(traced, collector):
    with traced(share=1.0) as server:
        for metadata in ([NOT_SAMPLED], [], [("traceparent", "not one")], [("traceparent", f"00-{TRACE}-{PARENT}-zz")]):
            server.stub.Classify(question(), metadata=metadata, timeout=20)

    trees = collector.trees()
    assert len(trees) == 3
    assert all(root.parent_span_id == b"" and root.trace_id.hex() != TRACE for root, _ in trees)


def test_none_without_a_share(traced, collector):
    with traced() as server:
        server.stub.Classify(question(), timeout=20)
        server.stub.Classify(question(), metadata=[NOT_SAMPLED], timeout=20)

    assert collector.spans == []


def test_image_files_are_decoded(traced, collector):
    buffer = io.BytesIO()
    Image.fromarray(pixels(1)[0, :, :, 0]).save(buffer, "PNG")
    images = pb.Images(encoded=pb.EncodedImages(files=[buffer.getvalue()]))
    with traced(share=1.0) as server:
        server.stub.Classify(pb.ClassifyRequest(model="linear", images=images), timeout=20)

    [(_, parts)] = collector.trees()
    assert sorted(parts) == ["compute", "decode", "queue"]
    assert parts["decode"].end_time_unix_nano <= parts["queue"].start_time_unix_nano


def test_each_request_of_a_stream_is_one(traced, collector):
    wrong = pb.ClassifyStreamRequest(id=1, request=question(top_k=1000))
    requests = [pb.ClassifyStreamRequest(id=0, request=question()), wrong]
    with traced() as server:
        answers = list(server.stub.ClassifyStream(iter(requests), metadata=[SAMPLED], timeout=20))

    assert len(answers) == 2
    trees = collector.trees()
    assert {root.name for root, _ in trees} == {"convlens.v1.ConvLens/ClassifyStream"}
    assert {root.trace_id.hex() for root, _ in trees} == {TRACE}
    codes = {attributes(root)["rpc.grpc.status_code"]: sorted(parts) for root, parts in trees}
    assert codes == {0: ["compute", "queue"], grpc.StatusCode.INVALID_ARGUMENT.value[0]: []}


def test_failures(traced, collector):
    with traced(share=1.0) as server:
        for model in ("nobody", "broken"):
            with pytest.raises(grpc.RpcError):
                server.stub.Classify(pb.ClassifyRequest(model=model, images=raw(pixels(1))), timeout=20)

    roots = [root for root, _ in collector.trees()]
    codes = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
    assert [attributes(root)["rpc.grpc.status_code"] for root in roots] == [code.value[0] for code in codes]
    # What a caller did wrong is no error of the server.
    assert all(root.status.code == trace_pb2.Status.STATUS_CODE_UNSET for root in roots)


def test_feature_maps(traced, collector):
    images = np.zeros((2, 16, 12, 3), np.uint8)
    request = pb.GetFeatureMapsRequest(model="conv", images=raw(images), layers=["conv_1", "output"])
    with traced(share=1.0) as server:
        assert len(list(server.stub.GetFeatureMaps(request, timeout=20))) == 2

    [(root, parts)] = collector.trees()
    assert root.name == "convlens.v1.ConvLens/GetFeatureMaps"
    assert attributes(root)["convlens.model"] == "conv"
    assert attributes(root)["convlens.images"] == 2
    assert sorted(parts) == ["lens", "queue"]
    layers = attributes(parts["lens"])["convlens.layers"]
    assert [value.string_value for value in layers.values] == ["conv_1", "output"]


def test_the_open_inference_protocol(traced, collector):
    images = pixels(1)
    tensor = v2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 1, 8, 8])
    content = (images.reshape(1, 1, 8, 8) / np.float32(255)).astype(np.float32).tobytes()

    def infer(*names):
        outputs = [v2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]
        return v2.ModelInferRequest(
            model_name="linear", inputs=[tensor], outputs=outputs, raw_input_contents=[content]
        ).SerializeToString()

    with traced(share=1.0) as server:
        ask = server.channel.unary_unary(f"{INFER}ModelInfer")
        for outputs in ((), ("flatten",), ("flatten", "scores")):
            ask(infer(*outputs), timeout=20)
        server.channel.unary_unary(f"{INFER}ServerLive")(b"", timeout=20)

    trees = {(root.name, tuple(sorted(parts))) for root, parts in collector.trees()}
    assert trees == {
        ("inference.GRPCInferenceService/ModelInfer", ("compute", "queue")),
        ("inference.GRPCInferenceService/ModelInfer", ("lens", "queue")),
        ("inference.GRPCInferenceService/ModelInfer", ("compute", "lens", "queue")),
        ("inference.GRPCInferenceService/ServerLive", ()),
    }


def test_callers_over_http(traced, collector):
    body = {"inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
    with traced() as server:
        url = f"http://127.0.0.1:{server.state.http_port}/v2/models/linear/infer"
        assert httpx.post(url, json=body, headers=[SAMPLED], timeout=20).status_code == 200

    [(root, parts)] = collector.trees()
    assert (root.name, root.trace_id.hex()) == ("inference.GRPCInferenceService/ModelInfer", TRACE)
    assert sorted(parts) == ["compute", "queue"]


def test_callers_who_leave(traced, collector):
    with traced(share=1.0, max_batch=1) as server:
        calls = [server.stub.Classify.future(question(), timeout=20) for _ in range(50)]
        for call in calls[1:]:
            call.cancel()
        calls[0].result()

    codes = {attributes(root)["rpc.grpc.status_code"] for root, _ in collector.trees()}
    assert codes <= {0, grpc.StatusCode.CANCELLED.value[0]}
    assert 0 in codes


def test_a_collector_that_is_not_there_costs_no_request(models, caplog):
    with serving(models, trace_endpoint="http://127.0.0.1:1", trace_share=1.0) as server:
        response = server.stub.Classify(question(), timeout=20)

    assert response.model == "linear"
    assert any("export" in record.getMessage() for record in caplog.records)


def test_without_opentelemetry_it_cannot_start(tmp_path, models):
    program = (
        "import sys; sys.modules['opentelemetry'] = None; from convlens_server.main import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    flags = ["--models", models, "--port", "0", "--http-port", "0", "--device", "cpu", "--log-format", "human"]
    command = [sys.executable, "-c", program, *flags, "--trace-endpoint", "http://127.0.0.1:4317"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "pip install 'convlens[tracing]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("endpoint", ["otel:4317", "grpc://otel:4317", "http://"])
def test_an_endpoint_that_is_no_url(endpoint, capsys):
    with pytest.raises(SystemExit):
        parse_config(["--trace-endpoint", endpoint])
    assert "--trace-endpoint" in capsys.readouterr().err

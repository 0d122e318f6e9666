"""Models as this protocol describes them: metadata, configuration, statistics."""

from __future__ import annotations

import json

from google.protobuf.json_format import MessageToDict

from convlens_server.model import Model
from convlens_server.statistics import Compute, Duration, Statistics
from convlens_server.v2 import model_config_pb2 as config_pb
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.face import Face

PLATFORM = "onnxruntime_onnx"
_BACKEND = "onnxruntime"


def metadata(model: Model, face: Face, ready_versions: list[int]) -> pb.ModelMetadataResponse:
    """What a model takes and gives."""
    response = pb.ModelMetadataResponse(
        name=model.name, versions=[str(number) for number in ready_versions], platform=PLATFORM
    )
    response.inputs.add(name=face.input_name, datatype=face.datatype.name, shape=(-1, *face.shape))
    for output in face.declared:
        response.outputs.add(name=output.name, datatype=output.datatype.name, shape=(-1, *output.shape))
    layers = [MessageToDict(layer, preserving_proto_field_name=True) for layer in model.layer_messages]
    response.properties["convlens.layers"] = json.dumps(layers, ensure_ascii=False)
    response.properties["convlens.manifest"] = model.manifest.to_json()
    return response


def configuration(model: Model, face: Face) -> config_pb.ModelConfig:
    """How a model is configured: what its config.pbtxt says, with all that was derived."""
    config = config_pb.ModelConfig()
    if model.config is not None:
        config.CopyFrom(model.config)
    settings = model.settings
    config.name = model.name
    config.platform = config.platform or PLATFORM
    config.backend = config.backend or _BACKEND
    config.max_batch_size = face.max_images
    config.default_model_filename = config.default_model_filename or "model.onnx"
    if model.config is None:
        config.version_policy.all.SetInParent()
    elif config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    labels = [output.label_filename for output in config.output][:1]
    del config.input[:], config.output[:]
    last = model.network.own.channels_last
    config.input.add(
        name=face.input_name,
        data_type=face.datatype.config,
        format=config_pb.ModelInput.FORMAT_NHWC if last else config_pb.ModelInput.FORMAT_NCHW,
        dims=face.shape,
    )
    for output in face.declared:
        config.output.add(
            name=output.name, data_type=output.datatype.config, dims=output.shape, label_filename="".join(labels)
        )
    if not config.instance_group:
        _instances(model, config)
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = round(settings.queue_delay * 1e6)
    if not batching.preferred_batch_size:
        batching.preferred_batch_size.append(model.batcher.max_batch)
    batching.default_queue_policy.max_queue_size = settings.queue.max_queue
    return config


def _instances(model: Model, config: config_pb.ModelConfig) -> None:
    kind, _, index = model.device.partition(":")
    group = config.instance_group.add(name=f"{model.name}_0", count=1, kind=config_pb.ModelInstanceGroup.KIND_CPU)
    if kind == "cuda":
        group.kind = config_pb.ModelInstanceGroup.KIND_GPU
        group.gpus.append(int(index))


def statistics(name: str, version: int, counted: Statistics) -> pb.ModelStatistics:
    """What a version has done."""
    compute = counted.compute
    return pb.ModelStatistics(
        name=name,
        version=str(version),
        last_inference=int(counted.last * 1000),
        inference_count=counted.images,
        execution_count=counted.runs,
        inference_stats=pb.InferStatistics(
            success=_duration(counted.success),
            fail=_duration(counted.failed),
            queue=_duration(counted.queue),
            compute_input=_duration(compute.input),
            compute_infer=_duration(compute.infer),
            compute_output=_duration(compute.output),
        ),
        batch_stats=[_batches(size, parts) for size, parts in sorted(counted.by_size.items())],
    )


def _batches(size: int, compute: Compute) -> pb.InferBatchStatistics:
    return pb.InferBatchStatistics(
        batch_size=size,
        compute_input=_duration(compute.input),
        compute_infer=_duration(compute.infer),
        compute_output=_duration(compute.output),
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=max(int(duration.seconds * 1e9), 0))

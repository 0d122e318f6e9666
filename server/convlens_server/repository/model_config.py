"""config.pbtxt: Triton's configuration of a model, in protobuf's text format, read where it is present."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from google.protobuf import text_format
from google.protobuf.message import Message

from convlens_server.device import Device
from convlens_server.errors import ModelError
from convlens_server.repository.policy import ALL, Policy
from convlens_server.repository.text_format import without_unknown
from convlens_server.settings import EngineSettings, ModelSettings, QueuePolicy
from convlens_server.v2 import model_config_pb2 as pb

FILE = "config.pbtxt"

_MAX_LEVELS = 64
_MAX_INSTANCES = 64

# What is taken into account, by the path of its field. The names and shapes of inputs and outputs are the file's own.
_HONOURED = frozenset({
    "name", "platform", "backend", "max_batch_size", "default_model_filename",
    "input.name", "input.data_type", "input.format", "input.dims",
    "output.name", "output.data_type", "output.dims", "output.label_filename",
    "version_policy.latest.num_versions", "version_policy.all", "version_policy.specific.versions",
    "instance_group.name", "instance_group.count", "instance_group.kind", "instance_group.gpus",
    "dynamic_batching.preferred_batch_size", "dynamic_batching.max_queue_delay_microseconds",
    "dynamic_batching.priority_levels", "dynamic_batching.default_priority_level",
    "dynamic_batching.default_queue_policy.timeout_action",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "dynamic_batching.default_queue_policy.allow_timeout_override",
    "dynamic_batching.default_queue_policy.max_queue_size", "dynamic_batching.priority_queue_policy",
})  # fmt: skip


@dataclass(frozen=True)
class ModelOptions:
    """What holds for all versions of a model.

    Attributes:
        settings: How it runs.
        policy: Which versions are served.
        config: The config.pbtxt; None where there is none.
        file: Name of the ONNX file in a version's folder; empty: the usual one.
        labels: By class index; None: the manifest's.
        ignored: The options that are not honoured, each with the reason where there is more to say.
    """

    settings: ModelSettings
    policy: Policy = ALL
    config: pb.ModelConfig | None = None
    file: str = ""
    labels: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()


def read_options(name: str, read: Callable[[str], bytes | None], settings: EngineSettings) -> ModelOptions:
    """Reads a model's config.pbtxt and the labels that it names.

    Args:
        name: Of the model.
        read: Gives the content of a file in the model's folder, None if it is not there; raises ModelError for one
            that cannot be read or that is elsewhere.
        settings: What holds where the file says nothing.

    Raises:
        ModelError: The file does not parse, is for another model, or asks for what cannot be; the text says where.
    """
    default = ModelSettings(
        device=settings.device,
        max_batch=settings.max_batch,
        queue_delay=settings.max_queue_delay,
        queue=QueuePolicy(settings.max_queue),
    )
    content = read(FILE)
    if content is None:
        return ModelOptions(default)
    try:
        config, unknown = _parse(content)
        own, reasons = _settings(config, default)
        _check(name, config)
    except _ConfigError as error:
        raise ModelError(f"{FILE}: {error}") from None
    ignored = [path for path in _set_fields(config) if not any(f"{each}.".startswith(f"{path}.") for each in _HONOURED)]
    return ModelOptions(
        own,
        Policy.of(config),
        config,
        config.default_model_filename,
        _labels(config, read),
        tuple(dict.fromkeys([*unknown, *ignored, *reasons])),
    )


class _ConfigError(Exception):
    """The text says what is wrong in config.pbtxt."""


def _parse(content: bytes) -> tuple[pb.ModelConfig, list[str]]:
    """The message, and the paths of fields that it does not have."""
    try:
        text, unknown = without_unknown(content.decode(), pb.ModelConfig.DESCRIPTOR)
        return text_format.Parse(text, pb.ModelConfig()), unknown
    except UnicodeDecodeError as error:
        raise _ConfigError(f"is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except text_format.ParseError as error:
        raise _ConfigError(f"does not parse: {error}") from None


def _set_fields(message: Message, prefix: str = "") -> Iterator[str]:
    """The paths of the fields that are set, to where there is nothing below."""
    for field, value in message.ListFields():
        path = prefix + field.name
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry:
            yield path
            continue
        for each in value if isinstance(value, (list, tuple)) or field.is_repeated else [value]:
            below = list(_set_fields(each, f"{path}."))
            yield from below or [path]


def _check(name: str, config: pb.ModelConfig) -> None:
    if config.name and config.name != name:
        raise _ConfigError(f"is for model {config.name!r}, but lies in the folder of {name!r}")
    if config.platform not in ("", "onnxruntime_onnx"):
        raise _ConfigError(f"platform is {config.platform!r}, but only onnxruntime_onnx is served; export to ONNX")
    if config.backend not in ("", "onnxruntime"):
        raise _ConfigError(f"backend is {config.backend!r}, but only onnxruntime is served; export to ONNX")
    if any(number < 1 for number in config.version_policy.specific.versions):
        raise _ConfigError("version_policy.specific.versions must be positive")
    file = config.default_model_filename
    if file and ("/" in file or "\\" in file or file.startswith(".")):
        raise _ConfigError(
            f"default_model_filename is {file!r}, but must be the name of a file in the version's folder"
        )


def _settings(config: pb.ModelConfig, settings: ModelSettings) -> tuple[ModelSettings, list[str]]:
    """The settings, and what of the configuration is not honoured in them, with the reason."""
    reasons: list[str] = []
    if config.max_batch_size < 0:
        raise _ConfigError(f"max_batch_size is {config.max_batch_size}, but must be 0 or more")
    settings = replace(settings, max_batch=config.max_batch_size or settings.max_batch)
    settings = _instances(config, settings, reasons)
    if not config.HasField("dynamic_batching"):
        return settings, reasons
    batching = config.dynamic_batching
    sizes = sorted(set(batching.preferred_batch_size))
    if sizes and not 1 <= sizes[0] <= sizes[-1] <= settings.max_batch:
        raise _ConfigError(
            f"dynamic_batching.preferred_batch_size is {sizes}, but must be 1 … {settings.max_batch}, the largest batch"
        )
    levels = batching.priority_levels
    if levels > _MAX_LEVELS:
        raise _ConfigError(f"dynamic_batching.priority_levels is {levels}, but may be {_MAX_LEVELS} at most")
    level = batching.default_priority_level
    if levels and not 1 <= level <= levels:
        raise _ConfigError(f"dynamic_batching.default_priority_level is {level}, but must be 1 … {levels}")
    queue = settings.queue
    if batching.HasField("default_queue_policy"):
        queue = _policy(batching.default_queue_policy, settings.queue.max_queue)
    own = {number: _policy(each, settings.queue.max_queue) for number, each in batching.priority_queue_policy.items()}
    for number in sorted(own.keys() - set(range(1, levels + 1))):
        there = f"the levels are 1 … {levels}" if levels else "there are no priority_levels"
        reasons.append(f"dynamic_batching.priority_queue_policy of level {number} ({there})")
    # Without levels all requests are of one, where it has to let some pass others.
    count = levels or int(queue.delays)
    return (
        replace(
            settings,
            preferred=tuple(sizes),
            queue_delay=batching.max_queue_delay_microseconds / 1e6,
            queue=queue,
            levels=tuple(own.get(number, queue) if levels else queue for number in range(1, count + 1)),
            default_level=level or 1,
        ),
        reasons,
    )


def _policy(policy: pb.ModelQueuePolicy, max_queue: int) -> QueuePolicy:
    """A policy; one that does not bound the queue has the server's bound."""
    return QueuePolicy(
        max_queue=policy.max_queue_size or max_queue,
        max_wait=policy.default_timeout_microseconds / 1e6,
        shorter_waits=policy.allow_timeout_override,
        delays=policy.timeout_action == pb.ModelQueuePolicy.DELAY,
    )


def _instances(config: pb.ModelConfig, settings: ModelSettings, reasons: list[str]) -> ModelSettings:
    groups = config.instance_group
    if not groups:
        return settings
    count = 0
    device = settings.device
    kinds = {group.kind for group in groups}
    if kinds == {pb.ModelInstanceGroup.KIND_CPU}:
        device = Device("cpu", reason="asked for by instance_group")
    elif kinds & {pb.ModelInstanceGroup.KIND_GPU} and device.kind == "cpu":
        reasons.append("instance_group.kind KIND_GPU (the server runs on the CPU)")
    if pb.ModelInstanceGroup.KIND_MODEL in kinds:
        reasons.append("instance_group.kind KIND_MODEL (the model runs on the server's device)")
    for group in groups:
        if group.count < 0:
            raise _ConfigError(f"instance_group.count is {group.count}, but must be 0 or more")
        if group.gpus and (device.kind != "cuda" or list(group.gpus) != [device.index]):
            reasons.append(f"instance_group.gpus {list(group.gpus)} (the server runs on {device})")
        count += group.count
    if count > _MAX_INSTANCES:
        raise _ConfigError(f"instance_group asks for {count} instances, but there may be {_MAX_INSTANCES} at most")
    return replace(settings, device=device, instances=count)


def _labels(config: pb.ModelConfig, read: Callable[[str], bytes | None]) -> tuple[str, ...] | None:
    names = [output.label_filename for output in config.output if output.label_filename]
    if not names:
        return None
    content = read(names[0])
    if content is None:
        raise ModelError(f"{FILE}: label_filename is {names[0]!r}, but there is no such file in the model's folder")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise ModelError(f"{FILE}: label_filename {names[0]!r} is not UTF-8 text") from None
    return tuple(line.strip() for line in lines if line.strip())

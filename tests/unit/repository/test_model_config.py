from __future__ import annotations

from collections.abc import Mapping

import pytest

from convlens_server.device import Device
from convlens_server.errors import ModelError
from convlens_server.repository.model_config import ModelOptions, read_options
from convlens_server.settings import EngineSettings, QueuePolicy

CPU = EngineSettings(Device("cpu"), "float32", threads=2, max_batch=16, max_queue=4096, max_queue_delay=0.0)
CUDA = EngineSettings(Device("cuda", 1), "float32", threads=2, max_batch=128, max_queue=4096, max_queue_delay=0.0)


def options(
    text: str | bytes | None, settings: EngineSettings = CPU, files: Mapping[str, bytes] | None = None
) -> ModelOptions:
    content = {"config.pbtxt": text.encode() if isinstance(text, str) else text, **(files or {})}
    return read_options("digits", content.get, settings)


def test_without_a_file() -> None:
    got = options(None)
    assert (got.config, got.labels, got.ignored) == (None, None, ())
    assert (got.settings.max_batch, got.settings.queue, got.settings.instances) == (16, QueuePolicy(4096), 0)
    assert got.policy.choose([1, 2, 5]) == {1, 2, 5}


def test_everything_that_is_honoured() -> None:
    got = options(
        """
        name: "digits"
        backend: "onnxruntime"
        max_batch_size: 32
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, 28, 28 ] format: FORMAT_NCHW } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" } ]
        instance_group [ { name: "a" count: 2 kind: KIND_CPU }, { count: 1 kind: KIND_CPU } ]
        version_policy: { latest { num_versions: 2 } }
        dynamic_batching {
          preferred_batch_size: [ 16, 4 ]
          max_queue_delay_microseconds: 500
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy { default_timeout_microseconds: 250000 allow_timeout_override: true max_queue_size: 100 }
          priority_queue_policy { key: 1 value { max_queue_size: 7 } }
          priority_queue_policy { key: 3 value { timeout_action: DELAY default_timeout_microseconds: 9000000 } }
        }
        """,
        files={"labels.txt": b"zero\none\n"},
    )
    assert got.ignored == ()
    settings = got.settings
    assert (settings.max_batch, settings.preferred, settings.queue_delay) == (32, (4, 16), 0.0005)
    assert settings.queue == QueuePolicy(100, max_wait=0.25, shorter_waits=True)
    assert settings.levels == (
        QueuePolicy(7, shorter_waits=False),
        settings.queue,
        QueuePolicy(4096, max_wait=9.0, shorter_waits=False, delays=True),
    )
    assert (settings.default_level, settings.instances) == (2, 3)
    assert got.labels == ("zero", "one")
    assert got.policy.choose([1, 2, 5, 9]) == {5, 9}
    assert got.config is not None


def test_the_highest_version_alone_is_served_unless_the_file_says_otherwise() -> None:
    assert options("max_batch_size: 4").policy.choose([1, 2, 5]) == {5}
    assert options("version_policy { all {} }").policy.choose([1, 2, 5]) == {1, 2, 5}
    assert options("version_policy { specific { versions: [1, 7] } }").policy.choose([1, 2, 5]) == {1, 7}


def test_what_is_not_honoured_is_named() -> None:
    got = options(
        """
        colour: "red"
        optimization { graph { level: 1 } input_pinned_memory { enable: false } }
        parameters { key: "a" value { string_value: "b" } }
        model_warmup [ { name: "first" "and second" batch_size: 1 }, { name: 'third' } ]
        dynamic_batching {
          preserve_ordering: true; shade: 3, priority_levels: 2 default_priority_level: 1
          priority_queue_policy { key: 3 value: { } }
        }
        instance_group < rate_limiter { resources [ { name: "R1" count: 4 } ] } >
        """
    )
    assert set(got.ignored) == {
        "colour", "optimization", "parameters", "model_warmup", "dynamic_batching.preserve_ordering",
        "dynamic_batching.shade", "instance_group.rate_limiter",
        "dynamic_batching.priority_queue_policy of level 3 (the levels are 1 … 2)",
    }  # fmt: skip


def test_what_the_device_cannot_honour_is_named() -> None:
    got = options("instance_group { kind: KIND_GPU count: 1 gpus: [ 0 ] }")
    assert got.ignored == (
        "instance_group.kind KIND_GPU (the server runs on the CPU)",
        "instance_group.gpus [0] (the server runs on cpu)",
    )
    assert options("instance_group { kind: KIND_GPU count: 2 gpus: [ 1 ] }", CUDA).ignored == ()
    assert options("instance_group { kind: KIND_GPU gpus: [ 0 ] }", CUDA).ignored == (
        "instance_group.gpus [0] (the server runs on cuda:1)",
    )
    assert options("instance_group { kind: KIND_CPU }", CUDA).settings.device == Device(
        "cpu", reason="asked for by instance_group"
    )


def test_what_is_late_without_levels() -> None:
    got = options("dynamic_batching { default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 9 } }")
    assert got.ignored == ()
    # Passing each other takes a level.
    assert got.settings.levels == (got.settings.queue,)
    assert (got.settings.queue.max_wait, got.settings.queue.delays) == (9e-6, True)
    alone = options("dynamic_batching { priority_queue_policy { key: 1 value: { } } }")
    assert alone.ignored == ("dynamic_batching.priority_queue_policy of level 1 (there are no priority_levels)",)
    assert alone.settings.levels == ()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('name: "other"', "is for model 'other', but lies in the folder of 'digits'"),
        ("max_batch_size: many", "does not parse: 1:17"),
        ("max_batch_size { 3 ", "does not parse"),
        ("colour { a: [ 1, }", "does not parse"),
        ("version_policy { latest { num_versions: -1 } }", "does not parse"),
        ("instance_group { kind: KIND_TPU }", "does not parse"),
        (b"\xff\xfe", "is not UTF-8 text"),
        ("max_batch_size: -1", "max_batch_size is -1, but must be 0 or more"),
        ('platform: "tensorflow_savedmodel"', "only onnxruntime_onnx is served"),
        ('backend: "python"', "only onnxruntime is served"),
        ("version_policy { specific { versions: [0] } }", "must be positive"),
        ('default_model_filename: "../../secret.onnx"', "must be the name of a file in the version's folder"),
        ("dynamic_batching { preferred_batch_size: [ 0 ] }", r"preferred_batch_size is \[0\], but must be 1 … 16"),
        ("dynamic_batching { preferred_batch_size: [ 17 ] }", "the largest batch"),
        ("dynamic_batching { priority_levels: 1000000 }", "may be 64 at most"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level is 0, but must be 1 … 2"),
        ("instance_group { count: -1 }", "count is -1"),
        ("instance_group { count: 65 }", "may be 64 at most"),
        ('output { label_filename: "labels.txt" }', "label_filename is 'labels.txt', but there is no such file"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cause(text: str | bytes, error: str) -> None:
    with pytest.raises(ModelError, match=error) as caught:
        options(text)
    assert str(caught.value).startswith("config.pbtxt")


def test_labels_that_are_not_text() -> None:
    with pytest.raises(ModelError, match="is not UTF-8 text"):
        options('output { label_filename: "labels.txt" }', files={"labels.txt": b"\xff"})

"""Which variants are published, and what is told of them."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convlens.manifest import METADATA_KEY, ImageInput, Manifest
from convlens_training import precision, speed, variants
from convlens_training.datasets import Split
from convlens_training.errors import TrainingError
from convlens_training.parity import outputs_of


@pytest.fixture(scope="module")
def model(small_model):
    return small_model


@pytest.fixture(scope="module")
def manifest():
    return Manifest(
        tuple("abcd"), ImageInput(8, 8, 3, in_graph=True), "small", training={"seed": 5, "commit": "c0ffee"}
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def logits(model, images):
    return outputs_of(model, images, 1)[1]


@pytest.fixture
def rates(monkeypatch):
    """Images a second by (precision, batch, threads), instead of measured ones; 1000 where nothing else is said."""
    rates = {}

    def images_per_second(contents, images, batch, threads):
        names = [manifest_of(content).precision for content in contents]
        return [rates.get((name, batch, threads), 1000.0) for name in names]

    monkeypatch.setattr(speed, "images_per_second", images_per_second)
    monkeypatch.setattr(variants.os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    return rates


@pytest.fixture(scope="module")
def made(model, images):
    return {"to_float16": precision.to_float16(model), "to_int8": precision.to_int8(model, images)}


@pytest.fixture
def make(model, manifest, images, logits, made, rates, monkeypatch):
    """Makes the exports, for images that have the labels that float32 answers if no others are given."""
    for name in made:  # once is enough: it takes long
        monkeypatch.setattr(precision, name, lambda *arguments, name=name: made[name])

    def make(labels=None, max_drop=0.2, original=logits):
        held_out = Split(images, logits.argmax(1) if labels is None else labels)
        return variants.make_exports(model, manifest, original, images, held_out, max_drop=max_drop, threads=1)

    return make


def manifest_of(content):
    entries = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    return Manifest.from_json(entries[METADATA_KEY])


def biased(model, amount):
    """The model with more for class 0, so that some images are answered so."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    bias = next(tensor for tensor in made.graph.initializer if tensor.name == "output.bias")
    values = numpy_helper.to_array(bias).copy()
    values[0] += amount
    bias.CopyFrom(numpy_helper.from_array(values, "output.bias"))
    return made


def test_both_are_published(make):
    exports = make()
    assert list(exports.files()) == ["model.onnx", "model.float16.onnx", "model.int8.onnx"]
    for name, content in zip(("float32", "float16", "int8"), exports.files().values(), strict=True):
        onnx.checker.check_model(content, full_check=True)
        assert manifest_of(content).precision == name


def test_each_figure_is_that_of_the_file(make, images, logits):
    """Of each file as it would be published, run anew on all images."""
    truth = logits.argmax(1).copy()
    truth[:100] = (truth[:100] + 1) % 4
    exports = make(truth, max_drop=100)
    assert exports.parity.accuracy == 0.8
    measured = {"float32": exports.parity, **{each.precision: each.parity for each in exports.variants}}
    for name, content in zip(measured, exports.files().values(), strict=True):
        _, own = outputs_of(onnx.load_from_string(content), images, 1)
        assert measured[name].accuracy == (own.argmax(1) == truth).mean()
        assert measured[name].label_agreement == (own.argmax(1) == logits.argmax(1)).mean()
        assert measured[name].max_logit_difference == pytest.approx(np.abs(own - logits).max(), rel=1e-5)
        written = manifest_of(content)
        assert written.metrics == {"test_accuracy": measured[name].accuracy}
        assert written.training["export"]["label_agreement"] == measured[name].label_agreement
        assert written.training["export"]["max_logit_difference"] == measured[name].max_logit_difference
    float16, int8 = (manifest_of(each.content).training["export"] for each in exports.variants)
    assert float16["float32_test_accuracy"] == int8["float32_test_accuracy"] == 0.8
    assert int8["calibration_images"] == 500
    assert 0 < float16["max_logit_difference"] < int8["max_logit_difference"]


def test_the_rest_of_the_manifest_is_the_same(make, manifest):
    for content in make().files().values():
        own = manifest_of(content)
        assert (own.labels, own.input, own.description) == (manifest.labels, manifest.input, manifest.description)
        assert {key: value for key, value in own.training.items() if key != "export"} == manifest.training


def test_the_variants_are_compared_with_torch_and_not_with_float32(make, logits):
    """Torch's logits are a little elsewhere: each variant is told to differ by that too."""
    exports = make(original=logits + np.float32(9e-4))
    assert exports.parity.max_logit_difference == pytest.approx(9e-4, rel=0.05)
    [float16, _] = exports.variants
    assert float16.parity.max_logit_difference > 9e-4


def test_a_float32_export_that_is_not_torch_s_stops_it_all(make, logits):
    with pytest.raises(TrainingError, match="nothing was published"):
        make(original=logits + 1)


@pytest.mark.parametrize("slow", [(batch, threads) for batch in (1, 16) for threads in (1, 4)])
def test_int8_that_is_slower_anywhere_is_not_published(make, rates, slow):
    rates["int8", *slow] = 990.0
    exports = make()
    assert list(exports.files()) == ["model.onnx", "model.float16.onnx"]
    int8 = exports.variants[1]
    plural = "s" if slow[1] > 1 else ""
    assert int8.reason == (
        f"slower than float32 on this machine: 0.99 times as fast (batch {slow[0]}, {slow[1]} thread{plural})"
    )
    assert int8.content, "what was measured of it is told all the same"
    assert int8.figures()["accuracy"] is not None


def test_int8_that_is_as_fast_is_published(make):
    int8 = make().variants[1]
    assert int8.published
    assert int8.reason.endswith("; 1.00 … 1.00 times as fast on this machine's CPU")


def test_float16_that_is_slower_here_is_published(make, rates):
    rates |= {("float16", batch, threads): 100.0 for batch in (1, 16) for threads in (1, 4)}
    float16 = make().variants[0]
    assert float16.published
    assert float16.reason.endswith("0.10 … 0.10 times as fast on this machine's CPU")


def test_speeds_are_told(make, rates):
    rates |= {("float32", 16, 1): 4000.0, ("int8", 16, 1): 6000.0, ("float16", 16, 1): 3000.0}
    exports = make()
    assert exports.speeds() == [
        {"batch": 1, "threads": 1, "float32": 1000.0, "float16": 1000.0, "int8": 1000.0},
        {"batch": 16, "threads": 1, "float32": 4000.0, "float16": 3000.0, "int8": 6000.0},
        {"batch": 1, "threads": 4, "float32": 1000.0, "float16": 1000.0, "int8": 1000.0},
        {"batch": 16, "threads": 4, "float32": 1000.0, "float16": 1000.0, "int8": 1000.0},
    ]
    assert [each.images_per_second for each in exports.variants] == [3000.0, 6000.0]


@pytest.mark.parametrize(("wrong", "max_drop", "published"), [(1, 0.2, True), (2, 0.2, False), (2, 0.4, True)])
@pytest.mark.parametrize("name", ["float16", "int8"])
def test_a_variant_may_lose_max_drop_points_and_no_more(
    make, model, images, logits, monkeypatch, name, wrong, max_drop, published
):
    # So much that the five images nearest to it go over to class 0.
    behind = logits.max(1) - logits[:, 0]
    changed = biased(model, np.sort(behind[behind > 0])[4] + 1e-4)
    differ = np.flatnonzero(outputs_of(changed, images, 1)[1].argmax(1) != logits.argmax(1))
    assert len(differ) >= 2
    monkeypatch.setattr(precision, f"to_{name}", lambda *arguments: changed)
    truth = logits.argmax(1).copy()
    # Of the images that are answered otherwise, so many are wrong by it; the others were wrong before.
    for index in differ[wrong:]:
        truth[index] = next(label for label in range(1, 4) if label != truth[index])
    exports = make(truth, max_drop)
    [variant] = [each for each in exports.variants if each.precision == name]
    assert variant.published is published
    assert (f"model.{name}.onnx" in exports.files()) is published
    if not published:
        assert f"{wrong / 5:.2f} points less, but at most {max_drop:g} are allowed" in variant.reason
        assert f"accuracy {variant.parity.accuracy:.2%}, float32 {exports.parity.accuracy:.2%}" in variant.reason


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such\n operator"), "cannot make it: no such operator"),
        (KeyError("x"), "cannot make it: 'x'"),
        (AssertionError(), "cannot make it: AssertionError"),
        (OSError(28, "No space left on device"), r"No space left on device\): make room .* TMPDIR"),
    ],
)
def test_a_variant_that_cannot_be_made_does_not_stop_the_others(make, monkeypatch, error, text):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(precision, "to_int8", fails)
    exports = make()
    assert list(exports.files()) == ["model.onnx", "model.float16.onnx"]
    int8 = exports.variants[1]
    assert int8.figures() == {
        "precision": "int8", "published": False, "accuracy": None, "label_agreement": None,
        "max_logit_difference": None, "images_per_second": None, "bytes": None, "reason": int8.reason,
    }  # fmt: skip
    assert re.search(text, int8.reason)
    assert all(set(line) == {"batch", "threads", "float32", "float16"} for line in exports.speeds())


def test_a_failure_of_the_timing_loses_the_variants_only(make, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr(speed, "images_per_second", fails)
    exports = make()
    assert list(exports.files()) == ["model.onnx"]
    assert exports.speeds() == []
    assert {each.reason.partition(":")[0] for each in exports.variants} == {"its speed could not be measured"}


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(make, model, monkeypatch, number):
    """As where a sum is beyond what float16 holds; accuracy alone may be within the bound."""
    broken = biased(model, number)
    monkeypatch.setattr(precision, "to_float16", lambda model: broken)
    exports = make(max_drop=100)
    assert list(exports.files()) == ["model.onnx", "model.int8.onnx"]
    float16 = exports.variants[0]
    assert float16.reason == "some of its logits are no finite numbers: they are beyond what float16 can hold"
    assert json.loads(json.dumps(float16.figures(), allow_nan=False))["max_logit_difference"] is None


def test_measured_on_this_machine(model, manifest, images, logits, monkeypatch):
    """Nothing is replaced but the number of rounds: what is said agrees with what was measured."""
    monkeypatch.setattr(speed, "_ROUNDS", 1)
    held_out = Split(images[:100], logits[:100].argmax(1))
    exports = variants.make_exports(model, manifest, logits[:100], images, held_out, max_drop=100, threads=1)
    assert all(rate > 0 for line in exports.speeds() for rate in line.values())
    int8 = exports.variants[1]
    assert int8.published == all(line["int8"] >= line["float32"] for line in exports.speeds())
    assert int8.published or "slower than float32 on this machine" in int8.reason

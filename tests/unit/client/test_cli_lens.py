"""The commands that look into a network, against a scripted server."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL.Image
import pytest

from convlens.v1 import convlens_pb2 as pb
from unit.client import lens_messages as messages


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Some commands write where they run."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "explain a",
        "explain a --layer b --row -1",
        "attribute a --method magic",
        "attribute a --output b --npz c",
        "graph",
        "kernels",
        "kernels a --channels x",
        "maximizing a --count 0",
        "compare",
    ],
)
def test_wrong_usage_is_2(run, line):
    status, out, err = run(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith("usage: convlens")


def test_explain(run, fake, image, tmp_path):
    fake.expect("ExplainUnit", *[messages.explained(**messages.ARITHMETIC["wide_weighted_sum"])] * 2)
    status, out, _ = run(
        "explain",
        image,
        "--layer",
        "a",
        "--channel",
        3,
        "--row",
        1,
        "--column",
        2,
        "--output",
        "a.png",
        "--npz",
        "a.npz",
    )
    assert status == 0
    assert out.splitlines()[0] == f"a[3, 1, 2] = {messages.TEXTS['wide_weighted_sum']} = 4.5"
    assert "3 × 3 pixels of the image, from row -1 and column 0" in out
    assert fake.calls[0][1].unit == pb.Unit(layer="a", channel=3, row=1, column=2)
    with PIL.Image.open(tmp_path / "a.png") as drawn:
        assert drawn.format == "PNG"
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["values"].shape == arrays["weights"].shape == (6, 3, 3)
        np.testing.assert_array_equal(arrays["values"] * arrays["weights"], arrays["products"])
        assert arrays["result"] == arrays["sum"] + arrays["bias"] - 19
    result = json.loads(run("explain", image, "--layer", "a", "--json")[1])
    assert (result["layer"], result["result"], result["receptive_field"]["top"]) == ("a", 4.5, -1)
    assert result["arithmetic"] == messages.TEXTS["wide_weighted_sum"]


@pytest.mark.parametrize("name", messages.ARITHMETIC)
def test_explain_writes_every_number(run, fake, image, tmp_path, name):
    fake.expect("ExplainUnit", messages.explained(**messages.ARITHMETIC[name]))
    assert run("explain", image, "--layer", "a", "--npz", tmp_path / "a.npz")[0] == 0
    with np.load(tmp_path / "a.npz") as arrays:
        names = {"result", "activation", "values"}
        more = {
            "weighted_sum": {"weights", "products", "channel_sums", "sum", "bias", "largest"},
            "max": {"argmax", "sum", "divisor"}, "mean": {"sum", "divisor"}, "function": {"min", "max"},
            "softmax": {"exponentials", "sum", "index"},
        }  # fmt: skip
        of = "weighted_sum" if name in ("wide_weighted_sum", "dense", "bias_alone") else name
        assert set(arrays) == names | more.get(of, set())


def test_explain_draws_only_with_matplotlib(run, fake, image, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    fake.expect("ExplainUnit", *[messages.explained(**messages.ARITHMETIC["max"])] * 2)
    status, _, err = run("explain", image, "--layer", "a", "--output", "a.png")
    assert (status, err.count("\n")) == (1, 1)
    assert "pip install 'convlens[plot]'" in err
    assert run("explain", image, "--layer", "a")[0] == 0


def test_attribute(run, fake, image, tmp_path):
    overlay = np.arange(24, dtype=np.uint8)
    answer = messages.attributed(overlay=overlay.tobytes())
    fake.expect("Attribute", answer, answer)
    status, out, _ = run(
        "attribute", image, "--method", "score_cam", "--class", 1, "--layer", "a", "--window", 4, "--stride", 2
    )
    assert status == 0
    assert out.splitlines() == ["<koala> (75.00%) by occlusion: most at row 1, column 2 (1); 40 images computed",
                                "attribution.png"]  # fmt: skip
    request = fake.calls[0][1]
    assert request.method == pb.ATTRIBUTION_METHOD_SCORE_CAM
    assert (request.class_index, request.layer, request.window, request.stride) == (1, "a", 4, 2)
    with PIL.Image.open(tmp_path / "attribution.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn)[::256, ::256], overlay.reshape(2, 3, 4))
    result = json.loads(run("attribute", image, "--npz", "a.npz", "--json")[1])
    assert (result["file"], result["label"], result["row"], result["column"]) == ("a.npz", "<koala>", 1, 2)
    with np.load(tmp_path / "a.npz") as arrays:
        assert (arrays["map"].shape, arrays["overlay"].shape) == ((2, 3), (2, 3, 4))


def test_kernels(run, fake, tmp_path):
    weights = np.linspace(-1, 1, 18, dtype=np.float32).reshape(2, 1, 3, 3)
    fake.expect("GetKernels", messages.kernels(weights, bias=[1, 2]), messages.kernels(weights))
    status, out, _ = run("kernels", "conv_1", "--channels", "3,1")
    assert status == 0
    assert out.splitlines()[1].split() == ["conv_1", "conv", "2×1×3×3", "-1", "1", "2", "kernels.png"]
    assert list(fake.calls[0][1].channels) == [3, 1]
    assert (tmp_path / "kernels.png").exists()
    result = json.loads(run("kernels", "conv_1", "--npz", "k.npz", "--json")[1])
    assert (result["shape"], result["bias"]) == ([2, 1, 3, 3], None)
    with np.load(tmp_path / "k.npz") as arrays:
        assert list(arrays) == ["weights"]
        np.testing.assert_array_equal(arrays["weights"], weights)


def test_compare(run, fake, image):
    second = messages.compared(cosine=[1.0], relative_difference=[0.5], cka=0.25)
    fake.expect("Compare", [messages.compared()], [second])
    status, out, _ = run("compare", image, image)
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["LAYER", "KIND", "COSINE", "RELATIVE", "DIFFERENCE"],
        ["conv_1", "conv", "0.5000", "1.5000"],
    ]
    assert fake.calls[0][1].second.images == fake.calls[0][1].first.images
    status, out, _ = run("compare", image, image, "--other-model", "n", "--other-version", 3, "--json")
    assert json.loads(out) == [
        {"layer": "conv_1", "kind": "conv", "cosine": [0.5, 1.0], "relative_difference": [1.5, 0.5], "cka": 0.25}
    ]
    request = fake.calls[1][1]
    assert (len(request.first.images.encoded.files), request.second) == (2, pb.CompareSide(model="n", version=3))


def test_compare_models_for_several_images(run, fake, image):
    fake.expect("Compare", [messages.compared(cosine=[1.0], relative_difference=[0.5], cka=0.25)])
    status, out, _ = run("compare", image, image, "--other-model", "n")
    assert status == 0
    assert out.splitlines()[0].split() == ["LAYER", "KIND", "MEAN", "COSINE", "MEAN", "RELATIVE", "DIFFERENCE", "CKA"]
    assert out.splitlines()[1].split() == ["conv_1", "conv", "0.7500", "1.0000", "0.2500"]
    assert out.splitlines()[-1] == "These are the layers that both sides have by name and shape."


def test_graph(run, fake):
    fake.expect("GetGraph", messages.graph(), messages.graph())
    status, out, _ = run("graph", "m", "--version", 2)
    assert status == 0
    assert fake.calls[0][1].model == "m"
    assert fake.calls[0][1].version == 2
    block, layer = out.splitlines()[1:3]
    assert block.split() == ["conv", "1", "layers"]
    assert layer.startswith("  conv_1 ")
    assert layer.split() == ["conv_1", "conv", "2×3×3", "162", "450", "2.8×", "input"]
    assert out.splitlines()[-1].startswith("m 2: 1 layers with 162 connections between units;")
    found = json.loads(run("graph", "m", "--json")[1])
    assert found["edges"] == [["input", "conv_1"]]
    assert found["blocks"] == [{"name": "conv", "layers": ["conv_1"], "parent": ""}]
    assert found["layers"][0]["dense_connections"] == 450


def test_without_a_command_all_are_listed(run):
    status, out, err = run()
    assert (status, out) == (2, "")
    assert "show how a model's layers are connected" in err


def test_what_json_cannot_say_is_null(run, fake, image):
    fake.expect("Compare", [messages.compared(cosine=[0.0], relative_difference=[float("inf")])])
    out = run("compare", image, image, "--json")[1]
    assert "Infinity" not in out
    assert json.loads(out)[0]["relative_difference"] == [1.5, None]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("explain a.png --layer a --row -1", "argument --row: -1 is negative"),
        ("explain a.png --layer a --row x", "argument --row: 'x' is not a whole number"),
        ("attribute a.png --window 0", "argument --window: 0 is not positive"),
        ("kernels a --channels 1,x", "argument --channels: 'x' is not a whole number"),
        ("kernels a --timeout soon", "argument --timeout: 'soon' is not a positive number of seconds"),
        ("kernels a --timeout inf", "argument --timeout: 'inf' is not a positive number of seconds"),
    ],
)
def test_numbers_are_checked(run, line, text):
    status, _, err = run(*line.split())
    assert status == 2
    assert err.endswith(f"error: {text}\n")


def test_compare_takes_two_images(run, image):
    status, out, err = run("compare", image)
    assert (status, out) == (2, "")
    assert err == "convlens: compare takes two images, or --other-model or --other-version\n"


def test_maximizing(run, fake):
    fake.expect("MaximizingImages", messages.maximizing(), messages.maximizing())
    status, out, err = run("maximizing", "conv_1", "--dataset", "photos", "--count", 3, "--channels", "5,0")
    assert (status, err) == (0, "")
    assert out.splitlines()[1].split() == ["5", "2.5", "1", "2", "a/b.png"]
    request = fake.calls[0][1]
    assert (request.layer, request.dataset, request.count, list(request.channels)) == ("conv_1", "photos", 3, [5, 0])
    first, second = json.loads(run("maximizing", "conv_1", "--json")[1])
    assert first["images"][0]["file"] == "a/b.png"
    assert (second["channel"], second["images"]) == (0, [])


def test_samples(run, fake, tmp_path):
    buffer = io.BytesIO()
    PIL.Image.new("L", (4, 4)).save(buffer, "WebP")
    samples = [pb.Sample(name="7", file=messages.png()), pb.Sample(name="../x", file=buffer.getvalue())]
    fake.expect("GetSamples", pb.GetSamplesResponse(samples=samples), pb.GetSamplesResponse())
    status, out, _ = run("samples", "--model", "m", "--output", "folder")
    assert status == 0
    assert out.splitlines() == ["folder/7.png", "folder/x.webp"]
    assert (tmp_path / "folder" / "7.png").read_bytes() == messages.png()
    status, out, err = run("samples")
    assert (status, out) == (1, "")
    assert "has no samples" in err

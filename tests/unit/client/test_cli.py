"""The command, against a scripted server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from types import ModuleType

import grpc
import numpy as np
import PIL.Image
import pytest

from convlens._pictures import grid
from convlens.v1 import convlens_pb2 as pb


def test_version(run):
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("convlens 0.")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fly",
        "classify",
        "classify a --top-k 0",
        "classify a --version one",
        "models --timeout -1",
        "maps a --all --kinds conv",
        "maps a --output b --npz c",
        "bench --requests 1 --seconds 1",
    ],
)
def test_wrong_usage_is_2(run, line):
    status, out, err = run(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith("usage: convlens")


def test_classify_prints_a_table(run, fake, echo, image, tmp_path):
    second = tmp_path / "cat.png"
    second.write_bytes(b"a cat")
    fake.expect("ClassifyStream", echo)
    status, out, err = run("classify", image, second)
    assert (status, err) == (0, "")
    rows = [line.split(None, 3) for line in out.splitlines()]
    assert rows == [["IMAGE", "SCORE", "LABEL"], [str(image), "75.00%", "7"], [str(second), "75.00%", "a", "cat"]]


def test_classify_prints_json(run, fake, echo, image):
    fake.expect("ClassifyStream", echo)
    status, out, _ = run("classify", image, "--json")
    assert status == 0
    assert json.loads(out) == [
        {
            "image": str(image),
            "predictions": [{"label": "7", "index": 0, "score": 0.75}],
            "model": "lecture_cnn",
            "version": 3,
            "queue_ms": 0.5,
            "compute_ms": 1.5,
        }
    ]


def test_classify_passes_its_options_on(run, fake, image, classified):
    seen = []

    def answer(requests, context):
        for message in requests:
            seen.append(message.request)
            yield pb.ClassifyStreamResponse(id=message.id, response=classified("7"))

    fake.expect("ClassifyStream", answer)
    assert run("classify", image, "--model", "m", "--version", 2, "--top-k", 3, "--timeout", 5)[0] == 0
    assert [(request.model, request.version, request.top_k) for request in seen] == [("m", 2, 3)]


@pytest.mark.parametrize("as_json", [False, True])
def test_classify_goes_on_after_an_image_that_fails(run, fake, echo, image, as_json):
    fake.expect("ClassifyStream", echo)
    status, out, err = run("classify", "/no/such/file", image, *["--json"] * as_json)
    assert status == 1
    assert err == "convlens: the image, '/no/such/file', cannot be read: No such file or directory\n"
    if as_json:
        first, second = json.loads(out)
        assert first["error"]["reason"] == "UNREADABLE_FILE"
        assert second["predictions"][0]["label"] == "7"
    else:
        assert "75.00%  7" in out


def _maps(rng):
    def message(layer, kind, values):
        return pb.GetFeatureMapsResponse(
            layer=layer, kind=kind, data=values.tobytes(), shape=values.shape, value_type=pb.VALUE_TYPE_FLOAT32,
            total_bytes=values.nbytes, model="m", version=1,
        )  # fmt: skip

    conv, dense = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 5, 8, 9), (1, 10)))
    return conv, dense, [message("a/conv:1", "conv", conv), message("file", "dense", dense)]


def test_maps_writes_a_grid_a_layer(run, fake, image, tmp_path, rng):
    conv, dense, answer = _maps(rng)
    fake.expect("GetFeatureMaps", answer)
    folder = tmp_path / "new" / "folder"
    status, out, _ = run("maps", image, "--all", "--output", folder)
    assert status == 0
    assert sorted(path.name for path in folder.iterdir()) == ["1-a_conv_1.png", "2-file.png"]
    for path, values in zip(sorted(folder.iterdir()), (conv[0], dense[0]), strict=True):
        with PIL.Image.open(path) as written:
            np.testing.assert_array_equal(np.asarray(written), np.asarray(grid(values)))
    assert out.splitlines()[0].split() == ["LAYER", "KIND", "SHAPE", "MIN", "MAX", "FILE"]
    assert out.splitlines()[1].split()[:3] == ["a/conv:1", "conv", "5×8×9"]


def test_maps_writes_an_archive(run, fake, image, tmp_path, rng):
    conv, dense, answer = _maps(rng)
    fake.expect("GetFeatureMaps", answer)
    file = tmp_path / "maps.npz"
    status, out, _ = run("maps", image, "--layers", "a/conv:1,file", "--npz", file, "--json")
    assert status == 0
    with np.load(file) as archive:
        assert sorted(archive) == ["a/conv:1", "file"]
        np.testing.assert_array_equal(archive["a/conv:1"], conv[0])
        np.testing.assert_array_equal(archive["file"], dense[0])
    first, second = json.loads(out)
    assert first == {
        "file": str(file), "layer": "a/conv:1", "kind": "conv", "shape": [5, 8, 9], "minimum": float(conv.min()),
        "maximum": float(conv.max()),
    }  # fmt: skip
    assert second["shape"] == [10]


@pytest.mark.parametrize(
    ("arguments", "layers", "kinds", "everything"),
    [
        ([], [], ["conv"], False),
        (["--all"], [], [], True),
        (["--kinds", "relu,max_pool"], [], ["relu", "max_pool"], False),
        (["--layers", "conv_1,dense"], ["conv_1", "dense"], [], False),
    ],
)
def test_maps_asks_for_what_is_wanted(run, fake, image, tmp_path, arguments, layers, kinds, everything):
    fake.expect("GetFeatureMaps", [])
    assert run("maps", image, "--output", tmp_path, *arguments)[0] == 0
    request = fake.calls[0][1]
    assert (list(request.layers), list(request.kinds), request.all_layers) == (layers, kinds, everything)
    assert request.value_type == pb.VALUE_TYPE_UINT8


def test_maps_that_cannot_be_written(run, fake, image, tmp_path, rng):
    fake.expect("GetFeatureMaps", _maps(rng)[2])
    file = tmp_path / "no" / "folder.npz"
    status, out, err = run("maps", image, "--npz", file)
    assert (status, out) == (1, "")
    assert err == f"convlens: {file}: No such file or directory\n"


_VERSIONS = [
    pb.ModelVersion(
        model="lecture_cnn", version=2, state=pb.MODEL_STATE_READY, is_default=True, classes=10, height=28, width=28,
        channels=1, parameters=1_199_882,
    ),
    pb.ModelVersion(model="other", version=1, state=pb.MODEL_STATE_FAILED, error="not an ONNX file"),
    pb.ModelVersion(model="other", version=2, state=pb.MODEL_STATE_READY, error="its file is another now"),
    pb.ModelVersion(model="other", version=3, state=pb.MODEL_STATE_UNLOADED),
    pb.ModelVersion(model="wrong", state=pb.MODEL_STATE_FAILED, error="no version"),
]  # fmt: skip


def test_models(run, fake):
    fake.expect("ListModels", *[pb.ListModelsResponse(models=_VERSIONS)] * 2)
    status, out, _ = run("models")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["lecture_cnn", "2", "default", "28×28×1", "10", "1,199,882"]
    assert lines[2] == ["other", "1", "failed"]
    assert [line[2 if line[1].isdigit() else 1] for line in lines[3:6]] == ["ready", "unloaded", "failed"]
    assert out.splitlines()[6:] == [
        "",
        "other 1 failed: not an ONNX file",
        "",
        "other 2 is not up to date: its file is another now",
        "",
        "wrong failed: no version",
    ]
    first, second, *_ = json.loads(run("models", "--json")[1])
    assert (first["model"], first["state"], second["error"]) == ("lecture_cnn", "ready", "not an ONNX file")


def test_layers(run, fake):
    layer = pb.Layer(
        name="conv_1", kind="conv", op_type="Conv", inputs=["input"], shape=[32, 26, 26], kernel=[3, 3], stride=[2, 1],
        padding=[1, 1, 1, 1], dilation=[2, 2], groups=4, parameters=320, multiply_accumulates=194_688,
        receptive_field=[3, 3],
    )  # fmt: skip
    response = pb.GetModelResponse(model="m", version=2, layers=[layer], parameters=320, device="cpu")
    fake.expect("GetModel", response, response)
    status, out, _ = run("layers", "m", "--version", 2)
    assert status == 0
    assert "conv_1  conv  32×26×26  3×3, stride 2×1, padding 1,1,1,1, dilation 2×2, 4 groups" in out
    assert "m 2: 320 parameters" in out
    assert fake.calls[0][1] == pb.GetModelRequest(model="m", version=2)
    assert json.loads(run("layers", "m", "--json")[1])[0]["shape"] == [32, 26, 26]


def test_bench(run, fake, classified, refusal):
    model = pb.GetModelResponse(model="m", version=2, height=4, width=5, channels=3, device="cpu")
    fake.expect("GetModel", model, model)
    fake.expect("Classify", *[classified("a", "b")] * 11)
    status, out, err = run("bench", "--requests", 10, "--images", 2, "--concurrency", 3, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["requests"], result["images_per_request"], result["errors"]) == (10, 2, {})
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    requests = [request for method, request in fake.calls if method == "Classify"]
    assert {len(request.images.raw.pixels) for request in requests} == {2 * 4 * 5 * 3}

    fake.expect("Classify", classified("a"), refusal(grpc.StatusCode.INTERNAL, "broken"), classified("a"))
    status, out, err = run("bench", "--requests", 2, "--concurrency", 1)
    assert status == 1
    assert out.splitlines()[1].split()[-1] == "1"
    assert err == "convlens: 1 × broken\n"


def test_bench_for_a_time(run, fake, classified):
    fake.expect("GetModel", pb.GetModelResponse(model="m", version=2, height=4, width=5, channels=3))
    fake.expect("Classify", *[classified("a")] * 100_000)
    status, out, _ = run("bench", "--seconds", 1, "--concurrency", 2, "--json")
    assert status == 0
    assert json.loads(out)["requests"] >= 1
    fake.forget()


def test_an_error_is_one_line(run, fake, refusal):
    fake.expect("GetModel", refusal(grpc.StatusCode.NOT_FOUND, "no model 'a'\n(did you mean b?)"))
    assert run("layers", "a") == (1, "", "convlens: no model 'a' (did you mean b?)\n")


def test_the_option_beats_the_environment(run, fake, address, monkeypatch):
    monkeypatch.setenv("CONVLENS_SERVER", "not an address")
    fake.expect("ListModels", pb.ListModelsResponse())
    assert run("models", "--server", address)[0] == 0
    status, _, err = run("models")
    assert status == 1
    assert "'not an address', but must be host:port" in err


def test_ctrl_c_is_130(run, fake, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("convlens._client.Client.models", interrupt)
    assert run("models") == (130, "", "")


def test_a_reader_that_leaves_is_no_error(address, fake):
    fake.expect("ListModels", pb.ListModelsResponse(models=_VERSIONS * 5000))
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "convlens.cli", "models"]
    result = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, env={**os.environ, "CONVLENS_SERVER": address}, check=False
    )
    os.close(write)
    assert result.stderr == b""
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("command", "module", "extras"),
    [("serve", "convlens_server.launch", "server"), ("train", "convlens_training.cli", "server,training")],
)
class TestDelegates:
    def test_arguments_pass_on(self, run, monkeypatch, command, module, extras):
        seen = []
        fake = ModuleType(module)
        fake.main = lambda argv: seen.append(argv) or 7
        monkeypatch.setitem(sys.modules, module, fake)
        assert run(command, "--help", "--json", "x")[0] == 7
        assert seen == [["--help", "--json", "x"]]

    def test_a_missing_package_names_the_extra(self, run, monkeypatch, command, module, extras):
        monkeypatch.setitem(sys.modules, module, _importing("a_package_that_is_missing.part"))
        assert run(command) == (
            1,
            "",
            f"convlens: {command} needs the package a_package_that_is_missing, which is missing: "
            f"pip install 'convlens[{extras}]'\n",
        )

    @pytest.mark.parametrize("name", ["convlens_server.no_such_module", "convlens.nothing", "json.no_such_module"])
    def test_other_import_errors_are_not_hidden(self, run, monkeypatch, command, module, extras, name):
        monkeypatch.setitem(sys.modules, module, _importing(name))
        with pytest.raises(ModuleNotFoundError):
            run(command)

    def test_ctrl_c_is_130(self, run, monkeypatch, command, module, extras):
        fake = ModuleType(module)

        def main(argv):
            raise KeyboardInterrupt

        fake.main = main
        monkeypatch.setitem(sys.modules, module, fake)
        assert run(command)[0] == 130


def _importing(name):
    module = ModuleType("stand-in")

    def main(argv):
        __import__(name)

    module.main = main
    return module


class TestGrid:
    def test_a_tile_a_channel_by_its_own_range(self):
        values = np.zeros((4, 50, 50), np.float32)
        values[0, 0, 0], values[1, 0, 0] = 1, 100
        pixels = np.asarray(grid(values))
        # 2 × 2 tiles of 50 × 50 values, each a square of 3 × 3 pixels, with gaps of 2.
        assert pixels.shape == (2 * 152 + 2, 2 * 152 + 2, 3)
        assert (pixels[2:5, 2:5] == 255).all()
        assert (pixels[2:5, 154:157] == 255).all()
        assert (pixels[5:152, 5:152] == 0).all()
        assert (pixels[0] == [36, 36, 40]).all()

    def test_signs_have_colours(self):
        values = np.array([[[-1.0, 0, 1, 0.5]]], np.float32)
        pixels = np.asarray(grid(values))
        low, zero, high, middle = (tuple(map(int, pixels[10, 2 + 48 * i + 24])) for i in range(4))
        assert zero == (247, 247, 247)
        assert low[2] > low[0]
        assert high[0] > high[2]
        assert sum(high) < sum(middle) < sum(zero)

    @pytest.mark.parametrize(
        ("shape", "size"),
        [
            ((10,), (32 * 10 + 4, 36)),
            ((1690,), (1024 + 4, 2 + 2 * 34)),
            ((128, 1, 1), (1024 + 4, 36)),
            ((512, 7, 7), (32 * 65 + 2, 16 * 65 + 2)),
            ((64, 112, 112), (8 * 114 + 2, 8 * 114 + 2)),
            ((1, 5, 5), (194, 194)),
        ],
    )
    def test_sizes(self, shape, size):
        image = grid(np.ones(shape, np.float32))
        assert image.mode == "RGB"
        assert image.width == pytest.approx(size[0], abs=4)
        assert image.height == pytest.approx(size[1], abs=4)

    @pytest.mark.parametrize("value", [0, np.nan, np.inf, -np.inf, 1e-45, -3e38])
    def test_any_value_is_drawn(self, value):
        values = np.zeros((3, 4, 4), np.float32)
        values[1, 2, 2] = value
        buffer = io.BytesIO()
        grid(values).save(buffer, "PNG")
        grid(values.ravel()).save(buffer, "PNG")

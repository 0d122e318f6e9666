from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from convlens import Client
from convlens.cli import main as convlens
from convlens.manifest import METADATA_KEY, ImageInput, Manifest
from convlens_training.evaluate import main
from convlens_training.evaluation import Evaluation
from support import CLASSES, SIDE, expected_logits, linear_model, pixels, put, serving

LABELS = tuple(f"class {n:02}" for n in range(CLASSES))
# Two images a class, in order of the classes.
IMAGES = pixels(2 * CLASSES, seed=4)
TRUTH = np.repeat(np.arange(CLASSES), 2)


def linear(labels: tuple[str, ...] = LABELS, batch: int | None = None, **training: object) -> onnx.ModelProto:
    model = linear_model()
    manifest = Manifest(labels, ImageInput(SIDE, SIDE, 1), metrics={"test_accuracy": 0.125}, training=training)
    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    if batch:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        # Values that do not follow the batch's size: it stays fixed.
        model.graph.node[0].op_type = "Reshape"
        model.graph.node[0].input.append("shape")
        shape = np.array([batch, SIDE * SIDE], np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(shape, "shape"))
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
    return model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    put(folder, "linear", 1, linear(tuple(reversed(LABELS))))
    put(folder, "linear", 2, linear())
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for part, images in (("train", pixels(len(IMAGES))), ("test", IMAGES)):
        for n, (image, label) in enumerate(zip(images, TRUTH, strict=True)):
            path = folder / part / LABELS[label].replace(" ", "_") / f"{n:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    return folder


@pytest.fixture
def run(data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Evaluates "linear" on the data; gives the status, standard output and error."""

    def run(*arguments: object, model: str = "linear") -> tuple[int, str, str]:
        status = main(["--model", model, "--data", str(data), *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_through_a_server_and_through_onnxruntime_the_same(models, tmp_path, run):
    answers = []
    with serving(models) as served:
        for name, way in (("served", ("--server", served.address)), ("local", ("--models", models))):
            status, out, err = run(*way, "--json", "--output", tmp_path / name)
            assert (status, err) == (0, "")
            answers.append((json.loads(out), Evaluation.load(tmp_path / name / "evaluation.npz")))
        assert served.metric("convlens_requests_total", method="ClassifyStream", code="OK") == len(IMAGES)
    (there, from_server), (here, from_here) = answers
    for evaluation in (from_server, from_here):
        assert evaluation.labels == LABELS
        np.testing.assert_array_equal(evaluation.truth, TRUTH)
        np.testing.assert_allclose(evaluation.logits, expected_logits(IMAGES), atol=1e-4)
    np.testing.assert_array_equal(from_server.answers, from_here.answers)
    assert there["accuracy"] == here["accuracy"] == (expected_logits(IMAGES).argmax(1) == TRUTH).mean()
    assert there["confusion"] == here["confusion"]
    assert [each["label"] for each in there["per_class"]] == list(LABELS)
    assert there["version"] == here["version"] == 2
    assert there["manifest_accuracy"] == 0.125
    assert there["precision"] == here["precision"] == "float32"
    assert there["computed_by"] == f"the server at {served.address}, as float32 on cpu"
    assert here["computed_by"] == "onnxruntime, model.onnx"


def test_a_bounded_number_of_images_is_on_the_way(models, run, monkeypatch):
    asked = []
    stream = Client.stream

    def watched(self, images, **options):
        asked.append((len(images), options))
        return stream(self, images, **options)

    monkeypatch.setattr(Client, "stream", watched)
    with serving(models) as served:
        assert run("--server", served.address)[0] == 0
    [(count, options)] = asked
    assert count == len(IMAGES)
    assert 16 <= options["in_flight"] <= 128
    assert options["version"] == 2, "a version that is published meanwhile is another one"


def test_a_variant_is_asked_for_by_its_precision(models, run):
    other = linear(tuple(reversed(LABELS)))
    (models / "linear" / "2" / "model.int8.onnx").write_bytes(other.SerializeToString())
    right = expected_logits(IMAGES).argmax(1) == TRUTH
    swapped = expected_logits(IMAGES).argmax(1) == CLASSES - 1 - TRUTH
    assert right.mean() != swapped.mean()
    for precision, expected, file in (("float32", right, "model.onnx"), ("int8", swapped, "model.int8.onnx")):
        status, out, _ = run("--models", models, "--precision", precision, "--json")
        answer = json.loads(out)
        assert (status, answer["precision"], answer["accuracy"]) == (0, precision, expected.mean())
        assert answer["computed_by"] == f"onnxruntime, {file}"
    with serving(models, precision="int8") as served:
        status, out, _ = run("--server", served.address, "--json")
    answer = json.loads(out)
    assert (status, answer["precision"], answer["accuracy"]) == (0, "int8", swapped.mean())
    assert answer["computed_by"] == f"the server at {served.address}, as int8 on cpu"


def test_what_is_printed(models, tmp_path, run):
    status, out, _ = run("--models", models, "--output", tmp_path / "report")
    assert status == 0
    lines = out.splitlines()
    right = int((expected_logits(IMAGES).argmax(1) == TRUTH).sum())
    assert lines[0] == "linear version 2 on data, computed by onnxruntime, model.onnx"
    assert lines[1].startswith(f"accuracy {right / 32:.2%} ± ")
    assert f"{right} of 32 held-out images" in lines[1]
    assert lines[2] == "the model's manifest says 12.50%"
    assert lines[4].split() == ["LABEL", "PRECISION", "RECALL", "F1", "IMAGES"]
    assert lines[5].startswith("class 00 ")
    assert lines[21].startswith("mean of the classes ")
    assert lines[-1] == f"report: {tmp_path}/report/report.md"
    assert {"report.md", "confusion.png", "mistakes.png", "evaluation.npz"} == {
        path.name for path in (tmp_path / "report").iterdir()
    }


def test_labels_in_another_order_are_the_same_labels(models, run):
    status, out, _ = run("--models", models, "--json", model="linear:1")
    assert status == 0
    answer = json.loads(out)
    assert answer["version"] == 1
    assert answer["accuracy"] == (expected_logits(IMAGES).argmax(1) == CLASSES - 1 - TRUTH).mean()


def test_a_batch_that_the_graph_fixes(models, run):
    put(models, "linear", 3, linear(batch=5))
    status, out, err = run("--models", models, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["accuracy"] == (expected_logits(IMAGES).argmax(1) == TRUTH).mean()


def test_the_images_that_the_training_held_out_are_taken(models, data, run, capsys, tmp_path):
    shutil.rmtree(data / "test")
    truths = []
    for version, seed in ((3, 0), (4, 1), (5, 1)):
        put(models, "linear", version, linear(seed=seed, data={"name": "train"}))
        folder = tmp_path / str(version)
        arguments = ["--model", "linear", "--models", str(models), "--output", str(folder)]
        assert main([*arguments, "--data", str(data / "train")]) == 0
        truths.append(Evaluation.load(folder / "evaluation.npz"))
        assert len(truths[-1].truth) == CLASSES
    assert not np.array_equal(truths[0].logits, truths[1].logits)
    np.testing.assert_array_equal(truths[1].logits, truths[2].logits)
    assert capsys.readouterr().err == ""


def test_data_that_it_was_not_trained_on_is_said(models, run):
    put(models, "linear", 3, linear(data={"name": "other"}))
    status, _, err = run("--models", models)
    assert status == 0
    assert err.startswith("linear was trained on other, not on data: these images may be among those")


def test_unknown_models(models, run):
    with serving(models) as served:
        for way in (("--server", served.address), ("--models", models)):
            status, out, err = run(*way, model="liner")
            assert (status, out) == (1, "")
            assert err.startswith("convlens evaluate: model 'liner' is not in ")
            assert "linear" in err
            status, out, err = run(*way, model="linear:9")
            assert (status, out) == (1, "")
            assert err.startswith("convlens evaluate: model 'linear' ")
            assert "has no version 9 (there are 1, 2)" in err


def test_labels_that_do_not_match(models, run):
    put(models, "linear", 3, linear((*LABELS[:-1], "cat")))
    with serving(models) as served:
        for way in (("--server", served.address), ("--models", models)):
            status, out, err = run(*way)
            assert (status, out) == (1, "")
            assert "the labels of data are not those of linear version 3" in err
            assert "(only in the data: class 15; only in the model: cat)" in err


def test_a_server_that_is_gone(models, run):
    with serving(models) as served:
        address = served.address
    status, out, err = run("--server", address)
    assert (status, out) == (1, "")
    assert err.startswith(f"convlens evaluate: cannot reach {address}")


def test_a_server_that_goes_while_it_is_asked(models, run, monkeypatch):
    with serving(models) as served:
        import convlens_training.evaluate as module

        def ask_too_late(client, subject, images):
            client.close()
            return ask(client, subject, images)

        ask = module.ask
        monkeypatch.setattr(module, "ask", ask_too_late)
        status, out, err = run("--server", served.address)
    assert (status, out) == (1, "")
    assert err.startswith("convlens evaluate: ")


def test_a_file_that_is_missing_or_broken(models, run):
    status, _, err = run("--models", models, "--precision", "int8")
    assert status == 1
    assert f"{models}/linear/2/model.int8.onnx is missing: version 2 of 'linear' has float32" in err
    (models / "linear" / "2" / "model.onnx").write_bytes(b"no")
    status, _, err = run("--models", models)
    assert status == 1
    assert f"{models}/linear/2/model.onnx" in err
    status, _, err = run("--models", models / "nowhere")
    assert status == 1
    assert "nowhere cannot be read (No such file or directory): give a model repository by --models" in err


def test_an_output_that_is_taken_is_left_alone(models, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    status, out, err = run("--models", models, "--output", tmp_path / "out")
    assert (status, out) == (1, "")
    assert "out is not empty (mine is in it): give a new folder" in err
    status, _, err = run("--models", models, "--output", tmp_path / "out" / "mine")
    assert status == 1
    assert "cannot be used (File exists)" in err


def test_data_that_is_not_there(models, capsys, tmp_path):
    assert main(["--model", "linear", "--models", str(models), "--data", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "mnist5k"], "the following arguments are required: --model"),
        (["--model", "a"], "required: --data"),
        (["--model", "a:0", "--data", "x"], "'a:0' is not NAME or NAME:VERSION"),
        (["--model", ":1", "--data", "x"], "':1' is not NAME"),
        (["--model", "a", "--data", "x", "--models", "m", "--server", "s:1"], "--models: not allowed with"),
        (["--model", "a", "--data", "x", "--precision", "int8"], "--precision: needs --models"),
        (["--model", "a", "--data", "x", "--threads", "0"], "'0' is not a whole number, at least 1"),
    ],
)
def test_wrong_usage(arguments, text, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert text in capsys.readouterr().err


def test_as_a_command(models, data, capsys):
    assert convlens(["evaluate", "--model", "linear", "--data", str(data), "--models", str(models), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(IMAGES)


def test_a_server_is_asked_without_the_server_s_packages(models, data):
    code = (
        "import sys\n"
        "for name in ('onnxruntime', 'convlens_server', 'torch', 'matplotlib'): sys.modules[name] = None\n"
        "from convlens.cli import main\n"
        "sys.exit(main(['evaluate', '--model', 'linear', '--json', *sys.argv[1:]]))"
    )
    with serving(models) as served:
        command = [sys.executable, "-c", code, "--data", str(data), "--server", served.address]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["images"] == len(IMAGES)

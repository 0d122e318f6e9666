from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

from convlens.manifest import ImageInput
from convlens_training import devices, export, fitting, networks, parity
from convlens_training.checkpoints import Checkpoints
from convlens_training.errors import TrainingError
from convlens_training.recipes import RECIPES, Augmentation

RECIPE = dataclasses.replace(
    RECIPES["small_photos"], epochs=4, batch_size=10, learning_rate=2e-3, augmentation=Augmentation()
)
NORM = dataclasses.replace(RECIPES["small_photos_norm"], epochs=2, batch_size=40)
CPU = torch.device("cpu")
INPUT = ImageInput(64, 64, 3, mean=(0.3,) * 3, std=(0.2,) * 3, in_graph=True)


@pytest.fixture
def fit(colours, tmp_path):
    """Trains a network with weights by the seed; gives it, the epoch, and the lines of all epochs."""

    def fit(recipe, seed=0, name="tiny_vgg", dataset=colours, mixed_precision="auto", **options):
        fabric = devices.make_fabric("cpu", 1, 1, mixed_precision)
        fabric.launch()
        torch.manual_seed(seed)
        network = networks.build(name, INPUT, len(dataset.labels))
        lines = []
        checkpoints = Checkpoints(tmp_path, dict.fromkeys(("network", "labels", "data", "recipe", "seed"), ""))
        epoch = fitting.fit(fabric, network, dataset, recipe, checkpoints, seed=seed, log=lines.append, **options)
        return network, epoch, lines

    return fit


def fresh(seed=0):
    torch.manual_seed(seed)
    return networks.build("tiny_vgg", INPUT, 3)


def weights_of(network):
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def test_learns_reports_and_never_touches_the_held_out_images(fit, colours, capsys):
    before = colours.test.images.copy()
    network, epoch, lines = fit(RECIPE)
    logits = fitting.logits_of(network, colours.test.images, CPU)
    assert logits.shape == (30, 3)
    assert fitting.accuracy(logits, colours.test.labels) == 1
    np.testing.assert_array_equal(before, colours.test.images)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("100.00% held out") >= 1
    assert output.err.count("\n") == 4
    assert "epoch 4/4: loss 0." in output.err
    assert epoch == 4
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    last = lines[-1]
    assert last["validation_accuracy"] == 1
    assert 0 <= last["data_wait"] <= 1
    assert last["images_per_second"] == pytest.approx(96 / last["seconds"])
    torch_loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(colours.test.labels))
    assert last["validation_loss"] == pytest.approx(float(torch_loss), rel=1e-3)


@pytest.mark.parametrize("name", ["tiny_vgg", "tiny_vgg_bn"])
def test_the_seed_decides(fit, name):
    recipe = dataclasses.replace(NORM, calm=0, augmentation=dataclasses.replace(NORM.augmentation, mixup=0.5))
    first, again, other = (weights_of(fit(recipe, seed, name)[0]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_learning_rate_that_is_told_is_the_last_steps(fit):
    _, _, lines = fit(dataclasses.replace(RECIPE, batch_size=96, epochs=5))
    assert lines[0]["learning_rate"] == pytest.approx(RECIPE.learning_rate / 25)
    assert lines[-1]["learning_rate"] < RECIPE.learning_rate / 1e4


def test_label_smoothing(fit, colours):
    """Of one step on all images: the loss is that of the weights it began with."""
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=1000, label_smoothing=0.3)
    _, _, (line,) = fit(recipe)
    logs = torch.log_softmax(torch.from_numpy(fitting.logits_of(fresh(), colours.train.images, CPU)), 1)
    right = logs[torch.arange(96), torch.from_numpy(colours.train.labels)]
    assert line["train_loss"] == pytest.approx(float(-(0.7 * right + 0.3 * logs.mean(1)).mean()), rel=1e-4)


def test_the_gradient_is_clipped(fit):
    """Of one step of SGD: Nesterov's momentum makes 1.9 times the gradient of the first."""
    plain = dataclasses.replace(
        RECIPE, epochs=1, batch_size=1000, optimiser="sgd", schedule="cosine", learning_rate=1.0, weight_decay=0
    )
    moved = {}
    for clip in (None, 1e-3):
        network, _, _ = fit(dataclasses.replace(plain, clip=clip))
        steps = [
            (after - before).flatten() for after, before in zip(network.parameters(), fresh().parameters(), strict=True)
        ]
        moved[clip] = float(torch.cat(steps).detach().norm())
    assert moved[None] > 0.02
    assert moved[1e-3] == pytest.approx(1.9e-3, rel=1e-3)


def test_the_average_is_what_is_measured_and_kept(fit, monkeypatch):
    values = []
    measured = []
    measure = fitting._measure

    def watch(fabric, network, *rest):
        measured.append(network.output.weight.detach().clone())
        return measure(fabric, network, *rest)

    monkeypatch.setattr(fitting, "_measure", watch)
    handle = register_optimizer_step_post_hook(
        lambda optimiser, *_: values.append(optimiser.param_groups[0]["params"][-1].detach().clone())
    )
    try:
        network, _, _ = fit(dataclasses.replace(RECIPE, epochs=2, batch_size=40, ema=0.5))
    finally:
        handle.remove()
    assert len(values) == 6
    average = values[0]
    for n, value in enumerate(values[1:], 1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(network.output.weight.detach(), average)
    assert torch.equal(measured[-1], network.output.weight)
    assert not torch.allclose(values[-1], average)


class TestWithAValidationPart:
    @pytest.fixture
    def scripted(self, monkeypatch):
        """What the validation part gives, epoch by epoch; the weights that were measured."""
        seen = []

        def script(*results):
            left = list(results)

            def measure(fabric, network, split, classes):
                seen.append(weights_of(network))
                return left.pop(0)

            monkeypatch.setattr(fitting, "_measure", measure)
            return seen

        return script

    @pytest.mark.parametrize("ema", [None, 0.9])
    def test_stops_early_with_the_best_epochs_weights(self, fit, colours, scripted, capsys, ema):
        # Loss, accuracy: the third is as often right as the second, and surer of it.
        seen = scripted((0.9, 0.5), (0.5, 0.9), (0.4, 0.9), (0.1, 0.8), (0.6, 0.9))
        recipe = dataclasses.replace(RECIPE, epochs=9, batch_size=50, ema=ema)
        network, epoch, lines = fit(recipe, dataset=colours.with_validation(0), patience=2)
        assert epoch == 3
        assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
        assert weights_of(network) == seen[2]
        assert seen[2] not in (seen[1], seen[4])
        assert "90.00% validation" in capsys.readouterr().err

    def test_goes_to_the_end_without_patience(self, fit, colours, scripted):
        seen = scripted((0.1, 0.9), (0.2, 0.8), (0.3, 0.7), (0.4, 0.6))
        network, epoch, lines = fit(RECIPE, dataset=colours.with_validation(0))
        assert (epoch, len(lines)) == (1, 4)
        assert weights_of(network) == seen[0]

    def test_refuses_a_best_checkpoint_of_another_epoch(self, fit, colours, scripted, tmp_path):
        scripted((0.1, 0.9), (0.2, 0.8))

        def log(line):
            if line["epoch"] == 2:
                (tmp_path / "best.ckpt").unlink()

        fabric = devices.make_fabric("cpu", 1, 1, "auto")
        fabric.launch()
        dataset = colours.with_validation(0)
        recipe = dataclasses.replace(RECIPE, epochs=2, batch_size=50)
        with pytest.raises(TrainingError, match=r"best\.ckpt is not of the best epoch, 1: begin anew"):
            fitting.fit(fabric, fresh(), dataset, recipe, Checkpoints(tmp_path, {}), seed=0, log=log)


def test_without_a_validation_part_the_last_epochs_weights(fit, monkeypatch):
    seen = []
    results = [(0.1, 0.9), (0.2, 0.8)]

    def measure(fabric, network, split, classes):
        seen.append(weights_of(network))
        return results[len(seen) - 1]

    monkeypatch.setattr(fitting, "_measure", measure)
    network, epoch, _ = fit(dataclasses.replace(RECIPE, epochs=2, batch_size=50))
    assert epoch == 2
    assert weights_of(network) == seen[1]


def test_mixed_precision_learns_and_its_export_agrees(fit, colours):
    network, _, lines = fit(dataclasses.replace(RECIPE, epochs=3), mixed_precision="on")
    assert lines[-1]["validation_accuracy"] == 1
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    exact, _, _ = fit(dataclasses.replace(RECIPE, epochs=3))
    assert weights_of(exact) != weights_of(network)
    _, logits = parity.outputs_of(export.to_onnx(network, (64, 64, 3)), colours.test.images, 1)
    original = fitting.logits_of(network, colours.test.images, CPU)
    np.testing.assert_allclose(logits, original, atol=1e-3)


def test_a_loss_that_is_no_number(fit):
    with pytest.raises(TrainingError, match=r"in epoch \d of 4: give a --learning-rate lower than 1e\+20"):
        fit(dataclasses.replace(RECIPE, learning_rate=1e20))


def test_logits_do_not_depend_on_the_batch(monkeypatch, digits_input):
    network = networks.build("lecture_cnn", digits_input, 10).train()
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    whole = fitting.logits_of(network, images, CPU)
    monkeypatch.setattr(fitting, "_EVALUATION_BATCH", 3)
    np.testing.assert_allclose(fitting.logits_of(network, images, CPU), whole, atol=1e-5)

from __future__ import annotations

import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from convlens.manifest import ImageInput
from convlens_training import architectures, networks
from convlens_training.architectures import NETWORKS, from_torchvision
from convlens_training.checkpoints import Checkpoints
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

# Small ones of torchvision's, of different builds.
FOREIGN = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "regnet_y_400mf")
SIZE = ImageSize(32, 32, 3)


def build(name, size=SIZE, classes=5):
    return networks.build(name, ImageInput(size.height, size.width, size.channels), classes)


def pixels(count, size):
    shape = (count, size.height, size.width, size.channels)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def save(path, name, classes=1000, rename=lambda key: key, **options):
    """Weights as torchvision's files have them: of 1,000 classes, here of random numbers."""
    torch.manual_seed(1)
    state = models.get_model(name, weights=None, num_classes=classes, **options).state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape))
    torch.save({rename(key): value for key, value in state.items()}, path)
    return state


@pytest.mark.parametrize("name", [*NETWORKS, *FOREIGN, "torchvision:resnet18"])
def test_any_number_of_classes(name):
    size = NETWORKS[name].size if name in NETWORKS else SIZE
    network = build(name, size, 3).eval()
    scores = network(pixels(4, size))
    assert scores.shape == (4, 3)
    torch.testing.assert_close(scores.sum(1), torch.ones(4))


def test_the_seed_decides_the_weights():
    first, again, other = [], [], []
    for seed, kept in ((0, first), (0, again), (1, other)):
        torch.manual_seed(seed)
        kept.extend(build("tiny_vgg_bn", NETWORKS["tiny_vgg_bn"].size).state_dict().values())
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_preprocessing_is_the_manifests_arithmetic():
    image = ImageInput(2, 3, 3, value_range=(-1.0, 1.0), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    values = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3), np.uint8)
    expected = (values / 255 * 2 - 1 - np.array(image.mean)) / np.array(image.std)
    made = networks.Preprocess(image)(torch.from_numpy(values)).numpy()
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_without_ends_gives_logits_of_the_same_modules():
    network = build("tiny_vgg", ImageSize(64, 64, 3), 4).eval()
    values = pixels(2, ImageSize(64, 64, 3))
    logits = networks.without_ends(network)(network[0](values))
    torch.testing.assert_close(torch.softmax(logits, 1), network(values))


class TestImageSize:
    @pytest.mark.parametrize(
        ("name", "side"), [("alexnet", 32), ("inception_v3", 64), ("vit_b_16", 100), ("maxvit_t", 64), ("tiny_vgg", 32)]
    )
    def test_one_that_does_not_fit_is_refused_before_weights_are_drawn(self, name, side):
        before = torch.get_rng_state()
        with pytest.raises(TrainingError, match=rf"{name} does not take images of {side} × {side} × 3 .* --image-size"):
            build(name, ImageSize(side, side, 3))
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("name", ["vit_b_32", "maxvit_t"])
    def test_some_are_made_for_their_size(self, name):
        size = ImageSize(448, 448, 3)
        outline = networks._outline(architectures.find(name).layers, size, 3)
        with torch.device("meta"):
            assert outline(torch.empty(2, 3, 448, 448)).shape == (2, 3)

    def test_an_unknown_network(self):
        with pytest.raises(
            TrainingError, match="there is no network 'lenet': choose from lecture_cnn, tiny_vgg, tiny_"
        ):
            build("lenet")


class TestWeights:
    @pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mnasnet0_5"])
    def test_all_but_the_head_are_the_files(self, tmp_path, name):
        state = save(tmp_path / "w.pth", name)
        torch.manual_seed(0)
        network = build(name)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        networks.load_weights(network, name, tmp_path / "w.pth", SIZE, 5)
        kept = []
        for key, value in network.state_dict().items():
            plain = key.removeprefix("body.")
            if value.shape == state[plain].shape:
                assert torch.equal(value, state[plain]), key
            else:
                kept.append(plain)
                assert torch.equal(value, before[key]), key
        assert len(kept) == 2
        assert len({key.rpartition(".")[0] for key in kept}) == 1
        assert network.eval()(pixels(2, SIZE)).shape == (2, 5)

    def test_the_head_stays_fresh_even_of_as_many_classes(self, tmp_path):
        state = save(tmp_path / "w.pth", "squeezenet1_1", 5)
        network = build("squeezenet1_1")
        networks.load_weights(network, "squeezenet1_1", tmp_path / "w.pth", SIZE, 5)
        assert torch.equal(network.body.features[0].weight, state["features.0.weight"])
        assert not torch.equal(network.body.classifier[1].weight, state["classifier.1.weight"])

    def test_of_a_network_in_several_processes(self, tmp_path):
        state = save(tmp_path / "w.pth", "squeezenet1_1", rename=lambda key: f"module.{key}")
        network = build("squeezenet1_1")
        networks.load_weights(network, "squeezenet1_1", tmp_path / "w.pth", SIZE, 5)
        assert torch.equal(network.body.features[0].weight, state["features.0.weight"])

    @pytest.mark.parametrize(
        ("name", "old"),
        [
            # As torchvision's files have them.
            ("densenet121", {r"(denselayer\d+\.(?:norm|conv))([12])": r"\1.\2"}),
            ("vit_b_32", {r"mlp\.0\.": "mlp.linear_1.", r"mlp\.3\.": "mlp.linear_2."}),
        ],
    )
    def test_names_of_old_files(self, name, old):
        present = networks._outline(architectures.find(name).layers, SIZE, 5).state_dict()
        names = [key.removeprefix("body.") for key in present]
        written = names
        for pattern, replacement in old.items():
            written = [re.sub(pattern, replacement, key) for key in written]
        assert written != names
        assert [from_torchvision.current_name(key) for key in written] == names
        assert [from_torchvision.current_name(key) for key in names] == names

    def test_without_counters_of_steps(self, tmp_path):
        state = save(tmp_path / "w.pth", "resnet18")
        torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "w.pth")
        network = build("resnet18")
        networks.load_weights(network, "resnet18", tmp_path / "w.pth", SIZE, 5)
        assert torch.equal(network.body.bn1.running_var, state["bn1.running_var"])

    def test_with_the_second_outputs_of_googlenet(self, tmp_path):
        state = save(tmp_path / "w.pth", "googlenet", init_weights=False)
        assert any(key.startswith("aux") for key in state)
        network = build("googlenet")
        networks.load_weights(network, "googlenet", tmp_path / "w.pth", SIZE, 5)
        assert torch.equal(network.body.conv1.conv.weight, state["conv1.conv.weight"])

    def test_of_a_checkpoint_of_ours(self, tmp_path):
        size = NETWORKS["tiny_vgg_bn"].size
        other = build("tiny_vgg_bn", size, 8)
        average = {key: value + 1 for key, value in other.state_dict().items()}
        identity = {"network": "tiny_vgg_bn"}
        for state, name in (({"network": other.state_dict(), "average": average}, "a"), ({"network": average}, "b")):
            (tmp_path / name).mkdir()
            Checkpoints(tmp_path / name, identity).save({"average": None, **state, "epoch": 1}, best=False)
            network = build("tiny_vgg_bn", size)
            networks.load_weights(network, "tiny_vgg_bn", tmp_path / name / "last.ckpt", size, 5)
            assert torch.equal(network.conv_1_1.weight, average["conv_1_1.weight"])
            assert network.output.weight.shape == (5, 104)

    def test_of_another_architecture(self, tmp_path):
        save(tmp_path / "w.pth", "resnet18")
        network = build("squeezenet1_1")
        before = network.body.features[0].weight.clone()
        with pytest.raises(TrainingError) as caught:
            networks.load_weights(network, "squeezenet1_1", tmp_path / "w.pth", SIZE, 5)
        text = str(caught.value)
        assert (
            f"--weights {tmp_path / 'w.pth'} is not of squeezenet1_1 for images of 32 × 32 × 3: of 50 tensors" in text
        )
        assert "features.0.weight missing, not 64×3×3×3" in text
        assert "give a file of squeezenet1_1's weights" in text
        assert torch.equal(network.body.features[0].weight, before)

    def test_with_another_shape(self, tmp_path):
        state = save(tmp_path / "w.pth", "squeezenet1_1")
        torch.save({**state, "features.0.bias": torch.zeros(65)}, tmp_path / "w.pth")
        with pytest.raises(TrainingError, match=r"50 tensors 1 are .* \(features\.0\.bias 65, not 64\).*this size"):
            networks.load_weights(build("squeezenet1_1"), "squeezenet1_1", tmp_path / "w.pth", SIZE, 5)

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {3: torch.zeros(2)}, None, torch.zeros(3)])
    def test_something_else_of_torch_save(self, tmp_path, content):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(TrainingError, match=r"w\.pth is not of squeezenet1_1"):
            networks.load_weights(build("squeezenet1_1"), "squeezenet1_1", tmp_path / "w.pth", SIZE, 5)

    @pytest.mark.parametrize("kind", ["empty", "text", "pickle", "module", "zip", "cut"])
    def test_no_file_of_weights(self, tmp_path, kind):
        path = tmp_path / "w.pth"
        path.touch()
        if kind == "text":
            path.write_text("<html>404</html>")
        elif kind == "pickle":
            path.write_bytes(pickle.dumps(print))
        elif kind == "module":
            # Would run code of the file's choice.
            torch.save(nn.Linear(2, 2), path)
        elif kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x", "y")
        elif kind == "cut":
            save(path, "squeezenet1_1")
            path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(TrainingError, match=r"w\.pth is no file of weights, or is damaged: give a state dict"):
            networks.load_weights(build("squeezenet1_1"), "squeezenet1_1", path, SIZE, 5)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(TrainingError, match=r"--weights .*w\.pth cannot be read: No such file"):
            networks.load_weights(build("squeezenet1_1"), "squeezenet1_1", tmp_path / "w.pth", SIZE, 5)

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from convlens.manifest import ImageInput
from convlens_training import architectures, networks
from convlens_training.architectures import NETWORKS, from_torchvision
from convlens_training.errors import TrainingError
from convlens_training.recipes import RECIPES, ImageSize

# What comes out of each layer for one image, and its parameters, as the lecture and CNN Explainer have them.
LECTURE = {
    "conv_1": ((32, 26, 26), 320),
    "relu_1": ((32, 26, 26), 0),
    "conv_2": ((64, 24, 24), 18_496),
    "relu_2": ((64, 24, 24), 0),
    "max_pool_1": ((64, 12, 12), 0),
    "dropout_1": ((64, 12, 12), 0),
    "flatten": ((9216,), 0),
    "dense_1": ((128,), 1_179_776),
    "relu_3": ((128,), 0),
    "dropout_2": ((128,), 0),
    "output": ((10,), 1_290),
}
TINY_VGG = {
    "conv_1_1": ((10, 62, 62), 280),
    "relu_1_1": ((10, 62, 62), 0),
    "conv_1_2": ((10, 60, 60), 910),
    "relu_1_2": ((10, 60, 60), 0),
    "max_pool_1": ((10, 30, 30), 0),
    "conv_2_1": ((10, 28, 28), 910),
    "relu_2_1": ((10, 28, 28), 0),
    "conv_2_2": ((10, 26, 26), 910),
    "relu_2_2": ((10, 26, 26), 0),
    "max_pool_2": ((10, 13, 13), 0),
    "flatten": ((1690,), 0),
    "output": ((10,), 16_910),
}


def layers(name):
    """Each layer's shape and parameters, with its module."""
    subject = NETWORKS[name]
    values = torch.zeros(1, subject.size.channels, subject.size.height, subject.size.width)
    made = {}
    for layer, module in subject.layers(subject.size, 10).items():
        values = module.eval()(values)
        made[layer] = (tuple(values.shape[1:]), sum(p.numel() for p in module.parameters())), module
    return made


@pytest.mark.parametrize(
    ("name", "expected", "total"), [("lecture_cnn", LECTURE, 1_199_882), ("tiny_vgg", TINY_VGG, 19_920)]
)
def test_layer_by_layer(name, expected, total):
    made = layers(name)
    assert {layer: facts for layer, (facts, _) in made.items()} == expected
    assert list(made) == list(expected), "in this order"
    assert sum(count for (_, count), _ in made.values()) == total


def test_the_lectures_dropouts():
    made = {layer: module for layer, (_, module) in layers("lecture_cnn").items()}
    assert (made["dropout_1"].p, made["dropout_2"].p) == (0.25, 0.5)


@pytest.mark.parametrize("name", ["lecture_cnn", "tiny_vgg"])
def test_convolutions_are_3_by_3_without_padding_and_poolings_2_by_2(name):
    for _, module in layers(name).values():
        if isinstance(module, nn.Conv2d):
            assert (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (0, 0))
        if isinstance(module, nn.MaxPool2d):
            assert (module.kernel_size, module.stride) == (2, 2)


def test_tiny_vgg_bn_is_small_and_normalised():
    made = layers("tiny_vgg_bn")
    assert sum(count for (_, count), _ in made.values()) < 300_000
    names = list(made)
    for place, name in enumerate(names):
        if name.startswith("conv"):
            assert names[place + 1 : place + 3] == [name.replace("conv", "norm"), name.replace("conv", "relu")]
            assert isinstance(made[names[place + 1]][1], nn.BatchNorm2d)
    assert made["output"][0][0] == (10,)


def test_all_have_a_recipe():
    for subject in [*NETWORKS.values(), architectures.find("resnet18")]:
        assert subject.recipe in RECIPES
        assert subject.tuned is None or subject.tuned in RECIPES
        assert subject.description


class TestFind:
    def test_by_name(self):
        assert architectures.find("tiny_vgg") is NETWORKS["tiny_vgg"]

    @pytest.mark.parametrize("name", ["vgg16", "torchvision:vgg16"])
    def test_of_torchvision(self, name):
        found = architectures.find(name)
        assert (found.size, found.any_size) == (ImageSize(224, 224, 3), True)
        assert found.description == "vgg16 of torchvision"

    @pytest.mark.parametrize("name", ["lenet", "torchvision:lecture_cnn", "", "fcn_resnet50", "VGG16"])
    def test_none(self, name):
        with pytest.raises(TrainingError, match=r"there is no network .* e\.g\. resnet18"):
            architectures.find(name)

    def test_all_of_torchvisions_classifiers_are_there(self):
        assert {"alexnet", "convnext_tiny", "swin_v2_t", "vit_h_14", "wide_resnet50_2"} <= set(from_torchvision.names())
        assert not [name for name in from_torchvision.names() if "rcnn" in name or "raft" in name or "3d" in name]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_torchvision_feeds_otherwise_get_what_its_weights_expect(name):
    from torchvision import models

    mean, std = architectures.find(name).normalisation
    usual_mean, usual_std = architectures.find("resnet18").normalisation
    theirs = models.get_model(name, weights=None, transform_input=True, init_weights=False)
    values = torch.rand(1, 3, 2, 2)
    usual = (values - torch.tensor(usual_mean)[:, None, None]) / torch.tensor(usual_std)[:, None, None]
    ours = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(ours, theirs._transform_input(usual))


TEN_LINES = """\
from torch import nn
from convlens_training.architectures.network import Network
from convlens_training.recipes import ImageSize

def layers(size, classes):
    return {"flatten": nn.Flatten(), "output": nn.Linear(size.height * size.width * size.channels, classes)}

NETWORK = Network(ImageSize(8, 8, 1), "One dense layer", "plain", layers, any_size=True)
"""


def test_a_file_of_ten_lines_makes_a_network(tmp_path, monkeypatch):
    assert len(TEN_LINES.splitlines()) <= 10
    (tmp_path / "ten_lines.py").write_text(TEN_LINES)
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    monkeypatch.setattr(architectures, "NETWORKS", architectures._networks())
    monkeypatch.delitem(sys.modules, "convlens_training.architectures.ten_lines")
    network = networks.build("ten_lines", ImageInput(9, 8, 1), 3)
    assert network(torch.zeros(2, 9, 8, 1, dtype=torch.uint8)).shape == (2, 3)


def test_names_are_known_without_torch():
    program = (
        "import sys; sys.modules['torch'] = None; from convlens_training import architectures as a; print(*a.NETWORKS)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lecture_cnn", "tiny_vgg", "tiny_vgg_bn"]

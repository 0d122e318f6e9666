from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from convlens_training.augmentation import AMOUNTS, augmented, mixed
from convlens_training.recipes import RECIPES, Augmentation

NAMES = ("turn", "grow", "lean", "side", "right", "down", "saturation", "contrast", "brightness")
NAMES += ("hit", "tall", "wide", "y", "x")
SIDE = 33


def values(count=4, height=SIDE, width=SIDE):
    torch.manual_seed(0)
    return torch.randn(count, 3, height, width)


def amounts(count=4, **given):
    """0.5 for all that are not given: in the middle of their range."""
    assert len(NAMES) == AMOUNTS
    made = torch.full((count, AMOUNTS), 0.5)
    for name, value in given.items():
        made[:, NAMES.index(name)] = value
    return made


def inside(image, **change):
    """Where an image that was changed by torchvision shows what was in it, and nothing from beyond its edge."""
    ones = torch.ones_like(image)
    return reference(ones, **change) > 0.999


def reference(image, *, angle=0.0, translate=(0, 0), scale=1.0, shear=(0.0, 0.0)):
    return functional.affine(
        image, angle, list(translate), scale, list(shear), interpolation=InterpolationMode.BILINEAR
    )


@pytest.mark.parametrize(
    ("how", "given", "change"),
    [
        ({"degrees": 20}, {"turn": 1}, {"angle": -20}),
        ({"degrees": 20}, {"turn": 0.25}, {"angle": 10}),
        ({"scale": (0.5, 2)}, {"grow": 1}, {"scale": 2}),
        ({"scale": (0.5, 2)}, {"grow": 0}, {"scale": 0.5}),
        ({"shift": 3 / SIDE}, {"right": 1}, {"translate": (-3, 0)}),
        ({"shift": 3 / SIDE}, {"down": 0}, {"translate": (0, 3)}),
        ({"shear": 0.3}, {"lean": 1}, {"shear": (math.degrees(math.atan(0.3)), 0)}),
        ({"shear": 0.3}, {"lean": 0}, {"shear": (-math.degrees(math.atan(0.3)), 0)}),
    ],
)
def test_moves_as_torchvision_does_it_image_by_image(how, given, change):
    made = augmented(values(), Augmentation(**how), amounts(**given))
    expected, seen = reference(values(), **change), inside(values(), **change)
    assert seen.float().mean() > 0.2
    torch.testing.assert_close(made[seen], expected[seen], atol=1e-4, rtol=0)
    assert not torch.allclose(made, values(), atol=0.1)


def test_flips_the_share_that_it_is_to():
    given = amounts()
    given[:, NAMES.index("side")] = torch.tensor([0.0, 0.29, 0.31, 0.99])
    made = augmented(values(), Augmentation(flip=0.3), given)
    torch.testing.assert_close(made[:2], functional.horizontal_flip(values()[:2]), atol=1e-4, rtol=0)
    torch.testing.assert_close(made[2:], values()[2:], atol=1e-4, rtol=0)


def test_erases_a_rectangle_as_torchvision_does():
    # 0.15 + 0.4 × 0.35 = 0.29 of 33 rows is 9.57, with row 10 in the middle; 0.5 of 33 columns 16.5, around column 16.
    given = amounts(hit=0.19, tall=0.4, wide=1, y=10.5 / SIDE, x=0.5)
    made = augmented(values(), Augmentation(erase=0.2), given)
    expected = functional.erase(values(), 6, 8, 9, 17, torch.zeros(3, 1, 1))
    assert torch.equal(made, expected)
    assert torch.equal(augmented(values(), Augmentation(erase=0.19), given), values())


def test_colours():
    given = amounts(saturation=1, contrast=0, brightness=0.75)
    made = augmented(values(), Augmentation(colour=0.2), given)
    for image, changed in zip(values(), made, strict=True):
        grey = image.mean(0, keepdim=True)
        saturated = grey + (image - grey) * 1.2
        contrasted = (saturated - saturated.mean()) * 0.8 + saturated.mean()
        torch.testing.assert_close(changed, contrasted + 0.2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beyond", ["border", "reflection"])
def test_nothing_in_the_middle_of_all_ranges(beyond):
    how = Augmentation(degrees=30, shift=0.2, scale=(0.8, 1.2), shear=0.4, flip=0.4, beyond=beyond, colour=0.5)
    for height, width in ((SIDE, SIDE), (9, 14)):
        image = values(4, height, width)
        torch.testing.assert_close(augmented(image, how, amounts()), image, atol=1e-4, rtol=0)
        assert augmented(image, Augmentation(beyond=beyond), torch.rand(4, AMOUNTS)) is image


@pytest.mark.parametrize("name", RECIPES)
def test_each_image_by_its_own_amounts(name):
    how = RECIPES[name].augmentation
    torch.manual_seed(1)
    given = torch.rand(6, AMOUNTS)
    image = values(6)
    before = image.clone()
    together = augmented(image, how, given)
    assert torch.equal(image, before), "the images themselves stay as they are"
    alone = [augmented(image[n : n + 1], how, given[n : n + 1]) for n in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    if how != Augmentation():
        same = augmented(image[:1].expand(6, -1, -1, -1), how, given)
        assert len({one.numpy().tobytes() for one in same}) == 6


@pytest.mark.parametrize("beyond", ["border", "reflection"])
def test_nothing_new_beyond_the_edge(beyond):
    how = Augmentation(degrees=45, shift=0.5, scale=(0.5, 0.5), shear=0.3, flip=0.5, beyond=beyond)
    ones = torch.ones(5, 1, 8, 8)
    torch.testing.assert_close(augmented(ones, how, torch.rand(5, AMOUNTS)), ones)


class TestMixed:
    targets = torch.tensor([0, 1, 2, 2])

    def test_by_chance(self):
        torch.manual_seed(0)
        how = Augmentation(mixup=0.25, cutmix=0.25)
        image = values()
        made = [mixed(image, self.targets, how, 3)[1].ndim for _ in range(200)]
        assert 60 < made.count(2) < 140
        kept, targets = mixed(image, self.targets, dataclasses.replace(how, mixup=0, cutmix=0), 3)
        assert kept is image
        assert targets is self.targets

    @pytest.mark.parametrize("how", [Augmentation(mixup=1), Augmentation(cutmix=1)])
    def test_targets_are_the_shares_of_the_images(self, how):
        torch.manual_seed(0)
        flat = torch.nn.functional.one_hot(self.targets, 3).float()
        # Each pixel tells the class, so that an image's mean tells the shares.
        image = flat[:, :, None, None].expand(-1, -1, 16, 16)
        shares = []
        for _ in range(20):
            made, targets = mixed(image, self.targets, how, 3)
            assert targets.dtype == torch.float32
            torch.testing.assert_close(targets.sum(1), torch.ones(4))
            torch.testing.assert_close(made.mean((2, 3)), targets, atol=1e-5, rtol=1e-5)
            shares.append(float(targets[0, 0]))
            if how.cutmix:
                assert set(made.unique().tolist()) <= {0.0, 1.0}
        assert len(set(shares)) > 10

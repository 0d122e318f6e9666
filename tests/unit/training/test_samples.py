from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from convlens_server.samples import MOST_BYTES, read_samples
from convlens_training.datasets import Split
from convlens_training.publication import publish
from convlens_training.samples import samples


def held_out(count, side=8, channels=1, classes=3):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)
    return Split(images, np.arange(count) % classes)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_of_each_class_exact(channels):
    split = held_out(7, channels=channels)

    files = samples(["a cat", "b/dog", "cow"], split)

    assert list(files) == ["samples/a_cat.png", "samples/b_dog.png", "samples/cow.png"]
    for index, content in enumerate(files.values()):
        with PIL.Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(np.asarray(image).reshape(8, 8, channels), split.images[index])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["2", "1"], ["0_2", "1_1"]),
        (["a", "a-b"], ["0_a", "1_a-b"]),
        (["?", "!"], ["0_class", "1_class"]),
        (["犬", "猫"], ["犬", "猫"]),
    ],
)
def test_names_keep_the_order_of_the_classes(labels, names):
    files = samples(labels, held_out(4, classes=2))
    assert list(files) == sorted(files) == [f"samples/{name}.png" for name in names]


def test_a_class_without_held_out_images_has_none():
    assert list(samples(["a", "b", "c"], held_out(4, classes=2))) == ["samples/a.png", "samples/b.png"]


def test_many_large_images_are_what_a_server_gives(tmp_path):
    labels = [f"thing {number}" for number in range(100)]
    split = held_out(100, side=224, channels=3, classes=100)
    split.images[:] = split.images[:, ::32, ::32].repeat(32, 1).repeat(32, 2)

    path = publish({"model.onnx": b"", **samples(labels, split)}, tmp_path, "things").path

    served = read_samples(path.parent)
    assert len(served) == 64
    assert (served[0].name, served[-1].name) == ("00_thing_0", "99_thing_99")
    assert sum(len(sample.file) for sample in served) < MOST_BYTES

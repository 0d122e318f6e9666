from __future__ import annotations

import numpy as np
import pytest

from convlens_training import datasets
from convlens_training.datasets import Dataset, Split
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

SIZE = ImageSize(8, 6, 3)


def dataset(counts, **parts):
    """Each image has one value of its own."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    part = Split(images, labels)
    return Dataset("numbers", tuple("abcdef"[: len(counts)]), part, part, **parts)


class TestStrict:
    def test_unreadable_files_are_refused_with_all_their_names(self, image_folder):
        path = image_folder({"a": 3, "b": 3})
        for name in ("a/x.png", "b/y.png"):
            (path / name).write_text("no image")
        assert len(datasets.load(str(path), SIZE, None, 0).unreadable) == 2
        with pytest.raises(TrainingError, match="2 files cannot be read, which --strict refuses") as caught:
            datasets.load(str(path), SIZE, None, 0, strict=True)
        assert str(path / "a" / "x.png") in str(caught.value)
        assert str(path / "b" / "y.png") in str(caught.value)

    def test_readable_ones_are_fine(self, image_folder):
        assert datasets.load(str(image_folder({"a": 3, "b": 3})), SIZE, None, 0, strict=True).unreadable == ()


class TestSplit:
    def test_a_share_of_each_class_is_set_apart_and_nothing_is_lost(self):
        whole = dataset((10, 5, 2)).train
        rest, apart = datasets.split(whole.images, whole.labels, 0)
        assert np.bincount(rest.labels).tolist() == [8, 4, 1]
        assert np.bincount(apart.labels).tolist() == [2, 1, 1]
        values = [image[0, 0, 0] for image in (*rest.images, *apart.images)]
        assert sorted(values) == list(range(17))
        for part in (rest, apart):
            np.testing.assert_array_equal(whole.labels[part.images[:, 0, 0, 0]], part.labels)
            assert (np.diff(part.images[:, 0, 0, 0].astype(int)) > 0).all(), "in their order"

    def test_the_seed_decides_which(self):
        whole = dataset((20, 20)).train
        first, again, other = (datasets.split(whole.images, whole.labels, seed)[1].images for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


class TestValidation:
    def test_a_tenth_of_each_class_of_the_training_images(self):
        made = dataset((20, 10, 2)).with_validation(0)
        assert np.bincount(made.validation.labels).tolist() == [2, 1, 1]
        assert np.bincount(made.train.labels).tolist() == [18, 9, 1]
        assert len(made.test.labels) == 32

    def test_its_own_stays(self):
        part = dataset((1, 1)).train
        made = dataset((20, 10), validation=part).with_validation(0)
        assert made.validation is part
        assert len(made.train.labels) == 30

    def test_a_class_with_one_training_image(self):
        with pytest.raises(TrainingError, match=r"class 'b' has 1 training images, but needs at least 2 .* --patience"):
            dataset((3, 1)).with_validation(0)


class TestHash:
    def test_of_the_same_data_it_is_the_same(self):
        assert dataset((3, 2)).sha256 == dataset((3, 2)).sha256

    def test_every_part_of_the_data_changes_it(self):
        plain = dataset((3, 2))
        other = Split(plain.train.images ^ 1, plain.train.labels)
        moved = Split(plain.train.images, plain.train.labels[::-1])
        changed = [
            Dataset("numbers", ("a", "c"), plain.train, plain.test),
            Dataset("numbers", plain.labels, other, plain.test),
            Dataset("numbers", plain.labels, plain.train, other),
            Dataset("numbers", plain.labels, moved, plain.test),
            Dataset("numbers", plain.labels, plain.train, plain.test, validation=plain.test),
        ]
        assert len({made.sha256 for made in (plain, *changed)}) == 6
        assert Dataset("renamed", plain.labels, plain.train, plain.test).sha256 == plain.sha256


def test_a_folder_may_be_given_by_a_relative_path(image_folder, monkeypatch):
    monkeypatch.chdir(image_folder({"a": 2, "b": 2}))
    assert datasets.load(".", SIZE, None, 0).name == "animals"

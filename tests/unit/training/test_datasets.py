from __future__ import annotations

import gzip
import struct
import urllib.error

import numpy as np
import pytest
from PIL import Image

from convlens_server.codec import decode
from convlens_training import datasets
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

RGB, GREY = ImageSize(8, 6, 3), ImageSize(28, 28, 1)


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def raw_mnist(tmp_path):
    """A few random digits in the files that MNIST comes in, some packed and some not."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(3)
    arrays = {}
    for part, count in (("train", 20), ("t10k", 10)):
        arrays[part] = random.integers(0, 256, (count, 28, 28), np.uint8), random.integers(0, 10, count, np.uint8)
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(arrays[part][0])))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(arrays[part][1]))
    return raw, arrays


class TestFolder:
    def test_train_and_val(self, image_folder):
        path = image_folder({"train/sport_car": 3, "train/koala": 2, "val/koala": 1, "val/sport_car": 2})
        dataset = datasets.load(str(path), RGB, None, 0)
        assert dataset.name == "animals"
        assert dataset.labels == ("koala", "sport car")
        assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
        assert dataset.test.labels.tolist() == [0, 1, 1]
        for split in (dataset.train, dataset.test):
            assert split.images.shape == (len(split.labels), 8, 6, 3)
            assert split.images.dtype == np.uint8
            assert split.labels.dtype == np.int64
            assert split.images.flags.c_contiguous
        assert dataset.unreadable == ()

    def test_test_folder(self, image_folder):
        path = image_folder({"train/a": 1, "train/b": 1, "test/a": 2, "test/b": 3})
        assert len(datasets.load(str(path), RGB, None, 0).test.labels) == 5

    @pytest.mark.parametrize("prefix", ["", "train/"])
    def test_without_a_held_out_part_a_fifth_of_each_class_is_held_out(self, image_folder, prefix):
        path = image_folder({f"{prefix}a": 10, f"{prefix}b": 5, f"{prefix}c": 2})
        first, again, other = (datasets.load(str(path), RGB, None, seed) for seed in (0, 0, 1))
        assert np.bincount(first.train.labels).tolist() == [8, 4, 1]
        assert np.bincount(first.test.labels).tolist() == [2, 1, 1]
        np.testing.assert_array_equal(first.test.images, again.test.images)
        assert not np.array_equal(first.test.images, other.test.images)
        images = {image.tobytes() for split in (first.train, first.test) for image in split.images}
        assert len(images) == 17

    @pytest.mark.parametrize("size", [RGB, ImageSize(8, 6, 1)])
    def test_every_kind_of_image_is_decoded_as_the_server_does(self, image_folder, size):
        path = image_folder({"a": 2, "b": 2})
        random = np.random.default_rng(2)
        pixels = random.integers(0, 256, (13, 11, 4), np.uint8)
        rgb = Image.fromarray(pixels[..., :3])
        exif = Image.Exif()
        exif[0x0112] = 6
        wide = random.integers(0, 65536, (13, 11), np.uint16)
        Image.fromarray(pixels).save(path / "a" / "rgba.png")
        Image.fromarray(pixels[..., 0]).save(path / "a" / "grey.png")
        bands = [Image.fromarray(pixels[..., n]) for n in (1, 3)]
        Image.merge("LA", bands).save(path / "a" / "grey_alpha.png")
        Image.fromarray(wide).save(path / "a" / "wide.png")
        rgb.quantize(8).save(path / "a" / "palette.png", transparency=3)
        rgb.convert("CMYK").save(path / "a" / "cmyk.jpg")
        rgb.save(path / "a" / "turned.jpg", exif=exif)
        rgb.save(path / "a" / "web.webp")
        rgb.resize((6, 8)).save(path / "a" / "fits.png")
        dataset = datasets.load(str(path), size, None, 0)
        assert dataset.unreadable == ()
        ours = {image.tobytes() for split in (dataset.train, dataset.test) for image in split.images}
        shape = (size.height, size.width, size.channels)
        theirs = {decode(file.read_bytes(), shape, 10_000) for file in path.glob("*/*")}
        assert len(theirs) == 13
        assert ours == theirs

    def test_unreadable_files_are_listed_and_skipped(self, image_folder):
        path = image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
        (path / "train" / "a" / "notes.txt").write_text("no image")
        content = (path / "train" / "a" / "0.png").read_bytes()
        (path / "val" / "b" / "half.png").write_bytes(content[: len(content) // 2])
        (path / "val" / "b" / "empty.png").touch()
        (path / "val" / "b" / ".DS_Store").touch()
        (path / "val" / ".hidden").mkdir()
        (path / "val" / "b" / "folder").mkdir()
        dataset = datasets.load(str(path), RGB, None, 0)
        assert len(dataset.train.labels) == 4
        assert len(dataset.test.labels) == 2
        assert [text.partition(": ")[0] for text in dataset.unreadable] == [
            str(path / "train" / "a" / "notes.txt"),
            str(path / "val" / "b" / "empty.png"),
            str(path / "val" / "b" / "half.png"),
        ]
        assert all(text.partition(": ")[2] for text in dataset.unreadable)

    def test_an_empty_class(self, image_folder):
        path = image_folder({"train/a": 2, "train/b": 0, "val/a": 1, "val/b": 1})
        (path / "train" / "b" / "x.txt").write_text("x")
        with pytest.raises(TrainingError, match=r"train/b has 0 readable images, but needs at least 1(.|\n)*x\.txt"):
            datasets.load(str(path), RGB, None, 0)

    def test_a_class_too_small_to_be_split(self, image_folder):
        with pytest.raises(TrainingError, match="b has 1 readable images, but needs at least 2"):
            datasets.load(str(image_folder({"a": 4, "b": 1})), RGB, None, 0)

    def test_a_single_class(self, image_folder):
        with pytest.raises(TrainingError, match=r"has 1 class folders \(a\), but a classifier needs at least 2"):
            datasets.load(str(image_folder({"train/a": 2, "val/a": 2})), RGB, None, 0)

    def test_no_class(self, tmp_path):
        with pytest.raises(TrainingError, match=r"has 0 class folders \(none\)"):
            datasets.load(str(tmp_path), RGB, None, 0)

    def test_parts_with_different_classes(self, image_folder):
        path = image_folder({"train/a": 2, "train/b": 2, "val/a": 2, "val/c": 1})
        with pytest.raises(TrainingError, match=r"different class folders \(b, c is only in one"):
            datasets.load(str(path), RGB, None, 0)

    def test_labels_that_are_the_same(self, image_folder):
        with pytest.raises(TrainingError, match="differ only by _ and space"):
            datasets.load(str(image_folder({"red panda": 2, "red_panda": 2})), RGB, None, 0)

    def test_no_folder(self, tmp_path):
        with pytest.raises(TrainingError, match="nowhere is not a folder: give mnist, mnist5k, or a folder"):
            datasets.load(str(tmp_path / "nowhere"), RGB, None, 0)


class TestMnist:
    def test_files_of_the_data_root(self, raw_mnist):
        raw, arrays = raw_mnist
        dataset = datasets.load("mnist", GREY, raw.parent.parent, 0)
        assert dataset.labels == tuple("0123456789")
        for split, part in ((dataset.train, "train"), (dataset.test, "t10k")):
            np.testing.assert_array_equal(split.images[..., 0], arrays[part][0])
            np.testing.assert_array_equal(split.labels, arrays[part][1])
            assert split.images.shape[3] == 1
            assert split.labels.dtype == np.int64

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x1f\x8b\x08", gzip.compress(b"abc"), gzip.compress(struct.pack(">4I", 0x803, 9, 28, 28)), b"<html>"],
    )
    def test_a_damaged_file(self, raw_mnist, content):
        raw, _ = raw_mnist
        (raw / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(TrainingError, match=r"train-images-idx3-ubyte\.gz is damaged .* copy it again"):
            datasets.load("mnist", GREY, raw.parent.parent, 0)

    def test_a_file_that_ends_early(self, raw_mnist):
        raw, _ = raw_mnist
        path = raw / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(TrainingError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
            datasets.load("mnist", GREY, raw.parent.parent, 0)

    def test_files_that_do_not_belong_together(self, raw_mnist):
        raw, _ = raw_mnist
        (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(9)))
        with pytest.raises(TrainingError, match=r"do not belong together \(images \(10, 28, 28\), labels \(9,\)\)"):
            datasets.load("mnist", GREY, raw.parent.parent, 0)

    @pytest.mark.parametrize("error", [urllib.error.URLError("no route"), RuntimeError("Error downloading it")])
    def test_a_download_that_fails(self, tmp_path, monkeypatch, capsys, error):
        def fail(root, download):
            print("Downloading")
            raise error

        monkeypatch.setattr("torchvision.datasets.MNIST", fail)
        with pytest.raises(TrainingError) as caught:
            datasets.load("mnist", GREY, tmp_path, 0)
        text = str(caught.value)
        assert str(tmp_path / "MNIST" / "raw") in text
        assert "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz" in text
        assert "mnist5k" in text
        assert capsys.readouterr().out == ""

    def test_a_download_goes_to_the_users_cache(self, tmp_path, monkeypatch, raw_mnist):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

        def download(root, download):
            assert download
            assert root == str(tmp_path / "cache" / "convlens")
            (tmp_path / "cache" / "convlens").mkdir(parents=True)
            raw_mnist[0].parent.rename(tmp_path / "cache" / "convlens" / "MNIST")

        monkeypatch.setattr("torchvision.datasets.MNIST", download)
        assert len(datasets.load("mnist", GREY, None, 0).train.labels) == 20

    def test_mnist5k(self):
        dataset = datasets.load("mnist5k", GREY, None, 0)
        assert dataset.labels == tuple("0123456789")
        assert dataset.train.images.shape == (4000, 28, 28, 1)
        assert dataset.test.images.shape == (1000, 28, 28, 1)
        assert np.bincount(dataset.train.labels).tolist() == [400] * 10
        assert np.bincount(dataset.test.labels).tolist() == [100] * 10
        assert dataset.train.images.max() == 255

    @pytest.mark.parametrize("data", ["mnist", "mnist5k"])
    def test_another_size(self, data):
        with pytest.raises(TrainingError, match=r"28 × 28 × 1 .* takes 64 × 64 × 3: train lecture_cnn"):
            datasets.load(data, ImageSize(64, 64, 3), None, 0)

"""Sets by name, each in tiny files of its own format."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import pickle
import socket
import struct
import tarfile
import urllib.error

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from convlens_training import datasets
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

GREY, RGB = ImageSize(28, 28, 1), ImageSize(32, 32, 3)
FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
BATCHES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
CLASSES = [*("airplane", "automobile", "bird", "cat", "deer"), *("dog", "frog", "horse", "ship", "truck")]


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def raw_files(tmp_path):
    """Makes a few random images in the files that MNIST and Fashion-MNIST come in, some packed and some not."""

    def raw_files(folder):
        raw = tmp_path / "data" / folder / "raw"
        raw.mkdir(parents=True)
        random = np.random.default_rng(3)
        arrays = {}
        for part, count in (("train", 20), ("t10k", 10)):
            arrays[part] = random.integers(0, 256, (count, 28, 28), np.uint8), random.integers(0, 10, count, np.uint8)
            (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(arrays[part][0])))
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(arrays[part][1]))
        return raw, arrays

    return raw_files


@pytest.fixture
def raw_mnist(raw_files):
    return raw_files("MNIST")


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Four random images a batch, in the archive that CIFAR-10 comes in, and its checksums as torchvision's."""
    random = np.random.default_rng(4)
    files = {"batches.meta": pickle.dumps({"label_names": CLASSES})}
    images, labels = [], []
    for n, name in enumerate(BATCHES):
        images.append(random.integers(0, 256, (4, 3, 32, 32), np.uint8))
        labels.append([(n + k) % 10 for k in range(4)])
        files[name] = pickle.dumps({"data": images[-1].reshape(4, -1), "labels": labels[-1]}, protocol=2)
    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5((root / "cifar-10-python.tar.gz").read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name in BATCHES[5:]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
    return root, np.concatenate(images).transpose(0, 2, 3, 1), np.concatenate(labels)


@pytest.fixture
def imagenette(tmp_path):
    """One image of each class and part, whose red is the class and whose green the part."""
    for folder, side in (("imagenette2-160", 170), ("imagenette2-320", 330)):
        for green, part in ((0, "train"), (255, "val")):
            for red, wnid in enumerate(torchvision.datasets.Imagenette._WNID_TO_CLASS):
                place = tmp_path / "data" / folder / part / wnid
                place.mkdir(parents=True)
                Image.new("RGB", (side, side + 9), (red * 20, green, 0)).save(place / f"{wnid}_1.JPEG", quality=95)
    return tmp_path / "data"


@pytest.fixture
def refused():
    """An address that nothing listens at, where the connection is really refused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}/"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, refused):
    """Nothing here reaches for the network, even where a test fails."""
    for kind in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", [refused])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{refused}cifar-10-python.tar.gz")
    archives = {
        edition: (refused + url.rpartition("/")[2], digest)
        for edition, (url, digest) in torchvision.datasets.Imagenette._ARCHIVES.items()
    }
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", archives)
    monkeypatch.setenv("no_proxy", "*")


class TestMnist:
    @pytest.mark.parametrize("name", FOLDERS)
    def test_files_of_the_data_root(self, raw_files, name, capsys):
        raw, arrays = raw_files(FOLDERS[name])
        dataset = datasets.load(name, GREY, raw.parent.parent, 0)
        assert dataset.name == name
        expected = tuple("0123456789") if name == "mnist" else ("T-shirt or top", "trouser", "pullover")
        assert dataset.labels[: len(expected)] == expected
        assert len(set(dataset.labels)) == 10
        for split, part in ((dataset.train, "train"), (dataset.test, "t10k")):
            np.testing.assert_array_equal(split.images[..., 0], arrays[part][0])
            np.testing.assert_array_equal(split.labels, arrays[part][1])
            assert split.images.shape[3] == 1
            assert split.labels.dtype == np.int64
        assert capsys.readouterr().out == ""

    def test_the_labels_of_fashion_mnist_are_torchvisions(self, raw_files):
        raw, _ = raw_files("FashionMNIST")
        ours = datasets.load("fashion_mnist", GREY, raw.parent.parent, 0).labels
        theirs = torchvision.datasets.FashionMNIST.classes
        assert [label.lower().replace(" or ", "/") for label in ours] == [label.lower() for label in theirs]

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x1f\x8b\x08", gzip.compress(b"abc"), gzip.compress(struct.pack(">4I", 0x803, 9, 28, 28)), b"<html>"],
        ids=["empty", "cut off", "too short", "without images", "a page"],
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

    @pytest.mark.parametrize("labels", [np.zeros(9), np.full(10, 10)])
    def test_files_that_do_not_belong_together(self, raw_mnist, labels):
        raw, _ = raw_mnist
        (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
        with pytest.raises(TrainingError, match=r"do not belong together \(images \(10, 28, 28\), labels"):
            datasets.load("mnist", GREY, raw.parent.parent, 0)

    def test_another_size_with_colours(self, raw_mnist):
        raw, arrays = raw_mnist
        dataset = datasets.load("mnist", ImageSize(56, 56, 3), raw.parent.parent, 0)
        assert dataset.train.images.shape == (20, 56, 56, 3)
        expected = Image.fromarray(arrays["t10k"][0][4]).convert("RGB").resize((56, 56), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(dataset.test.images[4], np.asarray(expected))

    def test_a_download_goes_to_the_users_cache(self, tmp_path, monkeypatch, raw_mnist, capsys):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

        def download(root, download):
            print("Downloading")
            assert download
            assert root == str(tmp_path / "cache" / "convlens")
            (tmp_path / "cache" / "convlens").mkdir(parents=True)
            raw_mnist[0].parent.rename(tmp_path / "cache" / "convlens" / "MNIST")

        monkeypatch.setattr("torchvision.datasets.MNIST", download)
        assert len(datasets.load("mnist", GREY, None, 0).train.labels) == 20
        output = capsys.readouterr()
        assert output.out == ""
        assert "Downloading" in output.err


class TestCifar10:
    def test_of_the_archive(self, cifar10, capsys):
        root, images, labels = cifar10
        dataset = datasets.load("cifar10", RGB, root, 0)
        assert dataset.labels == tuple(CLASSES)
        np.testing.assert_array_equal(dataset.train.images, images[:20])
        np.testing.assert_array_equal(dataset.train.labels, labels[:20])
        np.testing.assert_array_equal(dataset.test.images, images[20:])
        np.testing.assert_array_equal(dataset.test.labels, labels[20:])
        assert capsys.readouterr().out == ""
        # Unpacked now, it needs no archive.
        (root / "cifar-10-python.tar.gz").unlink()
        assert datasets.load("cifar10", RGB, root, 0).sha256 == dataset.sha256

    def test_a_batch_that_is_damaged_is_unpacked_again(self, cifar10):
        root, images, _ = cifar10
        datasets.load("cifar10", RGB, root, 0)
        (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"\x80")
        np.testing.assert_array_equal(datasets.load("cifar10", RGB, root, 0).train.images, images[:20])

    def test_a_damaged_archive(self, cifar10):
        root, _, _ = cifar10
        path = root / "cifar-10-python.tar.gz"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(TrainingError, match=r"CIFAR10 is not in .*data, or not whole, .* put cifar-10-python\.tar"):
            datasets.load("cifar10", RGB, root, 0)


class TestImagenette:
    @pytest.mark.parametrize("side", [64, 224])
    def test_the_edition_that_need_not_be_enlarged(self, imagenette, side, monkeypatch, capsys):
        other = "imagenette2-320" if side == 64 else "imagenette2-160"
        (imagenette / other).rename(imagenette / "other")
        dataset = datasets.load("imagenette", ImageSize(side, side, 3), imagenette, 0, threads=2)
        assert len(dataset.labels) == 10
        assert dataset.labels[:2] == ("tench", "English springer")
        assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == list(range(10))
        for split, green in ((dataset.train, 0), (dataset.test, 255)):
            assert split.images.shape == (10, side, side, 3)
            assert (split.images[..., 0].mean((1, 2)) / 20).round().tolist() == list(range(10))
            assert abs(split.images[..., 1].mean() - green) < 5
        assert capsys.readouterr().out == ""

    def test_unreadable_files(self, imagenette):
        path = imagenette / "imagenette2-160" / "val" / "n01440764" / "x.JPEG"
        path.write_bytes(b"\xff\xd8\xff")
        dataset = datasets.load("imagenette", ImageSize(16, 16, 3), imagenette, 0)
        assert [text.partition(": ")[0] for text in dataset.unreadable] == [str(path)]

    def test_half_unpacked(self, imagenette):
        place = imagenette / "imagenette2-160" / "val" / "n03888257"
        (place / "n03888257_1.JPEG").unlink()
        place.rmdir()
        with pytest.raises(
            TrainingError, match=r"imagenette2-160 is not whole \(val/n03888257 is missing\): remove it"
        ):
            datasets.load("imagenette", ImageSize(16, 16, 3), imagenette, 0)

    def test_a_folder_of_something_else(self, imagenette):
        (imagenette / "imagenette2-160" / "train" / "cats").mkdir()
        with pytest.raises(TrainingError, match=r"Imagenette is not in .* or not whole"):
            datasets.load("imagenette", ImageSize(16, 16, 3), imagenette, 0)


@pytest.mark.parametrize(
    ("name", "place", "files"),
    [
        ("mnist", "MNIST/raw", "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz"),
        ("fashion_mnist", "FashionMNIST/raw", "train-images-idx3-ubyte.gz"),
        ("cifar10", "", "cifar-10-python.tar.gz"),
        ("imagenette", "", "imagenette2-160.tgz, unpacked as imagenette2-160/"),
    ],
)
class TestDownload:
    def failed(self, tmp_path, capsys, name, place, files):
        with pytest.raises(TrainingError) as caught:
            datasets.load(name, GREY, tmp_path / "data", 0)
        text = str(caught.value)
        assert f"is not in {(tmp_path / 'data' / place)}" in text
        assert f"put {files}" in text
        assert "--data-root, or use --data mnist5k" in text
        assert "\n" not in text
        assert capsys.readouterr().out == ""
        return text

    def test_a_refused_connection(self, tmp_path, capsys, name, place, files):
        assert "Connection refused" in self.failed(tmp_path, capsys, name, place, files)

    @pytest.mark.parametrize(
        "error",
        [urllib.error.URLError("no route to host"), OSError(28, "No space left"), http.client.BadStatusLine("?")],
    )
    def test_another_failure(self, tmp_path, capsys, monkeypatch, name, place, files, error):
        def fail(*arguments, **options):
            print("Downloading")
            raise error

        monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", fail)
        monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, max_hops: url)
        reasons = ("no route to host", "No space left", "?")
        assert any(reason in self.failed(tmp_path, capsys, name, place, files) for reason in reasons)

    def test_a_file_where_the_folder_should_be(self, tmp_path, capsys, name, place, files):
        (tmp_path / "data").touch()
        self.failed(tmp_path, capsys, name, place, files)
        assert (tmp_path / "data").read_bytes() == b""


def test_mnist5k_needs_no_files():
    dataset = datasets.load("mnist5k", GREY, None, 0)
    assert dataset.labels == tuple("0123456789")
    assert dataset.train.images.shape == (4000, 28, 28, 1)
    assert dataset.test.images.shape == (1000, 28, 28, 1)
    assert np.bincount(dataset.train.labels).tolist() == [400] * 10
    assert np.bincount(dataset.test.labels).tolist() == [100] * 10
    assert dataset.train.images.max() == 255
    assert datasets.load("mnist5k", GREY, None, 1).sha256 != dataset.sha256

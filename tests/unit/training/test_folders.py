from __future__ import annotations

import contextlib
import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens_server.codec import decode
from convlens_training import datasets
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize

RGB, GREY = ImageSize(8, 6, 3), ImageSize(8, 6, 1)


def load(path, size=RGB, seed=0):
    return datasets.load(str(path), size, None, seed)


def everything(dataset):
    """Pixels with labels, of both parts."""
    return {
        (image.tobytes(), dataset.labels[label])
        for part in (dataset.train, dataset.test)
        for image, label in zip(part.images, part.labels, strict=True)
    }


@contextlib.contextmanager
def unprivileged():
    """Root may read and write anything: be somebody else for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder():
    """Like tmp_path, but others than its owner reach it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in ("a", "b"):
            (Path(folder) / name).mkdir()
            for n in range(3):
                Image.new("RGB", (9, 7), (n, 0, 0)).save(Path(folder) / name / f"{n}.png")
        yield Path(folder)


class TestParts:
    @pytest.mark.parametrize("part", ["val", "test"])
    def test_train_and_one_other_which_is_held_out(self, image_folder, part):
        path = image_folder({"train/sport_car": 3, "train/koala": 2, f"{part}/koala": 1, f"{part}/sport_car": 2})
        dataset = load(path)
        assert dataset.name == "animals"
        assert dataset.labels == ("koala", "sport car")
        assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
        assert dataset.test.labels.tolist() == [0, 1, 1]
        assert dataset.validation is None
        for split in (dataset.train, dataset.test):
            assert split.images.shape == (len(split.labels), 8, 6, 3)
            assert split.images.dtype == np.uint8
            assert split.labels.dtype == np.int64
            assert split.images.flags.c_contiguous
        assert dataset.unreadable == ()

    def test_val_is_for_validation_where_there_is_test_too(self, image_folder):
        counts = {"train": 1, "val": 2, "test": 3}
        path = image_folder({f"{part}/{label}": count for part, count in counts.items() for label in "ab"})
        dataset = load(path)
        assert [len(part.labels) for part in (dataset.train, dataset.validation, dataset.test)] == [2, 4, 6]

    @pytest.mark.parametrize("prefix", ["", "train/"])
    def test_without_a_held_out_part_a_fifth_of_each_class_is_held_out(self, image_folder, prefix):
        path = image_folder({f"{prefix}a": 10, f"{prefix}b": 5, f"{prefix}c": 2})
        first, again, other = (load(path, seed=seed) for seed in (0, 0, 1))
        assert np.bincount(first.train.labels).tolist() == [8, 4, 1]
        assert np.bincount(first.test.labels).tolist() == [2, 1, 1]
        assert first.sha256 == again.sha256
        assert not np.array_equal(first.test.images, other.test.images)
        assert everything(first) == everything(other)
        assert len(everything(first)) == 17

    def test_parts_with_different_classes(self, image_folder):
        path = image_folder({"train/a": 2, "train/b": 2, "val/a": 2, "val/c": 1})
        with pytest.raises(TrainingError, match=r"train and .*val have different class folders \(b, c is only in one"):
            load(path)


class TestLabels:
    def test_in_order_of_name(self, image_folder):
        assert load(image_folder({"b": 2, "a": 2, "C": 2})).labels == ("C", "a", "b")

    def test_in_the_order_of_a_file(self, image_folder):
        path = image_folder({"train/a": 1, "train/b_c": 2, "train/d": 3, "val/a": 1, "val/b_c": 1, "val/d": 1})
        (path / "labels.txt").write_text("\ufeffd\r\n\n a \nb_c\n", "utf-8")
        dataset = load(path)
        assert dataset.labels == ("d", "a", "b c")
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 2, 2]
        assert dataset.test.labels.tolist() == [0, 1, 2]

    @pytest.mark.parametrize(
        ("text", "names"), [("a\n", "b"), ("a\nb\nc\n", "c"), ("a\nb\na\n", "a, a"), ("", "a, b"), ("a\nB\n", "B, b")]
    )
    def test_a_file_that_does_not_match(self, image_folder, text, names):
        path = image_folder({"a": 2, "b": 2})
        (path / "labels.txt").write_text(text)
        with pytest.raises(TrainingError, match=rf"labels\.txt and the class folders do not match \({names}\).*one a"):
            load(path)

    def test_a_file_that_is_no_text(self, image_folder):
        path = image_folder({"a": 2, "b": 2})
        (path / "labels.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(TrainingError, match=r"labels\.txt cannot be read as UTF-8 text .* remove it"):
            load(path)

    def test_of_any_language(self, image_folder):
        assert load(image_folder({"雪": 2, "zażółć_gęślą": 2, "😀": 2})).labels == ("zażółć gęślą", "雪", "😀")

    def test_names_that_are_no_text(self, image_folder):
        path = image_folder({"a": 2, os.fsdecode(b"caf\xe9"): 2})
        with pytest.raises(TrainingError, match=r"class folder 'caf\\udce9' .* is no UTF-8 text: rename it"):
            load(path)

    def test_that_are_the_same(self, image_folder):
        with pytest.raises(TrainingError, match="differ only by _ and space"):
            load(image_folder({"red panda": 2, "red_panda": 2}))

    @pytest.mark.parametrize("prefix", ["", "train/"])
    def test_a_single_one(self, image_folder, prefix):
        with pytest.raises(TrainingError, match=r"has 1 class folders \(a\), but a classifier needs at least 2"):
            load(image_folder({f"{prefix}a": 2}))

    def test_none(self, tmp_path):
        with pytest.raises(TrainingError, match=r"has 0 class folders \(none\)"):
            load(tmp_path)


class TestImages:
    @pytest.mark.parametrize("size", [RGB, GREY])
    def test_every_kind_is_decoded_as_the_server_does(self, image_folder, size):
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
        Image.fromarray(wide).save(path / "a" / "wide_transparent.png", transparency=int(wide[5, 5]))
        rgb.quantize(8).save(path / "a" / "palette.png", transparency=3)
        rgb.convert("P").save(path / "a" / "palette_alpha.png", transparency=bytes(range(256)))
        rgb.convert("1").save(path / "a" / "bits.png")
        rgb.convert("CMYK").save(path / "a" / "cmyk.jpg")
        rgb.save(path / "a" / "turned.jpg", exif=exif)
        rgb.save(path / "a" / "turned.png", exif=exif)
        rgb.save(path / "a" / "damaged_exif.jpg", exif=b"Exif\0\0nothing")
        rgb.save(path / "a" / "web.webp")
        rgb.resize((6, 8)).save(path / "a" / "fits.png")
        rgb.resize((1, 500)).save(path / "a" / "narrow.png")
        rgb.resize((500, 1)).save(path / "a" / "low.png")
        rgb.resize((1, 1)).save(path / "a" / "point.png")
        dataset = load(path, size)
        assert dataset.unreadable == ()
        ours = {pixels for pixels, _ in everything(dataset)}
        shape = (size.height, size.width, size.channels)
        theirs = {decode(file.read_bytes(), shape, 10_000) for file in path.glob("*/*")}
        assert len(theirs) == 21
        assert ours == theirs

    def test_alpha_lies_on_black(self, image_folder):
        path = image_folder({"train/a": 0, "train/b": 0, "val/a": 1, "val/b": 1})
        for label, colour in (("a", (200, 100, 50, 0)), ("b", (200, 100, 50, 255))):
            Image.new("RGBA", (9, 9), colour).save(path / "train" / label / "0.png")
        clear, opaque = load(path).train.images
        assert (clear == 0).all()
        assert (opaque == (200, 100, 50)).all()

    def test_other_formats_of_pillow(self, image_folder):
        path = image_folder({"a": 2, "b": 2})
        image = Image.open(path / "a" / "0.png")
        for form in ("bmp", "gif", "tiff", "ppm"):
            image.save(path / "b" / f"x.{form}")
        dataset = load(path)
        assert dataset.unreadable == ()
        assert len(dataset.train.labels) + len(dataset.test.labels) == 8

    def test_no_memory_for_all_of_them(self, image_folder):
        with pytest.raises(TrainingError, match=r"the 4 images of .*animals at 3000000 × 3000000 × 3 need \d+.* GiB"):
            load(image_folder({"a": 2, "b": 2}), ImageSize(3_000_000, 3_000_000, 3))


def bomb():
    """A PNG file of 2 KB that says it has 40,000 × 40,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", 40_000, 40_000, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class TestUnreadable:
    def test_files_are_listed_with_the_reason_and_skipped(self, image_folder):
        path = image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
        a, b = path / "train" / "a", path / "val" / "b"
        jpeg = io.BytesIO()
        Image.open(a / "0.png").resize((64, 64)).save(jpeg, "JPEG")
        (a / "bomb.png").write_bytes(bomb())
        (a / "cut.jpg").write_bytes(jpeg.getvalue()[:-200])
        (a / "notes.txt").write_text("no image")
        (a / "text.png").write_text("no image")
        (b / "dangling.png").symlink_to(path / "nowhere")
        (b / "half.png").write_bytes((a / "0.png").read_bytes()[:100])
        (b / "empty.png").touch()
        os.mkfifo(b / "pipe.png")
        dataset = load(path)
        assert len(dataset.train.labels) == 4
        assert len(dataset.test.labels) == 2
        reasons = dict(text.split(": ", 1) for text in dataset.unreadable)
        assert list(reasons) == [
            *(str(a / name) for name in ("bomb.png", "cut.jpg", "notes.txt", "text.png")),
            *(str(b / name) for name in ("dangling.png", "empty.png", "half.png", "pipe.png")),
        ]
        assert "decompression bomb" in reasons[str(a / "bomb.png")]
        assert "truncated" in reasons[str(a / "cut.jpg")]
        assert reasons[str(a / "text.png")] == reasons[str(b / "empty.png")] == "is no image"
        assert reasons[str(b / "pipe.png")] == reasons[str(b / "dangling.png")] == "is no file, or a link to none"

    def test_an_image_that_pillow_only_warns_of(self, image_folder, monkeypatch):
        path = image_folder({"a": 3, "b": 3})
        Image.new("L", (12, 12)).save(path / "a" / "large.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        (text,) = load(path).unreadable
        assert text.startswith(f"{path / 'a' / 'large.png'}: ")
        assert "144 pixels" in text

    def test_hidden_files_and_folders_in_a_class_are_nothing(self, image_folder):
        path = image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
        (path / "val" / "b" / ".DS_Store").touch()
        (path / "val" / ".hidden").mkdir()
        (path / "val" / "b" / "folder.png").mkdir()
        (path / "train" / "readme.txt").touch()
        dataset = load(path)
        assert dataset.unreadable == ()
        assert dataset.labels == ("a", "b")
        assert len(dataset.test.labels) == 2

    def test_names_that_are_no_text(self, image_folder):
        path = image_folder({"a": 2, "b": 2})
        (path / "b" / os.fsdecode(b"caf\xe9.png")).touch()
        assert load(path).unreadable == (f"{path}/b/caf\\xe9.png: is no image",)

    def test_links_are_followed(self, image_folder):
        elsewhere = image_folder({"b": 3}, "elsewhere")
        path = image_folder({"a": 2})
        (path / "b").symlink_to(elsewhere / "b")
        (path / "a" / "link.png").symlink_to(elsewhere / "b" / "0.png")
        dataset = load(path)
        assert np.bincount(np.concatenate([dataset.train.labels, dataset.test.labels])).tolist() == [3, 3]


class TestTooFew:
    def test_an_empty_class(self, image_folder):
        path = image_folder({"train/a": 2, "train/b": 0, "val/a": 1, "val/b": 1})
        (path / "train" / "b" / "x.txt").write_text("x")
        (path / "train" / "a" / "y.txt").write_text("y")
        with pytest.raises(TrainingError) as caught:
            load(path)
        text = str(caught.value)
        assert f"class folder {path}/train/b has 0 readable images, but needs at least 1: add images or" in text
        assert "b/x.txt" in text
        assert "y.txt" not in text

    def test_a_class_that_is_empty_in_the_held_out_part(self, image_folder):
        path = image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 0})
        with pytest.raises(TrainingError, match="val/b has 0 readable images, but needs at least 1"):
            load(path)

    def test_a_class_too_small_to_be_split(self, image_folder):
        with pytest.raises(TrainingError, match="b has 1 readable images, but needs at least 2"):
            load(image_folder({"a": 4, "b": 1}))


class TestPlaces:
    def test_no_folder(self, tmp_path):
        with pytest.raises(
            TrainingError, match="nowhere is not a folder: give the name of a data set, such as mnist5k"
        ):
            load(tmp_path / "nowhere")

    def test_a_file(self, tmp_path):
        (tmp_path / "images.zip").touch()
        with pytest.raises(TrainingError, match=r"images\.zip is not a folder"):
            load(tmp_path / "images.zip")

    def test_a_class_folder_without_permission(self, open_folder):
        load(open_folder)
        (open_folder / "b").chmod(0)
        with unprivileged(), pytest.raises(TrainingError) as caught:
            load(open_folder)
        assert str(caught.value).startswith(f"{open_folder / 'b'} cannot be read (Permission denied): change its perm")

    def test_a_folder_without_permission(self, open_folder):
        load(open_folder)
        open_folder.chmod(0)
        with (
            unprivileged(),
            pytest.raises(TrainingError, match=r"cannot be read \(Permission denied\): change its perm"),
        ):
            load(open_folder)

    def test_a_file_without_permission(self, open_folder):
        load(open_folder)
        (open_folder / "a" / "1.png").chmod(0)
        with unprivileged():
            dataset = load(open_folder)
        assert dataset.unreadable == (f"{open_folder}/a/1.png: Permission denied",)

"""What may be given as an image, and what is sent for it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import convlens
from convlens._images import is_many, takes_long, to_message
from convlens.v1 import convlens_pb2 as pb

_SIDES = st.integers(1, 9)
_CHANNELS = st.sampled_from([1, 3])


@pytest.fixture
def image():
    return PIL.Image.fromarray(np.arange(36, dtype=np.uint8).reshape(4, 3, 3))


def files(images):
    message = to_message(images)
    assert message.WhichOneof("source") == "encoded"
    return list(message.encoded.files)


def test_bytes_and_paths(tmp_path):
    path = tmp_path / "ü.png"
    path.write_bytes(b"content")
    assert files(b"x") == [b"x"]
    assert files(path) == [b"content"]
    assert files(str(path)) == [b"content"]
    assert files([b"x", path, str(path)]) == [b"x", b"content", b"content"]
    assert files((b"x", b"y")) == [b"x", b"y"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_pillow_image_is_sent_as_png(image, mode):
    given_image = image.convert(mode)
    (file,) = files(given_image)
    with PIL.Image.open(io.BytesIO(file)) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read.convert("RGBA")), np.asarray(given_image.convert("RGBA")))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "F", "I", "LAB"])
def test_a_pillow_image_that_png_cannot_hold_is_sent_as_rgb(image, mode):
    source = image if mode != "LAB" else PIL.Image.new("LAB", (3, 4))
    (file,) = files(source.convert(mode))
    with PIL.Image.open(io.BytesIO(file)) as read:
        assert (read.mode, read.size) == ("RGB", (3, 4))


def test_a_pillow_image_that_cannot_be_read(image):
    buffer = io.BytesIO()
    image.resize((100, 100)).save(buffer, "PNG")
    broken = PIL.Image.open(io.BytesIO(buffer.getvalue()[:200]))
    with pytest.raises(convlens.InvalidImage, match="image 1, a Pillow image, cannot be encoded"):
        to_message([b"x", broken])


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(_SIDES, _SIDES)))
def test_grey_pixels(array):
    height, width = array.shape
    assert to_message(array).raw == pb.RawImages(pixels=array.tobytes(), height=height, width=width, channels=1)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(_SIDES, _SIDES, _CHANNELS)))
def test_pixels(array):
    height, width, channels = array.shape
    assert to_message(array).raw == pb.RawImages(pixels=array.tobytes(), height=height, width=width, channels=channels)
    assert not is_many(array)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(_SIDES, _SIDES, _SIDES, _CHANNELS)), st.sampled_from(["array", "list", "tuple"]))
def test_many(array, kind):
    count, height, width, channels = array.shape
    images = {"array": array, "list": list(array), "tuple": tuple(array)}[kind]
    raw = to_message(images).raw
    assert raw == pb.RawImages(pixels=array.tobytes(), height=height, width=width, channels=channels)
    assert is_many(images)
    assert len(raw.pixels) == count * height * width * channels


def test_pixels_in_any_memory_order():
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    for view in (array[::-1], array[:, ::2], array.transpose(1, 0, 2), np.asfortranarray(array)):
        assert to_message(view).raw.pixels == bytes(view.ravel().tolist())


def test_grey_images_with_and_without_a_channel_go_together():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    raw = to_message([array, array[:, :, None]]).raw
    assert raw == pb.RawImages(pixels=array.tobytes() * 2, height=2, width=3, channels=1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=5).map(tuple))
def test_arrays_of_any_shape_are_sent_or_refused_in_our_words(shape):
    array = np.zeros(shape, np.uint8)
    fits = 0 not in shape and (len(shape) == 2 or (len(shape) in (3, 4) and shape[-1] in (1, 3)))
    if fits:
        assert len(to_message(array).raw.pixels) == array.size
    else:
        with pytest.raises(convlens.InvalidImage) as caught:
            to_message(array)
        assert str(shape) in str(caught.value)


_GREY = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([], "there are no images: give at least one"),
        ((), "there are no images"),
        (np.zeros((0, 4, 4, 1), np.uint8), r"shape \(0, 4, 4, 1\): there are no pixels"),
        (np.zeros((4, 4), np.float32), r"the array has dtype float32, .* \(array \* 255\)\.round\(\)"),
        ([_GREY, _GREY.astype(bool)], "image 1 has dtype bool"),
        (np.zeros((4, 4, 4), np.uint8), r"drop the transparency with array\[\.\.\., :3\]"),
        (np.zeros((3, 9, 9), np.uint8), r"numpy\.moveaxis\(array, -3, -1\)"),
        (np.zeros((8, 3, 9, 9), np.uint8), r"numpy\.moveaxis\(array, -3, -1\)"),
        (np.zeros((5, 28, 28), np.uint8), r"a batch of grey images is array\[\.\.\., None\]"),
        (np.zeros(5, np.uint8), r"height × width"),
        ([_GREY, np.zeros((4, 5), np.uint8)], r"image 1 has shape \(4, 5\), but image 0 has \(4, 4\)"),
        ([_GREY, np.zeros((1, 4, 4, 1), np.uint8)], "image 1 is an array of shape .* a batch of its own"),
        ([b"x", _GREY], "image 1 is an array, and image 0 is not"),
        (bytearray(b"x"), "the image is of type bytearray, but must be a path, the bytes"),
        ([b"x", None], "image 1 is of type NoneType"),
        ([[b"x"]], "image 0 is of type list"),
        ("/no/such/file.png", "the image, '/no/such/file.png', cannot be read: No such file or directory"),
        ("a\0b", "cannot be read: embedded null byte"),
        ([b"x", Path("/")], "image 1, '/', cannot be read: Is a directory"),
    ],
)
def test_what_cannot_be_sent(client, images, text):
    """The fake has no script, and no call reaches it."""
    for call in (client.classify, client.maps):
        with pytest.raises(convlens.InvalidImage, match=text) as caught:
            call(images)
        assert isinstance(caught.value, ValueError)
        assert caught.value.code is None
        assert caught.value.reason


def test_what_needs_a_thread(image):
    assert takes_long("a path")
    assert takes_long([b"x", Path("a path")])
    assert takes_long(image)
    assert not takes_long([b"x", b"y"])
    assert not takes_long(np.zeros((2, 2), np.uint8))


def test_importing_the_client_is_light():
    code = (
        "import sys, convlens\n"
        "heavy = {'PIL', 'onnx', 'onnxruntime', 'torch', 'convlens_server', 'convlens_training'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

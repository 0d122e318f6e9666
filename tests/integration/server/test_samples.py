from __future__ import annotations

import io
import logging

import fsspec
import numpy as np
import PIL.Image

from convlens.v1 import convlens_pb2 as pb
from convlens_server.samples import MOST, MOST_BYTES, read_samples
from support import linear_model, put, raw


def image(value=0, form="PNG"):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8), value, np.uint8)).save(buffer, form)
    return buffer.getvalue()


def write(version, **files):
    folder = version / "samples"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)


def test_samples_come_by_name_and_can_be_classified(serve, tmp_path):
    version = put(tmp_path, "linear", 1, linear_model()).parent
    write(version, b__png=image(1), c__webp=image(2, "WebP"), a__jpg=image(3, "JPEG"), notes__txt=b"no image")
    put(tmp_path, "linear", 2, linear_model())
    with serve(tmp_path) as server:
        response = server.stub.GetSamples(pb.GetSamplesRequest(version=1), timeout=10)

        assert [sample.name for sample in response.samples] == ["a", "b", "c"]
        assert response.samples[1].file == image(1)
        assert (response.model, response.version) == ("linear", 1)
        files = [sample.file for sample in response.samples]
        request = pb.ClassifyRequest(version=1, images=pb.Images(encoded=pb.EncodedImages(files=files)))
        assert len(server.stub.Classify(request, timeout=10).results) == 3
        none = server.stub.GetSamples(pb.GetSamplesRequest(), timeout=10)
        assert (list(none.samples), none.version) == ([], 2)


def test_what_cannot_be_given_is_left_out_with_a_warning(tmp_path, caplog):
    write(tmp_path, a__png=image(), a__webp=image(form="WebP"), b__png=b"text", c__png=image(), d__jpg=b"")
    (tmp_path / "samples" / "folder.png").mkdir()
    (tmp_path / "samples" / ".hidden.png").write_bytes(image())

    with caplog.at_level(logging.WARNING):
        samples = read_samples(tmp_path)

    assert [sample.name for sample in samples] == ["a", "c"]
    assert samples[0].file == image()
    told = "\n".join(caplog.messages)
    assert len(caplog.messages) == 4
    for name, reason in (
        ("a.webp", "another sample has its name"),
        ("b.png", "not a JPEG, PNG or WebP file"),
        ("d.jpg", "not a JPEG, PNG or WebP file"),
        ("folder.png", "cannot be read"),
    ):
        assert any(name in line and reason in line for line in told.splitlines())


def test_they_are_bounded_in_number(tmp_path):
    write(tmp_path, **{f"{number:03}__png": image() for number in range(MOST + 2)})

    assert [sample.name for sample in read_samples(tmp_path)] == [f"{number:03}" for number in range(MOST)]


def test_they_fit_into_a_message_that_any_caller_takes(tmp_path):
    half = image() + bytes(MOST_BYTES // 2)
    write(tmp_path, a__png=half, b__png=half, c__png=image())

    samples = read_samples(tmp_path)

    assert [sample.name for sample in samples] == ["a", "c"]
    message = pb.GetSamplesResponse(samples=[pb.Sample(name=s.name, file=s.file) for s in samples])
    assert message.ByteSize() < 4 * 2**20


def test_others_come_with_the_next_load(serve, tmp_path):
    version = put(tmp_path, "linear", 1, linear_model()).parent
    write(version, a__png=image())
    with serve(tmp_path, model_control="poll", poll_seconds=0.1) as server:

        def names():
            return [sample.name for sample in server.stub.GetSamples(pb.GetSamplesRequest(), timeout=10).samples]

        assert names() == ["a"]
        write(version, b__png=image(9))
        while names() != ["a", "b"]:
            server.stub.Classify(pb.ClassifyRequest(images=raw(np.zeros((1, 8, 8, 1), np.uint8))), timeout=10)


def test_samples_of_a_store_come_with_their_version(serve, tmp_path):
    files = fsspec.filesystem("memory")
    files.pipe("/sampled/linear/1/model.onnx", linear_model().SerializeToString())
    files.pipe("/sampled/linear/1/samples/a.png", image())
    try:
        with serve("memory://sampled", model_control="explicit", model_cache=tmp_path / "cache") as server:

            def names():
                return [sample.name for sample in server.stub.GetSamples(pb.GetSamplesRequest(), timeout=10).samples]

            assert names() == ["a"]
            files.pipe("/sampled/linear/1/samples/b.png", image(9))
            server.state.repository.load("linear")
            assert names() == ["a", "b"]
    finally:
        files.rm("/sampled", recursive=True)


def test_a_link_out_of_the_repository_is_refused_with_its_version(serve, failing, tmp_path):
    (tmp_path / "secret.png").write_bytes(image())
    version = put(tmp_path / "models", "linear", 1, linear_model()).parent
    put(tmp_path / "models", "other", 1, linear_model())
    write(version)
    (version / "samples" / "secret.png").symlink_to(tmp_path / "secret.png")
    with serve(tmp_path / "models") as server:
        failure = failing(lambda: server.stub.GetSamples(pb.GetSamplesRequest(model="linear"), timeout=10))

        assert failure.reason == "MODEL_NOT_READY"
        assert "link out of the repository" in failure.text

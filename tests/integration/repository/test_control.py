"""What changes the models that are served: nothing, requests, or the repository itself."""

from __future__ import annotations

import threading
import time
from collections import Counter

import grpc
import pytest

from convlens.v1 import convlens_pb2 as pb
from convlens_server.errors import AliasNotMoved, InvalidRequest, ModelNotReady, NotFound, RepositoryRefused
from convlens_server.v2 import service_pb2 as v2
from repositories import fails, request
from support import pixels, serving

CODE = grpc.StatusCode
IMAGE = pixels(1)


def until(condition):
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def states(server):
    versions = server.stub.ListModels(pb.ListModelsRequest(), timeout=10).models
    return {(each.model, each.version): pb.ModelState.Name(each.state)[12:] for each in versions}


def errors(server):
    return {(each.name, each.number): each.error for each in server.state.repository.versions if each.error}


class TestFixed:
    def test_nothing_changes(self, folder, publish):
        publish("a", 1)
        with serving(folder) as server:
            publish("a", 2)
            publish("b", 1)
            repository = server.state.repository
            for change in (repository.load, repository.unload, lambda name: repository.move_alias(name, "stable", 1)):
                with pytest.raises(RepositoryRefused, match="--model-control fixed; start it with --model-control exp"):
                    change("a")
            assert states(server) == {("a", 1): "READY"}

    def test_a_name_beside_folders_that_are_none(self, folder, publish):
        publish("a", 1)
        publish("a", "latest", b"junk")
        publish("b", "v2", b"junk")
        with serving(folder) as server:
            assert server.stub.Classify(request("a"), timeout=10).version == 1
            assert "the version a positive whole number; there is 'v2'" in errors(server)["b", 0]
            with fails(CODE.FAILED_PRECONDITION) as failures:
                server.stub.Classify(request("b"), timeout=10)
            assert "model 'b' could not be loaded: holds no versions" in failures[0].text


class TestExplicit:
    def test_versions_come_change_and_go(self, folder, publish):
        publish("a", 1)
        with serving(folder, model_control="explicit") as server:
            repository = server.state.repository

            def answer(version=0):
                response = server.stub.Classify(request("a", version), timeout=10)
                return response.version, publish.made_by(response, IMAGE)

            assert answer() == (1, 0)
            publish("a", 2)
            assert answer() == (1, 0)
            repository.load("a")
            assert answer() == (2, 0)
            publish("a", 2)
            assert answer() == (2, 0)
            repository.load("a")
            assert (answer(), answer(1)) == ((2, 1), (1, 0))

            publish("a", 3, b"junk")
            with pytest.raises(ModelNotReady, match="version 3: not an ONNX model"):
                repository.load("a")
            assert answer() == (2, 1)
            publish("a", 2, b"junk")
            with pytest.raises(ModelNotReady, match="version 2: not an ONNX model"):
                repository.load("a")
            assert answer() == (2, 1)
            assert states(server) == {("a", 1): "READY", ("a", 2): "READY", ("a", 3): "FAILED"}
            assert "not an ONNX model" in errors(server)["a", 2]

            publish("a", 2)
            publish("a", 3)
            repository.load("a")
            assert (answer(), answer(2), errors(server)) == ((3, 0), (2, 2), {})
            (folder / "a" / "3").rename(folder / ".gone")
            repository.load("a")
            assert answer() == (2, 2)
            with fails(CODE.NOT_FOUND) as failures:
                answer(3)
            assert "has no version 3 (there are 1, 2)" in failures[0].text

    def test_models_come_and_go(self, folder, publish):
        with serving(folder, model_control="explicit") as server:
            repository = server.state.repository
            with fails(CODE.INVALID_ARGUMENT):
                server.stub.Classify(request(), timeout=10)
            publish("a", 1)
            publish("b", 1)
            with pytest.raises(NotFound, match="model 'c' is not in the repository"):
                repository.load("c")
            with pytest.raises(NotFound):
                repository.unload("b")
            repository.load("a")
            assert server.stub.Classify(request(), timeout=10).version == 1
            repository.load("b")
            repository.unload("a")
            assert states(server) == {("a", 1): "FAILED", ("b", 1): "READY"}
            assert errors(server) == {("a", 1): "unloaded"}
            for version in (0, 1):
                with fails(CODE.FAILED_PRECONDITION) as failures:
                    server.stub.Classify(request("a", version), timeout=10)
                assert failures[0].text == "version 1 of model 'a' was unloaded"
            assert server.metric("convlens_models_loaded") == 1
            repository.load("a")
            assert server.stub.Classify(request("a"), timeout=10).version == 1
            (folder / "a").rename(folder / ".gone")
            with pytest.raises(NotFound):
                repository.load("a")
            assert states(server) == {("b", 1): "READY"}

    @pytest.mark.parametrize("name", ["", ".", "..", "../models/a", "a/1", "/etc", "a\\1", "a\0", ".hidden"])
    def test_what_is_no_name(self, folder, publish, name):
        publish("a", 1)
        with serving(folder, model_control="explicit") as server:
            for change in (server.state.repository.load, server.state.repository.unload):
                with pytest.raises(InvalidRequest, match="is no model's name: it must be that of a folder in the rep"):
                    change(name)
            assert server.stub.Classify(request("a"), timeout=10).version == 1

    def test_a_link_out_of_the_repository(self, folder, publish, tmp_path):
        publish("a", 1)
        publish("other", 1).parent.rename(tmp_path / "other")
        (folder / "b").symlink_to(tmp_path / "other")
        with serving(folder, model_control="explicit") as server:
            with pytest.raises(ModelNotReady, match="'b' is a symbolic link out of the repository"):
                server.state.repository.load("b")
            assert server.stub.Classify(request("a"), timeout=10).version == 1

    def test_a_model_that_is_replaced_while_it_is_read(self, folder, publish, monkeypatch):
        publish("a", 1)
        with serving(folder, model_control="explicit") as server:
            from convlens_server.repository import loading

            real = loading.Model
            times = []

            def model(*args):
                made = real(*args)
                times.append(1)
                if len(times) in self.changes:
                    publish("a", 1)
                return made

            monkeypatch.setattr(loading, "Model", model)
            self.changes = {1, 2}
            publish("a", 1)
            server.state.repository.load("a")
            assert publish.made_by(server.stub.Classify(request("a"), timeout=10), IMAGE) == 3
            self.changes = range(100)
            publish("a", 1)
            with pytest.raises(ModelNotReady, match="its files changed each of the 3 times that they were read"):
                server.state.repository.load("a")
            assert publish.made_by(server.stub.Classify(request("a"), timeout=10), IMAGE) == 3

    def test_a_request_that_comes_late_is_answered_by_the_model_that_it_got(self, folder, publish, monkeypatch):
        """Between look-up and queue the model is replaced, and its engine ends."""
        publish("a", 1)
        with serving(folder, model_control="explicit", transport="aio") as server:
            from convlens_server.inference import Inference

            real = Inference.classify
            met = threading.Barrier(2, timeout=30)

            def classify(self, *args):
                met.wait()
                met.wait()
                return real(self, *args)

            monkeypatch.setattr(Inference, "classify", classify)
            call = server.stub.Classify.future(request("a"), timeout=30)
            met.wait()
            publish("a", 1)
            server.state.repository.load("a")
            met.wait()
            assert publish.made_by(call.result(), IMAGE) == 0
            monkeypatch.undo()
            assert publish.made_by(server.stub.Classify(request("a"), timeout=10), IMAGE) == 1


class TestPoll:
    def test_the_repository_is_followed(self, folder, publish):
        publish("a", 1)
        with serving(folder, model_control="poll", poll_seconds=0.05) as server:
            repository = server.state.repository
            with pytest.raises(RepositoryRefused, match="--model-control poll"):
                repository.load("a")

            def answer():
                response = server.stub.Classify(request("a"), timeout=10)
                return response.version, publish.made_by(response, IMAGE)

            publish("a", 2)
            until(lambda: answer() == (2, 0))
            publish("a", 2)
            until(lambda: answer() == (2, 1))
            publish("a", 3, b"junk")
            until(lambda: states(server).get(("a", 3)) == "FAILED")
            assert answer() == (2, 1)
            publish("a", 3)
            until(lambda: answer() == (3, 0))
            publish("b", 7)
            until(lambda: ("b", 7) in states(server))
            (folder / "a").rename(folder / ".gone")
            until(lambda: list(states(server)) == [("b", 7)])

    def test_what_had_no_room_is_tried_again_and_what_is_broken_is_not(self, folder, publish, monkeypatch):
        from convlens_server.repository import entry, loading
        from convlens_server.repository.memory import NoRoomError

        real = loading.check_fits
        tries: Counter[str] = Counter()
        full = threading.Event()
        full.set()

        def check_fits(path):
            tries[path.parent.name] += 1
            if path.parent.name == "2" and full.is_set():
                raise NoRoomError("there is no room")
            real(path)

        monkeypatch.setattr(loading, "check_fits", check_fits)
        monkeypatch.setattr(entry, "_RETRY_SECONDS", 0.1)
        publish("a", 1)
        with serving(folder, model_control="poll", poll_seconds=0.02) as server:
            publish("a", 2)
            publish("a", 3, b"junk")
            until(lambda: tries["2"] >= 4)
            assert errors(server)["a", 2] == "there is no room"
            assert server.stub.Classify(request("a"), timeout=10).version == 1
            full.clear()
            until(lambda: server.stub.Classify(request("a"), timeout=10).version == 2)
            assert list(errors(server)) == [("a", 3)]
            assert tries["3"] == 1

    def test_what_was_loaded_is_replaced_when_there_is_room(self, folder, publish, monkeypatch):
        from convlens_server.repository import entry, loading
        from convlens_server.repository.memory import NoRoomError

        publish("a", 1)
        monkeypatch.setattr(entry, "_RETRY_SECONDS", 0.05)
        with serving(folder, model_control="poll", poll_seconds=0.02) as server:

            def check_fits(path):
                raise NoRoomError("there is no room")

            with monkeypatch.context() as patch:
                patch.setattr(loading, "check_fits", check_fits)
                publish("a", 1)
                (folder / "a" / "config.pbtxt").write_text("max_batch_size: 3")
                until(lambda: errors(server) == {("a", 1): "there is no room"})
                assert publish.made_by(server.stub.Classify(request("a"), timeout=10), IMAGE) == 0
            until(lambda: errors(server) == {})
            assert publish.made_by(server.stub.Classify(request("a"), timeout=10), IMAGE) == 1
            assert server.stub.GetModel(pb.GetModelRequest(), timeout=10).max_batch == 3

    def test_a_repository_that_is_away_for_a_while(self, folder, publish):
        publish("a", 1)
        with serving(folder, model_control="poll", poll_seconds=0.02) as server:
            folder.rename(folder.parent / "away")
            for _ in range(20):
                assert server.stub.Classify(request("a"), timeout=10).version == 1
                time.sleep(0.01)
            (folder.parent / "away").rename(folder)
            publish("a", 2)
            until(lambda: server.stub.Classify(request("a"), timeout=10).version == 2)


class TestPolicy:
    def test_the_latest(self, folder, publish):
        for version in (1, 2, 3):
            publish("a", version)
        (folder / "a" / "config.pbtxt").write_text("version_policy { latest { num_versions: 2 } }")
        with serving(folder, model_control="explicit") as server:
            assert list(states(server)) == [("a", 2), ("a", 3)]
            publish("a", 4, b"junk")
            with pytest.raises(ModelNotReady):
                server.state.repository.load("a")
            assert states(server) == {("a", 2): "READY", ("a", 3): "READY", ("a", 4): "FAILED"}
            publish("a", 4)
            server.state.repository.load("a")
            assert list(states(server)) == [("a", 3), ("a", 4)]

    def test_named_versions(self, folder, publish):
        for version in (1, 2, 3):
            publish("a", version)
        (folder / "a" / "config.pbtxt").write_text("version_policy { specific { versions: [ 1, 5 ] } }")
        with serving(folder) as server:
            assert states(server) == {("a", 1): "READY", ("a", 5): "FAILED"}
            assert errors(server) == {("a", 5): "version 5 is asked for, but its folder is not there"}

    def test_aliases(self, folder, publish):
        for version in (1, 2, 3):
            publish("a", version)
        (folder / "a" / "config.pbtxt").write_text("version_policy { latest { num_versions: 1 } }")
        (folder / "a" / "aliases.json").write_text('{"stable": 1}')
        with serving(folder, model_control="explicit") as server:
            repository = server.state.repository
            assert list(states(server)) == [("a", 1), ("a", 3)]
            assert [repository.version_number("a", text) for text in (0, 3, "stable")] == [0, 3, 1]
            with pytest.raises(InvalidRequest, match=r"specified version string 'stabel' .*\(did you mean stable\?\)"):
                repository.version_number("a", "stabel")
            repository.move_alias("a", "stable", 2)
            assert repository.version_number("a", "stable") == 2
            assert list(states(server)) == [("a", 2), ("a", 3)]
            repository.load("a")
            assert repository.version_number("a", "stable") == 2
            publish("a", 4, b"junk")
            with pytest.raises(AliasNotMoved, match="alias 'stable' of model 'a' is left where it was: version 4"):
                repository.move_alias("a", "stable", 4)
            with pytest.raises(NotFound, match="has no version 9"):
                repository.move_alias("a", "stable", 9)
            with pytest.raises(InvalidRequest, match="is no alias"):
                repository.move_alias("a", "../x", 2)
            assert repository.version_number("a", "stable") == 2
            (folder / "a" / "aliases.json").write_text('{"stable": 8}')
            with pytest.raises(ModelNotReady, match="'stable' is version 8, but there is none"):
                repository.load("a")
            assert server.stub.Classify(request("a", 2), timeout=10).version == 2

    def test_requests_of_open_inference_may_name_an_alias(self, folder, publish):
        for version in (1, 2, 3):
            publish("a", version)
        (folder / "a" / "aliases.json").write_text('{"stable": 2}')

        def infer(server, version):
            message = v2.ModelInferRequest(model_name="a", model_version=version, raw_input_contents=[bytes(4 * 64)])
            message.inputs.add(name="x", datatype="FP32", shape=[1, 1, 8, 8])
            call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            return v2.ModelInferResponse.FromString(call(message.SerializeToString(), timeout=10)).model_version

        with serving(folder, model_control="explicit") as server:
            assert [infer(server, version) for version in ("", "1", "stable")] == ["3", "1", "2"]
            server.state.repository.move_alias("a", "stable", 1)
            assert infer(server, "stable") == "1"
            with fails(CODE.INVALID_ARGUMENT) as failures:
                infer(server, "canary")
            assert "failed to get model version from specified version string" in failures[0].text


class TestConfiguration:
    def test_what_is_wrong_fails_its_own_model_alone(self, folder, publish):
        for name in ("a", "b", "c", "d"):
            publish(name, 1)
        (folder / "a" / "config.pbtxt").write_text("max_batch_size: lots")
        (folder / "b" / "config.pbtxt").write_text('output { label_filename: "../../secret" }')
        (folder.parent / "secret").write_text("x")
        (folder / "c" / "config.pbtxt").write_text('output { label_filename: "labels.txt" }')
        (folder / "c" / "labels.txt").write_text("one\ntwo\n")
        with serving(folder) as server:
            assert states(server) == {(n, 1): "FAILED" for n in "abc"} | {("d", 1): "READY"}
            failed = errors(server)
            assert "config.pbtxt: does not parse: 1:17" in failed["a", 1]
            assert "leads out of the model's folder" in failed["b", 1]
            assert "config.pbtxt names 2 labels, but the model has 16 classes" in failed["c", 1]

    def test_labels_batches_and_a_file_of_another_name(self, folder, publish, caplog):
        place = publish("a", 1)
        (place / "model.onnx").rename(place / "net.onnx")
        (folder / "a" / "labels.txt").write_text("\n".join(f"class {n}" for n in range(16)))
        (folder / "a" / "config.pbtxt").write_text(
            'default_model_filename: "net.onnx" max_batch_size: 3 colour: "red" input { name: "image" } '
            'output { name: "y" label_filename: "labels.txt" }'
        )
        with serving(folder) as server:
            model = server.stub.GetModel(pb.GetModelRequest(), timeout=10)
            assert (model.max_batch, model.labels[15]) == (3, "class 15")
            response = server.stub.Classify(request("a", count=7), timeout=10)
            assert response.results[0].predictions[0].label.startswith("class ")
            assert publish.made_by(response, pixels(7)) == 0
        assert "config.pbtxt of model a: colour is not honoured" in caplog.text
        assert "config.pbtxt of model a: its input is ['image'], but the file's is x" in caplog.text
        assert "its output is" not in caplog.text

    def test_it_holds_anew_when_it_changes(self, folder, publish):
        publish("a", 1)
        with serving(folder, model_control="explicit") as server:
            assert server.stub.GetModel(pb.GetModelRequest(), timeout=10).max_batch == 16
            (folder / "a" / "config.pbtxt").write_text("max_batch_size: 5")
            server.state.repository.load("a")
            assert server.stub.GetModel(pb.GetModelRequest(), timeout=10).max_batch == 5
            (folder / "a" / "config.pbtxt").write_text("max_batch_size: x")
            for _ in range(2):
                with pytest.raises(ModelNotReady, match="does not parse"):
                    server.state.repository.load("a")
            assert server.stub.GetModel(pb.GetModelRequest(), timeout=10).max_batch == 5

    def test_instances_and_priorities(self, folder, publish):
        publish("a", 1)
        (folder / "a" / "config.pbtxt").write_text(
            "instance_group { count: 3 kind: KIND_CPU } "
            "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"
        )
        with serving(folder) as server:
            names = [thread.name for thread in threading.enumerate() if thread.name.startswith("engine a:1")]
            assert len(names) == 3
            calls = [server.stub.Classify.future(request("a", count=5, seed=n), timeout=30) for n in range(100)]
            for n, call in enumerate(calls):
                assert publish.made_by(call.result(), pixels(5, n)) == 0


def test_more_than_there_is_memory_for(folder, publish):
    from convlens_server.repository.memory import available_memory

    publish("a", 1)
    (folder / "big" / "1").mkdir(parents=True)
    with (folder / "big" / "1" / "model.onnx").open("wb") as file:
        file.truncate(10 * 2**30)
    place = publish("external", 1)
    with (place / "model.onnx.data").open("wb") as file:
        file.truncate(available_memory())
    with serving(folder) as server:
        failed = errors(server)
        assert "the file has 10.0 GiB, but an ONNX file has 2.0 GiB at most" in failed["big", 1]
        assert "of memory, and" in failed["external", 1]
        assert server.stub.Classify(request("a"), timeout=10).version == 1

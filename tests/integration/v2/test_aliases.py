"""Aliases are moved over REST, and hold for all who ask by the protocol."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter

import httpx
import numpy as np
import pytest

from convlens_server.v2 import service_pb2 as pb
from integration.v2.asking import Asked, arrays, normalised, tensor
from repositories import Publisher
from support import TRANSPORTS, expected_logits, pixels, serving

IMAGES = pixels(1)


class Operator:
    """A server, asked by the protocol and changed over REST."""

    def __init__(self, server, folder):
        server.__class__ = Asked
        self.server = server
        self.folder = folder
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{server.state.http_port}/v2", timeout=30)

    def infer(self, version, name="a"):
        return self.server.infer(model_name=name, model_version=version, **tensor("x", normalised(IMAGES)))

    def version(self, alias):
        return self.infer(alias).model_version

    def move(self, alias, version, name="a"):
        return self.http.post(f"/repository/models/{name}/aliases/{alias}", json={"version": version})

    def remove(self, alias, name="a"):
        return self.http.delete(f"/repository/models/{name}/aliases/{alias}")

    def aliases(self, name="a"):
        return self.http.get(f"/repository/models/{name}/aliases").json()

    def states(self):
        models = self.server.ask("RepositoryIndex", pb.RepositoryIndexRequest()).models
        return {model.version: model.state for model in models if model.name == "a"}

    def written(self):
        return json.loads((self.folder / "a" / "aliases.json").read_text())


@contextlib.contextmanager
def operating(folder, **options):
    with serving(folder, **{"model_control": "explicit", **options}) as server:
        operator = Operator(server, folder)
        with operator.http:
            yield operator


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def publish(folder):
    return Publisher(folder)


@pytest.fixture
def operator(folder, publish):
    for version in (1, 2, 3):
        publish("a", version)
    publish("b", 1)
    with operating(folder) as operator:
        yield operator


def test_an_alias_comes_moves_and_goes(operator):
    assert operator.aliases() == {}
    for version in ("2", "3", "2"):
        response = operator.move("stable", version)
        assert (response.status_code, response.json()) == (200, {})
        assert operator.version("stable") == version
        assert operator.written() == {"stable": int(version)}
    assert operator.move("canary", "3").status_code == 200
    assert operator.aliases() == {"canary": "3", "stable": "2"}
    assert operator.aliases("b") == {}

    for path in ("", "/ready", "/config", "/stats"):
        assert operator.http.get(f"/models/a/versions/stable{path}").status_code == 200
    [statistics] = operator.http.get("/models/a/versions/stable/stats").json()["model_stats"]
    assert statistics["version"] == "2"

    assert operator.remove("canary").status_code == 200
    assert operator.aliases() == operator.http.get("/repository/models/a/aliases").json() == {"stable": "2"}
    assert operator.written() == {"stable": 2}
    response = operator.http.get("/models/a/versions/canary")
    assert response.status_code == 400
    assert "failed to get model version from specified version string 'canary'" in response.json()["error"]


def test_it_survives_a_restart(folder, publish):
    for version in (1, 2):
        publish("a", version)
    with operating(folder) as operator:
        assert operator.move("stable", "1").status_code == 200
    with operating(folder, model_control="fixed") as operator:
        assert operator.version("stable") == "1"


def test_a_version_that_is_not_served_is_loaded_first_and_leaves_with_its_alias(folder, publish):
    for version in (1, 2, 3):
        publish("a", version)
    (folder / "a" / "config.pbtxt").write_text("version_policy { latest { num_versions: 1 } }")
    with operating(folder) as operator:
        assert list(operator.states()) == ["3"]
        operator.move("stable", "1")
        assert (operator.version("stable"), list(operator.states())) == ("1", ["1", "3"])
        publish("a", 4)
        operator.move("stable", "4")
        assert (operator.version("stable"), list(operator.states())) == ("4", ["4"])
        operator.move("stable", "2")
        operator.remove("stable")
        assert list(operator.states()) == ["4"]


def test_a_version_that_is_served_needs_no_loading(operator, publish):
    """A rollback does not wait for, or fail by, what else has changed of the model."""
    publish("a", 4, b"junk")
    (operator.folder / "a" / "config.pbtxt").write_text("broken {")
    assert operator.move("stable", "1").status_code == 200
    assert operator.version("stable") == "1"
    assert list(operator.states()) == ["1", "2", "3"]


def test_what_is_in_the_file_already_stays(operator):
    (operator.folder / "a" / "aliases.json").write_text('{"canary": 3}')
    operator.move("stable", "2")
    assert operator.written() == {"canary": 3, "stable": 2}
    assert operator.aliases() == {"stable": "2"}
    assert operator.http.post("/repository/models/a/load").status_code == 200
    assert operator.aliases() == {"canary": "3", "stable": "2"}


def test_a_load_that_fails_leaves_the_alias(operator, publish):
    operator.move("stable", "2")
    publish("a", 4, b"junk")
    response = operator.move("stable", "4")
    assert response.status_code == 400
    assert "alias 'stable' of model 'a' is left where it was: version 4 could not be loaded" in response.json()["error"]
    assert "not an ONNX model" in response.json()["error"]
    (operator.folder / "a" / "aliases.json").write_text('{"stable": 4}')
    assert operator.http.post("/repository/models/a/load").status_code == 503
    assert operator.version("stable") == "2"
    publish("a", 4)
    assert operator.http.post("/repository/models/a/load").status_code == 200
    assert operator.version("stable") == "4"


WRONG = {
    "unknown model": ("post", "none/aliases/stable", {"version": "1"}, 404, "unknown model: 'none' is not found"),
    "unknown version": ("post", "a/aliases/stable", {"version": "9"}, 404, "'a' version 9 is not found: model 'a' has"),
    "no number": ("post", "a/aliases/stable", {"version": "three"}, 400, "version is 'three', but must be a version's"),
    "an empty number": ("post", "a/aliases/stable", {"version": ""}, 400, "but must be a version's number"),
    "an alias": ("post", "a/aliases/stable", {"version": "canary"}, 400, "version is 'canary', but must be a"),
    "zero": ("post", "a/aliases/stable", {"version": "0"}, 400, "version is '0', but must be"),
    "no text": ("post", "a/aliases/stable", {"version": 3}, 400, 'the request JSON must be {"version": "N"}'),
    "more": ("post", "a/aliases/stable", {"version": "3", "x": 1}, 400, 'the request JSON must be {"version": "N"}'),
    "nothing": ("post", "a/aliases/stable", None, 400, 'the request JSON must be {"version": "N"}'),
    "a number as alias": ("post", "a/aliases/3", {"version": "3"}, 400, "'3' is no alias: begin with a letter"),
    "a path as alias": ("post", "a/aliases/..%2Fx", {"version": "3"}, 404, ""),
    "a hidden model": ("post", ".a/aliases/stable", {"version": "3"}, 400, "'.a' is no model's name"),
    "listing none": ("get", "none/aliases", None, 404, "unknown model: 'none' is not found"),
    "removing what is not there": ("delete", "a/aliases/stabel", None, 404, "has no alias 'stabel' (did you mean "),
    "removing of none": ("delete", "none/aliases/stable", None, 404, "unknown model: 'none' is not found"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong(operator, name):
    method, path, body, code, text = WRONG[name]
    operator.move("stable", "2")
    response = operator.http.request(method, f"/repository/models/{path}", json=body)
    assert response.status_code == code
    assert text in (response.text if code == 404 and not text else response.json()["error"])
    assert (operator.aliases(), operator.version("stable")) == ({"stable": "2"}, "2")


def test_a_file_that_cannot_be_written_leaves_it(operator, monkeypatch):
    operator.move("stable", "2")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("convlens_server.repository.store.tempfile.mkstemp", refuse)
        for response in (operator.move("stable", "3"), operator.remove("stable")):
            assert response.status_code == 400
            assert "left where it was: aliases.json cannot be written: Permission denied" in response.json()["error"]
    (operator.folder / "a" / "aliases.json").write_text("{")
    assert "left where it was: aliases.json is not JSON" in operator.move("stable", "3").json()["error"]
    assert operator.version("stable") == "2"


@pytest.mark.parametrize("control", ["fixed", "poll"])
def test_only_where_models_are_changed_by_request(folder, publish, control):
    publish("a", 1)
    (folder / "a" / "aliases.json").write_text('{"stable": 1}')
    with operating(folder, model_control=control) as operator:
        assert operator.aliases() == {"stable": "1"}
        for response in (operator.move("stable", "1"), operator.remove("stable")):
            assert response.status_code == 400
            assert f"the server runs with --model-control {control}" in response.json()["error"]


def test_lazily(folder, publish):
    for version in (1, 2):
        publish("a", version)
    with operating(folder, lazy=True, max_loaded=1) as operator:
        assert operator.move("stable", "1").status_code == 200
        assert operator.server.state.repository.models == ()
        for version in ("1", "2", "1"):
            operator.move("stable", version)
            assert operator.version("stable") == version


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_rollback_under_load(folder, publish, transport):
    """Each answer is of a version that the alias named while it was asked for, and none is lost."""
    for version in (1, 2, 3):
        publish("a", version)
    # The versions that no alias names leave, and are loaded again.
    (folder / "a" / "config.pbtxt").write_text("version_policy { latest { num_versions: 1 } }")
    logits = {str(number): expected_logits(IMAGES, publish.weights["a", number][0]) for number in (1, 2, 3)}
    done = threading.Event()
    seen: Counter[str] = Counter()
    failures: list[BaseException] = []
    with operating(folder, transport=transport) as operator:
        operator.move("stable", "1")

        def ask():
            try:
                while not done.is_set():
                    response = operator.infer("stable")
                    np.testing.assert_allclose(
                        arrays(response)["y"], logits[response.model_version], rtol=1e-4, atol=1e-3
                    )
                    seen[response.model_version] += 1
            except BaseException as error:
                failures.append(error)

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        for turn in range(30):
            version = str(1 + turn % 3)
            assert operator.move("stable", version).status_code == 200
            # Whoever asks from now on gets it.
            assert operator.version("stable") == version
        done.set()
        for caller in callers:
            caller.join()
        assert not failures, failures[0]
        assert sum(seen.values()) > 0

"""Both stores find the same, and nothing leads out of them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from convlens_server.errors import ModelError
from convlens_server.repository import LocalStore, RemoteStore, RepositoryError, Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for name in (
        "a/1/model.onnx",
        "a/12/model.onnx",
        "a/12/weights/part.bin",
        "a/latest/model.onnx",
        "b/0/x",
        "b/07/x",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / "a" / "config.pbtxt").write_text("max_batch_size: 3")
    (folder / "README.md").write_text("text")
    (folder / ".hidden" / "1").mkdir(parents=True)
    (folder / ".hidden" / "1" / "model.onnx").write_text("hidden")
    return folder


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Store:
    return LocalStore(folder) if request.param == "local" else RemoteStore(f"file://{folder}", tmp_path / "cache")


def test_finds_models_and_versions(store: Store) -> None:
    models = store.models()
    assert list(models) == ["a", "b"]
    assert list(models["a"].stamps) == [1, 12]
    assert (models["a"].error, models["a"].ignored) == ("", ("latest",))
    assert models["a"] == store.model("a") == store.models()["a"]
    assert "a positive whole number; there is '0', '07'" in models["b"].error
    assert store.model("c") is None
    assert store.read("a", "config.pbtxt") == b"max_batch_size: 3"
    assert store.read("a", "nothing") is None


def test_stamps_change_with_the_files(store: Store, folder: Path) -> None:
    before = store.models()["a"]
    (folder / "a" / "12" / "weights" / "part.bin").write_text("another")
    after = store.models()["a"]
    assert after.stamps[1] == before.stamps[1]
    assert after.stamps[12] != before.stamps[12]
    (folder / "a" / "config.pbtxt").write_text("max_batch_size: 44")
    again = store.models()["a"]
    assert (again.stamps, again.stamp != after.stamp) == (after.stamps, True)
    store.write("a", "aliases.json", b"{}")
    assert store.read("a", "aliases.json") == b"{}"
    named = store.models()["a"]
    assert (named.stamps, named.stamp, named.aliases != again.aliases) == (again.stamps, again.stamp, True)


def test_fetches_a_version_with_everything_in_it(store: Store) -> None:
    place = store.fetch("a", 12, store.models()["a"].stamps[12])
    assert (place / "model.onnx").read_text() == "a/12/model.onnx"
    assert (place / "weights" / "part.bin").read_text() == "a/12/weights/part.bin"


def test_a_file_outside_the_model_is_not_read(store: Store, folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        store.read("a", "../../secret")


class TestLocal:
    def test_links_out_of_the_repository(self, folder: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside" / "1"
        outside.mkdir(parents=True)
        (outside / "model.onnx").write_text("secret")
        (folder / "c").symlink_to(outside.parent)
        (folder / "d").mkdir()
        (folder / "d" / "1").symlink_to(outside)
        (folder / "e" / "1").mkdir(parents=True)
        (folder / "e" / "1" / "model.onnx").symlink_to(outside / "model.onnx")
        (folder / "e" / "labels.txt").symlink_to(outside / "model.onnx")
        store = LocalStore(folder)
        assert "'c' is a symbolic link out of the repository" in store.models()["c"].error
        with pytest.raises(ModelError, match="'1' is a symbolic link out of the repository"):
            store.fetch("d", 1, "")
        with pytest.raises(ModelError, match=r"'model.onnx' is a symbolic link out of the repository"):
            store.fetch("e", 1, "")
        with pytest.raises(ModelError, match="leads out of the model's folder"):
            store.read("e", "labels.txt")

    def test_links_within_are_followed(self, folder: Path) -> None:
        """As Kubernetes mounts its volumes."""
        (folder / "..data").mkdir()
        (folder / "a").rename(folder / "..data" / "a")
        (folder / "a").symlink_to(Path("..data") / "a")
        store = LocalStore(folder)
        assert list(store.models()["a"].stamps) == [1, 12]
        assert (store.fetch("a", 1, "") / "model.onnx").read_text() == "a/1/model.onnx"
        assert store.read("a", "config.pbtxt") == b"max_batch_size: 3"

    def test_a_link_to_itself_and_a_name_that_is_not_text(self, folder: Path) -> None:
        (folder / "c" / "1").mkdir(parents=True)
        (folder / "c" / "1" / "model.onnx").symlink_to("model.onnx")
        (folder / os.fsdecode(b"\xff")).mkdir()
        store = LocalStore(folder)
        assert list(store.models()) == ["a", "b", "c"]
        with pytest.raises(ModelError, match="symbolic link"):
            store.fetch("c", 1, "")

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(RepositoryError, match="cannot be read: No such file or directory; see --models"):
            LocalStore(tmp_path / "none").models()

    def test_a_folder_instead_of_a_file(self, folder: Path) -> None:
        (folder / "a" / "labels").mkdir()
        with pytest.raises(ModelError, match="labels cannot be read: Is a directory"):
            LocalStore(folder).read("a", "labels")


class TestRemote:
    @pytest.fixture
    def remote(self, tmp_path: Path) -> RemoteStore:
        files = fsspec.filesystem("memory")
        files.pipe({"/repository/a/1/model.onnx": b"one", "/repository/a/1/data/weights": b"two"})
        yield RemoteStore("memory://repository", tmp_path / "cache")
        files.rm("/repository", recursive=True)

    def test_a_cached_version_is_not_downloaded_again(
        self, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stamp = remote.models()["a"].stamps[1]
        place = remote.fetch("a", 1, stamp)
        sums = (place / "SHA256SUMS").read_text()
        assert f"{hashlib.sha256(b'one').hexdigest()}  model.onnx" in sums
        monkeypatch.setattr(remote._files, "get_file", None)
        assert remote.fetch("a", 1, stamp) == place
        assert (place / "data" / "weights").read_bytes() == b"two"

    def test_a_damaged_copy_is_downloaded_again(self, remote: RemoteStore) -> None:
        stamp = remote.models()["a"].stamps[1]
        place = remote.fetch("a", 1, stamp)
        (place / "model.onnx").write_bytes(b"oen")
        assert (remote.fetch("a", 1, stamp) / "model.onnx").read_bytes() == b"one"

    def test_another_stamp_takes_the_place_of_the_first(self, remote: RemoteStore) -> None:
        old = remote.fetch("a", 1, remote.models()["a"].stamps[1])
        fsspec.filesystem("memory").pipe("/repository/a/1/model.onnx", b"another")
        new = remote.fetch("a", 1, remote.models()["a"].stamps[1])
        assert (new / "model.onnx").read_bytes() == b"another"
        assert not old.exists()

    @pytest.mark.parametrize("breaks", ["cut", "error"])
    def test_an_interrupted_download_is_never_seen(
        self, remote: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
    ) -> None:
        whole: Callable[..., None] = remote._files.get_file

        def cut(source: str, target: str) -> None:
            whole(source, target)
            if source.endswith("model.onnx"):
                if breaks == "error":
                    raise ConnectionResetError("the connection was lost")
                os.truncate(target, 1)

        stamp = remote.models()["a"].stamps[1]
        with monkeypatch.context() as patch:
            patch.setattr(remote._files, "get_file", cut)
            with pytest.raises(RepositoryError, match=r"was cut off|connection was lost"):
                remote.fetch("a", 1, stamp)
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
        assert (remote.fetch("a", 1, stamp) / "model.onnx").read_bytes() == b"one"

    def test_checksums_that_the_version_brings(self, remote: RemoteStore) -> None:
        good = hashlib.sha256(b"one").hexdigest()
        files = fsspec.filesystem("memory")
        files.pipe("/repository/a/1/SHA256SUMS", f"{good.upper()} *model.onnx\n".encode())
        remote.fetch("a", 1, remote.models()["a"].stamps[1])
        files.pipe("/repository/a/1/SHA256SUMS", f"{'0' * 64}  model.onnx\n".encode())
        with pytest.raises(ModelError, match="does not have the checksum that SHA256SUMS says"):
            remote.fetch("a", 1, remote.models()["a"].stamps[1])

    @pytest.mark.parametrize(
        "known",
        [{"md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}, {"content_settings": {"content_md5": bytearray(16)}}],
        ids=["google", "azure"],
    )
    def test_a_checksum_that_the_store_knows(
        self, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch, known: dict[str, object]
    ) -> None:
        find = remote._files.find

        def with_sums(*args: object, **options: object) -> object:
            return {path: {**info, **known} for path, info in find(*args, **options).items()}

        monkeypatch.setattr(remote._files, "find", with_sums)
        with pytest.raises(ModelError, match=f"but the store says {'0' * 32}"):
            remote.fetch("a", 1, remote.models()["a"].stamps[1])

    def test_an_unknown_protocol(self, tmp_path: Path) -> None:
        with pytest.raises(RepositoryError, match="Protocol not known: nowhere"):
            RemoteStore("nowhere://x", tmp_path)

    def test_a_protocol_whose_package_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(RepositoryError, match="needs a package that is not installed"):
            RemoteStore("gs://bucket/models", tmp_path)

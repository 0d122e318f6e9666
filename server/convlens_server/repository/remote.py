"""A repository in any store of fsspec (s3://, gs://, az://, memory://, …), with a cache on the local disk.

A version is downloaded into a folder beside its place in the cache, its sizes and checksums are compared, and the
folder is renamed into place: what was interrupted is never seen. SHA256SUMS in it holds the checksums of what was
downloaded, and they are compared again whenever the version is loaded from the cache.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convlens_server.errors import ModelError
from convlens_server.repository import aliases
from convlens_server.repository.store import Found, RepositoryError, found, is_name, is_version, stamp

log = logging.getLogger(__name__)

_SUMS = "SHA256SUMS"
_STALE_SECONDS = 86_400
# Arguments with which a protocol's package asks once, and gives up in a second where nobody answers.
_ONCE: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "s3": {"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1}}
}
# What stores call the identity of a content, or at least the time of its change.
_IDENTITIES = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")


class RemoteStore:
    """`Store` of what an URL names.

    Args:
        url: Of the repository, "protocol://path".
        cache: Folder for what is downloaded; made if missing.

    Raises:
        RepositoryError: fsspec, or its package for the protocol, is not installed.
    """

    def __init__(self, url: str, cache: Path) -> None:
        try:
            import fsspec

            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise RepositoryError(
                f"model repository {url} needs a package that is not installed ({error}): pip install "
                "'convlens[stores]', and fsspec's package for the protocol (s3fs, gcsfs, adlfs)"
            ) from None
        except ValueError as error:
            raise RepositoryError(f"model repository {url}: {error}; see --models") from None
        self._url = url
        self._root = root.rstrip("/")
        self._cache = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._lock = threading.Lock()
        # What a server left that was killed while it downloaded.
        for partial in self._cache.glob(".partial-*"):
            with contextlib.suppress(OSError):
                if partial.stat().st_mtime < time.time() - _STALE_SECONDS:
                    shutil.rmtree(partial)

    def __str__(self) -> str:
        return self._url

    def reach(self) -> None:
        """Asks the store for the repository, without the retries that later requests have.

        So a server that cannot start ends soon, and says why: what starts it can start it again. The retries of S3's
        package take 7 to 12 s where nobody listens.

        Raises:
            RepositoryError: The store does not answer, or does not let it be listed.
        """
        import fsspec

        # Alone they would replace what fsspec's configuration (FSSPEC_S3 …) says under the same names.
        configured = self._files.storage_options
        once = _ONCE.get(fsspec.core.split_protocol(self._url)[0], {})
        options = {name: {**configured.get(name, {}), **given} for name, given in once.items()}
        try:
            files, root = fsspec.core.url_to_fs(self._url, skip_instance_cache=True, **options)
            files.ls(root)
        except FileNotFoundError:
            # `models` tells an empty place from none.
            return
        except Exception as error:
            raise RepositoryError(
                f"model repository {self._url} cannot be read: {_reason(error)}; check --models, the network, and the "
                "store's address and credentials in the environment"
            ) from None

    def models(self) -> dict[str, Found]:
        """`Store.models`."""
        listing = self._list(self._root)
        if not listing and not self._is_there():
            raise RepositoryError(f"model repository {self._url} is not there; see --models")
        names = sorted({path.split("/", 1)[0] for path in listing if "/" in path})
        return {name: _model(name, _below(listing, name)) for name in names if is_name(name)}

    def model(self, name: str) -> Found | None:
        """`Store.model`."""
        listing = self._list(f"{self._root}/{name}")
        return _model(name, listing) if listing else None

    def read(self, name: str, file: str) -> bytes | None:
        """`Store.read`."""
        if ".." in file.split("/") or file.startswith("/"):
            raise ModelError(f"{file!r} leads out of the model's folder")
        try:
            content: bytes = self._files.cat_file(f"{self._root}/{name}/{file}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise RepositoryError(f"{file} cannot be read: {_reason(error)}") from None
        return content

    def write(self, name: str, file: str, content: bytes) -> None:
        """`Store.write`."""
        try:
            self._files.pipe_file(f"{self._root}/{name}/{file}", content)
        except Exception as error:
            raise ModelError(f"{file} cannot be written: {_reason(error)}") from None

    def fetch(self, name: str, number: int, stamp: str) -> Path:
        """`Store.fetch`."""
        with self._lock:
            place = self._cache / name / f"{number}-{stamp}" / str(number)
            if place.is_dir():
                if _intact(place):
                    return place
                log.warning(
                    "the cached copy of version %d of model %s is damaged: it is downloaded again", number, name
                )
                shutil.rmtree(place.parent)
            try:
                self._download(name, number, place)
            except (ModelError, RepositoryError):
                raise
            except Exception as error:
                raise RepositoryError(f"cannot be downloaded: {_reason(error)}") from None
            for old in place.parent.parent.glob(f"{number}-*"):
                if old != place.parent:
                    shutil.rmtree(old, ignore_errors=True)
            return place

    def _download(self, name: str, number: int, place: Path) -> None:
        listing = self._list(f"{self._root}/{name}/{number}")
        if not listing:
            raise ModelError("its folder is not there any more")
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=self._cache) as temporary:
            folder = Path(temporary) / "version" / str(number)
            sums = {}
            for path, info in listing.items():
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._root}/{name}/{number}/{path}", str(file))
                sums[path] = _checked(file, path, info)
            if (given := folder / _SUMS).is_file():
                _compare(given.read_text(), sums)
            given.write_text("".join(f"{value}  {path}\n" for path, value in sorted(sums.items()) if path != _SUMS))
            place.parent.parent.mkdir(parents=True, exist_ok=True)
            try:
                (Path(temporary) / "version").rename(place.parent)
            except OSError:
                # Another server that shares the cache was faster.
                if not place.is_dir():
                    raise

    def _is_there(self) -> bool:
        """Whether there is such a folder; in a store without folders, such a bucket."""
        try:
            return any(self._files.exists(place) for place in (self._root, self._root.strip("/").split("/")[0]))
        except Exception as error:
            raise RepositoryError(f"model repository {self._url} cannot be read: {_reason(error)}") from None

    def _list(self, folder: str) -> dict[str, Mapping[str, Any]]:
        """The files below a folder, by their paths in it."""
        try:
            self._files.invalidate_cache()
            listing = self._files.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise RepositoryError(f"model repository {self._url} cannot be read: {_reason(error)}") from None
        prefix = self._files._strip_protocol(folder).rstrip("/") + "/"
        paths = {path.removeprefix(prefix): info for path, info in listing.items() if path.startswith(prefix)}
        # The names of objects are any text; as paths on the disk they must not lead anywhere else.
        return {path: info for path, info in paths.items() if not {"", ".", ".."} & set(path.split("/"))}


def _below(listing: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    return {path.removeprefix(f"{name}/"): info for path, info in listing.items() if path.startswith(f"{name}/")}


def _model(name: str, listing: Mapping[str, Mapping[str, Any]]) -> Found:
    versions: dict[int, list[object]] = {}
    beside: list[object] = []
    named: list[object] = []
    ignored = set()
    for path, info in sorted(listing.items()):
        first, _, rest = path.partition("/")
        if not rest:
            (named if path == aliases.FILE else beside).append(_identity(path, info))
        elif is_version(first):
            versions.setdefault(int(first), []).append(_identity(path, info))
        elif not first.startswith("."):
            ignored.add(first)
    stamps = {number: stamp(parts) for number, parts in versions.items()}
    return found(name, stamps, stamp(beside), stamp(named), sorted(ignored))


def _identity(path: str, info: Mapping[str, Any]) -> tuple[str, ...]:
    return (path, str(info.get("size")), *(str(info[key]) for key in _IDENTITIES if key in info))


def _checked(file: Path, path: str, info: Mapping[str, Any]) -> str:
    """The SHA-256 of a downloaded file.

    Raises:
        RepositoryError: It was cut off.
        ModelError: It is not what the store says it has.
    """
    size = file.stat().st_size
    if (expected := info.get("size")) not in (None, size):
        raise RepositoryError(f"{path} has {size} bytes where the store has {expected}: the download was cut off")
    sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            sha.update(block)
            md5.update(block)
    if (known := _md5(info)) is not None and known != md5.hexdigest():
        raise ModelError(f"{path} has the MD5 checksum {md5.hexdigest()}, but the store says {known}; copy it again")
    return sha.hexdigest()


def _md5(info: Mapping[str, Any]) -> str | None:
    """The MD5 that a store knows of a file, as hexadecimal digits; Google's does, and Azure's of most.

    S3's ETag is no checksum that could be compared: it is another number where the bucket encrypts by a key.
    """
    try:
        known = info["md5Hash"] if "md5Hash" in info else info["content_settings"]["content_md5"]
        return known.hex() if isinstance(known, (bytes, bytearray)) else base64.b64decode(known, validate=True).hex()
    except (KeyError, TypeError, binascii.Error):
        return None


def _compare(content: str, sums: Mapping[str, str]) -> None:
    """Raises ModelError if the SHA256SUMS of a version says otherwise."""
    for line in content.splitlines():
        value, _, path = line.partition(" ")
        path = path.strip().removeprefix("*").removeprefix("./")
        if path and sums.get(path) != value.lower():
            raise ModelError(f"{path} does not have the checksum that {_SUMS} says; copy the version again")


def _intact(place: Path) -> bool:
    """Whether a cached version's files have the checksums with which they were downloaded."""
    try:
        for line in (place / _SUMS).read_text().splitlines():
            value, _, path = line.partition("  ")
            with (place / path).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != value:
                    return False
    except OSError:
        return False
    return True


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def default_cache() -> Path:
    """The folder for what is downloaded, where none is configured."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convlens"

"""The model repository, run while it serves: which versions there are, which are loaded, and how they change."""

from convlens_server.repository.entry import Version
from convlens_server.repository.remote import RemoteStore, default_cache
from convlens_server.repository.repository import Control, Repository
from convlens_server.repository.store import LocalStore, RepositoryError, Store

__all__ = [
    "Control", "LocalStore", "RemoteStore", "Repository", "RepositoryError", "Store", "Version", "default_cache",
]  # fmt: skip

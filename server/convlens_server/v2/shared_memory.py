"""System shared memory: regions that callers on this machine have registered, for inputs and outputs.

They are read and written by pread and pwrite, not mapped: a caller who shortens the object would otherwise end the
server with a bus error. It is one copy, which a mapping would need too.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from convlens_server.errors import NotFound, shown
from convlens_server.transport.base import Method
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.asking import Asking, path
from convlens_server.v2.errors import AlreadyExists, SharedMemoryFailed

# Its name in ServerMetadata.
EXTENSION = "system_shared_memory"

# Where shm_open's objects are on Linux.
_FOLDER = Path("/dev/shm")
# One slash may begin it, none may follow: nothing outside the folder can be named.
_KEY = re.compile(r"/?(?!\.{1,2}$)[^/\0]{1,255}")
MAX_REGIONS = 1024


class Place(NamedTuple):
    """Where a tensor is, or goes.

    Attributes:
        region: Name.
        offset: From the region's beginning, bytes.
        size: Bytes.
    """

    region: str
    offset: int
    size: int


@dataclass(slots=True)
class Region:
    """A registered region.

    Attributes:
        name: By which requests name it.
        key: Of the shared memory object.
        offset: Where it begins in the object, bytes.
        size: Bytes.
        descriptor: Of the object, until it is forgotten.
        lock: Guards the descriptor: its number may be another file's once it is closed.
    """

    name: str
    key: str
    offset: int
    size: int
    descriptor: int
    lock: threading.Lock = field(default_factory=threading.Lock)


class SharedMemory:
    """The registered regions. Thread-safe."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}
        self._lock = threading.Lock()

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Makes a region known.

        Raises:
            AlreadyExists: The name is taken.
            SharedMemoryFailed: There is no such object, or it is smaller; or there are too many regions.
        """
        if not name:
            raise SharedMemoryFailed("shared memory region must have a name", field="name")
        if _KEY.fullmatch(key) is None:
            raise SharedMemoryFailed(
                f"Unable to open shared memory region: {shown(key)!r}: a key has no slash but one at the beginning",
                field="key",
            )
        if size == 0:
            raise SharedMemoryFailed(f"shared memory region {shown(name)!r} must have a byte_size", field="byte_size")
        with self._lock:
            if name in self._regions:
                raise AlreadyExists(f"shared memory region {shown(name)!r} already in manager", field="name")
            if len(self._regions) >= MAX_REGIONS:
                raise SharedMemoryFailed(
                    f"{MAX_REGIONS} shared memory regions are registered, which is the limit: unregister some"
                )
            descriptor = _open(key)
            try:
                _check(descriptor, offset + size, key)
            except BaseException:
                os.close(descriptor)
                raise
            self._regions[name] = Region(name, key, offset, size, descriptor)

    def unregister(self, name: str) -> None:
        """Forgets a region, or all for an empty name; one that is not known is no error."""
        with self._lock:
            names = [name] if name else list(self._regions)
            regions = [self._regions.pop(each) for each in names if each in self._regions]
        for region in regions:
            with region.lock:
                os.close(region.descriptor)
                region.descriptor = -1

    def regions(self, name: str) -> list[Region]:
        """A region, or all for an empty name. Raises NotFound."""
        with self._lock:
            if not name:
                return list(self._regions.values())
        return [self._region(name)]

    def check(self, place: Place) -> None:
        """Raises NotFound where there is no such region, SharedMemoryFailed where the place is not within it."""
        _within(self._region(place.region), place)

    def read(self, place: Place) -> bytes:
        """The bytes of a place. Raises NotFound and SharedMemoryFailed."""
        region = self._region(place.region)
        _within(region, place)
        with region.lock:
            data = os.pread(_alive(region), place.size, region.offset + place.offset)
        if len(data) != place.size:
            raise SharedMemoryFailed(f"the object of shared memory region {region.name!r} has become smaller")
        return data

    def write(self, place: Place, data: bytes) -> None:
        """Writes to the beginning of a place. Raises NotFound and SharedMemoryFailed."""
        region = self._region(place.region)
        _within(region, place)
        if len(data) > place.size:
            raise SharedMemoryFailed(
                f"shared memory size specified with the request for an output ({place.size} bytes) should be at least "
                f"{len(data)} bytes to hold the results"
            )
        position = region.offset + place.offset
        with region.lock:
            descriptor = _alive(region)
            # Writing beyond the end would make it larger.
            _check(descriptor, position + len(data), region.key)
            view = memoryview(data)
            while view:
                count = os.pwrite(descriptor, view, position)
                view, position = view[count:], position + count

    def close(self) -> None:
        """Forgets all regions."""
        self.unregister("")

    def _region(self, name: str) -> Region:
        with self._lock:
            region = self._regions.get(name)
        if region is None:
            raise NotFound(
                f"Unable to find system shared memory region: {shown(name)!r}", reason="REGION_NOT_FOUND", field="name"
            )
        return region


def _open(key: str) -> int:
    try:
        descriptor = os.open(_FOLDER / key.removeprefix("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SharedMemoryFailed(
            f"Unable to open shared memory region: {shown(key)!r}: {error.strerror}", field="key"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SharedMemoryFailed(
            f"Unable to open shared memory region: {shown(key)!r}: it is no such object", field="key"
        )
    return descriptor


def _check(descriptor: int, end: int, key: str) -> None:
    size = os.fstat(descriptor).st_size
    if end > size:
        raise SharedMemoryFailed(
            f"failed to register shared memory region: invalid args: object {shown(key)!r} has {size} bytes, but "
            f"offset and byte_size reach to {end}",
            field="byte_size",
        )


def _within(region: Region, place: Place) -> None:
    if place.offset + place.size > region.size:
        raise SharedMemoryFailed(
            f"Invalid offset + byte size for shared memory region: {region.name!r}: {place.offset} + {place.size} is "
            f"more than its {region.size} bytes"
        )


def _alive(region: Region) -> int:
    if region.descriptor < 0:
        raise NotFound(
            f"Unable to find system shared memory region: {region.name!r}", reason="REGION_NOT_FOUND", field="name"
        )
    return region.descriptor


class SharedMemoryMethods:
    """The methods of the shared memory extension."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def methods(self, asking: Asking) -> tuple[Method, ...]:
        """What a transport has to serve."""
        return (
            asking.at_once(path("SystemSharedMemoryStatus"), pb.SystemSharedMemoryStatusRequest, self._status),
            asking.at_once(path("SystemSharedMemoryRegister"), pb.SystemSharedMemoryRegisterRequest, self._register),
            asking.at_once(
                path("SystemSharedMemoryUnregister"), pb.SystemSharedMemoryUnregisterRequest, self._unregister
            ),
        )

    def _status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._memory.regions(request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.size
        return response

    def _register(self, request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> pb.SystemSharedMemoryUnregisterResponse:
        self._memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

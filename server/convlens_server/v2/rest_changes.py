"""REST's side of what changes the server: its models, their aliases, and the shared memory."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import invalid
from convlens_server.v2.rest_calls import Calls


class RepositoryEndpoints:
    """Loads and unloads models, and moves their aliases."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def load(self, request: Request) -> Response:
        """POST …/models/M/load."""
        await self._no_parameters(request)
        message = pb.RepositoryModelLoadRequest(model_name=request.path_params["model"])
        await self._calls.ask(request, "RepositoryModelLoad", message, pb.RepositoryModelLoadResponse)
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        """POST …/models/M/unload."""
        await self._no_parameters(request, "unload_dependents")
        message = pb.RepositoryModelUnloadRequest(model_name=request.path_params["model"])
        await self._calls.ask(request, "RepositoryModelUnload", message, pb.RepositoryModelUnloadResponse)
        return JSONResponse({})

    async def aliases(self, request: Request) -> Response:
        """GET …/models/M/aliases."""
        return JSONResponse(MessageToDict(await self._change(request, "ListAliases")))

    async def move_alias(self, request: Request) -> Response:
        """POST …/models/M/aliases/A."""
        fields = await self._calls.fields(request)
        if not isinstance(fields.get("version"), str) or len(fields) > 1:
            raise invalid('the request JSON must be {"version": "N"}, N being the version\'s number', "body")
        await self._change(request, "MoveAlias", version=fields["version"])
        return JSONResponse({})

    async def remove_alias(self, request: Request) -> Response:
        """DELETE …/models/M/aliases/A."""
        await self._change(request, "RemoveAlias")
        return JSONResponse({})

    async def _change(self, request: Request, method: str, **fields: str) -> Struct:
        message = Struct()
        parameters = request.path_params
        message.update({"name": parameters["model"], "alias": parameters.get("alias", ""), **fields})
        return await self._calls.ask(request, method, message, Struct)

    async def _no_parameters(self, request: Request, *known: str) -> None:
        fields = await self._calls.fields(request)
        parameters = fields.get("parameters", {})
        known_only = isinstance(parameters, dict) and all(
            name in known and isinstance(value, bool) for name, value in parameters.items()
        )
        if not known_only or set(fields) - {"parameters"}:
            raise invalid(
                "the request JSON may have no parameters"
                + (f" but {', '.join(known)}, true or false" if known else "")
                + ": models come from the repository, with its config.pbtxt",
                "body",
            )


class MemoryEndpoints:
    """Registers shared memory."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def status(self, request: Request) -> Response:
        """GET …/status, of all regions or of one."""
        message = pb.SystemSharedMemoryStatusRequest(name=request.path_params.get("region", ""))
        kind = pb.SystemSharedMemoryStatusResponse
        answer = await self._calls.ask(request, "SystemSharedMemoryStatus", message, kind)
        return JSONResponse([
            {"name": each.name, "key": each.key, "offset": each.offset, "byte_size": each.byte_size}
            for each in answer.regions.values()
        ])  # fmt: skip

    async def register(self, request: Request) -> Response:
        """POST …/region/R/register."""
        fields = await self._calls.fields(request)
        key, offset, size = fields.get("key"), fields.get("offset", 0), fields.get("byte_size", -1)
        numbers = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**64 for n in (offset, size))
        if not isinstance(key, str) or not numbers or set(fields) - {"key", "offset", "byte_size"}:
            raise invalid("the request JSON must have 'key', a text, and 'byte_size', a number; 'offset' is 0", "body")
        message = pb.SystemSharedMemoryRegisterRequest(
            name=request.path_params["region"], key=key, offset=offset, byte_size=size
        )
        await self._calls.ask(request, "SystemSharedMemoryRegister", message, pb.SystemSharedMemoryRegisterResponse)
        return JSONResponse({})

    async def unregister(self, request: Request) -> Response:
        """POST …/unregister, of all regions or of one."""
        message = pb.SystemSharedMemoryUnregisterRequest(name=request.path_params.get("region", ""))
        kind = pb.SystemSharedMemoryUnregisterResponse
        await self._calls.ask(request, "SystemSharedMemoryUnregister", message, kind)
        return JSONResponse({})

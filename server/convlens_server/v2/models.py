"""The methods of the server, its models and its repository; and, for REST alone, of a model's aliases."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from google.protobuf.struct_pb2 import Struct

from convlens_server.errors import InvalidRequest, ModelNotReady, shown
from convlens_server.model import Model
from convlens_server.repository import Repository
from convlens_server.repository.aliases import version_of
from convlens_server.transport.base import Method
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.asking import Asking, asked, path
from convlens_server.v2.describe import configuration, metadata, statistics
from convlens_server.v2.errors import NotAtReadyState, invalid
from convlens_server.v2.face import Faces

_EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)


class ModelMethods:
    """What can be asked of the server and its models.

    Args:
        repository: Of the models.
        faces: What they look like.
        is_ready: Whether the server takes requests.
        extensions: That the server has beside those of this class.
    """

    def __init__(
        self, repository: Repository, faces: Faces, is_ready: Callable[[], bool], extensions: tuple[str, ...]
    ) -> None:
        self._repository = repository
        self._faces = faces
        self._is_ready = is_ready
        self._extensions = extensions

    def methods(self, asking: Asking) -> tuple[Method, ...]:
        """Those of the protocol."""
        live = pb.ServerLiveResponse(live=True)
        return (
            asking.at_once(path("ServerLive"), pb.ServerLiveRequest, lambda _: live),
            asking.at_once(
                path("ServerReady"), pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=self._is_ready())
            ),
            asking.at_once(path("ServerMetadata"), pb.ServerMetadataRequest, lambda _: self._server_metadata()),
            asking.at_once(path("ModelReady"), pb.ModelReadyRequest, self._model_ready),
            asking.at_once(path("ModelStatistics"), pb.ModelStatisticsRequest, self._model_statistics),
            asking.at_once(path("RepositoryIndex"), pb.RepositoryIndexRequest, self._index),
            asking.of_model(path("ModelMetadata"), pb.ModelMetadataRequest, self._model_metadata),
            asking.of_model(path("ModelConfig"), pb.ModelConfigRequest, self._model_config),
            asking.changing(path("RepositoryModelLoad"), pb.RepositoryModelLoadRequest, self._load, _model_named),
            asking.changing(path("RepositoryModelUnload"), pb.RepositoryModelUnloadRequest, self._unload, _model_named),
        )

    def alias_methods(self, asking: Asking) -> tuple[Method, ...]:
        """Those of a model's aliases, which the protocol does not have: from Struct to Struct, for REST.

        ListAliases takes {"name"} and gives versions by alias, as texts; MoveAlias takes {"name", "alias", "version"},
        RemoveAlias {"name", "alias"}, and they give nothing.
        """
        return (
            asking.at_once("/Aliases/ListAliases", Struct, self._aliases, _named),
            asking.changing("/Aliases/MoveAlias", Struct, self._move_alias, _named),
            asking.changing("/Aliases/RemoveAlias", Struct, self._remove_alias, _named),
        )

    def _server_metadata(self) -> pb.ServerMetadataResponse:
        version = importlib.metadata.version("convlens")
        return pb.ServerMetadataResponse(name="convlens", version=version, extensions=(*_EXTENSIONS, *self._extensions))

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        version = asked(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._is_ready() and self._repository.is_ready(request.name, version))

    def _model_metadata(self, model: Model) -> pb.ModelMetadataResponse:
        return metadata(model, self._faces.of(model), self._repository.ready_versions(model.name))

    def _model_config(self, model: Model) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config=configuration(model, self._faces.of(model)))

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        number = 0
        if request.name:
            number = self._repository.version_number(request.name, asked(request.name, request.version))
            # Refuses what is not there.
            self._repository.is_ready(request.name, number)
        response = pb.ModelStatisticsResponse()
        for version in self._repository.versions:
            if request.name in ("", version.name) and number in (0, version.number) and version.model is not None:
                counted = version.model.metrics.statistics()
                response.model_stats.append(statistics(version.name, version.number, counted))
        return response

    def _index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for version in self._repository.versions:
            if version.state == "READY" or not request.ready:
                # Number 0: none of the model's versions can be served.
                number = str(version.number or "")
                response.models.add(name=version.name, version=number, state=version.state, reason=version.error)
        return response

    def _load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        _check_parameters(request)
        try:
            self._repository.load(request.model_name)
        except ModelNotReady as error:
            # Not as a request to the model, which may go on being answered.
            text = f"failed to load {shown(request.model_name)!r}: {error}"
            raise NotAtReadyState(text, field="model_name", metadata=error.metadata) from None
        return pb.RepositoryModelLoadResponse()

    def _unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        _check_parameters(request)
        self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _aliases(self, request: Struct) -> Struct:
        response = Struct()
        response.update(
            {alias: str(number) for alias, number in self._repository.aliases(str(request["name"])).items()}
        )
        return response

    def _move_alias(self, request: Struct) -> Struct:
        version = version_of(str(request["version"]))
        if not isinstance(version, int) or version < 1:
            raise invalid(
                f"version is {shown(str(request['version']))!r}, but must be a version's number, e.g. '3'",
                "version",
                "VERSION_NOT_A_NUMBER",
            )
        self._repository.move_alias(str(request["name"]), str(request["alias"]), version)
        return Struct()

    def _remove_alias(self, request: Struct) -> Struct:
        self._repository.remove_alias(str(request["name"]), str(request["alias"]))
        return Struct()


def _model_named(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> tuple[str, str]:
    return request.model_name, ""


def _named(request: Struct) -> tuple[str, str]:
    fields = request.fields
    return fields["name"].string_value, fields["version"].string_value if "version" in fields else ""


def _check_repository(name: str) -> None:
    if name:
        text = f"repository_name is {shown(name)!r}, but there is only one repository: leave it empty"
        raise invalid(text, "repository_name")


def _check_parameters(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> None:
    for name in request.parameters:
        if isinstance(request, pb.RepositoryModelLoadRequest) or name != "unload_dependents":
            raise InvalidRequest(
                f"parameter {shown(name)!r} is not taken: models come from the repository, with its config.pbtxt",
                field="parameters",
            )

"""The configuration: flags before environment variables before a file before defaults."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import configargparse

from convlens.manifest import PRECISIONS
from convlens_server.cgroup import default_threads
from convlens_server.logs import FORMATS, LEVELS
from convlens_server.samples import FOLDER as SAMPLES
from convlens_server.transport.choose import TRANSPORTS

# How the models that are served change while the server runs; convlens_server.repository.Control.
MODEL_CONTROLS = ("fixed", "explicit", "poll")

_PREFIX = "CONVLENS_"

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Config:
    """How a server runs. One field for each flag; `parse_config` has their meanings and ranges."""

    models: Path | str
    host: str = "127.0.0.1"
    port: int = 8001
    http_port: int = 8000
    device: str = "auto"
    model_control: str = MODEL_CONTROLS[0]
    poll_seconds: float = 15.0
    lazy: bool = False
    max_loaded: int = 0
    model_cache: Path | None = None
    precision: str = PRECISIONS[0]
    threads: int = 0
    max_batch: int = 0
    max_queue: int = 4096
    max_queue_delay_ms: float = 0.0
    max_images: int = 256
    max_feature_map_images: int = 16
    max_feature_map_bytes: int = 256 * 2**20
    max_pixels: int = 50_000_000
    datasets: tuple[tuple[str, Path], ...] = ()
    max_message_bytes: int = 16 * 2**20
    allow_shared_memory: bool = False
    transport: str = "auto"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    max_connection_age: float = 300.0
    drain_timeout: float = 30.0
    drain_delay: float = 0.0
    trace_endpoint: str = ""
    trace_share: float = 0.01
    log_format: str = "auto"
    log_level: str = "info"

    def __str__(self) -> str:
        """Every setting, as flags."""
        names = [field.name for field in fields(self) if field.name != "datasets"]
        pairs = [(name.replace("_", "-"), getattr(self, name)) for name in names]
        pairs += [("dataset", f"{name}={folder}") for name, folder in self.datasets]
        return " ".join(f"--{name} {value}" for name, value in pairs if value is not None)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_config(argv: Sequence[str], prog: str = "convlens serve") -> Config:
    """Reads the command line, the environment and the file that `--config` names.

    Each flag `--some-name` is also the environment variable CONVLENS_SOME_NAME and the line `some-name = value` of
    the file. A wrong value ends the program with a message that names the flag, exit code 2.
    """
    parser = configargparse.ArgumentParser(
        prog=prog,
        description="Serves the models of a repository over gRPC, with metrics and health over HTTP.",
        auto_env_var_prefix=_PREFIX,
        formatter_class=_Help,
        allow_abbrev=False,
    )

    def error(text: str) -> NoReturn:
        # One line, without the usage: for many it is the last line of a container's log.
        print(f"{prog}: error: {' '.join(text.split())} (see --help)", file=sys.stderr)
        raise SystemExit(2)

    parser.error = error
    parser.add_argument("--config", is_config_file=True, metavar="FILE", help="file of `name = value` lines")
    add = _adder(parser)
    add(
        "models",
        _models,
        "model repository: a folder of <name>/<version>/model.onnx, or the URL of one in a store that fsspec knows",
        metavar="DIR",
        default="models",
    )
    add(
        "model-control",
        str,
        "fixed: what is there at start is served; explicit: models are loaded and unloaded by request too; poll: the "
        "repository is looked at again and again",
        choices=MODEL_CONTROLS,
    )
    add("poll-seconds", _number(0.1, 86_400), "between two looks at the repository, with --model-control poll")
    parser.add_argument(
        "--lazy", action="store_true", help="load a version when the first request for it comes, not at start"
    )
    add("max-loaded", _integer(0, 10**6), "most versions in memory, with --lazy; 0 for any number")
    add("model-cache", Path, "folder for what is downloaded from a store; ~/.cache/convlens without", metavar="DIR")
    add("host", str, "address to listen on; 0.0.0.0 or [::] for all of this machine's")
    add("port", _integer(0, 65535), "gRPC port; 0 lets the system choose")
    add("http-port", _integer(0, 65535), "HTTP port of /metrics, /healthz and /readyz; 0 lets the system choose")
    add(
        "device", str, "auto, cpu, cuda or cuda:<index>; only auto falls back to the CPU, and says so", metavar="DEVICE"
    )
    add("precision", str, "of models; a version without a file of it is served as float32", choices=PRECISIONS)
    add("threads", _integer(0, 1024), "CPU cores to use; 0 for as many as this process has, by its control group too")
    add("max-batch", _integer(0, 4096), "most images of a batch; 0 for 16 on the CPU and 128 on CUDA")
    add("max-queue", _integer(1, 10**9), "most images that wait for one version of a model; more are refused")
    add("max-queue-delay-ms", _number(0, 60_000), "how long an incomplete batch waits for more images")
    add("max-images", _integer(1, 10**6), "most images of a Classify request")
    add("max-feature-map-images", _integer(1, 10**6), "most images of a GetFeatureMaps request")
    add("max-feature-map-bytes", _integer(1, 2**40), "most bytes of feature maps of a request, as float32")
    add("max-pixels", _integer(1, 10**12), "most height × width of an image file, checked before decoding")
    parser.add_argument(
        "--dataset",
        type=_dataset,
        action="append",
        default=[],
        dest="datasets",
        metavar="NAME=FOLDER",
        help="images for MaximizingImages, at any depth of a folder; may be given several times",
    )
    add("max-message-bytes", _integer(1024, 2**29 - 1), "most bytes of a request message")
    parser.add_argument(
        "--allow-shared-memory",
        action="store_true",
        help="let callers on this machine register shared memory for tensors (inference.SystemSharedMemory…)",
    )
    add("transport", str, "auto takes completion_queue where it works, else aio", choices=TRANSPORTS)
    add("tls-certificate", _file, "PEM file of the server's certificate chain; plain text without", metavar="FILE")
    add("tls-key", _file, "PEM file of its private key", metavar="FILE")
    add("tls-client-ca", _file, "PEM file of the authorities that callers' certificates must be from", metavar="FILE")
    add("max-connection-age", _number(1, math.inf), "seconds until a connection is asked to reconnect")
    add("drain-timeout", _number(0, 3600), "seconds that open requests get to finish at shutdown")
    add(
        "drain-delay",
        _number(0, 3600),
        "seconds before that in which health says NOT_SERVING but requests are taken, until balancers have noticed",
    )
    add(
        "trace-endpoint",
        _collector,
        "OTLP/gRPC URL of an OpenTelemetry collector, http://host:4317; nothing is traced without",
        metavar="URL",
    )
    add("trace-share", _number(0, 1), "of the requests that are traced, where their callers do not decide it")
    add("log-format", str, "auto is human on a terminal, else json", choices=FORMATS)
    add("log-level", str, "lowest level that is logged", choices=LEVELS)
    _check_names(error)
    values = vars(parser.parse_args(list(argv)))
    values.pop("config")
    values["datasets"] = tuple(values["datasets"])
    config = Config(**values)
    names = [name for name, _ in config.datasets]
    if len(set(names)) < len(names):
        parser.error(f"argument --dataset: a name is given twice: {', '.join(names)}")
    if (config.tls_certificate is None) != (config.tls_key is None):
        parser.error("arguments --tls-certificate and --tls-key: give both or neither")
    if config.tls_client_ca is not None and config.tls_certificate is None:
        parser.error("argument --tls-client-ca: needs --tls-certificate and --tls-key")
    if config.max_loaded and not config.lazy:
        parser.error("argument --max-loaded: needs --lazy, which loads again what had to leave")
    return config if config.threads else replace(config, threads=default_threads())


def _check_names(error: Callable[[str], NoReturn]) -> None:
    """Refuses an environment variable whose name is nearly one of ours: it would have no effect."""
    # `--dataset` fills the field `datasets`. `convlens` itself reads the variable of `--server`.
    names = {field.name for field in fields(Config)} - {"datasets"} | {"dataset", "config", "server"}
    known = {_PREFIX + name.upper() for name in names}
    for name in os.environ:
        # Not all that begin so: Kubernetes names the address of a service called convlens by such variables.
        if name.startswith(_PREFIX) and name not in known:
            for near in difflib.get_close_matches(name, known, n=1, cutoff=0.85):
                error(f"environment variable {name} is unknown: did you mean {near}?")


def _adder(parser: argparse.ArgumentParser) -> Callable[..., None]:
    defaults = {field.name: field.default for field in fields(Config)}

    def add(name: str, kind: Callable[[str], Any], text: str, **options: Any) -> None:
        options.setdefault("default", defaults[name.replace("-", "_")])
        if "choices" not in options:
            options.setdefault("metavar", name.rsplit("-", 1)[-1].upper())
        parser.add_argument(f"--{name}", type=kind, help=text, **options)

    return add


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        return _within(value, low, high)

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if math.isnan(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number")
        return _within(value, low, high)

    return parse


def _within(value: _Number, low: _Number, high: _Number) -> _Number:
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{value} is not in {low} … {high}")
    return value


def _collector(text: str) -> str:
    try:
        url = urlsplit(text)
        # A port that is none raises, too.
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    if text and not good:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL such as http://host:4317")
    return text


def _models(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def _dataset(text: str) -> tuple[str, Path]:
    name, sign, folder = text.partition("=")
    if not sign or re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII) is None or name == SAMPLES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=FOLDER, with a name of letters, digits, '_', '.' and '-' other than {SAMPLES!r}"
        )
    if not folder or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{folder!r} is not a folder")
    return name, Path(folder)


def _file(text: str) -> Path:
    path = Path(text)
    try:
        path.open("rb").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error.strerror}") from None
    return path

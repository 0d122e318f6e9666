"""Measures this server beside other model servers, in one run on one machine; see README.md.

scripts/others                          # installs the others, each into an environment of its own
python bench/others.py                  # tries their settings, measures, writes bench/results/others.json, prints it
python bench/others.py --table FILE     # prints the tables of a stored result
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import others_report
from answers import AnswerError
from command import finish, new_parser, say, say_if_busy
from contenders import AT_32, LOADS, OURS, check_sizes, figures, highest_version, our_server
from convlens_server.cgroup import default_threads
from convlens_server.network import load_network
from h2load import Load, LoadError, frame, parse_summary, read_latencies, require_h2load, run_h2load
from in_process import sample_images
from machine import machine
from other_servers import PORTS, Setting, settings
from others_report import CLASSIFY, MODEL_INFER
from process_tree import usage
from processes import ProcessError, ServerProcess, accepts, free_ports, run_child, serving
from wires import Images, Scores, Wire, classify, model_infer

_HERE = Path(__file__).parent
_MODEL = "lecture_cnn"
_WARM_UP_SECONDS = 0.5
_TRIAL_SECONDS = 1.0
_RAW_SHARE = 0.25
# Of one server, if it ends meanwhile.
_STARTS = 4


class ServerEndedError(LoadError):
    """A server was there when a load began, and is not any more."""


@dataclass(frozen=True)
class Exam:
    """What every server is asked.

    Attributes:
        images: Of noise, N × height × width × channels.
        scores: The network's own, N × classes.
        folder: Where requests and h2load's logs go.
        seconds: Of each load.
    """

    images: Images
    scores: Scores
    folder: Path
    seconds: float

    def answers(self, port: int, wire: Wire) -> bool:
        """Whether a server answers a request of one image, be it wrongly."""
        if not accepts(port):
            return False
        try:
            wire.ask(port, self.images[:1])
        except AnswerError:
            return False
        return True

    def sizes(self, port: int, wire: Wire) -> dict[int, int]:
        """Checks the answers to each image alone and to all in one; gives the sizes of both kinds in bytes.

        Raises:
            AnswerError: One is an error, or is not the network's.
        """
        sizes = {1: 0, len(self.images): wire.check(port, self.images, self.scores)}
        for n in range(len(self.images)):
            sizes[1] = wire.check(port, self.images[n : n + 1], self.scores[n : n + 1])
        return sizes

    def point(self, server: ServerProcess, port: int, wire: Wire, load: Load, answer_bytes: int) -> dict[str, Any]:
        """One load: images a second, median and 99th percentile of the time, CPU time of all processes for a request.

        Raises:
            ServerEndedError: The server did.
            LoadError: Not every request was answered with what was asked for.
        """
        body, log = self.folder / "request", self.folder / "latencies"
        body.write_bytes(wire.body(self.images[: load.images]))
        held = wire.load(load)
        ask = functools.partial(run_h2load, port, wire.path, body, held, log=log, http1=wire.http1)
        try:
            ask(seconds=_WARM_UP_SECONDS)
            cpu = usage(server.pid).cpu_seconds
            summary = parse_summary(ask(seconds=self.seconds))
            cpu = usage(server.pid).cpu_seconds - cpu
            if wire.sized:
                check_sizes(summary.data_bytes, summary.requests, answer_bytes, held)
        except LoadError:
            if self.answers(port, wire):
                raise
            raise ServerEndedError(f"it ended at concurrency {load.name}") from None
        # Of a server that ends h2load may count what was answered until then, and say nothing.
        if not self.answers(port, wire):
            raise ServerEndedError(f"it ended at concurrency {load.name}")
        return figures(load, summary, read_latencies(log), cpu)

    def measure(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None,
        asked: Mapping[str, tuple[int, Wire]],
        loads: Sequence[Load] = LOADS,
    ) -> dict[str, dict[str, Any]]:
        """Starts a server and has it take all loads, once for each way to ask it.

        Args:
            command: That starts it.
            environment: Of it; None for this process's own.
            asked: By what the table calls it, the port and the wire.
            loads: In turn.

        Returns:
            Its figures by what the table calls it. Of a server that ended there are fewer points than loads.

        Raises:
            ProcessError: It did not start.
            AnswerError: It answered wrongly, or not at all any more.
            LoadError: It did not answer every request.
        """
        port, wire = next(iter(asked.values()))
        found = {}
        with serving(command, lambda: self.answers(port, wire), environment) as server:
            ready = usage(server.pid)
            for name, (port, wire) in asked.items():
                sizes, points = self.sizes(port, wire), []
                framed = len(frame(b"")) if wire.http1 is None else 0
                for load in loads:
                    try:
                        point = self.point(server, port, wire, load, sizes[load.images] + framed)
                    except ServerEndedError:
                        break
                    points.append(point)
                found[name] = {
                    "start_seconds": server.start_seconds,
                    "processes": ready.processes,
                    "ready_mb": ready.memory_mb,
                    "loaded_mb": usage(server.pid).memory_mb,
                    "points": points,
                }
        return found

    def measure_other(self, setting: Setting, network: Path, loads: Sequence[Load] = LOADS) -> dict[str, Any]:
        """The same of one of the others, which is started again, some times, if it ends; or `problem`: what it did."""
        if not setting.python.exists():
            return {"problem": "not installed"}
        points: list[dict[str, Any]] = []
        for restarts in range(_STARTS):
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                ports = free_ports(PORTS)
                variables = setting.variables(network, Path(folder), ports)
                asked = {setting.server: (ports[setting.port], setting.wire)}
                try:
                    found = self.measure(setting.arguments(), variables, asked, loads[len(points) :])[setting.server]
                except (ProcessError, AnswerError, LoadError) as error:
                    say(f"{setting.server}, {setting.text}: {error}")
                    what = {ProcessError: "did not start", AnswerError: "answered wrongly"}
                    return {"problem": what.get(type(error), "failed under load")}
            points += found["points"]
            if len(points) == len(loads):
                return {**found, "points": points, "restarts": restarts}
            say(f"{setting.server}, {setting.text}: ended at concurrency {loads[len(points)].name}")
        return {"problem": f"ended under load {_STARTS} times"}


def measure(models: Path, seconds: float, repeats: int, only: Sequence[str], trials: Path | None) -> dict[str, Any]:
    """Tries the settings of the others, then measures each with its best, and this server, in turn, `repeats` times.

    Args:
        models: The model repository.
        seconds: For each server under each load.
        repeats: Of the whole sequence; with 0 the settings are only tried.
        only: Which of the others.
        trials: A stored result whose trials are to be taken, instead of trying anew.

    Raises:
        LoadError: A request to this server failed, or h2load is not there.
        AnswerError: This server answered wrongly.
        ProcessError: This server or a measurement failed, or the trials are of other settings than there are.
    """
    h2load, cores = require_h2load(), default_threads()
    path = highest_version(models / _MODEL)
    described = run_child("in_process.py", "describe", path)
    candidates = [each for each in settings(cores) if each.server in only]
    result: dict[str, Any] = {
        "model": _MODEL,
        "settings": {"seconds": seconds, "repeats": repeats, "cores": cores, "servers": list(only)},
        "machine": {**machine("grpcio"), "onnxruntime": described["onnxruntime"], "h2load": h2load},
        "packages": {each.server: each.package for each in candidates},
        "repeats": [],
    }
    say_if_busy(result["machine"])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        network = load_network(path)
        file = folder / "network.onnx"
        file.write_bytes(network.model.SerializeToString())
        scores = np.array(described["scores"], np.float32)
        images = sample_images(described["shape"], len(scores))
        exam = Exam(images, scores, folder, seconds)
        if trials is None:
            result["trials"] = _tried(candidates, Exam(images, scores, folder, _TRIAL_SECONDS), file)
        else:
            stored = json.loads(trials.read_text())["trials"]
            result["trials"] = [each for each in stored if each["server"] in only]
        best = others_report.best(result["trials"])
        chosen = [each for each in candidates if (each.text, each.wire.name) == best.get(each.server)]
        if lost := best.keys() - {each.server for each in chosen}:
            raise ProcessError(f"{trials} tried settings of {', '.join(sorted(lost))} that are no more: try anew")
        ours = {CLASSIFY: classify(_MODEL, scores.shape[1]), MODEL_INFER: model_infer(_MODEL, network.own.input_name)}
        for n in range(repeats):
            say(f"repeat {n + 1} of {repeats}: onnxruntime alone, convlens")
            turn: dict[str, Any] = {"raw": run_child("in_process.py", "measure", path, seconds * _RAW_SHARE)}
            port, http_port = free_ports(2)
            command = our_server(models, port, http_port, OURS[0])
            turn["servers"] = exam.measure(command, None, {name: (port, wire) for name, wire in ours.items()})
            if any(len(each["points"]) < len(LOADS) for each in turn["servers"].values()):
                raise LoadError("convlens ended under load")
            for setting in chosen:
                say(f"repeat {n + 1} of {repeats}: {setting.server}")
                turn["servers"][setting.server] = exam.measure_other(setting, file)
            result["repeats"].append(turn)
    return result


def _tried(candidates: Sequence[Setting], exam: Exam, network: Path) -> list[dict[str, Any]]:
    """What each setting reaches at concurrency 32, or what it did instead."""
    trials = []
    for setting in candidates:
        say(f"trying {setting.server}, {setting.wire.name}: {setting.text}")
        found = exam.measure_other(setting, network, [AT_32])
        trial = {"server": setting.server, "settings": setting.text, "wire": setting.wire.name}
        if "problem" in found:
            trials.append({**trial, "problem": found["problem"]})
        else:
            trials.append({**trial, "images_per_second": found["points"][0]["images_per_second"]})
    return trials


def main() -> int:
    """Measures or shows; returns the exit code."""
    parser = new_parser("others", __doc__)
    names = list(dict.fromkeys(each.server for each in settings(len(os.sched_getaffinity(0)))))
    parser.add_argument("--models", type=Path, default=_HERE.parent / "models", help="the repository (models)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each server under each load (%(default)g)")
    parser.add_argument("--repeats", type=int, default=3, help="of the whole; 0 only tries settings (%(default)d)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="others to measure (all)")
    parser.add_argument("--trials", type=Path, metavar="FILE", help="take the trials of this result, try nothing")
    arguments = parser.parse_args()
    if arguments.seconds < 1 or arguments.repeats < 0:
        parser.error("--seconds must be at least 1, --repeats at least 0")
    return finish(
        "others",
        arguments,
        lambda: measure(arguments.models, arguments.seconds, arguments.repeats, arguments.only, arguments.trials),
        others_report.render,
    )


if __name__ == "__main__":
    sys.exit(main())

"""What others.py says: which settings are the best, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from contenders import load_names
from report import best_raw
from tables import spread, table

CLASSIFY, MODEL_INFER = "convlens, Classify", "convlens, ModelInfer"
_OURS = {CLASSIFY: "gRPC, Classify", MODEL_INFER: "gRPC, ModelInfer, UINT8"}
_COLUMNS = ("p50_ms", "p99_ms", "cpu_us")


def best(trials: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """By server, the settings and the wire of its best trial; a server of which none went well is left out."""
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        rate = trial.get("images_per_second", 0.0)
        if rate > found.get(trial["server"], {}).get("images_per_second", 0.0):
            found[trial["server"]] = trial
    return {server: (trial["settings"], trial["wire"]) for server, trial in found.items()}


def problems(result: dict[str, Any]) -> dict[str, str]:
    """By server, what went wrong: all of its settings, a repeat, which its figures are then without, or it ended."""
    found: dict[str, list[str]] = {}
    for server in result["settings"]["servers"]:
        said = found.setdefault(server, [])
        tried = {trial.get("problem") for trial in result["trials"] if trial["server"] == server}
        if None not in tried:
            said.append(", ".join(sorted(filter(None, tried))) or "not tried")
        turns = [turn["servers"].get(server, {}) for turn in result["repeats"]]
        failed = [turn["problem"] for turn in turns if "problem" in turn]
        if failed:
            said.append(f"{', '.join(sorted(set(failed)))} in {len(failed)} of {len(turns)} repeats")
        restarts = sum(turn.get("restarts", 0) for turn in turns)
        if restarts:
            said.append(f"ended under load, and was started again, {restarts} time{'s' * (restarts > 1)}")
    return {server: "; ".join(said) for server, said in found.items() if said}


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    where, settings, repeats = result["machine"], result["settings"], result["repeats"]
    parts = [
        f"Machine: {where['cpu']}, {where['cores']} cores shared with the load generator, {where['memory_gib']} GiB; "
        f"{where['kernel']}, Python {where['python']}, grpcio {where['grpcio']}, onnxruntime {where['onnxruntime']}, "
        f"h2load {where['h2load']}; load average before: {where['load_before']:.2f}."
    ]
    if repeats:
        servers = [server for server in repeats[0]["servers"] if any(_went_well(turn, server) for turn in repeats)]
        parts += [
            f"Command: `python bench/others.py --seconds {settings['seconds']:g} --repeats {settings['repeats']}`, the "
            f"settings as tried below. Figures are medians of {settings['repeats']} (lowest – highest).",
            table(
                ("concurrency", "server", "images/s", "÷ raw", "÷ convlens", "p50 ms", "p99 ms",
                 "server CPU µs a request"),
                [row for load in load_names() for row in _load_rows(repeats, servers, load)],
            ),
            table(
                ("server", "package", "asked by", "settings", "start to first answer s", "processes",
                 "memory MB, ready", "memory MB, after the loads"),
                [_server_row(result, server) for server in servers],
            ),
        ]  # fmt: skip
    if failed := problems(result):
        parts.append("Problems: " + ", ".join(f"{server} ({what})" for server, what in failed.items()) + ".")
    chosen = best(result["trials"])
    rows = []
    for trial in result["trials"]:
        kept = chosen.get(trial["server"]) == (trial["settings"], trial["wire"])
        rate = f"{trial['images_per_second']:.0f}" if "problem" not in trial else trial["problem"]
        rows.append((trial["server"], trial["wire"], trial["settings"], f"**{rate}**" if kept else rate))
    parts += [
        f"Settings tried, once each, for a second at concurrency 32 with {settings['cores']} cores:",
        table(("server", "asked by", "settings", "images/s"), rows),
    ]
    return "\n\n".join(parts)


def _load_rows(repeats: Sequence[dict[str, Any]], servers: Sequence[str], load: str) -> Iterator[tuple[str, ...]]:
    for server in servers:

        def each(value: Callable[[dict[str, Any], dict[str, Any]], float], server: str = server) -> str:
            return spread([value(turn, _point(turn, server, load)) for turn in repeats if _went_well(turn, server)])

        yield (
            load,
            server,
            each(lambda _, point: point["images_per_second"]),
            each(lambda turn, point: point["images_per_second"] / best_raw(turn)),
            each(lambda turn, point: point["images_per_second"] / _point(turn, CLASSIFY, load)["images_per_second"]),
            *(each(lambda _, point, column=column: point[column]) for column in _COLUMNS),  # type: ignore[misc]
        )


def _server_row(result: dict[str, Any], server: str) -> tuple[str, ...]:
    found = [turn["servers"][server] for turn in result["repeats"] if _went_well(turn, server)]
    setting, wire = ("as they are by default", _OURS[server]) if server in _OURS else best(result["trials"])[server]
    package = result["packages"].get(server, "–")
    columns = ("start_seconds", "processes", "ready_mb", "loaded_mb")
    return (server, package, wire, setting, *(spread([each[column] for each in found]) for column in columns))


def _went_well(turn: dict[str, Any], server: str) -> bool:
    return "points" in turn["servers"][server]


def _point(turn: dict[str, Any], server: str, load: str) -> dict[str, Any]:
    return next(point for point in turn["servers"][server]["points"] if point["load"] == load)

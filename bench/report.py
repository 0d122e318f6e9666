"""What a benchmark's result says: the goals and whether they are reached, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from contenders import AT_32, OURS, PLAIN, load_names
from open_inference import CLASSIFY, INFER_FLOAT32
from tables import goal, goal_table, spread, table

# As written to bench/results: model, settings, machine, and of each repeat what was measured.
Result: TypeAlias = dict[str, Any]

_NAMES = {"completion_queue": "convlens", "aio": "convlens, `--transport aio`", "plain": "plain `grpc.aio`"}
# Two runs of one and the same thing differ by more than this.
_NOT_MEASURABLE = 0.02


def goals(result: Result) -> list[dict[str, Any]]:
    """Each goal: what, the limit in words, median, low and high of the repeats, and whether the median reaches it.

    What was not measured has None instead of numbers, and None for `reached`.
    """
    repeats = result["repeats"]

    def ratio(load: str) -> list[float]:
        return _each(repeats, lambda turn: _point(turn, OURS[0], load)["images_per_second"] / best_raw(turn))

    def server(field: str) -> list[float]:
        return _each(repeats, lambda turn: turn["servers"][OURS[0]][field])

    many = load_names()[-1]
    rows = [
        goal(f"images/s at concurrency {load} ÷ best raw onnxruntime", ratio(load), low=limit)
        for load, limit in (("8", 0.6), ("32", 0.75), ("128", 0.65), (many, 0.85))
    ]
    hand_written = _each(repeats, lambda turn: _rate(turn, OURS[0]) / _rate(turn, PLAIN))
    rows.append(goal("images/s at concurrency 32 ÷ plain `grpc.aio` server", hand_written, low=3))
    alone = _each(repeats, lambda turn: _point(turn, OURS[0], "1")["p50_ms"] - raw_latency(turn))
    rows.append(goal("p50 at concurrency 1 − raw single-image latency, ms", alone, high=0.25))
    block = _each(repeats, lambda turn: turn["feature_maps"]["in_process"])
    share = [times["first_block_ms"] / times["forward_ms"] for times in block]
    rows.append(goal("ResNet-18: all maps of the first block ÷ forward pass", share, high=0.3))
    absent = _each(repeats, lambda turn: len(turn["feature_maps"]["missing_layers"]))
    # Nothing of chance: a layer that is missing once is missing.
    worst = [max(absent)] if absent else []
    rows.append(goal("ResNet-18: layers missing from the catalogue", worst, high=0, text="none"))
    infer = _each(
        repeats,
        lambda turn: (
            turn["open_inference"][INFER_FLOAT32]["images_per_second"]
            / turn["open_inference"][CLASSIFY]["images_per_second"]
        ),
    )
    rows.append(goal("ModelInfer of one float32 image ÷ Classify, images/s at concurrency 32", infer, low=0.9))
    unused = _each(
        repeats,
        lambda turn: turn["servers"][OURS[0]]["after_feature_maps"]["images_per_second"] / _rate(turn, OURS[0]),
    )
    title = "images/s at concurrency 32 after 100 feature-map requests ÷ before"
    cost = goal(title, unused, low=1, text="1, within the repeats' spread")
    if unused:
        cost["reached"] = cost["high"] >= 1 or cost["median"] >= 1 - _NOT_MEASURABLE
    rows.append(cost)
    rows.append(goal("memory after load, MB", server("loaded_mb"), high=250))
    rows.append(goal("start to ready, s", server("start_seconds"), high=2))
    return rows


def best_raw(turn: dict[str, Any]) -> float:
    """Images a second of onnxruntime alone: the best of all batch sizes and numbers of threads of one repeat."""
    return max(float(run["images_per_second"]) for run in turn["raw"])


def raw_latency(turn: dict[str, Any]) -> float:
    """Median milliseconds of a run of one image by onnxruntime alone, with the better number of threads."""
    return min(float(run["p50_ms"]) for run in turn["raw"] if run["batch"] == 1)


def render(result: Result) -> str:
    """The result as Markdown."""
    machine, settings = result["machine"], result["settings"]
    served = ", ".join(f"`{name}`" for name in result["served"])
    lines = [
        f"Model `{result['model']}` version {result['model_version']}; the server has {served} loaded, runs "
        f"{settings['threads']} threads and batches up to {settings['max_batch']} images.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores shared with the load generator, {machine['memory_gib']} "
        f"GiB; {machine['kernel']}, Python {machine['python']}, grpcio {machine['grpcio']}, onnxruntime "
        f"{machine['onnxruntime']}, h2load {machine['h2load']}; load average before: {machine['load_before']:.2f}.",
        f"Command: `{_command(result)}`. Figures are medians of {len(result['repeats'])} (lowest – highest).",
    ]
    parts = [
        goal_table(goals(result)),
        _load_table(result),
        _process_table(result),
        _raw_table(result),
        _map_table(result),
        _open_inference_table(result),
    ]
    return "\n\n".join([*lines, *(part for part in parts if part)])


def _command(result: Result) -> str:
    settings = result["settings"]
    command = "python bench/serving.py"
    if result["model"] != "lecture_cnn":
        command += f" --model {result['model']}"
    command += f" --seconds {settings['seconds']:g} --repeats {settings['repeats']}"
    complete = {*OURS, PLAIN, "feature_maps", "open_inference"} <= set(settings["parts"])
    return command if complete else f"{command} --only {' '.join(settings['parts'])}"


def _load_table(result: Result) -> str:
    repeats = result["repeats"]
    rows = []
    for load in load_names():
        for name in (*OURS, PLAIN):
            points = _each(repeats, lambda turn, name=name, load=load: _point(turn, name, load))  # type: ignore[misc]
            if not points:
                continue
            ratios = _each(
                repeats,
                lambda turn, name=name, load=load: _point(turn, name, load)["images_per_second"] / best_raw(turn),  # type: ignore[misc]
            )
            columns = ([point[key] for point in points] for key in ("images_per_second", "p50_ms", "p99_ms", "cpu_us"))
            rate, p50, p99, cpu = (spread(column) for column in columns)
            rows.append((load, _NAMES[name], rate, spread(ratios), p50, p99, cpu))
    titles = ("concurrency", "server", "images/s", "÷ raw", "p50 ms", "p99 ms", "server CPU µs a request")
    return table(titles, rows) if rows else ""


def _process_table(result: Result) -> str:
    rows = []
    for name in (*OURS, PLAIN):
        found = _each(result["repeats"], lambda turn, name=name: turn["servers"][name])  # type: ignore[misc]
        if found:
            columns = ([each[key] for each in found] for key in ("start_seconds", "loaded_mb", "peak_mb"))
            rows.append((_NAMES[name], *(spread(column) for column in columns)))
    return table(("server", "start to ready s", "memory after load MB", "peak MB"), rows) if rows else ""


def _raw_table(result: Result) -> str:
    rows = []
    for position, run in enumerate(result["repeats"][0]["raw"]):
        runs = [turn["raw"][position] for turn in result["repeats"]]
        rate, p50 = (spread([each[key] for each in runs]) for key in ("images_per_second", "p50_ms"))
        rows.append((run["batch"], run["threads"], rate, p50))
    return table(("raw onnxruntime: batch", "threads", "images/s", "p50 ms a run"), rows)


def _map_table(result: Result) -> str:
    if "feature_maps_skipped" in result:
        return f"Feature maps of a ResNet-18: not measured, {result['feature_maps_skipped']}."
    found = [turn["feature_maps"] for turn in result["repeats"]]
    rows: list[tuple[object, ...]] = []
    for where, whole in (("in_process", "forward_ms"), ("served", "classify_ms")):
        columns = [[each[where][key] for each in found] for key in (whole, "first_block_ms", "first_block_output_ms")]
        ratios = [block / full for full, block in zip(columns[0], columns[1], strict=True)]
        title = "in process" if where == "in_process" else "over gRPC"
        rows.append((title, *(spread(column) for column in columns), spread(ratios)))
    titles = (
        f"ResNet-18, {found[0]['layers']} layers",
        "whole network ms",
        f"all {found[0]['first_block_layers']} layers of the first block ms",
        "that block's output alone ms",
        "all layers ÷ whole",
    )
    return table(titles, rows)


def _open_inference_table(result: Result) -> str:
    found = _each(result["repeats"], lambda turn: turn["open_inference"])
    rows = []
    for name in found[0] if found else ():
        columns = ([turn[name][key] for turn in found] for key in ("images_per_second", "p50_ms", "p99_ms", "cpu_us"))
        ratios = [turn[name]["images_per_second"] / turn[CLASSIFY]["images_per_second"] for turn in found]
        rate, p50, p99, cpu = (spread(column) for column in columns)
        rows.append((name, rate, spread(ratios), p50, p99, cpu))
    titles = ("one image, concurrency 32", "images/s", "÷ Classify", "p50 ms", "p99 ms", "server CPU µs a request")
    return table(titles, rows) if rows else ""


def _each(repeats: Sequence[dict[str, Any]], get: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """One value of each repeat; none at all if a part of it was not measured."""
    try:
        return [get(turn) for turn in repeats]
    except KeyError:
        return []


def _point(turn: dict[str, Any], server: str, load: str) -> dict[str, Any]:
    found: dict[str, Any] = next(point for point in turn["servers"][server]["points"] if point["load"] == load)
    return found


def _rate(turn: dict[str, Any], server: str) -> float:
    return float(_point(turn, server, AT_32.name)["images_per_second"])

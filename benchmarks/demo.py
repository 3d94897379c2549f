"""The demo's own figures, read from its summary.json."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.molecules import Options
from benchmarks.table import Table

GOALS = {"fraction_accepted": 0.45, "ess_fraction": 0.20, "round trips": 100, "wall time / s": 300}


def run(options: Options) -> Table:
    """Set what the demo reached beside what it is meant to reach."""
    if options.run is None:
        return Table("Demo", [], ["Not shown: no `--run FOLDER` was given."])
    summary = json.loads((options.run / "summary.json").read_text())
    trips = summary.get("n_round_trips", {})
    found = {
        "fraction_accepted": summary.get("fraction_accepted"),
        "ess_fraction": summary.get("ess_fraction"),
        "pareto_k": summary.get("pareto_k"),
        "round trips": trips.get("bg_langevin"),
        "round trips of Langevin alone": trips.get("langevin"),
        "wall time / s": summary.get("wall_time_s", {}).get("total"),
    }
    for phase, seconds in summary.get("wall_time_s", {}).items():
        if phase != "total":
            found[f"of which {phase} / s"] = seconds
    for basin, entry in summary.get("acceptance_by_basin", {}).items():
        found[f"accepted from {basin}"] = entry["value"]
    rows: list[dict[str, Any]] = [
        {"figure": name, "found": value, "goal": GOALS.get(name), "of goal": _part(value, GOALS.get(name))}
        for name, value in found.items()
    ]
    return Table("Demo", rows, [f"Seed {summary.get('seed')}, platform {summary.get('platform')}."])


def _part(value: float | None, goal: float | None) -> float | None:
    return None if value is None or goal is None else value / goal

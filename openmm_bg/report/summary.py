"""The figures of a run for machines."""

from __future__ import annotations

import math
import platform
from importlib import metadata
from typing import Any

from openmm_bg.analysis.checks import Verdict
from openmm_bg.report.results import Results

_PACKAGES = ("openmm-bg", "openmm", "openmmtools", "torch", "numpy", "mdtraj", "pymbar", "arviz-stats")


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of what the numbers rest on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def wall_times(phases: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each phase and in total; what ran side by side counts once."""
    seconds = {name: float(record["seconds"]) for name, record in phases.items() if "seconds" in record}
    total = sum(value for name, value in seconds.items() if not phases[name].get("concurrent_with"))
    return {"total": total, **seconds}


def summarise(results: Results, verdict: Verdict) -> dict[str, Any]:
    """Return the entries of summary.json that the report adds; None where there is no number."""
    acceptance, weights = results.acceptance, results.weights

    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    speed = results.side_chains
    side_chains = (
        {}
        if speed is None
        else {
            "chi1_speed_up_median": [number(value) for value in speed.median_gain],
            "chi1_speed_up_slowest_tenth": [number(value) for value in speed.slow_gain],
            "chi1_resolved": dict(zip(("bg_langevin", "langevin"), speed.n_resolved, strict=True)),
        }
    )
    return {
        **side_chains,
        "fraction_accepted": number(acceptance.overall.value if acceptance else None),
        "acceptance_by_basin": {
            name: {**estimate.as_json(), "n_proposed": int(estimate.n_effective)}
            for name, estimate in (acceptance.by_basin if acceptance else {}).items()
        },
        "ess_fraction": number(weights.ess_fraction if weights else None),
        "pareto_k": number(weights.pareto_k if weights else None),
        "largest_weight": number(weights.largest_weight if weights else None),
        "wall_time_s": wall_times(results.phases),
        "energy_evaluations": {
            name: record["n_evaluations"] for name, record in results.phases.items() if "n_evaluations" in record
        },
        "phi_positive_population": {key: m.rare_population.as_json() for key, m in results.methods.items()},
        "populations": {
            key: {name: estimate.as_json() for name, estimate in m.statistics.populations.items()}
            for key, m in results.methods.items()
        },
        "free_energy_differences_kJ_per_mol": {
            key: {name: estimate.as_json() for name, estimate in m.statistics.free_energy_differences.items()}
            for key, m in results.methods.items()
        },
        "n_round_trips": {key: m.trips.count for key, m in results.methods.items() if m.trips},
        "crossing_rate_upper_bound_per_s": {
            key: m.trips.upper_bound for key, m in results.methods.items() if m.trips and m.trips.n_crossings == 0
        },
        "verdict": verdict.answer,
        "verdict_sentence": verdict.sentence,
        "checks": [{"name": c.name, "status": c.status, "text": c.text} for c in verdict.checks],
        "missing": results.missing,
        "residue": results.pair_name,
        "temperature_K": results.temperature,
        "versions": versions(),
        "seed": results.settings.get("seed"),
        "platform": results.settings.get("platform"),
    }

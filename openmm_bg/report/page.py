"""The HTML page: one file that needs no network, and summary.json beside it."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from openmm_bg.analysis.basins import BASINS
from openmm_bg.analysis.checks import Verdict
from openmm_bg.analysis.estimate import Estimate, z_score
from openmm_bg.files import write_bytes
from openmm_bg.report import figures
from openmm_bg.report.free_energy_figure import free_energy_figure
from openmm_bg.report.protein import QUANTILES, Protein, read_protein
from openmm_bg.report.protein_figures import protein_figures
from openmm_bg.report.results import BG_LANGEVIN, GENERATOR, LANGEVIN, Results, read_results
from openmm_bg.report.run_folder import RunFolder, read_json
from openmm_bg.report.side_chain_figures import chi_over_time, relaxation_times
from openmm_bg.report.summary import summarise, versions, wall_times
from openmm_bg.report.verdict import judge
from openmm_bg.report.viewer import scene

_ORDER = (BG_LANGEVIN, LANGEVIN, GENERATOR)
_MINUS = "\N{MINUS SIGN}"


def write_report(folder: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """Analyse a run folder and write `report.html` and `summary.json` into it.

    A folder in which only some of the phases have run gives a page that says what is missing.

    Parameters
    ----------
    folder : str or path-like
        A folder made by the command line.
    seed : int
        Seed of the bootstrap's resamples.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ValueError
        If the folder is not one of openmm-bg's, or a file in it is damaged.
    OSError
        If the page cannot be written.
    """
    started = time.perf_counter()
    run = RunFolder.open(folder)
    results = read_results(run, seed)
    protein = read_protein(run, results, seed)
    free_energy = _free_energy(run)
    verdict = judge(results, free_energy)
    page = _render(run, results, verdict, free_energy, protein)
    write_bytes(run.report_file, page.encode())
    run.update_phase("report", finished=True, seconds=time.perf_counter() - started)
    results.phases.update(run.phases)
    run.update_summary({**summarise(results, verdict), **({} if protein is None else protein.summary())})
    return run.report_file


def _free_energy(run: RunFolder) -> dict[str, Any] | None:
    """What free_energy.json holds, unless it is about another generator than the folder's chain."""
    if not run.free_energy_file.exists():
        return None
    found = read_json(run.free_energy_file)
    return found if found.get("generator") == run.settings.get("generator") else None


def _render(
    run: RunFolder, results: Results, verdict: Verdict, free_energy: dict[str, Any] | None, protein: Protein | None
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("openmm_bg.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    methods = [results.methods[key] for key in _ORDER if key in results.methods]
    return environment.get_template("report.html").render(
        title=results.settings.get("name", run.path.name),
        results=results,
        verdict=verdict,
        methods=methods,
        colors=figures.COLORS,
        figures={name: Markup(svg) for name, svg in _figures(results, free_energy, protein).items()},
        key_figures=_key_figures(results),
        population_rows=_rows(results, "populations"),
        difference_rows=_rows(results, "free_energy_differences"),
        free_energy=free_energy,
        protein=protein,
        scene=None if protein is None else scene(protein),
        quantile_shares=QUANTILES,
        wide=_wide,
        number=_number,
        costs=_costs(results),
        wall_times=wall_times(results.phases),
        versions=versions(),
    )


def _figures(results: Results, free_energy: dict[str, Any] | None, protein: Protein | None) -> dict[str, str]:
    drawn = {} if protein is None else protein_figures(protein)
    if free_energy is not None:
        drawn["free_energy"] = free_energy_figure(free_energy)
    if results.methods:
        drawn["surfaces"] = figures.surfaces(results)
    if any(chain is not None and chain.phi.shape[1] > results.pair for chain in (results.chain, results.langevin)):
        drawn["phi"] = figures.phi_over_time(results)
    if results.side_chains is not None:
        drawn["chi"] = chi_over_time(results)
        drawn["relaxation"] = relaxation_times(results.side_chains)
    if results.acceptance is not None and results.acceptance.by_basin and not results.walks:
        drawn["acceptance"] = figures.acceptance(results)
    if results.weights is not None:
        drawn["weights"] = figures.weight_histogram(results)
    if results.weights is not None or results.chain is not None:
        drawn["energies"] = figures.energy_histogram(results)
    if results.training is not None and len(results.training.steps) > 1:
        drawn["training"] = figures.training(results.training)
    return drawn


def _key_figures(results: Results) -> list[tuple[str, str, str]]:
    """Value, name and remark of each figure at the top of the page."""
    shown = []
    if results.acceptance is not None:
        overall = results.acceptance.overall
        remark = f"of {results.acceptance.n_proposed:,} proposals"
        shown.append((f"{overall.value:.1%}", "accepted", remark))
    if results.weights is not None:
        weights = results.weights
        remark = f"Pareto k {weights.pareto_k:.2f}, largest weight {weights.largest_weight:.2%}"
        shown.append((f"{weights.ess_fraction:.1%}", "ESS / N, unclipped", remark))
    chain, alone = results.method(BG_LANGEVIN), results.method(LANGEVIN)
    if results.side_chains is not None:
        speed = results.side_chains
        shown += [
            (_gain(speed.median_gain), "chi1 relaxes faster, median", "than by Langevin alone, per second"),
            (_gain(speed.slow_gain), "the same, slowest tenth", ""),
            (
                f"{speed.n_resolved[0]} of {len(speed.names)}",
                "side chains resolved",
                f"Langevin: {speed.n_resolved[1]}",
            ),
        ]
    elif chain is not None and chain.trips is not None:
        remark = f"Langevin alone: {alone.trips.count}" if alone is not None and alone.trips is not None else ""
        shown.append((f"{chain.trips.count:,}", "round trips of phi", remark))
        rare = chain.rare_population
        shown.append((percent(rare), "population of 0 < phi < 2.3", chain.title))
    total = wall_times(results.phases)["total"]
    if total > 0:
        shown.append((duration(total), "wall time in all", ""))
    return shown


def _gain(gain: tuple[float, float, float]) -> str:
    """Write how many times faster one chain is than the other, or what is known of it."""
    value, lower, upper = gain
    if math.isfinite(value):
        return f"{value:.2g} times"
    if math.isfinite(upper) and upper > 0.0:
        return f"{lower:.2g} to {upper:.2g} times" if lower > 0.0 else f"at most {upper:.2g} times"
    return f"at least {lower:.2g} times" if math.isfinite(lower) and lower > 0.0 else "not known"


def _rows(results: Results, quantity: str) -> list[dict[str, Any]]:
    """One row a basin: an estimate of each method, and how the others differ from the chain."""
    rows = []
    for basin in BASINS:
        cells, scores = [], []
        reference = results.method(BG_LANGEVIN) or results.method(GENERATOR)
        for key in _ORDER:
            method = results.method(key)
            if method is None:
                continue
            estimate = getattr(method.statistics, quantity)[basin.name]
            cells.append(percent(estimate) if quantity == "populations" else energy(estimate))
            if reference is not None and method is not reference:
                z = z_score(getattr(reference.statistics, quantity)[basin.name], estimate)
                scores.append(_agreement_text(z))
        rows.append({"name": basin.name, "description": basin.description, "cells": cells, "scores": scores})
    return rows


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}".replace("-", _MINUS)


def _wide(estimate: Estimate) -> str:
    """Write a number that may be huge, as energies of clashes are, with its error."""
    if not math.isfinite(estimate.value):
        return "none"
    text = f"{estimate.value:,.0f}" if abs(estimate.value) < 1e6 else f"{estimate.value:.1e}"
    if abs(estimate.value) < 1e6 and math.isfinite(estimate.error):
        text += f" ± {estimate.error:,.0f}"
    return text.replace("-", _MINUS)


def _agreement_text(z: float) -> tuple[str, str]:
    if math.isnan(z):
        return "cannot tell", "unknown"
    return (f"yes, {abs(z):.1f} σ", "good") if abs(z) <= 2.0 else (f"no, {abs(z):.1f} σ", "bad")


def _costs(results: Results) -> list[dict[str, str]]:
    costs = []
    for name, record in results.phases.items():
        if name == "report":
            continue
        evaluations = record.get("n_evaluations")
        beside = record.get("concurrent_with")
        remarks = [
            f"at the same time as {beside}, each on half of the cores" if beside else "",
            str(record.get("remark") or ""),
        ]
        costs.append(
            {
                "name": name,
                "seconds": duration(record["seconds"]) if "seconds" in record else "",
                "evaluations": f"{evaluations:,}" if evaluations is not None else "",
                "platform": str(record.get("platform") or ""),
                "remark": "; ".join(remark for remark in remarks if remark),
            }
        )
    return costs


def percent(estimate: Estimate) -> str:
    """Write a population with its error in percent."""
    if math.isnan(estimate.error):
        return "never visited" if estimate.value == 0.0 else f"{100 * estimate.value:.2f} %, never left"
    return f"{100 * estimate.value:.2f} ± {100 * estimate.error:.2f} %"


def energy(estimate: Estimate) -> str:
    """Write a free-energy difference with its error in kJ/mol."""
    if not math.isfinite(estimate.value):
        return "never visited" if estimate.value > 0 else "never left"
    sign = _MINUS if estimate.value < 0 else ""
    return f"{sign}{abs(estimate.value):.2f} ± {estimate.error:.2f}"


def duration(seconds: float) -> str:
    """Write a wall time."""
    if seconds < 100.0:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s"

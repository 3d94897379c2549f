"""From cells to tables: averages over seeds, and the full recipe against the baseline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.figure import draw
from benchmarks.paper.molecules import CASES, N_CHAINS, TIMESTEP
from benchmarks.paper.rows import BASELINE, FULL, ROWS
from benchmarks.table import Table, describe
from openmm_bg.files import write_bytes

NO_OVERLAP = "no overlap"
DOMINATES = 0.5  # share of the weights that one draw alone has
GOAL = 2.0  # ratio of distance distortions
_SMALLEST = 1e-4  # acceptance that is worth a number

Cell = dict[str, Any]


def write(folder: Path, cells: dict[str, dict[str, list[Cell]]], data: dict[str, Any], machine: dict[str, Any]) -> str:
    """Write `paper.json`, `paper.md` and `paper.svg` into a folder; the page.

    Parameters
    ----------
    folder : path
    cells : dict
        By molecule and row; one for each seed.
    data : dict
        What the dynamics of each molecule cost.
    machine : dict
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = ["# The paper's generator, row by row", "", describe(machine), ""]
    for name, rows in cells.items():
        page.append(table(name, rows, data[name]).markdown())
    text = "\n".join(page)
    content = {"machine": machine, "data": data, "cells": cells}
    write_bytes(folder / "paper.json", (json.dumps(content, indent=1) + "\n").encode())
    write_bytes(folder / "paper.md", text.encode())
    write_bytes(folder / "paper.svg", draw(cells).encode())
    return text


def table(name: str, rows: dict[str, list[Cell]], data: dict[str, Any]) -> Table:
    """The table of one molecule."""
    case = CASES[name]
    lines = [{"row": ROWS[row].title, **line(rows[row])} for row in ROWS if rows.get(row)]
    floors = [cell["distortion_floor"] for row in rows.values() for cell in row if "distortion_floor" in cell]
    energies = [cell["energy_of_dynamics"] for row in rows.values() for cell in row if "energy_of_dynamics" in cell]
    budgets = sorted({cell["budget"] for row in rows.values() for cell in row})
    notes = [
        f"{data['n_atoms']} atoms, {case.coordinates} coordinates. Data: {N_CHAINS} chains, "
        f"{data['n_frames']:,} frames of {data['n_steps'] * TIMESTEP / 1000.0:.3g} ns, {data['n_steps']:,} energies "
        f"with forces, {data['seconds']:.0f} s on {data['platform']}. Training of each row: "
        f"{' or '.join(f'{budget:g}' for budget in budgets)} s at most."
    ]
    if floors:
        low, _, high = energies[0]
        notes.append(
            f"Floor of the distance distortion, between the halves of the dynamics: {floors[0]:.3g} Å. Energies are "
            f"relative to the median of the dynamics, whose own 10 % and 90 % are {low:+,.0f} and {high:+,.0f} kJ/mol."
        )
    notes += verdict(rows)
    return Table(case.title, lines, notes)


def line(cells: list[Cell]) -> dict[str, Any]:
    """One row of a table, over seeds."""
    good = [cell for cell in cells if "failed" not in cell]
    if not good:
        return dict.fromkeys(_COLUMNS, "failed")
    energies = np.array([cell["energy"] for cell in good], dtype=float)
    texts = [
        over_seeds([cell["distortion"][0] for cell in good], [cell["distortion"][1] for cell in good]),
        *(over_seeds(list(energies[:, place]), sign=True) for place in (1, 0, 2)),
        over_seeds([cell["nll"][0] for cell in good], [cell["nll"][1] for cell in good], least=1),
        overlap_text(good),
        over_seeds([cell["pareto_k"] for cell in good]),
        f"{good[0]['n_samples']:,}",
        acceptance_text([cell["independence"] for cell in good]),
        walk_text(good),
        f"{good[0]['parameters']:,}",
        over_seeds([cell["seconds"] for cell in good]),
        f"{np.mean([cell['evaluations'] for cell in good]):,.0f}",
        str(len(good)) + (f" of {len(cells)}" if len(good) < len(cells) else ""),
    ]
    return dict(zip(_COLUMNS, texts, strict=True))


_COLUMNS = (
    "distance distortion / Å",
    "energy: median / kJ/mol",
    "10 %",
    "90 %",
    "held-out NLL",
    "ESS of N",
    "k-hat",
    "N",
    "independence acceptance",
    "latent walk",
    "parameters",
    "training / s",
    "energies",
    "seeds",
)


def over_seeds(values: list[float], errors: list[float] | None = None, *, sign: bool = False, least: int = 0) -> str:
    """Mean and standard deviation over seeds; of one seed, the value and its own error. `least` decimals or more."""
    array = np.array(values, dtype=float)
    if not np.isfinite(array).all():
        return "inf" if len(array) == 1 else f"inf for {np.count_nonzero(~np.isfinite(array))} of {len(array)}"
    spread = float(array.std(ddof=1)) if len(array) > 1 else (errors[0] if errors else math.nan)
    mean = float(array.mean())
    places = least if abs(mean) >= 1000 else max(least, 2 - math.floor(math.log10(max(abs(mean), 1e-2))))
    text = f"{mean:{'+' if sign else ''},.{places}f}"
    return text if not math.isfinite(spread) else f"{text} ± {spread:,.{places}f}"


def overlap_text(cells: list[Cell]) -> str:
    """Effective sample size of unclipped weights, or that there is none: one draw has half of the weight or more."""
    if not all(cell["is_consistent"] for cell in cells):
        return "none: forward and inverse pass disagree"
    if any(cell["largest_weight"] >= DOMINATES for cell in cells):
        n = sum(cell["largest_weight"] >= DOMINATES for cell in cells)
        return NO_OVERLAP if n == len(cells) else f"{NO_OVERLAP} ({n} of {len(cells)} seeds)"
    fractions = [cell["ess"] / cell["n_samples"] for cell in cells]
    low, high = min(fractions), max(fractions)
    return f"{low:.1%}" if len(cells) == 1 else f"{np.mean(fractions):.1%} ({low:.1%} to {high:.1%})"


def acceptance_text(values: list[float]) -> str:
    """Mean acceptance of independence proposals; below what any run would notice, its bound."""
    mean = float(np.mean(values))
    return f"{mean:.2%}" if mean >= _SMALLEST else f"< {_SMALLEST:.2%}"


def walk_text(cells: list[Cell]) -> str:
    """Acceptance of the latent walk at its tuned step, by kind of proposal."""
    found = [cell["walk"] for cell in cells if "acceptance" in cell["walk"]]
    if not found:
        return "not tuned"
    texts = []
    for kind in found[0]["acceptance"]:
        mean = float(np.mean([one["acceptance"].get(kind, math.nan) for one in found]))
        step = float(np.exp(np.mean([math.log(one["step"][kind]) for one in found])))
        name = kind.replace("_", " ")
        texts.append(f"{name} {mean:.0%} at step {step:.2g}" if kind != "side_chain" else f"{name} {mean:.1%}")
    rest = f" ({len(found)} of {len(cells)} tuned)" if len(found) < len(cells) else ""
    return ", ".join(texts) + rest


def verdict(rows: dict[str, list[Cell]]) -> list[str]:
    """The full recipe against the baseline, in words."""
    ours, theirs = ([cell for cell in rows.get(name, []) if "failed" not in cell] for name in (FULL, BASELINE))
    if not ours or not theirs:
        return ["The full recipe and the baseline were not both run: no comparison."]
    distortions = [float(np.mean([cell["distortion"][0] for cell in cells])) for cells in (theirs, ours)]
    medians = [float(np.mean([cell["energy"][1] for cell in cells])) for cells in (theirs, ours)]
    ratio = distortions[0] / distortions[1]
    floor = ours[0]["distortion_floor"]
    who = "Both are" if max(distortions) < floor else "Ours is"
    near = f" {who} below the floor, where differences mean nothing." if distortions[1] < floor else ""
    difference = medians[1] - medians[0]
    return [
        f"{ROWS[FULL].title} against {ROWS[BASELINE].title}: distance distortion {distortions[0]:.3g} to "
        f"{distortions[1]:.3g} Å, a ratio of {ratio:.2f} (goal: {GOAL:g} or more; {_met(ratio >= GOAL)}).{near} Median "
        f"energy {difference:+,.0f} kJ/mol (goal: lower; {_met(difference < 0.0)})."
    ]


def _met(is_met: bool) -> str:
    return "met" if is_met else "not met"

"""The figure of the comparison: distance distortion and energies of every row, molecule by molecule."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from benchmarks.paper.molecules import CASES
from benchmarks.paper.rows import BASELINE, FULL, ROWS
from openmm_bg.report.figures import STYLE, svg

_COLORS = {BASELINE: "#c8531c", FULL: "#0b6bb0"}
_OTHER, _FLOOR = "#5c6670", "#8b95a1"
_LINEAR_BELOW = 10.0  # kJ/mol, above the median of the dynamics: from there on the axis is logarithmic

Cell = dict[str, Any]


def draw(cells: dict[str, dict[str, list[Cell]]]) -> str:
    """SVG; cells by molecule and row, one for each seed. Points are seeds, lines their 10 % to 90 %, arrows +inf."""
    whole = {name: {row: [c for c in found if "failed" not in c] for row, found in rows.items()}
             for name, rows in cells.items()}  # fmt: skip
    whole = {name: rows for name, rows in whole.items() if any(rows.values())}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.5 * max(1, len(whole))), layout="constrained")
        axes = np.asarray(figure.subplots(max(1, len(whole)), 2, sharey="row")).reshape(-1, 2)
        for (name, rows), (left, right) in zip(whole.items(), axes, strict=False):
            names = [row for row in ROWS if rows.get(row)]
            _panel(left, right, rows, names)
            left.set_yticks(range(len(names)), [ROWS[row].title for row in names])
            left.set_ylim(len(names) - 0.5, -0.5)
            left.set_title(CASES[name].title, loc="left")
        axes[-1, 0].set_xlabel("distance distortion / Å (dashed: floor)")
        axes[-1, 1].set_xlabel("energy above the median of the dynamics / kJ/mol")
        return svg(figure)


def _panel(left: Axes, right: Axes, rows: dict[str, list[Cell]], names: list[str]) -> None:
    """Distortions on the left, energies on the right, a line for each row."""
    energies = np.concatenate([cell["energy"] for row in names for cell in rows[row]])
    beyond = 100.0 * float(np.max(energies[np.isfinite(energies)], initial=_LINEAR_BELOW))
    for height, row in enumerate(names):
        for cell in rows[row]:
            value, error = cell["distortion"]
            color = _COLORS.get(row, _OTHER)
            left.errorbar(value, height, xerr=error, fmt="o", color=color, markersize=4, linewidth=1)
            low, median, high = np.minimum(cell["energy"], beyond)
            right.plot([low, high], [height, height], color=color, linewidth=1, alpha=0.5)
            right.plot(median, height, ">" if median == beyond else "o", color=color, markersize=4)
            if high == beyond:
                right.plot(high, height, ">", color=color, markersize=4, alpha=0.5)
        floor = rows[row][0]["distortion_floor"]
        left.plot([floor, floor], [height - 0.5, height + 0.5], "--", color=_FLOOR, linewidth=1)
    left.set_xlim(left=0.0)
    low, _, high = rows[names[0]][0]["energy_of_dynamics"]
    right.axvspan(low, high, color=_FLOOR, alpha=0.25, linewidth=0)
    right.set_xscale("symlog", linthresh=_LINEAR_BELOW)
    right.xaxis.set_major_locator(SymmetricalLogLocator(base=10.0, linthresh=_LINEAR_BELOW))
    right.xaxis.get_major_locator().set_params(numticks=6)

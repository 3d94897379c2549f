"""The figure of free energies by MBAR: overlap of the states, convergence, and the surface with its error."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openmm_bg.report.figures import COLORS, STYLE, svg, torsion_image
from openmm_bg.report.results import BG_LANGEVIN, LANGEVIN

_HIGHEST, _HIGHEST_ERROR = 30.0, 3.0  # kJ/mol


def free_energy_figure(result: dict[str, Any]) -> str:
    """Draw what free_energy.json holds, as SVG."""
    surface = result.get("surface")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 7.4 if surface else 3.7), layout="constrained")
        axes = np.asarray(figure.subplots(2 if surface else 1, 2)).reshape(-1, 2)
        _overlap(axes[0, 0], result)
        _convergence(axes[0, 1], result)
        if surface:
            shown = (
                ("free_energy", "viridis", _HIGHEST, "F (kJ/mol)"),
                ("error", "magma_r", _HIGHEST_ERROR, "standard error (kJ/mol)"),
            )
            for axis, (name, colors, highest, label) in zip(axes[1], shown, strict=True):
                values = np.array(surface[f"{name}_kJ_per_mol"], dtype=np.float64)
                drawn = torsion_image(axis, values, colors, highest)
                axis.set_xlabel("phi (degrees)")
                axis.set_ylabel("psi (degrees)")
                figure.colorbar(drawn, ax=axis, label=label, shrink=0.9, extend="max")
        return svg(figure)


def _overlap(axis: Axes, result: dict[str, Any]) -> None:
    overlap = np.array(result["overlap"], dtype=np.float64)
    axis.imshow(overlap, cmap="Blues", vmin=0.0, vmax=1.0)
    ticks = range(len(overlap))
    few = len(overlap) <= 8
    axis.set_xticks(ticks, result["states"] if few else [""] * len(overlap))
    axis.set_yticks(ticks, result["states"] if few else [""] * len(overlap))
    if few:
        for i, j in np.ndindex(*overlap.shape):
            color = "white" if overlap[i, j] > 0.6 else "#39424c"
            axis.text(j, i, f"{overlap[i, j]:.2g}", ha="center", va="center", color=color)
    axis.set_title("Overlap of the states")


def _convergence(axis: Axes, result: dict[str, Any]) -> None:
    found = result["convergence"]
    for name, key, label in (
        ("forward_kT", BG_LANGEVIN, "from the first samples"),
        ("backward_kT", LANGEVIN, "from the last samples"),
    ):
        values, errors = (np.array([e[part] for e in found[name]], dtype=np.float64) for part in ("value", "error"))
        axis.errorbar(found["fractions"], values, errors, marker="o", markersize=3, color=COLORS[key], label=label)
    axis.set_xlabel("part of the samples")
    axis.set_ylabel("difference (kT)")
    axis.set_title(f"Convergence, {found['from']} to {found['to']}")
    if found["fractions"]:
        axis.legend()

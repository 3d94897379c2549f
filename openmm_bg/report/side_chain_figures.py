"""Figures of side chains: one torsion over time, and how fast those of all residues relax."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openmm_bg.report.figures import COLORS, STYLE, svg, thinned
from openmm_bg.report.results import BG_LANGEVIN, LANGEVIN, TITLES, Results
from openmm_bg.report.side_chains import SideChainSpeed


def chi_over_time(results: Results) -> str:
    """One torsion chi1 over wall time for both chains."""
    chains = [(key, chain) for key, chain in ((BG_LANGEVIN, results.chain), (LANGEVIN, results.langevin)) if chain]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 1.9 * len(chains) + 0.4), layout="constrained")
        axes = np.atleast_1d(np.asarray(figure.subplots(len(chains), 1, sharex=True, sharey=True)))
        for axis, (key, chain) in zip(axes, chains, strict=True):
            kept = thinned(chain)
            angles = np.degrees(chain.chi[kept, results.chi]) % 360.0
            axis.plot(
                chain.seconds[kept], angles, ".", color=COLORS[key], markersize=2.0, alpha=0.5, markeredgewidth=0,
                rasterized=True,
            )  # fmt: skip
            axis.set_yticks([0, 60, 120, 180, 240, 300, 360])
            axis.set_ylim(0, 360)
            axis.set_ylabel("chi1 (degrees)")
            axis.set_title(f"{results.chi_names[results.chi]}, {TITLES[key]}", color=COLORS[key], loc="left")
        axes[-1].set_xlabel("wall time (s)")
        return svg(figure)


def relaxation_times(speed: SideChainSpeed) -> str:
    """Relaxation time of chi1 of every residue: a dot if it is known, else the range that it is in."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        axis = figure.subplots()
        longest = 10.0 * max(relaxation.duration for relaxation in (*speed.moves, *speed.alone))
        for key, relaxations, shift in ((BG_LANGEVIN, speed.moves, -0.15), (LANGEVIN, speed.alone, 0.15)):
            labelled = False
            for index, relaxation in enumerate(relaxations):
                known = relaxation.status == "resolved"
                low = max(relaxation.lower, 1e-3)
                high = relaxation.upper if math.isfinite(relaxation.upper) else longest
                style = "-" if known else ":"
                axis.plot([index + shift] * 2, [low, max(low, high)], style, color=COLORS[key], linewidth=1.2)
                if known:
                    label = None if labelled else TITLES[key]
                    axis.plot(index + shift, relaxation.time.value, "o", color=COLORS[key], markersize=4, label=label)
                    labelled = True
        axis.set_yscale("log")
        axis.set_xticks(range(len(speed.names)), speed.names, rotation=90, fontsize=7)
        axis.set_ylabel("relaxation time (s)")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper right")
        return svg(figure)

"""Figures of a protein: fluctuations by residue, contact maps, distributions of energies."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from openmm_bg.report.figures import COLORS, STYLE, svg
from openmm_bg.report.protein import DATA, DRAWN, Protein
from openmm_bg.report.results import BG_LANGEVIN, GENERATOR, LANGEVIN

SOURCE_COLORS = {
    DATA: "#39424c",
    LANGEVIN: COLORS[LANGEVIN],
    BG_LANGEVIN: COLORS[BG_LANGEVIN],
    DRAWN: COLORS[GENERATOR],
}
_LINEAR = 100.0  # kJ/mol about the middle of the energies, where the scale is linear


def protein_figures(protein: Protein) -> dict[str, str]:
    """Return the figures for which there is something to draw, by their names on the page."""
    drawn = {}
    if any(source.fluctuations is not None for source in protein.sources):
        drawn["fluctuations"] = fluctuations_by_residue(protein)
        drawn["contacts"] = contact_maps(protein)
    if any(source.quantiles for source in protein.sources):
        drawn["energy_distributions"] = energy_distributions(protein)
    return drawn


def fluctuations_by_residue(protein: Protein) -> str:
    """Fluctuation of each alpha carbon, with its error, for every source that has frames."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        axis = figure.subplots()
        places = np.arange(len(protein.alpha_residues))
        for source in protein.sources:
            if source.fluctuations is not None:
                axis.errorbar(
                    places, source.fluctuations.value, source.fluctuations.error, fmt="o-", markersize=3.5,
                    linewidth=1.2, elinewidth=0.8, color=SOURCE_COLORS[source.key], label=source.title,
                )  # fmt: skip
        names = [protein.residues[index] for index in protein.alpha_residues]
        axis.set_xticks(places, names, rotation=90, fontsize=7)
        axis.set_ylim(0.0, None)
        axis.set_ylabel("RMSF of the alpha carbon (nm)")
        axis.legend(fontsize=8)
        return svg(figure)


def contact_maps(protein: Protein) -> str:
    """Probability of contact of all pairs of residues, one map a source."""
    shown = [(source, source.contacts) for source in protein.sources if source.contacts is not None]
    n = len(protein.residues)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * len(shown) + 0.8, 3.4), layout="constrained")
        axes = np.atleast_1d(np.asarray(figure.subplots(1, len(shown), sharex=True, sharey=True)))
        step = max(1, n // 12)
        for axis, (source, contacts) in zip(axes, shown, strict=True):
            axis.set_facecolor("#eef0f2")
            image = axis.imshow(contacts.matrix(n), origin="lower", cmap="viridis", vmin=0.0, vmax=1.0)
            axis.set_title(source.title, color=SOURCE_COLORS[source.key])
            axis.set_xticks(range(0, n, step), protein.residues[::step], rotation=90, fontsize=7)
            axis.set_yticks(range(0, n, step), protein.residues[::step], fontsize=7)
        figure.colorbar(image, ax=axes, label="probability of contact", shrink=0.9)
        return svg(figure)


def energy_distributions(protein: Protein) -> str:
    """Share of the structures of each source below an energy; what has no finite energy is below none."""
    sources = [source for source in protein.sources if source.quantiles]
    middles = [float(np.median(source.energies)) for source in sources if source.key != DRAWN]
    middle = middles[-1] if middles else 0.0
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.0), layout="constrained")
        axis = figure.subplots()
        for source in sources:
            finite = np.sort(source.energies[np.isfinite(source.energies)])
            share = np.arange(1, len(finite) + 1) / len(source.energies)
            axis.step(
                finite - middle, share, where="post", linewidth=1.4, color=SOURCE_COLORS[source.key],
                label=source.title,
            )  # fmt: skip
        axis.set_xscale("symlog", linthresh=_LINEAR)
        axis.set_ylim(0.0, 1.02)
        axis.set_xlabel(f"potential energy above {middle:.0f} kJ/mol (kJ/mol; logarithmic beyond {_LINEAR:.0f})")
        axis.set_ylabel("share of structures below")
        axis.legend(loc="center right", fontsize=8)
        return svg(figure)

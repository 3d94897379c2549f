"""The figures of the report, as SVG that stands in the page itself."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openmm_bg.analysis.basins import RARE_PHI_LIMIT
from openmm_bg.density import FloatArray
from openmm_bg.report.records import Chain
from openmm_bg.report.results import BG_LANGEVIN, GENERATOR, LANGEVIN, TITLES, Results
from openmm_bg.training.history import TrainingHistory

COLORS = {BG_LANGEVIN: "#0b6bb0", LANGEVIN: "#c8531c", GENERATOR: "#1a8f6b"}  # told apart by the colour-blind too
_RAW = "#8b95a1"
_HIGHEST = 30.0  # kJ/mol, the top of the surfaces' scale
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#5c6670",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "xtick.color": "#39424c",
    "ytick.color": "#39424c",
    "svg.hashsalt": "openmm-bg",
}


def svg(figure: Figure) -> str:
    """Write a figure as SVG that can stand in a page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", dpi=130, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def surfaces(results: Results) -> str:
    """Free-energy surfaces of all methods on one scale, with their errors below."""
    methods = [results.methods[key] for key in (BG_LANGEVIN, LANGEVIN, GENERATOR) if key in results.methods]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(methods) + 0.9, 6.6), layout="constrained")
        axes = np.asarray(figure.subplots(2, len(methods), sharex=True, sharey=True)).reshape(2, len(methods))
        free_energies = np.concatenate([method.surface.free_energy.ravel() for method in methods])
        highest = min(_HIGHEST, float(free_energies[np.isfinite(free_energies)].max()))
        for column, method in enumerate(methods):
            top, bottom = axes[0, column], axes[1, column]
            surface = method.surface
            finite = np.where(np.isfinite(surface.free_energy), surface.free_energy, np.nan)
            values = torsion_image(top, finite, "viridis", highest)
            errors = torsion_image(bottom, surface.error, "magma_r", 3.0)
            top.set_title(method.title, color=COLORS[method.key])
            bottom.set_xlabel("phi (degrees)")
            for axis in (top, bottom):
                axis.axvline(0.0, color="#5c6670", linewidth=0.7, linestyle=":")
                axis.axvline(math.degrees(RARE_PHI_LIMIT), color="#5c6670", linewidth=0.7, linestyle=":")
        axes[0, 0].set_ylabel("psi (degrees)")
        axes[1, 0].set_ylabel("psi (degrees)")
        figure.colorbar(values, ax=axes[0, :], label="F (kJ/mol)", shrink=0.9, extend="max")
        figure.colorbar(errors, ax=axes[1, :], label="standard error (kJ/mol)", shrink=0.9, extend="max")
        return svg(figure)


def torsion_image(axis: Axes, values: FloatArray, colors: str, highest: float) -> mpl.image.AxesImage:
    """Draw a function of two torsions, shape (n_phi, n_psi), over the whole square."""
    axis.set_facecolor("#eef0f2")
    axis.set_xticks([-180, -90, 0, 90, 180])
    axis.set_yticks([-180, -90, 0, 90, 180])
    return axis.imshow(
        values.T, origin="lower", extent=(-180, 180, -180, 180), cmap=colors, vmin=0.0, vmax=highest,
        interpolation="nearest", aspect="equal",
    )  # fmt: skip


def phi_over_time(results: Results) -> str:
    """The torsion phi over wall time for both chains."""
    chains = [(key, chain) for key, chain in ((BG_LANGEVIN, results.chain), (LANGEVIN, results.langevin)) if chain]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 1.9 * len(chains) + 0.4), layout="constrained")
        axes = np.atleast_1d(np.asarray(figure.subplots(len(chains), 1, sharex=True, sharey=True)))
        for axis, (key, chain) in zip(axes, chains, strict=True):
            kept = thinned(chain)
            phi = np.degrees(chain.phi[kept, results.pair])
            size = 1.4 if len(kept) > 10_000 else 2.2
            axis.axhspan(0, math.degrees(RARE_PHI_LIMIT), color="#f3e6c8", linewidth=0, zorder=0)
            axis.plot(
                chain.seconds[kept], phi, ".", color=COLORS[key], markersize=size, alpha=0.5, markeredgewidth=0,
                rasterized=True,
            )  # fmt: skip
            axis.set_yticks([-180, -90, 0, 90, 180])
            axis.set_ylim(-180, 180)
            axis.set_ylabel("phi (degrees)")
            axis.set_title(TITLES[key], color=COLORS[key], loc="left")
        axes[-1].set_xlabel("wall time (s); shaded: 0 < phi < 2.3 rad")
        return svg(figure)


def thinned(chain: Chain, most: int = 30_000) -> FloatArray:
    """Return the rows of a chain that a figure shows."""
    return np.unique(np.linspace(0, len(chain) - 1, min(len(chain), most)).astype(np.int64))


def acceptance(results: Results) -> str:
    """Fraction of proposals accepted, by basin of origin."""
    assert results.acceptance is not None
    names = list(results.acceptance.by_basin)
    values = [results.acceptance.by_basin[name] for name in names]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 0.55 * len(names) + 1.1), layout="constrained")
        axis = figure.subplots()
        errors = [0.0 if math.isnan(value.error) else value.error for value in values]
        axis.barh(names, [value.value for value in values], xerr=errors, color=COLORS[BG_LANGEVIN], height=0.55)
        axis.axvline(results.acceptance.overall.value, color="#39424c", linestyle="--", linewidth=1)
        axis.set_xlim(0, 1)
        axis.invert_yaxis()
        axis.set_xlabel("fraction accepted, by basin of origin (dashed: overall)")
        return svg(figure)


def weight_histogram(results: Results) -> str:
    """Distribution of the importance weights in units of their mean."""
    assert results.weights is not None
    log_weights = results.weights.log_weights
    scaled = (log_weights[np.isfinite(log_weights)] + math.log(len(log_weights))) / math.log(10.0)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.0), layout="constrained")
        axis = figure.subplots()
        low, high = max(-6.0, float(scaled.min())), max(0.5, float(scaled.max()))
        edges = np.linspace(low, high, 60).tolist()
        axis.hist(np.clip(scaled, low, high), bins=edges, color=COLORS[GENERATOR], alpha=0.45, label="samples")
        axis.hist(
            np.clip(scaled, low, high), bins=edges, weights=10.0**scaled, histtype="step", linewidth=1.6,
            color=COLORS[GENERATOR], label="weight they carry",
        )  # fmt: skip
        axis.axvline(0.0, color="#39424c", linestyle="--", linewidth=1)
        axis.set_xlabel("log10(weight / mean weight)")
        axis.set_ylabel("samples")
        axis.legend(loc="upper left")
        return svg(figure)


def energy_histogram(results: Results) -> str:
    """Potential energies of the chains, of the generator, and of the generator reweighted."""
    curves: list[tuple[str, str, str, FloatArray, FloatArray | None]] = []
    if results.chain is not None:
        curves.append((TITLES[BG_LANGEVIN], COLORS[BG_LANGEVIN], "-", results.chain.energy, None))
    if results.langevin is not None:
        curves.append((TITLES[LANGEVIN], COLORS[LANGEVIN], "-", results.langevin.energy, None))
    if results.weights is not None:
        finite = np.isfinite(results.weights.energies)
        energies, weights = results.weights.energies[finite], results.weights.weights[finite]
        curves.append(("generator, as drawn", _RAW, "-", energies, None))
        curves.append((TITLES[GENERATOR], COLORS[GENERATOR], "--", energies, weights))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.0), layout="constrained")
        axis = figure.subplots()
        low = min(float(np.quantile(energy, 0.001)) for _, _, _, energy, _ in curves)
        high = max(float(np.quantile(energy, 0.97)) for _, _, _, energy, _ in curves)
        edges = np.linspace(low, high + 0.1 * (high - low) + 1e-6, 70)
        for label, color, line, energy, weight in curves:
            density = np.histogram(energy, bins=edges, weights=weight)[0]
            total = len(energy) if weight is None else weight.sum()
            axis.stairs(
                density / (total * np.diff(edges)), edges, color=color, linestyle=line, label=label, linewidth=1.4
            )
        axis.set_xlabel("potential energy (kJ/mol)")
        axis.set_ylabel("density")
        axis.legend(loc="upper right", fontsize=8)
        return svg(figure)


def training(history: TrainingHistory) -> str:
    """Loss, gradient of each loss and effective sample size over the training's wall time."""
    stages = list(dict.fromkeys(record["stage"] for record in history.steps))
    suffix = "_gradient_norm"
    losses_by_name = dict.fromkeys(
        key.removesuffix(suffix) for record in history.steps for key in record if key.endswith(suffix)
    )
    palette = ["#0b6bb0", "#c8531c", "#1a8f6b", "#8a5fb0", "#7b6a3a", "#5c6670"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 2.9), layout="constrained")
        left, *middle, right = figure.subplots(1, 3 if losses_by_name else 2)
        for axis in middle:
            for name in losses_by_name:
                records = [record for record in history.steps if f"{name}_gradient_norm" in record]
                norms = [record[f"{name}_gradient_norm"] for record in records]
                axis.plot([record["seconds"] for record in records], norms, linewidth=1.1, label=name.replace("_", " "))
            axis.set_yscale("log")
            axis.set_ylabel("norm of its gradient, before clipping")
            axis.legend(fontsize=8)
        for index, stage in enumerate(stages):
            records = [record for record in history.steps if record["stage"] == stage]
            seconds, loss = [r["seconds"] for r in records], [r["loss"] for r in records]
            left.plot(seconds, loss, color=palette[index % len(palette)], linewidth=1.1, label=stage)
        losses = np.array([record["loss"] for record in history.steps], dtype=np.float64)
        finite = losses[np.isfinite(losses)]
        if len(finite) > 20:
            low, high = np.quantile(finite, [0.0, 0.95])
            left.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))
        left.legend(fontsize=8)
        left.set_ylabel("loss")
        seconds = [record["seconds"] for record in history.evaluations]
        right.plot(seconds, [record["ess_fraction"] for record in history.evaluations], "o-", color=COLORS[GENERATOR])
        right.set_ylim(0.0, None)
        right.set_ylabel("ESS / N at the final temperature")
        for axis in (left, *middle, right):
            axis.set_xlabel("wall time (s)")
        return svg(figure)

"""Free energies by other estimators than MBAR, to hold it against: BAR, and exponential averages both ways."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import networkx as nx
import numpy as np
from scipy.special import logsumexp

from openmm_bg.analysis import mbar
from openmm_bg.analysis.differences import FreeEnergyDifference
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.timeseries import quiet_pymbar
from openmm_bg.density import FloatArray

_FEWEST_EFFECTIVE = 20.0  # samples behind an exponential average
_IMPOSSIBLE = 1e6  # kT, in place of an infinite work


def second_estimates(energies: ReducedEnergies, solution: mbar.Solution) -> tuple[FreeEnergyDifference, ...]:
    """Return differences between overlapping sampled states by BAR and by exponential averages in both directions.

    BAR is left out where two states only are sampled, for MBAR is then the same; an exponential average where the
    samples of both states say that it rests on too few of its own.
    """
    found = []
    log_w = mbar.log_weights(energies, solution.f_k)
    for i, j, _ in strongest_links(energies, solution.overlap):
        forward, reverse = (_work(energies, *pair) for pair in ((i, j), (j, i)))
        names = energies.names[i], energies.names[j]
        temperature = energies.temperatures[i] if energies.temperatures[i] == energies.temperatures[j] else math.nan
        if np.count_nonzero(energies.n_k) > 2:
            found.append(FreeEnergyDifference("BAR", *names, _bar(forward, reverse), float(temperature)))
        for start, end, work, sign, name in (
            (i, j, forward, 1.0, "EXP, forward"),
            (j, i, reverse, -1.0, "EXP, reverse"),
        ):
            if _effective(energies, solution, log_w, start, end) > _FEWEST_EFFECTIVE:
                found.append(FreeEnergyDifference(name, *names, _exponential(work, sign), float(temperature)))
    return tuple(found)


def strongest_links(energies: ReducedEnergies, overlap: FloatArray) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, overlap) of the strongest tree that joins the sampled states.

    The overlap is sqrt(O_ij O_ji), which does not depend on the numbers of samples.
    """
    graph = nx.Graph()
    for i, j in combinations(np.flatnonzero(energies.n_k > 0).tolist(), 2):
        graph.add_edge(i, j, weight=float(math.sqrt(max(overlap[i, j] * overlap[j, i], 0.0))))
    for i, j, link in nx.maximum_spanning_edges(graph):
        yield min(i, j), max(i, j), link["weight"]


def _work(energies: ReducedEnergies, start: int, end: int) -> FloatArray:
    samples = energies.own == start
    return np.asarray(energies.u_kn[end, samples] - energies.u_kn[start, samples])


def _effective(energies: ReducedEnergies, solution: mbar.Solution, log_w: FloatArray, start: int, end: int) -> float:
    """Effective number of samples of `start` in an average over `end`, N / <p_end / p_start>_end.

    The average is over all samples: those of `start` alone may miss the very ones that matter and not know it.
    """
    with np.errstate(invalid="ignore"):
        log_ratio = energies.u_kn[start] - energies.u_kn[end] + solution.f_k[end] - solution.f_k[start]
    heavy = np.isfinite(log_w[end])
    return float(energies.n_k[start] * np.exp(-logsumexp(log_w[end, heavy] + log_ratio[heavy])))


def _exponential(work: FloatArray, sign: float) -> Estimate:
    """-ln <exp(-w)> with the error of the delta method (Zwanzig, J. Chem. Phys. 22, 1420 (1954))."""
    log_mean = float(logsumexp(-work)) - math.log(len(work))
    relative = np.exp(-work - log_mean)
    return Estimate(-sign * log_mean, float(relative.std(ddof=1)) / math.sqrt(len(work)))


def _bar(forward: FloatArray, reverse: FloatArray) -> Estimate:
    """Bennett's acceptance ratio (J. Comput. Phys. 22, 245 (1976))."""
    with quiet_pymbar(), np.errstate(all="ignore"):
        from pymbar import bar
        from pymbar.utils import ParameterError

        try:
            found = bar(np.minimum(forward, _IMPOSSIBLE), np.minimum(reverse, _IMPOSSIBLE))
        except ParameterError:  # no root between its bounds: the two sets of samples do not overlap
            return Estimate(math.nan, math.nan)
    return Estimate(float(found["Delta_f"]), float(found["dDelta_f"]))

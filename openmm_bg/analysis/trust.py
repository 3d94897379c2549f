"""Whether free energies can be believed: the checks behind the verdict of a FreeEnergyResult."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike

from openmm_bg.analysis.checks import Check, Verdict, conclude, grade
from openmm_bg.analysis.differences import FreeEnergyDifference
from openmm_bg.analysis.mbar import Solution
from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.weights import PARETO_K_LIMIT
from openmm_bg.density import FloatArray

OVERLAP_ENOUGH, OVERLAP_LEAST = 0.03, 0.01
ESS_ENOUGH, ESS_LEAST = 100.0, 20.0


def judge_free_energy(
    energies: ReducedEnergies,
    solution: Solution,
    log_weights: FloatArray,
    ess: FloatArray,
    pareto_k: FloatArray,
    others: tuple[FreeEnergyDifference, ...],
    basins: Callable[[FloatArray], ArrayLike] | ArrayLike | None = None,
) -> Verdict:
    """Check an MBAR estimate and say whether it can be believed."""
    return conclude(
        [overlap_check(energies, solution.overlap), ess_check(energies, ess), tail_check(energies, pareto_k)]
    )


def second_estimates(energies: ReducedEnergies, solution: Solution) -> tuple[FreeEnergyDifference, ...]:
    """Return the differences of overlapping pairs of states by BAR and by exponential averages."""
    return ()


def overlap_check(energies: ReducedEnergies, overlap: FloatArray) -> Check:
    """Grade the weakest link of the strongest chain of overlaps that joins all sampled states."""
    sampled = np.flatnonzero(energies.n_k > 0)
    if len(sampled) < 2:
        return Check("overlap", "good", "One state is sampled; the weights of the others tell how far it reaches.")
    graph = nx.Graph()
    for i, j in combinations(sampled.tolist(), 2):
        graph.add_edge(i, j, weight=float(math.sqrt(overlap[i, j] * overlap[j, i])))
    tree = nx.maximum_spanning_tree(graph)
    i, j, weakest = min(tree.edges(data="weight"), key=lambda edge: edge[2])
    return Check(
        "overlap",
        grade(weakest, OVERLAP_ENOUGH, OVERLAP_LEAST),
        f"The weakest link between sampled states, {energies.names[i]!r} and {energies.names[j]!r}, overlaps by "
        f"{weakest:.2g}; from {OVERLAP_ENOUGH} on a difference can be trusted.",
    )


def ess_check(energies: ReducedEnergies, ess: FloatArray) -> Check:
    """Grade the smallest effective number of samples behind a state."""
    worst = int(np.argmin(ess))
    return Check(
        "effective samples",
        grade(float(ess[worst]), ESS_ENOUGH, ESS_LEAST),
        f"State {energies.names[worst]!r} rests on {ess[worst]:,.0f} effective samples of {energies.n_samples:,}.",
    )


def tail_check(energies: ReducedEnergies, pareto_k: FloatArray) -> Check:
    """Refuse weights whose tail is too heavy for any error to mean something."""
    worst = int(np.argmax(pareto_k))
    return Check(
        "tail of the weights",
        "good" if pareto_k[worst] <= PARETO_K_LIMIT else "bad",
        f"The largest Pareto k is {pareto_k[worst]:.2f}, that of {energies.names[worst]!r}; up to {PARETO_K_LIMIT} "
        "averages can be trusted.",
    )

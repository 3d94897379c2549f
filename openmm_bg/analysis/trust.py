"""Whether free energies can be believed: the checks behind the verdict of a FreeEnergyResult."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmm_bg.analysis import mbar
from openmm_bg.analysis.checks import Check, Verdict, conclude, grade, sigma_grade
from openmm_bg.analysis.differences import FreeEnergyDifference
from openmm_bg.analysis.estimate import Estimate, z_score
from openmm_bg.analysis.reduced_energies import INDEPENDENT, ReducedEnergies
from openmm_bg.analysis.second_estimators import strongest_links
from openmm_bg.analysis.weights import PARETO_K_LIMIT
from openmm_bg.density import FloatArray

# Klimovich, Shirts and Mobley, J. Comput. Aided Mol. Des. 29, 397 (2015), ask for 0.03 between neighbours.
OVERLAP_ENOUGH, OVERLAP_LEAST = 0.03, 0.01
ESS_ENOUGH, ESS_LEAST = 100.0, 20.0
_FEWEST_IN_HALF = 10
_CORRELATED = 2.0  # times the limit of independence: there errors are wrong by a factor of 1.7 or more
_NOISE = 20.0  # independent samples show an inefficiency of up to 1 + 20 / sqrt(n) by chance
_NOTHING = 1e-3  # a share too small to judge
_EXPECTED_VISITS = 4.0, 8.0  # Poisson: none at all is by chance in 2 % and in 0.03 % of all cases


def judge_free_energy(
    energies: ReducedEnergies,
    solution: mbar.Solution,
    log_weights: FloatArray,
    ess: FloatArray,
    tails: FloatArray,
    others: tuple[FreeEnergyDifference, ...],
    basins: Callable[[FloatArray], ArrayLike] | ArrayLike | None = None,
) -> Verdict:
    """Check an MBAR estimate and say whether it can be believed.

    Parameters
    ----------
    energies : ReducedEnergies
    solution : Solution
    log_weights : ndarray, shape (K, N)
        Of all samples in all states.
    ess, tails : ndarray, shape (K,)
        Effective sample sizes and Pareto k of the weights.
    others : tuple of FreeEnergyDifference
        What other estimators say.
    basins : callable or array_like of int, shape (N,), optional
        Basin of each sample.
    """
    checks = [
        overlap_check(energies, solution.overlap),
        ess_check(energies, ess),
        tail_check(energies, tails),
        agreement_check(energies, solution, others),
        independence_check(energies),
        drift_check(energies, solution),
        *consistency_checks(energies, log_weights),
        *known_checks(energies, solution),
    ]
    if basins is not None:
        checks.append(basin_check(energies, log_weights, _labels(energies, basins)))
    return conclude(checks)


def overlap_check(energies: ReducedEnergies, overlap: FloatArray) -> Check:
    """Grade the weakest link of the strongest tree of overlaps that joins all sampled states."""
    links = list(strongest_links(energies, overlap))
    if not links:
        return Check("overlap", "good", "One state is sampled; the tail of the weights tells how far it reaches.")
    i, j, weakest = min(links, key=lambda link: link[2])
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


def tail_check(energies: ReducedEnergies, tails: FloatArray) -> Check:
    """Refuse weights whose tail is too heavy for any error to mean something."""
    worst = int(np.argmax(tails))
    return Check(
        "tail of the weights",
        "good" if tails[worst] <= PARETO_K_LIMIT else "bad",
        f"The largest Pareto k is {tails[worst]:.2f}, that of {energies.names[worst]!r}; up to {PARETO_K_LIMIT} "
        "averages can be trusted.",
    )


def agreement_check(
    energies: ReducedEnergies, solution: mbar.Solution, others: tuple[FreeEnergyDifference, ...]
) -> Check:
    """Grade the largest difference between MBAR and another estimator."""
    name = "estimators agree"
    if not others:
        return Check(name, "warning", "No second estimator could be applied, so nothing confirms the numbers.")
    scores = []
    for other in others:
        i, j = energies.index(other.start), energies.index(other.end)
        own = Estimate(float(solution.f_k[j] - solution.f_k[i]), float(solution.errors[i, j]))
        scores.append((abs(z_score(own, other.reduced)), own, other))
    if any(math.isnan(score) for score, _, _ in scores):
        return Check(name, "bad", "The error of an estimator is unknown, so nothing confirms the numbers.")
    score, own, other = max(scores, key=lambda entry: entry[0])
    return Check(
        name,
        sigma_grade(score, len(scores)),
        f"From {other.start!r} to {other.end!r} MBAR gives {own} kT and {other.method} {other.reduced} kT, "
        f"{score:.1f} standard errors apart.",
    )


def independence_check(energies: ReducedEnergies) -> Check:
    """Find samples that are correlated although they count as independent."""
    worst = (0.0, 1.0, INDEPENDENT, "")
    for samples, g in zip(energies.chain_slices(), energies.remaining_inefficiencies, strict=True):
        limit = max(INDEPENDENT, 1.0 + _NOISE / math.sqrt(samples.stop - samples.start))
        worst = max(worst, (g / limit, g, limit, energies.names[int(energies.own[samples.start])]))
    excess, g, limit, name = worst
    return Check(
        "independent samples",
        "good" if excess <= 1.0 else "warning" if excess <= _CORRELATED else "bad",
        f"The samples of {name!r} that were used have a statistical inefficiency of {g:.1f}; up to {limit:.1f} they "
        "count as independent.",
    )


def drift_check(energies: ReducedEnergies, solution: mbar.Solution) -> Check:
    """Compare the estimates from the first and from the second half of every chain."""
    halves: list[list[NDArray[np.int64]]] = [[], []]
    for samples in energies.chain_slices():
        middle = (samples.start + samples.stop) // 2
        halves[0].append(np.arange(samples.start, middle))
        halves[1].append(np.arange(middle, samples.stop))
    parts = [np.concatenate(half) for half in halves]
    if (
        min(int(np.bincount(energies.own[part], minlength=energies.n_states)[energies.n_k > 0].min()) for part in parts)
        < _FEWEST_IN_HALF
    ):
        return Check("both halves agree", "warning", "The chains are too short to compare their halves.")
    first, second = (mbar.solve_part(energies.take(part), solution.f_k) for part in parts)
    difference = first - second
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.abs(difference[None, :] - difference[:, None]) / (2.0 * solution.errors)
    # Each half has an error larger by sqrt(2) than the whole, their difference one larger by 2.
    scores = np.where(solution.errors > 0.0, scores, 0.0)
    if np.isnan(scores).any():
        return Check("both halves agree", "bad", "Half of the samples is not enough to estimate every difference.")
    i, j = divmod(int(np.argmax(scores)), energies.n_states)
    return Check(
        "both halves agree",
        sigma_grade(float(scores[i, j]), energies.n_states - 1),
        f"From {energies.names[i]!r} to {energies.names[j]!r} the first half gives {first[j] - first[i]:.3f} kT and "
        f"the second {second[j] - second[i]:.3f} kT, {scores[i, j]:.1f} standard errors apart.",
    )


def consistency_checks(energies: ReducedEnergies, log_weights: FloatArray) -> list[Check]:
    """Ask whether the samples of each state are where the others say that they should be.

    The share of state k's weight on samples of state l must be the overlap of both, N_l sum_n W_nk W_nl. It is not if a
    chain lost a basin that another state visits, or was sampled at another temperature or with another potential.
    """
    sampled = np.flatnonzero(energies.n_k > 0)
    if len(sampled) < 2:
        return []
    weights, own = np.exp(log_weights), energies.own
    worst, n_tests = (0.0, 0, 0), 0
    for k in sampled.tolist():
        for m in sampled.tolist():
            terms = weights[k] * ((own == m) - energies.n_k[m] * weights[m])
            share = float(weights[k, own == m].sum())
            if min(share, 1.0 - share) < _NOTHING:
                continue
            variance = sum(energies.n_k[s] * float(terms[own == s].var()) for s in sampled.tolist())
            n_tests += 1
            worst = max(worst, (abs(float(terms.sum())) / math.sqrt(variance), k, m))
    if n_tests == 0:
        return []
    score, k, m = worst
    return [
        Check(
            "samples follow their states",
            sigma_grade(score, n_tests),
            f"The share of {energies.names[k]!r} on the samples of {energies.names[m]!r} differs by {score:.1f} "
            "standard errors from what their energies predict; a lost basin or a wrong temperature shows here.",
        )
    ]


def known_checks(energies: ReducedEnergies, solution: mbar.Solution) -> list[Check]:
    """Compare the estimated difference of two normalised densities with the known one."""
    known = np.flatnonzero(np.isfinite(energies.known))
    scores = []
    for i, j in combinations(known.tolist(), 2):
        estimate = Estimate(float(solution.f_k[j] - solution.f_k[i]), float(solution.errors[i, j]))
        exact = Estimate(float(energies.known[j] - energies.known[i]), 0.0)
        scores.append((abs(z_score(estimate, exact)), i, j))
    if not scores:
        return []
    score, i, j = max(scores)
    names = f"{energies.names[i]!r} and {energies.names[j]!r}"
    text = f"The densities {names} are both normalised; their difference is off by {score:.1f} standard errors."
    return [Check("densities are normalised", sigma_grade(score, len(scores)), text)]


def basin_check(energies: ReducedEnergies, log_weights: FloatArray, labels: NDArray[np.int64]) -> Check:
    """Find basins that the samples of a state should have visited and have not."""
    worst = (0.0, "", 0)
    for k in np.flatnonzero(energies.n_k > 0).tolist():
        for basin in np.unique(labels):
            inside = labels == basin
            if not np.any(inside & (energies.own == k)):
                expected = float(energies.n_k[k] * np.exp(log_weights[k, inside]).sum())
                worst = max(worst, (expected, energies.names[k], int(basin)))
    expected, name, basin = worst
    if expected < _EXPECTED_VISITS[0]:
        return Check("no basin is lost", "good", "Every state has samples in every basin in which it should have some.")
    return Check(
        "no basin is lost",
        "warning" if expected < _EXPECTED_VISITS[1] else "bad",
        f"State {name!r} has no sample in basin {basin}, where {expected:.0f} were to be expected.",
    )


def _labels(energies: ReducedEnergies, basins: Callable[[FloatArray], ArrayLike] | ArrayLike) -> NDArray[np.int64]:
    if callable(basins):
        if energies.positions is None:
            raise ValueError("the energies came without positions; give the basin of every sample as an array")
        basins = basins(energies.positions)
    labels = np.asarray(basins)
    if labels.shape == (energies.n_original,):
        labels = labels[energies.kept]
    if labels.shape != (energies.n_samples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"basins have shape {labels.shape} and type {labels.dtype}; expected one whole number for each of the "
            f"{energies.n_samples} samples that were used"
        )
    return labels.astype(np.int64)

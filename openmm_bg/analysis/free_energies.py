"""Free energies by MBAR over any mixture of molecular dynamics, replica exchange and generator samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from openmm_bg.analysis import mbar
from openmm_bg.analysis.free_energy_result import FreeEnergyResult
from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.sampled_states import evaluate
from openmm_bg.analysis.second_estimators import second_estimates
from openmm_bg.analysis.states import State
from openmm_bg.analysis.trust import judge_free_energy
from openmm_bg.analysis.weights import pareto_k
from openmm_bg.density import FloatArray

logger = logging.getLogger(__name__)

N_BOOTSTRAP = 100


def free_energy(
    energies: ReducedEnergies | Sequence[State],
    samples: Mapping[str, Any] | None = None,
    *,
    decorrelate: bool = True,
    independent: Sequence[str] = (),
    n_bootstrap: int = N_BOOTSTRAP,
    basins: Callable[[FloatArray], ArrayLike] | ArrayLike | None = None,
    rng: np.random.Generator | int | None = 0,
) -> FreeEnergyResult:
    """Estimate the free energies of states by MBAR, with errors and a verdict.

    Parameters
    ----------
    energies : ReducedEnergies, or sequence of EnergyState and GeneratorState
        The input, or the states in which `samples` are to be evaluated.
    samples : mapping of str to samples, optional
        Samples of the states by name, as of `evaluate`; with states only.
    decorrelate : bool
        Whether to leave out correlated samples, by the statistical inefficiency of each chain.
    independent : sequence of str
        States whose samples were drawn independently although they do not come as `Samples`; with states only. It is
        checked.
    n_bootstrap : int
        Number of resamples by blocks within chains; 0 leaves the asymptotic errors alone.
    basins : callable or array_like of int, shape (N,), optional
        Label of the basin that each sample is in, or a function of positions that gives it: with it, a basin that the
        samples of a state should have visited and have not is found out.
    rng : Generator, int or None
        Source of the resamples.

    Returns
    -------
    FreeEnergyResult
        Look at its `verdict`; a refusal is logged as a warning too.

    Raises
    ------
    ValueError
        For input that cannot be used; see `ReducedEnergies` and `evaluate`.
    """
    if not isinstance(energies, ReducedEnergies):
        if samples is None:
            raise ValueError("states were given without samples; give samples={name of a state: positions, ...}")
        energies = evaluate(list(energies), samples, independent=independent, decorrelate=False)
    elif samples is not None or independent:
        raise ValueError("samples and their independence belong to states; ReducedEnergies hold their samples already")
    if decorrelate:
        energies = energies.decorrelate()
    if n_bootstrap < 0:
        raise ValueError(f"n_bootstrap is {n_bootstrap}; give 0 or more")
    seed = int(np.random.default_rng(rng).integers(2**31))
    solution = mbar.solve(energies)
    f_boot = np.empty((n_bootstrap, energies.n_states))
    u_boot = np.empty_like(f_boot)
    for b, counts in enumerate(energies.resamples(n_bootstrap, seed)):
        f_boot[b] = mbar.solve_resample(energies, solution.f_k, counts)
        u_boot[b] = _mean_u(energies, mbar.log_weights(energies, f_boot[b], counts))
    log_w = mbar.log_weights(energies, solution.f_k)
    others = second_estimates(energies, solution)
    ess = np.exp(-logsumexp(2.0 * log_w, axis=1))
    tails = np.array([pareto_k(row) for row in log_w])
    verdict = judge_free_energy(energies, solution, log_w, ess, tails, others, basins)
    if verdict.refused:
        logger.warning("%s", verdict.sentence)
    for check in verdict.checks:
        if check.status != "good":
            logger.warning("%s: %s", check.name, check.text)
    return FreeEnergyResult(
        "MBAR", tuple(energies.names), energies.temperatures, energies.n_k, solution.f_k, solution.errors, f_boot,
        solution.overlap, ess, tails, _mean_u(energies, log_w), u_boot, energies.known, energies.measure, others,
        verdict, energies, seed,
    )  # fmt: skip


def _mean_u(energies: ReducedEnergies, log_w: FloatArray) -> FloatArray:
    """Average of each state's own reduced potential, shape (K,)."""
    weights = np.exp(log_w)
    return np.asarray(np.sum(weights * np.where(weights > 0.0, energies.u_kn, 0.0), axis=1))

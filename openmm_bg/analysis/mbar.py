"""The multistate Bennett acceptance ratio: pymbar's solution, and a quick one for resamples near it.

Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008). In reduced units

    f_k = -ln sum_n exp(-u_kn) / sum_l N_l exp(f_l - u_ln).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.timeseries import quiet_pymbar
from openmm_bg.density import FloatArray

_MOST_STEPS = 50
_CONVERGED = 1e-9  # kT, far below any statistical error
_SHORTEST_STEP = 2.0**-20


@dataclass(frozen=True)
class Solution:
    """What MBAR says of K states.

    Attributes
    ----------
    f_k : ndarray, shape (K,)
        Reduced free energies, that of the first state zero.
    errors : ndarray, shape (K, K)
        Asymptotic standard errors of the differences f_j - f_i.
    overlap : ndarray, shape (K, K)
        Probability that a sample of state i is assigned to state j; rows sum to one over the sampled states.
    """

    f_k: FloatArray
    errors: FloatArray
    overlap: FloatArray


def solve(energies: ReducedEnergies) -> Solution:
    """Solve MBAR by pymbar's robust protocol.

    Raises
    ------
    ValueError
        If no sample has a finite energy in one of the states, or pymbar finds no solution.
    """
    empty = ~np.isfinite(energies.u_kn).any(axis=1)
    if empty.any():
        raise ValueError(
            f"none of the {energies.n_samples} samples has a finite energy in state "
            f"{energies.names[int(np.argmax(empty))]!r}: nothing is known of it; sample it, or states between"
        )
    with quiet_pymbar(), np.errstate(all="ignore"):
        import pymbar

        try:
            mbar: Any = pymbar.MBAR(energies.u_kn, energies.n_k, solver_protocol="robust")
            found = mbar.compute_free_energy_differences()
            overlap = mbar.compute_overlap()["matrix"]
        except (pymbar.utils.ParameterError, np.linalg.LinAlgError) as error:
            raise ValueError(
                f"MBAR found no solution for the states {list(energies.names)} ({error}); do their samples overlap?"
            ) from error
    f_k = np.asarray(mbar.f_k, dtype=np.float64)
    return Solution(
        f_k - f_k[0], np.asarray(found["dDelta_f"], dtype=np.float64), np.asarray(overlap, dtype=np.float64)
    )


def log_denominator(energies: ReducedEnergies, f_k: FloatArray, n_k: NDArray[Any] | None = None) -> FloatArray:
    """Return ln sum_l N_l exp(f_l - u_l(x_n)), shape (N,): the mixture that the samples are from."""
    counts = energies.n_k if n_k is None else n_k
    sampled = counts > 0
    exponents = f_k[sampled, None] - energies.u_kn[sampled]
    return np.asarray(logsumexp(exponents, axis=0, b=counts[sampled, None]))


def log_weights(energies: ReducedEnergies, f_k: FloatArray, multiplicities: NDArray[Any] | None = None) -> FloatArray:
    """Logarithms of normalised weights of the samples, or of a resample of them, in every state, shape (K, N)."""
    if multiplicities is None:
        log_w = -energies.u_kn - log_denominator(energies, f_k)
    else:
        with np.errstate(divide="ignore"):
            log_counts = np.log(multiplicities)
        log_w = log_counts - energies.u_kn - log_denominator(energies, f_k, _counts(energies, multiplicities))
    normalised: FloatArray = log_w - logsumexp(log_w, axis=1, keepdims=True)
    return normalised


def _counts(energies: ReducedEnergies, multiplicities: NDArray[Any]) -> FloatArray:
    counts = np.bincount(energies.own, weights=multiplicities, minlength=energies.n_states)
    return counts.astype(np.float64)


def solve_resample(energies: ReducedEnergies, start: FloatArray, multiplicities: NDArray[np.int64]) -> FloatArray:
    """Return f_k of a resample by Newton's method from the solution of the whole sample.

    Parameters
    ----------
    start : ndarray, shape (K,)
        Solution of the whole sample.
    multiplicities : ndarray of int, shape (N,)
        How often each sample occurs.

    Returns
    -------
    ndarray, shape (K,)
        That of the first state zero; NaN where a state has no sample of finite energy in the resample.
    """
    sampled = np.flatnonzero(energies.n_k > 0)
    chosen = multiplicities > 0
    n_k = _counts(energies, multiplicities)
    u, n, c = energies.u_kn[np.ix_(sampled, chosen)], n_k[sampled], multiplicities[chosen]

    def objective(f: FloatArray) -> float:
        return float(c @ logsumexp(f[:, None] - u, axis=0, b=n[:, None]) - n @ f)

    f = start[sampled]
    value = objective(f)
    for _ in range(_MOST_STEPS):
        log_p = np.log(n)[:, None] + f[:, None] - u
        p = np.exp(log_p - logsumexp(log_p, axis=0))
        gradient = p @ c - n
        hessian = np.diag(p @ c) - (p * c) @ p.T
        step = -np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
        step -= step[0]
        scale = 1.0
        while (trial := objective(f + scale * step)) > value + 1e-12 * abs(value) and scale > _SHORTEST_STEP:
            scale *= 0.5
        f, value = f + scale * step, trial
        if scale * np.abs(step).max() < _CONVERGED:
            break
    complete: FloatArray = np.array(start)
    complete[sampled] = f
    log_w = -energies.u_kn[:, chosen] - log_denominator(energies, complete, n_k)[chosen]
    result: FloatArray = -logsumexp(log_w, axis=1, b=c)
    result[~np.isfinite(result)] = np.nan
    return result - result[0]


def solve_part(energies: ReducedEnergies, start: FloatArray) -> FloatArray:
    """Return f_k of a part of the samples from the solution of the whole, by `solve_resample`."""
    return solve_resample(energies, start, np.ones(energies.n_samples, dtype=np.int64))

"""Independence Metropolis steps with proposals from a normalised density, drawn and evaluated in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmm_bg.density import FloatArray, Proposals
from openmm_bg.moves.energies import ContextEnergies


@dataclass(frozen=True)
class Scan:
    """What happened in one application of a kernel: K proposals, and the K states of the chain.

    `positions`, `reduced_potential`, `log_prob` and `log_weight` have K + 1 rows: row 0 is the state that the scan
    started from, rows 1 to K are the proposals. Every state of the chain is a sample of the target, also where it
    repeats: `scan.positions[scan.chain]`.

    Attributes
    ----------
    positions : ndarray, shape (K + 1, n_atoms, 3)
        In nm; NaN where the density proposed none.
    reduced_potential : ndarray, shape (K + 1,)
        U/kT; +inf where the energy is not finite or, off the support, was not asked for.
    log_prob : ndarray, shape (K + 1,)
        Log density of the proposal density; -inf off its support.
    log_weight : ndarray, shape (K + 1,)
        What the acceptances compared: -reduced_potential - log_prob, -inf for a proposal that can not be accepted, +inf
        for a start off the support.
    chain : ndarray of int, shape (K,)
        Row that holds the chain's state after each step.
    """

    positions: FloatArray
    reduced_potential: FloatArray
    log_prob: FloatArray
    log_weight: FloatArray
    chain: NDArray[np.int64]

    @property
    def n_proposed(self) -> int:
        """Number of proposals, K."""
        return len(self.chain)

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Whether each proposal was accepted, shape (K,)."""
        accepted: NDArray[np.bool_] = self.chain == np.arange(1, len(self.chain) + 1)
        return accepted

    @property
    def origin(self) -> NDArray[np.int64]:
        """Row of the state from which each proposal was judged, shape (K,)."""
        return np.concatenate([[0], self.chain[:-1]])

    @property
    def n_accepted(self) -> int:
        """Number of accepted proposals."""
        return int(self.accepted.sum())

    @property
    def work(self) -> FloatArray:
        """Reduced work of turning the proposal density into the target along each row's path, shape (K + 1,).

        Row 0 has the work of the path that ends in the start. An independence proposal has no path: its work is that
        of a sudden change, reduced_potential + log_prob.
        """
        return -self.log_weight

    @property
    def n_off_support(self) -> int:
        """Number of proposals without a finite log density, all rejected."""
        return int((~np.isfinite(self.log_prob[1:])).sum())

    @property
    def n_nonfinite_energy(self) -> int:
        """Number of proposals on the support without a finite energy, all rejected."""
        return int((np.isfinite(self.log_prob[1:]) & ~np.isfinite(self.reduced_potential[1:])).sum())

    @property
    def moved(self) -> bool:
        """Whether the last state of the chain is a proposal, and not the state that the scan started from."""
        return bool(self.chain[-1] != 0)

    @property
    def start_off_support(self) -> bool:
        """Whether the scan started, and so stayed, at a state that the density can not propose."""
        return not np.isfinite(self.log_prob[0])


@dataclass(frozen=True)
class Independence:
    """A scan of independence Metropolis steps: proposals do not depend on the current state.

    All `n_proposals` are drawn in one batch, evaluated, and then judged in turn: with w = exp(-u - log_prob), a
    proposal replaces the current state with probability min(1, w(new)/w(current)). The log densities of the current
    state and of all proposals come from one call. A proposal without a finite log density or energy is rejected; a
    current state without a finite log density is kept: restricted to the support the step is reversible, off it
    nothing moves.

    Parameters
    ----------
    n_proposals : int
        Proposals per application of the move.

    Raises
    ------
    ValueError
        If `n_proposals` is not a positive integer.

    Notes
    -----
    Tierney, Ann. Statist. 22, 1701 (1994), section 2.3.3.
    """

    n_proposals: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.n_proposals, int | np.integer) or self.n_proposals < 1:
            raise ValueError(f"n_proposals must be a positive integer, but is {self.n_proposals!r}.")
        object.__setattr__(self, "n_proposals", int(self.n_proposals))

    def scan(
        self,
        density: Proposals,
        current: FloatArray,
        place: Callable[[FloatArray], FloatArray],
        energies: ContextEnergies,
        rng: np.random.Generator,
    ) -> Scan:
        """Draw, evaluate and judge one batch of proposals.

        Parameters
        ----------
        density : Proposals
        current : ndarray, shape (n_atoms, 3)
            Finite positions in nm.
        place : callable
            Brings finite proposals, (n, n_atoms, 3), into the pose in which they are judged.
        energies : ContextEnergies
            Of the thermodynamic state.
        rng : numpy.random.Generator
        """
        positions = np.concatenate([current[None], density.sample(self.n_proposals, rng=rng).positions])
        proposed = np.isfinite(positions).all(axis=(1, 2))
        proposed[0] = False
        positions[proposed] = place(positions[proposed])
        positions[1:][~proposed[1:]] = np.nan

        known = proposed.copy()
        known[0] = True
        log_prob = np.full(len(positions), -np.inf)
        log_prob[known] = density.log_prob(positions[known])
        log_prob[~np.isfinite(log_prob)] = -np.inf

        on_support = np.isfinite(log_prob)
        evaluated = on_support.copy()
        evaluated[0] = True
        potential = np.full(len(positions), np.inf)
        configurations = positions[evaluated]
        potential[evaluated] = energies.reduced_potential(configurations)
        positions[evaluated] = configurations  # with the virtual sites that the energy was computed at

        log_weight = np.where(on_support & np.isfinite(potential), self._log_weight(potential, log_prob), -np.inf)
        if not on_support[0]:
            log_weight[0] = np.inf
        return Scan(positions, potential, log_prob, log_weight, metropolis_chain(log_weight, rng))

    def _log_weight(self, reduced_potential: FloatArray, log_prob: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):  # +inf - inf at rows that `scan` sets
            return -reduced_potential - log_prob


def metropolis_chain(log_weight: FloatArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Chain of rows that starts at row 0 and is offered rows 1, 2, ... in turn, each with probability min(1, ratio)."""
    n_proposals = len(log_weight) - 1
    log_uniform = -rng.standard_exponential(n_proposals)
    chain = np.empty(n_proposals, dtype=np.int64)
    current = 0
    for step in range(n_proposals):
        proposal = step + 1
        # Spelt out for the infinities, whose difference is not a number.
        if log_weight[proposal] > -np.inf and log_uniform[step] < log_weight[proposal] - log_weight[current]:
            current = proposal
        chain[step] = current
    return chain

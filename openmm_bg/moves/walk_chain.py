"""The proposals of a latent walk, one row after the other, each judged from the state that the chain is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import openmm
from numpy.typing import NDArray

from openmm_bg.density import FloatArray, LatentProposals
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.independence import Scan, metropolis_chain
from openmm_bg.moves.latent_blocks import BLOCKS, REDRAWN

CLOSED = 1e-3  # how far a latent may be from where a round trip through positions takes it, per unit of its size


@runtime_checkable
class Encoder(Protocol):
    """A density that finds latents and log densities together."""

    def encode(self, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """`to_latent` and `log_prob` of configurations in nm, shape (n, n_atoms, 3)."""
        ...


@dataclass(frozen=True)
class WalkScan(Scan):
    """A scan of a latent walk: each proposal depends on the state from which it was judged, row `origin`.

    The acceptances compared `log_weight` and, for steps on circles of a base that is not uniform, the log density of
    the base of these circles. The rows 1 to K are no independent draws from the generator, and `work` is not that of
    such draws, except where `kind` is "independence".

    Attributes
    ----------
    kind : ndarray of str, shape (K,)
        The block that each proposal moved: a name of `LatentWalk.blocks`, or "independence".
    """

    kind: NDArray[np.str_]


class WalkChain:
    """Rows of a scan as they come to be, and the latents of the state that the chain is in."""

    def __init__(
        self,
        density: LatentProposals,
        current: FloatArray,
        place: Callable[[FloatArray], FloatArray],
        energies: ContextEnergies,
        n_proposals: int,
    ) -> None:
        self._density, self._place, self._energies = density, place, energies
        n = n_proposals + 1
        self._positions = np.full((n, *current.shape), np.nan)
        self._positions[0] = current
        self._potential = np.full(n, np.inf)
        self._log_prob = np.full(n, -np.inf)
        self._log_weight = np.full(n, -np.inf)
        self._chain = np.zeros(n_proposals, dtype=np.int64)
        self._kind = np.full(n_proposals, "independence", dtype=f"<U{max(map(len, (*BLOCKS, *REDRAWN)))}")
        self._next, self._row = 1, 0

        latents, log_prob = self._encoded(current[None])
        self._potential[:1] = energies.reduced_potential(self._positions[:1])
        if np.isfinite(latents).all() and np.isfinite(self._densities(latents)[1][0]):
            self._log_prob[0] = log_prob[0] if np.isfinite(log_prob[0]) else -np.inf
        self.on_support = bool(np.isfinite(self._log_prob[0]))
        self.latents: FloatArray = latents[0]
        self._weigh(slice(0, 1))
        if not self.on_support:
            self._log_weight[0] = np.inf

    def skip(self, kind: str, count: int) -> None:
        """Reject proposals that cannot be made."""
        self._kind[self._next - 1 : self._next - 1 + count] = kind
        self._next += count

    def judge_in_turn(self, latents: FloatArray, kind: str, rng: np.random.Generator) -> None:
        """Judge proposals, shape (n, n_dof), that do not depend on which of the block's states the chain is in."""
        rows = slice(self._next, self._next + len(latents))
        self.skip(kind, len(latents))
        self._positions[rows], self._log_prob[rows] = self._densities(latents)
        self._evaluate(rows)
        log_weight = np.concatenate([self._log_weight[[self._row]], self._log_weight[rows]])
        chain = metropolis_chain(log_weight, rng)
        self._chain[rows.start - 1 : rows.stop - 1] = np.where(chain == 0, self._row, rows.start - 1 + chain)
        if chain[-1] > 0:
            self._row, self.latents = int(rows.start - 1 + chain[-1]), latents[chain[-1] - 1]

    def judge_until_accepted(
        self, latents: FloatArray, log_base_ratio: FloatArray, kind: str, rng: np.random.Generator
    ) -> int:
        """Judge proposals from the present state, shape (n, n_dof), up to the first that is accepted; how many."""
        return self._judge(*self._densities(latents), latents, log_base_ratio, kind, rng)

    def judge_turned(self, positions: FloatArray, kind: str, rng: np.random.Generator) -> int:
        """Judge configurations, shape (n, n_atoms, 3), that a reversible motion made of the present one.

        It preserves volumes, so that energies alone decide. What the density does not have is rejected: no other move
        of the walk would lead away from it. As `judge_until_accepted` otherwise.
        """
        latents, log_prob = self._encoded(positions)
        usable = np.isfinite(latents).all(axis=1) & np.isfinite(log_prob)
        log_prob = np.where(usable, log_prob, -np.inf)
        return self._judge(
            positions, log_prob, latents, log_prob - self._log_prob[self._row], kind, rng, from_latents=False
        )

    def _judge(
        self,
        positions: FloatArray,
        log_prob: FloatArray,
        latents: FloatArray,
        log_ratio: FloatArray,
        kind: str,
        rng: np.random.Generator,
        *,
        from_latents: bool = True,
    ) -> int:
        """Judge proposals in turn by weights and a ratio that is added to their logarithms, up to one accepted."""
        start, n = self._next, len(latents)
        n_known = n if self._energies.batched else 1
        rows = slice(start, start + n)
        self._positions[rows], self._log_prob[rows] = positions, log_prob
        self._potential[rows], self._log_weight[rows] = np.inf, -np.inf  # not those of proposals that were not judged
        for i in range(n):
            row = slice(start + i, start + i + 1)
            self.skip(kind, 1)
            if i % n_known == 0:
                self._evaluate(slice(start + i, start + i + n_known))
            pair = np.array([self._log_weight[self._row], self._log_weight[row.start] + log_ratio[i]])
            accepted = metropolis_chain(pair, rng)[0] == 1
            if accepted and not from_latents and not np.isfinite(self._densities(latents[i : i + 1])[1][0]):
                accepted, self._log_prob[row], self._log_weight[row] = False, -np.inf, -np.inf
            if accepted:
                self._row, self.latents = row.start, latents[i]
            self._chain[row.start - 1] = self._row
            if accepted:
                return i + 1
        return n

    @property
    def positions(self) -> FloatArray:
        """Configuration of the state that the chain is in, shape (n_atoms, 3)."""
        return self._positions[self._row]

    def scan(self) -> WalkScan:
        """All rows."""
        return WalkScan(
            self._positions, self._potential, self._log_prob, self._log_weight, self._chain, kind=self._kind
        )

    def _densities(self, latents: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Configurations of latents, placed, and their log densities by the inverse pass.

        A configuration that has other latents than those that it was made from has no way back: the log density is
        -inf, which rejects it.
        """
        positions = self._density.from_latent(latents)
        finite = np.isfinite(positions).all(axis=(1, 2))
        log_prob = np.full(len(latents), -np.inf)
        positions[~finite] = np.nan
        if finite.any():
            positions[finite] = self._place(positions[finite])
            back, found = self._encoded(positions[finite])
            closed = self._closed(latents[finite], back)
            log_prob[finite] = np.where(closed & np.isfinite(found), found, -np.inf)
        return positions, log_prob

    def _encoded(self, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Latents and log densities of configurations, by one inverse pass where the density can."""
        if isinstance(self._density, Encoder):
            return self._density.encode(positions)
        return self._density.to_latent(positions), self._density.log_prob(positions)

    def _closed(self, latents: FloatArray, back: FloatArray) -> NDArray[np.bool_]:
        difference = back - latents
        circles = difference[:, : self._density.base.n_circles]
        circles[...] = np.remainder(circles + np.pi, 2.0 * np.pi) - np.pi
        largest: FloatArray = (np.abs(difference) / (1.0 + np.abs(latents))).max(axis=1)
        return largest <= CLOSED  # NaN, off the support, is not

    def _evaluate(self, rows: slice) -> None:
        """Energies of rows on the support, and the weights of all."""
        known = np.flatnonzero(np.isfinite(self._log_prob[rows])) + rows.start
        if len(known):
            configurations = self._positions[known]
            try:
                self._potential[known] = self._energies.reduced_potential(configurations)
            except openmm.OpenMMException:  # every one of these few clashes; the Context gave the first state's energy
                self._potential[known] = np.inf
            else:
                self._positions[known] = configurations  # with the virtual sites that the energy was computed at
        self._weigh(rows)

    def _weigh(self, rows: slice) -> None:
        potential, log_prob = self._potential[rows], self._log_prob[rows]
        known = np.isfinite(potential) & np.isfinite(log_prob)
        self._log_weight[rows][known] = -potential[known] - log_prob[known]

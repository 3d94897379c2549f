"""Annealed proposals for a solute in its solvent: the solute is drawn anew, the solvent makes room for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openmm
from numpy.typing import NDArray

from openmm_bg.density import FloatArray, ProposalDensity
from openmm_bg.moves.annealed import Annealed
from openmm_bg.moves.coupling import Coupling, Ride
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.independence import Scan, metropolis_chain
from openmm_bg.moves.pose import superposition


@dataclass(frozen=True)
class SolvatedScan(Scan):
    """A scan of paths that couple a solute to its solvent; positions are those of all particles.

    `log_prob` is the density of the solute where each path has its lower end, uncoupled; `work` is as for
    `AnnealedScan`, up to a constant of the scan that belongs to the solvent.

    Attributes
    ----------
    velocities : ndarray, shape (K + 1, n_particles, 3)
        At the upper end of each path, nm/ps.
    """

    velocities: FloatArray


class SolvatedPaths:
    """Paths of one scan, up from draws of the solute and down from the current state.

    All share the uncoupled solvent, and the place and orientation of the solute in it, at their lower ends: those where
    the path of the current state arrives.

    Parameters
    ----------
    kernel : Annealed
    density : ProposalDensity
        Of the solute.
    atoms : ndarray of int
        The solute's particles, in the density's order.
    coupling : Coupling
    energies : ContextEnergies
        Of the thermodynamic state.
    rng : numpy.random.Generator
    """

    def __init__(
        self,
        kernel: Annealed,
        density: ProposalDensity,
        atoms: Sequence[int],
        coupling: Coupling,
        energies: ContextEnergies,
        rng: np.random.Generator,
    ) -> None:
        self.kernel = kernel
        self.density = density
        self.atoms = np.asarray(atoms, dtype=int)
        self.coupling = coupling
        self.energies = energies
        self.rng = rng
        self._failure: openmm.OpenMMException | None = None

    def scan(self, current: FloatArray, velocities: FloatArray | None) -> SolvatedScan:
        """Make and judge the paths of one application.

        Parameters
        ----------
        current : ndarray, shape (n_particles, 3)
            In nm.
        velocities : ndarray, shape (n_particles, 3), or None
            In nm/ps; None to draw those that the path of the current state begins with.

        Raises
        ------
        openmm.OpenMMException
            If the dynamics of every path fails.
        """
        n, kT = self.kernel.n_proposals, self.energies.kT
        positions, ends = np.full((n + 1, *current.shape), np.nan), np.zeros((n + 1, *current.shape))
        log_prob, rest = np.full(n + 1, -np.inf), np.full(n + 1, np.nan)
        positions[0] = current
        if velocities is not None:
            ends[0] = velocities
        down = self._ride(current, None if velocities is None else -velocities, self.kernel.levels[-2:0:-1])
        if down is not None:
            rest[0] = (down.kinetic_before - down.kinetic_after + down.heat) / kT
            starts, drawn = self._starts(down.positions)
            log_prob[drawn] = self.density.log_prob(starts[drawn][:, self.atoms])
            log_prob[~np.isfinite(log_prob)] = -np.inf
            for row in 1 + np.flatnonzero(np.isfinite(log_prob[1:])):
                up = self._ride(starts[row], None, self.kernel.levels[1:-1])
                if up is not None:
                    positions[row], ends[row] = up.positions, up.velocities
                    rest[row] = (up.kinetic_after - up.kinetic_before - up.heat) / kT
        if self._failure is not None and not np.isfinite(rest).any():
            raise self._failure
        potential = np.full(n + 1, np.inf)
        arrived = np.isfinite(positions).all(axis=(1, 2))
        configurations = positions[arrived]
        potential[arrived] = self.energies.reduced_potential(configurations)
        positions[arrived] = configurations  # with the virtual sites that the energy was computed at
        log_weight = self._log_weights(potential, log_prob, rest)
        return SolvatedScan(positions, potential, log_prob, log_weight, metropolis_chain(log_weight, self.rng), ends)

    def _log_weights(self, potential: FloatArray, log_prob: FloatArray, rest: FloatArray) -> FloatArray:
        """Minus the work: the change of total energy from the density to the target, less the heat."""
        with np.errstate(invalid="ignore"):
            work = potential + log_prob + rest
        log_weight = np.where(np.isfinite(work), -work, -np.inf)
        if np.isfinite(potential[0]) and not np.isfinite(work[0]):
            log_weight[0] = np.inf  # no path up could have been the mirror image of this one
        return log_weight

    def _starts(self, bottom: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Lower ends of all paths, that of row 0 given, and which of them there are."""
        shapes = self.density.sample(self.kernel.n_proposals, rng=self.rng).positions
        starts = np.repeat(bottom[None], len(shapes) + 1, axis=0)
        drawn = np.append(True, np.isfinite(shapes).all(axis=(1, 2)))
        starts[np.flatnonzero(drawn)[1:, None], self.atoms] = self._posed(shapes[drawn[1:]], bottom[self.atoms])
        return starts, drawn

    def _posed(self, shapes: FloatArray, solute: FloatArray) -> FloatArray:
        """Shapes at the place and orientation of a solute, both measured by superposition on one fixed shape.

        The fixed shape makes "the same orientation" an equivalence, so that several proposals can be judged in turn.
        """
        if self.density.pose == "absolute" or not len(shapes):
            return shapes
        weights = self.coupling.masses[self.atoms]
        turns, centres, _ = superposition(np.concatenate([solute[None], shapes]), self.coupling.frame, weights)
        posed: FloatArray = (shapes - centres[1:, None]) @ turns[1:] @ turns[0].T + centres[0]
        return posed

    def _ride(self, positions: FloatArray, velocities: FloatArray | None, levels: FloatArray) -> Ride | None:
        try:
            ride = self.coupling.ride(positions, velocities, levels, self.rng)
        except openmm.OpenMMException as error:  # the dynamics blew up
            self._failure = error
            return None
        finite = np.isfinite(ride.positions).all() and np.isfinite(ride.velocities).all()
        return ride if finite else None

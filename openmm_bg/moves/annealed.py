"""Annealed proposals: configurations of a generator that are turned into ones of the target step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from openmm_bg.density import DifferentiableLatentProposals, FloatArray, Proposals
from openmm_bg.moves.coupling import CoupledLangevin
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.independence import Independence, Scan, metropolis_chain
from openmm_bg.moves.propagation import LatentHMC, LatentPropagation, Latents, LatentTarget

ROUND_TRIP = 1e-4  # nm, standard deviations and rad: how far a round trip through the latents may end from its start


@dataclass(frozen=True)
class AnnealedScan(Scan):
    """A scan whose rows are the ends of paths; `work` has the work of each path.

    The works of rows 1 to K are those of turning the density into the target, the work of row 0 belongs to a path that
    was made from the target's end: with f the reduced free energy between them, the two distributions cross at f.

    Attributes
    ----------
    n_evaluations : int
        Energies of the potential that were computed, all with forces where there were steps.
    fraction_propagated : float
        Accepted part of the steps of propagation; one where nothing is rejected, or there are no steps.
    """

    n_evaluations: int
    fraction_propagated: float


class LatentPaths(NamedTuple):
    """Paths between the generator and the target.

    Attributes
    ----------
    first, last : Latents
        Where each path was begun, and where it arrived.
    work : ndarray, shape (n,)
        Reduced work of the path on the way up, also where it was made on the way down.
    fraction_propagated : float
        Accepted part of the steps of propagation.
    """

    first: Latents
    last: Latents
    work: FloatArray
    fraction_propagated: float


@dataclass(frozen=True)
class Annealed:
    """A scan of nonequilibrium candidates: each proposal is drawn from the generator and relaxed towards the target.

    A path begins with a fresh draw at level 0, the generator's own density, and climbs to level 1, the target, through
    `n_steps` levels: the level is raised, then the configuration is propagated there. Its weight exp(-W), with W the
    work of raising the levels (and of the integrator), takes the place of the importance weight in `Independence`. The
    current state gets a path too, anew in each scan: the mirror image of such a path, from the state down to the
    generator. All paths of a scan are made as one batch. `n_steps=0` is `Independence`.

    Paths are made in latents, and so a configuration stands for a point of them only if the way there and back ends
    where it began (to 1e-4). A flow that is bent so strongly that rounding decides may not bring every configuration
    back; those are off the support: as proposals rejected, as a current state kept. On all others decoding is a
    bijection, whatever the flow does elsewhere, and the step reversible.

    Parameters
    ----------
    n_proposals : int
        Proposals per application of the move.
    n_steps : int
        Steps of propagation of each path.
    propagation : LatentHMC, LatentLangevin or CoupledLangevin
        What moves configurations between the changes of level; the last for a solute in explicit solvent.
    power : float
        Level j is (j / (n_steps + 1))^power. Configurations of a generator that overlaps little with the target have
        large energies, and want small first levels: a power above one.

    Raises
    ------
    ValueError
        If a number is not positive, or `n_steps` is negative.

    Notes
    -----
    Docs: theory, "Annealed proposals". Nilmeier, Crooks, Minh and Chodera, PNAS 108, E1009 (2011); Neal, Stat. Comput.
    11, 125 (2001).
    """

    n_proposals: int = 64
    n_steps: int = 16
    propagation: LatentPropagation | CoupledLangevin = field(default_factory=LatentHMC)
    power: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("n_proposals", 1), ("n_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, but is {value!r}.")
            object.__setattr__(self, name, int(value))
        if not (np.isfinite(self.power) and self.power > 0.0):
            raise ValueError(f"power must be a positive number, but is {self.power!r}.")
        object.__setattr__(self, "power", float(self.power))

    @property
    def levels(self) -> FloatArray:
        """Levels from 0, the generator, to 1, the target, shape (n_steps + 2,)."""
        levels: FloatArray = np.linspace(0.0, 1.0, self.n_steps + 2) ** self.power
        return levels

    def scan(
        self,
        density: Proposals,
        current: FloatArray,
        place: Callable[[FloatArray], FloatArray],
        energies: ContextEnergies,
        rng: np.random.Generator,
    ) -> Scan:
        """Draw, propagate and judge one batch of proposals.

        Parameters
        ----------
        density : DifferentiableLatentProposals
        current : ndarray, shape (n_atoms, 3)
            Finite positions in nm.
        place : callable
            Brings finite proposals, (n, n_atoms, 3), into the pose of the current state.
        energies : ContextEnergies
        rng : numpy.random.Generator

        Raises
        ------
        ValueError
            If the density has no differentiable latents, or the propagation is that of a solute in solvent.
        """
        if isinstance(self.propagation, CoupledLangevin):
            raise ValueError(
                "CoupledLangevin couples a solute to its solvent: give the move the solute's atoms as atom_subset, or "
                "use LatentHMC for a molecule by itself."
            )
        if self.n_steps == 0:
            return Independence(self.n_proposals).scan(density, current, place, energies, rng)
        if not isinstance(density, DifferentiableLatentProposals):
            raise ValueError(
                f"Annealed proposals move in the latent space of a generator, and {type(density).__name__} has no "
                "from_latent_tensor. Give a BoltzmannGenerator, or use kernel=Independence()."
            )
        target = LatentTarget(density, energies)
        z = np.concatenate([density.to_latent(current[None]), target.draw(self.n_proposals, rng)])
        on_support = bool(np.isfinite(z[0]).all())
        if not on_support:
            z[0] = 0.0  # any that are finite: its path is not used
        paths = self.paths(target, z, np.arange(len(z)) == 0, rng)
        first, last = paths.first, paths.last

        positions = np.concatenate([current[None], last.positions[1:]])
        potential = np.append(first.reduced_potential[0], last.reduced_potential[1:])
        closed = self._closed(density, current, place, first, last)
        on_support &= bool(closed[0])
        log_prob = np.append(first.log_prob[0] if on_support else -np.inf, np.where(closed, last.log_prob, -np.inf)[1:])
        proposed = np.isfinite(positions).all(axis=(1, 2))
        proposed[0] = False
        positions[proposed] = place(positions[proposed])
        log_weight = np.where(np.isfinite(paths.work) & closed, self._log_weight(paths.work), -np.inf)
        if not on_support or (np.isfinite(first.phi[0]) and not np.isfinite(paths.work[0])):
            log_weight[0] = np.inf  # no path up could have been the mirror image of this one
        return AnnealedScan(
            positions,
            potential,
            log_prob,
            log_weight,
            metropolis_chain(log_weight, rng),
            n_evaluations=target.n_evaluations,
            fraction_propagated=paths.fraction_propagated,
        )

    def paths(
        self, target: LatentTarget, z: FloatArray, down: NDArray[np.bool_], rng: np.random.Generator
    ) -> LatentPaths:
        """Make one path from each latent, shape (n, n_dof): up from draws of the base, down from samples of the target.

        Parameters
        ----------
        target : LatentTarget
        z : ndarray, shape (n, n_dof)
        down : ndarray of bool, shape (n,)
            Paths from level 1 to level 0.
        rng : numpy.random.Generator
        """
        first = latents = target.evaluate(z)
        velocity = rng.standard_normal(z.shape)
        sign = np.where(down, -1.0, 1.0)  # a path that is made backwards has the work of the way up
        changes, levels = self._protocol(down)
        propagation = self.propagation
        assert not isinstance(propagation, CoupledLangevin)
        n_accepted = 0
        with np.errstate(invalid="ignore"):
            work = changes[0] * first.phi
            for level, change in zip(levels, changes[1:], strict=True):
                step = propagation.propagate(latents, velocity, level, target, rng)
                latents, velocity = step.latents, step.velocity
                work = work + sign * step.shadow_work + change * latents.phi
                n_accepted += int(step.accepted.sum())
        n_tried = len(levels) * len(z)
        return LatentPaths(first, latents, work, n_accepted / n_tried if n_tried else 1.0)

    def _closed(
        self,
        density: DifferentiableLatentProposals,
        current: FloatArray,
        place: Callable[[FloatArray], FloatArray],
        first: Latents,
        last: Latents,
    ) -> NDArray[np.bool_]:
        """Whether the current state and each proposal, ends of paths, come back from a round trip, shape (K + 1,)."""
        z = np.concatenate([first.z[:1], last.z[1:]])
        positions = np.concatenate([first.positions[:1], last.positions[1:]])
        finite = np.isfinite(positions).all(axis=(1, 2))
        back = np.full_like(z, np.nan)
        back[finite] = density.to_latent(positions[finite])
        offset = back - z
        circles = offset[:, : density.n_circles]
        circles[...] = np.remainder(circles + np.pi, 2.0 * np.pi) - np.pi
        closed: NDArray[np.bool_] = (np.abs(offset) < ROUND_TRIP).all(axis=1)  # False for NaN
        closed[0] = closed[0] and np.abs(place(positions[:1]) - current).max() < ROUND_TRIP
        return closed

    def _protocol(self, down: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
        """Changes of level, shape (n_steps + 1, n), and the levels of propagation between them, (n_steps, n).

        The changes of paths down are given as on the way up.
        """
        levels, changes = self.levels, np.diff(self.levels)
        return (
            np.where(down, changes[::-1, None], changes[:, None]),
            np.where(down, levels[-2:0:-1, None], levels[1:-1, None]),
        )

    def _log_weight(self, work: FloatArray) -> FloatArray:
        return -work

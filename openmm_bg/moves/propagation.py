"""Propagation in the latent space of a generator, at states between its density and the target.

With x(z) the map from latents to configurations, rho their base density and phi(z) = u(x(z)) + log_prob(x(z)), the
state of level lambda has the reduced energy

    u_lambda(z) = -ln rho(z) + lambda phi(z),

which is the base at lambda = 0 and, Jacobian, constraint metric and all, the target at lambda = 1 (docs: theory,
"Annealed proposals"). Latents know no constraints, no pose and no domain that could be left, so that whole batches of
molecules of any kind are propagated alike. The base is integrated exactly (a rotation of normal latents and their
velocities, uniform motion on circles); only lambda phi is integrated in steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from openmm_bg.density import DifferentiableLatentProposals, FloatArray
from openmm_bg.moves.energies import ContextEnergies

_CHUNK = 1024  # configurations that are differentiated at once


class Latents(NamedTuple):
    """Latents of n configurations, and what was computed of them.

    Attributes
    ----------
    z : ndarray, shape (n, n_dof)
    log_base : ndarray, shape (n,)
        Ln rho up to a constant.
    phi, gradient : ndarray, shapes (n,) and (n, n_dof)
        Reduced potential + log_prob, +inf where that is not finite, and its gradient by z, zero there.
    positions : ndarray, shape (n, n_atoms, 3), nm
    reduced_potential, log_prob : ndarray, shape (n,)
    """

    z: FloatArray
    log_base: FloatArray
    phi: FloatArray
    gradient: FloatArray
    positions: FloatArray
    reduced_potential: FloatArray
    log_prob: FloatArray

    def where(self, condition: NDArray[np.bool_], other: Latents) -> Latents:
        """Rows of these where the condition holds, of the other ones elsewhere."""
        pairs = zip(self, other, strict=True)
        return Latents(*(np.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))


class LatentTarget:
    """The potential of a thermodynamic state as a function of latents.

    Parameters
    ----------
    density : DifferentiableLatentProposals
        With a base that is uniform on its circles.
    energies : ContextEnergies

    Attributes
    ----------
    n_evaluations : int
        Energies with gradients computed so far.
    """

    def __init__(self, density: DifferentiableLatentProposals, energies: ContextEnergies) -> None:
        if density.base.concentration:
            raise ValueError(
                f"The latents of the generator are von Mises variables of concentration {density.base.concentration}, "
                "which the propagation cannot integrate. Use LatentWalk or Independence, or make the generator with "
                "flow=FlowConfig(concentration=0.0)."
            )
        self.density = density
        self.energies = energies
        self.n_evaluations = 0

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Latents drawn from the base, shape (n, n_dof)."""
        return self.density.base.draw(n, rng)

    def evaluate(self, z: FloatArray) -> Latents:
        """Configurations of latents with their energies and gradients; rows that are not finite spoil no others."""
        parts = [self._evaluate(part) for part in np.array_split(z, max(1, -(-len(z) // _CHUNK)))]
        return Latents(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def drift(self, z: FloatArray, velocity: FloatArray, time: float) -> tuple[FloatArray, FloatArray]:
        """Exact motion without phi: harmonic in the normal latents, free on the circles."""
        n = self.density.n_circles
        cosine, sine = np.cos(time), np.sin(time)
        moved, turned = z * cosine + velocity * sine, velocity * cosine - z * sine
        moved[:, :n] = np.remainder(z[:, :n] + time * velocity[:, :n] + np.pi, 2.0 * np.pi) - np.pi
        turned[:, :n] = velocity[:, :n]
        return moved, turned

    def _evaluate(self, z: FloatArray) -> Latents:
        latents = torch.tensor(z, device=self.density.device, requires_grad=True)
        decoded, density = self.density.from_latent_tensor(latents)
        positions, log_prob = decoded.detach().cpu().numpy(), density.detach().cpu().numpy().copy()
        finite = np.isfinite(positions).all(axis=(1, 2)) & np.isfinite(log_prob)
        potential, slope = np.full(len(z), np.inf), np.zeros_like(positions)
        potential[finite], slope[finite] = self.energies.reduced_potential_and_gradient(positions[finite])
        self.n_evaluations += int(finite.sum())
        (found,) = torch.autograd.grad(
            [decoded, density],
            latents,
            [torch.from_numpy(slope).to(decoded.device), torch.ones_like(density)],
        )
        gradient = found.cpu().numpy()
        log_prob[~finite] = -np.inf
        finite &= np.isfinite(potential) & np.isfinite(gradient).all(axis=1)
        gradient[~finite] = 0.0
        phi = np.full(len(z), np.inf)
        phi[finite] = potential[finite] + log_prob[finite]
        with np.errstate(over="ignore", invalid="ignore"):
            log_base = -0.5 * (z[:, self.density.n_circles :] ** 2).sum(axis=1)
        return Latents(z, log_base, phi, gradient, positions, potential, log_prob)


class Step(NamedTuple):
    """What one step of propagation did to n configurations.

    Attributes
    ----------
    latents : Latents
    velocity : ndarray, shape (n, n_dof)
    shadow_work : ndarray, shape (n,)
        Reduced work that the integrator did by not conserving the energy; zero for a Metropolised step.
    accepted : ndarray of bool, shape (n,)
    """

    latents: Latents
    velocity: FloatArray
    shadow_work: FloatArray
    accepted: NDArray[np.bool_]


class LatentPropagation(Protocol):
    """Steps that leave exp(-u_lambda) invariant, or account for how they do not by shadow work."""

    def propagate(
        self,
        latents: Latents,
        velocity: FloatArray,
        level: FloatArray,
        target: LatentTarget,
        rng: np.random.Generator,
    ) -> Step:
        """Make one step of every row at its own level, shape (n,)."""
        ...


@dataclass(frozen=True)
class LatentHMC:
    """Hamiltonian Monte Carlo in the latent space; each step is accepted or rejected, and so reversible.

    Its work is that of the changes of level alone. With `n_leapfrog=1` it is a Metropolised Langevin step.

    Parameters
    ----------
    step : float
        Step of the leapfrog in latent units, in which the base has a standard deviation of one. The worse the
        generator, the narrower the target is in these units, and the smaller the step that is accepted.
    n_leapfrog : int
        Energies and gradients in each step of propagation.

    Notes
    -----
    Duane et al., Phys. Lett. B 195, 216 (1987); the exact integration of the Gaussian part is that of Beskos et al.,
    Stoch. Process. Appl. 121, 2201 (2011).
    """

    step: float = 0.3
    n_leapfrog: int = 1

    def __post_init__(self) -> None:
        _check_positive("step", self.step)
        if not isinstance(self.n_leapfrog, int | np.integer) or self.n_leapfrog < 1:
            raise ValueError(f"n_leapfrog must be a positive integer, but is {self.n_leapfrog!r}.")
        object.__setattr__(self, "n_leapfrog", int(self.n_leapfrog))
        object.__setattr__(self, "step", float(self.step))

    def propagate(
        self,
        latents: Latents,
        velocity: FloatArray,
        level: FloatArray,
        target: LatentTarget,
        rng: np.random.Generator,
    ) -> Step:
        """Make one step of every row at its own level, shape (n,); the velocities are drawn anew."""
        velocity = rng.standard_normal(latents.z.shape)
        before = _energy(latents, velocity, level)
        moved = latents
        half = 0.5 * self.step * level[:, None]
        for _ in range(self.n_leapfrog):
            velocity = velocity - half * moved.gradient
            z, velocity = target.drift(moved.z, velocity, self.step)
            moved = target.evaluate(z)
            velocity = velocity - half * moved.gradient
        with np.errstate(invalid="ignore"):
            difference = before - _energy(moved, velocity, level)
        accepted = -rng.standard_exponential(len(level)) < difference  # a difference that is not a number is rejected
        accepted &= np.isfinite(moved.phi)
        return Step(moved.where(accepted, latents), velocity, np.zeros(len(level)), accepted)


@dataclass(frozen=True)
class LatentLangevin:
    """Langevin dynamics in the latent space, in the palindromic splitting V R O R V, never rejected.

    Velocities are carried along the path, drawn at its beginning and forgotten at its end. What the steps change in
    energy beyond the heat of the O steps is shadow work, and part of the path's work.

    Parameters
    ----------
    step : float
        In latent units, in which the base has a standard deviation of one and the unit of time is that over the
        thermal velocity.
    friction : float
        Rate at which velocities are forgotten, in the inverse unit of time.

    Notes
    -----
    Nilmeier, Crooks, Minh and Chodera, PNAS 108, E1009 (2011); Sivak, Chodera and Crooks, Phys. Rev. X 3, 011007
    (2013).
    """

    step: float = 0.2
    friction: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("step", self.step)
        _check_positive("friction", self.friction)
        object.__setattr__(self, "step", float(self.step))
        object.__setattr__(self, "friction", float(self.friction))

    def propagate(
        self,
        latents: Latents,
        velocity: FloatArray,
        level: FloatArray,
        target: LatentTarget,
        rng: np.random.Generator,
    ) -> Step:
        """Make one step of every row at its own level, shape (n,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            before = _energy(latents, velocity, level)
            half = 0.5 * self.step * level[:, None]
            velocity = velocity - half * latents.gradient
            z, velocity = target.drift(latents.z, velocity, 0.5 * self.step)
            velocity, heat = self._thermalise(velocity, rng)
            z, velocity = target.drift(z, velocity, 0.5 * self.step)
            moved = target.evaluate(z)
            velocity = velocity - half * moved.gradient
            shadow_work = _energy(moved, velocity, level) - before - heat
        return Step(moved, velocity, shadow_work, np.ones(len(level), dtype=bool))

    def _thermalise(self, velocity: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """New velocities of the O step, and the heat that it took up, shape (n,)."""
        kept = np.exp(-self.friction * self.step)
        new = kept * velocity + np.sqrt(1.0 - kept**2) * rng.standard_normal(velocity.shape)
        return new, 0.5 * (new**2 - velocity**2).sum(axis=1)


def _energy(latents: Latents, velocity: FloatArray, level: FloatArray) -> FloatArray:
    """Reduced energy u_lambda with the kinetic part; not finite where phi is not, at any level."""
    energy: FloatArray = 0.5 * (velocity**2).sum(axis=1) - latents.log_base + level * latents.phi
    return energy


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, int | float | np.number) and np.isfinite(value) and value > 0.0):
        raise ValueError(f"{name} must be a positive number, but is {value!r}.")

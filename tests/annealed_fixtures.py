"""An analytic target for annealed paths, and mutants that leave out what one part of their proof needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from openmm_bg.moves import Annealed, LatentLangevin
from openmm_bg.moves.propagation import Latents, LatentTarget, Step, _energy
from openmm_bg.testing import GaussianDensity

QUARTIC = 0.5  # strength of the target's quartic term, in the units of its width


class DifferentiableGaussian(GaussianDensity):
    """Normal latents, positions = mean + sigma z."""

    n_circles = 0
    device = torch.device("cpu")

    @property
    def n_dof(self) -> int:
        return 3 * self.n_atoms

    def from_latent_tensor(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, sigma = torch.from_numpy(self.mean), torch.from_numpy(self.sigma)
        positions = mean + sigma * latents.reshape(-1, self.n_atoms, 3)
        normalisation = sigma.log().sum() + 0.5 * self.n_dof * np.log(2.0 * np.pi)
        return positions, -0.5 * (latents**2).sum(-1) - normalisation


class QuarticWells:
    """Independent coordinates with the reduced energy y^2/2 + QUARTIC y^4 of y = x/width; stands for a Context."""

    def __init__(self, width: float) -> None:
        self.width = width

    def reduced_potential_and_gradient(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = positions / self.width
        return (0.5 * y**2 + QUARTIC * y**4).sum(axis=(1, 2)), (y + 4.0 * QUARTIC * y**3) / self.width

    def quantiles(self, x: np.ndarray) -> np.ndarray:
        """Exact cumulative distribution of a coordinate, by quadrature."""
        grid = np.linspace(-6.0, 6.0, 4001)
        density = np.exp(-0.5 * grid**2 - QUARTIC * grid**4)
        cumulative = np.cumsum(density) - 0.5 * density
        return np.interp(x / self.width, grid, cumulative / density.sum())

    def sample(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Exact and independent draws, by rejection."""
        y = rng.standard_normal((8, *shape))
        kept = rng.uniform(size=y.shape) < np.exp(-QUARTIC * y**4)
        assert kept.any(axis=0).mean() > 0.99
        first = np.take_along_axis(y, kept.argmax(axis=0)[None], 0)[0]
        while not (found := kept.any(axis=0)).all():
            y = rng.standard_normal((8, *shape))
            kept = np.where(found, found[None], rng.uniform(size=y.shape) < np.exp(-QUARTIC * y**4))
            first = np.where(found, first, np.take_along_axis(y, kept.argmax(axis=0)[None], 0)[0])
        return self.width * first

    @property
    def log_partition(self) -> float:
        """Of one coordinate, by quadrature."""
        grid = np.linspace(-6.0, 6.0, 4001)
        return float(np.log(self.width * np.trapezoid(np.exp(-0.5 * grid**2 - QUARTIC * grid**4), grid)))


def many_chains(kernel: Annealed, density: Any, energies: Any, z: np.ndarray, n: int, seed: int = 1) -> np.ndarray:
    """Latents after n single proposals for each of many chains, shape (n_chains, n_dof); what a scan of one does."""
    rng = np.random.default_rng(seed)
    target = LatentTarget(density, energies)
    down = np.arange(2 * len(z)) < len(z)
    for _ in range(n):
        paths = kernel.paths(target, np.concatenate([z, target.draw(len(z), rng)]), down, rng)
        log_weight = kernel._log_weight(paths.work)
        accepted = -rng.standard_exponential(len(z)) < log_weight[~down] - log_weight[down]
        z = np.where(accepted[:, None], paths.last.z[~down], z)
    return z


@dataclass(frozen=True)
class WithoutWork(Annealed):
    """Mutant: a path that has ended is a sample."""

    def _log_weight(self, work: np.ndarray) -> np.ndarray:
        return np.zeros_like(work)


@dataclass(frozen=True)
class Asymmetric(Annealed):
    """Mutant: both ways, the level changes first and propagation follows; so up ends with a step at the target."""

    def _protocol(self, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        levels, changes = self.levels[:, None], np.diff(self.levels)[:, None]
        none = np.zeros((1, 1))
        return (
            np.where(down, np.concatenate([changes[::-1], none]), np.concatenate([changes, none])),
            np.where(down, levels[-2::-1], levels[1:]),
        )


@dataclass(frozen=True)
class NotPalindromic(LatentLangevin):
    """Mutant: V R O instead of V R O R V."""

    def propagate(
        self,
        latents: Latents,
        velocity: np.ndarray,
        level: np.ndarray,
        target: LatentTarget,
        rng: np.random.Generator,
    ) -> Step:
        before = _energy(latents, velocity, level)
        velocity = velocity - self.step * level[:, None] * latents.gradient
        z, velocity = target.drift(latents.z, velocity, self.step)
        velocity, heat = self._thermalise(velocity, rng)
        moved = target.evaluate(z)
        shadow_work = _energy(moved, velocity, level) - before - heat
        return Step(moved, velocity, shadow_work, np.ones(len(level), dtype=bool))

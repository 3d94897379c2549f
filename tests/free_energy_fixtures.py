"""States with free energies that are known by formula or quadrature, and samples of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter
from small_molecules import TEMPERATURE, SmallMolecule, kB

from openmm_bg.analysis import ReducedEnergies

KT = kB * TEMPERATURE


@dataclass(frozen=True)
class Oscillator:
    """One particle in a harmonic well, in nm and kJ/mol."""

    spring: float
    centre: float = 0.0

    def energy(self, positions: np.ndarray) -> np.ndarray:
        return 0.5 * self.spring * ((positions - self.centre) ** 2).sum(axis=(1, 2))

    @property
    def sigma(self) -> float:
        return float(np.sqrt(KT / self.spring))

    @property
    def free_energy(self) -> float:
        """On dx in nm^3, in kT."""
        return -1.5 * np.log(2.0 * np.pi * self.sigma**2)

    def samples(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return self.centre + self.sigma * rng.standard_normal((n, 1, 3))


def line_oscillators(
    springs: list[float], centres: list[float], n_k: list[int], rng: np.random.Generator, tau: float = 0.0
) -> tuple[ReducedEnergies, np.ndarray, np.ndarray]:
    """Harmonic oscillators on a line in reduced units: energies, free energies -1/2 ln(2 pi / K), and positions.

    With `tau` the samples of each state are a chain of that autocorrelation time (an AR(1) process).
    """
    k, o = np.array(springs), np.array(centres)
    parts = []
    for spring, centre, n in zip(k, o, n_k, strict=True):
        noise = rng.standard_normal(n)
        if tau > 0.0 and n > 0:
            a = np.exp(-1.0 / tau)
            noise[1:] *= np.sqrt(1.0 - a * a)
            noise = lfilter([1.0], [1.0, -a], noise)
        parts.append(centre + noise / np.sqrt(spring))
    x = np.concatenate(parts)
    u = 0.5 * k[:, None] * (x - o[:, None]) ** 2
    alone = len(set(springs)) == len(springs)
    names = [f"K={spring:g}" + ("" if alone else f" at {o:g}") for spring, o in zip(springs, centres, strict=True)]
    temperatures = np.full(len(k), TEMPERATURE)
    return ReducedEnergies(names, u, np.array(n_k), temperatures=temperatures), -0.5 * np.log(2.0 * np.pi / k), x


def covered(estimates: np.ndarray, errors: np.ndarray, truth: float) -> float:
    """How often the 95 % interval holds the truth."""
    return float(np.mean(np.abs(estimates - truth) < 1.96 * errors))


def log_partition_function(molecule: SmallMolecule, temperature: float = TEMPERATURE) -> float:
    """Logarithm of the integral of exp(-U / kT) modulo pose, on the measure that OpenMM samples, by quadrature.

    Without constraints dx = prod b^2 db prod sin(theta) dtheta prod dphi. A constrained bond leaves b^2, a constrained
    1-3 distance d of two bonds b1, b2 leaves d / (b1 b2 sin theta) of dtheta, and sqrt(det Z) is a factor.
    """
    beta = 1.0 / (kB * temperature)
    total = 0.0
    if molecule.constrained:
        total += 2.0 * (molecule.n_atoms - 1) * np.log(molecule.length)
    else:
        width = 1.0 / np.sqrt(beta * molecule.bond_spring)
        x, w = np.polynomial.legendre.leggauss(400)
        b = molecule.length + 12.0 * width * x
        b, w = b[b > 0.0], 12.0 * width * w[b > 0.0]
        energy = 0.5 * molecule.bond_spring * (b - molecule.length) ** 2
        total += (molecule.n_atoms - 1) * np.log(np.sum(w * b**2 * np.exp(-beta * energy)))
    if molecule.rigid_angle:
        distance = 2.0 * molecule.length * np.sin(0.5 * molecule.angle)
        total += np.log(distance / (molecule.length**2 * np.sin(molecule.angle)))
    nodes, weights = [], []
    for _ in molecule._free_angles:
        x, w = np.polynomial.legendre.leggauss(64)
        nodes.append(0.5 * np.pi * (x + 1.0))
        weights.append(0.5 * np.pi * w)
    for _ in range(molecule.n_atoms - 3):
        nodes.append(-np.pi + 2.0 * np.pi * np.arange(64) / 64)
        weights.append(np.full(64, 2.0 * np.pi / 64))
    mesh = np.stack([axis.ravel() for axis in np.meshgrid(*nodes, indexing="ij")], -1)
    weight = np.prod([axis.ravel() for axis in np.meshgrid(*weights, indexing="ij")], axis=0)
    angles = np.full((len(mesh), molecule.n_atoms - 2), molecule.angle)
    angles[:, molecule._free_angles] = mesh[:, : len(molecule._free_angles)]
    log_density = molecule._log_density(angles, mesh[:, len(molecule._free_angles) :], temperature)
    return float(total + np.log(np.sum(weight * np.exp(log_density))))


def exact_samples(molecule: SmallMolecule, n: int, rng: np.random.Generator) -> np.ndarray:
    """Independent configurations of a molecule whose coordinates are independent of each other."""
    columns = []
    for coordinate in range(2 * molecule.n_atoms - 3 + molecule.n_atoms - 3):
        grid, density = molecule.distribution(coordinate)
        step = grid[1] - grid[0]
        cell = rng.choice(len(grid), size=n, p=density / density.sum())
        columns.append(grid[cell] + step * (rng.uniform(size=n) - 0.5))
    n_bonds, n_angles = molecule.n_atoms - 1, molecule.n_atoms - 2
    table = np.stack(columns, axis=1)
    return molecule.positions(
        table[:, :n_bonds], table[:, n_bonds : n_bonds + n_angles], table[:, n_bonds + n_angles :]
    )

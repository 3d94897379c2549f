"""Molecules of three and four atoms with exact distributions by quadrature, and how far samples are from these.

Nothing here uses the package's own coordinates, Jacobian or constraint metric: positions, internal coordinates, the
measure b^2 sin(theta) and det Z = det(C M^-1 C^T) are written out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import openmm
from openmm import app, unit
from openmmtools.cache import ContextCache
from openmmtools.states import SamplerState, ThermodynamicState
from scipy import stats
from scipy.interpolate import PchipInterpolator
from scipy.special import eval_legendre

TEMPERATURE = 300.0  # K
kB = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
CHAIN = ((0,), (1, 0), (2, 1, 0))
STAR = ((0,), (0, 1), (0, 1, 2))
DEGREE = 3


@dataclass(frozen=True)
class SmallMolecule:
    """Atom i > 0 hangs on `tree[i - 1]`: the atoms of its bond, its angle and its torsion.

    Without a bond spring all bonds are constrained; a rigid angle is one more constraint, between atoms 0 and 2.
    """

    masses: tuple[float, ...]
    tree: tuple[tuple[int, ...], ...]
    bond_spring: float | None = 8000.0  # kJ/mol/nm^2
    angle_spring: float = 0.0  # kJ/mol/rad^2
    torsion: tuple[int, float, float] = (1, 0.0, 0.0)  # periodicity, phase, k of k (1 + cos(n phi - phase))
    length: float = 0.15
    angle: float = 1.9
    start_torsion: float = 2.1
    rigid_angle: bool = False

    @property
    def n_atoms(self) -> int:
        return len(self.masses)

    @property
    def constrained(self) -> bool:
        return self.bond_spring is None

    def system(self) -> openmm.System:
        system = openmm.System()
        for mass in self.masses:
            system.addParticle(mass)
        bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
        for atom, references in enumerate(self.tree, start=1):
            if self.constrained:
                system.addConstraint(atom, references[0], self.length)
            else:
                bonds.addBond(atom, references[0], self.length, self.bond_spring)
            if len(references) > 1 and self.angle_spring:
                angles.addAngle(atom, *references[:2], self.angle, self.angle_spring)
            if len(references) > 2:
                torsions.addTorsion(atom, *references, *self.torsion)
        if self.rigid_angle:
            system.addConstraint(2, self.tree[1][1], 2.0 * self.length * np.sin(0.5 * self.angle))
        for force in (bonds, angles, torsions, openmm.CMMotionRemover()):
            system.addForce(force)
        return system

    def topology(self) -> app.Topology:
        topology = app.Topology()
        residue = topology.addResidue("MOL", topology.addChain())
        atoms = [topology.addAtom(f"C{i}", app.element.carbon, residue) for i in range(self.n_atoms)]
        for atom, references in enumerate(self.tree, start=1):
            topology.addBond(atoms[atom], atoms[references[0]])
        return topology

    def state(self, temperature: float = TEMPERATURE) -> ThermodynamicState:
        return ThermodynamicState(self.system(), temperature * unit.kelvin)

    def reference(self) -> np.ndarray:
        shape = (1, self.n_atoms - 2)
        angles, torsions = np.full(shape, self.angle), np.full((1, self.n_atoms - 3), self.start_torsion)
        return self.positions(np.full((1, self.n_atoms - 1), self.length), angles, torsions)[0]

    def start(self) -> SamplerState:
        return SamplerState(unit.Quantity(self.reference(), unit.nanometer))

    # ------------------------------------------------------------------------------------------------------- geometry

    def positions(self, bonds: np.ndarray, angles: np.ndarray, torsions: np.ndarray) -> np.ndarray:
        """Shapes (n, n_atoms - 1), (n, n_atoms - 2), (n, n_atoms - 3) to (n, n_atoms, 3), nm and rad."""
        positions = np.zeros((len(bonds), self.n_atoms, 3))
        positions[:, 1, 0] = bonds[:, 0]
        for atom in range(2, self.n_atoms):
            references = self.tree[atom - 1]
            parent = positions[:, references[0]]
            axis = _normalised(positions[:, references[1]] - parent)
            third = np.array([[0.0, 1.0, 0.0]])
            if atom > 2:
                third = positions[:, references[2]] - positions[:, references[1]]
            across = _normalised(third - (third * axis).sum(-1, keepdims=True) * axis)
            turn = torsions[:, [atom - 3]] if atom > 2 else np.zeros((len(bonds), 1))
            angle = angles[:, [atom - 2]]
            direction = np.cos(turn) * across - np.sin(turn) * np.cross(axis, across)
            positions[:, atom] = parent + bonds[:, [atom - 1]] * (np.cos(angle) * axis + np.sin(angle) * direction)
        return positions

    def internal(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The inverse of `positions`, torsions in [-pi, pi) with the sign of OpenMM."""
        bonds, angles, torsions = [], [], []
        for atom, references in enumerate(self.tree, start=1):
            to_atom = positions[:, atom] - positions[:, references[0]]
            bonds.append(np.linalg.norm(to_atom, axis=-1))
            if len(references) > 1:
                axis = _normalised(positions[:, references[1]] - positions[:, references[0]])
                angles.append(np.arccos(np.clip((_normalised(to_atom) * axis).sum(-1), -1.0, 1.0)))
            if len(references) > 2:
                third = positions[:, references[2]] - positions[:, references[1]]
                cosine = (np.cross(to_atom, axis) * np.cross(third, axis)).sum(-1)
                sine = -(np.cross(axis, third) * to_atom).sum(-1)
                torsions.append(np.arctan2(sine, cosine))
        n = len(positions)
        return np.array(bonds).T, np.array(angles).T, np.array(torsions).T.reshape(n, -1)

    def half_log_det_z(self, positions: np.ndarray) -> np.ndarray:
        """1/2 ln det(C M^-1 C^T) with the gradients C of the constrained distances."""
        pairs = [(atom, references[0]) for atom, references in enumerate(self.tree, start=1)]
        if self.rigid_angle:
            pairs.append((2, self.tree[1][1]))
        gradients = np.zeros((len(positions), len(pairs), self.n_atoms, 3))
        for row, (i, j) in enumerate(pairs):
            gradients[:, row, i] = _normalised(positions[:, i] - positions[:, j])
            gradients[:, row, j] = -gradients[:, row, i]
        z = np.einsum("nrad,a,nsad->nrs", gradients, 1.0 / np.array(self.masses), gradients)
        return 0.5 * np.linalg.slogdet(z)[1]

    # ----------------------------------------------------------------------------------------------------- quadrature

    @property
    def _free_angles(self) -> list[int]:
        return list(range(int(self.rigid_angle), self.n_atoms - 2))

    def _log_density(self, angles: np.ndarray, torsions: np.ndarray, temperature: float) -> np.ndarray:
        """Of angles and torsions, which no term couples to the free bonds; shapes (n, ...) to (n,)."""
        energy = 0.5 * self.angle_spring * ((angles - self.angle) ** 2).sum(-1)
        periodicity, phase, k = self.torsion
        energy = energy + k * (1.0 + np.cos(periodicity * torsions - phase)).sum(-1)
        log_density = -energy / (kB * temperature) + np.log(np.sin(angles)).sum(-1)
        if self.constrained:
            bonds = np.full((len(angles), self.n_atoms - 1), self.length)
            log_density = log_density + self.half_log_det_z(self.positions(bonds, angles, torsions))
        return log_density

    def distribution(self, coordinate: int, temperature: float = TEMPERATURE) -> tuple[np.ndarray, np.ndarray]:
        """Grid and density of one free coordinate; the order is that of `coordinates`."""
        n_bonds = 0 if self.constrained else self.n_atoms - 1
        if coordinate < n_bonds:
            grid = self.length * np.linspace(0.2, 1.8, 2001)
            energy = 0.5 * self.bond_spring * (grid - self.length) ** 2
            density = grid**2 * np.exp(-energy / (kB * temperature))
            return grid, density / np.trapezoid(density, grid)
        n_angles, n_torsions = len(self._free_angles), self.n_atoms - 3
        fine = coordinate - n_bonds
        nodes, weights, grid = [], [], np.empty(0)
        for i in range(n_angles + n_torsions):
            low, high = (0.0, np.pi) if i < n_angles else (-np.pi, np.pi)
            if i == fine:
                edges = np.linspace(low, high, 161)
                grid = 0.5 * (edges[1:] + edges[:-1])
                nodes.append(grid)
                weights.append(np.ones(160))
            elif i < n_angles:
                x, w = np.polynomial.legendre.leggauss(32)
                nodes.append(0.5 * np.pi * (x + 1.0))
                weights.append(w)
            else:
                nodes.append(-np.pi + 2.0 * np.pi * np.arange(32) / 32)
                weights.append(np.ones(32))
        mesh = np.stack([axis.ravel() for axis in np.meshgrid(*nodes, indexing="ij")], -1)
        angles = np.full((len(mesh), self.n_atoms - 2), self.angle)
        angles[:, self._free_angles] = mesh[:, :n_angles]
        weight = np.prod(np.meshgrid(*weights, indexing="ij"), axis=0)
        joint = np.exp(self._log_density(angles, mesh[:, n_angles:], temperature)).reshape(weight.shape) * weight
        density = joint.sum(axis=tuple(i for i in range(joint.ndim) if i != fine))
        return grid, density / (density.sum() * (grid[1] - grid[0]))

    def coordinates(self, positions: np.ndarray) -> np.ndarray:
        """Free bonds, angles and torsions, shape (..., n_atoms, 3) to (..., n_free)."""
        flat = positions.reshape(-1, self.n_atoms, 3)
        bonds, angles, torsions = self.internal(flat)
        parts = [angles[:, self._free_angles], torsions] if self.constrained else [bonds, angles, torsions]
        return np.concatenate(parts, axis=-1).reshape(*positions.shape[:-2], -1)

    def observables(self, positions: np.ndarray, temperature: float = TEMPERATURE) -> np.ndarray:
        """Functions of every free coordinate with mean zero in the exact ensemble, shape (..., n_free * DEGREE).

        Legendre polynomials of the coordinate's exact cumulative distribution (Neyman's smooth test).
        """
        columns = []
        for i, values in enumerate(np.moveaxis(self.coordinates(positions), -1, 0)):
            grid, density = distribution(self, i, temperature)
            edges = np.concatenate([[1.5 * grid[0] - 0.5 * grid[1]], 0.5 * (grid[1:] + grid[:-1])])
            edges = np.append(edges, 1.5 * grid[-1] - 0.5 * grid[-2])
            cumulative = np.concatenate([[0.0], np.cumsum(density)]) / density.sum()
            quantile = PchipInterpolator(edges, cumulative)(np.clip(values, edges[0], edges[-1]))
            columns += [eval_legendre(k, 2.0 * quantile - 1.0) for k in range(1, DEGREE + 1)]
        return np.stack(columns, -1)

    def deviation(self, positions: np.ndarray, temperature: float = TEMPERATURE) -> float:
        """Distance in standard deviations between a chain, shape (n_blocks, n, n_atoms, 3), and the exact ensemble."""
        return deviation(self.observables(positions, temperature).mean(axis=1))


@cache
def distribution(molecule: SmallMolecule, coordinate: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    return molecule.distribution(coordinate, temperature)


def deviation(block_means: np.ndarray, expected: float | np.ndarray = 0.0) -> float:
    """Combined chi-squared (Hotelling's T^2) of block averages, as the normal deviate of equal probability.

    The covariance of observables, and their autocorrelation within blocks, is taken from the scatter of the blocks,
    shape (n_blocks, n_observables).
    """
    n, p = block_means.shape
    difference = block_means.mean(axis=0) - expected
    covariance = np.atleast_2d(np.cov(block_means.T)) / n
    t_squared = difference @ np.linalg.solve(covariance, difference)
    log_probability = stats.f.logsf((n - p) / (p * (n - 1)) * t_squared, p, n - p)
    return float(stats.norm.isf(np.exp(max(log_probability, -690.0))))


def reference_contexts() -> ContextCache:
    return ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

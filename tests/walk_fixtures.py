"""A molecule with a side chain whose distribution is known, a simple density in latents for it, and mutant walks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app
from scipy.interpolate import PchipInterpolator
from scipy.special import eval_legendre, expit, logit
from small_molecules import TEMPERATURE, SmallMolecule, deviation, kB

from openmm_bg.base import Base
from openmm_bg.coordinates.rotamers import Rotamers
from openmm_bg.density import LatentLabels, Samples
from openmm_bg.moves import LatentWalk
from openmm_bg.moves.latent_blocks import LatentBlocks
from openmm_bg.moves.walk_chain import WalkChain

NAMES = ("N", "CA", "C", "CB", "OG")
TREE = ((0,), (1, 0), (1, 0, 2), (3, 1, 0))
IMPROPER, CHI = 7, 8  # columns of `coordinates`: four bonds, three angles, two torsions
BACKBONE_ANGLE, SIDE_ANGLE = 4, 6


@dataclass(frozen=True)
class SideChain(SmallMolecule):
    """N-CA-C with a side chain CB-OG, whose torsion chi is coupled to an angle of the backbone and to its own.

    The energy is harmonic in bonds and angles and 20 (1 + cos(improper - phase)) + 4 (1 + cos(3 chi - 0.3))
    + coupling ((theta_C - angle) sin chi + (theta_OG - angle) cos chi).
    """

    angle_spring: float = 60.0
    coupling: float = 25.0

    def system(self) -> openmm.System:
        system = openmm.System()
        for mass in self.masses:
            system.addParticle(mass)
        bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
        for atom, references in enumerate(self.tree, start=1):
            bonds.addBond(atom, references[0], self.length, self.bond_spring)
            if len(references) > 1:
                angles.addAngle(atom, *references[:2], self.angle, self.angle_spring)
        torsions.addTorsion(3, *self.tree[2], 1, self.start_torsion - np.pi, 20.0)
        torsions.addTorsion(4, *self.tree[3], 3, 0.3, 4.0)
        coupled = openmm.CustomCompoundBondForce(
            5,
            f"{self.coupling}*((angle(p3,p2,p1)-{self.angle})*sin(chi) + (angle(p5,p4,p2)-{self.angle})*cos(chi));"
            "chi=dihedral(p5,p4,p2,p1)",
        )
        coupled.addBond([0, 1, 2, 3, 4], [])
        for force in (bonds, angles, torsions, coupled, openmm.CMMotionRemover()):
            system.addForce(force)
        return system

    def topology(self) -> app.Topology:
        topology = app.Topology()
        residue = topology.addResidue("SER", topology.addChain())
        atoms = [topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in NAMES]
        for atom, references in enumerate(self.tree, start=1):
            topology.addBond(atoms[atom], atoms[references[0]])
        return topology

    def reference(self) -> np.ndarray:
        angles, torsions = np.full((1, 3), self.angle), np.array([[self.start_torsion, 1.0]])
        return self.positions(np.full((1, 4), self.length), angles, torsions)[0]

    def _coupled(self) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Grids of theta_C, theta_OG and chi, and their joint density on them."""
        angle = np.linspace(self.angle - 1.1, min(self.angle + 1.1, np.pi), 121)[:-1] + 1.1 / 121
        chi = np.linspace(-np.pi, np.pi, 121)[:-1] + np.pi / 120
        first, second, torsion = np.meshgrid(angle, angle, chi, indexing="ij")
        energy = 0.5 * self.angle_spring * ((first - self.angle) ** 2 + (second - self.angle) ** 2)
        energy += 4.0 * (1.0 + np.cos(3.0 * torsion - 0.3))
        energy += self.coupling * ((first - self.angle) * np.sin(torsion) + (second - self.angle) * np.cos(torsion))
        density = np.exp(-energy / (kB * TEMPERATURE)) * np.sin(first) * np.sin(second)
        return (angle, angle, chi), density / density.sum()

    def distribution(self, coordinate: int, temperature: float = TEMPERATURE) -> tuple[np.ndarray, np.ndarray]:
        coupled = (BACKBONE_ANGLE, SIDE_ANGLE, CHI)
        if coordinate in coupled:
            grids, joint = self._coupled()
            kept = coupled.index(coordinate)
            grid, density = grids[kept], joint.sum(axis=tuple(axis for axis in range(3) if axis != kept))
        elif coordinate < 4:
            grid = self.length * np.linspace(0.2, 1.8, 2001)
            energy = 0.5 * self.bond_spring * (grid - self.length) ** 2
            density = grid**2 * np.exp(-energy / (kB * temperature))
        elif coordinate == IMPROPER:
            grid = np.linspace(-np.pi, np.pi, 2001)[:-1] + np.pi / 2000
            density = np.exp(-20.0 * (1.0 - np.cos(grid - self.start_torsion)) / (kB * temperature))
        else:
            grid = np.linspace(0.0, np.pi, 2001)[:-1] + np.pi / 4000
            energy = 0.5 * self.angle_spring * (grid - self.angle) ** 2
            density = np.exp(-energy / (kB * temperature)) * np.sin(grid)
        return grid, density / (density.sum() * (grid[1] - grid[0]))

    def observables(self, positions: np.ndarray, temperature: float = TEMPERATURE) -> np.ndarray:
        """Legendre polynomials of each coordinate's exact cumulative distribution, and the coupled pairs; mean zero."""
        values = self.coordinates(positions)
        columns = []
        for i in range(values.shape[-1]):
            quantile = _cumulative(self, i)(values[..., i])
            columns += [eval_legendre(k, 2.0 * quantile - 1.0) for k in ((1, 2) if i < CHI else (1, 2, 3, 4))]
        (first, second, chi), joint = _joint(self)
        for angle, column, function in ((first, BACKBONE_ANGLE, np.sin), (second, SIDE_ANGLE, np.cos)):
            axis = 1 if column == BACKBONE_ANGLE else 0
            exact = ((angle - self.angle)[:, None] * function(chi) * joint.sum(axis=axis)).sum()
            columns.append((values[..., column] - self.angle) * function(values[..., CHI]) - exact)
        return np.stack(columns, -1)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Exact and independent configurations, shape (n, 5, 3), to the width of the grids."""
        values = np.empty((n, 9))
        for i in (0, 1, 2, 3, 5, IMPROPER):
            grid, density = self.distribution(i)
            values[:, i] = rng.choice(grid, n, p=density / density.sum())
            values[:, i] += (rng.random(n) - 0.5) * (grid[1] - grid[0])
        grids, joint = _joint(self)
        cells = np.unravel_index(rng.choice(joint.size, n, p=joint.ravel()), joint.shape)
        for column, grid, cell in zip((BACKBONE_ANGLE, SIDE_ANGLE, CHI), grids, cells, strict=True):
            values[:, column] = grid[cell] + (rng.random(n) - 0.5) * (grid[1] - grid[0])
        return self.positions(values[:, :4], values[:, 4:7], values[:, 7:])

    def far(self, positions: np.ndarray, n_blocks: int = 64) -> float:
        """Standard deviations between the states of a chain, (n, 5, 3), and the exact ensemble."""
        usable = len(positions) // n_blocks * n_blocks
        columns = self.observables(positions[:usable])
        return deviation(columns.reshape(n_blocks, -1, columns.shape[-1]).mean(axis=1))


SERINE = SideChain((14.0, 13.0, 12.0, 14.0, 17.0), TREE)
_found: dict[tuple[SideChain, int], Any] = {}


def _joint(molecule: SideChain) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    return _found.setdefault((molecule, -1), molecule._coupled())


def _cumulative(molecule: SideChain, coordinate: int) -> PchipInterpolator:
    if (molecule, coordinate) not in _found:
        grid, density = molecule.distribution(coordinate)
        half = 0.5 * (grid[1] - grid[0])
        edges = np.append(grid - half, grid[-1] + half)
        cumulative = np.concatenate([[0.0], np.cumsum(density)]) / density.sum()
        spline = PchipInterpolator(edges, cumulative)
        _found[molecule, coordinate] = lambda x: spline(np.clip(x, edges[0], edges[-1]))
    return _found[molecule, coordinate]


class SideChainDensity:
    """Latents of SERINE: chi of a circle, bonds and angles and the improper of normal ones; bad on purpose.

    chi is a Moebius map of its latent, turned by the latent of a backbone angle. Frozen are the bonds and the improper.
    """

    n_atoms = 5
    pose: Literal["invariant"] = "invariant"
    content_hash = hashlib.sha256(b"SideChainDensity").hexdigest()
    path = None
    stretching = 1.8

    def __init__(self, concentration: float = 0.0, molecule: SideChain = SERINE) -> None:
        self.base = Base(1, 8, concentration)
        self.molecule = molecule
        kinds = ["side_chain", *["frozen"] * 4, "backbone", "backbone", "side_chain", "frozen"]
        self.latent_labels = LatentLabels(np.array([1, 0, 0, 1, 1, 0, 1, 0, 1]), np.array(kinds))
        self.rotamers = Rotamers(np.array([[1, 3]]), np.arange(5)[None] == 4, np.array([0]))
        centres = [np.log(molecule.length)] * 4 + [logit(molecule.angle / np.pi)] * 3 + [0.0]
        self.scales = np.array([0.14] * 4 + [0.32] * 3 + [0.13])
        self.centres = np.array(centres) + 0.3 * self.scales

    def sample(self, n: int, *, rng: Any = None) -> Samples:
        positions = self.from_latent(self.base.draw(n, np.random.default_rng(rng)))
        return Samples(positions, self.log_prob(positions))

    def from_latent(self, latents: np.ndarray) -> np.ndarray:
        y = self.centres + self.scales * latents[:, 1:]
        improper = self.molecule.start_torsion + 2.0 * np.pi * (expit(y[:, 7]) - 0.5)
        chi = 2.0 * np.arctan2(self.stretching * np.sin(0.5 * latents[:, 0]), np.cos(0.5 * latents[:, 0]))
        chi = chi + np.tanh(latents[:, 5])
        return self.molecule.positions(np.exp(y[:, :4]), np.pi * expit(y[:, 4:7]), np.stack([improper, chi], -1))

    def to_latent(self, positions: np.ndarray) -> np.ndarray:
        return self.encode(positions)[0]

    def log_prob(self, positions: np.ndarray) -> np.ndarray:
        return self.encode(positions)[1]

    def encode(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bonds, angles, torsions = self.molecule.internal(np.asarray(positions))
        place = np.remainder((torsions[:, 0] - self.molecule.start_torsion) / (2.0 * np.pi) + 0.5, 1.0)
        y = np.concatenate([np.log(bonds), logit(angles / np.pi), logit(place)[:, None]], 1)
        normal = (y - self.centres) / self.scales
        turned = torsions[:, 1] - np.tanh(normal[:, 4])
        sine, cosine = np.sin(0.5 * turned), np.cos(0.5 * turned)
        circle = 2.0 * np.arctan2(sine / self.stretching, cosine)
        circle = np.remainder(circle + np.pi, 2.0 * np.pi) - np.pi
        latents = np.concatenate([circle[:, None], normal], 1)
        density = self.base.log_prob(latents) - np.log(self.scales).sum()
        density -= np.log(self.stretching) + np.log(cosine**2 + (sine / self.stretching) ** 2)
        density -= np.log(bonds).sum(1) + np.log(angles * (1.0 - angles / np.pi)).sum(1)
        density -= np.log(2.0 * np.pi * place * (1.0 - place))
        return latents, density - 2.0 * np.log(bonds).sum(1) - np.log(np.sin(angles)).sum(1)

    def check(self, system: openmm.System, topology: app.Topology | None = None) -> None:
        pass

    def save(self, path: Any) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, path: Any, *, system: openmm.System | None = None) -> SideChainDensity:
        raise NotImplementedError


class WithoutFrozen(SideChainDensity):
    """Mutant: the density of frozen coordinates is left out of the log density (their Jacobian is not)."""

    def encode(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents, log_prob = super().encode(positions)
        frozen = latents[:, self.latent_labels.kind == "frozen"]
        return latents, log_prob + 0.5 * (frozen**2).sum(axis=1)


class PlainStepOnCircles(LatentWalk):
    """Mutant: takes a wrapped step for reversible, whatever the base of the circles."""

    def _log_circles(self, base: Base, latents: np.ndarray) -> np.ndarray:
        return np.zeros(len(latents))


class WrongScale(LatentWalk):
    """Mutant: normal latents are shrunk by too little before noise is added."""

    def _stepped(
        self, base: Base, latents: np.ndarray, moves: NDArray[np.bool_], step: float, rng: np.random.Generator
    ) -> np.ndarray:
        proposed = super()._stepped(base, latents, moves, step, rng)
        n = base.n_circles
        grown = proposed[:, n:] + (np.sqrt(1.0 - 0.5 * step**2) - np.sqrt(1.0 - step**2)) * latents[n:]
        proposed[:, n:] = np.where(moves[:, n:], grown, latents[n:])
        return proposed


class AdaptiveStep(LatentWalk):
    """Mutant: the step goes on following what the chain does, here how far out the current latents are."""

    def _stepped(
        self, base: Base, latents: np.ndarray, moves: NDArray[np.bool_], step: float, rng: np.random.Generator
    ) -> np.ndarray:
        far = np.abs(latents[base.n_circles :]).mean() > 0.9
        return super()._stepped(base, latents, moves, 0.05 * step if far else 1.5 * step, rng)


class OneWay(LatentWalk):
    """Mutant: side chains turn one way only."""

    def _turned(self, blocks: LatentBlocks, positions: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        assert blocks.rotamers is not None
        angles = rng.uniform(0.3, 1.2, (n, 1))
        return np.array([blocks.rotamers.turned(positions, np.array([0]), angle) for angle in angles])


class TurnedAsDrawn(WalkChain):
    """Mutant: judges turned side chains by the weights of draws from the generator."""

    def _judge(self, positions: Any, log_prob: Any, latents: Any, log_ratio: Any, *args: Any, **options: Any) -> int:
        return super()._judge(positions, log_prob, latents, 0.0 * log_ratio, *args, **options)

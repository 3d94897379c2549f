"""Molecules of 22, 582 and 5,000 atoms, and the trained generator that some benchmarks need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import app

from openmm_bg.coordinates import InternalCoordinates, build_zmatrix
from openmm_bg.coordinates.reference import reference_internal
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.systems import villin as build_villin
from openmm_bg.training import train
from openmm_bg.training.simulate import simulate

TEMPERATURE = 300.0


@dataclass(frozen=True)
class Options:
    """How long a benchmark may take, and the run of the demo it may use."""

    quick: bool = False
    run: Path | None = None


@cache
def alanine() -> MolecularSystem:
    """The demo's molecule, 22 atoms."""
    return peptide("ACE-ALA-NME")


@cache
def villin() -> MolecularSystem:
    """Villin headpiece, 582 atoms, in OBC implicit solvent."""
    return build_villin()


def alkane(n_atoms: int = 5000) -> app.Topology:
    """A chain of CH2 with hydrogens at its ends."""
    topology = app.Topology()
    residue = topology.addResidue("ALK", topology.addChain())
    n_carbons = (n_atoms - 2) // 3
    carbons = [topology.addAtom(f"C{i}", app.element.carbon, residue) for i in range(n_carbons)]
    owners = [*carbons, *carbons, carbons[0], carbons[-1]]
    for first, second in pairwise(carbons):
        topology.addBond(first, second)
    for i, carbon in enumerate(owners):
        topology.addBond(carbon, topology.addAtom(f"H{i}", app.element.hydrogen, residue))
    return topology


def alkane_positions(topology: app.Topology) -> NDArray[np.float64]:
    """An all-trans chain, shape (1, n_atoms, 3), nm."""
    zmatrix = build_zmatrix(topology)
    positions = InternalCoordinates(zmatrix).to_cartesian(reference_internal(zmatrix, openmm.System()))
    return np.asarray(positions.numpy())


def shaken(positions: NDArray[np.float64], n: int, seed: int = 0) -> NDArray[np.float64]:
    """Copies of a structure, each atom displaced by 1 pm."""
    return np.asarray(positions + np.random.default_rng(seed).normal(0.0, 1e-3, (n, *positions.shape[-2:])))


def generator_for(molecule: MolecularSystem) -> BoltzmannGenerator:
    """Build an untrained generator."""
    return BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, TEMPERATURE, positions=molecule.positions, seed=0
    )


@cache
def trained(options: Options) -> tuple[MolecularSystem, BoltzmannGenerator, str]:
    """Molecule, trained generator, and where that is from: the demo's run, or a short training made here."""
    if options.run is not None:
        folder = RunFolder.open(options.run)
        molecule = folder.read_system()
        return molecule, BoltzmannGenerator.load(folder.generator_file, system=molecule.system), "a run of the demo"
    molecule = alanine()
    generator = generator_for(molecule)
    n_steps, seconds = (10_000, 10.0) if options.quick else (400_000, 120.0)
    data = simulate(molecule, 700.0, n_steps=n_steps, stride=50, seed=1)
    with SystemPotential(molecule.system, molecule.topology) as potential:
        train(generator, potential, data=data, max_seconds=seconds, seed=1, progress=False)
    return molecule, generator, f"a training of {seconds:.0f} s made here"


def as_tensor(positions: NDArray[np.float64]) -> torch.Tensor:
    """Positions as the coordinates take them."""
    return torch.as_tensor(np.ascontiguousarray(positions))

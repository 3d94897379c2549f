"""The molecules of the comparison and their molecular dynamics, which every row learns from and is compared with."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import openmm
from openmm import app, unit

from openmm_bg.files import write_bytes
from openmm_bg.systems import MolecularSystem, chignolin, from_pdb, from_xml, peptide, villin
from openmm_bg.training.data import TrajectoryData
from openmm_bg.training.simulate import simulate

TEMPERATURE = 300.0  # K
TIMESTEP, HYDROGEN_MASS = 0.004, 3.0  # ps, amu
N_CHAINS = 2


@dataclass(frozen=True)
class Case:
    """A molecule, and how much of everything it gets.

    Attributes
    ----------
    title : str
    coordinates : "full" or "reduced"
        Reduced ones with frozen="thermal", so that there is a density of all coordinates.
    seconds : float
        Wall time of the training of a row.
    n_seeds : int
    n_steps, stride, n_equilibration : int
        Of the dynamics, for each of two chains.
    batch_size : int
    weights : tuple of (float, float)
        Of W2 (1/nm) and of reverse KL, beside one of the likelihood.
    n_samples : int
        Structures that are drawn to judge a row.
    walk : tuple of (int, int, float)
        Scans that tune the latent walk, proposals in each, and the step that the tuning starts from.
    """

    title: str
    coordinates: Literal["full", "reduced"]
    seconds: float
    n_seeds: int
    n_steps: int
    stride: int
    n_equilibration: int
    batch_size: int
    weights: tuple[float, float]
    n_samples: int
    walk: tuple[int, int, float]

    def quick(self) -> Case:
        """Hardly any of it, to see that it runs."""
        return replace(
            self, seconds=2.0, n_seeds=1, n_steps=10_000, stride=20, n_equilibration=200, batch_size=32, n_samples=200,
            walk=(12, 20, 0.2),
        )  # fmt: skip


CASES = {
    "dipeptide": Case(
        "Alanine dipeptide", "full", 30.0, 3, 600_000, 100, 5_000, 256, (100.0, 1.0), 2_000, (40, 48, 0.2)
    ),
    "chignolin": Case(
        "Chignolin CLN025", "reduced", 40.0, 3, 100_000, 50, 5_000, 128, (1000.0, 0.003), 2_000, (40, 48, 0.02)
    ),
    "hp35": Case(
        "Villin headpiece HP35", "reduced", 360.0, 1, 17_000, 10, 2_500, 64, (1000.0, 0.003), 1_024, (40, 32, 0.003)
    ),
    "protein-g": Case(
        "Protein G B1", "reduced", 720.0, 1, 8_000, 5, 1_500, 64, (1000.0, 0.003), 1_024, (40, 24, 0.002)
    ),
}
_BUILDERS: dict[str, Callable[[], MolecularSystem]] = {
    "dipeptide": lambda: peptide("ACE-ALA-NME", hydrogen_mass=HYDROGEN_MASS),
    "chignolin": lambda: chignolin(hydrogen_mass=HYDROGEN_MASS),
    "hp35": lambda: villin(hydrogen_mass=HYDROGEN_MASS),
}


def build(name: str, structure: Path | None) -> MolecularSystem:
    """A molecule in Amber ff99SB-ILDN with OBC implicit solvent, folded; protein G from a PDB file of entry 1PGA."""
    if name in _BUILDERS:
        return _BUILDERS[name]()
    if structure is None:
        raise ValueError("A folded protein G cannot be built from its sequence: give --structure, a PDB file of 1PGA.")
    return from_pdb(
        structure,
        hydrogen_mass=HYDROGEN_MASS,
        remove_solvent=True,
        add_missing_atoms=True,
        add_hydrogens=True,
        minimized=True,
    )


def prepare(name: str, case: Case, folder: Path, structure: Path | None) -> None:
    """Build a molecule and simulate it, unless the folder has both; an interrupted simulation goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "system.xml").exists():
        molecule = build(name, structure)
        pdb = io.StringIO()
        app.PDBFile.writeFile(molecule.topology, molecule.positions * unit.nanometer, pdb, keepIds=True)
        write_bytes(folder / "start.pdb", pdb.getvalue().encode())
        write_bytes(folder / "system.xml", openmm.XmlSerializer.serialize(molecule.system).encode())
    if (folder / "data.npz").exists():
        return
    data = simulate(
        load_molecule(folder),
        TEMPERATURE,
        n_steps=case.n_steps,
        stride=case.stride,
        timestep=TIMESTEP,
        n_chains=N_CHAINS,
        n_equilibration_steps=case.n_equilibration,
        seed=1,
        folder=folder / "dynamics",
    )
    data.save(folder / "data.npz")


def load_molecule(folder: Path) -> MolecularSystem:
    """The molecule that `prepare` has built."""
    return from_xml(folder / "system.xml", folder / "start.pdb")


def load_data(folder: Path) -> TrajectoryData:
    """The dynamics that `prepare` has made."""
    return TrajectoryData.load(folder / "data.npz")

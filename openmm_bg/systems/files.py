"""Molecules from files: a PDB file, a serialised System with its topology, or villin as it comes with OpenMM."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from openmm_bg.systems.molecular_system import (
    DEFAULT_FORCEFIELD,
    FloatArray,
    MolecularSystem,
    create_system,
    load_forcefield,
    minimize,
)
from openmm_bg.systems.serialized import read_system

_VILLIN_MINIMIZER_ITERATIONS = 100  # the structure is a good one: only bad contacts are removed


def from_pdb(
    path: str | PathLike[str],
    *,
    forcefield: app.ForceField | Sequence[str] | str = DEFAULT_FORCEFIELD,
    constraints: Any = app.HBonds,
    hydrogen_mass: unit.Quantity | float | None = None,
    add_hydrogens: bool = False,
    minimized: bool = False,
) -> MolecularSystem:
    """Read a molecule from a PDB file and parametrise it without cutoff.

    Parameters
    ----------
    path : str or path
        A PDB file of one solute.
    forcefield, constraints, hydrogen_mass
        As in `openmm_bg.systems.peptide`.
    add_hydrogens : bool
        Add the hydrogens that the file lacks, for pH 7.
    minimized : bool
        Minimise the energy of the structure.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds no atoms or the force field does not fit it, for instance for want of hydrogens.
    """
    pdb = _read_pdb(path)
    field = load_forcefield(forcefield)
    topology, positions = pdb.topology, pdb.positions
    if add_hydrogens:
        modeller = app.Modeller(topology, positions)
        modeller.addHydrogens(field, platform=openmm.Platform.getPlatformByName("Reference"))
        topology, positions = modeller.topology, modeller.positions
    system = create_system(field, topology, constraints=constraints, hydrogen_mass=hydrogen_mass)
    start = _in_nanometers(positions)
    return MolecularSystem(system, topology, minimize(system, start) if minimized else start)


def from_xml(system_xml: str | PathLike[str], topology_pdb: str | PathLike[str]) -> MolecularSystem:
    """Read a System as `openmm.XmlSerializer` wrote it; topology and positions come from a PDB file.

    Raises
    ------
    FileNotFoundError
        If one of the files does not exist.
    ValueError
        If the XML is not a System, its particles are not as many as the atoms of the PDB file, or it holds a
        PythonForce: its XML is pickled code, which would run on reading.
    """
    system = read_system(system_xml)
    pdb = _read_pdb(topology_pdb)
    return MolecularSystem(system, pdb.topology, _in_nanometers(pdb.positions))


def villin(
    *,
    forcefield: app.ForceField | Sequence[str] | str = DEFAULT_FORCEFIELD,
    constraints: Any = app.HBonds,
    hydrogen_mass: unit.Quantity | float | None = None,
) -> MolecularSystem:
    """Build the villin headpiece HP35 (35 residues, 582 atoms) from the file that OpenMM carries, without its water.

    Arguments as in `openmm_bg.systems.peptide`.
    """
    with as_file(files("openmm.app") / "data" / "test.pdb") as path:
        pdb = app.PDBFile(str(path))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([residue for residue in modeller.topology.residues() if not _is_amino_acid(residue)])
    modeller.topology.setPeriodicBoxVectors(None)
    field = load_forcefield(forcefield)
    system = create_system(field, modeller.topology, constraints=constraints, hydrogen_mass=hydrogen_mass)
    start = _in_nanometers(modeller.positions)
    positions = minimize(system, start, max_iterations=_VILLIN_MINIMIZER_ITERATIONS)
    return MolecularSystem(system, modeller.topology, positions)


def _is_amino_acid(residue: app.topology.Residue) -> bool:
    return {"N", "CA", "C"} <= {atom.name for atom in residue.atoms()}


def _read_pdb(path: str | PathLike[str]) -> app.PDBFile:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}; expected a PDB file.")
    try:
        pdb = app.PDBFile(str(path))
    except (ValueError, IndexError, KeyError, AttributeError) as error:  # AttributeError: a file without any atom
        raise ValueError(
            f"{path} cannot be read as a PDB file; expected ATOM records of one molecule ({error})."
        ) from error
    if pdb.topology.getNumAtoms() == 0:
        raise ValueError(f"{path} holds no atoms; expected a PDB file of one molecule.")
    return pdb


def _in_nanometers(positions: unit.Quantity) -> FloatArray:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)

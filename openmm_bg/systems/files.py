"""Molecules from files: a PDB file, a serialised System with its topology, or villin as it comes with OpenMM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from os import PathLike
from typing import Any

import numpy as np
from openmm import app, unit

from openmm_bg.systems import hydrogens
from openmm_bg.systems.diagnosis import advice
from openmm_bg.systems.molecular_system import (
    DEFAULT_FORCEFIELD,
    FloatArray,
    MolecularSystem,
    create_system,
    load_forcefield,
    minimize,
)
from openmm_bg.systems.pdb_text import read_pdb
from openmm_bg.systems.repair import add_bonds, complete, refuse_broken_chain, without_solvent
from openmm_bg.systems.residue_templates import is_amino_acid
from openmm_bg.systems.serialized import read_system

_VILLIN_MINIMIZER_ITERATIONS = 100  # the structure is a good one: only bad contacts are removed


def from_pdb(
    path: str | PathLike[str],
    *,
    forcefield: app.ForceField | Sequence[str] | str = DEFAULT_FORCEFIELD,
    constraints: Any = app.HBonds,
    hydrogen_mass: unit.Quantity | float | None = None,
    remove_solvent: bool = False,
    substitute: Mapping[str, str] | None = None,
    add_missing_atoms: bool = False,
    add_hydrogens: bool = False,
    minimized: bool = False,
    model: int | None = None,
) -> MolecularSystem:
    """Read a molecule from a PDB file and parametrise it without cutoff.

    Where the file has alternate locations, the one with the highest mean occupancy is taken, residue by residue; where
    it has several models, the first. A warning names them.

    Parameters
    ----------
    path : str or path
        A PDB file of one solute.
    forcefield, constraints, hydrogen_mass
        As in `openmm_bg.systems.peptide`.
    remove_solvent : bool
        Leave out water and single ions.
    substitute : dict of str to str, optional
        Standard amino acids to put in the place of others, such as {"NLE": "LEU"}; atoms that both have stay in their
        place.
    add_missing_atoms : bool
        Add the heavy atoms that standard residues lack, the second oxygen of the end of the chain among them. Missing
        residues are not modelled.
    add_hydrogens : bool
        Add the hydrogens that the file lacks, for pH 7.
    minimized : bool
        Minimise the energy of the structure.
    model : int, optional
        Which model of the file, counted from 1.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds no atoms, the chain is broken, or the force field does not fit the structure; the message
        names residues and atoms and says which of the arguments above helps.
    """
    field = load_forcefield(forcefield)
    pdb = read_pdb(path, model)
    topology, positions = pdb.topology, pdb.positions
    if remove_solvent:
        topology, positions = without_solvent(topology, positions)
    refuse_broken_chain(topology, positions)
    if substitute or add_missing_atoms:
        topology, positions = complete(topology, positions, substitute or {}, add_missing_atoms=add_missing_atoms)
    add_bonds(field, topology, positions)
    if add_hydrogens:
        try:
            topology, positions = hydrogens.add_hydrogens(field, topology, positions)
        except ValueError as error:
            raise ValueError(f"Hydrogens cannot be added to {path}: {error} {advice(field, topology, None)}") from error
    system = create_system(field, topology, constraints=constraints, hydrogen_mass=hydrogen_mass, positions=positions)
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
    pdb = read_pdb(topology_pdb)
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
    modeller.delete([residue for residue in modeller.topology.residues() if not is_amino_acid(residue)])
    modeller.topology.setPeriodicBoxVectors(None)
    field = load_forcefield(forcefield)
    system = create_system(field, modeller.topology, constraints=constraints, hydrogen_mass=hydrogen_mass)
    start = _in_nanometers(modeller.positions)
    positions = minimize(system, start, max_iterations=_VILLIN_MINIMIZER_ITERATIONS)
    return MolecularSystem(system, modeller.topology, positions)


def _in_nanometers(positions: unit.Quantity) -> FloatArray:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)

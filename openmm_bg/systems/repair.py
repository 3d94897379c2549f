"""Structures made fit for a force field: solvent left out, residues replaced, missing atoms and bonds added."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import openmm
from openmm import app, unit
from openmm.app.topology import Atom
from pdbfixer import PDBFixer

from openmm_bg.systems.diagnosis import is_solvent, label
from openmm_bg.systems.residue_templates import STANDARD, nonstandard_template

_LONGEST_BOND = 0.25  # nm, of heavy atoms; a disulfide has 0.21
_PEPTIDE_BOND = 0.20  # nm, at most

Structure = tuple[app.Topology, unit.Quantity]


def without_solvent(topology: app.Topology, positions: unit.Quantity) -> Structure:
    """Leave out water and single ions, and the box that held them."""
    modeller = app.Modeller(topology, positions)
    modeller.delete([residue for residue in modeller.topology.residues() if is_solvent(residue)])
    modeller.topology.setPeriodicBoxVectors(None)
    return modeller.topology, modeller.positions


def add_bonds(field: app.ForceField, topology: app.Topology, positions: unit.Quantity) -> None:
    """Add the bonds of non-standard amino acids that the force field knows and the file did not list."""
    place = _in_nanometers(positions)
    known = {frozenset(bond) for bond in topology.bonds()}

    def bond(first: Atom | None, second: Atom | None) -> None:
        if first is not None and second is not None and frozenset((first, second)) not in known:
            topology.addBond(first, second)
            known.add(frozenset((first, second)))

    for chain in topology.chains():
        residues = list(chain.residues())
        names = [{atom.name: atom for atom in residue.atoms()} for residue in residues]
        for index, residue in enumerate(residues):
            template = nonstandard_template(field, residue)
            if template is None:
                continue
            for i, j in template.bonds:
                bond(names[index].get(template.atoms[i].name), names[index].get(template.atoms[j].name))
            for before, after in ((index - 1, index), (index, index + 1)):
                if before >= 0 and after < len(residues):
                    carbon, nitrogen = names[before].get("C"), names[after].get("N")
                    if carbon and nitrogen and _distance(place, carbon, nitrogen) < _PEPTIDE_BOND:
                        bond(carbon, nitrogen)


def refuse_broken_chain(topology: app.Topology, positions: unit.Quantity) -> None:
    """Raise ValueError if a bond between heavy atoms is too long to be one: residues between them are missing."""
    place = _in_nanometers(positions)
    for first, second in topology.bonds():
        if app.element.hydrogen in (first.element, second.element):
            continue
        length = _distance(place, first, second)
        if length > _LONGEST_BOND:
            raise ValueError(
                f"The chain is broken: {label(first.residue)} {first.name} and {label(second.residue)} {second.name} "
                f"are bonded neighbours in the file and {length:.2f} nm apart, so that residues or atoms between them "
                "are missing. Model them (pdbfixer's findMissingResidues and addMissingAtoms, or a loop modeller), or "
                "keep one unbroken part of the chain."
            )


def complete(
    topology: app.Topology, positions: unit.Quantity, substitute: Mapping[str, str], *, add_missing_atoms: bool
) -> Structure:
    """Replace residues and add heavy atoms that are missing: those of the replaced residues, or all.

    Raises
    ------
    ValueError
        If a residue to be replaced does not occur, or its substitute is not a standard amino acid.
    """
    residues = list(topology.residues())
    for old, new in substitute.items():
        if not any(residue.name == old for residue in residues):
            present = sorted({residue.name for residue in residues})
            raise ValueError(f"substitute names {old}, which the structure does not hold; it has {', '.join(present)}.")
        if new not in STANDARD:
            raise ValueError(f"substitute replaces {old} by {new}; expected one of {', '.join(sorted(STANDARD))}.")
    fixer = PDBFixer(  # which has to read something; its structure is replaced by this one
        pdbfile=io.StringIO("ATOM      1  N   GLY A   1       0.000   0.000   0.000  1.00  0.00           N\nEND\n"),
        platform=openmm.Platform.getPlatformByName("Reference"),
    )
    fixer.topology, fixer.positions = topology, positions
    fixer.missingResidues = {}
    fixer.nonstandardResidues = [(res, substitute[res.name]) for res in residues if res.name in substitute]
    replaced = {residue.index for residue, _ in fixer.nonstandardResidues}
    fixer.replaceNonstandardResidues()
    fixer.findMissingAtoms()
    if not add_missing_atoms:
        fixer.missingAtoms = {res: atoms for res, atoms in fixer.missingAtoms.items() if res.index in replaced}
        fixer.missingTerminals = {}
    fixer.addMissingAtoms(seed=0)
    return fixer.topology, fixer.positions


def _in_nanometers(positions: unit.Quantity) -> np.ndarray:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)


def _distance(place: np.ndarray, first: Atom, second: Atom) -> float:
    return float(np.linalg.norm(place[first.index] - place[second.index]))

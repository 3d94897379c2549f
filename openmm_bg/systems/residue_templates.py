"""What residues consist of: heavy atoms of the amino acids, and what a force field says of non-standard ones."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from typing import Any

from openmm import app, unit
from openmm.app.topology import Residue

STANDARD = frozenset(
    ("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE")
    + ("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL")
)
CAPS = ("ACE", "NME")
BACKBONE = frozenset(("N", "CA", "C"))


@cache
def heavy_atom_template(name: str) -> tuple[tuple[str, str, tuple[float, float, float]], ...]:
    """Name, element and position (nm) of the heavy atoms of a standard L amino acid, C-terminal oxygen left out."""
    with as_file(files("pdbfixer") / "templates" / f"{name}.pdb") as path:
        pdb = app.PDBFile(str(path))
    positions = pdb.positions.value_in_unit(unit.nanometer)
    return tuple(
        (atom.name, atom.element.symbol, tuple(position))
        for atom, position in zip(pdb.topology.atoms(), positions, strict=True)
        if atom.element is not app.element.hydrogen and atom.name != "OXT"
    )


def is_amino_acid(residue: Residue) -> bool:
    """Whether a residue has the atoms N, CA and C."""
    return {atom.name for atom in residue.atoms()} >= BACKBONE


def nonstandard_template(field: app.ForceField, residue: Residue) -> Any | None:
    """The force field's template of a non-standard amino acid by its name; None for any other residue."""
    if residue.name in STANDARD or not is_amino_acid(residue):
        return None
    return field._templates.get(residue.name)


def template_heavy_atoms(template: Any) -> set[str]:
    """Names of the heavy atoms of a force field's template."""
    return {atom.name for atom in template.atoms if atom.element not in (None, app.element.hydrogen)}


def template_hydrogens(template: Any) -> list[tuple[str, str]]:
    """Name of each hydrogen of a force field's template and of the atom that it is bonded to."""
    found = []
    for i, j in template.bonds:
        for hydrogen, parent in ((template.atoms[i], template.atoms[j]), (template.atoms[j], template.atoms[i])):
            if hydrogen.element is app.element.hydrogen:
                found.append((hydrogen.name, parent.name))
    return found

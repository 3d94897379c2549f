"""Why a force field does not fit a structure, residue by residue, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import openmm
from openmm import app, unit
from openmm.app.topology import Atom, Residue
from pdbfixer.pdbfixer import substitutions

from openmm_bg.systems.hydrogens import add_hydrogens
from openmm_bg.systems.residue_templates import (
    CAPS,
    STANDARD,
    heavy_atom_template,
    is_amino_acid,
    nonstandard_template,
    template_heavy_atoms,
)

WATER = frozenset(("HOH", "WAT", "SOL", "TIP3", "DOD"))
_SHOWN = 6


def is_solvent(residue: Residue) -> bool:
    """Whether a residue is water, or an atom by itself, as ions are."""
    return residue.name in WATER or len(list(residue.atoms())) == 1


def advice(field: app.ForceField, topology: app.Topology, positions: unit.Quantity | None) -> str:
    """Say what is wrong with a structure that a force field does not fit, and the way out of each thing found.

    Without positions, missing hydrogens are not looked for residue by residue.
    """
    found = [*_solvent(topology), *_unknown(field, topology)]
    missing = list(_missing_heavy_atoms(field, topology))
    found += [f"Atoms are missing: {_some(missing)}. add_missing_atoms=True adds them."] if missing else []
    if not any(atom.element is app.element.hydrogen for atom in topology.atoms()):
        found.append("The structure holds no hydrogens: pass add_hydrogens=True, or add them with openmm.app.Modeller.")
    elif not found and positions is not None:
        lacking = list(_missing_hydrogens(topology, positions))
        found += [f"Hydrogens are missing: {_some(lacking)}. add_hydrogens=True adds them."] if lacking else []
    return " ".join(found) or (
        "Check that hydrogens are complete (add_hydrogens=True adds those that are missing), that the topology lists "
        "all bonds, and that the force field has the residue."
    )


def label(residue: Residue) -> str:
    """Name and number of a residue."""
    return f"{residue.name}{residue.id}"


def _solvent(topology: app.Topology) -> Iterator[str]:
    names = [label(residue) for residue in topology.residues() if is_solvent(residue)]
    if names:
        yield (
            f"The structure holds water or ions ({_some(names)}); expected one solute in implicit solvent: "
            "from_pdb(..., remove_solvent=True) leaves them out, as does openmm.app.Modeller.delete."
        )


def _unknown(field: app.ForceField, topology: app.Topology) -> Iterator[str]:
    unknown = [
        residue
        for residue in topology.residues()
        if residue.name not in STANDARD
        and residue.name not in CAPS
        and not is_solvent(residue)
        and residue.name not in field._templates
    ]
    if not unknown:
        return
    text = f"The force field has no residue {_some([label(residue) for residue in unknown])}: use one that has it"
    pairs = {residue.name: substitutions[residue.name] for residue in unknown if residue.name in substitutions}
    if pairs:
        text += f" (charmm36.xml has some more), or replace it by its nearest relative: substitute={pairs}"
    others = sorted({residue.name for residue in unknown} - pairs.keys())
    if others:
        text += f"; {', '.join(others)} may be a ligand, which has to be left out"
    yield text + "."


def _missing_heavy_atoms(field: app.ForceField, topology: app.Topology) -> Iterator[str]:
    bonded: dict[Atom, list[Atom]] = {atom: [] for atom in topology.atoms()}
    for first, second in topology.bonds():
        bonded[first].append(second)
        bonded[second].append(first)
    for residue in topology.residues():
        atoms = {atom.name: atom for atom in residue.atoms()}
        template = nonstandard_template(field, residue)
        if residue.name in STANDARD:
            expected = [name for name, _, _ in heavy_atom_template(residue.name)]
        else:
            expected = [] if template is None else sorted(template_heavy_atoms(template))
        lacking = [name for name in expected if name not in atoms]
        if is_amino_acid(residue):
            partners = [other.element for other in bonded[atoms["C"]]]
            is_end = app.element.nitrogen not in partners and residue == list(residue.chain.residues())[-1]
            if is_end and "OXT" not in atoms:
                lacking.append("OXT")
        if lacking:
            yield f"{label(residue)} ({', '.join(lacking)})"


def _missing_hydrogens(topology: app.Topology, positions: unit.Quantity) -> Iterator[str]:
    before = {residue.index: {atom.name for atom in residue.atoms()} for residue in topology.residues()}
    try:
        complete, _ = add_hydrogens(None, topology, positions)
    except (ValueError, openmm.OpenMMException):  # what is wrong is another thing
        return
    for residue in complete.residues():
        added = [atom.name for atom in residue.atoms() if atom.name not in before[residue.index]]
        if added:
            yield f"{label(residue)} ({', '.join(added)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

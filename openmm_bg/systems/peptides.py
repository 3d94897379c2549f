"""Peptides from their sequence: an extended all-L, all-trans chain, hydrogens added, energy minimised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from openmm import app, unit

from openmm_bg.systems.hydrogens import add_hydrogens
from openmm_bg.systems.molecular_system import (
    DEFAULT_FORCEFIELD,
    FloatArray,
    MolecularSystem,
    create_system,
    load_forcefield,
    minimize,
)
from openmm_bg.systems.residue_templates import CAPS, heavy_atom_template

_ONE_LETTER = {
    **{"A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU", "G": "GLY", "H": "HIS"},
    **{"I": "ILE", "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE", "P": "PRO", "S": "SER", "T": "THR", "W": "TRP"},
    **{"Y": "TYR", "V": "VAL"},
}
# Protonation states that openmm.app.Modeller knows as variants of a residue.
_VARIANTS = {"HID": "HIS", "HIE": "HIS", "HIP": "HIS", "ASH": "ASP", "GLH": "GLU", "LYN": "LYS"}

# Backbone geometry in nm and degrees (Engh and Huber, 1991), and the torsions of an extended strand.
_N_CA, _CA_C, _C_N, _C_O = 0.1459, 0.1525, 0.1336, 0.1229
_N_CA_C, _CA_C_N, _C_N_CA, _CA_C_O = 111.0, 117.2, 121.7, 120.4
_PHI, _PHI_PROLINE, _PSI, _OMEGA = -120.0, -70.0, 140.0, 180.0


def peptide(
    sequence: str,
    *,
    forcefield: app.ForceField | Sequence[str] | str = DEFAULT_FORCEFIELD,
    constraints: Any = app.HBonds,
    hydrogen_mass: unit.Quantity | float | None = None,
    minimized: bool = True,
) -> MolecularSystem:
    """Build a peptide from its sequence: all L, all trans, extended, minimised; the same at every call.

    Parameters
    ----------
    sequence : str
        Three-letter codes joined by hyphens, "ACE-ALA-NME" (ACE and NME are caps; HID, HIE, HIP, ASH, GLH and LYN
        choose a protonation state), or one-letter codes, "YGGFM"; "ALA" alone is the residue. A terminus without cap is
        charged.
    forcefield : openmm.app.ForceField or sequence of str
        A force field or the names of its files; by default Amber ff99SB-ILDN with OBC implicit solvent.
    constraints : None, openmm.app.HBonds, openmm.app.AllBonds or openmm.app.HAngles
        Which bonds are rigid.
    hydrogen_mass : Quantity or float, optional
        Mass of hydrogens (amu), taken from the heavy atoms they are bonded to.
    minimized : bool
        False leaves the built structure as it is; minimising a long chain takes minutes.

    Returns
    -------
    MolecularSystem
        Without cutoff and without CMMotionRemover.

    Raises
    ------
    ValueError
        If the sequence is empty, a residue is unknown, or a cap stands inside the chain.
    """
    residues = parse_sequence(sequence)
    topology, positions = heavy_atoms(residues, [_extended(name) for name in residues])
    return finish(residues, topology, positions, forcefield, constraints, hydrogen_mass, minimized)


def finish(
    residues: list[str],
    topology: app.Topology,
    positions: FloatArray,
    forcefield: app.ForceField | Sequence[str] | str,
    constraints: Any,
    hydrogen_mass: unit.Quantity | float | None,
    minimized: bool = True,
) -> MolecularSystem:
    """Add hydrogens to the heavy atoms of a chain (nm), parametrise it, and minimise its energy if `minimized`."""
    field = load_forcefield(forcefield)
    variants = [name if name in _VARIANTS else None for name in residues]
    complete, with_hydrogens = add_hydrogens(field, topology, positions * unit.nanometer, variants)
    system = create_system(field, complete, constraints=constraints, hydrogen_mass=hydrogen_mass)
    start = np.array(with_hydrogens.value_in_unit(unit.nanometer), dtype=np.float64)
    return MolecularSystem(system, complete, minimize(system, start) if minimized else start)


def parse_sequence(sequence: str) -> list[str]:
    """Three-letter names of the residues of a sequence, checked; see `peptide`."""
    text = sequence.strip().upper()
    if not text:
        raise ValueError('The sequence is empty; expected "ACE-ALA-NME" or one-letter codes such as "YGGFM".')
    known = {*_ONE_LETTER.values(), *_VARIANTS, *CAPS}
    if "-" in text or text in known:
        residues = text.split("-")
    else:
        unknown = sorted(set(text) - set(_ONE_LETTER))
        if unknown:
            raise ValueError(
                f"Unknown one-letter codes {unknown} in {sequence!r}; expected letters of {''.join(_ONE_LETTER)}, or "
                "three-letter codes joined by hyphens."
            )
        residues = [_ONE_LETTER[letter] for letter in text]
    for index, name in enumerate(residues):
        if name not in known:
            raise ValueError(
                f"Unknown residue {name!r} at place {index + 1} of {sequence!r}; known are {', '.join(sorted(known))}. "
                "For others, build the structure elsewhere and use from_pdb with a force field that has them."
            )
        if (name == "ACE" and index != 0) or (name == "NME" and index != len(residues) - 1):
            raise ValueError(f"{name} at place {index + 1} of {sequence!r}: ACE can only come first and NME only last.")
    if not set(residues) - set(CAPS):
        raise ValueError(f"{sequence!r} holds no amino acid; expected at least one, as in ACE-ALA-NME.")
    return residues


def place_atom(a: FloatArray, b: FloatArray, c: FloatArray, bond: float, angle: float, torsion: float) -> FloatArray:
    """Position of the atom d with |cd| = bond (nm), angle bcd and torsion abcd (degrees): natural extension (NeRF)."""
    theta, phi = np.radians([angle, torsion])
    bc = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, bc)
    normal /= np.linalg.norm(normal)
    frame = np.stack([bc, np.cross(normal, bc), normal])
    local = bond * np.array([-np.cos(theta), np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)])
    return np.asarray(c + local @ frame)


def heavy_atoms(residues: list[str], torsions: Sequence[tuple[float, float, float]]) -> tuple[app.Topology, FloatArray]:
    """Topology and positions (nm) of the heavy atoms of a chain with given phi, psi and omega (degrees).

    A residue's omega is that of the bond to the one behind it; the first phi and the last omega mean nothing.
    """
    backbone = _backbone(torsions)
    topology = app.Topology()
    chain = topology.addChain()
    positions: list[FloatArray] = []
    for index, name in enumerate(residues):
        base_name = _VARIANTS.get(name, name)
        residue = topology.addResidue(base_name, chain, str(index + 1))
        for atom_name, symbol, position in _residue_atoms(base_name, backbone[index]):
            topology.addAtom(atom_name, app.Element.getBySymbol(symbol), residue)
            positions.append(position)
    if residues[-1] != "NME":
        n, ca, c, o = (backbone[-1][name] for name in ("N", "CA", "C", "O"))
        topology.addAtom("OXT", app.element.oxygen, residue)
        positions.append(place_atom(n, ca, c, _C_O, _CA_C_O, torsion_of(n, ca, c, o) + 180.0))
    topology.createStandardBonds()
    return topology, np.array(positions)


def _extended(name: str) -> tuple[float, float, float]:
    """Torsions phi, psi and omega of a residue in an extended strand."""
    return (_PHI_PROLINE if name == "PRO" else _PHI, _PSI, _OMEGA)


def _backbone(torsions: Sequence[tuple[float, float, float]]) -> list[dict[str, FloatArray]]:
    """Positions of N, CA, C, O of each residue; CH3 of ACE and the methyl of NME stand for CA."""
    origin = np.zeros(3)
    trace = [origin, origin + [_N_CA, 0.0, 0.0]]
    theta = np.radians(_N_CA_C)
    trace.append(trace[1] + _CA_C * np.array([-np.cos(theta), np.sin(theta), 0.0]))
    for (_, psi, omega), (phi, _, _) in pairwise(torsions):
        for bond, angle, torsion in ((_C_N, _CA_C_N, psi), (_N_CA, _C_N_CA, omega), (_CA_C, _N_CA_C, phi)):
            trace.append(place_atom(trace[-3], trace[-2], trace[-1], bond, angle, torsion))
    backbone = []
    for index, (_, psi, _) in enumerate(torsions):
        n, ca, c = trace[3 * index : 3 * index + 3]
        o = place_atom(n, ca, c, _C_O, _CA_C_O, psi + 180.0)
        backbone.append({"N": n, "CA": ca, "C": c, "O": o})
    return backbone


def _residue_atoms(name: str, backbone: dict[str, FloatArray]) -> Iterator[tuple[str, str, FloatArray]]:
    """Name, element and position (nm) of each heavy atom of a residue on its backbone."""
    if name == "ACE":
        yield "CH3", "C", backbone["CA"]
        yield "C", "C", backbone["C"]
        yield "O", "O", backbone["O"]
        return
    if name == "NME":
        yield "N", "N", backbone["N"]
        yield "C", "C", backbone["CA"]
        return
    template = heavy_atom_template(name)
    names = [atom_name for atom_name, _, _ in template]
    coordinates = np.array([position for _, _, position in template])
    anchors = [names.index(anchor) for anchor in ("N", "CA", "C")]
    placed = _superpose(coordinates, anchors, np.array([backbone[key] for key in ("N", "CA", "C")]))
    for (atom_name, symbol, _), position in zip(template, placed, strict=True):
        yield atom_name, symbol, backbone.get(atom_name, position)


def _superpose(coordinates: FloatArray, anchors: list[int], targets: FloatArray) -> FloatArray:
    """Move `coordinates` rigidly so that the anchor atoms fit `targets` best (Kabsch, proper rotations)."""
    centre, target_centre = coordinates[anchors].mean(axis=0), targets.mean(axis=0)
    u, _, vt = np.linalg.svd((coordinates[anchors] - centre).T @ (targets - target_centre))
    sign = np.sign(np.linalg.det(u @ vt))
    rotation = u @ np.diag([1.0, 1.0, sign]) @ vt
    return np.asarray((coordinates - centre) @ rotation + target_centre)


def torsion_of(a: FloatArray, b: FloatArray, c: FloatArray, d: FloatArray) -> float:
    """Torsion a-b-c-d in degrees."""
    first, second, third = b - a, c - b, d - c
    normal, other = np.cross(first, second), np.cross(second, third)
    return float(np.degrees(np.arctan2(np.linalg.norm(second) * first @ other, normal @ other)))

"""The structures that the page's viewer draws, as plain data: atoms, bonds, and positions of each structure."""

from __future__ import annotations

from typing import Any

import mdtraj
import numpy as np

from openmm_bg.analysis.superposition import Indices, Superposed, superposed_atoms
from openmm_bg.density import FloatArray
from openmm_bg.report.protein import DRAWN, Protein
from openmm_bg.report.results import BG_LANGEVIN

_BACKBONE, _NOT_DRAWN = frozenset({"N", "CA", "C"}), frozenset({"O", "OXT"})
_MOST_DRAWN = 6
_PER_NM = 1000  # positions are whole picometres


def scene(protein: Protein) -> dict[str, Any]:
    """Return what the viewer needs.

    The first structure is the one that the run began with; then come the last frame of the chain, if it was kept, and
    draws of the generator at even spacing, none picked. All are superposed on the first by their backbones.

    Returns
    -------
    dict
        `residues`: names; `residue`, `element`: of each atom drawn; `backbone`, `side_chains`: pairs of atoms;
        `structures`: each with its `name`, `deviation` from the first (nm), and `positions`, atom by atom in pm;
        `shown`: which of them are seen before a choice is made.
    """
    topology = protein.molecule.topology
    shown = [a for a in topology.atoms() if a.element is not None and a.element.symbol != "H"]
    shown = [a for a in shown if a.name not in _NOT_DRAWN]
    place = {atom.index: number for number, atom in enumerate(shown)}
    backbone: list[list[int]] = []
    side_chains: list[list[int]] = []
    for first, second in topology.bonds():
        if first.index in place and second.index in place:
            both = {first.name, second.name} <= _BACKBONE
            (backbone if both else side_chains).append([place[first.index], place[second.index]])
    names, positions = _structures(protein)
    fitted, deviations = _superposed(positions, superposed_atoms(topology))
    picometres = np.round(_PER_NM * fitted[:, [atom.index for atom in shown]]).astype(np.int64)
    return {
        "residues": protein.residues,
        "residue": [atom.residue.index for atom in shown],
        "element": [atom.element.symbol for atom in shown],
        "backbone": backbone,
        "side_chains": side_chains,
        "shown": sorted({0, next((i for i, name in enumerate(names) if name.startswith("Drawn")), len(names) - 1)}),
        "structures": [
            {"name": name, "deviation": round(float(deviation), 4), "positions": x.ravel().tolist()}
            for name, deviation, x in zip(names, deviations, picometres, strict=True)
        ],
    }


def _structures(protein: Protein) -> tuple[list[str], FloatArray]:
    names, positions = ["Start"], [protein.molecule.positions]
    chain, drawn = protein.source(BG_LANGEVIN), protein.source(DRAWN)
    if chain is not None and len(chain.positions):
        names.append("End of the chain")
        positions.append(chain.positions[-1])
    if drawn is not None:
        # Draws that follow each other may keep the frozen coordinates of one frame.
        step = max(1, -(-len(drawn.positions) // _MOST_DRAWN))
        for number, x in enumerate(drawn.positions[::step], 1):
            names.append(f"Drawn {number}")
            positions.append(x)
    return names, np.stack(positions)


def _superposed(positions: FloatArray, atoms: Indices) -> tuple[FloatArray, FloatArray]:
    """Positions on the first structure, which is centred, and the deviations of these atoms from it."""
    deviations = Superposed(positions, atoms)
    centred = positions - positions[:, atoms].mean(axis=1, keepdims=True)
    trajectory = mdtraj.Trajectory(centred, None)
    trajectory.superpose(trajectory[0], atom_indices=atoms, parallel=False)
    return np.asarray(trajectory.xyz, dtype=np.float64), deviations.from_one(deviations, 0)

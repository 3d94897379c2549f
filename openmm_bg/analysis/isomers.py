"""Peptide bonds that are cis where the training frames are trans, or the other way round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import openmm.app
from numpy.typing import NDArray

from openmm_bg.analysis.dihedrals import torsion_angles
from openmm_bg.analysis.membership import in_nanometers
from openmm_bg.density import FloatArray

_OUTER = ("CA", "CH3", "C")  # the carbon beyond either end of the bond, also in caps


@dataclass(frozen=True)
class PeptideBonds:
    """The peptide bonds of a molecule and the forms in which frames have them.

    Attributes
    ----------
    names : tuple of str
        The residue after each bond.
    torsions : ndarray of int, shape (n_bonds, 4)
        Atoms of omega.
    seen : ndarray of bool, shape (2, n_bonds)
        Whether any frame has the bond trans, and whether any has it cis.
    """

    names: tuple[str, ...]
    torsions: NDArray[np.int64]
    seen: NDArray[np.bool_]

    @classmethod
    def of(cls, frames: Any, topology: openmm.app.Topology) -> Self:
        """Find the bonds, and how frames of shape (n, n_atoms, 3), nm, have them."""
        own = {residue.index: {atom.name: atom.index for atom in residue.atoms()} for residue in topology.residues()}
        names, torsions = [], []
        for bond in topology.bonds():
            for carbon, nitrogen in (tuple(bond), tuple(bond)[::-1]):
                if (carbon.name, nitrogen.name) != ("C", "N") or carbon.residue.index == nitrogen.residue.index:
                    continue
                before, after = own[carbon.residue.index], own[nitrogen.residue.index]
                ends = [next((atoms[name] for name in _OUTER if name in atoms), None) for atoms in (before, after)]
                if None not in ends:
                    names.append(f"{nitrogen.residue.name}{nitrogen.residue.id}")
                    torsions.append([ends[0], carbon.index, nitrogen.index, ends[1]])
        atoms = np.array(torsions, dtype=np.int64).reshape(-1, 4)
        cis = _cis(in_nanometers(frames), atoms)
        return cls(tuple(names), atoms, np.stack([~cis.all(axis=0), cis.any(axis=0)]))

    def unseen(self, positions: FloatArray) -> list[str]:
        """Name, as in "cis peptide bond before PRO3", what no frame has; positions of shape (n_atoms, 3), nm."""
        cis = _cis(positions[None], self.torsions)[0].astype(np.int64)
        forms = ("trans", "cis")
        return [
            f"{forms[form]} peptide bond before {name}"
            for form, name, seen in zip(cis, self.names, self.seen.T, strict=True)
            if not seen[form]
        ]


def _cis(positions: FloatArray, torsions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each omega is nearer to 0 than to 180 degrees, shape (n, n_bonds)."""
    return np.asarray(np.abs(torsion_angles(positions, torsions)) < math.pi / 2.0)

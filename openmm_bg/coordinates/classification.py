"""Which internal coordinates of a protein a reduced generator models, and which it freezes.

Generated are the torsions about bonds of the backbone and the angles along it, its bonds on request, and every
rotatable torsion of a side chain. Frozen are the others, which are narrow: bonds and angles of side chains, hydrogens
and carbonyl oxygens, differences of siblings, planar groups, and rings. The phi of a proline belongs to its ring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openmm.app
from numpy.typing import NDArray

from openmm_bg.coordinates.residues import Backbone, find_backbone
from openmm_bg.coordinates.zmatrix import ZMatrix

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class CoordinateKinds:
    """What the bonds, the angles or the torsions of a z-matrix are, in the order of `Internal`.

    Attributes
    ----------
    residue : ndarray of int
        Index of the residue of the atom that the coordinate places.
    side_chain : ndarray of bool
        Whether it belongs to a side chain and not to the backbone.
    generated : ndarray of bool
        Whether a reduced generator models it; the others are frozen.
    """

    residue: IntArray
    side_chain: BoolArray
    generated: BoolArray


@dataclass(frozen=True)
class Classification:
    """What the internal coordinates of a z-matrix are.

    Attributes
    ----------
    bonds, angles, torsions : CoordinateKinds
        Of n_atoms - 1 bonds, n_atoms - 2 angles and n_atoms - 3 torsions.
    """

    bonds: CoordinateKinds
    angles: CoordinateKinds
    torsions: CoordinateKinds


def classify(
    zmatrix: ZMatrix, topology: openmm.app.Topology, rotatable: BoolArray, *, bond_lengths: bool = False
) -> Classification:
    """Tell generated from frozen coordinates, and backbone from side chains.

    Parameters
    ----------
    zmatrix : ZMatrix
        Of this topology.
    topology : openmm.app.Topology
    rotatable : ndarray of bool, shape (n_atoms - 3,)
        Rows with a rotatable torsion; see `rotatable_torsions`.
    bond_lengths : bool
        Whether the bonds of the backbone are generated too.

    Raises
    ------
    ValueError
        If a residue is neither an amino acid nor a cap.
    """
    backbone = find_backbone(topology)
    a0, a1, a2 = zmatrix.seed
    atoms, (parent, grandparent, _) = zmatrix.atoms, zmatrix.references.T
    along_bond = backbone.chain[np.r_[a0, a2, atoms]] & backbone.chain[np.r_[a1, a1, parent]]
    along_angle = (
        backbone.chain[np.r_[a0, atoms]] & backbone.chain[np.r_[a1, parent]] & backbone.chain[np.r_[a2, grandparent]]
    )
    about_chain = zmatrix.own_torsion & backbone.chain[parent] & backbone.chain[grandparent]
    torsions = _kinds(backbone, atoms, rotatable | (about_chain & ~zmatrix.ring_torsion))
    return Classification(
        bonds=_kinds(backbone, np.r_[a0, a2, atoms], along_bond & bond_lengths),
        angles=_kinds(backbone, np.r_[a1, atoms], along_angle),
        torsions=CoordinateKinds(torsions.residue, torsions.side_chain & ~about_chain, torsions.generated),
    )


def _kinds(backbone: Backbone, placed: IntArray, generated: BoolArray) -> CoordinateKinds:
    """Kinds of coordinates that place these atoms."""
    return CoordinateKinds(backbone.residue[placed], backbone.side_chain[placed], generated)

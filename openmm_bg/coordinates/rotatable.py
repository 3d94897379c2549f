"""Which torsions turn freely: those of bonds outside rings that no force of the System holds planar."""

from __future__ import annotations

import numpy as np
import openmm
import openmm.app
from numpy.typing import NDArray
from openmm import unit

from openmm_bg.coordinates.zmatrix import ZMatrix, bond_graph

PLANAR_BARRIER = 50.0  # kJ/mol; amide bonds are near 84, rotatable bonds below 30


def rotatable_torsions(zmatrix: ZMatrix, system: openmm.System, topology: openmm.app.Topology) -> NDArray[np.bool_]:
    """Rows of the z-matrix with a torsion about a rotatable bond, shape (n_atoms - 3,).

    A bond outside rings counts as rotatable unless the twofold terms of the System's periodic torsions about it add
    up to a barrier above 50 kJ/mol (amides, double bonds, guanidinium). Improper torsions, which hold an atom in the
    plane of its neighbours, say nothing of turning about a bond.
    """
    graph = bond_graph(topology)
    barrier: dict[frozenset[int], float] = {}
    for force in system.getForces():
        if isinstance(force, openmm.PeriodicTorsionForce):
            for index in range(force.getNumTorsions()):
                i, j, k, m, periodicity, _, constant = force.getTorsionParameters(index)
                proper = graph.has_edge(i, j) and graph.has_edge(j, k) and graph.has_edge(k, m)
                if proper and periodicity == 2:
                    bond = frozenset((j, k))
                    barrier[bond] = barrier.get(bond, 0.0) + 2.0 * constant.value_in_unit(unit.kilojoule_per_mole)
    planar = [barrier.get(frozenset((int(p1), int(p2))), 0.0) > PLANAR_BARRIER for p1, p2, _ in zmatrix.references]
    return np.asarray(zmatrix.own_torsion & ~zmatrix.ring_torsion & ~np.array(planar, dtype=bool))

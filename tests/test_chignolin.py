"""Chignolin is built folded, as in its crystal structure."""

from __future__ import annotations

import mdtraj
import numpy as np
import pytest

from openmm_bg.systems import MolecularSystem, chignolin

# Alpha carbons of PDB entry 5AWL, in nm.
CRYSTAL = np.array(
    [
        *([2.4935, 2.0652, 1.0774], [2.1801, 1.9381, 0.9017], [1.8477, 2.0539, 1.0432], [1.6223, 1.7660, 1.1537]),
        *([1.3040, 1.9289, 1.0212], [1.4200, 2.0806, 0.6941], [1.7256, 1.8676, 0.6039], [1.9242, 2.1760, 0.5125]),
        *([2.2762, 2.2680, 0.6241], [2.3135, 2.5467, 0.8794]),
    ]
)


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return chignolin()


def trajectory(molecule: MolecularSystem) -> mdtraj.Trajectory:
    return mdtraj.Trajectory(molecule.positions[None], mdtraj.Topology.from_openmm(molecule.topology))


def test_the_fold_is_that_of_the_crystal_structure(molecule: MolecularSystem) -> None:
    assert molecule.n_atoms == 166
    alpha = molecule.positions[trajectory(molecule).topology.select("name CA")]
    found, expected = alpha - alpha.mean(axis=0), CRYSTAL - CRYSTAL.mean(axis=0)
    u, _, vt = np.linalg.svd(found.T @ expected)
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    rmsd = np.sqrt(np.square(found @ rotation - expected).sum(axis=-1).mean())
    assert rmsd < 0.06  # extended, it is 0.6 nm


def test_side_chains_are_in_the_rotamers_of_the_crystal_structure(molecule: MolecularSystem) -> None:
    # Of Tyr 1, 2, Asp 3, Pro 4, Glu 5, Thr 6, 8, Trp 9 and Tyr 10 in PDB entry 5AWL, degrees.
    crystal = np.array([-46.0, -67.3, -174.8, 26.2, -78.1, 63.1, 55.8, -175.2, 68.6])
    found = np.degrees(mdtraj.compute_chi1(trajectory(molecule))[1][0])
    away = np.abs((found - crystal + 180.0) % 360.0 - 180.0)
    others = np.arange(9) != 3  # proline's ring flips easily
    assert away[others].max() < 30.0


def test_the_hairpin_is_held_by_its_hydrogen_bonds(molecule: MolecularSystem) -> None:
    frames = trajectory(molecule)
    bonds = {
        (str(frames.topology.atom(donor)), str(frames.topology.atom(acceptor)))
        for donor, _, acceptor in mdtraj.baker_hubbard(frames)
    }
    assert {("ASP3-N", "THR8-O"), ("GLY7-N", "ASP3-O"), ("TYR10-N", "TYR1-O")} <= bonds

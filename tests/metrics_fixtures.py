"""Structures and ensembles with known averages for the tests of metrics."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import as_file, files

import networkx as nx
import numpy as np
from openmm import app, unit
from scipy.signal import lfilter
from scipy.spatial.transform import Rotation


@cache
def villin_structure() -> tuple[app.Topology, np.ndarray]:
    """Topology and positions (nm) of villin HP35 as OpenMM carries it, without a force field."""
    with as_file(files("openmm.app") / "data" / "test.pdb") as path:
        pdb = app.PDBFile(str(path))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([r for r in modeller.topology.residues() if "CA" not in {atom.name for atom in r.atoms()}])
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def chain_of(names: list[str], bonds: list[tuple[int, int]], residues: list[int] | None = None) -> app.Topology:
    """A topology of atoms such as "C" or "H" (a name that begins with its element), one residue unless told."""
    topology = app.Topology()
    chain = topology.addChain()
    places = residues or [0] * len(names)
    made = [topology.addResidue("UNK", chain) for _ in range(max(places) + 1)]
    atoms = [
        topology.addAtom(name, app.Element.getBySymbol(name[0]), made[place])
        for name, place in zip(names, places, strict=True)
    ]
    for first, second in bonds:
        topology.addBond(atoms[first], atoms[second])
    return topology


def turned(
    topology: app.Topology, positions: np.ndarray, atoms: tuple[int, int, int, int], angles: np.ndarray
) -> np.ndarray:
    """Copies of a structure, (n, n_atoms, 3), each turned about a bond by an angle more than it is now."""
    _, first, second, _ = atoms
    graph = nx.Graph((a.index, b.index) for a, b in topology.bonds())
    graph.remove_edge(first, second)
    moved = sorted(nx.node_connected_component(graph, second))
    axis = positions[second] - positions[first]
    rotations = Rotation.from_rotvec(np.outer(angles, axis / np.linalg.norm(axis))).as_matrix()
    frames = np.repeat(positions[None], len(angles), axis=0)
    frames[:, moved] = np.einsum("nij,aj->nai", rotations, positions[moved] - positions[first]) + positions[first]
    return frames


def autoregressive(n: int, rng: np.random.Generator, rho: float = 0.9) -> np.ndarray:
    """A stationary AR(1) chain of unit variance about zero."""
    noise = rng.standard_normal(n) * math.sqrt(1 - rho**2)
    noise[0] = rng.standard_normal()
    return lfilter([1.0], [1.0, -rho], noise)


def moved_about(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same frames, each rotated and translated at random."""
    rotations = Rotation.random(len(positions), rng=rng).as_matrix()
    return np.einsum("nij,naj->nai", rotations, positions) + rng.normal(0.0, 2.0, (len(positions), 1, 3))

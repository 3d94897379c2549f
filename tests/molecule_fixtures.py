"""Molecules for the tests of coordinates and generators: from a line of SMILES, by hand, or bridged peptides."""

from __future__ import annotations

from functools import cache

import networkx as nx
import numpy as np
import openmm
from openmm import app, unit

from openmm_bg.systems import MolecularSystem, peptide

VALENCE = {"C": 4, "N": 3, "O": 2, "S": 2, "F": 1}
ORGANIC = {
    "benzene": "C1=CC=CC=C1",
    "naphthalene": "C1=CC=C2C=CC=CC2=C1",
    "cyclohexane": "C1CCCCC1",
    "cyclopropane": "C1CC1",
    "norbornane": "C1CC2CCC1C2",
    "caffeine": "CN1C=NC2=C1C(=O)N(C)C(=O)N2C",
    "ibuprofen": "CC(C)CC1=CC=C(C=C1)C(C)C(=O)O",
    "neopentane": "CC(C)(C)C",
    "ethanol": "CCO",
    "spiropentane": "C1CC12CC2",
}
LINEAR = {"propionitrile": "CCC#N", "but-2-yne": "CC#CC", "phenylacetylene": "C#CC1=CC=CC=C1"}


def topology_of(elements: list[str], bonds: list[tuple[int, int]]) -> app.Topology:
    """One residue with these atoms and bonds."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    atoms = [
        topology.addAtom(f"{element}{index}", app.Element.getBySymbol(element), residue)
        for index, element in enumerate(elements)
    ]
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
    return topology


def parse_smiles(smiles: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Elements and bonds of a Kekulé SMILES with one-letter elements, hydrogens added."""
    elements: list[str] = []
    bonds: dict[tuple[int, int], int] = {}
    branches: list[int] = []
    rings: dict[str, int] = {}
    last, order = -1, 1
    for letter in smiles:
        if letter in "-=#":
            order = "-=#".index(letter) + 1
        elif letter == "(":
            branches.append(last)
        elif letter == ")":
            last = branches.pop()
        elif letter.isdigit():
            if letter in rings:
                bonds[rings.pop(letter), last] = order
                order = 1
            else:
                rings[letter] = last
        else:
            elements.append(letter)
            if last >= 0:
                bonds[last, len(elements) - 1] = order
            last, order = len(elements) - 1, 1
    for atom, element in enumerate(list(elements)):
        used = sum(order for pair, order in bonds.items() if atom in pair)
        for _ in range(VALENCE[element] - used):
            elements.append("H")
            bonds[atom, len(elements) - 1] = 1
    return elements, list(bonds)


@cache
def organic(smiles: str) -> MolecularSystem:
    """An organic molecule with springs for bonds and angles, repulsion, and a structure at its minimum."""
    elements, bonds = parse_smiles(smiles)
    topology = topology_of(elements, bonds)
    graph = nx.Graph(bonds)
    system = openmm.System()
    for element in elements:
        system.addParticle(app.Element.getBySymbol(element).mass)
    stretch, bend = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for i, j in bonds:
        stretch.addBond(i, j, 0.109 if "H" in (elements[i], elements[j]) else 0.145, 250000.0)
    for centre in graph:
        ideal = {2: 180.0 if elements[centre] == "C" else 108.0, 3: 120.0, 4: 109.5}.get(graph.degree(centre))
        neighbours = sorted(graph[centre])
        for a, i in enumerate(neighbours):
            for k in neighbours[a + 1 :]:
                bend.addAngle(i, centre, k, np.radians(ideal), 400.0)
    repulsion = openmm.CustomBondForce("50*exp(-(r/0.2)^2)")
    for i, lengths in nx.all_pairs_shortest_path_length(graph):
        for j, length in lengths.items():
            if i < j and length > 2:
                repulsion.addBond(i, j)
    for force in (stretch, bend, repulsion):
        system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.random.default_rng(7).normal(scale=0.3, size=(len(elements), 3)))
    openmm.LocalEnergyMinimizer.minimize(context, 1.0)
    positions = context.getState(getPositions=True).getPositions(asNumpy=True)._value
    return MolecularSystem(system, topology, positions)


def cystine() -> tuple[app.Topology, np.ndarray]:
    """Two capped cysteines bridged by a disulfide, in one Topology; positions in nm."""
    cysteine = peptide("ACE-CYS-NME")
    turned = cysteine.positions * [-1.0, -1.0, 1.0] + [0.0, 0.0, 0.8]
    modeller = app.Modeller(cysteine.topology, cysteine.positions * unit.nanometer)
    modeller.add(cysteine.topology, turned * unit.nanometer)
    modeller.delete([atom for atom in modeller.topology.atoms() if atom.name == "HG"])
    sulfurs = [atom for atom in modeller.topology.atoms() if atom.name == "SG"]
    modeller.topology.addBond(*sulfurs)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer), dtype=np.float64)
    return modeller.topology, positions


def bent_chain(
    n_atoms: int, *, masses: list[float] | None = None, constrained: list[tuple[int, int]] | None = None
) -> tuple[openmm.System, app.Topology, np.ndarray]:
    """An unbranched chain of carbons at 0.15 nm and 110 degrees; `constrained` pairs at the length they have."""
    topology = topology_of(["C"] * n_atoms, [(i, i + 1) for i in range(n_atoms - 1)])
    positions = np.zeros((n_atoms, 3))
    half = np.radians(55.0)
    for i in range(1, n_atoms):
        step = [np.sin(half), np.cos(half) * (-1) ** i * np.cos(0.4 * i), np.cos(half) * (-1) ** i * np.sin(0.4 * i)]
        positions[i] = positions[i - 1] + 0.15 * np.array(step)
    system = openmm.System()
    for mass in masses or [12.0] * n_atoms:
        system.addParticle(mass)
    for i, j in constrained or []:
        system.addConstraint(i, j, float(np.linalg.norm(positions[i] - positions[j])))
    return system, topology, positions

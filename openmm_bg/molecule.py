"""What a generator remembers of the molecule it was made for, and how it recognises it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import openmm
import openmm.app
from openmm import unit

from openmm_bg.density import FloatArray


@dataclass(frozen=True)
class Molecule:
    """Atoms, bonds, masses, constraints and charges of one molecule, as plain data.

    Attributes
    ----------
    atoms : list of (atom name, element symbol or None, residue index)
    residues : list of (residue name, residue id, chain id)
    bonds : list of (int, int)
    masses : list of float, amu
    constraints : list of (int, int, float), nm
    charges : list of float or None
        Partial charges in units of the elementary charge, None for a System without a NonbondedForce.
    reference : list of list of float or None
        A reference structure in nm.
    """

    atoms: list[tuple[str, str | None, int]]
    residues: list[tuple[str, str, str]]
    bonds: list[tuple[int, int]]
    masses: list[float]
    constraints: list[tuple[int, int, float]]
    charges: list[float] | None
    reference: list[list[float]] | None = None

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.atoms)

    @classmethod
    def from_openmm(cls, system: openmm.System, topology: openmm.app.Topology) -> Self:
        """Describe the molecule of a System and its Topology.

        Raises
        ------
        ValueError
            If they differ in the number of atoms, or hold virtual sites or atoms without mass.
        """
        n_atoms = topology.getNumAtoms()
        if system.getNumParticles() != n_atoms:
            raise ValueError(
                f"The System has {system.getNumParticles()} particles, the topology {n_atoms} atoms; give the topology "
                "that the System was made from."
            )
        names = [f"{atom.residue.name}{atom.residue.id}:{atom.name}" for atom in topology.atoms()]
        virtual = [names[i] for i in range(n_atoms) if system.isVirtualSite(i)]
        if virtual:
            raise ValueError(
                f"The System has virtual sites ({', '.join(virtual[:5])}); a generator cannot be made for it yet. Use "
                "a force field without virtual sites for the molecule."
            )
        masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(n_atoms)]
        massless = [name for name, mass in zip(names, masses, strict=True) if mass <= 0.0]
        if massless:
            raise ValueError(
                f"Atoms without mass ({', '.join(massless[:5])}) never move in OpenMM, so that the molecule has no "
                "free pose; give them their mass."
            )
        residues = list(topology.residues())
        place = {residue.index: k for k, residue in enumerate(residues)}
        return cls(
            atoms=[
                (atom.name, None if atom.element is None else atom.element.symbol, place[atom.residue.index])
                for atom in topology.atoms()
            ],
            residues=[(residue.name, str(residue.id), str(residue.chain.id)) for residue in residues],
            bonds=[(bond[0].index, bond[1].index) for bond in topology.bonds()],
            masses=masses,
            constraints=_constraints(system),
            charges=_charges(system),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild from what `to_dict` returned, also after a round trip through JSON."""
        tuples = {key: [tuple(item) for item in data[key]] for key in ("atoms", "residues", "bonds", "constraints")}
        return cls(**{**data, **tuples})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def with_reference(self, positions: FloatArray) -> Molecule:
        """The same molecule with a reference structure, shape (n_atoms, 3), nm."""
        return replace(self, reference=np.asarray(positions, dtype=np.float64).tolist())

    def reference_positions(self) -> FloatArray | None:
        """The reference structure in nm, shape (n_atoms, 3), or None."""
        return None if self.reference is None else np.array(self.reference, dtype=np.float64)

    def topology(self) -> openmm.app.Topology:
        """The Topology, rebuilt."""
        topology = openmm.app.Topology()
        built = []
        before, current = None, None
        for name, identifier, chain in self.residues:
            if current is None or chain != before:  # an identifier may come again later: that is another chain
                before, current = chain, topology.addChain(chain)
            built.append(topology.addResidue(name, current, identifier))
        atoms = [
            topology.addAtom(name, None if symbol is None else openmm.app.Element.getBySymbol(symbol), built[residue])
            for name, symbol, residue in self.atoms
        ]
        for i, j in self.bonds:
            topology.addBond(atoms[i], atoms[j])
        return topology

    def constraints_system(self) -> openmm.System:
        """A System with the masses and constraints of the molecule and no forces."""
        system = openmm.System()
        for mass in self.masses:
            system.addParticle(mass)
        for i, j, distance in self.constraints:
            system.addConstraint(i, j, distance)
        return system

    def check_positions(self, positions: unit.Quantity | FloatArray) -> FloatArray:
        """Positions as an array of shape (n, n_atoms, 3), nm, float64.

        Raises
        ------
        ValueError
            If the shape is another or a number is not finite.
        """
        if isinstance(positions, unit.Quantity):
            positions = positions.value_in_unit(unit.nanometer)
        array = np.asarray(positions, dtype=np.float64)
        if array.ndim == 2:
            array = array[None]
        if array.ndim != 3 or array.shape[1:] != (self.n_atoms, 3):
            raise ValueError(
                f"Positions have shape {np.shape(positions)}; expected (n, {self.n_atoms}, 3) in nm: the atoms of the "
                "molecule that the generator was made for, in its order."
            )
        if not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))[0])
            raise ValueError(f"Configuration {bad} holds positions that are not finite numbers; remove it.")
        return array

    def check(self, system: openmm.System, topology: openmm.app.Topology | None = None) -> None:
        """Raise ValueError, naming the first difference, unless `system` and `topology` are those of this molecule.

        Masses, constraints and charges are compared. Other parameters of the force field are not part of the
        density's identity: a generator is exact for any potential on the same atoms.
        """
        n_particles = system.getNumParticles()
        if n_particles != self.n_atoms:
            raise ValueError(
                f"The generator was made for a molecule of {self.n_atoms} atoms, the System has {n_particles} "
                "particles. Explicit solvent and other molecules are not supported: use implicit solvent, or build a "
                "generator for this System."
            )
        if topology is not None:
            self._check_topology(topology)
        for i, mass in enumerate(self.masses):
            found = system.getParticleMass(i).value_in_unit(unit.dalton)
            if abs(found - mass) > 1e-4:
                raise ValueError(
                    f"Atom {i} ({self.atoms[i][0]}) has mass {found:.4f} amu in the System, the generator was made "
                    f"for {mass:.4f} amu (hydrogen-mass repartitioning?). Build the System with the same masses or "
                    "make a generator for this one."
                )
        expected = {(i, j): d for i, j, d in self.constraints}
        found_constraints = {(i, j): d for i, j, d in _constraints(system)}
        for i, j in sorted(expected.keys() ^ found_constraints.keys()):
            there = "only in the System" if (i, j) in found_constraints else "only in the generator"
            raise ValueError(
                f"The constraint between atoms {i} and {j} ({self.atoms[i][0]}, {self.atoms[j][0]}) is {there}: System "
                f"has {len(found_constraints)} constraints, generator {len(expected)}. Build both with the same "
                "`constraints` option."
            )
        for pair, distance in expected.items():
            if abs(found_constraints[pair] - distance) > 1e-6:
                raise ValueError(
                    f"The constraint between atoms {pair[0]} and {pair[1]} is {found_constraints[pair]:.6f} nm in the "
                    f"System and {distance:.6f} nm in the generator; use the same force field for both."
                )
        charges = _charges(system)
        if charges is not None and self.charges is not None:
            for i, (found_charge, charge) in enumerate(zip(charges, self.charges, strict=True)):
                if abs(found_charge - charge) > 1e-4:
                    raise ValueError(
                        f"Atom {i} ({self.atoms[i][0]}) has charge {found_charge:.4f} e in the System, the generator "
                        f"was made for {charge:.4f} e; use the same force field and protonation for both."
                    )

    def _check_topology(self, topology: openmm.app.Topology) -> None:
        atoms = list(topology.atoms())
        if len(atoms) != self.n_atoms:
            raise ValueError(f"The generator was made for {self.n_atoms} atoms, the topology has {len(atoms)}.")
        for i, (atom, (name, symbol, residue)) in enumerate(zip(atoms, self.atoms, strict=True)):
            found = None if atom.element is None else atom.element.symbol
            if (atom.name, found, atom.residue.name) != (name, symbol, self.residues[residue][0]):
                raise ValueError(
                    f"Atom {i} is {atom.residue.name}:{atom.name} ({found}) in the topology, the generator was made "
                    f"for {self.residues[residue][0]}:{name} ({symbol}). The order of atoms must be the same."
                )
        bonds = {frozenset((bond[0].index, bond[1].index)) for bond in topology.bonds()}
        expected = {frozenset(bond) for bond in self.bonds}
        if bonds != expected:
            i, j = sorted(next(iter(bonds ^ expected)))
            raise ValueError(
                f"The bond between atoms {i} and {j} is in only one of topology and generator; they are different "
                "molecules."
            )


def _constraints(system: openmm.System) -> list[tuple[int, int, float]]:
    found = []
    for index in range(system.getNumConstraints()):
        i, j, distance = system.getConstraintParameters(index)
        found.append((min(i, j), max(i, j), distance.value_in_unit(unit.nanometer)))
    return sorted(found)


def _charges(system: openmm.System) -> list[float] | None:
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            return [
                force.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge)
                for i in range(force.getNumParticles())
            ]
    return None

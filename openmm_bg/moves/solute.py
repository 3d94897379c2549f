"""Systems made from one that holds a solute and its solvent: the solute alone, and coupled by parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openmm

STERICS, ELECTROSTATICS = "openmm_bg_sterics", "openmm_bg_electrostatics"
_COULOMB = 138.935456  # kJ/mol nm / e^2
_LEFT_OUT = ("Thermostat", "Barostat", "CMMotionRemover")
_NOT_SWITCHED = ("CustomNonbondedForce", "GBSAOBCForce", "CustomGBForce", "CustomHbondForce", "AmoebaVdwForce")


def solute_system(system: openmm.System, atoms: Sequence[int]) -> openmm.System:
    """Masses, constraints and charges of some particles of a System by themselves, for comparison with a generator.

    Raises
    ------
    ValueError
        If there is no such particle, one is named twice, or a constraint joins one to a particle outside.
    """
    n, place = system.getNumParticles(), {atom: i for i, atom in enumerate(atoms)}
    if len(place) != len(atoms) or not place or min(place) < 0 or max(place) >= n:
        raise ValueError(f"atom_subset must name different particles from 0 to {n - 1}; it is {list(atoms)[:20]}.")
    alone, charges = openmm.System(), openmm.NonbondedForce()
    for atom in atoms:
        alone.addParticle(system.getParticleMass(atom))
    for index in range(system.getNumConstraints()):
        i, j, distance = system.getConstraintParameters(index)
        if (i in place) != (j in place):
            raise ValueError(
                f"Particles {i} and {j} are joined by a constraint, but only one of them is in atom_subset. Give the "
                "atoms of a whole molecule."
            )
        if i in place:
            alone.addConstraint(place[i], place[j], distance)
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for atom in atoms:
                charges.addParticle(*force.getParticleParameters(atom))
            alone.addForce(charges)
    return alone


def coupled_system(system: openmm.System, atoms: Sequence[int]) -> openmm.System:
    """A copy of a System in which global parameters couple the solute to everything else.

    At zero the solute's interactions within itself are those it has in vacuum.

    Raises
    ------
    ValueError
        If there is not exactly one NonbondedForce, or a force between solute and solvent that cannot be switched off.
    """
    copied = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    for index in reversed(range(copied.getNumForces())):
        if any(word in type(copied.getForce(index)).__name__ for word in _LEFT_OUT):
            copied.removeForce(index)
    forces = copied.getForces()
    nonbonded = [force for force in forces if isinstance(force, openmm.NonbondedForce)]
    strange = [type(force).__name__ for force in forces if type(force).__name__ in _NOT_SWITCHED]
    if len(nonbonded) != 1 or strange:
        raise ValueError(
            f"The System has {len(nonbonded)} NonbondedForce(s)" + "".join(f", a {name}" for name in strange) + ". "
            "Proposals for a solute in solvent switch off what it feels of the solvent, and know how to do that for "
            "exactly one NonbondedForce and no other force between molecules. Use a force field that has only that, "
            "such as the Amber ones with explicit water."
        )
    force = nonbonded[0]
    solute = set(atoms)
    excluded = _exceptions_within(force, solute)
    within, soft = _vacuum_pairs(), _soft_lennard_jones(force)
    parameters = [force.getParticleParameters(i) for i in range(force.getNumParticles())]
    plain = [(q._value, sigma._value, epsilon._value) for q, sigma, epsilon in parameters]
    for _, sigma, epsilon in plain:
        soft.addParticle([sigma, epsilon])
    for i, j in excluded:
        soft.addExclusion(i, j)
    soft.addInteractionGroup(sorted(solute), [i for i in range(len(plain)) if i not in solute])
    members = sorted(solute)
    pairs = {(min(i, j), max(i, j)) for i, j in excluded}
    for a, i in enumerate(members):
        for j in members[a + 1 :]:
            if (i, j) not in pairs:
                (qi, si, ei), (qj, sj, ej) = plain[i], plain[j]
                within.addBond(i, j, [_COULOMB * qi * qj, 0.5 * (si + sj), np.sqrt(ei * ej)])
    force.addGlobalParameter(ELECTROSTATICS, 1.0)
    for i in members:
        charge, sigma, _ = plain[i]
        force.setParticleParameters(i, 0.0, sigma, 0.0)
        force.addParticleParameterOffset(ELECTROSTATICS, i, charge, 0.0, 0.0)
    copied.addForce(within)
    copied.addForce(soft)
    return copied


def _exceptions_within(force: openmm.NonbondedForce, solute: set[int]) -> list[tuple[int, int]]:
    """All exceptions; raise if one joins solute and solvent."""
    found = []
    for index in range(force.getNumExceptions()):
        i, j, *_ = force.getExceptionParameters(index)
        if (i in solute) != (j in solute):
            raise ValueError(
                f"Particles {i} and {j} have an exception of the NonbondedForce, as bonded atoms have, but only one of "
                "them is in atom_subset. Give the atoms of a whole molecule."
            )
        found.append((i, j))
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise ValueError(
            "The NonbondedForce has parameter offsets of its own, as alchemical Systems have; proposals for a solute "
            "in solvent do not know how to combine theirs with them. Use the System without alchemical parameters."
        )
    return found


def _vacuum_pairs() -> openmm.CustomBondForce:
    """Pairs within the solute: Lennard-Jones, and what of Coulomb the NonbondedForce does not have at this level."""
    within = openmm.CustomBondForce(f"(1-{ELECTROSTATICS}^2)*qq/r + 4*epsilon*((sigma/r)^12 - (sigma/r)^6)")
    within.addGlobalParameter(ELECTROSTATICS, 1.0)
    for name in ("qq", "sigma", "epsilon"):
        within.addPerBondParameter(name)
    return within


def _soft_lennard_jones(force: openmm.NonbondedForce) -> openmm.CustomNonbondedForce:
    """Lennard-Jones between solute and solvent, soft in its core (Beutler et al., Chem. Phys. Lett. 222, 529, 1994)."""
    soft = openmm.CustomNonbondedForce(
        f"4*epsilon*{STERICS}*x*(x-1); x=1/(0.5*(1-{STERICS}) + (r/sigma)^6);"
        "sigma=0.5*(sigma1+sigma2); epsilon=sqrt(epsilon1*epsilon2)"
    )
    soft.addGlobalParameter(STERICS, 1.0)
    soft.addPerParticleParameter("sigma")
    soft.addPerParticleParameter("epsilon")
    method = force.getNonbondedMethod()
    if method == openmm.NonbondedForce.NoCutoff:
        soft.setNonbondedMethod(openmm.CustomNonbondedForce.NoCutoff)
    elif method == openmm.NonbondedForce.CutoffNonPeriodic:
        soft.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
    else:
        soft.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    soft.setCutoffDistance(force.getCutoffDistance())
    soft.setUseSwitchingFunction(force.getUseSwitchingFunction())
    soft.setSwitchingDistance(force.getSwitchingDistance())
    return soft

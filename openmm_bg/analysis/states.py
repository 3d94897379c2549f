"""Thermodynamic states whose free energies are compared: a potential at a temperature, or a generator.

A state gives the reduced potential u of configurations, -ln of its unnormalised density on the measure that OpenMM
samples. For a potential u = U / kT; for a generator u = -log_prob, which is normalised, so that its free energy
is known (docs: theory, "The flow as a thermodynamic state").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import openmm
from openmm import unit

from openmm_bg.analysis.thermal import kelvin, thermal_energy
from openmm_bg.analysis.timeseries import quiet_pymbar
from openmm_bg.analysis.weights import HasEnergy
from openmm_bg.density import FloatArray, ProposalDensity, check_has_density

#: The volume per molecule at the standard concentration of 1 mol/l, in nm^3.
STANDARD_VOLUME = 1.0e24 / unit.AVOGADRO_CONSTANT_NA.value_in_unit(unit.mole**-1)


@dataclass(frozen=True)
class Measure:
    """The measure on which a free energy is an absolute number.

    Attributes
    ----------
    n_atoms : int
    pose : {"invariant", "absolute"}
        Whether the known state is normalised modulo translation and rotation, or on all Cartesian coordinates.
    n_constraints : int
        With constraints the measure is the one that constrained dynamics samples, sqrt(det Z) delta(sigma) dx.
    """

    n_atoms: int
    pose: Literal["invariant", "absolute"]
    n_constraints: int = 0

    def log_pose_volume(self, volume: float = STANDARD_VOLUME) -> float:
        """ln(8 pi^2 V): what free translation in a volume V (nm^3) and free rotation add to ln Z."""
        return math.log(8.0 * math.pi**2 * volume)

    def describe(self, *, modulo_pose: bool) -> str:
        """Name the measure and its unit."""
        power = 3 * self.n_atoms - (6 if modulo_pose else 0)
        metric = (
            f" on the surface of the {self.n_constraints} constraints, sqrt(det Z) delta(sigma) dx with Z in 1/amu and "
            f"sigma in nm"
            if self.n_constraints
            else ""
        )
        return f"dx in nm^{power}{' modulo translation and rotation' if modulo_pose else ''}{metric}, without momenta"


class State(Protocol):
    """A thermodynamic state, sampled or not."""

    @property
    def name(self) -> str:
        """What the state is called in results."""
        ...

    @property
    def kelvin(self) -> float:
        """Temperature in K; NaN for one that has none."""
        ...

    @property
    def known_free_energy(self) -> float:
        """Reduced free energy on the state's own measure where it is known, else NaN."""
        ...

    def reduced_potential(self, positions: FloatArray) -> FloatArray:
        """Reduced potentials of configurations in nm, shape (n, n_atoms, 3) to (n,); +inf where they failed."""
        ...


@dataclass(frozen=True)
class EnergyState:
    """The canonical ensemble of a potential at a temperature.

    Parameters
    ----------
    name : str
        What the state is called in results.
    potential : SystemPotential or anything with its `energy`
        Energies in kJ/mol of positions in nm.
    temperature : Quantity or float (K)
    """

    name: str
    potential: HasEnergy
    temperature: Any

    def __post_init__(self) -> None:
        kelvin(self.temperature)

    @property
    def kelvin(self) -> float:
        """Temperature in K."""
        return kelvin(self.temperature)

    @property
    def known_free_energy(self) -> float:
        """NaN: the partition function is what is sought."""
        return math.nan

    def reduced_potential(self, positions: FloatArray) -> FloatArray:
        """U / kT of configurations in nm, shape (n, n_atoms, 3) to (n,); +inf where the energy failed."""
        return np.asarray(self.potential.energy(positions), dtype=np.float64) / thermal_energy(self.kelvin)


@dataclass(frozen=True)
class GeneratorState:
    """A normalised density: the state whose free energy is known.

    Parameters
    ----------
    name : str
        What the state is called in results.
    generator : BoltzmannGenerator or another density
        With `log_prob`, `n_atoms` and `pose`.
    """

    name: str
    generator: ProposalDensity

    def __post_init__(self) -> None:
        check_has_density(self.generator, "A state of known free energy")

    @property
    def kelvin(self) -> float:
        """The temperature that the density is meant for, in K; NaN where it has none."""
        temperature = getattr(self.generator, "temperature", None)
        return math.nan if temperature is None else kelvin(temperature)

    @property
    def known_free_energy(self) -> float:
        """Zero: the density is normalised on its own measure."""
        return 0.0

    @property
    def measure(self) -> Measure:
        """The measure on which the density is normalised."""
        molecule = getattr(self.generator, "molecule", None)
        n_constraints = 0 if molecule is None else len(molecule.constraints)
        return Measure(self.generator.n_atoms, self.generator.pose, n_constraints)

    def reduced_potential(self, positions: FloatArray) -> FloatArray:
        """-log_prob of configurations in nm, shape (n, n_atoms, 3) to (n,); +inf off the support."""
        return -np.asarray(self.generator.log_prob(positions), dtype=np.float64)


def check_states(states: Sequence[State]) -> tuple[int | None, Measure | None]:
    """Return the number of atoms and the known measure of states that can be compared.

    Returns
    -------
    n_atoms : int or None
        None where no state knows.
    measure : Measure or None
        None where no state is normalised.

    Raises
    ------
    ValueError
        If there are fewer than two states, two of one name, or states of different atoms, constraints or measures.
    """
    names = [state.name for state in states]
    if len(states) < 2:
        raise ValueError(f"a free-energy difference needs at least two states, found {names}")
    if len(set(names)) < len(names):
        raise ValueError(f"every state needs a name of its own, found {names}")
    sizes = {state.name: size for state in states if (size := _n_atoms(state)) is not None}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the states have different numbers of atoms, {sizes}; a mixture needs one molecule")
    generators = [state for state in states if isinstance(state, GeneratorState)]
    measures = {state.measure for state in generators}
    if len(measures) > 1:
        listed = {state.name: state.measure for state in generators}
        raise ValueError(f"the densities are normalised on different measures and cannot be mixed: {listed}")
    measure = next(iter(measures), None)
    systems = {state.name: system for state in states if (system := _system(state)) is not None}
    _check_same_surface(systems)
    with quiet_pymbar():  # the room of the moves imports openmmtools, and that pymbar
        from openmm_bg.moves.pose import check_free_pose
    for state in generators:
        for system in systems.values():
            state.generator.check(system)
            if state.measure.pose == "invariant":
                check_free_pose(system)
    return next(iter(sizes.values()), None), measure


def _system(state: State) -> openmm.System | None:
    return getattr(getattr(state, "potential", None), "system", None)


def _n_atoms(state: State) -> int | None:
    if isinstance(state, GeneratorState):
        return state.generator.n_atoms
    system = _system(state)
    if system is not None:
        return int(system.getNumParticles())
    return getattr(getattr(state, "potential", None), "n_atoms", None)


def _check_same_surface(systems: dict[str, openmm.System]) -> None:
    """States that do not share constraints, and with constraints masses, are densities on different measures."""
    first_name, first = next(iter(systems.items()), ("", None))
    for name, system in systems.items():
        assert first is not None
        if _constraints(system) != _constraints(first):
            raise ValueError(
                f"the states {first_name!r} and {name!r} have different constraints, so no configuration of one is "
                "one of the other; build both Systems with the same `constraints` option"
            )
        if system.getNumConstraints() and _masses(system) != _masses(first):
            raise ValueError(
                f"the states {first_name!r} and {name!r} have different masses, and with constraints these change what "
                "dynamics samples; build both Systems with the same hydrogen masses"
            )


def _constraints(system: openmm.System) -> set[tuple[int, int, float]]:
    found = (system.getConstraintParameters(index) for index in range(system.getNumConstraints()))
    return {(min(i, j), max(i, j), round(d.value_in_unit(unit.nanometer), 7)) for i, j, d in found}


def _masses(system: openmm.System) -> list[float]:
    return [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]

"""States between a generator's density and the target: one System with a lambda, for replica exchange and MBAR."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import openmm
from openmm import unit
from openmmtools.states import (
    CompoundThermodynamicState,
    GlobalParameterError,
    GlobalParameterState,
    ThermodynamicState,
)

from openmm_bg.density import DifferentiableDensity
from openmm_bg.moves.pose import check_free_pose
from openmm_bg.potentials.density_force import require_density
from openmm_bg.potentials.python_force import LAMBDA, TEMPERATURE, python_force

_NO_ENERGY = (openmm.CMMotionRemover, openmm.AndersenThermostat)
_MOST_FORCES = 32  # force groups, of which a CustomCVForce takes one for each


def _between_ends(descriptor: Any, instance: GlobalParameterState, new_value: float) -> float:
    if not 0.0 <= new_value <= 1.0:
        raise GlobalParameterError(f"lambda is {new_value}; it must be between 0 (the flow) and 1 (the target).")
    return float(new_value)


def _positive(descriptor: Any, instance: GlobalParameterState, new_value: float) -> float:
    if not 0.0 < new_value < float("inf"):
        raise GlobalParameterError(f"The temperature is {new_value} K; it must be positive and finite.")
    return float(new_value)


class BridgeParameters(GlobalParameterState):
    """The two global parameters of a bridged System, as a composable state of openmmtools.

    Attributes
    ----------
    lambda_bridge : float
        1 is the target, 0 the flow.
    bridge_temperature : float
        In K; the flow's energy is kT u_flow with this temperature. A `BridgedState` keeps it equal to its own.
    """

    lambda_bridge = GlobalParameterState.GlobalParameter(LAMBDA, standard_value=1.0, validator=_between_ends)
    bridge_temperature = GlobalParameterState.GlobalParameter(TEMPERATURE, standard_value=300.0, validator=_positive)


class BridgedState(CompoundThermodynamicState):
    """A thermodynamic state with a lambda: its reduced potential is lambda U / kT + (1 - lambda) u_flow.

    A `CompoundThermodynamicState` of openmmtools; make it with `BridgedSystem.state`. `lambda_bridge` can be read and
    set. Setting the temperature takes that of the flow's energy along, so that the state of lambda = 0 is the flow
    itself at every temperature.
    """

    @property
    def temperature(self) -> unit.Quantity:
        """The temperature of the state."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: unit.Quantity) -> None:
        ThermodynamicState.temperature.fset(self, value)
        self.bridge_temperature = value.value_in_unit(unit.kelvin)

    def __getstate__(self, **kwargs: Any) -> dict[str, Any]:
        # openmmtools stores the thermodynamic state as one of the first base class, which has to be its own here
        plain = object.__new__(CompoundThermodynamicState)
        plain.__dict__ = self.__dict__
        stored: dict[str, Any] = plain.__getstate__(**kwargs)
        return stored


@dataclass(frozen=True)
class BridgedSystem:
    """A System with a lambda between a generator's density and a target.

    Attributes
    ----------
    system : openmm.System
        Its potential energy is lambda U + (1 - lambda) kT u_flow, with the global parameters `lambda_bridge` (1 in a
        new Context) and `bridge_temperature` (in K; the generator's in a new Context).
    target : openmm.System
        The System that it was made from.
    generator : BoltzmannGenerator
    """

    system: openmm.System
    target: openmm.System
    generator: DifferentiableDensity

    def state(self, temperature: unit.Quantity | float, lambda_: float = 1.0) -> BridgedState:
        """Make the thermodynamic state of one lambda.

        Parameters
        ----------
        temperature : Quantity or float (K)
        lambda_ : float
            1 is the target, 0 the flow, whose reduced potential is u_flow whatever the temperature.

        Raises
        ------
        GlobalParameterError
            For a lambda outside [0, 1].
        """
        kelvin = temperature.value_in_unit(unit.kelvin) if isinstance(temperature, unit.Quantity) else temperature
        parameters = BridgeParameters(lambda_bridge=lambda_, bridge_temperature=kelvin)
        return BridgedState(ThermodynamicState(self.system, kelvin * unit.kelvin), [parameters])

    def states(self, temperature: unit.Quantity | float, lambdas: Iterable[float]) -> list[BridgedState]:
        """Make the thermodynamic states of several lambdas; one Context serves them all."""
        return [self.state(temperature, float(lambda_)) for lambda_ in lambdas]


def bridge(system: openmm.System, generator: Any) -> BridgedSystem:
    """Make one System that leads from a generator's density (lambda = 0) to a target (lambda = 1).

    The energy is lambda U + (1 - lambda) kT u_flow, with kT of the state itself. The flow is a state of known free
    energy and a source of independent samples, so a ladder of lambdas turns a generator that overlaps too little with
    the target into neighbours that do.

    At lambda = 1 the flow is not evaluated, at every other lambda it is, at each step. Force groups of the target are
    merged into one, and its own global parameters can be set in a Context but not found by openmmtools.

    Parameters
    ----------
    system : openmm.System
        The target: the molecule that the generator was made for, not periodic. It is left as it is.
    generator : BoltzmannGenerator
        Saved to a file, which has to stay where it is as long as what is stored with this System is needed.

    Returns
    -------
    BridgedSystem

    Raises
    ------
    ValueError
        If the System is not the generator's: other masses, constraints or particles, virtual sites, a periodic box or
        a place in space; for a generator without a differentiable density, or one that is not in a file; for more than
        32 forces.
    """
    density = require_density(generator)
    _check(system, density)
    flow = python_force(density, "bridge")
    bridged = copy.deepcopy(system)
    target = openmm.CustomCVForce("")
    names = []
    for index in reversed(range(system.getNumForces())):
        if not isinstance(system.getForce(index), _NO_ENERGY):
            bridged.removeForce(index)
            names.append(f"target{index}")
            target.addCollectiveVariable(names[-1], copy.deepcopy(system.getForce(index)))
    target.setEnergyFunction(f"{LAMBDA}*({' + '.join(names) or '0'})")
    target.addGlobalParameter(LAMBDA, 1.0)
    target.addGlobalParameter(TEMPERATURE, density.temperature.value_in_unit(unit.kelvin))
    target.setName("BridgedTarget")
    # openmmtools evaluates anew the groups of forces that declare a changed parameter: both must be of one group
    for force in (target, flow):
        force.setForceGroup(0)
        bridged.addForce(force)
    return BridgedSystem(bridged, copy.deepcopy(system), density)


def _check(system: openmm.System, density: DifferentiableDensity) -> None:
    virtual = [i for i in range(system.getNumParticles()) if system.isVirtualSite(i)]
    if virtual:
        raise ValueError(
            f"The System has virtual sites (particles {virtual[:10]}), which no generator has. Use a force field "
            "without virtual sites for the molecule."
        )
    if system.usesPeriodicBoundaryConditions() or any(_is_barostat(force) for force in system.getForces()):
        raise ValueError(
            "The System is periodic, as with explicit solvent; a generator is the density of one molecule alone. Use "
            "implicit solvent with nonbondedMethod=NoCutoff and no barostat."
        )
    if LAMBDA in _parameter_names(system):
        raise ValueError(f"The System has a global parameter {LAMBDA} already. Give the target, not a bridged System.")
    n_forces = sum(not isinstance(force, _NO_ENERGY) for force in system.getForces())
    if n_forces > _MOST_FORCES:
        raise ValueError(
            f"The System has {n_forces} forces; at most {_MOST_FORCES} can be scaled together. Merge forces of "
            "one kind."
        )
    density.check(system)
    check_free_pose(system)


def _is_barostat(force: openmm.Force) -> bool:
    return "Barostat" in type(force).__name__


def _parameter_names(system: openmm.System) -> set[str]:
    return {
        force.getGlobalParameterName(i)
        for force in system.getForces()
        if hasattr(force, "getNumGlobalParameters")
        for i in range(force.getNumGlobalParameters())
    }

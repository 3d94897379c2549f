"""At which temperature, and with which forces, the integrator of a Simulation samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openmm
from openmm import app, unit

_LANGEVIN = (
    openmm.LangevinMiddleIntegrator,
    openmm.LangevinIntegrator,
    openmm.VariableLangevinIntegrator,
    openmm.BrownianIntegrator,
)
_CONSTANT_ENERGY = (openmm.VerletIntegrator, openmm.VariableVerletIntegrator)
_GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
_REMEDY = "Use LangevinMiddleIntegrator(temperature, friction, timestep)."


def thermostat(simulation: app.Simulation) -> Callable[[], float]:
    """Return a function that tells the present temperature in K of a Simulation's one thermostat.

    Known are Langevin, Brownian and Nose-Hoover integrators, an AndersenThermostat with a Verlet integrator, and
    CustomIntegrators that have a `getTemperature` or a global variable kT, as those of openmmtools and
    MTSLangevinIntegrator do. Each of them samples the Boltzmann distribution of the positions up to the error of its
    timestep, whatever else (the chain of Nose and Hoover) it carries along.

    Raises
    ------
    ValueError
        If there is none, more than one, or another integrator; if its temperature is not positive; or if the integrator
        leaves forces of the System out.
    """
    integrator = simulation.integrator
    forces = simulation.system.getForces()
    _check_force_groups(integrator, forces)
    found: list[Callable[[], Any]] = [
        lambda: simulation.context.getParameter(openmm.AndersenThermostat.Temperature())
        for force in forces
        if isinstance(force, openmm.AndersenThermostat)
    ]
    found += _of_integrator(integrator)
    name = type(integrator).__name__
    if not found:
        raise ValueError(
            f"The Simulation has no temperature: {name} is no thermostat, and the System has no AndersenThermostat. "
            f"A generator's move needs the temperature that the dynamics samples. {_REMEDY}"
        )
    if len(found) > 1:
        raise ValueError(
            f"The Simulation has {len(found)} thermostats ({name}, and AndersenThermostat forces of the System), and "
            "so no one temperature. Leave one of them."
        )

    def temperature() -> float:
        value = found[0]()
        kelvin = float(value.value_in_unit(unit.kelvin) if unit.is_quantity(value) else value)
        if not 0.0 < kelvin < float("inf"):
            raise ValueError(f"The temperature of {name} is {kelvin} K; a generator's move needs a positive one.")
        return kelvin

    temperature()
    return temperature


def _of_integrator(integrator: openmm.Integrator) -> list[Callable[[], Any]]:
    name = type(integrator).__name__
    if isinstance(integrator, openmm.NoseHooverIntegrator) and not isinstance(
        integrator, openmm.DrudeNoseHooverIntegrator
    ):
        n_thermostats = integrator.getNumThermostats()
        if n_thermostats == 0:
            return []
        if n_thermostats > 1 or integrator.hasSubsystemThermostats():
            raise ValueError(
                f"{name} has {n_thermostats} thermostats, or one for a part of the atoms: there is no one temperature. "
                f"Use NoseHooverIntegrator(temperature, collisionFrequency, stepSize), or {_REMEDY[4:]}"
            )
        return [integrator.getTemperature]
    if isinstance(integrator, _LANGEVIN):
        return [integrator.getTemperature]
    if isinstance(integrator, openmm.CustomIntegrator):
        if hasattr(integrator, "getTemperature"):
            return [integrator.getTemperature]
        names = [integrator.getGlobalVariableName(i) for i in range(integrator.getNumGlobalVariables())]
        return [lambda: integrator.getGlobalVariableByName("kT") / _GAS_CONSTANT] if "kT" in names else []
    if isinstance(integrator, _CONSTANT_ENERGY):
        return []
    raise ValueError(
        f"A generator's move can not follow {name}: it has several temperatures, several integrators, or samples "
        f"another distribution than that of Boltzmann. {_REMEDY}"
    )


def _check_force_groups(integrator: openmm.Integrator, forces: list[openmm.Force]) -> None:
    mask = integrator.getIntegrationForceGroups()
    left_out = sorted({force.getForceGroup() for force in forces if not mask >> force.getForceGroup() & 1})
    if left_out:
        raise ValueError(
            f"The integrator leaves out the forces of groups {left_out} (setIntegrationForceGroups), but energies of "
            "the System contain them: dynamics and move would sample different distributions. Integrate all groups, or "
            "remove these forces from the System."
        )

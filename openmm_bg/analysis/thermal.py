"""Temperatures given as numbers or quantities, and kT."""

from __future__ import annotations

import math
from typing import Any

from openmm import unit

_GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)


def kelvin(temperature: Any) -> float:
    """Return a temperature in K, given as a number in K or as a Quantity; raise ValueError unless it is positive."""
    value = float(temperature.value_in_unit(unit.kelvin) if unit.is_quantity(temperature) else temperature)
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"the temperature is {value} K; give a positive one")
    return value


def thermal_energy(temperature: Any) -> float:
    """Return kT in kJ/mol at a temperature in K."""
    return _GAS_CONSTANT * kelvin(temperature)

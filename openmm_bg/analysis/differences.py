"""Free energies with units: of one state relative to another, and absolute."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openmm import unit

from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.thermal import thermal_energy


@dataclass(frozen=True)
class FreeEnergyDifference:
    """Free energy of one state relative to another.

    Attributes
    ----------
    method : str
        The estimator.
    start, end : str
        Names of the states; the value is that of `end` minus that of `start`.
    reduced : Estimate
        The difference of the reduced free energies F / kT.
    temperature : float
        K; NaN if the two states have different ones, or none.
    """

    method: str
    start: str
    end: str
    reduced: Estimate
    temperature: float = math.nan

    @property
    def value(self) -> unit.Quantity:
        """The difference in kJ/mol."""
        return self._in_units(self.reduced.value)

    @property
    def error(self) -> unit.Quantity:
        """One standard error in kJ/mol."""
        return self._in_units(self.reduced.error)

    def _in_units(self, reduced: float) -> unit.Quantity:
        if math.isnan(self.temperature):
            raise ValueError(
                f"the states {self.start!r} and {self.end!r} have no common temperature, so their difference is one of "
                "reduced free energies F/kT only; read `reduced`"
            )
        return unit.Quantity(reduced * thermal_energy(self.temperature), unit.kilojoule_per_mole)

    def __str__(self) -> str:
        text = f"{self.method}: {self.start} -> {self.end}: {self.reduced} kT"
        if math.isnan(self.temperature):
            return text
        kt = thermal_energy(self.temperature)
        return f"{text} ({Estimate(kt * self.reduced.value, kt * self.reduced.error)} kJ/mol)"


@dataclass(frozen=True)
class AbsoluteFreeEnergy:
    """The configurational free energy of a state on a stated measure, -ln of the integral of exp(-u).

    Attributes
    ----------
    state : str
    reduced : Estimate
        F / kT.
    temperature : float
        K; NaN if the state has none.
    measure : str
        The measure and its unit.
    volume : Quantity or None
        The volume in which the molecule moves freely; None for a free energy modulo pose, and for particles tied to
        places in space.
    """

    state: str
    reduced: Estimate
    temperature: float
    measure: str
    volume: unit.Quantity | None

    @property
    def value(self) -> unit.Quantity:
        """The free energy in kJ/mol."""
        return unit.Quantity(self.reduced.value * thermal_energy(self.temperature), unit.kilojoule_per_mole)

    @property
    def error(self) -> unit.Quantity:
        """One standard error in kJ/mol."""
        return unit.Quantity(self.reduced.error * thermal_energy(self.temperature), unit.kilojoule_per_mole)

"""Energies and forces of batches of configurations, and the choice of the platform that computes them."""

from __future__ import annotations

from openmm_bg.potentials.platforms import PlatformChoice, available_platforms, choose_platform
from openmm_bg.potentials.system_potential import SystemPotential

__all__ = ["PlatformChoice", "SystemPotential", "available_platforms", "choose_platform"]

"""Energies and forces of batches of configurations, and the choice of the platform that computes them."""

from __future__ import annotations

from openmm_bg.potentials.density_force import flow_force
from openmm_bg.potentials.platforms import PlatformChoice, available_platforms, choose_platform
from openmm_bg.potentials.self_check import BackendMismatch
from openmm_bg.potentials.system_potential import SystemPotential
from openmm_bg.potentials.torch_backend import TorchBackend
from openmm_bg.potentials.torch_terms import UnsupportedForce

__all__ = [
    "BackendMismatch",
    "PlatformChoice",
    "SystemPotential",
    "TorchBackend",
    "UnsupportedForce",
    "available_platforms",
    "choose_platform",
    "flow_force",
]

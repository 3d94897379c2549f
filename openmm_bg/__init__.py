"""Boltzmann generators as exact Monte Carlo moves for OpenMM.

The public names below are imported when they are first used, so that `import openmm_bg` is quick and quiet.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openmm_bg.analysis import Weights, reweight
    from openmm_bg.density import LatentDensity, ProposalDensity, Samples
    from openmm_bg.flows import FlowConfig
    from openmm_bg.generator import BoltzmannGenerator
    from openmm_bg.moves import BoltzmannGeneratorMove, BoltzmannGeneratorSampling, Independence
    from openmm_bg.potentials import SystemPotential
    from openmm_bg.training import Stage, TrainingHistory, train

__version__ = version("openmm-bg")

_HOMES = {
    "BoltzmannGenerator": "generator",
    "BoltzmannGeneratorMove": "moves",
    "BoltzmannGeneratorSampling": "moves",
    "FlowConfig": "flows",
    "Independence": "moves",
    "LatentDensity": "density",
    "ProposalDensity": "density",
    "Samples": "density",
    "Stage": "training",
    "SystemPotential": "potentials",
    "TrainingHistory": "training",
    "Weights": "analysis",
    "reweight": "analysis",
    "train": "training",
}

__all__ = [
    "BoltzmannGenerator",
    "BoltzmannGeneratorMove",
    "BoltzmannGeneratorSampling",
    "FlowConfig",
    "Independence",
    "LatentDensity",
    "ProposalDensity",
    "Samples",
    "Stage",
    "SystemPotential",
    "TrainingHistory",
    "Weights",
    "reweight",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'openmm_bg' has no attribute {name!r}")
    return getattr(import_module(f"openmm_bg.{_HOMES[name]}"), name)

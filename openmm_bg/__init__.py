"""Boltzmann generators as exact Monte Carlo moves for OpenMM.

The public names below are imported when they are first used, so that `import openmm_bg` is quick and quiet.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openmm_bg.analysis import (
        EnergyState,
        FreeEnergyResult,
        GeneratorState,
        ReducedEnergies,
        Weights,
        free_energy,
        reweight,
        targeted_free_energy,
    )
    from openmm_bg.density import LatentDensity, ProposalDensity, Samples
    from openmm_bg.flows import FlowConfig
    from openmm_bg.generator import BoltzmannGenerator
    from openmm_bg.moves import (
        Annealed,
        BoltzmannGeneratorMove,
        BoltzmannGeneratorSampling,
        Independence,
        LatentWalk,
        bridge,
    )
    from openmm_bg.potentials import SystemPotential, flow_force
    from openmm_bg.training import FlowMap, Stage, TrainingHistory, train, train_map

__version__ = version("openmm-bg")

_HOMES = {
    "Annealed": "moves",
    "BoltzmannGenerator": "generator",
    "BoltzmannGeneratorMove": "moves",
    "BoltzmannGeneratorSampling": "moves",
    "EnergyState": "analysis",
    "FlowConfig": "flows",
    "FlowMap": "training",
    "FreeEnergyResult": "analysis",
    "GeneratorState": "analysis",
    "Independence": "moves",
    "LatentDensity": "density",
    "LatentWalk": "moves",
    "ProposalDensity": "density",
    "ReducedEnergies": "analysis",
    "Samples": "density",
    "Stage": "training",
    "SystemPotential": "potentials",
    "TrainingHistory": "training",
    "Weights": "analysis",
    "bridge": "moves",
    "flow_force": "potentials",
    "free_energy": "analysis",
    "reweight": "analysis",
    "targeted_free_energy": "analysis",
    "train": "training",
    "train_map": "training",
}

__all__ = [
    "Annealed",
    "BoltzmannGenerator",
    "BoltzmannGeneratorMove",
    "BoltzmannGeneratorSampling",
    "EnergyState",
    "FlowConfig",
    "FlowMap",
    "FreeEnergyResult",
    "GeneratorState",
    "Independence",
    "LatentDensity",
    "LatentWalk",
    "ProposalDensity",
    "ReducedEnergies",
    "Samples",
    "Stage",
    "SystemPotential",
    "TrainingHistory",
    "Weights",
    "bridge",
    "flow_force",
    "free_energy",
    "reweight",
    "targeted_free_energy",
    "train",
    "train_map",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'openmm_bg' has no attribute {name!r}")
    return getattr(import_module(f"openmm_bg.{_HOMES[name]}"), name)

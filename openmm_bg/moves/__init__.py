"""Monte Carlo moves that sample exactly with proposals from a Boltzmann generator."""

from __future__ import annotations

from openmm_bg.moves.app_exchange import GeneratorReplicaExchange
from openmm_bg.moves.durable_reporter import DurableReporter
from openmm_bg.moves.independence import Independence, Scan
from openmm_bg.moves.learned_exchange import LearnedReplicaExchangeSampler
from openmm_bg.moves.move import BoltzmannGeneratorMove, observe_scans
from openmm_bg.moves.ranks import check_ranks, local_rank, place_on_gpu
from openmm_bg.moves.registry import register
from openmm_bg.moves.simulation import BoltzmannGeneratorSampling
from openmm_bg.moves.state_checks import check_states

__all__ = [
    "BoltzmannGeneratorMove",
    "BoltzmannGeneratorSampling",
    "DurableReporter",
    "GeneratorReplicaExchange",
    "Independence",
    "LearnedReplicaExchangeSampler",
    "Scan",
    "check_ranks",
    "check_states",
    "local_rank",
    "observe_scans",
    "place_on_gpu",
    "register",
]

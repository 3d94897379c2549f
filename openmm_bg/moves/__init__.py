"""Monte Carlo moves that sample exactly with proposals from a Boltzmann generator."""

from __future__ import annotations

from openmm_bg.moves.annealed import Annealed, AnnealedScan
from openmm_bg.moves.app_exchange import GeneratorReplicaExchange
from openmm_bg.moves.bridged_system import BridgedState, BridgedSystem, BridgeParameters, bridge
from openmm_bg.moves.coupling import CoupledLangevin
from openmm_bg.moves.durable_reporter import DurableReporter
from openmm_bg.moves.independence import Independence, Scan
from openmm_bg.moves.ladder import Ladder, place_lambdas
from openmm_bg.moves.latent_walk import LatentWalk, WalkTuning
from openmm_bg.moves.learned_exchange import LearnedReplicaExchangeSampler
from openmm_bg.moves.move import BoltzmannGeneratorMove, observe_scans
from openmm_bg.moves.propagation import LatentHMC, LatentLangevin
from openmm_bg.moves.ranks import check_ranks, local_rank, place_on_gpu
from openmm_bg.moves.simulation import BoltzmannGeneratorSampling
from openmm_bg.moves.solvated import SolvatedScan
from openmm_bg.moves.state_checks import check_states
from openmm_bg.moves.walk_chain import WalkScan
from openmm_bg.moves.walk_tuning import AcceptanceByKind, TuningError, tune_in_simulation, tune_latent_walk
from openmm_bg.registry import register

__all__ = [
    "AcceptanceByKind",
    "Annealed",
    "AnnealedScan",
    "BoltzmannGeneratorMove",
    "BoltzmannGeneratorSampling",
    "BridgeParameters",
    "BridgedState",
    "BridgedSystem",
    "CoupledLangevin",
    "DurableReporter",
    "GeneratorReplicaExchange",
    "Independence",
    "Ladder",
    "LatentHMC",
    "LatentLangevin",
    "LatentWalk",
    "LearnedReplicaExchangeSampler",
    "Scan",
    "SolvatedScan",
    "TuningError",
    "WalkScan",
    "WalkTuning",
    "bridge",
    "check_ranks",
    "check_states",
    "local_rank",
    "observe_scans",
    "place_lambdas",
    "place_on_gpu",
    "register",
    "tune_in_simulation",
    "tune_latent_walk",
]

"""Monte Carlo moves that sample exactly with proposals from a Boltzmann generator."""

from __future__ import annotations

from openmm_bg.moves.annealed import Annealed, AnnealedScan
from openmm_bg.moves.bridge import BridgedState, BridgedSystem, BridgeParameters, bridge
from openmm_bg.moves.coupling import CoupledLangevin
from openmm_bg.moves.independence import Independence, Scan
from openmm_bg.moves.ladder import Ladder, place_lambdas
from openmm_bg.moves.move import BoltzmannGeneratorMove, observe_scans
from openmm_bg.moves.propagation import LatentHMC, LatentLangevin
from openmm_bg.moves.solvated import SolvatedScan
from openmm_bg.registry import register

__all__ = [
    "Annealed",
    "AnnealedScan",
    "BoltzmannGeneratorMove",
    "BridgeParameters",
    "BridgedState",
    "BridgedSystem",
    "CoupledLangevin",
    "Independence",
    "Ladder",
    "LatentHMC",
    "LatentLangevin",
    "Scan",
    "SolvatedScan",
    "bridge",
    "observe_scans",
    "place_lambdas",
    "register",
]

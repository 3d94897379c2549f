"""Monte Carlo moves that sample exactly with proposals from a Boltzmann generator."""

from __future__ import annotations

from openmm_bg.moves.annealed import Annealed, AnnealedScan
from openmm_bg.moves.independence import Independence, Scan
from openmm_bg.moves.move import BoltzmannGeneratorMove, observe_scans
from openmm_bg.moves.propagation import LatentHMC, LatentLangevin
from openmm_bg.registry import register

__all__ = [
    "Annealed",
    "AnnealedScan",
    "BoltzmannGeneratorMove",
    "Independence",
    "LatentHMC",
    "LatentLangevin",
    "Scan",
    "observe_scans",
    "register",
]

"""Weights, averages, surfaces and populations, each with an error, and the tests that say whether to believe them."""

from __future__ import annotations

from openmm_bg.analysis.acceptance import acceptance_by_basin, fraction_accepted
from openmm_bg.analysis.basins import (
    BASINS,
    BasinStatistics,
    assign_basins,
    basin_statistics,
    rare_population,
)
from openmm_bg.analysis.dihedrals import BackbonePair, backbone_pairs, ramachandran_angles, slowest_pair, torsion_angles
from openmm_bg.analysis.estimate import Estimate, agreement, z_score
from openmm_bg.analysis.exchange import ExchangeStatistics, exchange_statistics
from openmm_bg.analysis.surfaces import FreeEnergySurface, free_energy_surface
from openmm_bg.analysis.timeseries import block_length, chain_mean, effective_sample_size, statistical_inefficiency
from openmm_bg.analysis.transitions import RoundTrips, round_trips
from openmm_bg.analysis.weights import Weights, pareto_k, reweight

__all__ = [
    "BASINS",
    "BackbonePair",
    "BasinStatistics",
    "Estimate",
    "ExchangeStatistics",
    "FreeEnergySurface",
    "RoundTrips",
    "Weights",
    "acceptance_by_basin",
    "agreement",
    "assign_basins",
    "backbone_pairs",
    "basin_statistics",
    "block_length",
    "chain_mean",
    "effective_sample_size",
    "exchange_statistics",
    "fraction_accepted",
    "free_energy_surface",
    "pareto_k",
    "ramachandran_angles",
    "rare_population",
    "reweight",
    "round_trips",
    "slowest_pair",
    "statistical_inefficiency",
    "torsion_angles",
    "z_score",
]

"""Weights, averages, surfaces and populations, each with an error, and the tests that say whether to believe them."""

from __future__ import annotations

from openmm_bg.analysis.acceptance import acceptance_by_basin, fraction_accepted
from openmm_bg.analysis.basin_populations import populations
from openmm_bg.analysis.basins import (
    BASINS,
    BasinStatistics,
    assign_basins,
    basin_statistics,
    rare_population,
)
from openmm_bg.analysis.checks import Check, Verdict
from openmm_bg.analysis.differences import AbsoluteFreeEnergy, FreeEnergyDifference
from openmm_bg.analysis.dihedrals import BackbonePair, backbone_pairs, ramachandran_angles, slowest_pair, torsion_angles
from openmm_bg.analysis.estimate import Estimate, agreement, z_score
from openmm_bg.analysis.exchange import ExchangeStatistics, exchange_statistics
from openmm_bg.analysis.find_basins import FoundBasins, find_basins
from openmm_bg.analysis.free_energies import free_energy
from openmm_bg.analysis.free_energy_result import FreeEnergyResult
from openmm_bg.analysis.population_checks import compare_populations
from openmm_bg.analysis.population_result import Convergence, Populations
from openmm_bg.analysis.readers import from_weights, read_multistate, read_replica_exchange, read_u_nk
from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.sampled_states import evaluate
from openmm_bg.analysis.states import EnergyState, GeneratorState, Measure
from openmm_bg.analysis.surfaces import FreeEnergyProfile, FreeEnergySurface, free_energy_profile, free_energy_surface
from openmm_bg.analysis.targeted import targeted_free_energy
from openmm_bg.analysis.timeseries import block_length, chain_mean, effective_sample_size, statistical_inefficiency
from openmm_bg.analysis.transitions import RoundTrips, round_trips
from openmm_bg.analysis.weights import Weights, pareto_k, reweight

__all__ = [
    "BASINS",
    "AbsoluteFreeEnergy",
    "BackbonePair",
    "BasinStatistics",
    "Check",
    "Convergence",
    "EnergyState",
    "Estimate",
    "ExchangeStatistics",
    "FoundBasins",
    "FreeEnergyDifference",
    "FreeEnergyProfile",
    "FreeEnergyResult",
    "FreeEnergySurface",
    "GeneratorState",
    "Measure",
    "Populations",
    "ReducedEnergies",
    "RoundTrips",
    "Verdict",
    "Weights",
    "acceptance_by_basin",
    "agreement",
    "assign_basins",
    "backbone_pairs",
    "basin_statistics",
    "block_length",
    "chain_mean",
    "compare_populations",
    "effective_sample_size",
    "evaluate",
    "exchange_statistics",
    "find_basins",
    "fraction_accepted",
    "free_energy",
    "free_energy_profile",
    "free_energy_surface",
    "from_weights",
    "pareto_k",
    "populations",
    "ramachandran_angles",
    "rare_population",
    "read_multistate",
    "read_replica_exchange",
    "read_u_nk",
    "reweight",
    "round_trips",
    "slowest_pair",
    "statistical_inefficiency",
    "targeted_free_energy",
    "torsion_angles",
    "z_score",
]

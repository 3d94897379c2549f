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
from openmm_bg.analysis.clashes import clash_counts, inverted_counts
from openmm_bg.analysis.compare import EnsembleComparison, compare_ensembles
from openmm_bg.analysis.contacts import ContactDifference, ContactMap, contact_difference, contact_map
from openmm_bg.analysis.differences import AbsoluteFreeEnergy, FreeEnergyDifference
from openmm_bg.analysis.dihedrals import BackbonePair, backbone_pairs, ramachandran_angles, slowest_pair, torsion_angles
from openmm_bg.analysis.distances import DistanceDistortion, backbone_atoms, distance_distortion, structure_distortion
from openmm_bg.analysis.divergences import Divergence
from openmm_bg.analysis.dwell import DwellTime, dwell_time
from openmm_bg.analysis.energy_quantiles import EnergyComparison, compare_energies, energy_quantiles
from openmm_bg.analysis.estimate import Estimate, agreement, z_score
from openmm_bg.analysis.exchange import ExchangeStatistics, exchange_statistics
from openmm_bg.analysis.find_basins import FoundBasins, find_basins
from openmm_bg.analysis.fluctuations import Fluctuations, radius_of_gyration, rmsf
from openmm_bg.analysis.free_energies import free_energy
from openmm_bg.analysis.free_energy_result import FreeEnergyResult
from openmm_bg.analysis.judge_novelty import judge_novelty
from openmm_bg.analysis.novelty import NovelCluster, NovelStructures, find_novel
from openmm_bg.analysis.novelty_verdict import JudgedCluster, NoveltyVerdict
from openmm_bg.analysis.population_checks import compare_populations
from openmm_bg.analysis.population_result import Convergence, Populations
from openmm_bg.analysis.readers import from_weights, read_multistate, read_replica_exchange, read_u_nk
from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.rotamers import (
    RotamerRelaxation,
    assign_rotamers,
    autocorrelation_time,
    relaxation_quantile,
    rotamer_relaxation,
)
from openmm_bg.analysis.sampled_states import evaluate
from openmm_bg.analysis.side_chains import SideChainTorsion, side_chain_torsions
from openmm_bg.analysis.states import EnergyState, GeneratorState, Measure
from openmm_bg.analysis.surfaces import FreeEnergyProfile, FreeEnergySurface, free_energy_profile, free_energy_surface
from openmm_bg.analysis.targeted import targeted_free_energy
from openmm_bg.analysis.tica import SlowCoordinates, slow_coordinates
from openmm_bg.analysis.timeseries import block_length, chain_mean, effective_sample_size, statistical_inefficiency
from openmm_bg.analysis.torsion_distributions import TorsionComparison, chi_angles, compare_torsions
from openmm_bg.analysis.transitions import RoundTrips, round_trips
from openmm_bg.analysis.weights import Weights, pareto_k, reweight

__all__ = [
    "BASINS",
    "AbsoluteFreeEnergy",
    "BackbonePair",
    "BasinStatistics",
    "Check",
    "ContactDifference",
    "ContactMap",
    "Convergence",
    "DistanceDistortion",
    "Divergence",
    "DwellTime",
    "EnergyComparison",
    "EnergyState",
    "EnsembleComparison",
    "Estimate",
    "ExchangeStatistics",
    "Fluctuations",
    "FoundBasins",
    "FreeEnergyDifference",
    "FreeEnergyProfile",
    "FreeEnergyResult",
    "FreeEnergySurface",
    "GeneratorState",
    "JudgedCluster",
    "Measure",
    "NovelCluster",
    "NovelStructures",
    "NoveltyVerdict",
    "Populations",
    "ReducedEnergies",
    "RotamerRelaxation",
    "RoundTrips",
    "SideChainTorsion",
    "SlowCoordinates",
    "TorsionComparison",
    "Verdict",
    "Weights",
    "acceptance_by_basin",
    "agreement",
    "assign_basins",
    "assign_rotamers",
    "autocorrelation_time",
    "backbone_atoms",
    "backbone_pairs",
    "basin_statistics",
    "block_length",
    "chain_mean",
    "chi_angles",
    "clash_counts",
    "compare_energies",
    "compare_ensembles",
    "compare_populations",
    "compare_torsions",
    "contact_difference",
    "contact_map",
    "distance_distortion",
    "dwell_time",
    "effective_sample_size",
    "energy_quantiles",
    "evaluate",
    "exchange_statistics",
    "find_basins",
    "find_novel",
    "fraction_accepted",
    "free_energy",
    "free_energy_profile",
    "free_energy_surface",
    "from_weights",
    "inverted_counts",
    "judge_novelty",
    "pareto_k",
    "populations",
    "radius_of_gyration",
    "ramachandran_angles",
    "rare_population",
    "read_multistate",
    "read_replica_exchange",
    "read_u_nk",
    "relaxation_quantile",
    "reweight",
    "rmsf",
    "rotamer_relaxation",
    "round_trips",
    "side_chain_torsions",
    "slow_coordinates",
    "slowest_pair",
    "statistical_inefficiency",
    "structure_distortion",
    "targeted_free_energy",
    "torsion_angles",
    "z_score",
]

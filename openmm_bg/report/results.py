"""What a run folder says, method by method; what it does not hold is named as missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmm_bg.analysis.basins import (
    BASIN_NAMES,
    RARE_BASIN,
    BasinStatistics,
    acceptance_by_basin,
    assign_basins,
    basin_statistics,
)
from openmm_bg.analysis.dihedrals import backbone_pairs
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.surfaces import FreeEnergySurface, free_energy_surface
from openmm_bg.analysis.timeseries import bootstrap_means
from openmm_bg.analysis.transitions import RoundTrips, round_trips
from openmm_bg.analysis.weights import Weights
from openmm_bg.density import FloatArray
from openmm_bg.report.records import Chain, GeneratorSamples
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.training.history import TrainingHistory

BG_LANGEVIN, LANGEVIN, GENERATOR = "bg_langevin", "langevin", "reweighted_generator"
TITLES = {
    BG_LANGEVIN: "BG + Langevin",
    LANGEVIN: "Langevin alone",
    GENERATOR: "Reweighted generator",
}
_BINS = 48
_BOOTSTRAP_BLOCK = 256  # proposals; a chain that waits is correlated over its wait


@dataclass(frozen=True)
class Method:
    """One way to the answers: populations, surface, round trips."""

    key: str
    statistics: BasinStatistics
    surface: FreeEnergySurface
    trips: RoundTrips | None
    n_samples: int

    @property
    def title(self) -> str:
        """Its name on the page."""
        return TITLES[self.key]

    @property
    def rare_population(self) -> Estimate:
        """Population of 0 < phi < 2.3 rad."""
        return self.statistics.populations[RARE_BASIN]


@dataclass(frozen=True)
class Acceptance:
    """Fraction of proposals accepted, over all and by basin of origin."""

    overall: Estimate
    by_basin: dict[str, Estimate]
    n_proposed: int


@dataclass(frozen=True)
class Results:
    """Everything that the page shows."""

    settings: dict[str, Any]
    phases: dict[str, dict[str, Any]]
    temperature: float
    pair: int
    pair_name: str
    methods: dict[str, Method]
    acceptance: Acceptance | None
    weights: Weights | None
    chain: Chain | None
    langevin: Chain | None
    generator: GeneratorSamples | None
    training: TrainingHistory | None
    missing: list[str]

    def method(self, key: str) -> Method | None:
        """A method's results, or None if it was not run."""
        return self.methods.get(key)


def read_results(folder: RunFolder, seed: int = 0) -> Results:
    """Read and analyse whatever a run folder holds.

    Raises
    ------
    ValueError
        If a file in it is damaged.
    """
    settings, phases = folder.settings, folder.phases
    temperature = float(settings.get("temperature", 300.0))
    pair = int(settings.get("pair", 0))
    missing: list[str] = []

    def load(path: Any, read: Callable[[Any], Any], what: str) -> Any:
        if path.exists():
            return read(path)
        missing.append(what)
        return None

    molecule = load(folder.system_file, lambda _: folder.read_system(), "the System (`openmm-bg simulate`)")
    pair_name = ""
    if molecule is not None:
        pairs = backbone_pairs(molecule.topology)
        pair_name = pairs[pair].residue if pair < len(pairs) else ""
    training = load(folder.history_file, _read_history, "a training history (`openmm-bg train`)")
    chain = load(folder.chain_file, Chain.load, "the chain of generator moves (`openmm-bg sample`)")
    langevin = load(folder.langevin_file, Chain.load, "Langevin dynamics alone (`openmm-bg sample`)")
    generator = load(folder.generator_samples_file, GeneratorSamples.load, "samples of the generator (`sample`)")

    methods: dict[str, Method] = {}
    for key, record in ((BG_LANGEVIN, chain), (LANGEVIN, langevin)):
        if record is not None and len(record) > 1 and record.phi.shape[1] > pair:
            methods[key] = _chain_method(key, record, pair, temperature, seed)
    weights = None
    if generator is not None:
        empty = np.zeros((len(generator), 0, 3))
        weights = Weights(generator.log_weights, temperature, generator.energy, empty)
        if generator.phi.shape[1] > pair:
            methods[GENERATOR] = _generator_method(generator, weights, pair, temperature, seed)
    acceptance = None
    if chain is not None and chain.proposed.any():
        acceptance = _acceptance(chain, pair, seed)
    return Results(
        settings, phases, temperature, pair, pair_name, methods, acceptance, weights, chain, langevin, generator,
        training, missing,
    )  # fmt: skip


def _read_history(path: Path) -> TrainingHistory:
    try:
        return TrainingHistory.load(path)
    except (ValueError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {error}; it is damaged, or was not written by openmm-bg") from error


def _chain_method(key: str, chain: Chain, pair: int, temperature: float, seed: int) -> Method:
    phi, psi = chain.phi[:, pair], chain.psi[:, pair]
    return Method(
        key,
        basin_statistics(phi, psi, temperature, rng=seed),
        free_energy_surface(phi, psi, temperature, bins=_BINS, rng=seed),
        round_trips(phi, duration=float(chain.seconds[-1])),
        len(chain),
    )


def _generator_method(samples: GeneratorSamples, weights: Weights, pair: int, temperature: float, seed: int) -> Method:
    phi, psi = samples.phi[:, pair], samples.psi[:, pair]
    return Method(
        GENERATOR,
        basin_statistics(phi, psi, temperature, weights=weights.weights, rng=seed),
        weights.surface(phi, psi, bins=_BINS, rng=seed),
        None,
        len(samples),
    )


def _acceptance(chain: Chain, pair: int, seed: int) -> Acceptance:
    proposals = np.flatnonzero(chain.proposed)
    accepted = chain.accepted[proposals].astype(np.float64)
    block = min(_BOOTSTRAP_BLOCK, len(proposals))
    overall = Estimate(float(accepted.mean()), _spread(accepted, block, seed), float(len(proposals)))
    by_basin: dict[str, Estimate] = {}
    if chain.phi.shape[1] > pair and proposals[0] > 0:
        origin = assign_basins(chain.phi[proposals - 1, pair], chain.psi[proposals - 1, pair])
        by_basin = acceptance_by_basin(origin, accepted, length=block, rng=seed)
    return Acceptance(overall, by_basin, len(proposals))


def _spread(values: FloatArray, block: int, seed: int) -> float:
    return float(bootstrap_means(values, length=block, rng=seed).std(ddof=1))


def important_basins(results: Results, threshold: float = 0.005) -> list[str]:
    """Return the basins whose population exceeds a threshold by the chain or by the reweighted generator."""
    sources = [results.methods[key] for key in (BG_LANGEVIN, GENERATOR) if key in results.methods]
    return [name for name in BASIN_NAMES if any(m.statistics.populations[name].value > threshold for m in sources)]

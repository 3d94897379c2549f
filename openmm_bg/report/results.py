"""What a run folder says, method by method; what it does not hold is named as missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openmm_bg.analysis.acceptance import acceptance_by_basin, fraction_accepted, longest_run
from openmm_bg.analysis.basins import (
    RARE_BASIN,
    BasinStatistics,
    assign_basins,
    basin_statistics,
)
from openmm_bg.analysis.dihedrals import backbone_pairs
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.surfaces import FreeEnergySurface, free_energy_surface
from openmm_bg.analysis.transitions import RoundTrips, round_trips
from openmm_bg.analysis.weights import Weights
from openmm_bg.report.records import Chain, GeneratorSamples
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.report.side_chains import SideChainSpeed, chi1_torsions, side_chain_speed
from openmm_bg.systems import MolecularSystem
from openmm_bg.training.history import TrainingHistory

BG_LANGEVIN, LANGEVIN, GENERATOR = "bg_langevin", "langevin", "reweighted_generator"
TITLES = {
    BG_LANGEVIN: "BG + Langevin",
    LANGEVIN: "Langevin alone",
    GENERATOR: "Reweighted generator",
}
_BINS = 48
FEWEST_STATES = 4  # of a chain that can be halved


@dataclass(frozen=True)
class Method:
    """One way to the answers: populations of every residue; surface and round trips of one of them."""

    key: str
    residues: list[BasinStatistics]
    pair: int
    surface: FreeEnergySurface
    trips: RoundTrips | None
    n_samples: int

    @property
    def title(self) -> str:
        """Its name on the page."""
        return TITLES[self.key]

    @property
    def statistics(self) -> BasinStatistics:
        """Populations of the residue that the page shows."""
        return self.residues[self.pair]

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
    pair_names: list[str]
    methods: dict[str, Method]
    acceptance: Acceptance | None
    weights: Weights | None
    chain: Chain | None
    langevin: Chain | None
    generator: GeneratorSamples | None
    training: TrainingHistory | None
    missing: list[str]
    chi: int = 0
    chi_names: list[str] = field(default_factory=list)
    side_chains: SideChainSpeed | None = None

    @property
    def walks(self) -> bool:
        """Whether the chain's proposals were steps of a latent walk."""
        return "by_kind" in self.phases.get("sample", {})

    @property
    def acceptance_by_kind(self) -> dict[str, tuple[int, int]]:
        """Accepted and proposed of each kind of proposal of a walk."""
        counts = self.phases.get("sample", {}).get("by_kind", {})
        return {kind: (int(accepted), int(proposed)) for kind, (accepted, proposed) in counts.items()}

    @property
    def why_no_density(self) -> str | None:
        """Why the generator cannot be reweighted; None if it can."""
        return self.settings.get("why_no_density")

    @property
    def pair_name(self) -> str:
        """The residue that the page shows."""
        return self.pair_names[self.pair] if self.pair < len(self.pair_names) else ""

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

    molecule: MolecularSystem | None = load(
        folder.system_file, lambda _: folder.read_system(), "the System (`openmm-bg simulate`)"
    )
    training = load(folder.history_file, _read_history, "a training history (`openmm-bg train`)")
    chain = load(folder.chain_file, Chain.load, "the chain of generator moves (`openmm-bg sample`)")
    langevin = load(folder.langevin_file, Chain.load, "Langevin dynamics alone (`openmm-bg sample`)")
    generator = None
    if settings.get("why_no_density") is None:
        generator = load(folder.generator_samples_file, GeneratorSamples.load, "samples of the generator (`sample`)")

    if molecule is not None:
        pair_names = [found.residue for found in backbone_pairs(molecule.topology)]
    else:
        n_pairs = max((record.phi.shape[1] for record in (chain, langevin, generator) if record is not None), default=0)
        pair_names = [f"residue {index + 1}" for index in range(n_pairs)]
    chi_names = [] if molecule is None else [torsion.residue for torsion in chi1_torsions(molecule.topology)]
    speed = None
    if chain is not None and langevin is not None:
        speed = side_chain_speed(chain, langevin, chi_names)

    methods: dict[str, Method] = {}
    for key, record in ((BG_LANGEVIN, chain), (LANGEVIN, langevin)):
        if record is not None and len(record) >= FEWEST_STATES and record.phi.shape[1] > pair:
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
        settings, phases, temperature, pair, pair_names, methods, acceptance, weights, chain, langevin, generator,
        training, missing, int(settings.get("chi", 0)), chi_names, speed,
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
        [basin_statistics(*angles, temperature, rng=seed) for angles in zip(chain.phi.T, chain.psi.T, strict=True)],
        pair,
        free_energy_surface(phi, psi, temperature, bins=_BINS, rng=seed),
        round_trips(phi, duration=float(chain.seconds[-1])),
        len(chain),
    )


def _generator_method(samples: GeneratorSamples, weights: Weights, pair: int, temperature: float, seed: int) -> Method:
    phi, psi = samples.phi[:, pair], samples.psi[:, pair]
    return Method(
        GENERATOR,
        [
            basin_statistics(*angles, temperature, weights=weights.weights, rng=seed)
            for angles in zip(samples.phi.T, samples.psi.T, strict=True)
        ],
        pair,
        weights.surface(phi, psi, bins=_BINS, rng=seed),
        None,
        len(samples),
    )


def _acceptance(chain: Chain, pair: int, seed: int) -> Acceptance:
    proposals = np.flatnonzero(chain.proposed)
    accepted = chain.accepted[proposals]
    scan = longest_run(chain.proposed)  # its proposals share a starting state
    overall = fraction_accepted(accepted, length=scan, rng=seed)
    by_basin: dict[str, Estimate] = {}
    if chain.phi.shape[1] > pair and proposals[0] > 0:
        origin = assign_basins(chain.phi[proposals - 1, pair], chain.psi[proposals - 1, pair])
        by_basin = acceptance_by_basin(origin, accepted, length=scan, rng=seed)
    return Acceptance(overall, by_basin, len(proposals))

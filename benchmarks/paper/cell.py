"""One cell of the comparison: a row trained on a molecule with a seed, and judged."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.states import SamplerState, ThermodynamicState

from benchmarks.paper.molecules import TEMPERATURE, Case, load_data, load_molecule
from benchmarks.paper.rows import ROWS, make_generator, matched_configs, n_parameters
from openmm_bg.analysis import distance_distortion
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.analysis.weights import pareto_k
from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import BoltzmannGeneratorMove, LatentWalk, tune_latent_walk
from openmm_bg.moves.walk_tuning import TuningError
from openmm_bg.potentials import SystemPotential
from openmm_bg.systems import MolecularSystem
from openmm_bg.training import held_out_nll, train
from openmm_bg.training.data import TrajectoryData
from openmm_bg.training.dataset import held_out_frames

HELD_OUT = 0.1  # what `train` leaves out
STARTS = 200  # frames of dynamics from which independence proposals are judged
QUANTILES = (0.1, 0.5, 0.9)
_COMPILED_FROM = 100  # atoms; below, OpenMM is as fast


def run(case: Case, row: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and judge.

    Parameters
    ----------
    case : Case
    row : str
        A key of `ROWS`.
    seed : int
    folder : path
        With molecule, data and widths.

    Returns
    -------
    dict
        Plain data.
    """
    molecule, data = load_molecule(folder), load_data(folder)
    config = matched_configs(molecule, case, folder / "widths.json")[row]
    generator = make_generator(molecule, case, config, seed)
    with potential_of(molecule) as potential:
        history = train(
            generator,
            potential,
            data=data,
            stages=ROWS[row].stages(case),
            max_seconds=case.seconds,
            seed=seed,
            evaluation_size=0,
            progress=False,
        )
        begin = time.perf_counter()
        found = judge(generator, potential, molecule, data, case, seed)
    return {
        "parameters": n_parameters(generator),
        "config": asdict(config),
        "seconds": history.seconds,
        "evaluations": history.n_energy_evaluations,
        "stages": history.stages,
        "last_step": history.steps[-1] if history.steps else {},
        "warnings": history.warnings,
        "seconds_to_judge": time.perf_counter() - begin,
        **found,
    }


def potential_of(molecule: MolecularSystem) -> SystemPotential:
    """The fastest energies for batches on one core."""
    if molecule.n_atoms < _COMPILED_FROM:
        return SystemPotential(molecule.system, molecule.topology, platform="Reference", n_workers=1)
    return SystemPotential(
        molecule.system,
        molecule.topology,
        backend="torch",
        device="cpu",
        precision="mixed",
        reference=molecule.positions,
        compile=True,
    )


def judge(
    generator: BoltzmannGenerator,
    potential: SystemPotential,
    molecule: MolecularSystem,
    data: TrajectoryData,
    case: Case,
    seed: int,
) -> dict[str, Any]:
    """Everything that a trained generator is measured by."""
    samples = generator.sample(case.n_samples, rng=seed)
    finite = np.isfinite(samples.positions).all(axis=(1, 2))
    energies = np.full(case.n_samples, np.inf)
    energies[finite] = potential.energy(samples.positions[finite])
    frames = data.positions.reshape(-1, *data.positions.shape[2:])
    distortion = distance_distortion(samples.positions[finite], frames, molecule.topology)
    nll = held_out_nll(generator, data, fraction=HELD_OUT)
    median = float(np.median(data.energies))
    usable = np.isfinite(energies) & np.isfinite(samples.log_prob)
    log_weights = np.full(case.n_samples, -np.inf)
    log_weights[usable] = -energies[usable] / thermal_energy(TEMPERATURE) - samples.log_prob[usable]
    return {
        "is_consistent": generator.is_consistent,
        "n_samples": case.n_samples,
        "not_finite": int(np.count_nonzero(~np.isfinite(energies))),
        "distortion": [distortion.value.value, distortion.value.error],
        "distortion_floor": distortion.floor.value,
        "energy": (np.quantile(energies, QUANTILES, method="inverted_cdf") - median).tolist(),
        "energy_of_dynamics": (np.quantile(data.energies, QUANTILES) - median).tolist(),
        "nll": [nll.nll, nll.error],
        **overlap(log_weights),
        "independence": independence_acceptance(log_weights, held_out_log_weights(generator, data)),
        "walk": walk(generator, molecule, data, case, seed),
    }


def overlap(log_weights: FloatArray) -> dict[str, Any]:
    """Unclipped effective sample size, k and share of the largest weight, of log weights of all draws (-inf: none)."""
    top = float(log_weights.max())
    if not math.isfinite(top):
        return {"ess": 0.0, "pareto_k": math.inf, "largest_weight": 1.0}
    weights = np.exp(log_weights - top)
    return {
        "ess": float(weights.sum() ** 2 / (weights**2).sum()),
        "pareto_k": pareto_k(log_weights),
        "largest_weight": float(1.0 / weights.sum()),
    }


def held_out_log_weights(generator: BoltzmannGenerator, data: TrajectoryData) -> FloatArray:
    """Log weights of frames of dynamics that training did not see."""
    chosen = held_out_frames(data.positions.shape[1], HELD_OUT)
    positions = data.positions[:, chosen].reshape(-1, *data.positions.shape[2:])
    reduced = data.energies[:, chosen].ravel() / thermal_energy(TEMPERATURE)
    step = max(1, len(positions) // STARTS)
    return np.asarray(-reduced[::step] - generator.log_prob(positions[::step]))


def independence_acceptance(proposed: FloatArray, current: FloatArray) -> float:
    """Mean of min(1, w(proposed) / w(current)) over all pairs, the acceptance of a chain in equilibrium."""
    current = current[np.isfinite(current)]  # from a start off the support nothing is accepted
    if not len(current):
        return 0.0
    return float(np.exp(np.minimum(proposed[:, None] - current[None], 0.0)).mean())


def walk(
    generator: BoltzmannGenerator, molecule: MolecularSystem, data: TrajectoryData, case: Case, seed: int
) -> dict[str, Any]:
    """Tune a latent walk from the last frame of the dynamics; steps and acceptances by kind of proposal."""
    n_scans, n_proposals, step = case.walk
    blocks = ("global",) if generator.latent_labels is None else ("global", "side_chain")
    if not generator.is_consistent:
        return {"error": "forward and inverse pass disagree"}
    kernel = LatentWalk(n_proposals=n_proposals, blocks=blocks, step={"global": step}, fraction_independence=0.0)
    move = BoltzmannGeneratorMove(generator, kernel=kernel, seed=seed)
    state = ThermodynamicState(molecule.system, TEMPERATURE * unit.kelvin)
    start = SamplerState(data.positions[0, -1] * unit.nanometer)
    try:
        tuning = tune_latent_walk(move, state, start, n_scans=n_scans, context_cache=ContextCache())
    except TuningError as error:
        return {"error": str(error)}
    return {
        "acceptance": dict(zip(tuning.kinds, tuning.acceptance, strict=True)),
        "step": dict(zip(kernel.blocks, tuning.step, strict=True)),
    }

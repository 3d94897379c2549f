"""A run folder with made-up chains of known populations, for the tests of the report."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from openmm_bg.report.records import Chain, GeneratorSamples
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.systems import MolecularSystem
from openmm_bg.training.history import TrainingHistory

CENTRES = np.radians([[-150.0, 155.0], [-75.0, 145.0], [-75.0, -35.0], [60.0, 40.0]])
POPULATIONS = np.array([0.28, 0.40, 0.30, 0.02])  # beta, PII, alpha_R, alpha_L
SCAN = 16
NOWHERE = np.zeros((0, 3))


def torsions(states: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    angles = CENTRES[states] + rng.normal(scale=0.17, size=(len(states), 2))
    angles = (angles + math.pi) % (2 * math.pi) - math.pi
    return angles[:, :1], angles[:, 1:]


def generator_chain(n: int, rng: np.random.Generator, lost: int | None = None) -> Chain:
    """Independence steps with 60 % accepted; a lost basin is never proposed."""
    proposal = POPULATIONS.copy()
    if lost is not None:
        proposal[lost] = 0.0
    proposed = np.arange(n) % (SCAN + 1) != 0
    accepted = proposed & (rng.uniform(size=n) < 0.6)
    accepted[0] = False
    fresh = accepted.copy()
    fresh[0] = True
    last = np.maximum.accumulate(np.where(fresh, np.arange(n), 0))
    drawn_phi, drawn_psi = torsions(rng.choice(4, size=n, p=proposal / proposal.sum()), rng)
    energy = rng.normal(-110.0, 9.0, size=n)[last]
    none, seconds = np.zeros(n, dtype=bool), np.linspace(0.0, 35.0, n)
    return Chain(drawn_phi[last], drawn_psi[last], energy, proposed, accepted, none, seconds, NOWHERE)


def stuck_chain(n: int, rng: np.random.Generator) -> Chain:
    """Dynamics that moves between the basins of negative phi only."""
    fresh = rng.uniform(size=n) < 0.02
    fresh[0] = True
    states = rng.choice(3, size=n, p=POPULATIONS[:3] / POPULATIONS[:3].sum())
    phi, psi = torsions(states[np.maximum.accumulate(np.where(fresh, np.arange(n), 0))], rng)
    none = np.zeros(n, dtype=bool)
    return Chain(phi, psi, rng.normal(-110.0, 9.0, size=n), none, none, none, np.linspace(0.0, 35.0, n), NOWHERE)


def weighted_samples(n: int, rng: np.random.Generator, lost: int | None = None) -> GeneratorSamples:
    """A generator that draws all basins alike, with weights that repair it and log-normal noise."""
    p = np.full(4, 0.25)
    if lost is not None:
        p[lost] = 0.0
        p /= p.sum()
    states = rng.choice(4, size=n, p=p)
    phi, psi = torsions(states, rng)
    log_weights = np.log(POPULATIONS[states]) + rng.normal(scale=0.5, size=n)
    log_weights[:5] = -np.inf
    log_weights -= math.log(np.exp(log_weights).sum())
    energy = rng.normal(-110.0, 9.0, size=n)
    energy[:5] = np.inf
    return GeneratorSamples(phi, psi, energy, log_weights)


def write_run(path: Path, molecule: MolecularSystem, *, seed: int = 0, lost: int | None = None) -> RunFolder:
    """A folder in which everything has run."""
    rng = np.random.default_rng(seed)
    folder = RunFolder.create(path)
    folder.update_settings(
        {"name": "ACE-ALA-NME", "temperature": 300.0, "seed": seed, "platform": "Reference", "pair": 0}
    )
    folder.write_system(molecule)
    generator_chain(30_000, rng, lost).save(folder.chain_file)
    stuck_chain(5_000, rng).save(folder.langevin_file)
    weighted_samples(8_000, rng, lost).save(folder.generator_samples_file)
    folder.training_folder.mkdir(exist_ok=True)
    write_training(folder, rng)
    folder.update_phase("simulate", finished=True, seconds=30.0, n_evaluations=400_000, platform="Reference")
    folder.update_phase("train", finished=True, seconds=170.0, n_evaluations=250_000, platform="Reference")
    folder.update_phase("sample", finished=True, seconds=35.0, n_evaluations=90_000, platform="Reference")
    folder.update_phase(
        "langevin", finished=True, seconds=35.0, n_evaluations=500_000, platform="Reference", concurrent_with="sample"
    )
    return folder


def write_training(folder: RunFolder, rng: np.random.Generator) -> None:
    steps = [
        {
            "stage": "data" if step < 100 else "cooling",
            "step": step,
            "seconds": 0.85 * step,
            "loss": 60 * math.exp(-step / 30) - 90 + rng.normal(),
        }
        for step in range(200)
    ]
    evaluations = [{"stage": "cooling", "seconds": 85.0 + 17 * i, "ess_fraction": 0.05 * (i + 1)} for i in range(6)]
    stages = [
        {"name": name, "steps": 100, "seconds": 85.0, "stopped_because": "all steps done"}
        for name in ("data", "cooling")
    ]
    TrainingHistory(steps, evaluations, stages, 250_000, 170.0).save(folder.history_file)

"""The four steps that the examples of proteins share: data, a generator, a walk with it, and a look at new structures.

`chignolin.py`, `hp35.py` and `protein_g.py` build a molecule and take these steps; so can a script of your own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from openmm import LangevinMiddleIntegrator, app, unit

from openmm_bg import BoltzmannGenerator, BoltzmannGeneratorSampling, LatentWalk, SystemPotential, train
from openmm_bg.analysis import NoveltyVerdict, find_novel, judge_novelty
from openmm_bg.moves import AcceptanceByKind, TuningError, tune_in_simulation
from openmm_bg.systems import MolecularSystem
from openmm_bg.training import paper_stages
from openmm_bg.training.data import TrajectoryData
from openmm_bg.training.simulate import simulate

TEMPERATURE = 300 * unit.kelvin


def parser(description: str | None, folder: str, nanoseconds: float, seconds: float) -> argparse.ArgumentParser:
    """The options that the examples have in common, with their defaults."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=Path(folder), help=f"of all results (default: {folder})")
    options.add_argument("--nanoseconds", type=float, default=nanoseconds, help="of each of two chains of data")
    options.add_argument("--seconds", type=float, default=seconds, help="of training, walk and novelty each")
    options.add_argument("--compiled", action="store_true", help="compile the walk's energies: for long runs on a CPU")
    options.add_argument("--quick", action="store_true", help="hardly any of it, to see that it runs")
    options.add_argument("--seed", type=int, default=1)
    return options


def dynamics(molecule: MolecularSystem, options: argparse.Namespace) -> TrajectoryData:
    """Frames at the temperature of the answers, at which energies are one of the losses. 4 fs, for heavy hydrogens."""
    n_steps, stride = (1_000, 5) if options.quick else (250 * round(1000 * options.nanoseconds), 250)
    data = simulate(
        molecule, TEMPERATURE, n_steps=n_steps, stride=stride, timestep=0.004, seed=options.seed,
        n_equilibration_steps=100 if options.quick else 10_000, minimized=True, folder=options.folder / "dynamics",
    )  # fmt: skip
    print(f"{data.energies.size} frames cost {data.cost.n_steps:,} steps and {data.cost.seconds:.0f} s")
    return data


def trained(molecule: MolecularSystem, data: TrajectoryData, options: argparse.Namespace) -> BoltzmannGenerator:
    """Torsions and angles of the backbone, torsions of side chains given it; a move keeps all else as it is.

    The paper's stages: likelihood, then with distances in the backbone, then with energies. A quick run takes three
    steps and leaves the energies out.
    """
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, TEMPERATURE, coordinates="reduced", frozen="keep", flow="split",
        positions=molecule.positions, seed=options.seed,
    )  # fmt: skip
    with SystemPotential(
        molecule.system, molecule.topology, backend="openmm" if options.quick else "auto"
    ) as potential:
        history = train(
            generator, potential, data=data, stages=paper_stages(0.0005) if options.quick else "paper",
            max_seconds=None if options.quick else options.seconds,
            max_evaluations=1_000 if options.quick else None, folder=options.folder / "training", seed=options.seed,
        )  # fmt: skip
    generator.save(options.folder / "generator.bg")
    for stage in history.stages:
        print(f"{stage['name']}: {stage['steps']} steps in {stage['seconds']:.0f} s, {stage['stopped_because']}")
    return generator


def walk(
    molecule: MolecularSystem, generator: BoltzmannGenerator, data: TrajectoryData, options: argparse.Namespace
) -> AcceptanceByKind:
    """What works at this size: steps in the latents, tuned and then fixed, in turn with dynamics. Exact as any move."""
    integrator = LangevinMiddleIntegrator(TEMPERATURE, 5 / unit.picosecond, 2 * unit.femtosecond)
    simulation = app.Simulation(molecule.topology, molecule.system, integrator)
    simulation.context.setPositions(data.positions[0, -1])
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, options.seed)
    interval = 25 if options.quick else 250  # steps of dynamics between two scans
    kernel = LatentWalk(n_proposals=64, blocks=["side_chain", "backbone"])
    asked = {"energies": "compiled" if options.compiled else "openmm", "seed": options.seed}
    try:
        tuned = BoltzmannGeneratorSampling(simulation, generator, interval, kernel=kernel, **asked)
        tune_in_simulation(tuned, n_scans=10 if options.quick else 100)
        kernel = tuned.kernel
    except TuningError as error:  # the backbone cannot move so: fresh side chains need no step
        print(error)
        kernel = LatentWalk(n_proposals=64, blocks=["side_chain"])
    sampling = BoltzmannGeneratorSampling(simulation, generator, interval, kernel=kernel, **asked)
    simulation.reporters.append(app.DCDReporter(str(options.folder / "walk.dcd"), interval))
    acceptance, n_scans, end = AcceptanceByKind(), 0, time.monotonic() + options.seconds
    while n_scans < 4 if options.quick else time.monotonic() < end:
        sampling.step(interval)
        n_scans += 1
        assert sampling.last_scan is not None
        acceptance(sampling.last_scan)
    for kind, fraction in acceptance.fractions.items():
        print(f"{kind}: {fraction:.1%} of {acceptance.n_proposed[kind]:,} proposals accepted")
    return acceptance


def new_structures(
    molecule: MolecularSystem, generator: BoltzmannGenerator, data: TrajectoryData, options: argparse.Namespace
) -> NoveltyVerdict:
    """Draw structures, keep those far from all data, and simulate them beside known states. The verdict may be none."""
    frames = data.positions.reshape(-1, molecule.n_atoms, 3)
    origins = frames[:: -(-len(frames) // 20)]  # whose frozen coordinates the draws have
    drawn = np.concatenate([generator.sample(50, rng=i, frozen_from=x).positions for i, x in enumerate(origins)])
    novel = find_novel(drawn, frames, molecule.topology, n_known=1 if options.quick else 4)
    print(novel.summary)
    short = {"n_steps": 200, "n_equilibration_steps": 50, "stride": 10, "sustained": 0.1, "n_copies": 2}
    verdict = judge_novelty(
        novel, molecule.system, TEMPERATURE, max_clusters=1 if options.quick else 5, seed=options.seed,
        folder=options.folder / "novelty", max_seconds=4.0 if options.quick else options.seconds,
        **(short if options.quick else {}),
    )  # fmt: skip
    print(f"New metastable states: {verdict.sentence}")
    return verdict

"""Side chains of villin: the latent walk with Langevin dynamics, against Langevin dynamics alone.

python -m benchmarks.protein_walk [--run FOLDER] [--seconds S] [--quick] [--output FOLDER]

Both chains start from one structure and get the same wall time, in turns, on the platform that is fastest for the
dynamics. FOLDER is a run of `openmm-bg demo --system villin` (its System, data and generator); without one, data and
generator are made here, in two rounds: dynamics, a generator that is shown other rotamers too, a walk with it that
visits them, and a generator of both. Langevin dynamics alone has the long timestep and the low friction that are best
for it; that between scans has a shorter one (docs: proteins, "Velocities").
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from benchmarks.table import Table
from benchmarks.timing import machine
from openmm_bg.analysis.dihedrals import torsion_angles
from openmm_bg.analysis.rotamers import RotamerRelaxation, assign_rotamers, relaxation_quantile, rotamer_relaxation
from openmm_bg.analysis.side_chains import side_chain_torsions
from openmm_bg.analysis.timeseries import statistical_inefficiency
from openmm_bg.density import FloatArray
from openmm_bg.files import write_bytes
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import (
    AcceptanceByKind,
    BoltzmannGeneratorSampling,
    Independence,
    LatentWalk,
    WalkTuning,
    tune_in_simulation,
)
from openmm_bg.potentials import PlatformChoice, choose_platform
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.systems import MolecularSystem, villin
from openmm_bg.training.simulate import simulate

TEMPERATURE, HOT, WARM = 300.0, 420.0, 400.0  # K; of the chains, of dynamics to train on, of a walk to train on
TIMESTEP, FRICTION = 0.004, 1.0  # ps, 1/ps, of Langevin dynamics alone; hydrogens have 3 amu
WALK_TIMESTEP, WALK_FRICTION = 0.002, 5.0  # ps, 1/ps, of that between scans
HYDROGEN_MASS = 3.0
EQUILIBRATION = 40_000  # steps of Langevin dynamics alone, after minimisation
TURN = 20.0  # s
FEWEST_FRAMES = 12
KERNEL = LatentWalk(
    n_proposals=512, blocks=("side_chain", "rotamer", "backbone"), shares=(0.25, 0.7, 0.05), step={"backbone": 0.1},
    fraction_independence=0.005, n_candidates=32,
)  # fmt: skip
INTERVAL = 200  # steps between two scans, which draw velocities anew, and between two frames of Langevin alone
TUNING_SCANS = 70
JUMPS = 0.3  # probability of another rotamer in a frame to train on
STATES_KEPT = 32  # every so many of a scan, to train on


@dataclass
class Chain:
    """What is kept of one chain: chi1 of each residue, rad, and the energy, kJ/mol, of frames at even intervals."""

    simulation: app.Simulation
    seconds: float = 0.0
    n_steps: int = 0
    chi: list[NDArray[np.float64]] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder with System, data and generator of villin")
    parser.add_argument("--seconds", type=float, default=900.0, help="wall time of each chain")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; nothing is kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.quick:
        options.seconds = 15.0
    with tempfile.TemporaryDirectory() as scratch:
        molecule, generator = _inputs(options.run, Path(scratch), options.quick)
        result = compare(molecule, generator, options.seconds, options.quick)
    page = "\n".join(table.markdown() for table in tables(result))
    print(page)
    if not options.quick:
        write_bytes(options.output / "protein_walk.json", (json.dumps(result, indent=1) + "\n").encode())
        write_bytes(options.output / "protein_walk.md", f"# The latent walk in villin\n\n{page}".encode())


def compare(molecule: MolecularSystem, generator: BoltzmannGenerator, seconds: float, quick: bool) -> dict[str, Any]:
    """Tune the walk, run both chains in turns, and say how fast side chains relax in each."""
    torsions = [
        torsion for torsion in side_chain_torsions(molecule.topology) if torsion.name == "chi1" and not torsion.in_ring
    ]
    choice = choose_platform(molecule.system, molecule.positions, task="dynamics")
    walk = Chain(_simulation(molecule, choice, TEMPERATURE, WALK_TIMESTEP, WALK_FRICTION, 1))
    alone = Chain(_simulation(molecule, choice, TEMPERATURE, TIMESTEP, FRICTION, 2))
    _equilibrate(alone.simulation, molecule, 200 if quick else EQUILIBRATION)
    state = alone.simulation.context.getState(positions=True, velocities=True)
    walk.simulation.context.setState(state)
    drawn_only = replace(KERNEL, n_proposals=64, blocks=("side_chain",), shares=None, step=1.0)  # nothing to tune
    kernel = drawn_only if quick else KERNEL
    sampling = BoltzmannGeneratorSampling(
        walk.simulation, generator, INTERVAL, kernel=kernel, energies=_energies(choice), seed=3
    )
    begin = time.perf_counter()
    tuning = tune_in_simulation(sampling, n_scans=10 if quick else TUNING_SCANS)
    tuned = time.perf_counter() - begin
    acceptance = AcceptanceByKind()
    n_evaluations = 0
    while min(walk.seconds, alone.seconds) < seconds or len(walk.chi) < FEWEST_FRAMES:
        turn = max(1.0, min(TURN, seconds - walk.seconds))
        begin = time.perf_counter()
        while time.perf_counter() - begin < turn:
            sampling.step(INTERVAL)
            assert sampling.last_scan is not None
            acceptance(sampling.last_scan)
            n_evaluations += sampling.last_scan.n_proposed + 1
            _record(walk, torsions)
        walk.seconds += time.perf_counter() - begin
        begin = time.perf_counter()
        while time.perf_counter() - begin < turn:
            alone.simulation.step(INTERVAL)
            _record(alone, torsions)
        alone.seconds += time.perf_counter() - begin
    independence = BoltzmannGeneratorSampling(
        walk.simulation,
        generator,
        INTERVAL,
        kernel=Independence(8 if quick else 500),
        energies=_energies(choice),
        seed=4,
    )
    independence.step(INTERVAL)
    assert independence.last_scan is not None
    log_weight = independence.last_scan.log_weight
    return {
        "machine": machine(),
        "platform": str(choice),
        "energies": _energies(choice),
        "n_atoms": generator.n_atoms,
        "tuning": asdict(tuning),
        "tuning_seconds": tuned,
        "acceptance": acceptance.fractions,
        "n_proposed": dict(acceptance.n_proposed),
        "energy_evaluations_of_scans": n_evaluations,
        "independence": {
            "n_proposed": independence.n_proposed,
            "n_accepted": independence.n_accepted,
            "best_log_weight_less_current": float(np.max(log_weight[1:]) - log_weight[0]),
        },
        "residues": [torsion.residue for torsion in torsions],
        "walk": _summary(walk, alone),
        "langevin": _summary(alone, walk),
        "energy": {"walk": _mean(np.array(walk.energies)), "langevin": _mean(np.array(alone.energies))},
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """The tables of a comparison."""
    rows = []
    names = {"walk": "latent walk and Langevin", "langevin": "Langevin alone"}
    for key, name in names.items():
        found = result[key]
        median, slowest = found["median"], found["slowest_decile"]
        rows.append(
            {
                "chain": name,
                "wall time / s": found["seconds"],
                "ns": found["n_steps"] * (WALK_TIMESTEP if key == "walk" else TIMESTEP) / 1000.0,
                "frames": found["n_frames"],
                "chi1 relaxation, median / s": median[0],
                "between": f"{median[1]:.3g} and {median[2]:.3g}",
                "slowest decile / s": slowest[0],
                "between ": f"{slowest[1]:.3g} and {slowest[2]:.3g}",
                "rotamer changes / min": 60.0 * sum(found["n_transitions"]) / found["seconds"],
                "residues that never moved": found["status"].count("never moved"),
            }
        )
    tuning = WalkTuning(**result["tuning"])
    reached = ", ".join(f"{kind} {fraction:.1%}" for kind, fraction in result["acceptance"].items())
    independence = result["independence"]
    energies = result["energy"]
    difference = energies["walk"][0] - energies["langevin"][0]
    error = float(np.hypot(energies["walk"][1], energies["langevin"][1]))
    z = [value for value in result["walk"]["z_scores"] if value is not None]
    notes = [
        f"Villin HP35, {result['n_atoms']} atoms, {TEMPERATURE:g} K, GBSA-OBC, in turns of {TURN:g} s; dynamics on "
        f"{result['platform']}, alone at {1000 * TIMESTEP:g} fs and {FRICTION:g}/ps, between scans at "
        f"{1000 * WALK_TIMESTEP:g} fs and {WALK_FRICTION:g}/ps; energies of the proposals: {result['energies']}.",
        f"Acceptance in production, with the steps that {tuning.n_scans} scans of equilibration found and fixed "
        f"(backbone step {tuning.step[-1]:.3g}): {reached}. In the last {tuning.n_fixed_scans} scans of it: "
        + ", ".join(f"{kind} {value:.1%}" for kind, value in zip(tuning.kinds, tuning.acceptance, strict=True))
        + ".",
        f"Independence proposals: {independence['n_accepted']} of {independence['n_proposed']} accepted; the best of "
        f"them was {-independence['best_log_weight_less_current']:,.0f} kT short of the current state.",
        _changes(result["walk"], result["langevin"]),
        f"Mean energies differ by {difference:.1f} +- {error:.1f} kJ/mol. Populations of the chi1 rotamers of residues "
        f"that both chains resolve differ by {_root_mean_square(z):.2f} standard errors (root mean square of {len(z)}, "
        f"largest {max(map(abs, z), default=0.0):.1f}).",
        "Relaxation: integrated autocorrelation time of exp(i chi1) in seconds of wall time, where the chain is long "
        "enough to know it (else nan), between 95 % bounds that count rotamer changes.",
    ]
    return [Table("Relaxation of chi1", rows, notes)]


def _changes(walk: dict[str, Any], alone: dict[str, Any]) -> str:
    """How often rotamers changed, residue by residue."""
    counts = np.array([walk["n_transitions"], alone["n_transitions"]], dtype=float)
    moved = counts.sum(axis=0) > 0
    rates = (counts[:, moved] + 0.5) / np.array([[walk["seconds"]], [alone["seconds"]]])
    slowest = np.argsort(rates.sum(axis=0))[: max(1, round(0.1 * moved.sum()))]
    sums = counts[:, moved][:, slowest].sum(axis=1) / np.array([walk["seconds"], alone["seconds"]])
    return (
        f"Of {counts.shape[1]} residues with chi1, {np.count_nonzero(counts[0])} changed their rotamer in the walk, "
        f"{np.count_nonzero(counts[1])} in Langevin dynamics alone, {np.count_nonzero(~moved)} in neither. Of the "
        f"others {np.count_nonzero(rates[0] > rates[1])} changed more often per second in the walk, by a factor of "
        f"{np.median(rates[0] / rates[1]):.1f} in the median; the slowest tenth of them {60.0 * sums[0]:.2f} times a "
        f"minute in the walk and {60.0 * sums[1]:.2f} alone."
    )


def _inputs(run: Path | None, scratch: Path, quick: bool) -> tuple[MolecularSystem, BoltzmannGenerator]:
    if run is not None:
        folder = RunFolder.open(run)
        molecule = folder.read_system()
        return molecule, BoltzmannGenerator.load(folder.generator_file, system=molecule.system)
    molecule = villin(hydrogen_mass=HYDROGEN_MASS)
    data = simulate(
        molecule, HOT, n_steps=300 if quick else 40_000, stride=3 if quick else 50, timestep=TIMESTEP,
        friction=FRICTION, n_equilibration_steps=50 if quick else 5000, minimized=True, seed=1, folder=scratch,
    )  # fmt: skip
    frames = data.positions.reshape(-1, *molecule.positions.shape)
    first = _fitted(molecule, frames, quick)
    walked = _walked(MolecularSystem(molecule.system, molecule.topology, frames[-1]), first, 2 if quick else 100)
    return molecule, _fitted(molecule, np.concatenate([frames, walked]), quick)


def _fitted(molecule: MolecularSystem, frames: FloatArray, quick: bool) -> BoltzmannGenerator:
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, TEMPERATURE, coordinates="reduced", frozen="keep",
        positions=molecule.positions, seed=1,
    )  # fmt: skip
    generator.fit(frames, max_steps=4 if quick else 1500, rotamer_jumps=JUMPS, progress=False)
    return generator


def _walked(molecule: MolecularSystem, generator: BoltzmannGenerator, n_scans: int) -> FloatArray:
    """States of a walk of side chains in turn with dynamics, to train on."""
    choice = choose_platform(molecule.system, molecule.positions, task="dynamics")
    simulation = _simulation(molecule, choice, WARM, WALK_TIMESTEP, WALK_FRICTION, 5)
    simulation.context.setPositions(molecule.positions)
    simulation.context.setVelocitiesToTemperature(WARM, 6)
    kernel = LatentWalk(n_proposals=KERNEL.n_proposals, blocks=["side_chain"], fraction_independence=0.0)
    sampling = BoltzmannGeneratorSampling(
        simulation, generator, INTERVAL, kernel=kernel, energies=_energies(choice), seed=7
    )
    kept = []
    for _ in range(n_scans):
        sampling.step(INTERVAL)
        assert sampling.last_scan is not None
        kept.append(sampling.last_scan.positions[sampling.last_scan.chain[STATES_KEPT - 1 :: STATES_KEPT]])
    return np.concatenate(kept)


def _energies(choice: PlatformChoice) -> Literal["openmm", "compiled"]:
    """Where energies of many proposals are fastest."""
    return "openmm" if choice.is_gpu else "compiled"


def _simulation(
    molecule: MolecularSystem, choice: PlatformChoice, temperature: float, timestep: float, friction: float, seed: int
) -> app.Simulation:
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName(choice.name)
    return app.Simulation(molecule.topology, molecule.system, integrator, platform, choice.properties)


def _equilibrate(simulation: app.Simulation, molecule: MolecularSystem, n_steps: int) -> None:
    simulation.context.setPositions(molecule.positions)
    simulation.minimizeEnergy(maxIterations=100)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 5)
    simulation.step(n_steps)


def _record(chain: Chain, torsions: list[Any]) -> None:
    state = chain.simulation.context.getState(positions=True, energy=True)
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)[None]
    chain.chi.append(np.array([torsion_angles(positions, torsion.atoms)[0] for torsion in torsions]))
    chain.energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
    chain.n_steps += INTERVAL


def _summary(chain: Chain, other: Chain) -> dict[str, Any]:
    chi, chi_other = np.array(chain.chi), np.array(other.chi)
    interval = chain.seconds / len(chi)
    populations = [_pooled(own, beside) for own, beside in zip(chi.T, chi_other.T, strict=True)]
    found = [
        rotamer_relaxation(angles, interval=interval, populations=known)
        for angles, known in zip(chi.T, populations, strict=True)
    ]
    return {
        "seconds": chain.seconds,
        "n_steps": chain.n_steps,
        "n_frames": len(chi),
        "median": relaxation_quantile(found, 0.5),
        "slowest_decile": relaxation_quantile(found, 0.9),
        "relaxation": [relaxation.time.value for relaxation in found],
        "bounds": [(relaxation.lower, relaxation.upper) for relaxation in found],
        "status": [relaxation.status for relaxation in found],
        "n_transitions": [relaxation.n_transitions for relaxation in found],
        "populations": [relaxation.populations for relaxation in found],
        "z_scores": [_z_score(*pair) for pair in zip(chi.T, chi_other.T, strict=True)],
    }


def _pooled(chi: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Populations of the rotamers in both chains, each with the same weight."""
    fractions = [np.bincount(assign_rotamers(angles), minlength=3) / len(angles) for angles in (chi, other)]
    pooled: NDArray[np.float64] = 0.5 * (fractions[0] + fractions[1])
    return pooled


def _z_score(chi: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Difference of the most populated rotamer's population in standard errors; None where a chain is too short."""
    relaxations: list[RotamerRelaxation] = [rotamer_relaxation(angles) for angles in (chi, other)]
    if any(relaxation.status != "resolved" for relaxation in relaxations):
        return None
    most = int(np.argmax(_pooled(chi, other)))
    estimates = [_mean((assign_rotamers(angles) == most).astype(float)) for angles in (chi, other)]
    error = float(np.hypot(estimates[0][1], estimates[1][1]))
    return (estimates[0][0] - estimates[1][0]) / error if error > 0.0 else None


def _mean(series: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of a correlated series and its standard error."""
    inefficiency = statistical_inefficiency(series)
    return float(series.mean()), float(series.std(ddof=1) * np.sqrt(inefficiency / len(series)))


def _root_mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values else float("nan")


if __name__ == "__main__":
    main()

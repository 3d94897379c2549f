"""Reference populations of the demo molecule by long temperature replica exchange; resumable.

Every replica is one OpenMM Context on the Reference platform, the fastest one for 22 atoms on a CPU core; replicas take
turns on one thread and exchange temperatures. The highest temperature crosses the phi barrier about ten times a
nanosecond and seldom flips a peptide bond; frames with a cis peptide bond are left out (their share is reported), for
proposals and plain dynamics at 300 K stay trans as well. The estimate, with its error and the length of the run, is
written to `benchmarks/results/` whenever the run stops and every few minutes on the way.

    python benchmarks/replica_exchange_reference.py --folder build/replica_exchange --max-seconds 3600

Run it again with the same folder to continue.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as machine
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from pymbar import MBAR, timeseries

from openmm_bg.systems import MolecularSystem, peptide

FloatArray = NDArray[np.float64]

RESULTS = Path(__file__).parent / "results"
MOLECULE = "ACE-ALA-NME"
TEMPERATURES = np.geomspace(300.0, 650.0, 5)
OMEGA = ((0, 4, 6, 8), (8, 14, 16, 18))  # CH3-C-N-CA and CA-C-N-CH3
TIMESTEP = 0.002  # ps
FRICTION = 1.0  # 1/ps
STEPS_PER_EXCHANGE = 100
EXCHANGES_PER_FRAME = 5  # a frame every picosecond
EQUILIBRATION_FRAMES = 100
GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
N_BLOCKS = 25


@dataclass
class Ladder:
    """Replicas that walk in temperature; every frame of every replica is kept."""

    temperatures: FloatArray  # K, from the lowest to the highest
    contexts: list[openmm.Context]
    rng: np.random.Generator
    temperature_index: NDArray[np.int64]  # of each replica
    frames: dict[str, list[FloatArray]]  # phi, psi, cis, energy, index: one row of n_replicas values per frame
    attempts: NDArray[np.int64]  # of each neighbouring pair of temperatures
    accepted: NDArray[np.int64]
    n_exchanges: int = 0


def start(molecule: MolecularSystem, seed: int, temperatures: FloatArray = TEMPERATURES) -> Ladder:
    n = len(temperatures)
    contexts = []
    for replica, temperature in enumerate(temperatures):
        integrator = openmm.LangevinMiddleIntegrator(temperature, FRICTION, TIMESTEP)
        integrator.setRandomNumberSeed(seed + replica + 1)
        context = openmm.Context(molecule.system, integrator, openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(molecule.positions)
        context.setVelocitiesToTemperature(temperature, seed + replica + 1)
        contexts.append(context)
    frames: dict[str, list[FloatArray]] = {name: [] for name in ("phi", "psi", "cis", "energy", "index")}
    zeros = np.zeros(n - 1, dtype=np.int64)
    return Ladder(temperatures, contexts, np.random.default_rng(seed), np.arange(n), frames, zeros, zeros.copy())


def exchange(ladder: Ladder) -> None:
    """Try to swap the temperatures of neighbours, even and odd pairs in turn; velocities follow their temperature."""
    energies = [c.getState(getEnergy=True).getPotentialEnergy()._value for c in ladder.contexts]
    replica_at = np.argsort(ladder.temperature_index)
    beta = 1.0 / (GAS_CONSTANT * ladder.temperatures)
    for low in range(ladder.n_exchanges % 2, len(beta) - 1, 2):
        first, second = replica_at[low], replica_at[low + 1]
        log_ratio = (beta[low] - beta[low + 1]) * (energies[first] - energies[second])
        ladder.attempts[low] += 1
        if np.log(ladder.rng.random()) < log_ratio:
            ladder.accepted[low] += 1
            set_temperature(ladder, first, low + 1)
            set_temperature(ladder, second, low)
    ladder.n_exchanges += 1


def set_temperature(ladder: Ladder, replica: int, index: int) -> None:
    context = ladder.contexts[replica]
    scale = np.sqrt(ladder.temperatures[index] / ladder.temperatures[ladder.temperature_index[replica]])
    velocities = context.getState(getVelocities=True).getVelocities(asNumpy=True)._value
    context.setVelocities(velocities * scale)
    context.getIntegrator().setTemperature(ladder.temperatures[index])
    ladder.temperature_index[replica] = index


def record(ladder: Ladder, topology: mdtraj.Topology) -> None:
    states = [context.getState(getPositions=True, getEnergy=True) for context in ladder.contexts]
    positions = np.array([state.getPositions(asNumpy=True)._value for state in states])
    trajectory = mdtraj.Trajectory(positions, topology)
    ladder.frames["phi"].append(mdtraj.compute_phi(trajectory, periodic=False)[1][:, 0])
    ladder.frames["psi"].append(mdtraj.compute_psi(trajectory, periodic=False)[1][:, 0])
    omega = mdtraj.compute_dihedrals(trajectory, OMEGA, periodic=False)
    ladder.frames["cis"].append((np.abs(omega) < np.pi / 2).any(axis=1).astype(np.float64))
    ladder.frames["energy"].append(np.array([state.getPotentialEnergy()._value for state in states]))
    ladder.frames["index"].append(ladder.temperature_index.astype(np.float64))


def save(ladder: Ladder, path: Path) -> None:
    """Write everything needed to continue, replacing the file as a whole."""
    arrays: dict[str, Any] = {name: np.array(rows) for name, rows in ladder.frames.items()}
    arrays |= {
        f"checkpoint_{i}": np.frombuffer(context.createCheckpoint(), dtype=np.uint8)
        for i, context in enumerate(ladder.contexts)
    }
    state = {
        "rng": ladder.rng.bit_generator.state,
        "index": ladder.temperature_index.tolist(),
        "attempts": ladder.attempts.tolist(),
        "accepted": ladder.accepted.tolist(),
        "n_exchanges": ladder.n_exchanges,
    }
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, state=json.dumps(state), **arrays)
    os.replace(temporary, path)


def resume(ladder: Ladder, path: Path) -> None:
    with np.load(path) as stored:
        state = json.loads(str(stored["state"]))
        for i, context in enumerate(ladder.contexts):
            context.loadCheckpoint(stored[f"checkpoint_{i}"].tobytes())
            context.getIntegrator().setTemperature(ladder.temperatures[state["index"][i]])
        for name in ladder.frames:
            ladder.frames[name] = list(stored[name])
    ladder.rng.bit_generator.state = state["rng"]
    ladder.temperature_index = np.array(state["index"])
    ladder.attempts, ladder.accepted = np.array(state["attempts"]), np.array(state["accepted"])
    ladder.n_exchanges = state["n_exchanges"]


def basins(phi: FloatArray, psi: FloatArray) -> dict[str, NDArray[np.bool_]]:
    """Membership in the basins: 0 < phi < 2.3 rad by phi alone, the rest divided by psi."""
    positive = (phi > 0.0) & (phi < 2.3)
    helical = ~positive & (psi > np.radians(-120.0)) & (psi < np.radians(50.0))
    return {"phi_positive": positive, "alpha_r": helical, "beta_pii": ~positive & ~helical}


def mean_and_error(values: FloatArray) -> dict[str, float]:
    """Mean of a time series; its error is the larger of those by blocks and by the integrated autocorrelation time."""
    blocks = np.array([block.mean() for block in np.array_split(values, N_BLOCKS)])
    by_blocks = blocks.std(ddof=1) / np.sqrt(N_BLOCKS)
    constant = np.ptp(values) == 0.0
    inefficiency = float("nan") if constant else float(timeseries.statistical_inefficiency(values))
    by_correlation = 0.0 if constant else values.std() * np.sqrt(inefficiency / len(values))
    return {
        "value": float(values.mean()),
        "error": float(max(by_blocks, by_correlation)),
        "error_by_blocks": float(by_blocks),
        "statistical_inefficiency": inefficiency,
    }


def mbar_populations(frames: dict[str, FloatArray], rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Populations at the lowest temperature from all temperatures; error by a bootstrap over blocks of time."""
    keep = np.linspace(0, len(frames["energy"]) - 1, min(4000, len(frames["energy"]))).astype(int)
    energy, phi, psi, cis = (frames[name][keep] for name in ("energy", "phi", "psi", "cis"))
    u_kn = np.outer(1.0 / (GAS_CONSTANT * TEMPERATURES), energy.ravel())
    mbar = MBAR(u_kn, [len(keep)] * len(TEMPERATURES), solver_protocol="robust")
    weights = mbar.weights()[:, 0].reshape(energy.shape) * (1.0 - cis)
    membership = basins(phi, psi)
    totals = np.array([block.sum() for block in np.array_split(weights, N_BLOCKS)])
    draws = rng.integers(N_BLOCKS, size=(1000, N_BLOCKS))
    result = {}
    for name, inside in membership.items():
        parts = np.array([block.sum() for block in np.array_split(weights * inside, N_BLOCKS)])
        bootstrap = parts[draws].sum(axis=1) / totals[draws].sum(axis=1)
        result[name] = {"value": float(parts.sum() / totals.sum()), "error": float(bootstrap.std())}
    return result


def round_trips(index: FloatArray) -> int:
    """Journeys of replicas from the lowest temperature to the highest and back."""
    total = 0
    for replica in index.T:
        ends = replica[(replica == 0) | (replica == len(TEMPERATURES) - 1)]
        total += int(np.count_nonzero(np.diff(ends)) // 2)
    return total


def basin_round_trips(phi: FloatArray) -> int:
    """Journeys of replicas, at any temperature, into the phi > 0 basin and back."""
    total = 0
    for replica_phi in phi.T:
        state = np.where((replica_phi > 0.35) & (replica_phi < 1.9), 1, np.where(replica_phi < -0.5, -1, 0))
        visited = state[state != 0]
        total += int(np.count_nonzero(np.diff(visited)) // 2)
    return total


def analyse(ladder: Ladder, molecule: MolecularSystem, seconds: float, seed: int) -> dict[str, object]:
    frames = {name: np.array(rows)[EQUILIBRATION_FRAMES:] for name, rows in ladder.frames.items()}
    order = np.argsort(frames["index"], axis=1)  # replica at each temperature
    by_state = {name: np.take_along_axis(frames[name], order, axis=1) for name in ("phi", "psi", "cis", "energy")}
    trans = by_state["cis"][:, 0] == 0.0
    phi, psi, energy = (by_state[name][trans, 0] for name in ("phi", "psi", "energy"))
    np.savez_compressed(
        RESULTS / "replica_exchange_ala2_phipsi.npz", phi=phi.astype(np.float32), psi=psi.astype(np.float32)
    )
    n_frames = len(ladder.frames["phi"])
    frame_time = STEPS_PER_EXCHANGE * EXCHANGES_PER_FRAME * TIMESTEP
    return {
        "molecule": f"{MOLECULE}, amber99sbildn.xml + amber99_obc.xml, no cutoff, HBonds",
        "temperature_K": float(TEMPERATURES[0]),
        "temperatures_K": TEMPERATURES.round(3).tolist(),
        "dynamics": f"LangevinMiddleIntegrator, {TIMESTEP * 1000:g} fs, friction {FRICTION:g}/ps",
        "length_ns_per_replica": round(n_frames * frame_time / 1000, 3),
        "length_ns_all_replicas": round(n_frames * frame_time * len(TEMPERATURES) / 1000, 3),
        "discarded_ns_per_replica": EQUILIBRATION_FRAMES * frame_time / 1000,
        "basins": {
            "phi_positive": "0 < phi < 2.3 rad",
            "alpha_r": "not phi_positive, -120 < psi < 50 degrees",
            "beta_pii": "the rest",
        },
        "populations": {name: mean_and_error(inside.astype(float)) for name, inside in basins(phi, psi).items()},
        "populations_mbar": mbar_populations(by_state, np.random.default_rng(seed)),
        "mean_energy_kJ_per_mol": mean_and_error(energy),
        "cis_fraction_left_out": (by_state["cis"].mean(axis=0)).round(5).tolist(),
        "exchange_rates": (ladder.accepted / np.maximum(ladder.attempts, 1)).round(4).tolist(),
        "exchange_interval_ps": STEPS_PER_EXCHANGE * TIMESTEP,
        "temperature_round_trips": round_trips(frames["index"]),
        "phi_round_trips_all_replicas": basin_round_trips(frames["phi"]),
        "seconds_of_last_run": round(seconds),
        "seed": seed,
        "versions": {"openmm": openmm.__version__, "numpy": np.__version__, "python": machine.python_version()},
        "machine": f"{machine.machine()}, {os.cpu_count()} cores (shared), one thread, OpenMM's Reference platform",
    }


def write_results(ladder: Ladder, molecule: MolecularSystem, seconds: float, seed: int) -> None:
    if len(ladder.frames["phi"]) < EQUILIBRATION_FRAMES + 4 * N_BLOCKS:
        return
    summary = analyse(ladder, molecule, seconds, seed)
    path = RESULTS / "replica_exchange_ala2.json"
    path.with_suffix(".part").write_text(json.dumps(summary, indent=1) + "\n")
    os.replace(path.with_suffix(".part"), path)
    print(json.dumps({k: summary[k] for k in ("length_ns_per_replica", "populations", "populations_mbar")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("build/replica_exchange"), help="checkpoints")
    parser.add_argument("--max-seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    checkpoint = options.folder / "checkpoint.npz"

    molecule = peptide(MOLECULE)
    topology = mdtraj.Topology.from_openmm(molecule.topology)
    ladder = start(molecule, options.seed)
    if checkpoint.exists():
        resume(ladder, checkpoint)
    begin = saved = written = time.perf_counter()
    try:
        while time.perf_counter() - begin < options.max_seconds:
            for _ in range(EXCHANGES_PER_FRAME):
                for context in ladder.contexts:
                    context.getIntegrator().step(STEPS_PER_EXCHANGE)
                exchange(ladder)
            record(ladder, topology)
            now = time.perf_counter()
            if now - saved > 60.0:
                save(ladder, checkpoint)
                saved = now
            if now - written > 300.0:
                write_results(ladder, molecule, now - begin, options.seed)
                written = now
    except KeyboardInterrupt:
        print("Stopped; run again with the same folder to continue.", file=sys.stderr)
    save(ladder, checkpoint)
    write_results(ladder, molecule, time.perf_counter() - begin, options.seed)


if __name__ == "__main__":
    main()

"""Three ways to sample the rare basin of vacuum alanine dipeptide, each kept in a folder; see basin_free_energy.py.

Constraints are those of the demo (bonds to hydrogen), steps of 2 fs, one thread on OpenMM's Reference platform, the
fastest for 22 atoms. Everything that was done is in the folder: a run that was stopped goes on, a finished one is read.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import mdtraj
import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit
from openmmtools.cache import ContextCache
from openmmtools.mcmc import SequenceMove
from openmmtools.states import SamplerState, ThermodynamicState

from benchmarks.replica_exchange_reference import STEPS_PER_EXCHANGE, exchange, record, resume, save, start
from openmm_bg import BoltzmannGenerator, BoltzmannGeneratorMove, Independence, SystemPotential, train
from openmm_bg.analysis import backbone_pairs, ramachandran_angles
from openmm_bg.analysis.basins import in_rare_basin
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.cli.seeded_dynamics import SeededLangevinDynamicsMove
from openmm_bg.files import write_bytes
from openmm_bg.moves import observe_scans
from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.training.simulate import simulate
from openmm_bg.training.stages import default_stages

FloatArray = NDArray[np.float64]
Arrays = dict[str, FloatArray]

FORCEFIELD = ("amber99sb.xml",)
TEMPERATURE = 300.0
HOT = 700.0  # K, of the training data
LADDER = np.geomspace(300.0, 800.0, 6)
TIMESTEP, FRICTION = 0.002, 1.0  # ps, 1/ps
N_PROPOSALS, KEPT_OF_SCAN, STEPS_PER_SCAN = 256, 16, 100
FRAME_STEPS = 100  # metadynamics; replica exchange records every 500 steps
BIAS_FACTOR, HILL, HILL_WIDTH, HILL_STEPS = 10.0, 1.2, 0.35, 250  # -, kJ/mol, rad, steps
OMEGA = ((0, 4, 6, 8), (8, 14, 16, 18))  # CH3-C-N-CA and CA-C-N-CH3


@dataclass(frozen=True)
class Sizes:
    """How much each method samples.

    Attributes
    ----------
    data_steps : int
        Steps of dynamics at 700 K to train on.
    training : float
        Scales the steps of the default recipe.
    draws, scans : int
        Samples of the generator; scans of 256 proposals of the chain.
    walkers, building, biased : int
        Metadynamics runs; steps of each while the bias grows, and with the bias held.
    exchanges : int
        Attempted exchanges of temperatures, every 100 steps of six replicas.
    """

    data_steps: int
    training: float
    draws: int
    scans: int
    walkers: int
    building: int
    biased: int
    exchanges: int


FULL = Sizes(500_000, 0.4, 200_000, 1_000, 12, 250_000, 1_000_000, 60_000)
QUICK = Sizes(20_000, 0.005, 500, 5, 2, 2_000, 4_000, 100)


class Ledger:
    """Wall seconds and energy (or force) evaluations of every stage, in the folder, interrupted parts included."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "costs.json"
        self.costs: dict[str, dict[str, float]] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def charge(self, stage: str, *, seconds: float = 0.0, evaluations: float = 0.0) -> None:
        """Add to what a stage has cost."""
        entry = self.costs.setdefault(stage, {"seconds": 0.0, "evaluations": 0.0})
        entry["seconds"] += seconds
        entry["evaluations"] += evaluations
        write_bytes(self._path, json.dumps(self.costs, indent=1).encode())

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Charge the wall time of a block, however it ends."""
        begin = time.perf_counter()
        print(f"{stage} ...", flush=True)
        try:
            yield
        finally:
            self.charge(stage, seconds=time.perf_counter() - begin)

    def total(self, prefix: str) -> tuple[float, int]:
        """Seconds and evaluations of all stages whose name begins so."""
        found = [cost for stage, cost in self.costs.items() if stage.startswith(prefix)]
        return sum(cost["seconds"] for cost in found), int(sum(cost["evaluations"] for cost in found))


def prepare(folder: Path, sizes: Sizes, seed: int) -> tuple[MolecularSystem, Ledger]:
    """Make or reopen the folder of a run, and the molecule.

    Raises
    ------
    ValueError
        If the folder holds a run of other sizes or another seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "settings.json"
    wanted = {**asdict(sizes), "seed": seed}
    found = json.loads(settings.read_text()) if settings.exists() else wanted
    if found != wanted:
        raise ValueError(f"{folder} holds a run with {found}, not {wanted}; give another folder or remove it.")
    write_bytes(settings, json.dumps(wanted, indent=1).encode())
    return peptide("ACE-ALA-NME", forcefield=FORCEFIELD, constraints=app.HBonds), Ledger(folder)


def train_generator(molecule: MolecularSystem, folder: Path, sizes: Sizes, seed: int, ledger: Ledger) -> Path:
    """Dynamics at 700 K, then the default recipe; returns the model file."""
    path = folder / "generator.bg"
    if path.exists():
        return path
    with ledger.timed("generator: data"):
        data = simulate(
            molecule,
            HOT,
            n_steps=sizes.data_steps,
            stride=50,
            n_chains=1,
            platform="Reference",
            seed=seed,
            folder=folder / "dynamics",
        )
    with ledger.timed("generator: training"):
        generator = BoltzmannGenerator.from_system(
            molecule.system, molecule.topology, TEMPERATURE, positions=molecule.positions, seed=seed
        )
        with SystemPotential(molecule.system, molecule.topology, backend="openmm", platform="Reference") as potential:
            stages = default_stages(sizes.training)
            history = train(
                generator,
                potential,
                data=data,
                stages=stages,
                folder=folder / "training",
                seed=seed,
                progress=lambda logged: print(logged, flush=True) if logged["step"] % 100 == 0 else None,
            )
    ledger.charge("generator: data", evaluations=data.cost.n_steps)
    ledger.charge("generator: training", evaluations=history.n_energy_evaluations)
    generator.save(path)
    return path


def sample_generator(molecule: MolecularSystem, folder: Path, sizes: Sizes, seed: int, ledger: Ledger) -> Arrays:
    """Fresh draws with their log densities and energies: positions, log_prob, energy."""
    path = folder / "draws.npz"
    if not path.exists():
        generator = BoltzmannGenerator.load(folder / "generator.bg", system=molecule.system)
        with (
            ledger.timed("generator: draws"),
            SystemPotential(molecule.system, molecule.topology, backend="openmm", platform="Reference") as potential,
        ):
            samples = generator.sample(sizes.draws, rng=seed + 1)
            energy = potential.energy(samples.positions)
        ledger.charge("generator: draws", evaluations=sizes.draws)
        write_npz(path, {"positions": samples.positions, "log_prob": samples.log_prob, "energy": energy})
    return read_npz(path)


def run_chain(molecule: MolecularSystem, folder: Path, sizes: Sizes, seed: int, ledger: Ledger) -> Arrays:
    """A chain of generator moves and Langevin dynamics: every 16th state of the scans, its energy and log density."""
    path = folder / "chain.npz"
    if path.exists():
        return read_npz(path)
    generator = BoltzmannGenerator.load(folder / "generator.bg", system=molecule.system)
    contexts = ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))
    jump = BoltzmannGeneratorMove(generator, kernel=Independence(N_PROPOSALS), seed=seed)
    dynamics = SeededLangevinDynamicsMove(seed + 1, timestep=TIMESTEP * unit.picosecond, n_steps=STEPS_PER_SCAN)
    move = SequenceMove([jump, dynamics])
    state = ThermodynamicState(molecule.system, TEMPERATURE * unit.kelvin)
    walker = SamplerState(molecule.positions * unit.nanometer)
    kept: dict[str, list[FloatArray]] = {"positions": [], "log_prob": [], "reduced_potential": []}

    def keep(scan, _) -> None:
        rows = scan.chain[N_PROPOSALS // KEPT_OF_SCAN - 1 :: N_PROPOSALS // KEPT_OF_SCAN]
        for name, values in kept.items():
            values.append(getattr(scan, name)[rows])

    with ledger.timed("generator: chain"), observe_scans(keep):
        for _ in range(sizes.scans):
            move.apply(state, walker, contexts)
    ledger.charge("generator: chain", evaluations=sizes.scans * (N_PROPOSALS + 1 + STEPS_PER_SCAN))
    arrays = {name: np.concatenate(values) for name, values in kept.items()}
    write_npz(path, {**arrays, "accepted": np.array(jump.fraction_accepted)})
    return read_npz(path)


def run_metadynamics(molecule: MolecularSystem, folder: Path, sizes: Sizes, seed: int, ledger: Ledger) -> list[Arrays]:
    """Independent runs of `openmm.app.Metadynamics` on phi and psi; frames under the bias as it was built, held fixed.

    With the bias V held, frames follow exp(-(U + V)/kT) and their weights are exp(V/kT): phi, psi, cis, bias; and the
    population of the basin by the integral of `getFreeEnergy()` when building ended, raw_population.
    """
    runs = []
    for walker in range(sizes.walkers):
        path = folder / f"metadynamics_{walker}.npz"
        if not path.exists():
            with ledger.timed("metadynamics"):
                write_npz(path, _metadynamics(molecule, sizes, seed + 100 * (walker + 1)))
            steps = sizes.building + sizes.biased
            ledger.charge("metadynamics", evaluations=steps + sizes.biased // FRAME_STEPS)
        runs.append(read_npz(path))
    return runs


def _metadynamics(molecule: MolecularSystem, sizes: Sizes, seed: int) -> Arrays:
    pair = backbone_pairs(molecule.topology)[0]
    variables = []
    for atoms in (pair.phi, pair.psi):
        torsion = openmm.CustomTorsionForce("theta")
        torsion.addTorsion(*atoms, [])
        variables.append(app.BiasVariable(torsion, -np.pi, np.pi, HILL_WIDTH, periodic=True, gridWidth=72))
    system = copy.deepcopy(molecule.system)
    metadynamics = app.Metadynamics(system, variables, TEMPERATURE * unit.kelvin, BIAS_FACTOR, HILL, HILL_STEPS)
    bias = next(force for force in system.getForces() if isinstance(force, openmm.CustomCVForce))
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, TIMESTEP)
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, seed)
    metadynamics.step(simulation, sizes.building)
    surface = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)[:-1, :-1]  # psi, phi; ends coincide
    density = np.exp(-(surface - surface.min()) / thermal_energy(TEMPERATURE)).sum(axis=0)
    rare = in_rare_basin(np.linspace(-np.pi, np.pi, len(density), endpoint=False))
    frames = []
    for _ in range(sizes.biased // FRAME_STEPS):
        simulation.step(FRAME_STEPS)
        state = simulation.context.getState(getPositions=True, getEnergy=True, groups={bias.getForceGroup()})
        frames.append((state.getPositions(asNumpy=True)._value, state.getPotentialEnergy()._value))
    positions = np.array([position for position, _ in frames])
    return {
        **torsions(molecule, positions),
        "bias": np.array([energy for _, energy in frames]),
        "raw_population": np.array(density[rare].sum() / density.sum()),
    }


def run_replica_exchange(molecule: MolecularSystem, folder: Path, sizes: Sizes, seed: int, ledger: Ledger) -> Arrays:
    """Temperature replica exchange; frames of every replica in time: phi, psi, cis, energy, index."""
    checkpoint = folder / "replica_exchange.npz"
    ladder = start(molecule, seed, LADDER)
    if checkpoint.exists():
        resume(ladder, checkpoint)
    topology = mdtraj.Topology.from_openmm(molecule.topology)
    with ledger.timed("replica exchange"):
        while ladder.n_exchanges < sizes.exchanges:
            before = ladder.n_exchanges
            try:
                saved = time.perf_counter()
                while ladder.n_exchanges < sizes.exchanges and time.perf_counter() - saved < 30.0:
                    for _ in range(5):
                        for context in ladder.contexts:
                            context.getIntegrator().step(STEPS_PER_EXCHANGE)
                        exchange(ladder)
                    record(ladder, topology)
            finally:
                save(ladder, checkpoint)
                steps = (ladder.n_exchanges - before) * STEPS_PER_EXCHANGE * len(LADDER)
                ledger.charge("replica exchange", evaluations=steps + (ladder.n_exchanges - before) * len(LADDER))
    return {name: np.array(rows) for name, rows in ladder.frames.items()}


def torsions(molecule: MolecularSystem, positions: FloatArray) -> Arrays:
    """Backbone torsions of frames in radians, and whether a peptide bond is cis (1) or not (0)."""
    phi, psi = (angles[:, 0] for angles in ramachandran_angles(positions, backbone_pairs(molecule.topology)))
    omega = mdtraj.compute_dihedrals(
        mdtraj.Trajectory(positions, mdtraj.Topology.from_openmm(molecule.topology)), OMEGA, periodic=False
    )
    return {"phi": phi, "psi": psi, "cis": (np.abs(omega) < np.pi / 2).any(axis=1).astype(np.float64)}


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write arrays to one file, as a whole or not at all."""
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def read_npz(path: Path) -> Arrays:
    """Read what `write_npz` wrote."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}

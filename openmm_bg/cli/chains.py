"""The two chains that the report compares: generator moves with Langevin dynamics, and Langevin dynamics alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from openmm import unit

from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles
from openmm_bg.cli.frames import FrameKeeper
from openmm_bg.cli.terminal import Report, say
from openmm_bg.density import FloatArray, ProposalDensity
from openmm_bg.potentials import BackendMismatch, PlatformChoice, TorchBackend, UnsupportedForce
from openmm_bg.report.records import Chain
from openmm_bg.report.side_chains import chi1_angles, chi1_torsions
from openmm_bg.systems import MolecularSystem

if TYPE_CHECKING:
    from openmmtools.cache import ContextCache

    from openmm_bg.cli.seeded_dynamics import SeededLangevinDynamicsMove
    from openmm_bg.moves import AcceptanceByKind
    from openmm_bg.moves.kernel import Kernel
    from openmm_bg.moves.scans import EnergySource

_SAVE_EVERY = 5.0  # s
_FRAME_STEPS = 50  # Langevin steps between two frames of the chain without a generator
RELAXATION_STEPS = 2000
_COMPILED_FROM = 100  # atoms; energies of smaller molecules take less time than compiling them


@dataclass(frozen=True)
class Dynamics:
    """Langevin dynamics as both chains use it.

    Attributes
    ----------
    temperature : float
        K.
    timestep : float
        ps.
    friction : float
        1/ps.
    """

    temperature: float
    timestep: float = 0.002
    friction: float = 1.0

    def integrator(self, seed: int) -> openmm.LangevinMiddleIntegrator:
        """Return an integrator whose random numbers depend on the seed alone."""
        integrator = openmm.LangevinMiddleIntegrator(self.temperature, self.friction, self.timestep)
        integrator.setRandomNumberSeed(openmm_seed(seed))
        integrator.setConstraintTolerance(1e-7)
        return integrator

    def move(self, n_steps: int, seed: int) -> SeededLangevinDynamicsMove:
        """Return a move of openmmtools that does as much."""
        from openmm_bg.cli.seeded_dynamics import SeededLangevinDynamicsMove

        return SeededLangevinDynamicsMove(
            openmm_seed(seed),
            timestep=self.timestep * unit.picosecond,
            collision_rate=self.friction / unit.picosecond,
            n_steps=n_steps,
        )


def langevin_chain(
    molecule: MolecularSystem,
    dynamics: Dynamics,
    path: Path,
    *,
    seconds: float,
    platform: PlatformChoice,
    seed: int,
    report: Report,
    start: FloatArray | None = None,
) -> dict[str, Any]:
    """Run Langevin dynamics alone for a wall time, or continue it, writing `path` as it goes.

    Without an equilibrated `start` (nm) it begins with the molecule's structure and relaxes that first.

    Returns
    -------
    dict
        Entries for the record of the phase.
    """
    recorder = _Recorder(path, molecule, start)
    integrator = dynamics.integrator(seed + recorder.n_states)
    context = platform.create_context(molecule.system, integrator)
    _start(context, dynamics, recorder, seed)

    def frame() -> None:
        integrator.step(_FRAME_STEPS)
        state = context.getState(getPositions=True, getEnergy=True)
        recorder.add(_positions(state)[None], np.array([_energy(state)]), proposed=False)

    _run(recorder, frame, seconds, lambda: report(recorder.elapsed() / seconds, f"{recorder.n_states:,} frames"))
    steps = recorder.n_states * _FRAME_STEPS
    nanoseconds = steps * dynamics.timestep / 1000.0
    return {"n_evaluations": steps, "remark": f"{nanoseconds:.2f} ns at {1000 * dynamics.timestep:g} fs"}


def generator_chain(
    molecule: MolecularSystem,
    generator: ProposalDensity,
    dynamics: Dynamics,
    path: Path,
    *,
    kernel: Kernel,
    seconds: float,
    platform: PlatformChoice,
    n_steps: int,
    seed: int,
    report: Report,
    start: FloatArray | None = None,
) -> dict[str, Any]:
    """Alternate scans of generator proposals with Langevin dynamics in an MCMCSampler, or continue a chain.

    All states of a scan are samples and are recorded, each with its torsions and energy. Without an equilibrated
    `start` (nm) the chain begins with the molecule's structure and relaxes that first.

    Returns
    -------
    dict
        Entries for the record of the phase.
    """
    from openmmtools.mcmc import MCMCSampler, SequenceMove
    from openmmtools.states import SamplerState, ThermodynamicState

    from openmm_bg.moves import AcceptanceByKind, BoltzmannGeneratorMove, LatentWalk, Scan, observe_scans

    recorder = _Recorder(path, molecule, start, frames=True)
    energies = energy_source(molecule.system, kernel, platform)
    resumed_at = recorder.n_states
    context = platform.create_context(molecule.system, dynamics.integrator(seed + resumed_at))
    _start(context, dynamics, recorder, seed)
    state = context.getState(getPositions=True, getVelocities=True)
    sampler = MCMCSampler(
        ThermodynamicState(molecule.system, dynamics.temperature * unit.kelvin),
        SamplerState(state.getPositions(asNumpy=True), velocities=state.getVelocities(asNumpy=True)),
        SequenceMove(
            [
                BoltzmannGeneratorMove(
                    generator, kernel=kernel, energies=energies, seed=openmm_seed(seed + resumed_at)
                ),
                dynamics.move(n_steps, seed + resumed_at),
            ]
        ),
    )
    cache = context_cache(platform)
    kt = sampler.thermodynamic_state.kT.value_in_unit(unit.kilojoule_per_mole)

    def record_scan(scan: Scan, _: ThermodynamicState) -> None:
        recorder.add(
            scan.positions, scan.reduced_potential * kt, rows=scan.chain, proposed=True, accepted=scan.accepted,
            off_support=scan.start_off_support,
        )  # fmt: skip

    def cycle() -> None:
        sampler.run(1, context_cache=cache)
        positions = sampler.sampler_state.positions.value_in_unit(unit.nanometer)
        energy = sampler.sampler_state.potential_energy.value_in_unit(unit.kilojoule_per_mole)
        recorder.add(np.asarray(positions)[None], np.array([energy]), proposed=False)

    def show() -> None:
        move = sampler.move.move_list[0]
        report(recorder.elapsed() / seconds, f"{recorder.n_states:,} states, {move.fraction_accepted:.0%} accepted")

    by_kind = AcceptanceByKind()
    with observe_scans(record_scan), observe_scans(by_kind):
        _run(recorder, cycle, seconds, show)
    chain = Chain.load(path)
    n_cycles = int(np.count_nonzero(~chain.proposed)) - 1
    n_proposals = kernel.n_proposals
    walk = {"by_kind": _counts(by_kind)} if isinstance(kernel, LatentWalk) else {}
    return {
        "n_evaluations": int(chain.proposed.sum()) + n_cycles * (n_steps + 1),
        "n_proposed": int(chain.proposed.sum()),
        "n_accepted": int(chain.accepted.sum()),
        "n_current_off_support": int(chain.off_support.sum()),
        "energies": energies,
        "remark": (
            f"{n_cycles:,} cycles of {n_proposals} proposals and {n_steps} steps of {1000 * dynamics.timestep:g} fs"
        ),
        **walk,
    }


def energy_source(system: openmm.System, kernel: Kernel, platform: PlatformChoice) -> EnergySource:
    """Where energies of proposals come from: those of a walk in a protein are compiled, if torch knows its forces."""
    from openmm_bg.moves import LatentWalk

    if platform.is_gpu or not isinstance(kernel, LatentWalk) or system.getNumParticles() < _COMPILED_FROM:
        return "openmm"
    try:
        TorchBackend(system).close()
    except (UnsupportedForce, BackendMismatch) as error:
        say(f"[yellow]Energies of the walk's proposals by OpenMM, one by one, because torch cannot: {error}[/]")
        return "openmm"
    return "compiled"


def _counts(acceptance: AcceptanceByKind) -> dict[str, list[int]]:
    """Accepted and proposed of each kind of proposal."""
    return {kind: [acceptance.n_accepted[kind], n] for kind, n in sorted(acceptance.n_proposed.items())}


class _Recorder:
    """Keeps the states of a chain in memory and on disk; continues what it finds there."""

    def __init__(
        self, path: Path, molecule: MolecularSystem, start: FloatArray | None = None, *, frames: bool = False
    ) -> None:
        self.path = path
        self.pairs = backbone_pairs(molecule.topology)
        self.chi1 = chi1_torsions(molecule.topology)
        self.parts: list[Chain] = [Chain.load(path)] if path.exists() else []
        if self.parts and self.parts[0].chi.shape[1] != len(self.chi1):
            self.chi1 = []  # a chain that was begun without them
        self.relaxed = bool(self.parts) or start is not None
        begin = molecule.positions if start is None else start
        self.positions: FloatArray = self.parts[-1].last_positions if self.parts else begin
        self.n_states = sum(len(part) for part in self.parts)
        self._before = float(self.parts[-1].seconds[-1]) if self.parts else 0.0
        self._started = time.perf_counter()
        frames_path = path.with_name(f"{path.stem}_frames.npz")
        self._frames = FrameKeeper(frames_path, molecule.n_atoms, self.n_states) if frames else None

    def begin(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        """Wall time of the chain in all, earlier runs included."""
        return self._before + time.perf_counter() - self._started

    def add(
        self,
        positions: FloatArray,
        energy: FloatArray,
        *,
        proposed: bool,
        rows: Any = None,
        accepted: Any = None,
        off_support: bool = False,
    ) -> None:
        """Add states, given as rows of arrays of positions and energies in which they may repeat."""
        rows = np.arange(len(positions)) if rows is None else rows
        phi, psi = ramachandran_angles(positions, self.pairs)
        n = len(rows)
        self.parts.append(
            Chain(
                phi[rows],
                psi[rows],
                energy[rows],
                np.full(n, proposed),
                np.zeros(n, dtype=bool) if accepted is None else accepted,
                np.full(n, off_support),
                np.full(n, self.elapsed()),
                positions[rows[-1]],
                chi1_angles(positions, self.chi1)[rows],
            )
        )
        if self._frames is not None:
            self._frames.add(self.n_states, positions, np.asarray(rows))
        self.n_states += n

    def save(self) -> None:
        """Write everything so far."""
        if self.parts:
            self.parts = [Chain.concatenate(self.parts)]
            self.parts[0].save(self.path)
            if self._frames is not None:
                self._frames.save()


def _run(recorder: _Recorder, cycle: Callable[[], None], seconds: float, show: Callable[[], None]) -> None:
    """Repeat a cycle until the chain's wall time is used up; save now and then, and when interrupted."""
    recorder.begin()
    saved = shown = time.perf_counter()
    try:
        while recorder.elapsed() < seconds:
            cycle()
            now = time.perf_counter()
            if now - shown > 0.2:
                show()
                shown = now
            if now - saved > _SAVE_EVERY:
                recorder.save()
                saved = now
    finally:
        recorder.save()


def _start(context: openmm.Context, dynamics: Dynamics, recorder: _Recorder, seed: int) -> None:
    """Bring a Context to the last state of the chain; to the first one, relaxed if it was not, and record it."""
    context.setPositions(recorder.positions)
    context.setVelocitiesToTemperature(dynamics.temperature, openmm_seed(seed + recorder.n_states))
    if recorder.n_states == 0:
        if not recorder.relaxed:
            context.getIntegrator().step(RELAXATION_STEPS)
        state = context.getState(getPositions=True, getEnergy=True)
        recorder.begin()
        recorder.add(_positions(state)[None], np.array([_energy(state)]), proposed=False)


def context_cache(platform: PlatformChoice) -> ContextCache:
    """Return a cache of Contexts on a platform."""
    from openmmtools.cache import ContextCache

    return ContextCache(
        platform=openmm.Platform.getPlatformByName(platform.name), platform_properties=platform.properties or None
    )


def _positions(state: openmm.State) -> FloatArray:
    return np.asarray(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=np.float64)


def _energy(state: openmm.State) -> float:
    return float(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))


def openmm_seed(seed: int) -> int:
    """Return a seed that OpenMM takes, which never is zero: that means a different seed each time."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0] % (2**31 - 2)) + 1

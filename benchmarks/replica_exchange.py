"""Replica exchange of alanine dipeptide: plain, with the generator's move, and with the generator as a state.

All methods get the same time, one after the other in turns, and count what they did in it: that is how an equal-cost
comparison is made. A second table says what the move and the storage cost in an iteration.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from openmmtools import cache
from openmmtools.mcmc import LangevinDynamicsMove, SequenceMove
from openmmtools.multistate import MultiStateReporter, MultiStateSampler, ReplicaExchangeSampler
from openmmtools.states import SamplerState, ThermodynamicState

from benchmarks.molecules import Options, trained
from benchmarks.table import Table
from openmm_bg.analysis import (
    backbone_pairs,
    exchange_statistics,
    rare_population,
    round_trips,
    torsion_angles,
)
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import (
    BoltzmannGeneratorMove,
    DurableReporter,
    Independence,
    LearnedReplicaExchangeSampler,
    Scan,
    observe_scans,
)
from openmm_bg.systems import MolecularSystem

LADDER = tuple(np.geomspace(300.0, 650.0, 5))  # K; that of the reference populations
N_STEPS = 500
N_PROPOSALS = 32
SECONDS = 100.0  # for each method
TURN = 5.0


class Method:
    """A sampler with its storage, run in turns; keeps phi at 300 K.

    Parameters
    ----------
    temperatures : sequence of float
    with_move, learned : bool
        Whether every state has the generator's move; whether the generator is a state.
    """

    def __init__(
        self,
        folder: Path,
        molecule: MolecularSystem,
        generator: BoltzmannGenerator,
        temperatures: tuple[float, ...],
        with_move: bool = False,
        learned: bool = False,
    ) -> None:
        move: Any = LangevinDynamicsMove(timestep=2.0 * unit.femtosecond, n_steps=N_STEPS)
        if with_move:
            move = SequenceMove([BoltzmannGeneratorMove(generator, kernel=Independence(N_PROPOSALS)), move])
        options: dict[str, Any] = {"mcmc_moves": move, "number_of_iterations": 1, "online_analysis_interval": None}
        self.sampler = (
            LearnedReplicaExchangeSampler(generator=generator, **options)
            if learned
            else ReplicaExchangeSampler(**options)
        )
        self.phi_atoms = backbone_pairs(molecule.topology)[0].phi
        # Positions of all atoms would be a storage of another size; phi and the basins need four.
        reporter = MultiStateReporter(
            str(folder / "exchange.nc"), checkpoint_interval=50, analysis_particle_indices=tuple(self.phi_atoms)
        )
        states = [ThermodynamicState(molecule.system, t * unit.kelvin) for t in temperatures]
        self.sampler.create(states, [SamplerState(molecule.positions * unit.nanometer)], storage=reporter)
        self.sampler.extend(2)  # compiles and warms up
        self.spent = 0.0
        self.phi: list[NDArray[np.float64]] = []
        self.indices: list[NDArray[np.int64]] = []

    def turn(self, seconds: float) -> None:
        """Iterate for some seconds."""

        def record(scan: Scan, state: ThermodynamicState) -> None:
            if np.isclose(state.temperature.value_in_unit(unit.kelvin), LADDER[0]):
                self.phi.append(torsion_angles(scan.positions[scan.chain], self.phi_atoms))

        begin = time.perf_counter()
        with observe_scans(record):
            while time.perf_counter() - begin < seconds:
                self.sampler.extend(1)
                indices = self.sampler._replica_thermodynamic_states
                cold = self.sampler._sampler_states[int(np.argmin(indices))]
                self.phi.append(torsion_angles(cold.positions._value[None], self.phi_atoms))
                self.indices.append(indices.copy())
        self.spent += time.perf_counter() - begin

    def row(self, name: str) -> dict[str, Any]:
        """What was done, per second, and what was found."""
        phi, indices = np.concatenate(self.phi), np.array(self.indices)
        population = rare_population(phi)
        acceptance = crossings = None
        if isinstance(self.sampler, LearnedReplicaExchangeSampler):
            counted = exchange_statistics(self.sampler._reporter, self._basin)
            acceptance, crossings = counted.fraction_accepted[0], counted.fraction_crossings_accepted[0]
        return {
            "method": name,
            "iterations / s": len(indices) / self.spent,
            "round trips of phi at 300 K / min": 60.0 * round_trips(phi).count / self.spent,
            "round trips of the replicas / min": 60.0 * ladder_round_trips(indices) / self.spent,
            "P(0 < phi < 2.3)": population.value,
            "its error": population.error,
            "swaps with the generator accepted at 300 K": acceptance,
            "of those between basins": crossings,
        }

    def _basin(self, positions: NDArray[np.float64]) -> NDArray[np.bool_]:
        phi = torsion_angles(positions, (0, 1, 2, 3))
        return (phi > 0.0) & (phi < 2.3)


def ladder_round_trips(indices: NDArray[np.int64]) -> int:
    """Journeys of replicas between the first state and the last and back, shape (n_iterations, n_replicas)."""
    last = indices.max()
    ends = [replica[(replica == 0) | (replica == last)] for replica in indices.T]
    return sum(int(np.count_nonzero(np.diff(visited)) // 2) for visited in ends)


def run(options: Options) -> Table:
    """All methods in turns."""
    molecule, generator, origin = trained(options)
    seconds, turn = (2.0, 1.0) if options.quick else (SECONDS, TURN)
    with tempfile.TemporaryDirectory() as folder, _reference_platform(), redirect_stdout(StringIO()):
        generator.save(Path(folder) / "generator.bg")

        def method(name: str, *arguments: Any, **choices: Any) -> Method:
            (Path(folder) / name).mkdir()
            return Method(Path(folder) / name, molecule, generator, *arguments, **choices)

        methods = {
            "ladder of 5": method("plain", LADDER),
            "ladder of 5 with the move": method("move", LADDER, with_move=True),
            "ladder of 5 and the generator": method("learned ladder", LADDER, learned=True),
            "300 K and the generator": method("two", LADDER[:1], learned=True),
            "300 K with the move": method("one", LADDER[:1], with_move=True),
        }
        while (least := min(methods.values(), key=lambda one: one.spent)).spent < seconds:
            least.turn(turn)
        rows = [one.row(name) for name, one in methods.items()]
    temperatures = ", ".join(f"{temperature:.0f}" for temperature in LADDER)
    notes = [
        f"Alanine dipeptide, temperatures {temperatures} K, {N_STEPS} Langevin steps of 2 fs an iteration, "
        f"{N_PROPOSALS} proposals in the move; {seconds:.0f} s for each method in turns of {turn:.0f} s on the "
        f"Reference platform; generator from {origin}.",
        "Round trips of phi: of the configuration at 300 K, scanned states included, between phi < 0 and "
        "0 < phi < 2.3. Round trips of the replicas: between the first state and the last one, which is the generator "
        "where it is a state.",
    ]
    return Table("Replica exchange, with and without a generator", rows, notes)


def run_overhead(options: Options) -> Table:
    """Time of an iteration and what of it goes to the move and to the storage."""
    molecule, generator, _ = trained(options)
    n = 3 if options.quick else 40
    rows = []
    with tempfile.TemporaryDirectory() as folder, _reference_platform(), redirect_stdout(StringIO()):
        generator.save(Path(folder) / "generator.bg")
        for reporter in (MultiStateReporter, DurableReporter):
            for with_move in (False, True):
                place = Path(folder) / f"{reporter.__name__} {with_move}"
                place.mkdir()
                with mock.patch(f"{__name__}.MultiStateReporter", reporter):
                    sampler = Method(place, molecule, generator, LADDER, with_move).sampler
                with (
                    _timed(BoltzmannGeneratorMove, "apply") as in_move,
                    _timed(MultiStateSampler, "_report_iteration") as in_storage,
                ):
                    begin = time.perf_counter()
                    sampler.extend(n)
                    total = time.perf_counter() - begin
                rows.append(
                    {
                        "storage": reporter.__name__,
                        "move": "yes" if with_move else "no",
                        "iteration / ms": 1e3 * total / n,
                        "in the move / ms": 1e3 * in_move[0] / n,
                        "in the storage / ms": 1e3 * in_storage[0] / n,
                    }
                )
    notes = [f"Five replicas, {N_STEPS} Langevin steps and {N_PROPOSALS} proposals each; energies at every iteration."]
    return Table("An iteration of replica exchange", rows, notes)


@contextmanager
def _reference_platform() -> Iterator[None]:
    """The fastest platform for 22 atoms on a CPU core; openmmtools would take another one."""
    platform = openmm.Platform.getPlatformByName("Reference")
    with mock.patch.object(cache, "global_context_cache", cache.ContextCache(platform=platform)):
        yield


@contextmanager
def _timed(owner: type, name: str) -> Iterator[list[float]]:
    """Add up the time spent in a method, in the list's only item."""
    spent, original = [0.0], getattr(owner, name)

    def timed(*arguments: Any, **choices: Any) -> Any:
        begin = time.perf_counter()
        result = original(*arguments, **choices)
        spent[0] += time.perf_counter() - begin
        return result

    with mock.patch.object(owner, name, timed):
        yield spent

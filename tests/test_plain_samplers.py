"""openmmtools' own samplers refuse what a generator can not serve before there is a file of a DurableReporter."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from openmm import unit
from openmmtools import cache, mcmc, testsystems
from openmmtools.multistate import MultiStateSampler, ReplicaExchangeSampler, SAMSSampler
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg.moves import Annealed, BoltzmannGeneratorMove, CoupledLangevin, DurableReporter, Independence
from openmm_bg.testing import GaussianDensity

MultiStateSampler._global_citation_silence = True
WATER = testsystems.WaterBox(box_edge=1.8 * unit.nanometer, constrained=False)
LANGEVIN = mcmc.LangevinDynamicsMove(n_steps=1)


@pytest.fixture(autouse=True)
def reference_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=platform))


def particles(masses: tuple[float, ...], constrained: bool = False) -> openmm.System:
    """Particles in one harmonic well."""
    system = openmm.System()
    force = openmm.CustomExternalForce("100*(x^2+y^2+z^2)")
    for mass in masses:
        force.addParticle(system.addParticle(mass))
    system.addForce(force)
    if constrained:
        system.addConstraint(0, 1, 0.1)
    return system


def generator_move(n_atoms: int, **options: Any) -> BoltzmannGeneratorMove:
    return BoltzmannGeneratorMove(
        GaussianDensity(np.zeros((n_atoms, 3)), 0.1), **{"kernel": Independence(2), **options}
    )


def created(
    folder: Path, systems: list[openmm.System], moves: Any, kind: Any = ReplicaExchangeSampler, **options: Any
) -> Any:
    """A sampler with as many replicas as states, one at a time of a short ladder of temperatures."""
    pressure, n_starts = options.get("pressure"), options.get("n_starts", len(systems))
    states = [
        ThermodynamicState(system, (300.0 + 10.0 * i) * unit.kelvin, pressure) for i, system in enumerate(systems)
    ]
    starts = [
        SamplerState(
            0.01 * np.arange(3 * systems[0].getNumParticles()).reshape(-1, 3) * unit.nanometer,
            box_vectors=systems[0].getDefaultPeriodicBoxVectors(),
        )
    ] * n_starts
    sampler = kind(mcmc_moves=moves, number_of_iterations=2, online_analysis_interval=None)
    sampler.create(states, starts, storage=DurableReporter(folder / "run" / "exchange.nc", checkpoint_interval=1))
    return sampler


PAIR = particles((12.0, 16.0))
BAD = {
    "barostat": ([WATER.system] * 2, 1.0 * unit.bar, "State 0 is periodic or at constant pressure"),
    "masses": ([PAIR, particles((12.0, 4.0))], None, "State 1 differs from state 0 in its atoms or masses"),
    "constraints": ([PAIR, particles((12.0, 16.0), True)], None, "State 1 differs from state 0 in its constraints"),
    "another molecule": ([particles((12.0,))] * 2, None, "does not fit state 0: The density is one of 2 atoms"),
}
NESTED = {
    "alone": lambda move: move,
    "in a sequence": lambda move: mcmc.SequenceMove([LANGEVIN, move]),
    "deeper": lambda move: mcmc.SequenceMove([LANGEVIN, mcmc.WeightedMove([(LANGEVIN, 0.5), (move, 0.5)])]),
    "in the last state": lambda move: [LANGEVIN, move],
}


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("case", BAD)
def test_states_that_a_generator_can_not_serve_leave_no_file(case: str, nested: str, tmp_path: Path) -> None:
    systems, pressure, match = BAD[case]
    n_atoms = 2 if case != "barostat" else systems[0].getNumParticles()
    moves = NESTED[nested](generator_move(n_atoms))
    if nested == "in the last state":
        match = match.replace("tate 0 is", "tate 1 is").replace("fit state 0", "fit state 1")
    with pytest.raises(ValueError, match=match):
        created(tmp_path, systems, moves, pressure=pressure)
    assert [path.name for path in (tmp_path / "run").iterdir()] == []


@pytest.mark.parametrize("kind", [MultiStateSampler, SAMSSampler])
def test_other_samplers_refuse_too(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="State 1 differs from state 0 in its atoms or masses"):
        created(tmp_path, [PAIR, particles((12.0, 4.0))], generator_move(2), kind, n_starts=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == []


@pytest.mark.parametrize(
    ("systems", "n_starts", "match"),
    [
        ([PAIR, PAIR], 3, "Passed 3 SamplerStates but only 2 ThermodynamicStates"),
        ([PAIR, particles((12.0, 16.0, 1.0))], 2, "must have the same number of particles"),
    ],
    ids=["more replicas than states", "atoms"],
)
def test_openmmtools_refuses_other_numbers_itself(
    systems: list[openmm.System], n_starts: int, match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        created(tmp_path, systems, generator_move(2), n_starts=n_starts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("n_processes", "launched", "error", "match"),
    [
        (5, {}, ValueError, r"5 MPI processes for 2 replica\(s\): 3 would do nothing"),
        (
            None,
            {"PMI_SIZE": "2"},
            RuntimeError,
            "PMI_SIZE says that 2 processes were started, but",
        ),
    ],
    ids=["more processes than replicas", "processes that do not know of each other"],
)
def test_a_wrong_number_of_processes_leaves_no_file(
    n_processes: int | None,
    launched: dict[str, str],
    error: type[Exception],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Processes:
        rank, size = 0, n_processes

    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("openmm_bg.moves.state_checks.check_ranks", with_communicator(n_processes and Processes()))
    with pytest.raises(error, match=match):
        created(tmp_path, [PAIR, PAIR], generator_move(2))
    assert [path.name for path in (tmp_path / "run").iterdir()] == []


def with_communicator(communicator: Any) -> Any:
    """`check_ranks` as if openmmtools, which is not to know of it, had this communicator."""
    from openmm_bg.moves import ranks

    def check(n_replicas: int) -> int:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ranks.mpiplus, "get_mpicomm", lambda: communicator)
            return ranks.check_ranks(n_replicas)

    return check


def test_a_refusal_leaves_the_way_free_for_the_next_attempt_and_for_ctrl_c(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="differs from state 0"):
        created(tmp_path, [PAIR, particles((12.0, 4.0))], generator_move(2))
    assert signal.getsignal(signal.SIGINT) is handler
    sampler = created(tmp_path, [PAIR, PAIR], generator_move(2))
    assert signal.getsignal(signal.SIGINT) is handler
    sampler.run()
    assert [move.n_proposed for move in sampler.mcmc_moves] == [4, 4]
    del sampler
    resumed = ReplicaExchangeSampler.from_storage(DurableReporter(tmp_path / "run" / "exchange.nc"))
    assert (resumed.iteration, [move.n_proposed for move in resumed.mcmc_moves]) == (2, [4, 4])


def test_a_write_that_fails_leaves_ctrl_c_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    sampler = created(tmp_path, [PAIR, PAIR], generator_move(2))

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr("openmm_bg.moves.durable_reporter.MultiStateReporter.write_energies", full)
    with pytest.raises(OSError, match="NetCDF: HDF error"):
        sampler.run()
    assert signal.getsignal(signal.SIGINT) is handler


def test_simulations_without_a_generator_are_not_judged(tmp_path: Path) -> None:
    sampler = created(tmp_path, [PAIR, particles((12.0, 4.0))], LANGEVIN)
    sampler.run()
    assert sampler.iteration == 2


def test_a_solute_in_its_solvent_may_be_at_constant_pressure(tmp_path: Path) -> None:
    """The first water molecule stands for the solute."""
    kernel = Annealed(1, 1, CoupledLangevin())
    system = WATER.system
    masses = [system.getParticleMass(i) for i in range(3)]
    assert len({str(mass) for mass in masses}) == 2
    move = generator_move(3, kernel=kernel, atom_subset=[0, 1, 2])
    sampler = created(tmp_path, [system] * 2, move, pressure=1.0 * unit.bar)
    assert sampler.iteration == 0
    with pytest.raises(ValueError, match="does not fit state 0: The density is one of 4 atoms"):
        created(tmp_path / "other", [system] * 2, generator_move(4, kernel=kernel, atom_subset=[0, 1, 2]))
    assert [path.name for path in (tmp_path / "other" / "run").iterdir()] == []

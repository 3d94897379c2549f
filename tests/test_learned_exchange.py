"""Replica exchange with a generator as a state: exact ensembles, exact free energies, storage, and what it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from exactness_fixtures import BUTANE, scrambled, shifted
from openmm import unit
from openmmtools import cache, mcmc, testsystems
from openmmtools.multistate import (
    MultiStateReporter,
    MultiStateSampler,
    MultiStateSamplerAnalyzer,
    ReplicaExchangeSampler,
)
from openmmtools.states import SamplerState, ThermodynamicState
from pymbar import timeseries
from scipy.integrate import quad
from small_molecules import kB

from openmm_bg import registry
from openmm_bg.analysis import exchange_statistics
from openmm_bg.moves import LearnedReplicaExchangeSampler, check_states
from openmm_bg.testing import GaussianDensity

MultiStateSampler._global_citation_silence = True
BARRIER = 12.0  # kJ/mol; the density of states is that of one particle in a tilted double well along x
TEMPERATURES = (300.0, 400.0)


@pytest.fixture(autouse=True)
def quiet_and_seeded(monkeypatch: pytest.MonkeyPatch) -> Any:
    platform = openmm.Platform.getPlatformByName("Reference")
    monkeypatch.setattr(cache, "global_context_cache", cache.ContextCache(platform=platform))
    state = np.random.get_state()  # noqa: NPY002  openmmtools draws its exchanges from numpy's global numbers
    np.random.seed(30)  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


def double_well() -> openmm.System:
    system = openmm.System()
    system.addParticle(39.9)
    force = openmm.CustomExternalForce(f"{BARRIER}*((10*x)^2-1)^2 + 8*x + 1000*(y^2+z^2)")
    force.addParticle(0, [])
    system.addForce(force)
    return system


def along_x(x: float) -> float:
    return BARRIER * ((10.0 * x) ** 2 - 1.0) ** 2 + 8.0 * x


def integral(temperature: float, low: float = -0.3, high: float = 0.3) -> float:
    """Partition function over x, y and z in nm^3."""
    across = np.pi * kB * temperature / 1000.0
    return across * quad(lambda x: np.exp(-along_x(x) / (kB * temperature)), low, high, points=(-0.1, 0.1))[0]


def right_side(temperature: float) -> float:
    return integral(temperature, low=0.0) / integral(temperature)


def broad(centre: float = 0.1, width: float = 0.12) -> GaussianDensity:
    """A poor generator of the double well."""
    return GaussianDensity([[centre, 0.005, 0.0]], [[width, 0.04, 0.04]])


class MoveNothing(mcmc.MCMCMove):
    """All that happens is exchange."""

    def apply(self, *_: Any, **__: Any) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pass


class Step(mcmc.MetropolizedMove):
    """A displacement that stays in its well: 0.01 nm, barrier 0.2 nm wide."""

    def _propose_positions(self, positions: unit.Quantity) -> unit.Quantity:
        return positions + np.random.normal(0.0, 0.01, positions.shape) * unit.nanometer  # noqa: NPY002


def start(x: float = -0.1) -> SamplerState:
    return SamplerState([[x, 0.0, 0.0]] * unit.nanometer)


class Recorded(LearnedReplicaExchangeSampler):
    """Keeps the positions of every iteration by state; `equilibrate` then runs without the time that storage takes."""

    def _compute_energies(self) -> None:
        super()._compute_energies()
        order = np.argsort(self._replica_thermodynamic_states)
        if not hasattr(self, "trace"):
            self.trace, self.energies, self.swaps = [], [], []
        self.trace.append([self._sampler_states[replica].positions._value for replica in order])
        self.energies.append(self._energy_thermodynamic_states[order].copy())


def created(
    path: Path,
    temperatures: tuple[float, ...] = TEMPERATURES[:1],
    kind: type[LearnedReplicaExchangeSampler] = Recorded,
    generator: Any = None,
    scheme: str = "swap-neighbors",
    n_iterations: int = 1,
) -> Any:
    sampler = kind(
        generator=broad() if generator is None else generator,
        mcmc_moves=Step(),
        number_of_iterations=n_iterations,
        online_analysis_interval=None,
        replica_mixing_scheme=scheme,
        seed=5,
    )
    states = [ThermodynamicState(double_well(), t * unit.kelvin) for t in temperatures]
    reporter = MultiStateReporter(str(path / "exchange.nc"), checkpoint_interval=50, analysis_particle_indices=(0,))
    sampler.create(states, [start()], storage=reporter)
    return sampler


def traced(path: Path, n_iterations: int, **options: Any) -> np.ndarray:
    """x in nm, shape (n_iterations, n_states)."""
    sampler = created(path, **options)
    sampler.equilibrate(n_iterations)
    return np.array(sampler.trace)[:, :, 0, 0]


def score(values: np.ndarray, expected: float) -> float:
    """Deviation of a mean in standard errors that know of autocorrelation."""
    values = values[50:]
    error = values.std() * np.sqrt(timeseries.statistical_inefficiency(values) / len(values))
    return abs(values.mean() - expected) / error


class ForgetsTheGenerator(Recorded):
    """Mutant: the generator's column of energies left at zero."""

    def _compute_replica_energies(self, replica_id: int) -> Any:
        energies, unsampled = super()._compute_replica_energies(replica_id)
        energies[-1] = 0.0
        return energies, unsampled


def mean_square(temperature: float) -> float:
    kT = kB * temperature
    weight = np.pi * kT / 1000.0
    return quad(lambda x: x**2 * np.exp(-along_x(x) / kT), -0.3, 0.3)[0] * weight / integral(temperature)


# ----------------------------------------------------------------------------------------------------- exact ensembles


def test_two_states_sample_the_target_exactly_through_a_poor_generator(tmp_path: Path) -> None:
    x = traced(tmp_path, 1500)
    assert 0.1 < right_side(300.0) < 0.4
    assert score(x[:, 0] > 0.0, right_side(300.0)) < 3.5
    assert score(x[:, 0] ** 2, mean_square(300.0)) < 3.5


def test_the_generators_state_holds_independent_draws(tmp_path: Path) -> None:
    """What the target's state swaps into it is forgotten in the next iteration."""
    x = traced(tmp_path, 400)[:, 1]
    assert score(x, 0.1) < 3.5
    assert score((x - 0.1) ** 2, 0.12**2) < 3.5


def test_forgetting_the_generators_density_is_seen_at_eight_sigma(tmp_path: Path) -> None:
    x = traced(tmp_path, 1500, kind=ForgetsTheGenerator)
    assert score(x[:, 0] > 0.0, right_side(300.0)) > 8.0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["swap-all", "swap-neighbors"])
def test_every_state_of_a_ladder_is_sampled_exactly(scheme: str, tmp_path: Path) -> None:
    temperatures = (300.0, 380.0, 480.0)
    x = traced(tmp_path, 3000, temperatures=temperatures, scheme=scheme)
    for state, temperature in enumerate(temperatures):
        assert score(x[:, state] > 0.0, right_side(temperature)) < 3.5
        assert score(x[:, state] ** 2, mean_square(temperature)) < 3.5


@pytest.mark.slow
@pytest.mark.parametrize("flow", [shifted, scrambled])
def test_a_bad_flow_of_a_molecule_is_exchanged_exactly(flow: Any, tmp_path: Path) -> None:
    sampler = Recorded(
        generator=flow(BUTANE), mcmc_moves=MoveNothing(), online_analysis_interval=None, seed=6, number_of_iterations=1
    )
    sampler.create([BUTANE.state()], [BUTANE.start()], storage=MultiStateReporter(str(tmp_path / "exchange.nc")))
    sampler.equilibrate(1600)
    states = np.array(sampler.trace)[100:, 0].reshape(30, -1, 4, 3)
    accepted = np.mean(np.ptp(np.diff(np.array(sampler.trace)[:, 0], axis=0), axis=(1, 2)) > 0.0)
    assert 0.05 < accepted < 0.8
    assert BUTANE.deviation(states) < 3.5


# ---------------------------------------------------------------------------------------------- energies, statistics


def test_mbar_of_the_stored_energies_gives_the_free_energies_against_the_generator(tmp_path: Path) -> None:
    temperatures = (300.0, 400.0)
    sampler = created(tmp_path, temperatures=temperatures, n_iterations=250)
    sampler.run()
    analyzer = MultiStateSamplerAnalyzer(sampler._reporter)
    free_energies, errors = analyzer.get_free_energy()
    for state, temperature in enumerate(temperatures):
        expected = -np.log(integral(temperature))  # the generator integrates to one over nm^3
        assert errors[2, state] < 0.2
        assert abs(free_energies[2, state] - expected) < 3.5 * errors[2, state]
    stored, _, _ = sampler._reporter.read_energies()
    positions = sampler._reporter._storage_analysis.variables["positions"][:].data.astype(float)
    np.testing.assert_allclose(stored[1:, :, 2].ravel(), -broad().log_prob(positions[1:].reshape(-1, 1, 3)), rtol=1e-4)


def test_swaps_between_basins_are_counted_apart(tmp_path: Path) -> None:
    sampler = created(tmp_path, n_iterations=100)
    sampler.run()
    counted = exchange_statistics(sampler._reporter, lambda positions: positions[:, 0, 0] > 0.0)
    x = sampler._reporter._storage_analysis.variables["positions"][:].data[:, :, 0, 0]
    replicas = np.asarray(sampler._reporter.read_replica_thermodynamic_states())
    target, drawn = (x[np.arange(101), np.argmax(replicas == state, axis=1)] for state in (0, 1))
    swapped = (np.diff(replicas[:, 0]) != 0).astype(int)
    apart = ((target > 0) != (drawn > 0))[:-1]
    assert (counted.n_proposed, counted.n_accepted) == (100, swapped.sum())
    assert (counted.n_crossings_proposed, counted.n_crossings_accepted) == (apart.sum(), (swapped * apart).sum())
    assert 0 < counted.n_crossings_accepted[0] < counted.n_accepted[0]
    assert counted.fraction_accepted == swapped.mean()
    assert exchange_statistics(sampler._reporter, discard=40).n_proposed == 60


def test_in_a_ladder_the_draw_is_offered_to_each_state_in_turn(tmp_path: Path) -> None:
    sampler = created(tmp_path, temperatures=(300.0, 330.0, 360.0), n_iterations=60)
    sampler.run()
    counted = exchange_statistics(sampler._reporter, lambda positions: positions[:, 0, 0])  # every one a basin
    np.testing.assert_array_equal(counted.n_proposed, [60, 60, 60])
    np.testing.assert_array_equal(counted.n_crossings_accepted, counted.n_accepted)
    with pytest.raises(ValueError, match="basins"):
        exchange_statistics(sampler._reporter).fraction_crossings_accepted


def test_swaps_without_the_positions_or_of_another_sampler_are_refused(tmp_path: Path) -> None:
    sampler = created(tmp_path, n_iterations=3)
    sampler.run()
    sampler._reporter._analysis_particle_indices = ()
    with pytest.raises(ValueError, match=r"no positions of iteration 1.* checkpoint_interval=1"):
        exchange_statistics(sampler._reporter, lambda positions: positions[:, 0, 0] > 0.0)
    plain = ReplicaExchangeSampler(mcmc_moves=Step(), number_of_iterations=2, online_analysis_interval=None)
    states = [ThermodynamicState(double_well(), t * unit.kelvin) for t in TEMPERATURES]
    plain.create(states, [start()], storage=MultiStateReporter(str(tmp_path / "plain.nc"), checkpoint_interval=1))
    plain.run()
    with pytest.raises(ValueError, match="not that of a learned replica exchange"):
        exchange_statistics(plain._reporter)


# ----------------------------------------------------------------------------------------------- details of a draw


class Clashing(GaussianDensity):
    """Every other draw is where the energy is not a number."""

    def sample(self, n: int, *, rng: Any = None) -> Any:
        samples = super().sample(n, rng=rng)
        samples.positions[samples.positions[:, 0, 0] > 0.1] = 1e200
        return samples

    def log_prob(self, positions: np.ndarray) -> np.ndarray:
        return np.where(positions[:, 0, 0] > 1e100, -1.0, super().log_prob(np.clip(positions, -1.0, 1.0)))


def test_a_draw_without_a_finite_energy_is_rejected_and_the_run_goes_on(tmp_path: Path) -> None:
    generator = Clashing([[0.1, 0.01, 0.0]], [[0.12, 0.06, 0.05]])
    sampler = created(tmp_path, generator=generator, n_iterations=30)
    sampler.run()
    energies = np.array(sampler.energies)[:, 1, 0]
    assert np.isinf(energies).any()
    assert np.isfinite(energies).any()
    assert np.isfinite(np.array(sampler.energies)[:, 0, 0]).all()
    assert np.abs(np.array(sampler.trace)[:, 0]).max() < 1.0


class HalfOffSupport(GaussianDensity):
    """No density to the right of its centre."""

    def log_prob(self, positions: np.ndarray) -> np.ndarray:
        return np.where(positions[:, 0, 0] > self.mean[0, 0], -np.inf, super().log_prob(positions))


def test_draws_off_the_support_are_counted_and_never_shown(tmp_path: Path) -> None:
    sampler = created(tmp_path, generator=HalfOffSupport([[0.1, 0.0, 0.0]], [[0.12, 0.06, 0.05]]))
    sampler.equilibrate(100)
    statistics = sampler.mcmc_moves[-1].statistics
    assert (np.array(sampler.trace)[:, 1, 0, 0] <= 0.1).all()
    assert statistics["n_drawn"] - statistics["n_off_support"] == 1 + 100  # one to begin with
    assert 60 < statistics["n_off_support"] < 150


class RecordsSpeed(mcmc.BaseIntegratorMove):
    """Reports the velocities that it starts from."""

    seen: list[float] = []  # noqa: RUF012

    def _get_integrator(self, thermodynamic_state: Any) -> openmm.Integrator:
        return openmm.VerletIntegrator(1e-6)

    def _before_integration(self, context: openmm.Context, thermodynamic_state: Any) -> None:
        self.seen.append(float((context.getState(velocities=True).getVelocities(asNumpy=True)._value ** 2).mean()))


def test_a_configuration_from_the_generator_gets_velocities_of_its_new_temperature(tmp_path: Path) -> None:
    RecordsSpeed.seen.clear()
    sampler = LearnedReplicaExchangeSampler(
        generator=broad(), mcmc_moves=RecordsSpeed(n_steps=1), online_analysis_interval=None, seed=7
    )
    state = ThermodynamicState(double_well(), 300.0 * unit.kelvin)
    sampler.create([state], [start()], storage=MultiStateReporter(str(tmp_path / "exchange.nc")))
    sampler.equilibrate(2400)
    seen = np.array(RecordsSpeed.seen)
    squares = seen[np.append(True, np.abs(np.diff(seen)) > 1e-3 * seen[1:])]  # between two swaps a step changes little
    assert len(squares) > 100
    assert min(squares) > 0.0
    assert abs(squares.mean() / (kB * 300.0 / 39.9) - 1.0) < 4.0 * np.sqrt(2.0 / 3.0 / len(squares))


# -------------------------------------------------------------------------------------------------- storage, bad input


def test_a_stored_run_goes_on_with_its_generator_counts_and_energies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = broad()
    generator.save(tmp_path / "generator.bg")
    sampler = created(tmp_path, generator=generator, temperatures=TEMPERATURES, kind=LearnedReplicaExchangeSampler)
    sampler.extend(100)
    assert sampler.iteration == 100
    expected = [move.statistics for move in sampler.mcmc_moves]
    energies = sampler._energy_thermodynamic_states.copy()
    sampler._reporter.close()
    monkeypatch.setattr(registry, "_densities", {})
    resumed = LearnedReplicaExchangeSampler.from_storage(MultiStateReporter(str(tmp_path / "exchange.nc")))
    assert resumed.iteration == 100
    assert resumed.n_states == 3
    assert resumed.generator.content_hash == generator.content_hash
    assert [move.statistics for move in resumed.mcmc_moves] == expected
    np.testing.assert_array_equal(resumed._energy_thermodynamic_states, energies)
    assert resumed.replica_mixing_scheme == "swap-neighbors"
    resumed.extend(7)
    assert resumed.mcmc_moves[-1].n_drawn == 1 + 107
    counted = exchange_statistics(resumed._reporter)
    np.testing.assert_array_equal(counted.n_proposed, [107, 107])


def test_minimisation_and_equilibration_leave_the_generators_state_to_its_draws(tmp_path: Path) -> None:
    sampler = created(tmp_path, temperatures=TEMPERATURES)
    sampler.equilibrate(1)
    before = sampler._sampler_states[sampler._replica_in(2)].positions._value.copy()
    sampler.minimize()
    np.testing.assert_array_equal(sampler._sampler_states[sampler._replica_in(2)].positions._value, before)
    assert abs(abs(sampler._sampler_states[sampler._replica_in(0)].positions._value[0, 0]) - 0.1) < 0.01
    sampler.equilibrate(3, mcmc_moves=MoveNothing())
    assert len({x for (_, _, x) in np.array(sampler.trace)[:, :, 0, 0].tolist()}) == 4
    with pytest.raises(ValueError, match="3 moves for 2 states"):
        sampler.equilibrate(1, mcmc_moves=[MoveNothing()] * 3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"generator": None}, "needs a generator"),
        ({"locality": 1, "replica_mixing_scheme": "swap-neighbors"}, "locality is 1"),
        ({"mcmc_moves": [Step()] * 3}, "3 moves for 2 states"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    options: dict[str, Any], match: str, tmp_path: Path
) -> None:
    sampler = LearnedReplicaExchangeSampler(**{"generator": broad(), "mcmc_moves": Step(), **options})
    states = [ThermodynamicState(double_well(), t * unit.kelvin) for t in TEMPERATURES]
    with pytest.raises(ValueError, match=match):
        sampler.create(states, [start()], storage=MultiStateReporter(str(tmp_path / "exchange.nc")))
    assert list(tmp_path.iterdir()) == []


def two_particles(constrained: bool) -> openmm.System:
    system = double_well()
    system.addParticle(39.9)
    if constrained:
        system.addConstraint(0, 1, 0.1)
    return system


def heavy() -> openmm.System:
    system = double_well()
    system.setParticleMass(0, 20.0)
    return system


BAD_STATES = {
    "atoms": ([double_well(), two_particles(False)], 1, None, "State 1 differs from state 0 in its atoms"),
    "masses": ([double_well(), heavy()], 1, None, "State 1 differs from state 0 in its atoms or masses"),
    "constraints": ([two_particles(False), two_particles(True)], 2, None, "State 1 differs from state 0 in its constr"),
    "generator": ([two_particles(False)], 1, None, "does not fit state 0: The density is one of 1 atoms"),
    "barostat": ([testsystems.WaterBox(box_edge=1.8 * unit.nanometer).system], 1, 1.0 * unit.bar, "constant pressure"),
    "replicas": ([double_well()], 1, None, "2 replicas .* for 1 thermodynamic states"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_states_that_a_generator_cannot_serve_are_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    systems, n_atoms, pressure, match = BAD_STATES[case]
    generator = GaussianDensity(np.zeros((n_atoms, 3)), 0.1)
    states = [ThermodynamicState(system, 300.0 * unit.kelvin, pressure) for system in systems]
    starts = [SamplerState(np.zeros((system.getNumParticles(), 3)) * unit.nanometer) for system in systems]
    starts = starts * 2 if case == "replicas" else starts
    with pytest.raises(ValueError, match=match):
        check_states(generator, states, starts)
    sampler = LearnedReplicaExchangeSampler(generator=generator, mcmc_moves=Step())
    with pytest.raises(ValueError, match=match):
        sampler.create(states, starts, storage=MultiStateReporter(str(tmp_path / "exchange.nc")))
    assert list(tmp_path.iterdir()) == []


def test_a_ladder_of_one_molecule_is_accepted() -> None:
    states = [BUTANE.state(temperature) for temperature in (300.0, 400.0, 500.0)]
    check_states(shifted(BUTANE), states, BUTANE.start())

"""Reduced potentials from other programs' files, and the published free energies of public data."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pandas as pd
import pytest
from free_energy_fixtures import KT, Oscillator, line_oscillators
from openmm import app, unit
from openmmtools import testsystems
from openmmtools.mcmc import LangevinDynamicsMove
from openmmtools.multistate import MultiStateReporter, ReplicaExchangeSampler
from openmmtools.states import SamplerState, ThermodynamicState
from pymbar.testsystems import ExponentialTestCase, HarmonicOscillatorsTestCase
from small_molecules import TEMPERATURE, reference_contexts

from openmm_bg import EnergyState, ReducedEnergies, Samples, free_energy
from openmm_bg.analysis import (
    Weights,
    evaluate,
    from_weights,
    mbar,
    read_multistate,
    read_replica_exchange,
    read_u_nk,
    reweight,
)
from openmm_bg.testing import GaussianDensity

SPRINGS = (300.0, 600.0, 1200.0)
LADDER = 1.5 * np.log(np.array(SPRINGS) / SPRINGS[0])  # free energies in kT of three-dimensional wells


# ------------------------------------------------------------------------------------------------- pymbar's test cases


@pytest.mark.parametrize("case", [HarmonicOscillatorsTestCase, ExponentialTestCase])
def test_pymbars_own_test_cases(case: type) -> None:
    system = case()
    n_k = [3000] * (5 if case is HarmonicOscillatorsTestCase else len(system.rates))
    _, u_kn, n_k, _ = system.sample(n_k, mode="u_kn", seed=1)
    result = free_energy(ReducedEnergies([str(k) for k in range(len(n_k))], u_kn, n_k), n_bootstrap=0)
    truth = np.asarray(system.analytical_free_energies())
    scores = (result.f_k - (truth - truth[0]))[1:] / result.errors[0, 1:]
    assert np.all(np.abs(scores) < 3.0)


# --------------------------------------------------------------------------------------------- alchemlyb's data, u_nk


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leg", "published", "error"), [("Coulomb", 3.041, 0.02088), ("VDW", -3.007, 0.04519)]
)  # alchemlyb 2.5, tests of its MBAR
def test_benzene_in_water_has_the_published_free_energy(leg: str, published: float, error: float) -> None:
    gmx = pytest.importorskip("alchemtest.gmx")
    parsing = pytest.importorskip("alchemlyb.parsing.gmx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = [parsing.extract_u_nk(file, T=300) for file in gmx.load_benzene()["data"][leg]]
    energies = read_u_nk(frames)
    assert energies.temperatures[0] == 300.0
    solution = mbar.solve(energies)
    assert solution.f_k[-1] == pytest.approx(published, rel=1e-3)
    assert solution.errors[0, -1] == pytest.approx(error, rel=1e-3)
    decorrelated = free_energy(energies, n_bootstrap=0)
    difference = decorrelated.difference(0, len(energies.names) - 1).reduced
    assert difference.value == pytest.approx(published, abs=difference.error)
    assert not decorrelated.verdict.refused


def u_nk(energies: ReducedEnergies) -> pd.DataFrame:
    index = pd.MultiIndex.from_arrays(
        [np.concatenate([np.arange(n) for n in energies.n_k]), np.array([0.0, 0.5, 1.0])[energies.own]],
        names=["time", "fep-lambda"],
    )
    frame = pd.DataFrame(energies.u_kn.T, index=index, columns=[0.0, 0.5, 1.0])
    frame.attrs = {"temperature": 310.0, "energy_unit": "kT"}
    return frame


def test_a_u_nk_frame_gives_the_energies_that_it_was_made_of() -> None:
    energies, _, _ = line_oscillators([1, 2, 3], [0.0, 0.1, 0.2], [40, 50, 60], np.random.default_rng(0))
    found = read_u_nk(u_nk(energies).sample(frac=1.0, random_state=1))  # rows in any order
    np.testing.assert_array_equal(found.u_kn, energies.u_kn)
    np.testing.assert_array_equal(found.n_k, energies.n_k)
    assert found.names == ("0.0", "0.5", "1.0")
    assert np.all(found.temperatures == 310.0)


def test_u_nk_that_cannot_be_used_are_refused() -> None:
    energies, _, _ = line_oscillators([1, 2, 3], [0.0, 0.1, 0.2], [40, 50, 60], np.random.default_rng(0))
    frame = u_nk(energies)
    with pytest.raises(ValueError, match="hold no samples"):
        read_u_nk(frame.iloc[:0])
    neighbours = frame.copy()
    neighbours.iloc[0, 2] = math.nan
    with pytest.raises(ValueError, match="1 reduced energies are NaN"):
        read_u_nk(neighbours)
    with pytest.raises(ValueError, match=r"samples are from lambda 0.0, but the columns are \[0.5, 1.0\]"):
        read_u_nk(frame[[0.5, 1.0]])
    frame.attrs["energy_unit"] = "kJ/mol"
    with pytest.raises(ValueError, match="convert them"):
        read_u_nk(frame)


# ------------------------------------------------------------------------------------------------------- openmmtools


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replica exchange of three wells, with one more that is not sampled."""
    path = tmp_path_factory.mktemp("multistate") / "wells.nc"
    states = [
        ThermodynamicState(
            testsystems.HarmonicOscillator(K=k * unit.kilojoule_per_mole / unit.nanometer**2).system,
            TEMPERATURE * unit.kelvin,
        )
        for k in (*SPRINGS, 450.0)
    ]
    move = LangevinDynamicsMove(
        timestep=20.0 * unit.femtosecond, collision_rate=20.0 / unit.picosecond, n_steps=40, reassign_velocities=True
    )
    sampler = ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=300, online_analysis_interval=None)
    cache = reference_contexts()
    sampler.energy_context_cache = sampler.sampler_context_cache = cache
    sampler.create(
        states[:3],
        SamplerState(np.zeros((1, 3)) * unit.nanometer),
        MultiStateReporter(path, checkpoint_interval=100),
        unsampled_thermodynamic_states=states[3:],
    )
    sampler.run()
    return path


def test_openmmtools_storage_gives_the_free_energies_of_its_wells(storage: Path) -> None:
    energies = read_multistate(storage)
    assert energies.names == ("state 0", "state 1", "state 2", "unsampled state 0")
    np.testing.assert_allclose(energies.temperatures, TEMPERATURE)
    assert energies.n_k[3] == 0
    assert energies.n_k[:3].min() > 10
    assert energies.kept.min() >= 3  # the starting structures are left out
    reporter = MultiStateReporter(str(storage), open_mode="r")
    table, _, unsampled = reporter.read_energies()
    states = np.asarray(reporter.read_replica_thermodynamic_states())
    reporter.close()
    iteration, replica = np.divmod(energies.kept, 3)
    np.testing.assert_array_equal(states[iteration, replica], energies.own)
    np.testing.assert_array_equal(np.concatenate([table, unsampled], axis=2)[iteration, replica].T, energies.u_kn)
    result = free_energy(energies, n_bootstrap=0)
    truth = np.append(LADDER, 1.5 * math.log(1.5))
    # openmmtools takes no seed: the bound is one that chance does not reach.
    assert np.all(np.abs((result.f_k - truth)[1:]) < 5.0 * result.errors[0, 1:])
    assert result.errors[0, 1:].max() < 0.3  # the wells differ by 1 kT and more


def test_a_file_that_is_not_openmmtools_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_multistate(tmp_path / "absent.nc")
    other = tmp_path / "other.nc"
    other.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is it the analysis file"):
        read_multistate(other)


# -------------------------------------------------------------------------------------------------------- openmm.app


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """openmm.app's replica exchange between three springs of one well."""
    folder = tmp_path_factory.mktemp("exchange") / "output"
    system = openmm.System()
    system.addParticle(39.9)
    force = openmm.CustomExternalForce("0.5*k*(x^2+y^2+z^2)")
    force.addGlobalParameter("k", SPRINGS[0])
    force.addParticle(0)
    system.addForce(force)
    topology = app.Topology()
    topology.addAtom("AR", app.element.argon, topology.addResidue("AR", topology.addChain()))
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 20.0, 0.02)
    integrator.setRandomNumberSeed(3)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(np.zeros((1, 3)))
    sampler = app.ReplicaExchangeSampler([{"k": k} for k in SPRINGS], simulation, 40)
    sampler.reporters.append(app.ReplicaExchangeReporter(str(folder), 1, sampler, energy=True))
    sampler.simulate(400)
    return folder


def test_the_reporter_of_openmm_gives_the_free_energies_of_its_wells(exchange: Path) -> None:
    energies = read_replica_exchange(exchange, temperatures=TEMPERATURE * unit.kelvin, names=["soft", "firm", "hard"])
    assert energies.names == ("soft", "firm", "hard")
    result = free_energy(energies, n_bootstrap=0)
    assert np.all(np.abs((result.f_k - LADDER)[1:]) < 5.0 * result.errors[0, 1:])  # its exchanges take no seed
    assert result.difference("soft", "hard").value.value_in_unit(unit.kilojoule_per_mole) == pytest.approx(
        KT * result.f_k[2]
    )
    again = read_replica_exchange(exchange / "energy.csv", discard=1, decorrelate=False)
    assert again.n_k.sum() == 3 * 399
    assert np.isnan(again.temperatures).all()


def test_each_sample_of_replica_exchange_goes_to_the_state_that_its_replica_was_in(exchange: Path) -> None:
    energies = read_replica_exchange(exchange, discard=0, decorrelate=False)
    table = np.loadtxt(exchange / "energy.csv", delimiter=",").reshape(-1, 3, 3)
    log = np.loadtxt(exchange / "log.csv", delimiter=",", skiprows=1)[:, 2:].astype(int)
    iteration, replica = np.divmod(energies.kept, 3)
    np.testing.assert_array_equal(log[iteration, replica], energies.own)
    np.testing.assert_array_equal(table[iteration, replica].T, energies.u_kn)


def test_damaged_replica_exchange_files_are_refused(exchange: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="energy=True"):
        read_replica_exchange(tmp_path)
    lines = (exchange / "energy.csv").read_text().splitlines()
    (tmp_path / "log.csv").write_text((exchange / "log.csv").read_text())
    (tmp_path / "energy.csv").write_text("\n".join(lines[:-5]))
    with pytest.raises(ValueError, match=r"has 400 iterations of 3 replicas, .* a table of shape \(395, 9\)"):
        read_replica_exchange(tmp_path)
    (tmp_path / "energy.csv").write_text("\n".join([*lines[:-1], "1,2,spam"]))
    with pytest.raises(ValueError, match="is damaged"):
        read_replica_exchange(tmp_path)


# ------------------------------------------------------------------------------------------- trajectories and weights


def test_mdtraj_trajectories_and_quantities_are_samples() -> None:
    well = Oscillator(300.0)
    x = well.samples(300, np.random.default_rng(5)).astype(np.float32)
    topology = mdtraj.Topology()
    topology.add_atom("AR", mdtraj.element.argon, topology.add_residue("AR", topology.add_chain()))
    states = [EnergyState("a", well, TEMPERATURE), EnergyState("b", Oscillator(400.0), TEMPERATURE)]
    for samples in (mdtraj.Trajectory(x, topology), (10.0 * x) * unit.angstrom, [x[:100], x[100:]]):
        found = evaluate(states, {"a": samples}, decorrelate=False)
        np.testing.assert_allclose(found.u_kn[0], well.energy(x.astype(float)) / KT, rtol=1e-5)


def test_weights_give_what_the_draws_themselves_give() -> None:
    well = Oscillator(300.0)
    density = GaussianDensity(np.zeros((1, 3)), 1.2 * well.sigma)
    weights = reweight(density.sample(3000, rng=6), well, TEMPERATURE)
    result = free_energy(from_weights(weights), n_bootstrap=0)
    assert result.f_k[1] == pytest.approx(-weights.log_normalisation, abs=1e-9)
    assert result.f_k[1] == pytest.approx(well.free_energy, abs=3.0 * result.errors[0, 1])


def test_unnormalised_clipped_and_single_weights_are_refused() -> None:
    well = Oscillator(300.0)
    density = GaussianDensity(np.zeros((1, 3)), 1.2 * well.sigma)
    weights = reweight(density.sample(500, rng=7), well, TEMPERATURE)

    def changed(log_weights: np.ndarray, log_normalisation: float = weights.log_normalisation) -> Weights:
        return Weights(log_weights, TEMPERATURE, weights.energies, weights.positions, log_normalisation)

    with pytest.raises(ValueError, match="not normalised"):
        from_weights(changed(weights.log_weights + 0.1))
    clipped = np.minimum(weights.log_weights, np.quantile(weights.log_weights, 0.9))
    with pytest.raises(ValueError, match="the weights are clipped"):
        from_weights(changed(clipped - np.log(np.exp(clipped).sum())))
    with pytest.raises(ValueError, match="log_normalisation"):
        from_weights(changed(weights.log_weights, math.nan))
    with pytest.raises(ValueError, match="at least two are needed"):
        reweight(Samples(np.zeros((1, 1, 3)), np.zeros(1)), well, TEMPERATURE)

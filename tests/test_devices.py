"""Every public way to use a generator gives the same on each device; `make test-cuda` runs it on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from exactness_fixtures import BUTANE, RIGID_CHAIN, scrambled
from flow_force_fixtures import KT, alone, energy_and_forces, reduced_and_gradient
from openmm import app, unit
from openmmtools.cache import ContextCache
from small_molecules import TEMPERATURE, SmallMolecule

from openmm_bg import (
    Annealed,
    BoltzmannGenerator,
    BoltzmannGeneratorMove,
    BoltzmannGeneratorSampling,
    EnergyState,
    FlowMap,
    GeneratorState,
    SystemPotential,
    bridge,
    flow_force,
    free_energy,
)
from openmm_bg.flows import FlowConfig, SplitConfig
from openmm_bg.moves import Independence, LatentHMC
from openmm_bg.potentials import TorchBackend
from openmm_bg.systems import peptide

SMALL = FlowConfig(torsion_hidden=8, torsion_bins=8, linear_hidden=8, linear_bins=4, affine_hidden=8)
SMALL_SPLIT = SplitConfig(2, 8, 1, 4, 8, 4, affine_hidden=8)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def on(device: str, molecule: SmallMolecule, path: Path | None = None) -> BoltzmannGenerator:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this PyTorch build has no CUDA device")
    generator = scrambled(molecule)
    if path is not None:
        generator.save(path / "flow.bg")
    return generator.to(device)


def context_of(system: openmm.System, device: str) -> openmm.Context:
    platform = openmm.Platform.getPlatformByName("CUDA" if device == "cuda" else "Reference")
    properties = {"Precision": "double"} if device == "cuda" else {}
    return openmm.Context(system, openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.001), platform, properties)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [Independence(8), Annealed(8, 3, LatentHMC(0.2))], ids=["independence", "annealed"])
def test_a_scan_has_the_weights_of_its_proposals(kernel: Independence | Annealed, device: str) -> None:
    generator = on(device, RIGID_CHAIN)
    cache = ContextCache(platform=context_of(RIGID_CHAIN.system(), device).getPlatform())
    move = BoltzmannGeneratorMove(generator, kernel=kernel, energies="torch", seed=1)
    sampler_state = RIGID_CHAIN.start()
    move.apply(RIGID_CHAIN.state(), sampler_state, cache)
    scan = move.last_scan
    assert scan is not None
    known = np.isfinite(scan.log_prob)
    np.testing.assert_allclose(generator.log_prob(scan.positions[known]), scan.log_prob[known], atol=1e-2)
    assert np.isfinite(scan.work[known]).any()


@pytest.mark.parametrize("device", DEVICES)
def test_the_force_of_a_flow_is_its_gradient_and_a_bridge_ends_in_the_target(device: str, tmp_path: Path) -> None:
    generator = on(device, BUTANE, tmp_path)
    positions = generator.sample(1, rng=2).positions[0]
    context = context_of(alone(BUTANE.system(), flow_force(generator)), device)
    energy, forces = energy_and_forces(context, positions)
    expected, gradient = reduced_and_gradient(scrambled(BUTANE), positions[None])
    assert energy == pytest.approx(KT * expected[0], rel=1e-4, abs=1e-2)
    np.testing.assert_allclose(forces, -KT * gradient[0], rtol=1e-2, atol=1e-2 * np.abs(KT * gradient).max())
    bridged = bridge(BUTANE.system(), generator)
    joined = context_of(bridged.system, device)
    bridged.state(TEMPERATURE * unit.kelvin, 1.0).apply_to_context(joined)
    target = context_of(BUTANE.system(), device)
    assert energy_and_forces(joined, positions)[0] == pytest.approx(energy_and_forces(target, positions)[0], rel=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_map_comes_back_and_free_energies_have_their_verdict(device: str) -> None:
    generator = on(device, BUTANE)
    samples = generator.sample(400, rng=3)
    flow_map = FlowMap(generator, generator)
    mapped = flow_map.forward(samples.positions[:20])
    np.testing.assert_allclose(mapped.log_det[np.isfinite(mapped.log_det)], 0.0, atol=1e-3)
    potential = SystemPotential(BUTANE.system(), backend="torch", device=device)
    states = [GeneratorState("flow", generator), EnergyState("target", potential, TEMPERATURE)]
    result = free_energy(states, {"flow": samples}, n_bootstrap=5)
    expected = -np.log(np.mean(np.exp(-potential.energy(samples.positions) / KT - samples.log_prob)))
    assert result.f_k[1] - result.f_k[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flow", [SMALL, SMALL_SPLIT], ids=["spline", "split"])
def test_training_brings_the_likelihood_of_its_data_up(flow: FlowConfig | SplitConfig, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this PyTorch build has no CUDA device")
    molecule = peptide("ACE-ALA-NME")
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, TEMPERATURE, flow=flow, positions=molecule.positions, seed=1
    )
    latents = 0.3 * np.random.default_rng(4).normal(size=(400, generator.n_dof))
    frames = generator.from_latent(generator.to_latent(molecule.positions[None]) + latents)
    generator.to(device)
    before = generator.log_prob(frames).mean()
    generator.fit(frames, max_steps=20, progress=False)
    assert str(next(generator.flow.parameters()).device).startswith(device)
    assert generator.log_prob(frames).mean() > before + 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_a_simulation_takes_the_move(device: str) -> None:
    generator = on(device, BUTANE)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.0005)
    platform = context_of(BUTANE.system(), device).getPlatform()
    simulation = app.Simulation(BUTANE.topology(), BUTANE.system(), integrator, platform)
    simulation.context.setPositions(BUTANE.reference())
    sampling = BoltzmannGeneratorSampling(simulation, generator, 5, kernel=Independence(4), seed=1)
    sampling.step(20)
    assert (simulation.currentStep, sampling.n_proposed) == (20, 16)


@pytest.mark.cuda
def test_energies_compiled_for_a_gpu_are_those_of_openmm() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch build has no CUDA device")
    generator = scrambled(BUTANE)
    positions = generator.sample(100, rng=5).positions
    backend = TorchBackend(BUTANE.system(), "cuda", compile=True)
    assert backend.not_compiled is None
    energies, forces = backend.evaluate(positions, with_forces=True)
    with SystemPotential(BUTANE.system(), platform="Reference", n_workers=1) as potential:
        expected, expected_forces = potential.energy_and_forces(positions)
    np.testing.assert_allclose(energies, expected, rtol=1e-6, atol=1e-5)
    assert forces is not None
    np.testing.assert_allclose(forces, expected_forces, rtol=1e-4, atol=1e-4 * np.abs(expected_forces).max())

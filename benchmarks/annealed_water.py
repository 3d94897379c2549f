"""Alanine dipeptide proposed anew in a small box of water: work and acceptance against the length of the coupling."""

from __future__ import annotations

import time

import numpy as np
import openmm
from openmm import app, unit
from openmmtools.cache import ContextCache
from openmmtools.mcmc import LangevinDynamicsMove
from openmmtools.states import SamplerState, ThermodynamicState

from benchmarks.molecules import TEMPERATURE, Options, generator_for
from benchmarks.table import Table
from openmm_bg.moves import Annealed, BoltzmannGeneratorMove, CoupledLangevin
from openmm_bg.systems import peptide
from openmm_bg.training.simulate import simulate

FORCE_FIELD = ("amber99sbildn.xml", "tip3p.xml")
BOX = 1.9  # nm


def water_box() -> tuple[openmm.System, unit.Quantity]:
    """Alanine dipeptide in water, PME, HBonds and rigid water; the peptide's atoms come first."""
    alone = peptide("ACE-ALA-NME", forcefield=FORCE_FIELD[:1])
    field = app.ForceField(*FORCE_FIELD)
    modeller = app.Modeller(alone.topology, alone.positions * unit.nanometer)
    modeller.addSolvent(field, boxSize=openmm.Vec3(BOX, BOX, BOX) * unit.nanometer, neutralize=False)
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8 * unit.nanometer, constraints=app.HBonds
    )
    return system, modeller.positions


def run(options: Options) -> Table:
    """One proposal in each application, in turn with Langevin dynamics."""
    n_scans, lengths = (1, (10,)) if options.quick else (6, (0, 50, 250))
    alone = peptide("ACE-ALA-NME", forcefield=FORCE_FIELD[:1])
    generator = generator_for(alone)
    hot = simulate(alone, 400.0, n_steps=10_000 if options.quick else 50_000, stride=50, seed=1)
    generator.fit(hot, max_steps=50 if options.quick else 300, progress=False)
    system, positions = water_box()
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.002)
    simulation = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    simulation.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(simulation, maxIterations=200)
    integrator.step(10 if options.quick else 1000)
    found = simulation.getState(positions=True, velocities=True)
    state = ThermodynamicState(system, TEMPERATURE * unit.kelvin)
    contexts = ContextCache(platform=openmm.Platform.getPlatformByName("CPU"))
    dynamics = LangevinDynamicsMove(timestep=2.0 * unit.femtosecond, n_steps=10 if options.quick else 100)
    rows = []
    for n_steps in lengths:
        kernel = Annealed(1, n_steps, CoupledLangevin(0.002, 1.0), power=1.0)
        move = BoltzmannGeneratorMove(generator, kernel=kernel, atom_subset=range(alone.topology.getNumAtoms()), seed=1)
        sampler_state = SamplerState(found.getPositions(), box_vectors=found.getPeriodicBoxVectors())
        difference, seconds = [], 0.0
        for _ in range(n_scans):
            dynamics.apply(state, sampler_state, contexts)
            begin = time.perf_counter()
            move.apply(state, sampler_state, contexts)
            seconds += time.perf_counter() - begin
            assert move.last_scan is not None
            work = move.last_scan.work
            difference.append(work[1] - work[0])
        rows.append(
            {
                "steps": n_steps,
                "length / ps": 0.002 * n_steps,
                "dissipated work (up + down) / kT, median": float(np.median(difference)),
                "least": float(np.min(difference)),
                "proposals": move.n_proposed,
                "accepted": move.n_accepted,
                "mean acceptance": float(np.minimum(1.0, np.exp(-np.array(difference))).mean()),
                "s / proposal": seconds / n_scans,
            }
        )
    notes = [
        f"{alone.topology.getNumAtoms()} + {system.getNumParticles() - alone.topology.getNumAtoms()} atoms, PME, "
        f"{TEMPERATURE:g} K; generator fitted by likelihood to the peptide in vacuum at 400 K. Without steps the "
        "solute is put where the old one was, among the old one's water."
    ]
    return Table("A peptide proposed in water", rows, notes)

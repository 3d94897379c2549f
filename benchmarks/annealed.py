"""Acceptance of annealed proposals against the length of their paths, at equal numbers of energy evaluations."""

from __future__ import annotations

import numpy as np
import openmm
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.states import ThermodynamicState

from benchmarks.molecules import TEMPERATURE, Options, alanine, generator_for
from benchmarks.table import Table
from openmm_bg.density import FloatArray
from openmm_bg.moves import Annealed, LatentHMC, LatentLangevin
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.propagation import LatentTarget
from openmm_bg.training.simulate import simulate

DATA_TEMPERATURE = 700.0


def protocols(quick: bool) -> list[tuple[str, Annealed]]:
    """Name and kernel of each row."""
    hmc = {f"HMC {step:g}": LatentHMC(step) for step in (0.1, 0.2, 0.3)}
    found = [("independence", Annealed(1, 0))]
    for n in (4,) if quick else (4, 16, 64):
        found += [(f"{name}, power {power:g}", Annealed(1, n, p, power)) for name, p in hmc.items() for power in (1, 3)]
        found.append(("HMC 0.15 x 4, power 3", Annealed(1, n, LatentHMC(0.15, 4), 3.0)))
        found.append(("Langevin 0.1, power 3", Annealed(1, n, LatentLangevin(0.1), 3.0)))
    return found


def accepted(up: FloatArray, down: FloatArray) -> tuple[float, float]:
    """Mean acceptance over all pairs of paths up and down, and its standard error by leaving out paths."""

    def mean(first: FloatArray, second: FloatArray) -> float:
        return float(np.minimum(1.0, np.exp(np.minimum(0.0, second[:, None] - first[None]))).mean())

    up = np.where(np.isfinite(up), up, np.inf)
    errors = []
    for paths, other, swapped in ((up, down, False), (down, up, True)):
        n = len(paths)
        left = [np.delete(paths, i) for i in range(n)]
        values = np.array([mean(other, part) if swapped else mean(part, other) for part in left])
        errors.append((n - 1) ** 2 / n * values.var(ddof=1))
    return mean(up, down), float(np.sqrt(sum(errors)))


def run(options: Options) -> Table:
    """Paths up from draws, and paths down from structures of molecular dynamics at the target's temperature."""
    n_up, n_down, n_fit = (16, 8, 50) if options.quick else (256, 64, 600)
    molecule = alanine()
    generator = generator_for(molecule)
    n_steps = 10_000 if options.quick else 100_000
    hot = simulate(molecule, DATA_TEMPERATURE, n_steps=n_steps, stride=50, seed=1)
    generator.fit(hot, max_steps=n_fit, progress=False)
    state = ThermodynamicState(molecule.system, TEMPERATURE * unit.kelvin)
    contexts = ContextCache(platform=openmm.Platform.getPlatformByName("Reference"))
    context, _ = contexts.get_context(state, openmm.LangevinMiddleIntegrator(TEMPERATURE, 2.0, 0.002))
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    frames = []
    for _ in range(n_down + 5):
        context.getIntegrator().step(200 if options.quick else 2000)
        frames.append(context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    target = LatentTarget(generator, ContextEnergies(context, state.kT.value_in_unit(unit.kilojoule_per_mole)))
    latents = generator.to_latent(np.array(frames[5:]))
    rows, first = [], 0.0
    for name, kernel in protocols(options.quick):
        rng, before = np.random.default_rng(1), target.n_evaluations
        z = np.concatenate([latents, target.draw(n_up, rng)])
        down = np.arange(len(z)) < n_down
        paths = kernel.paths(target, z, down, rng)
        cost = (target.n_evaluations - before) / len(z)
        fraction, error = accepted(paths.work[~down], paths.work[down])
        first = first or fraction
        rows.append(
            {
                "proposal": name,
                "steps": kernel.n_steps,
                "steps accepted": paths.fraction_propagated,
                "energies / proposal": cost,
                "accepted": fraction,
                "error": error,
                "dissipated work (up + down) / kT": float(
                    np.nanmedian(paths.work[~down]) - np.nanmedian(paths.work[down])
                ),
                "accepted / 1000 energies": 1000.0 * fraction / cost,
                "against independence": fraction / cost / first,
            }
        )
    best = max(rows, key=lambda row: row["accepted / 1000 energies"])
    longest = max(rows, key=lambda row: row["accepted"])
    notes = [
        f"Alanine dipeptide (HBonds) at {TEMPERATURE:g} K; generator fitted by likelihood alone ({n_fit} steps) to "
        f"dynamics at {DATA_TEMPERATURE:g} K, {n_up} paths up from its draws, {n_down} down from frames of Langevin "
        "dynamics at the target's temperature. `accepted` is the mean of min(1, w'/w) over all pairs.",
        f"Best per energy: {best['proposal']}, {best['steps']} steps ({best['against independence']:.3g} times "
        f"independence). Highest acceptance: {longest['proposal']}, {longest['steps']} steps "
        f"({longest['accepted']:.3g}).",
    ]
    return Table("Annealed proposals", rows, notes)

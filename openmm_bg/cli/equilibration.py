"""The phase before both chains: the structure relaxes, and the steps of a latent walk are found and fixed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from openmm import unit
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg.cli.chains import RELAXATION_STEPS, Dynamics, context_cache, energy_source, openmm_seed
from openmm_bg.cli.terminal import Report
from openmm_bg.density import ProposalDensity
from openmm_bg.moves import BoltzmannGeneratorMove, LatentWalk, TuningError, observe_scans, tune_latent_walk
from openmm_bg.moves.kernel import stored_options
from openmm_bg.moves.latent_blocks import STEPLESS
from openmm_bg.potentials import PlatformChoice
from openmm_bg.systems import MolecularSystem
from openmm_bg.training.data import write_npz

_STEPS_SHOWN = 100
_TIMED_SCANS = 2
_FEWEST_SCANS, _MOST_SCANS = 40, 400


def equilibrate(
    molecule: MolecularSystem,
    generator: ProposalDensity,
    dynamics: Dynamics,
    path: Path,
    *,
    kernel: LatentWalk,
    seconds: float,
    platform: PlatformChoice,
    n_steps: int,
    seed: int,
    report: Report,
) -> tuple[LatentWalk, dict[str, Any]]:
    """Relax the molecule's structure, tune a walk for about so many seconds, and write where that ends to `path`.

    Returns
    -------
    kernel : LatentWalk
        With fixed steps, or only blocks that have none.
    record : dict
        Entries for the record of the phase.

    Raises
    ------
    ValueError
        If the acceptance that the walk is to have is not reached, and nothing is left that needs no step. Where
        something is, the walk goes on with that alone, and the record says so.
    """
    context = platform.create_context(molecule.system, dynamics.integrator(seed))
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(dynamics.temperature, openmm_seed(seed))
    for done in range(0, RELAXATION_STEPS, _STEPS_SHOWN):
        context.getIntegrator().step(_STEPS_SHOWN)
        report(0.0, f"relaxation, {done:,} of {RELAXATION_STEPS:,} steps")
    state = context.getState(getPositions=True, getVelocities=True)
    place = ThermodynamicState(molecule.system, dynamics.temperature * unit.kelvin)
    current = SamplerState(state.getPositions(asNumpy=True), velocities=state.getVelocities(asNumpy=True))
    energies = energy_source(molecule.system, kernel, platform)
    move = BoltzmannGeneratorMove(generator, kernel=kernel, energies=energies, seed=openmm_seed(seed))
    langevin, cache = dynamics.move(n_steps, seed), context_cache(platform)
    started = 0.0
    for number in range(_TIMED_SCANS + 1):
        if number == 1:  # the first one compiles
            started = time.perf_counter()
        langevin.apply(place, current, context_cache=cache)
        move.apply(place, current, cache)
    per_scan = (time.perf_counter() - started) / _TIMED_SCANS
    n_scans = int(np.clip(seconds / per_scan, _FEWEST_SCANS, _MOST_SCANS))
    remark = f"{n_scans} scans, the last {{n_fixed}} with the steps fixed; then left out"
    try:
        with observe_scans(_Shown(n_scans, report)):
            tuning = tune_latent_walk(move, place, current, dynamics=langevin, n_scans=n_scans, context_cache=cache)
        remark = remark.format(n_fixed=tuning.n_fixed_scans)
    except TuningError as error:
        left = [kind for kind in kernel.blocks if kind in STEPLESS]
        if not left:
            raise ValueError(f"{error} The option --tune gives it more seconds.") from error
        move.kernel = replace(kernel, blocks=left, step=1.0, shares=None)
        remark = f"{n_scans} scans; only what needs no step ({', '.join(left)}) are left: {error}"
    write_npz(path, positions=current.positions.value_in_unit(unit.nanometer))
    fixed = move.kernel
    assert isinstance(fixed, LatentWalk)
    return fixed, {
        "n_evaluations": RELAXATION_STEPS + (n_scans + _TIMED_SCANS + 1) * (kernel.n_proposals + n_steps + 1),
        "kernel": stored_options(fixed),
        "energies": energies,
        "remark": remark,
    }


class _Shown:
    """Shows how far a tuning is."""

    def __init__(self, n_scans: int, report: Report) -> None:
        self.n_scans, self.report, self.done = n_scans, report, 0

    def __call__(self, *_: Any) -> None:
        self.done += 1
        self.report(self.done / self.n_scans, f"{self.done} of {self.n_scans} scans")

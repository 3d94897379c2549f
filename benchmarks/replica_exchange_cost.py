"""Replica exchange with a generator of five megabytes beside one with a tiny generator."""

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
from openmm import unit
from openmmtools.mcmc import LangevinDynamicsMove, SequenceMove
from openmmtools.multistate import MultiStateReporter, ReplicaExchangeSampler
from openmmtools.states import SamplerState, ThermodynamicState

from benchmarks.molecules import TEMPERATURE, Options, alanine
from benchmarks.table import Table
from benchmarks.timing import interleave
from openmm_bg.flows import FlowConfig
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import BoltzmannGeneratorMove, Independence

SIZES = {
    "tiny": FlowConfig(torsion_hidden=8, linear_hidden=8, affine_hidden=8),
    "large": FlowConfig(torsion_hidden=128, linear_hidden=128, affine_hidden=640),
}
TEMPERATURES = (300.0, 350.0, 410.0)
BLOCK = 5


def run(options: Options) -> Table:
    """Alternate blocks of iterations of both simulations, and tell the time in the move from the rest."""
    molecule = alanine()
    n_blocks = 2 if options.quick else 12
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, _seconds_in_moves() as spent, redirect_stdout(StringIO()):
        samplers, megabytes = {}, {}
        for name, config in SIZES.items():
            generator = BoltzmannGenerator.from_system(
                molecule.system, molecule.topology, TEMPERATURE, flow=config, positions=molecule.positions, seed=0
            )
            path = Path(folder) / f"{name}.bg"
            generator.save(path)
            megabytes[name] = path.stat().st_size / 1e6
            samplers[name] = _sampler(generator, molecule, Path(folder) / f"{name}.nc")
        elsewhere: dict[str, list[float]] = {name: [] for name in SIZES}

        def block(name: str) -> None:
            begin, in_moves = time.perf_counter(), spent[0]
            samplers[name].extend(n_iterations=BLOCK)
            elsewhere[name].append(time.perf_counter() - begin - (spent[0] - in_moves))

        times = interleave({name: (lambda name=name: block(name)) for name in SIZES}, n_blocks)
    for name in SIZES:
        other = np.array(elsewhere[name][1:])
        rows.append(
            {
                "generator": name,
                "file / MB": megabytes[name],
                "time of 20 iterations / s": float(20 / BLOCK * np.median(times[name])),
                "of which outside the move / s": float(20 / BLOCK * np.median(other)),
                "outside the move, of tiny": float(np.median(other / np.array(elsewhere["tiny"][1:]))),
            }
        )
    notes = ["Three temperatures, 20 Langevin steps and 4 proposals an iteration, stored at every iteration."]
    return Table("Replica exchange", rows, notes)


def _sampler(generator: BoltzmannGenerator, molecule: Any, storage: Path) -> ReplicaExchangeSampler:
    langevin = LangevinDynamicsMove(timestep=2.0 * unit.femtosecond, n_steps=20)
    move = SequenceMove([BoltzmannGeneratorMove(generator, kernel=Independence(4)), langevin])
    sampler = ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=1)
    states = [ThermodynamicState(molecule.system, temperature * unit.kelvin) for temperature in TEMPERATURES]
    start = SamplerState(molecule.positions * unit.nanometer)
    sampler.create(states, [start], storage=MultiStateReporter(storage, checkpoint_interval=1))
    return sampler


@contextmanager
def _seconds_in_moves() -> Iterator[list[float]]:
    """Add up the time spent in generator moves, in the list's only item."""
    spent, apply = [0.0], BoltzmannGeneratorMove.apply

    def timed(self: BoltzmannGeneratorMove, *arguments: Any, **options: Any) -> None:
        begin = time.perf_counter()
        apply(self, *arguments, **options)
        spent[0] += time.perf_counter() - begin

    with mock.patch.object(BoltzmannGeneratorMove, "apply", timed):
        yield spent

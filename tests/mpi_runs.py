"""Replica exchange of a harmonic oscillator over temperatures, in as many MPI processes as there are.

    mpiexec -n 2 python -m mpi4py tests/mpi_runs.py FOLDER SAMPLER [...] [--iterations N] [--mutant M] [--fail HOW]
    mpiexec -n 2 python -m mpi4py tests/mpi_runs.py FOLDER SAMPLER --resume

Every process leaves FOLDER/SAMPLER.RANK.json: the counts of the moves as it knows them; the first one adds the reduced
energies of each state in each iteration. "unmixed" is replica exchange without exchanges.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import mpiplus
import numpy as np
from openmm import unit
from openmmtools import mcmc, multistate, testsystems
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg.density import FloatArray
from openmm_bg.moves import (
    BoltzmannGeneratorMove,
    DurableReporter,
    Independence,
    LearnedReplicaExchangeSampler,
    check_ranks,
)
from openmm_bg.testing import GaussianDensity

TEMPERATURES = (300.0, 340.0, 380.0)
N_PROPOSALS = 4
DELAY = 3.0  # s
WIDTH = 0.01  # nm; that of the oscillator is 0.0077 at 300 K
multistate.MultiStateSampler._global_citation_silence = True


class NoDensity(GaussianDensity):
    """Mutant: what proposes forgets its density."""

    def log_prob(self, positions: FloatArray) -> FloatArray:
        return np.zeros(len(positions))


class Fails(mcmc.MCDisplacementMove):
    """Fails in the second process after a few applications, as a bad GPU would."""

    _applied = 0

    def apply(self, *args: Any, **kwargs: Any) -> None:
        Fails._applied += 1
        if Fails._applied > 6 and mpiplus.get_mpicomm().rank == 1:
            raise ValueError("No energy from the second process.")
        super().apply(*args, **kwargs)


def run(folder: Path, kind: str, iterations: int, mutant: str, fail: str) -> None:
    rank = 0 if mpiplus.get_mpicomm() is None else mpiplus.get_mpicomm().rank
    generator = (NoDensity if mutant == "no density" else GaussianDensity)(np.zeros((1, 3)), WIDTH)
    path = folder / f"generator{rank}.bg"
    generator.save(path)
    small = (Fails if fail == "move" else mcmc.MCDisplacementMove)(displacement_sigma=0.005 * unit.nanometer)
    move = mcmc.SequenceMove([BoltzmannGeneratorMove(generator, kernel=Independence(N_PROPOSALS), seed=11), small])
    options = {"mcmc_moves": move, "number_of_iterations": iterations, "online_analysis_interval": None}
    sampler: Any
    if kind == "learned":
        sampler = LearnedReplicaExchangeSampler(generator=generator, seed=5, **options)
    else:
        mixing = {"replica_mixing_scheme": None} if kind == "unmixed" else {}
        sampler = multistate.ReplicaExchangeSampler(**options, **mixing)
    system = testsystems.HarmonicOscillator()
    states = [ThermodynamicState(system.system, t * unit.kelvin) for t in TEMPERATURES]
    reporter = DurableReporter(folder / f"{kind}.nc", checkpoint_interval=max(1, iterations))
    sampler.create(states, [SamplerState(system.positions)], storage=reporter)
    if not iterations:
        return
    sampler.run()
    moves = sampler.mcmc_moves[: len(states)]
    counts: dict[str, Any] = {
        "n_proposed": [m.move_list[0].n_proposed for m in moves],
        "n_accepted": [m.move_list[0].n_accepted for m in moves],
        "n_displaced": [m.move_list[1].n_proposed for m in moves],
        "n_drawn": sampler.mcmc_moves[-1].n_drawn if kind == "learned" else None,
    }
    if rank == 0:
        energies, _, _ = sampler._reporter.read_energies()
        places = np.asarray(sampler._reporter.read_replica_thermodynamic_states())
        steps, replicas = np.ogrid[: len(places), : places.shape[1]]
        own = np.asarray(energies)[steps, replicas, places]
        counts["by_state"] = np.take_along_axis(own, np.argsort(places, axis=1), 1)[1:].T.tolist()
    (folder / f"{kind}.{rank}.json").write_text(json.dumps(counts))


class LateReporter(DurableReporter):
    """The second process comes to read the storage when the first one has long read it."""

    def storage_exists(self, skip_size: bool = False) -> bool:
        self._be_late()
        return bool(super().storage_exists(skip_size))

    def read_mcmc_moves(self) -> Any:
        self._be_late()
        return super().read_mcmc_moves()

    def _be_late(self) -> None:
        if mpiplus.get_mpicomm().rank == 1:
            time.sleep(DELAY)


def resume(folder: Path, kind: str, iterations: int) -> None:
    """Go on with what `run` has stored."""
    reporter = LateReporter(folder / f"{kind}.nc", checkpoint_interval=1)
    kinds = {"learned": LearnedReplicaExchangeSampler, "replica": multistate.ReplicaExchangeSampler}
    sampler: Any = kinds[kind].from_storage(reporter)
    sampler.extend(iterations)
    (folder / f"{kind}.{mpiplus.get_mpicomm().rank}.json").write_text(json.dumps(sampler.iteration))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("samplers", nargs="+", choices=["replica", "unmixed", "learned"])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--mutant", default="", choices=["", "no density"])
    parser.add_argument("--fail", default="", choices=["", "move", "exit"])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--replicas", type=int, default=len(TEMPERATURES))
    arguments = parser.parse_args()
    try:
        check_ranks(arguments.replicas)
    except ValueError:
        traceback.print_exc()
        time.sleep(2.0)  # the first process to end takes the others with it, and what mpiexec has not yet passed on
        raise
    if arguments.fail == "exit" and mpiplus.get_mpicomm().rank == 1:
        sys.exit("The second process ends itself.")
    if arguments.resume:
        resume(arguments.folder, *arguments.samplers, arguments.iterations)
        sys.exit()
    for name in arguments.samplers:
        run(arguments.folder, name, arguments.iterations, arguments.mutant, arguments.fail)

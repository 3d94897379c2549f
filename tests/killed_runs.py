"""Start a stored simulation, kill it at a random moment, start it again from its storage, and so on.

    python tests/killed_runs.py FOLDER --kills 100 [--reporter plain] [--sampler learned] [--checkpoint-interval 1]

Prints one JSON object. Every process is a fork of this one, which never runs a simulation itself: a start costs
milliseconds. With `--reporter plain` it measures what openmmtools' own reporter makes of the same treatment.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from openmm import unit
from openmmtools import multistate, testsystems
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg.moves import BoltzmannGeneratorMove, DurableReporter, Independence, LearnedReplicaExchangeSampler
from openmm_bg.testing import GaussianDensity

TEMPERATURES = (300.0, 350.0, 400.0)
N_PROPOSALS = 4
SAMPLERS = {
    "replica": multistate.ReplicaExchangeSampler,
    "learned": LearnedReplicaExchangeSampler,
    "sams": multistate.SAMSSampler,
}
multistate.MultiStateSampler._global_citation_silence = True


def storage(options: argparse.Namespace) -> Any:
    kind = DurableReporter if options.reporter == "durable" else multistate.MultiStateReporter
    return kind(str(options.folder / "run.nc"), checkpoint_interval=options.checkpoint_interval)


def started(options: argparse.Namespace) -> Any:
    """The sampler of the storage, or a new one."""
    kind = SAMPLERS[options.sampler]
    if storage(options).storage_exists():
        return kind.from_storage(storage(options))
    testsystem = testsystems.HarmonicOscillator()
    generator = GaussianDensity(np.zeros((1, 3)), 0.05)
    generator.save(options.folder / "generator.bg")
    move = BoltzmannGeneratorMove(generator, kernel=Independence(N_PROPOSALS))
    arguments: dict[str, Any] = {"mcmc_moves": move, "number_of_iterations": np.inf, "online_analysis_interval": None}
    if options.sampler == "learned":
        arguments["generator"] = generator
    if options.sampler != "sams":
        arguments["replica_mixing_scheme"] = "swap-neighbors"
    sampler = kind(**arguments)
    states = [ThermodynamicState(testsystem.system, t * unit.kelvin) for t in TEMPERATURES]
    start = SamplerState(testsystem.positions)
    sampler.create(states, start if options.sampler == "sams" else [start], storage=storage(options))
    return sampler


def child(options: argparse.Namespace, pipe: int) -> None:
    """Tell where the simulation stands, then run it, and tell of every iteration that is complete."""

    def tell(**message: Any) -> None:
        os.write(pipe, (json.dumps(message) + "\n").encode())

    try:
        np.random.seed(int.from_bytes(os.urandom(4), "little"))  # noqa: NPY002  a fork repeats them
        sampler = started(options)
        tell(
            iteration=sampler.iteration,
            counts=[move.statistics for move in sampler.mcmc_moves],
            finite=bool(np.isfinite(sampler._energy_thermodynamic_states).all()),
            states=sorted(int(i) for i in sampler._replica_thermodynamic_states),
        )
        while True:
            begin = time.monotonic()
            sampler.run(n_iterations=1)
            tell(iteration=sampler.iteration, seconds=time.monotonic() - begin)
    except Exception:  # noqa: BLE001  whatever stops it is what this is about
        tell(error=traceback.format_exc())


def one_life(options: argparse.Namespace, until: Callable[[int], None]) -> list[dict[str, Any]]:
    """Messages of a process that is killed when `until`, which gets the reading end of its pipe, returns."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        child(options, writing)
        os._exit(0)
    os.close(writing)
    until(reading)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    text = b""
    while part := os.read(reading, 65536):
        text += part
    os.close(reading)
    return [json.loads(line) for line in text.decode().split("\n")[:-1]]  # the last one may be cut off


class Clock:
    """Random lives, measured in how long beginning and iterating take on this machine at present."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.beginning, self.iteration = 1.0, 0.1  # s
        self.lives = 0

    def random(self, reading: int) -> None:
        """Every third life ends at any moment, the others in one of the next four iterations."""
        self.lives += 1
        if self.lives % 3 == 0:
            time.sleep(self.rng.random() * 1.5 * self.beginning)
            return
        begin = time.monotonic()
        ready(reading)
        self.beginning = 0.8 * self.beginning + 0.2 * (time.monotonic() - begin)
        time.sleep(self.rng.random() * 4.0 * self.iteration)


def ready(reading: int) -> None:
    """Wait for a message."""
    select.select([reading], [], [], 60.0)


def faults(options: argparse.Namespace, opened: dict[str, Any], known: int) -> list[str]:
    """What is wrong with a resumed simulation that had completed `known` iterations."""
    found = []
    iteration = opened["iteration"]
    expected = known - known % options.checkpoint_interval
    if not expected <= iteration <= known + options.checkpoint_interval:
        found.append(f"resumed at {iteration} although {known} were complete")
    if not opened["finite"]:
        found.append("energies are not finite")
    if options.sampler != "sams" and opened["states"] != list(range(len(opened["states"]))):
        found.append(f"replicas are in states {opened['states']}")
    proposed = [count["n_proposed"] for count in opened["counts"] if "n_proposed" in count]
    applied = sum(proposed) if options.sampler == "sams" else proposed
    if applied != (N_PROPOSALS * iteration if options.sampler == "sams" else [N_PROPOSALS * iteration] * len(proposed)):
        found.append(f"{applied} proposals are counted at iteration {iteration}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reporter", choices=["durable", "plain"], default="durable")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="replica")
    parser.add_argument("--checkpoint-interval", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    clock, known, resumed, problems = Clock(rng), 0, 0, []
    for kill in range(options.kills + 1):
        messages = one_life(options, ready if kill == options.kills else clock.random)
        broken = [message["error"] for message in messages if "error" in message]
        if broken:
            problems.append({"kill": kill, "faults": broken[0].strip().splitlines()[-1]})
            shutil.rmtree(options.folder)
            options.folder.mkdir()
            known = 0
        elif messages:
            if found := faults(options, messages[0], known):
                problems.append({"kill": kill, "faults": found})
            known = messages[-1]["iteration"]
            resumed += 1
            if len(messages) > 1:
                clock.iteration = 0.8 * clock.iteration + 0.2 * messages[-1]["seconds"]
    json.dump({"kills": options.kills, "opened": resumed, "iterations": known, "problems": problems}, sys.stdout)


if __name__ == "__main__":
    main()

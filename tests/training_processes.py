"""Train the generator of a small molecule, in as many processes as torchrun starts.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/training_processes.py FOLDER [--mode MODE]

The first process leaves result.bg and result.json in FOLDER; every process leaves a file with its random seed.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import training_fixtures
from openmm import app
from small_molecules import SmallMolecule
from training_fixtures import frames, untrained

from openmm_bg.potentials import SystemPotential
from openmm_bg.training import Stage, train
from openmm_bg.training.data import SimulationCost, TrajectoryData
from openmm_bg.training.processes import Processes


class WithBackbone(SmallMolecule):
    """The small molecule with names of backbone atoms, for W2."""

    def topology(self) -> app.Topology:
        topology = super().topology()
        for atom, name in zip(topology.atoms(), ("N", "CA", "C"), strict=False):
            atom.name = name
        return topology


_SAME = {field.name: getattr(training_fixtures.MOLECULE, field.name) for field in fields(SmallMolecule) if field.init}
MOLECULE = WithBackbone(**_SAME)
STAGES = (
    Stage("data", 20, nll=1.0, torsion_nll=0.5, batch_size=33, patience=10),  # an odd batch: unequal shares
    Stage(
        "refinement",
        12,
        reverse_kl=1.0,
        conditional_kl=0.5,
        reweighted=0.5,
        w2=50.0,
        batch_size=36,
        refresh=5,
        pool_size=129,
        minimum_ess=0.0,
    ),
)


def run(folder: Path, mode: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    positions = frames(400, temperature=400.0, seed=2 if (mode, rank) == ("other data", 1) else 1)[0]
    data = TrajectoryData(positions[None], np.zeros((1, 400)), 400.0, SimulationCost(0.0, 0, "Reference"))
    generator = untrained(MOLECULE, seed=rank)  # the first one's counts
    records: list[dict[str, Any]] = []
    with SystemPotential(MOLECULE.system(), platform="Reference", n_workers=1) as potential:
        if (mode, rank) == ("failure", 1):
            evaluate = potential.energy
            calls = iter(range(3))

            def energy(batch: Any) -> Any:
                if next(calls) == 2:
                    raise ValueError("The energies of process 1 failed.")
                return evaluate(batch)

            potential.energy = energy  # type: ignore[method-assign]
        if mode == "gradients apart":
            Processes.sum_gradients = lambda self, parameters: None  # type: ignore[method-assign]
        if (mode, rank) == ("interrupt", 0):
            records = _Interrupting()
        options: dict[str, Any] = {"max_seconds": 600.0} if mode == "seconds" else {}
        history = train(
            generator,
            potential,
            data=data,
            stages=STAGES,
            folder=folder / "training",
            progress=records.append,
            **options,
        )
        own = potential.n_evaluations
    (folder / f"process{rank}.json").write_text(
        json.dumps({"hash": generator.content_hash, "reports": len(records), "own_evaluations": own})
    )
    if rank == 0:
        generator.save(folder / "result.bg")
        (folder / "result.json").write_text(json.dumps(history.to_dict()))


class _Interrupting(list[dict[str, Any]]):
    """Stands for Ctrl-C in the second stage."""

    def append(self, record: dict[str, Any]) -> None:
        if record["stage"] == "refinement" and record["step"] >= 10:
            raise KeyboardInterrupt


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", default="plain")
    arguments = parser.parse_args()
    run(arguments.folder, arguments.mode)

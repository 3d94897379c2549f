"""Cost of a step of dynamics on the flow, by backend, and of a bridged System at its ends.

Times are those of the processor, on one thread, and every line is measured in turns with the others, so that their
ratios hold on a busy machine. TorchForce needs an
environment with openmmtorch (`make test-torchforce` makes one); where there is none, its line is left out.

    OMP_NUM_THREADS=1 python -m benchmarks.flow_force --output benchmarks/results/flow_force.json
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path

import openmm
import torch

from benchmarks.molecules import TEMPERATURE, alanine, generator_for
from benchmarks.timing import interleave, machine, microseconds
from openmm_bg import bridge, flow_force
from openmm_bg.potentials.python_force import LAMBDA
from openmm_bg.potentials.torch_force import why_unavailable
from openmm_bg.systems import MolecularSystem

N_STEPS = 20


def flow_alone(molecule: MolecularSystem, force: openmm.Force) -> openmm.System:
    """Masses and constraints of a molecule, with this force only."""
    system = copy.deepcopy(molecule.system)
    for index in reversed(range(system.getNumForces())):
        system.removeForce(index)
    system.addForce(force)
    return system


def integrator_of(system: openmm.System, molecule: MolecularSystem, **parameters: float) -> openmm.Integrator:
    """An integrator with its Context on the Reference platform, at the molecule's structure."""
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 5.0, 0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    for name, value in parameters.items():
        context.setParameter(name, value)
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.context = context  # kept alive with it
    return integrator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    molecule = alanine()
    generator = generator_for(molecule)
    with tempfile.TemporaryDirectory() as folder:
        generator.save(Path(folder) / "ala2.bg")
        bridged = bridge(molecule.system, generator)
        integrators = {
            "target": integrator_of(molecule.system, molecule),
            "bridged, lambda = 1": integrator_of(bridged.system, molecule),
            "bridged, lambda = 0.5": integrator_of(bridged.system, molecule, **{LAMBDA: 0.5}),
            "flow, python": integrator_of(flow_alone(molecule, flow_force(generator, backend="python")), molecule),
        }
        reason = why_unavailable()
        if reason is None:
            system = flow_alone(molecule, flow_force(generator, backend="torchforce"))
            integrators["flow, torchforce"] = integrator_of(system, molecule)
        times = interleave(
            {name: lambda one=integrator: one.step(N_STEPS) for name, integrator in integrators.items()},
            arguments.rounds,
            clock=time.process_time,
        )
    cost = {name: microseconds(times, name, N_STEPS) for name in integrators}
    for name, value in cost.items():
        print(f"{name:24} {value:10,.0f} us a step")
    if reason is not None:
        print(reason)
    if arguments.output:
        result = {"molecule": "alanine dipeptide, 22 atoms", "cpu_us_per_step": cost, "machine": machine()}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

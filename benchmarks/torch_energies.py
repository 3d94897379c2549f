"""Energies, and energies with forces, of batches in torch against OpenMM's fastest platform on one core.

Rates of both are taken in turn in one process, so that their ratio holds on a busy machine. Run it with one thread:

    OMP_NUM_THREADS=1 python benchmarks/torch_energies.py --molecule alanine --output results.json

What the output file has already is not measured again, so a long benchmark can be made in pieces; `--compile` measures
compiled energies, beside the others in the file. A GPU is taken with
`--device cuda`, and compared with one Context on the platform that measures fastest there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import app

from openmm_bg.potentials import TorchBackend
from openmm_bg.potentials.openmm_backend import OpenMMBackend
from openmm_bg.potentials.platforms import n_cores
from openmm_bg.potentials.torch_backend import EnergyBackend
from openmm_bg.systems import MolecularSystem, peptide, villin

MOLECULES = {"alanine": lambda: peptide("ACE-ALA-NME"), "chignolin": lambda: peptide("YYDPETGTWY"), "villin": villin}
SOLVENTS = {"GBSAOBCForce": "amber99_obc.xml", "CustomGBForce": "implicit/obc2.xml", "none": None}
BATCHES = (1, 16, 256, 4096, 65_536)


def seconds(backend: EnergyBackend, batch: np.ndarray, with_forces: bool) -> float:
    begin = time.perf_counter()
    backend.evaluate(batch, with_forces=with_forces)
    return time.perf_counter() - begin


def rates(
    torch_backend: TorchBackend,
    openmm_backend: OpenMMBackend,
    molecule: MolecularSystem,
    *,
    with_forces: bool,
    budget: float,
) -> list[dict[str, float]]:
    rows = []
    rng = np.random.default_rng(0)
    one = molecule.positions + rng.normal(scale=0.002, size=(32, *molecule.positions.shape))
    for n in BATCHES:
        batch = np.ascontiguousarray(np.resize(one, (n, *molecule.positions.shape)))
        few = batch[: min(n, 256)]
        expected = seconds(torch_backend, batch[:1], with_forces) * n
        if n > 1 and expected > 20.0 * budget and rows and n / rows[-1]["torch_per_second"] > budget:
            break
        ours, theirs, end = [], [], time.perf_counter() + budget
        while len(ours) < 2 or (time.perf_counter() < end and len(ours) < 20):
            ours.append(seconds(torch_backend, batch, with_forces) / n)
            theirs.append(seconds(openmm_backend, few, with_forces) / len(few))
        rows.append(
            {
                "batch": n,
                "torch_per_second": 1.0 / min(ours),
                "openmm_per_second": 1.0 / min(theirs),
                "ratio": min(theirs) / min(ours),
            }
        )
        print(
            f"  {'E+F' if with_forces else 'E':4} batch {n:6}: torch {1 / min(ours):10,.0f}/s, "
            f"OpenMM {1 / min(theirs):10,.0f}/s, ratio {min(theirs) / min(ours):.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecule", choices=MOLECULES, nargs="*", default=list(MOLECULES))
    parser.add_argument("--solvent", choices=SOLVENTS, nargs="*", default=["GBSAOBCForce"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["double", "mixed"], default="double")
    parser.add_argument(
        "--platform", default="auto", help="of OpenMM; name it where noise would mislead the measurement"
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each batch size")
    parser.add_argument("--output", type=Path, help="JSON file; what it has is not measured again")
    arguments = parser.parse_args()
    kept = json.loads(arguments.output.read_text()) if arguments.output and arguments.output.exists() else {}
    for name in arguments.molecule:
        molecule = MOLECULES[name]()
        for solvent in arguments.solvent:
            key = f"{name} {solvent} {arguments.device} {arguments.precision}{' compiled' * arguments.compile}"
            if key in kept:
                continue
            files = ["amber99sbildn.xml"] + ([SOLVENTS[solvent]] if SOLVENTS[solvent] else [])
            system = app.ForceField(*files).createSystem(molecule.topology, constraints=app.HBonds)
            begin = time.perf_counter()
            ours = TorchBackend(
                system,
                arguments.device,
                precision=arguments.precision,
                reference=molecule.positions,
                compile=arguments.compile,
            )
            made = time.perf_counter() - begin
            theirs = OpenMMBackend(
                system, platform=arguments.platform, n_workers=n_cores()
            )  # the platform that is fastest on a core's share
            theirs.n_workers = 1
            print(f"{name}, {system.getNumParticles()} atoms, {solvent}, OpenMM: {theirs.choice}")
            kept[key] = {
                "atoms": system.getNumParticles(),
                "openmm": f"{openmm.version.short_version}, {theirs.choice.name}",
                "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
                "seconds_to_make_and_check": made,
                "seconds_to_compile": ours.compile_seconds,
                "energies": rates(ours, theirs, molecule, with_forces=False, budget=arguments.seconds),
                "energies_and_forces": rates(ours, theirs, molecule, with_forces=True, budget=arguments.seconds),
            }
            theirs.close()
            if arguments.output:
                arguments.output.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()

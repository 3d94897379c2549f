"""What a generator of reduced coordinates costs, from 10 to 300 residues."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openmm
import torch
from openmm import app

from benchmarks.molecules import TEMPERATURE, Options
from benchmarks.table import Table
from benchmarks.timing import interleave, microseconds
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.systems import peptide
from openmm_bg.training.losses import log_likelihood

SEQUENCE = "YYDPETGTWYKFLSIARVMQHNE"
SIZES = (10, 30, 100, 300)
BATCH = 64


def run(options: Options) -> Table:
    """Time sampling, densities, the latents of one state and a training step, side by side for all sizes."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    functions = {}
    generators = {}
    for n_residues in SIZES[:2] if options.quick else SIZES:
        generator = generators[n_residues] = _generator(n_residues)
        samples = generator.sample(BATCH, rng=0).positions
        circular, linear, _ = generator.features.encode(generator.coordinates.to_internal(torch.as_tensor(samples)))
        features = circular.float(), linear.float()
        functions |= {
            f"sample {n_residues}": lambda g=generator: g.sample(BATCH, rng=1),
            f"log_prob {n_residues}": lambda g=generator, x=samples: g.log_prob(x),
            f"one {n_residues}": lambda g=generator, x=samples[:1]: g.from_latent(g.to_latent(x)),
            f"training {n_residues}": lambda g=generator, f=features: _training_step(g, f),
        }
    times = interleave(functions, 2 if options.quick else 7)
    for n_residues, generator in generators.items():
        rows.append(
            {
                "residues": n_residues,
                "atoms": generator.n_atoms,
                "generated": generator.n_generated,
                "parameters": sum(parameter.numel() for parameter in generator.flow.parameters()),
                "sample / ms": 1e-3 * microseconds(times, f"sample {n_residues}", BATCH),
                "log_prob / ms": 1e-3 * microseconds(times, f"log_prob {n_residues}", BATCH),
                "to latents and back, alone / ms": 1e-3 * microseconds(times, f"one {n_residues}", 1),
                "training / ms": 1e-3 * microseconds(times, f"training {n_residues}", BATCH),
                "sample per residue / us": microseconds(times, f"sample {n_residues}", BATCH * n_residues),
            }
        )
    first, last = rows[0], rows[-1]
    exponents = {
        name: math.log(last[name] / first[name]) / math.log(last["residues"] / first["residues"])
        for name in ("sample / ms", "log_prob / ms", "training / ms")
    }
    found = ", ".join(f"{name.removesuffix(' / ms')} {exponent:.2f}" for name, exponent in exponents.items())
    return Table(
        "Cost of reduced coordinates against residues",
        rows,
        [
            f"One thread, batches of {BATCH}; times are for one configuration, `frozen='thermal'`, HBonds.",
            f"Exponents of the number of residues between the first row and the last: {found}; one is linear.",
        ],
    )


def _training_step(generator: BoltzmannGenerator, features: tuple[torch.Tensor, torch.Tensor]) -> None:
    generator.flow.zero_grad()
    log_likelihood(generator, *features).mean().backward()


def _generator(n_residues: int) -> BoltzmannGenerator:
    """Build an untrained generator of a peptide that repeats a sequence of all kinds of residues."""
    sequence = (SEQUENCE * (n_residues // len(SEQUENCE) + 1))[:n_residues]
    forcefield = app.ForceField("amber99sbildn.xml")
    molecule = peptide(sequence, forcefield=forcefield, minimized=False)
    system: openmm.System = molecule.system
    return BoltzmannGenerator.from_system(
        system,
        molecule.topology,
        TEMPERATURE,
        coordinates="reduced",
        positions=np.asarray(molecule.positions),
        seed=0,
    )

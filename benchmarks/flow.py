"""The whole generator, sampling and density, beside the energies of the same configurations."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.molecules import Options, alanine, generator_for, villin
from benchmarks.table import Table
from benchmarks.timing import interleave, microseconds, ratio
from openmm_bg.potentials import SystemPotential


def run(options: Options) -> Table:
    """Time sampling, density and the gradient of the reverse KL of untrained generators."""
    rows: list[dict[str, Any]] = []
    for name, molecule, n in (("alanine dipeptide", alanine(), 512), ("villin", villin(), 32)):
        generator = generator_for(molecule)
        positions = generator.sample(n, rng=0).positions
        latents = generator.to_latent(positions)
        n_energies = n if len(molecule.positions) < 100 else 4
        rng = torch.Generator().manual_seed(0)

        def gradient(generator=generator, n=n, rng=rng) -> None:
            x, _ = generator._decode(generator.flow.sample_base(n, rng))
            (generator._path_log_prob(x).mean() + 0.0 * x.sum()).backward()

        with SystemPotential(molecule.system, n_workers=1) as potential:
            times = interleave(
                {
                    "from latent": lambda g=generator, z=latents: g.from_latent(z),
                    "log_prob": lambda g=generator, x=positions: g.log_prob(x),
                    "gradient": gradient,
                    "energy": lambda p=potential, x=positions[:n_energies]: p.energy(x),
                    "forces": lambda p=potential, x=positions[:n_energies]: p.energy_and_forces(x),
                },
                3 if options.quick else 15,
            )
            scale = n_energies / n
            rows.append(
                {
                    "molecule": name,
                    "atoms": generator.n_atoms,
                    "parameters": sum(parameter.numel() for parameter in generator.flow.parameters()),
                    "sample / us": microseconds(times, "from latent", n),
                    "log_prob / us": microseconds(times, "log_prob", n),
                    "gradient / us": microseconds(times, "gradient", n),
                    "energy / us": microseconds(times, "energy", n_energies),
                    "sample / energy": scale * ratio(times, "from latent", "energy"),
                    "log_prob / energy": scale * ratio(times, "log_prob", "energy"),
                    "gradient / forces": scale * ratio(times, "gradient", "forces"),
                }
            )
    notes = [
        "Per configuration, with its coordinates. The gradient is that of a step of reverse KL without the forces."
    ]
    return Table("Generator", rows, notes)

"""Energies of batches by platform and number of workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.molecules import Options, alanine, shaken, villin
from benchmarks.table import Table
from benchmarks.timing import interleave, microseconds, ratio
from openmm_bg.potentials import SystemPotential
from openmm_bg.potentials.platforms import available_platforms


def run(options: Options) -> Table:
    """Time energies, and energies with forces, on every platform that works here."""
    rows: list[dict[str, Any]] = []
    for name, molecule, n in (("alanine dipeptide", alanine(), 512), ("villin", villin(), 16)):
        positions = shaken(molecule.positions, n)
        potentials = _potentials(molecule.system)
        functions: dict[str, Callable[[], Any]] = {}
        for label, potential in potentials.items():
            functions[f"{label} energy"] = lambda p=potential, x=positions: p.energy(x)
            functions[f"{label} forces"] = lambda p=potential, x=positions: p.energy_and_forces(x)
        times = interleave(functions, 2 if options.quick else 10)
        for label, potential in potentials.items():
            rows.append(
                {
                    "molecule": name,
                    "platform": label,
                    "energies / s": 1e6 / microseconds(times, f"{label} energy", n),
                    "of Reference": 1.0 / ratio(times, f"{label} energy", "Reference, 1 worker energy"),
                    "with forces, of Reference": 1.0 / ratio(times, f"{label} forces", "Reference, 1 worker forces"),
                }
            )
            potential.close()
    return Table(
        "Energies", rows, ['OBC implicit solvent, no cutoff. What `platform="auto"` measures and chooses from.']
    )


def _potentials(system: Any) -> dict[str, SystemPotential]:
    potentials = {}
    for platform in sorted(available_platforms(), key=lambda name: name != "Reference"):
        for n_workers in (1, 2):
            try:
                potential = SystemPotential(system, platform=platform, n_workers=n_workers)
            except RuntimeError:  # a platform that is there but has no device
                continue
            plural = "workers" if n_workers > 1 else "worker"
            potentials[f"{platform}, {n_workers} {plural}"] = potential
    return potentials

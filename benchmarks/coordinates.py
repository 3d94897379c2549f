"""Internal coordinates and back, for molecules of 22, 582 and 5,000 atoms."""

from __future__ import annotations

from typing import Any

from benchmarks.molecules import Options, alanine, alkane, alkane_positions, as_tensor, shaken, villin
from benchmarks.table import Table
from benchmarks.timing import interleave, microseconds, ratio
from openmm_bg.coordinates import InternalCoordinates, build_zmatrix
from openmm_bg.potentials import SystemPotential


def run(options: Options) -> Table:
    """Time a batch of encodings and decodings beside energies of the same configurations."""
    rows: list[dict[str, Any]] = []
    repetitions = 3 if options.quick else 15
    for name, molecule, n in (("alanine dipeptide", alanine(), 1024), ("villin", villin(), 64), ("alkane", None, 8)):
        topology = alkane() if molecule is None else molecule.topology
        start = alkane_positions(topology) if molecule is None else molecule.positions
        coordinates = InternalCoordinates(build_zmatrix(topology))
        positions = shaken(start, n)
        x = as_tensor(positions)
        internal = coordinates.to_internal(x)
        functions = {
            "encode": lambda c=coordinates, x=x: c.to_internal(x),
            "decode": lambda c=coordinates, q=internal: c.to_cartesian(q),
        }
        n_energies = min(n, 4 if topology.getNumAtoms() > 100 else n)
        if molecule is not None:
            potential = SystemPotential(molecule.system, n_workers=1)
            functions["energy"] = lambda p=potential, x=positions[:n_energies]: p.energy(x)
        times = interleave(functions, repetitions)
        n_atoms = topology.getNumAtoms()
        rows.append(
            {
                "molecule": name,
                "atoms": n_atoms,
                "encode / us": microseconds(times, "encode", n),
                "decode / us": microseconds(times, "decode", n),
                "per atom / ns": 1e3 * (microseconds(times, "encode", n) + microseconds(times, "decode", n)) / n_atoms,
                "encode / energy": ratio(times, "encode", "energy") * n_energies / n if molecule else None,
                "decode / energy": ratio(times, "decode", "energy") * n_energies / n if molecule else None,
            }
        )
    notes = ["Times are for one configuration in a batch; energies with OBC implicit solvent on the fastest platform."]
    return Table("Coordinates", rows, notes)

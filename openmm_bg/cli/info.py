"""`openmm-bg info`: versions, platforms, and what a model file or a folder holds."""

from __future__ import annotations

from pathlib import Path

from openmm import unit
from rich.table import Table

from openmm_bg.cli.terminal import console, say
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import available_platforms, choose_platform
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.report.summary import versions


def describe_machine(*, measure: bool, platform: str) -> None:
    """Print versions and platforms; with `measure`, what the demo's molecule runs at on each."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, version in versions().items():
        table.add_row(name, version)
    table.add_row("platforms", ", ".join(available_platforms()))
    console.print(table)
    if measure:
        from openmm_bg.systems import peptide

        molecule = peptide("ACE-ALA-NME")
        for task in ("dynamics", "energies"):
            choice = choose_platform(molecule.system, molecule.positions, platform, task=task)
            say(f"{task}, alanine dipeptide in implicit solvent: {choice}")


def describe(path: Path) -> None:
    """Print what a model file or a run folder holds.

    Raises
    ------
    ValueError, OSError
        If it is neither.
    """
    if path.is_dir():
        _describe_folder(RunFolder.open(path))
        return
    generator = BoltzmannGenerator.load(path)
    residues = "-".join(residue.name for residue in generator.topology.residues())
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("Boltzmann generator", str(path))
    table.add_row("molecule", f"{residues}, {generator.n_atoms} atoms")
    table.add_row("degrees of freedom", f"{generator.n_dof} (modulo pose, without constraints)")
    table.add_row("temperature", f"{generator.temperature.value_in_unit(unit.kelvin):g} K")
    table.add_row("content hash", generator.content_hash)
    console.print(table)


def _describe_folder(folder: RunFolder) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("phase", "finished", "seconds", "platform", ""):
        table.add_column(heading)
    for name, record in folder.phases.items():
        table.add_row(
            name, "yes" if record.get("finished") else "no", f"{record.get('seconds', 0.0):.1f}",
            str(record.get("platform") or ""), str(record.get("remark") or ""),
        )  # fmt: skip
    say(", ".join(f"{key} {value}" for key, value in folder.settings.items()))
    console.print(table)

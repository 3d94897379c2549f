"""The command line. Options are declared here; what takes long to import is imported by the commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openmm_bg.cli.defaults import DEMOS, FULL, QUICK
from openmm_bg.cli.terminal import NOT_TO_BE_USED, clear_errors, import_quietly, say

if TYPE_CHECKING:
    from openmm_bg.report.run_folder import RunFolder

app = typer.Typer(
    name="openmm-bg",
    help="Boltzmann generators as exact Monte Carlo moves for OpenMM and openmmtools.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Platform(StrEnum):
    """OpenMM's platforms, and the choice of the fastest."""

    auto = "auto"
    cuda = "CUDA"
    opencl = "OpenCL"
    cpu = "CPU"
    reference = "Reference"


class DemoSystem(StrEnum):
    """Molecules that there is a demo of."""

    alanine_dipeptide = "alanine-dipeptide"
    chignolin = "chignolin"
    villin = "villin"


class Coordinates(StrEnum):
    """Which coordinates a generator generates."""

    full = "full"
    reduced = "reduced"


class Frozen(StrEnum):
    """What becomes of those that it does not."""

    thermal = "thermal"
    keep = "keep"


class KernelName(StrEnum):
    """How proposals are made."""

    auto = "auto"
    independence = "independence"
    walk = "walk"


class SamplePart(StrEnum):
    """What `sample` runs."""

    all = "all"
    chain = "chain"
    langevin = "langevin"
    generator = "generator"


Folder = Annotated[Path | None, typer.Argument(metavar="FOLDER", help="Folder of the run.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="The same, as an option.", show_default=False)
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers; the time sets how far they are used.")]
OnPlatform = Annotated[
    Platform, typer.Option("--platform", case_sensitive=False, help="OpenMM platform; auto measures which is fastest.")
]
Quick = Annotated[bool, typer.Option("--quick", help="A small fraction of everything: to try it, not to believe it.")]
Seconds = Annotated[float | None, typer.Option(min=0.1, help="Wall time to spend, in seconds.", show_default=False)]

DEMO_FOLDER = Path("demo-run")


def _path(folder: Path | None, output: Path | None, default: Path | None = None) -> Path:
    if folder is not None and output is not None and folder != output:
        raise ValueError(f"two folders were named, {folder} and --output {output}; name one")
    path = folder or output or default
    if path is None:
        raise ValueError("no folder was named; name one, as in: openmm-bg train my-run")
    return path


def _open(folder: Path | None, output: Path | None) -> RunFolder:
    from openmm_bg.report.run_folder import RunFolder

    RunFolder.open(_path(folder, output))
    return RunFolder.create(_path(folder, output))


@app.command()
def demo(
    folder: Folder = None,
    output: Output = None,
    system: Annotated[
        DemoSystem, typer.Option(help="The molecule; the proteins take up to twenty minutes on two cores.")
    ] = DemoSystem.alanine_dipeptide,
    seed: Seed = 1,
    platform: OnPlatform = Platform.auto,
    quick: Quick = False,
) -> None:
    """Train a generator for alanine dipeptide, sample with it, and write the report: five minutes on two cores."""
    path = folder or output or DEMO_FOLDER
    chosen = "" if system is DemoSystem.alanine_dipeptide else f" --system {system.value}"
    with clear_errors(f"openmm-bg demo -o {path}{chosen}{' --quick' if quick else ''}"):
        path = _path(folder, output, DEMO_FOLDER)
        import_quietly()
        from openmm_bg.cli.demo import demo as run
        from openmm_bg.report.run_folder import RunFolder

        run(RunFolder.create(path), DEMOS[system.value], platform.value, seed, quick=quick)


@app.command()
def simulate(
    folder: Folder = None,
    output: Output = None,
    system: Annotated[
        str | None,
        typer.Option(
            help="chignolin, villin, a PDB file, or residues: ACE-ALA-NME or one-letter codes. [default: ACE-ALA-NME]",
            show_default=False,
        ),
    ] = None,
    sequence: Annotated[str | None, typer.Option(help="The same, of residues.", show_default=False)] = None,
    pdb: Annotated[Path | None, typer.Option(help="The same, of a PDB file.", show_default=False)] = None,
    add_hydrogens: Annotated[bool, typer.Option("--add-hydrogens", help="Add hydrogens to the PDB file.")] = False,
    add_missing_atoms: Annotated[bool, typer.Option("--add-missing-atoms", help="And heavy atoms.")] = False,
    remove_solvent: Annotated[bool, typer.Option("--remove-solvent", help="Leave its water and ions out.")] = False,
    substitute: Annotated[
        list[str] | None, typer.Option(help="Replace residues, as in NLE=LEU; may be repeated.", show_default=False)
    ] = None,
    forcefield: Annotated[
        list[str] | None, typer.Option(help="Force-field file of OpenMM; may be repeated.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="Temperature of the answers, in K.")] = 300.0,
    data_temperature: Annotated[
        float | None,
        typer.Option(
            help="Temperature of the data to train on, in K. [default: 700; of a structure 400; of replicas that of "
            "the answers]",
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="With 2 or more: replica exchange, upwards from the data's temperature.")
    ] = 1,
    max_temperature: Annotated[
        float | None, typer.Option(help="Highest temperature of replicas, in K. [default: 600]", show_default=False)
    ] = None,
    timestep: Annotated[float, typer.Option(help="In fs.")] = 2.0,
    hydrogen_mass: Annotated[
        float | None, typer.Option(help="Mass of hydrogens in amu; 3 allows 4 fs.", show_default=False)
    ] = None,
    seconds: Seconds = None,
    seed: Seed = 1,
    platform: OnPlatform = Platform.auto,
    quick: Quick = False,
) -> None:
    """Build a molecule and run hot dynamics, or replica exchange: the data to train on."""
    path = folder or output
    with clear_errors(f"openmm-bg simulate -o {path} (with the same options)"):
        path = _path(folder, output)
        named = [str(option) for option in (system, sequence, pdb) if option is not None]
        if len(set(named)) > 1:
            raise ValueError(f"{len(named)} molecules were named: {', '.join(named)}; name one")
        import_quietly()
        from openmm_bg.cli.molecules import Preparation
        from openmm_bg.cli.simulate import SimulateOptions
        from openmm_bg.cli.simulate import simulate as run
        from openmm_bg.report.run_folder import RunFolder

        default = SimulateOptions()
        options = SimulateOptions(
            system=named[0] if named else default.system,
            forcefield=tuple(forcefield) if forcefield else default.forcefield,
            preparation=Preparation(add_hydrogens, add_missing_atoms, remove_solvent, _substitutions(substitute)),
            temperature=temperature, data_temperature=data_temperature, n_replicas=replicas,
            max_temperature=max_temperature, timestep=timestep / 1000.0, hydrogen_mass=hydrogen_mass, seed=seed,
            platform=platform.value, seconds=seconds or (QUICK if quick else FULL).simulate,
        )  # fmt: skip
        run(RunFolder.create(path), options)


def _substitutions(pairs: list[str] | None) -> dict[str, str]:
    found = {}
    for pair in pairs or []:
        old, sign, new = pair.partition("=")
        if not (old and sign and new):
            raise ValueError(f"--substitute {pair} is not understood; write it as NLE=LEU")
        found[old.strip()] = new.strip()
    return found


@app.command()
def train(
    folder: Folder = None,
    output: Output = None,
    coordinates: Annotated[
        Coordinates, typer.Option(help="reduced, for proteins: without bonds and angles of side chains.")
    ] = Coordinates.full,
    frozen: Annotated[
        Frozen, typer.Option(help="What reduced coordinates leave out: drawn from a fixed density, or kept by moves.")
    ] = Frozen.keep,
    seconds: Seconds = None,
    seed: Seed = 1,
    platform: OnPlatform = Platform.auto,
    quick: Quick = False,
) -> None:
    """Train a generator on the folder's data: generator.bg, history and checkpoints."""
    with clear_errors(f"openmm-bg train {folder or output}"):
        run_folder = _open(folder, output)
        import_quietly()
        from openmm_bg.cli.train import TrainOptions
        from openmm_bg.cli.train import train as run

        options = TrainOptions(
            seconds or (QUICK if quick else FULL).train, platform.value, seed, coordinates.value, frozen.value
        )
        run(run_folder, options)


@app.command()
def sample(
    folder: Folder = None,
    output: Output = None,
    part: Annotated[SamplePart, typer.Option(help="Only one of the chains, or only the reweighting.")] = SamplePart.all,
    seconds: Seconds = None,
    n_samples: Annotated[
        int | None, typer.Option(min=100, help="Samples of the generator to reweight.", show_default=False)
    ] = None,
    kernel: Annotated[
        KernelName, typer.Option(help="auto: a latent walk with reduced coordinates, else independent proposals.")
    ] = KernelName.auto,
    tune: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds in which a walk is tuned first.", show_default=False)
    ] = None,
    n_proposals: Annotated[
        int | None, typer.Option(min=1, help="Proposals of a scan. [default: 256; of a walk 128]", show_default=False)
    ] = None,
    n_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Langevin steps between two scans. [default: 250]", show_default=False),
    ] = None,
    timestep: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Of these steps, in fs. [default: that of the data; with a walk at most 2]",
            show_default=False,
        ),
    ] = None,
    friction: Annotated[
        float | None,
        typer.Option(min=0.01, help="In 1/ps. [default: that of the data; with a walk 5]", show_default=False),
    ] = None,
    seed: Seed = 1,
    platform: OnPlatform = Platform.auto,
    quick: Quick = False,
) -> None:
    """Sample with the generator's moves and Langevin dynamics, with Langevin alone, and reweight the generator."""
    with clear_errors(f"openmm-bg sample {folder or output}"):
        run_folder = _open(folder, output)
        import_quietly()
        from openmm_bg.cli.sample import sample as run
        from openmm_bg.cli.sample_options import SampleOptions

        preset = QUICK if quick else FULL
        options = SampleOptions(
            seconds or preset.sample, n_samples or preset.n_samples, n_proposals, n_steps, platform.value, seed,
            kernel.value, tune or preset.tune, None if timestep is None else timestep / 1000.0, friction,
        )  # fmt: skip
        run(run_folder, options, part.value)


@app.command("free-energy")
def free_energy(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER|FILE", help="A run folder, an .nc file, or an energy.csv or its folder.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON file to write.", show_default=False)
    ] = None,
    n_samples: Annotated[int, typer.Option(min=100, help="Draws of the generator.")] = 5000,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of an energy.csv, in K.", show_default=False)
    ] = None,
    seed: Seed = 1,
    platform: OnPlatform = Platform.auto,
) -> None:
    """Free energies by MBAR with errors and a verdict: free_energy.json; exit status 3 if they are not to be used."""
    with clear_errors(f"openmm-bg free-energy {path}"):
        import_quietly()
        from openmm_bg.cli.free_energy import FreeEnergyOptions, estimate

        result = estimate(path, output, FreeEnergyOptions(n_samples, temperature, platform.value, seed))
        if result.verdict.refused:
            raise typer.Exit(NOT_TO_BE_USED)


@app.command()
def report(
    folder: Folder = None,
    output: Output = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    platform: OnPlatform = Platform.auto,
) -> None:
    """Write the page that shows what a folder holds and says whether to believe it: report.html, summary.json."""
    with clear_errors(f"openmm-bg report {folder or output}"):
        run_folder = _open(folder, output)
        import_quietly()
        from openmm_bg.report import write_report

        page = write_report(run_folder.path, seed=seed)
        say(f"{run_folder.read_summary()['verdict_sentence']}\n{page}")


@app.command()
def info(
    path: Annotated[
        Path | None, typer.Argument(metavar="[FILE|FOLDER]", help="A model file or a run folder.", show_default=False)
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the platforms' speed.")] = False,
    platform: OnPlatform = Platform.auto,
) -> None:
    """Show versions and platforms, or what a model file or a folder holds."""
    with clear_errors("openmm-bg info"):
        import_quietly()
        from openmm_bg.cli.info import describe, describe_machine

        if path is None:
            describe_machine(measure=measure, platform=platform.value)
        else:
            describe(path)

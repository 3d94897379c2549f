"""`openmm-bg train`: a generator for the molecule of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from openmm_bg.cli.defaults import FULL
from openmm_bg.cli.terminal import Report, progress_bar, say
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.training import fit
from openmm_bg.training import train as run_training
from openmm_bg.training.data import TrajectoryData
from openmm_bg.training.history import TrainingHistory

_ROTAMER_JUMPS = 0.3  # of a generator that only walks: what it has no weights to lose for
_MOST_STEPS = 100_000  # of reduced coordinates; time, or the data held out, ends the training before


@dataclass(frozen=True)
class TrainOptions:
    """How `train` trains.

    Attributes
    ----------
    seconds : float
        Wall time of the whole recipe.
    platform : str
        "auto" or the name of an OpenMM platform, for the energies.
    seed : int
    coordinates : "full" or "reduced"
        Reduced ones are trained on the data alone.
    frozen : "thermal" or "keep"
        What becomes of the coordinates that reduced ones leave out.
    """

    seconds: float = FULL.train
    platform: str = "auto"
    seed: int = 1
    coordinates: str = "full"
    frozen: str = "keep"

    def asked(self) -> dict[str, Any]:
        """What the record of the phase keeps."""
        frozen = {"frozen": self.frozen} if self.coordinates == "reduced" else {}
        return {"seconds": self.seconds, "seed": self.seed, "coordinates": self.coordinates, **frozen}


def train(folder: RunFolder, options: TrainOptions) -> None:
    """Train on the folder's data and write generator.bg; continue what was interrupted, repeat nothing.

    Raises
    ------
    ValueError
        If the folder holds no data, a training with other settings, or samples of a generator that was removed.
    """
    asked = options.asked()
    if folder.generator_file.exists() or folder.training_folder.exists():
        # An interrupted training may be given another time to finish in.
        compared = {k: v for k, v in asked.items() if k != "seconds" or folder.is_finished("train")}
        remedy = f"remove {_of_the_generator(folder)} to train anew"
        folder.check_asked("train", compared, remedy, unless_recorded={"coordinates": "full"})
        if folder.is_finished("train") and folder.generator_file.exists():
            say(f"The generator is there: {folder.generator_file}")
            return
    else:
        folder.restart_phase("train")
    if not folder.is_finished("train"):
        _refuse_samples_of_another(folder)
    folder.update_phase("train", asked=asked)
    with folder.timed("train"):
        _train(folder, options)


def _train(folder: RunFolder, options: TrainOptions) -> None:
    molecule = folder.read_system()
    if not folder.data_file.exists():
        raise ValueError(f"{folder.data_file} is missing; run `openmm-bg simulate -o {folder.path}` first")
    data = TrajectoryData.load(folder.data_file)
    temperature = float(folder.settings["temperature"])
    reduced: dict[str, Any] = (
        {} if options.coordinates == "full" else {"coordinates": "reduced", "frozen": options.frozen}
    )
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, temperature, positions=molecule.positions, seed=options.seed, **reduced
    )
    folder.update_settings({"training_seed": options.seed})
    run = _on_data if reduced else _with_energies
    with progress_bar("Training") as report:
        history, platform = run(folder, options, generator, data, report)
    generator.save(folder.generator_file)
    history.save(folder.history_file)
    n_evaluations = history.n_energy_evaluations
    folder.update_phase("train", finished=True, n_evaluations=n_evaluations, platform=platform)
    folder.update_summary({"training_seconds": history.seconds, "training_energy_evaluations": n_evaluations})
    say(f"Trained in {history.seconds:.0f} s: {folder.generator_file}")


def _with_energies(
    folder: RunFolder, options: TrainOptions, generator: BoltzmannGenerator, data: TrajectoryData, report: Report
) -> tuple[TrainingHistory, str]:
    """Train by the default recipe; returns the platform of the energies, too."""
    system, topology = folder.read_system().system, generator.topology
    with SystemPotential(system, topology, platform=options.platform) as potential:
        _to_gpu(generator, potential.platform_name in ("CUDA", "torch"))
        history = run_training(
            generator,
            potential,
            data=data,
            max_seconds=options.seconds,
            folder=folder.training_folder,
            seed=options.seed,
            progress=lambda record: report(*_place(record, options.seconds)),
        )
        return history, potential.platform_name


def _on_data(
    folder: RunFolder, options: TrainOptions, generator: BoltzmannGenerator, data: TrajectoryData, report: Report
) -> tuple[TrainingHistory, str]:
    """Train without energies, which cost more than they teach in minutes when the molecule is a protein."""
    _to_gpu(generator, options.platform in ("auto", "CUDA"))
    history = fit(
        generator,
        data,
        max_steps=_MOST_STEPS,
        max_seconds=options.seconds,
        rotamer_jumps=_ROTAMER_JUMPS if options.frozen == "keep" else 0.0,
        folder=folder.training_folder,
        progress=lambda record: report(*_place(record, options.seconds)),
    )
    return history, str(generator.device)


def _of_the_generator(folder: RunFolder) -> str:
    """Name what a new generator would make obsolete."""
    files = (folder.generator_file, folder.training_folder, folder.chain_file, folder.generator_samples_file)
    return ", ".join(file.name for file in files if file.exists())


def _refuse_samples_of_another(folder: RunFolder) -> None:
    files = [file.name for file in (folder.chain_file, folder.generator_samples_file) if file.exists()]
    if files:
        raise ValueError(
            f"{folder.path} holds {' and '.join(files)}, sampled with a generator that was not trained here. Remove "
            "what was sampled before training another, or name another folder with --output"
        )


def _place(record: dict[str, Any], seconds: float) -> tuple[float, str]:
    """Fraction of the time that is over, and how it goes."""
    note = f"{record['stage']}: loss {record['loss']:.2f}"
    if record.get("validation") is not None:
        note += f", held-out data {record['validation']:.2f}"
    if record["ess_fraction"] is not None:
        note += f", ESS/N {record['ess_fraction']:.2f}"
    return record["seconds"] / seconds, note


def _to_gpu(generator: BoltzmannGenerator, wanted: bool) -> None:
    if wanted and torch.cuda.is_available():
        generator.to("cuda")

"""`openmm-bg train`: a generator for the molecule of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from openmm_bg.cli.defaults import FULL
from openmm_bg.cli.terminal import progress_bar, say
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.training import train as run_training
from openmm_bg.training.data import TrajectoryData


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
    """

    seconds: float = FULL.train
    platform: str = "auto"
    seed: int = 1


def train(folder: RunFolder, options: TrainOptions) -> None:
    """Train on the folder's data and write generator.bg; continue what was interrupted, repeat nothing.

    Raises
    ------
    ValueError
        If the folder holds no data, a training with other settings, or samples of a generator that was removed.
    """
    asked = {"seconds": options.seconds, "seed": options.seed}
    if folder.generator_file.exists() or folder.training_folder.exists():
        # An interrupted training may be given another time to finish in.
        compared = asked if folder.is_finished("train") else {"seed": options.seed}
        folder.check_asked("train", compared, f"remove {_of_the_generator(folder)} to train anew")
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
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, temperature, positions=molecule.positions, seed=options.seed
    )
    folder.update_settings({"training_seed": options.seed})
    with SystemPotential(molecule.system, molecule.topology, platform=options.platform) as potential:
        _to_gpu(generator, potential)
        with progress_bar("Training") as report:
            history = run_training(
                generator,
                potential,
                data=data,
                max_seconds=options.seconds,
                folder=folder.training_folder,
                seed=options.seed,
                progress=lambda record: report(*_place(record, options.seconds)),
            )
        platform = potential.platform_name
    generator.save(folder.generator_file)
    history.save(folder.history_file)
    n_evaluations = history.n_energy_evaluations
    folder.update_phase("train", finished=True, n_evaluations=n_evaluations, platform=platform)
    folder.update_summary({"training_seconds": history.seconds, "training_energy_evaluations": n_evaluations})
    say(f"Trained in {history.seconds:.0f} s: {folder.generator_file}")


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
    if record["ess_fraction"] is not None:
        note += f", ESS/N {record['ess_fraction']:.2f}"
    return record["seconds"] / seconds, note


def _to_gpu(generator: BoltzmannGenerator, potential: SystemPotential) -> None:
    if potential.platform_name in ("CUDA", "torch") and torch.cuda.is_available():
        generator.to("cuda")

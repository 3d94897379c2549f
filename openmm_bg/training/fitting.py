"""`fit` to a trajectory, or `train` with energies too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.training.checkpoint import Checkpoint
from openmm_bg.training.dataset import prepare
from openmm_bg.training.history import TrainingHistory
from openmm_bg.training.monitor import EVALUATION_SIZE
from openmm_bg.training.paper_recipe import paper_stages
from openmm_bg.training.processes import Processes
from openmm_bg.training.progress import show_progress
from openmm_bg.training.simulate import simulate
from openmm_bg.training.stages import Stage, default_stages
from openmm_bg.training.trainer import Trainer
from openmm_bg.training.wasserstein import backbone_pairs

HOT = 700.0  # K; above 800 K peptide bonds turn cis within a nanosecond
HOT_STEPS, HOT_STRIDE = 600_000, 50
_RECIPES = {"default": default_stages, "paper": paper_stages}


def fit(
    generator: BoltzmannGenerator,
    trajectory: Any,
    *,
    weights: FloatArray | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    validation_fraction: float = 0.1,
    rotamer_jumps: float = 0.0,
    folder: str | PathLike[str] | None = None,
    progress: bool | Callable[[dict[str, Any]], None] = True,
) -> TrainingHistory:
    """Fit a generator to a trajectory by maximum likelihood.

    -E_data[log p] is minimised; a part of each chain, in blocks of time, is held out, and training stops when its
    likelihood no longer rises. With reduced coordinates the torsions, which over-fit later, go on by themselves.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Changed in place.
    trajectory : path or list of paths, mdtraj.Trajectory, ndarray or TrajectoryData
        Frames of the generator's molecule; ndarrays of shape (n, n_atoms, 3) or (n_chains, n, n_atoms, 3) in nm.
    weights : ndarray, shape (n,), optional
        Weights of the frames.
    max_steps : int, optional
        Gradient steps, 2000 by default.
    max_seconds : float, optional
        Wall time.
    validation_fraction : float
        Share of each chain that is held out.
    rotamer_jumps : float
        Probability with which each side chain of a frame is shown in another rotamer. For generators of reduced
        coordinates that are to walk: 0.3 lets them propose rotamers that the frames do not have. The density is then
        no longer that of the frames, which costs a reweighted generator its weights.
    folder : path, optional
        Where a checkpoint is kept; a run that was interrupted (Ctrl-C) goes on from there.
    progress : bool or callable
        Whether to show a progress bar; or called with a dict after every logged step.

    Returns
    -------
    TrainingHistory

    Raises
    ------
    ValueError
        If the frames are empty, of another molecule or not finite, or an argument is out of range.
    OSError
        If the folder cannot be written.
    """
    _check_limits(max_seconds, None)
    steps = 2000 if max_steps is None else max_steps
    stages = _likelihood_stages(generator, steps, rotamer_jumps)
    processes = Processes.find()
    processes.check_batches(stages)
    checkpoint = None if folder is None else Checkpoint(Path(folder))
    dataset = prepare(generator, trajectory, weights, validation_fraction)
    with show_progress(progress if processes.rank == 0 else False) as report:
        return Trainer(
            generator,
            None,
            dataset,
            stages,
            max_seconds=max_seconds,
            max_evaluations=None,
            checkpoint=checkpoint,
            seed=generator._seed,
            report=report,
            processes=processes,
        ).run()


def train(
    generator: BoltzmannGenerator,
    potential: SystemPotential,
    *,
    data: Any = None,
    stages: Sequence[Stage] | Literal["default", "paper"] | None = None,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    folder: str | PathLike[str] | None = None,
    seed: int | None = None,
    evaluation_size: int = EVALUATION_SIZE,
    progress: bool | Callable[[dict[str, Any]], None] = True,
) -> TrainingHistory:
    """Train a generator for the ensemble of its molecule at its temperature.

    The default recipe learns data made at a high temperature, cools the generator to its own temperature by reverse
    KL, and refines it there, with its own importance-resampled torsions as a guard against lost basins.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Changed in place.
    potential : SystemPotential
        Energies of the same molecule.
    data : as for `fit`, optional
        TrajectoryData carries the temperature it was made at; other frames are taken to be at the generator's. None:
        molecular dynamics at 700 K from the reference structure that `from_system` was given.
    stages : sequence of Stage, "default" or "paper", optional
        The recipe; `default_stages()` by default. "paper": `paper_stages()`, for proteins with data at the generator's
        temperature.
    max_evaluations : int, optional
        Energy evaluations of training, its own monitoring included. Stages with energy losses end before they would
        exceed it.
    max_seconds : float, optional
        Wall time of training, the dynamics that makes the data not included.
    folder : path, optional
        Where data and checkpoints are kept; a run that was interrupted (Ctrl-C) goes on from there.
    seed : int, optional
        The generator's own by default.
    evaluation_size : int
        Samples of which the history's effective sample sizes and populations are taken, after each stage and every 200
        steps of those with energies. 0 for none: of a protein they take minutes.
    progress : bool or callable
        Whether to show a progress bar; or called with a dict after every logged step.

    Returns
    -------
    TrainingHistory

    Raises
    ------
    ValueError
        If data are needed and there is neither data nor a reference structure, if data or potential belong to
        another molecule, if the recipe is unknown or compares backbones of a molecule that has none, or if the folder
        holds another run.
    OSError
        If the folder cannot be written.
    """
    if potential.n_atoms != generator.n_atoms:
        raise ValueError(
            f"The potential is of {potential.n_atoms} atoms, the generator of {generator.n_atoms}; make both from the "
            "same System."
        )
    generator.check(potential.system)
    _check_limits(max_seconds, max_evaluations)
    recipe = _recipe(stages)
    if any(stage.w2 for stage in recipe):
        backbone_pairs(generator.topology)  # there must be some, before anything costs time
    if data is None and stages == "paper":
        raise ValueError(
            "The paper's recipe learns data at the generator's temperature: pass data=..., such as what "
            "`openmm_bg.training.simulate.simulate` makes. Without data there is the default recipe."
        )
    processes = Processes.find()
    processes.check_batches(recipe)
    if data is None and processes.size > 1:
        raise ValueError(
            f"Training in {processes.size} processes needs data that all of them read: make them first, with "
            "`openmm-bg simulate` or openmm_bg.training.simulate.simulate, and pass data=..."
        )
    if evaluation_size < 0:
        raise ValueError(f"evaluation_size is {evaluation_size}; expected a number of samples, or 0 for none.")
    seed = generator._seed if seed is None else seed
    root = None if folder is None else Path(folder)
    checkpoint = None if root is None else Checkpoint(root)
    if data is None:
        data = _hot_dynamics(generator, potential, root, seed)
    dataset = prepare(generator, data, None, 0.1)
    dataset.warnings.extend(_at_odds(generator, dataset.temperature, recipe))
    with show_progress(progress if processes.rank == 0 else False) as report:
        return Trainer(
            generator,
            potential,
            dataset,
            recipe,
            max_seconds=max_seconds,
            max_evaluations=max_evaluations,
            checkpoint=checkpoint,
            seed=seed,
            report=report,
            evaluation_size=evaluation_size,
            processes=processes,
        ).run()


def _recipe(stages: Sequence[Stage] | str | None) -> tuple[Stage, ...]:
    if stages is None:
        return default_stages()
    if isinstance(stages, str):
        if stages not in _RECIPES:
            raise ValueError(f"stages={stages!r} is no recipe; use {', '.join(map(repr, _RECIPES))} or Stages.")
        return _RECIPES[stages]()
    if not stages:
        raise ValueError("There are no stages to train; give at least one, or None for the default recipe.")
    return tuple(stages)


def _at_odds(generator: BoltzmannGenerator, data_temperature: float | None, recipe: tuple[Stage, ...]) -> list[str]:
    """Warn of losses in one stage that pull one density towards two temperatures."""
    target = generator.temperature._value
    if generator.config.temperature_range is not None or data_temperature is None:
        return []
    mixed = {
        stage.name: stage.temperature_at(1.0, data_temperature, target)
        for stage in recipe
        if (stage.nll or stage.w2) and stage.reverse_kl
    }
    return [
        f"Stage {name!r} fits data of {data_temperature:g} K and energies at {temperature:g} K at once: the generator "
        "ends in between. Give data of its own temperature, or separate the losses."
        for name, temperature in mixed.items()
        if not math.isclose(data_temperature, temperature, rel_tol=0.01)
    ]


def _likelihood_stages(generator: BoltzmannGenerator, steps: int, rotamer_jumps: float) -> tuple[Stage, ...]:
    if generator.reduction is None or steps < 4:
        return (
            Stage(
                "data", steps, nll=1.0, batch_size=512, patience=6, learning_rate=(1e-3, 1e-4),
                rotamer_jumps=rotamer_jumps,
            ),
        )  # fmt: skip
    return (
        Stage(
            "data", steps // 4, nll=1.0, batch_size=128, patience=2, learning_rate=(1e-3, 1e-3),
            rotamer_jumps=rotamer_jumps,
        ),
        Stage(
            "torsions", steps - steps // 4, torsion_nll=1.0, batch_size=128, patience=6, learning_rate=(2e-3, 2e-4),
            rotamer_jumps=rotamer_jumps,
        ),
    )  # fmt: skip


def _check_limits(max_seconds: float | None, max_evaluations: int | None) -> None:
    if max_seconds is not None and not max_seconds > 0.0:
        raise ValueError(f"max_seconds is {max_seconds}; expected a positive number of seconds, or None.")
    if max_evaluations is not None and max_evaluations < 1:
        raise ValueError(f"max_evaluations is {max_evaluations}; expected 1 or more, or None.")


def _hot_dynamics(generator: BoltzmannGenerator, potential: SystemPotential, root: Path | None, seed: int) -> Any:
    reference = generator.molecule.reference_positions()
    if reference is None:
        raise ValueError(
            "There are no data to train on and no structure to start molecular dynamics from: pass data=..., or build "
            "the generator with from_system(..., positions=...)."
        )
    return simulate(
        (potential.system, reference),
        HOT,
        n_steps=HOT_STEPS,
        stride=HOT_STRIDE,
        minimized=True,
        seed=seed,
        folder=None if root is None else root / "dynamics",
    )

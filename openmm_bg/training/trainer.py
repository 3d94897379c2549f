"""The loop that runs stages: schedules, early stopping, evaluations, checkpoints."""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmm_bg.generator import CHUNK, BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.training.checkpoint import Checkpoint
from openmm_bg.training.dataset import Dataset
from openmm_bg.training.energies import Energies
from openmm_bg.training.history import TrainingHistory
from openmm_bg.training.losses import BOLTZMANN, log_likelihood
from openmm_bg.training.monitor import EVALUATION_SIZE, evaluate
from openmm_bg.training.optimizer import backward, make_optimizer, one_thread_if_small
from openmm_bg.training.processes import Processes
from openmm_bg.training.stages import Stage
from openmm_bg.training.step_losses import StepLosses
from openmm_bg.training.wells import Wells, starved_wells

Report = Callable[[dict[str, Any]], None]

LOG_EVERY = 10
FIRST_CLIP, CLIP_FACTOR = 5.0, 1.5  # of the norm of the gradient; in units of its running median later on
TORSION_FACTOR = 0.3  # of the learning rate: forces on a torsion move everything behind it
CHECKPOINT_SECONDS = 20.0
MOST_SKIPPED = 100


class Trainer:
    """Runs stages on one generator.

    Parameters
    ----------
    generator : BoltzmannGenerator
    potential : SystemPotential or None
        Needed by stages with energy losses.
    dataset : Dataset
    stages : sequence of Stage
    max_seconds : float or None
        Wall time for all stages; the steps of each are cut in proportion where they would not fit.
    max_evaluations : int or None
        Energy evaluations for all stages, those of monitoring included.
    checkpoint : Checkpoint or None
        Where the state of the run is kept.
    seed : int
    report : callable or None
        Called with a record after every logged step.
    evaluation_size : int
        Samples of each evaluation; 0 for none.
    processes : Processes
        Those that share the work. The first one's seed and parameters are everybody's; it alone writes checkpoints and
        reports.
    """

    def __init__(
        self,
        generator: BoltzmannGenerator,
        potential: SystemPotential | None,
        dataset: Dataset,
        stages: tuple[Stage, ...],
        *,
        max_seconds: float | None,
        max_evaluations: int | None,
        checkpoint: Checkpoint | None,
        seed: int,
        report: Report | None,
        evaluation_size: int = EVALUATION_SIZE,
        processes: Processes | None = None,
    ) -> None:
        self.generator = generator
        self.dataset = dataset
        self.history = TrainingHistory(warnings=list(dataset.warnings))
        self._stages = stages
        self._max_seconds = max_seconds
        self._max_evaluations = max_evaluations
        self._evaluation_size = evaluation_size
        self._processes = Processes() if processes is None else processes
        self._report = report if self._processes.rank == 0 else None
        seed, generator._seed = self._processes.agree((seed, generator._seed))
        self._rng = torch.Generator().manual_seed(seed)
        self._optimizer = make_optimizer(generator)
        self._norms: deque[float] = deque(maxlen=100)
        self._checkpoint = checkpoint
        shares = dataset.weights.numpy().astype(np.float64)
        self._wells = Wells.find(dataset.circular.numpy().astype(np.float64), shares / shares.sum())
        self._energies = Energies(potential, self._processes)
        self._losses = StepLosses(generator, dataset, self._energies, self._rng, self._processes)
        self._skipped = 0  # steps in a row whose gradient was not finite
        run = {
            "molecule or flow sizes": generator._description(),
            "seed": seed,
            "stages": [asdict(stage) for stage in stages],
            "data": dataset.digest(),
        }
        self._run = json.loads(json.dumps(run))  # as a checkpoint holds it: lists for tuples
        self._share_start()
        self._stage_index, self._step = 0, 0
        self._stage_seconds = 0.0
        self._best: tuple[float, dict[str, Tensor]] | None = None
        self._since_best = 0
        self._clock = time.perf_counter()

    def run(self) -> TrainingHistory:
        """Run what is left of the stages; on Ctrl-C or an error, write a checkpoint first."""
        self._restore()
        self._clock = time.perf_counter()
        try:
            with one_thread_if_small(self.generator):
                while self._stage_index < len(self._stages):
                    self._run_stage(self._stages[self._stage_index])
                    self._save()
        except BaseException:
            self._save()
            raise
        self._finish()
        return self.history

    def _run_stage(self, stage: Stage) -> None:
        budget = self._budget(stage)
        self._losses.begin(stage)
        saved = time.perf_counter()
        while True:
            self._count_time()
            progress = self._step / stage.steps
            if budget:
                progress = max(progress, self._processes.agree(self._stage_seconds / budget))
            reason = self._reason_to_stop(stage, progress)
            if reason is not None:
                break
            record = self._take_step(stage, progress)
            self._step += 1
            if stage.patience is not None and self._step % (2 * LOG_EVERY) == 0 and len(self.dataset.validation):
                record["validation"] = self._validate()
            self._count_time()
            if self._is_logged(self._step):
                self._log(stage, progress, record)
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.perf_counter()
        if self._best is not None:
            self.generator.flow.load_state_dict(self._best[1])
        if not stage.needs_energies:  # gradients of the next losses are of another size
            self._optimizer = make_optimizer(self.generator)
        if self._energies.are_known:
            self._evaluate()
        self._count_time()
        self.history.n_energy_evaluations = self._energies.n_evaluations
        done = {"name": stage.name, "steps": self._step, "seconds": self._stage_seconds, "stopped_because": reason}
        if stage.w2:
            done["w2_baseline"] = self._losses.w2_baseline(stage)
        self.history.stages.append(done)
        self._stage_index, self._step, self._stage_seconds = self._stage_index + 1, 0, 0.0
        self._best, self._since_best = None, 0
        self._norms.clear()

    def _count_time(self) -> None:
        """Add the time since the last call to that of the stage and of the run."""
        now = time.perf_counter()
        self._stage_seconds += now - self._clock
        self.history.seconds += now - self._clock
        self._clock = now

    def _reason_to_stop(self, stage: Stage, progress: float) -> str | None:
        if stage.patience is not None and self._since_best >= stage.patience:
            return "the validation loss stopped falling"
        if self._step >= stage.steps:
            return "all steps done"
        if not self.generator.features.n_circular and not stage.trains_linear_features:
            return "there are no rotatable torsions"
        if progress >= 1.0:
            return "time is up"
        if stage.needs_energies and not self._affordable(self._losses.cost(stage, self._step) + self._evaluation_size):
            return "energy evaluations are used up"
        return None

    def _affordable(self, n_evaluations: int) -> bool:
        return self._max_evaluations is None or self._energies.n_evaluations + n_evaluations <= self._max_evaluations

    def _take_step(self, stage: Stage, progress: float) -> dict[str, Any]:
        parts, record = self._losses(stage, self._step, progress)
        if not any(part.requires_grad for part in parts.values()):  # without torsions there is no density of them
            return record
        for group in self._optimizer.param_groups:
            factor = TORSION_FACTOR if group["torsions"] and stage.needs_energies else 1.0
            group["lr"] = factor * stage.learning_rate_at(progress, self._step)
        parameters = list(self.generator.flow.parameters())
        record |= backward(parts, parameters, self._processes, apart=self._is_logged(self._step + 1))
        limit = CLIP_FACTOR * statistics.median(self._norms) if len(self._norms) >= 10 else FIRST_CLIP
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        record["gradient_norm"] = norm
        if math.isfinite(norm):
            self._norms.append(norm)
            self._optimizer.step()
            self._skipped = 0
        else:
            self._skipped += 1
            if self._skipped >= MOST_SKIPPED:
                raise ValueError(
                    f"Training diverged in stage {stage.name!r}: the gradients of {MOST_SKIPPED} steps in a row are "
                    "not finite. Start anew with a lower learning rate, or look at the data and the energies."
                )
        losses = self._processes.sum(*(float(part.detach()) for part in parts.values()))
        return record | {"loss": sum(losses)} | dict(zip(parts, losses, strict=True))

    def _evaluate(self) -> None:
        if not self._evaluation_size or not self._affordable(self._evaluation_size):
            return
        kt = BOLTZMANN * self._losses.target
        energies, wells, pool = self._energies, self._wells, self._losses.pool
        found = evaluate(self.generator, energies, kt, wells, pool, self._rng, self._evaluation_size)
        stage = self._stages[self._stage_index].name
        self.history.evaluations.append({"stage": stage, "seconds": self.history.seconds, **found})

    def _finish(self) -> None:
        if not self.generator.is_consistent:
            self.history.warnings.append(
                "Forward and inverse pass of the flow disagree on its own samples; it cannot be used. Train it anew "
                "with a lower learning rate or on more data."
            )
        if self.history.evaluations:
            if self.history.evaluations[-1]["ess_fraction"] == 0.0:
                self.history.warnings.append("No sample of the generator has a finite weight: the training failed.")
            starved = starved_wells(self.history.evaluations[-1]["populations"])
            self.history.warnings = list(dict.fromkeys([*self.history.warnings, *starved]))
        self._save()

    def _is_logged(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or step == 1

    def _log(self, stage: Stage, progress: float, record: dict[str, Any]) -> None:
        if stage.needs_energies and self._step % (20 * LOG_EVERY) == 0:
            self._evaluate()
        full = {"stage": stage.name, "step": self._step, "seconds": self.history.seconds, **record}
        full.setdefault("loss", math.nan)
        self.history.n_energy_evaluations = self._energies.n_evaluations
        self.history.steps.append(full)
        if self._report is not None:
            latest = self.history.evaluations[-1]["ess_fraction"] if self.history.evaluations else None
            self._report({**full, "progress": progress, "ess_fraction": latest, "steps": stage.steps})

    def _budget(self, stage: Stage) -> float | None:
        """Seconds of a stage: its share, by steps, of what the stages still to run have."""
        if self._max_seconds is None:
            return None
        left = max(self._max_seconds - self.history.seconds + self._stage_seconds, 1e-3)
        to_come = self._stages[self._stage_index :]
        costs = [stage.steps * stage.step_cost for stage in to_come]
        return left * costs[0] / sum(costs)

    def _validate(self) -> float:
        """Weighted loss of the held-out frames; the flow is remembered if it has never been lower in this stage."""
        total, data, device = 0.0, self.dataset, self.generator.device
        with torch.no_grad(), self.generator._held_at(self._losses.hot):
            for rows in data.validation.split(CHUNK):
                features = (data.circular[rows].to(device), data.linear[rows].to(device))
                total -= float(data.weights[rows].double() @ log_likelihood(self.generator, *features).cpu())
        loss = self._processes.agree(total / float(data.weights[data.validation].double().sum()))
        if self._best is None or loss < self._best[0]:
            self._best, self._since_best = (loss, copy.deepcopy(self.generator.flow.state_dict())), 0
        else:
            self._since_best += 1
        return loss

    def _save(self) -> None:
        if self._checkpoint is not None and self._processes.rank == 0:
            numbers, tensors = self._losses.state()
            self._checkpoint.write(
                self.generator,
                self._optimizer,
                self._rng,
                self.history,
                {
                    "stage": self._stage_index,
                    "step": self._step,
                    "stage_seconds": self._stage_seconds,
                    "evaluations": self._energies.n_evaluations,
                    "norms": list(self._norms),
                    "best_loss": None if self._best is None else self._best[0],
                    "since_best": self._since_best,
                    **numbers,
                },
                {"best": {} if self._best is None else self._best[1], **tensors},
                self._run,
            )

    def _share_start(self) -> None:
        """Let all processes begin with the parameters of the first."""
        self._processes.require_equal(self._run)
        if self._processes.size > 1:
            tensors = {name: value.cpu() for name, value in self.generator._tensors().items()}
            self.generator._load_tensors(self._processes.agree(tensors))

    def _restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self._checkpoint is None or not self._processes.agree(self._checkpoint.exists()):
            return
        self.history, place, tensors = self._checkpoint.read(self.generator, self._optimizer, self._rng, self._run)
        self._energies.before = place["evaluations"]
        self._stage_index, self._step = place["stage"], place["step"]
        self._stage_seconds = place["stage_seconds"]
        self._norms.extend(place["norms"])
        self._since_best = place["since_best"]
        if place["best_loss"] is not None:
            self._best = (place["best_loss"], tensors["best"])
        self._losses.restore(place, tensors)
        self._processes.agree(None)  # nobody writes the checkpoint before all have read it

"""The loop that runs stages: losses, schedules, early stopping, evaluations, checkpoints."""

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

from openmm_bg.density import FloatArray
from openmm_bg.flows import Flow
from openmm_bg.generator import CHUNK, BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.training.checkpoint import Checkpoint
from openmm_bg.training.dataset import Dataset
from openmm_bg.training.history import TrainingHistory
from openmm_bg.training.losses import BOLTZMANN, EnergyCap, log_likelihood, reverse_kl
from openmm_bg.training.monitor import EVALUATION_SIZE, evaluate
from openmm_bg.training.optimizer import make_optimizer, one_thread_if_small
from openmm_bg.training.pool import Pool, draw_pool
from openmm_bg.training.processes import Processes
from openmm_bg.training.stages import Stage
from openmm_bg.training.wells import Wells, starved_wells

Report = Callable[[dict[str, Any]], None]

LOG_EVERY = 10
FIRST_CLIP, CLIP_FACTOR = 5.0, 1.5  # of the norm of the gradient; in units of its running median later on
TORSION_FACTOR = 0.3  # of the learning rate: forces on a torsion move everything behind it
STEP_COSTS = {"nll": 0.35, "torsion_nll": 0.1, "reverse_kl": 0.8, "conditional_kl": 0.2, "reweighted": 0.1}  # relative
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
        processes: Processes | None = None,
    ) -> None:
        self.generator = generator
        self.dataset = dataset
        self.history = TrainingHistory(warnings=list(dataset.warnings))
        self._potential = potential
        self._stages = stages
        self._max_seconds = max_seconds
        self._max_evaluations = max_evaluations
        self._processes = Processes() if processes is None else processes
        self._report = report if self._processes.rank == 0 else None
        seed, generator._seed = self._processes.agree((seed, generator._seed))
        self._rng = torch.Generator().manual_seed(seed)
        self._optimizer = make_optimizer(generator)
        self._norms: deque[float] = deque(maxlen=100)
        self._checkpoint = checkpoint
        shares = dataset.weights.numpy().astype(np.float64)
        self._wells = Wells.find(dataset.circular.numpy().astype(np.float64), shares / shares.sum())
        self._target = generator.temperature._value
        self._hot = dataset.temperature or self._target
        self._energy_mean: float | None = None
        self._pool: Pool | None = None
        self._pool_temperature = self._target
        self._skipped = 0  # steps in a row whose gradient was not finite
        self._wide: Flow | None = None  # the flow as it was when the first stage with energies began
        self._evaluations_before = self._evaluations_elsewhere = 0  # of interrupted runs; of other processes
        self._evaluations_at_start = 0 if potential is None else potential.n_evaluations
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
        if stage.needs_energies and self._wide is None:
            with self.generator._held_at(self._hot):
                self._wide = copy.deepcopy(self.generator.flow).requires_grad_(False)
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
            if self._step % LOG_EVERY == 0 or self._step == 1 or "validation" in record:
                self._log(stage, progress, record)
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.perf_counter()
        if self._best is not None:
            self.generator.flow.load_state_dict(self._best[1])
        if not stage.needs_energies:  # gradients of the next losses are of another size
            self._optimizer = make_optimizer(self.generator)
        if self._potential is not None:
            self._evaluate()
        self._count_time()
        self.history.n_energy_evaluations = self._evaluations()
        self.history.stages.append(
            {"name": stage.name, "steps": self._step, "seconds": self._stage_seconds, "stopped_because": reason}
        )
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
        if not self.generator.features.n_circular and not (stage.nll or stage.reverse_kl or stage.conditional_kl):
            return "there are no rotatable torsions"
        if progress >= 1.0:
            return "time is up"
        if stage.needs_energies and not self._affordable(self._cost(stage) + EVALUATION_SIZE):
            return "energy evaluations are used up"
        return None

    def _cost(self, stage: Stage) -> int:
        """Energy evaluations of the next step."""
        cost = 0
        if stage.reverse_kl or stage.conditional_kl:
            cost += len(self._typical_frames()) if self._energy_mean is None else 0
        if stage.reverse_kl:
            cost += stage.batch_size
        if stage.conditional_kl:
            cost += stage.batch_size // 4
        if stage.reweighted and self._step % stage.refresh == 0:
            cost += stage.pool_size
        return cost

    def _affordable(self, n_evaluations: int) -> bool:
        return self._max_evaluations is None or self._evaluations() + n_evaluations <= self._max_evaluations

    def _take_step(self, stage: Stage, progress: float) -> dict[str, Any]:
        temperature = self._temperature(stage, progress)
        kt = BOLTZMANN * temperature
        parts: dict[str, Tensor] = {}
        record: dict[str, Any] = {"temperature": temperature}
        if stage.nll:
            rows = self.dataset.train[self._draw(self.dataset.weights[self.dataset.train], stage.batch_size)]
            rows = rows[self._processes.share(len(rows))]
            features = self._to_device(self.dataset.circular[rows], self.dataset.linear[rows])
            with self.generator._held_at(self._hot):
                parts["nll"] = -stage.nll * self._mean(log_likelihood(self.generator, *features), stage.batch_size)
        if stage.torsion_nll:
            rows = self.dataset.train[self._draw(self.dataset.weights[self.dataset.train], stage.batch_size)]
            rows = rows[self._processes.share(len(rows))]
            circular = self._to_device(self.dataset.circular[rows])[0]
            with self.generator._held_at(self._hot):
                log_prob = self.generator.flow.torsion_log_prob(circular)
                parts["torsion_nll"] = -stage.torsion_nll * self._mean(log_prob, stage.batch_size)
        if stage.reverse_kl or stage.conditional_kl:
            with self.generator._held_at(temperature):
                parts |= self._reverse_kl(stage, kt, record)
        if stage.reweighted:
            if self._step % stage.refresh == 0:
                self._pool_temperature = temperature
                with self.generator._held_at(temperature):
                    self._refresh_pool(stage, kt)
            if self._pool is not None:
                rows = self._draw(self._pool.weights, stage.batch_size)[self._processes.share(stage.batch_size)]
                with self.generator._held_at(self._pool_temperature):
                    log_prob = self.generator.flow.torsion_log_prob(self._pool.circular[rows])
                    parts["reweighted"] = -stage.reweighted * self._mean(log_prob, stage.batch_size)
        if not parts:
            return record
        loss = torch.stack([part.double() for part in parts.values()]).sum()
        if not loss.requires_grad:  # a molecule without rotatable torsions has no density of them to learn
            return record
        for group in self._optimizer.param_groups:
            factor = TORSION_FACTOR if group["torsions"] and stage.needs_energies else 1.0
            group["lr"] = factor * stage.learning_rate_at(progress, self._step)
        self._optimizer.zero_grad()
        loss.backward()
        self._processes.sum_gradients(self.generator.flow.parameters())
        limit = CLIP_FACTOR * statistics.median(self._norms) if len(self._norms) >= 10 else FIRST_CLIP
        norm = float(torch.nn.utils.clip_grad_norm_(self.generator.flow.parameters(), limit))
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
        losses = self._processes.sum(float(loss.detach()), *(float(part.detach()) for part in parts.values()))
        return record | dict(zip(("loss", *parts), losses, strict=True))

    def _temperature(self, stage: Stage, progress: float) -> float:
        """Temperature (K) of the energy losses of a step.

        A temperature-conditioned generator that has arrived at its own is trained for its whole range from there on.
        """
        temperature = stage.temperature_at(progress, self._hot, self._target)
        if self.generator.config.temperature_range is None or temperature != self._target:
            return temperature
        low, high = self.generator.config.temperature_range
        return low * (high / low) ** float(torch.rand((), generator=self._rng))

    def _reverse_kl(self, stage: Stage, kt: float, record: dict[str, Any]) -> dict[str, Tensor]:
        """Reverse KL of fresh samples, and of samples at torsions of the data; energies in one batch."""
        generator, positions, share = self.generator, [], self._processes.share
        if stage.reverse_kl:
            latent = generator.flow.sample_base(stage.batch_size, self._rng)
            positions.append(generator._decode(latent[share(len(latent))])[0])
        if stage.conditional_kl:
            rows = self.dataset.train[self._draw(self.dataset.weights[self.dataset.train], stage.batch_size // 4)]
            circular = self._to_device(self.dataset.circular[rows])[0]
            positions.append(generator._decode_given(circular, self._rng, share(len(rows))))
        sizes = [len(part) for part in positions]
        batch = torch.cat(positions)
        log_prob = generator._path_log_prob(batch)
        reduced = self._energies()(batch) / kt
        usable = torch.isfinite(reduced) & torch.isfinite(log_prob)
        own = [float(part.sum()) for part in usable.split(sizes)]
        n_finite, n_all, *n_usable = self._processes.sum(float(torch.isfinite(reduced).sum()), len(reduced), *own)
        self._count_evaluations()
        record["finite"] = n_finite / n_all
        # by equipartition, where harmonic energies at this temperature are expected to be
        mean = (self._mean_energy() - 0.5 * generator.n_dof * (BOLTZMANN * self._hot - kt)) / kt
        losses = [
            reverse_kl(own_log_prob, own_reduced, EnergyCap(), mean) * (n / max(n_together, 1.0))
            for own_log_prob, own_reduced, n, n_together in zip(
                log_prob.split(sizes), reduced.split(sizes), own, n_usable, strict=True
            )
        ]
        weights = {"reverse_kl": stage.reverse_kl, "conditional_kl": stage.conditional_kl}
        names = [name for name, weight in weights.items() if weight]
        return {name: weights[name] * loss for name, loss in zip(names, losses, strict=True)}

    def _refresh_pool(self, stage: Stage, kt: float) -> None:
        """Weigh torsions at the present temperature; keep them if the weights are even enough."""
        assert self._wide is not None  # set when the stage began
        pool = draw_pool(self.generator, self._wide, self._energy, kt, stage.pool_size, self._rng)
        pool = self._processes.agree(None if pool is None else Pool(pool.circular.cpu(), pool.weights))
        self._pool = None
        if pool is not None and pool.ess_fraction >= stage.minimum_ess:
            self._pool = Pool(pool.circular.to(self.generator.device), pool.weights)

    def _evaluate(self) -> None:
        if not self._affordable(EVALUATION_SIZE):
            return
        found = evaluate(self.generator, self._energy, BOLTZMANN * self._target, self._wells, self._pool, self._rng)
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

    def _log(self, stage: Stage, progress: float, record: dict[str, Any]) -> None:
        if stage.needs_energies and self._step % (20 * LOG_EVERY) == 0:
            self._evaluate()
        full = {"stage": stage.name, "step": self._step, "seconds": self.history.seconds, **record}
        full.setdefault("loss", math.nan)
        self.history.n_energy_evaluations = self._evaluations()
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
        costs = [s.steps * sum(c for loss, c in STEP_COSTS.items() if getattr(s, loss)) for s in to_come]
        return left * costs[0] / sum(costs)

    def _validate(self) -> float:
        """Weighted loss of the held-out frames; the flow is remembered if it has never been lower in this stage."""
        total, data = 0.0, self.dataset
        with torch.no_grad(), self.generator._held_at(self._hot):
            for rows in data.validation.split(CHUNK):
                features = self._to_device(data.circular[rows], data.linear[rows])
                total -= float(data.weights[rows].double() @ log_likelihood(self.generator, *features).cpu())
        loss = self._processes.agree(total / float(data.weights[data.validation].double().sum()))
        if self._best is None or loss < self._best[0]:
            self._best, self._since_best = (loss, copy.deepcopy(self.generator.flow.state_dict())), 0
        else:
            self._since_best += 1
        return loss

    def _draw(self, weights: Tensor, n: int) -> Tensor:
        return torch.multinomial(weights, n, replacement=True, generator=self._rng)

    def _to_device(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.generator.device) for tensor in tensors)

    def _energies(self) -> SystemPotential:
        assert self._potential is not None  # checked by train before the first stage
        return self._potential

    def _mean(self, values: Tensor, n: int) -> Tensor:
        """What this process's share adds to the mean over a batch of n."""
        return values.mean() * (len(values) / n)

    def _energy(self, positions: FloatArray) -> FloatArray:
        """Energies, kJ/mol, of positions that all processes have."""
        energies = self._processes.evaluate(self._energies().energy, positions)
        self._count_evaluations()
        return energies

    def _count_evaluations(self) -> None:
        own = self._own_evaluations()
        self._evaluations_elsewhere = round(self._processes.sum(own)[0]) - own

    def _own_evaluations(self) -> int:
        return 0 if self._potential is None else self._potential.n_evaluations - self._evaluations_at_start

    def _evaluations(self) -> int:
        return self._evaluations_before + self._own_evaluations() + self._evaluations_elsewhere

    def _mean_energy(self) -> float:
        if self._energy_mean is None:
            energies = self._energy(self._typical_frames())
            self._energy_mean = float(np.median(energies[np.isfinite(energies)]))
        return self._energy_mean

    def _typical_frames(self) -> FloatArray:
        return self.dataset.positions[:: max(1, len(self.dataset.positions) // 500)]

    def _save(self) -> None:
        if self._checkpoint is not None and self._processes.rank == 0:
            self._checkpoint.write(
                self.generator,
                self._optimizer,
                self._rng,
                self.history,
                {
                    "stage": self._stage_index,
                    "step": self._step,
                    "stage_seconds": self._stage_seconds,
                    "evaluations": self._evaluations(),
                    "energy_mean": self._energy_mean,
                    "norms": list(self._norms),
                    "best_loss": None if self._best is None else self._best[0],
                    "since_best": self._since_best,
                    "pool_temperature": self._pool_temperature,
                },
                {
                    "best": {} if self._best is None else self._best[1],
                    "pool": {} if self._pool is None else vars(self._pool),
                    "wide": {} if self._wide is None else self._wide.state_dict(),
                },
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
        self._evaluations_before = place["evaluations"]
        self._stage_index, self._step = place["stage"], place["step"]
        self._stage_seconds = place["stage_seconds"]
        self._energy_mean = place["energy_mean"]
        self._norms.extend(place["norms"])
        self._since_best = place["since_best"]
        self._pool_temperature = place.get("pool_temperature", self._target)
        if place["best_loss"] is not None:
            self._best = (place["best_loss"], tensors["best"])
        if tensors["pool"]:
            pool = tensors["pool"]
            self._pool = Pool(pool["circular"].to(self.generator.device), pool["weights"])
        if tensors["wide"]:
            with self.generator._held_at(self._hot):
                self._wide = copy.deepcopy(self.generator.flow)
            self._wide.load_state_dict(tensors["wide"])
        self._processes.agree(None)  # nobody writes the checkpoint before all have read it

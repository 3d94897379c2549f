"""The loop that runs stages: losses, schedules, early stopping, evaluations, checkpoints."""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.training.checkpoint import Checkpoint
from openmm_bg.training.dataset import Dataset
from openmm_bg.training.history import TrainingHistory
from openmm_bg.training.losses import BOLTZMANN, EnergyCap, negative_log_likelihood, reverse_kl
from openmm_bg.training.stages import Stage
from openmm_bg.training.wells import Wells

Report = Callable[[dict[str, Any]], None]

LOG_EVERY = 10
WARM_UP = 50
FIRST_CLIP, CLIP_FACTOR = 5.0, 1.5  # of the norm of the gradient; in units of its running median later on
ONE_THREAD_BELOW = 300  # degrees of freedom
TORSION_FACTOR = 0.3  # of the learning rate: forces on a torsion move everything behind it
EVALUATION_SIZE = 2048
CHECKPOINT_SECONDS = 20.0


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
        Energy evaluations for all stages.
    folder : Path or None
        Where checkpoints are kept.
    seed : int
    report : callable or None
        Called with a record after every logged step.
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
        folder: Path | None,
        seed: int,
        report: Report | None,
    ) -> None:
        self.generator = generator
        self.dataset = dataset
        self.history = TrainingHistory(warnings=list(dataset.warnings))
        self._potential = potential
        self._stages = stages
        self._max_seconds = max_seconds
        self._max_evaluations = max_evaluations
        self._report = report
        self._rng = torch.Generator().manual_seed(seed)
        self._optimizer = _optimizer(generator)
        self._norms: deque[float] = deque(maxlen=100)
        self._checkpoint = None if folder is None else Checkpoint(folder)
        self._wells = Wells.find(dataset.circular.numpy().astype(np.float64))
        self._target = generator.temperature._value
        self._hot = dataset.temperature or self._target
        self._energy_mean: float | None = None
        self._pool: tuple[Tensor, Tensor] | None = None
        self._evaluations_before = 0
        self._evaluations_at_start = 0 if potential is None else potential.n_evaluations
        run = {"molecule": generator._description(), "seed": seed, "stages": [asdict(stage) for stage in stages]}
        self._run = json.loads(json.dumps(run))  # as a checkpoint holds it: lists for tuples
        self._stage_index, self._step = 0, 0
        self._stage_seconds = 0.0

    def run(self) -> TrainingHistory:
        """Run what is left of the stages; on Ctrl-C or an error, write a checkpoint first."""
        if self._checkpoint is not None and self._checkpoint.exists():
            self._restore()
        try:
            with _threads(self.generator):
                while self._stage_index < len(self._stages):
                    self._run_stage(self._stages[self._stage_index])
                    self._stage_index, self._step, self._stage_seconds = self._stage_index + 1, 0, 0.0
                    self._save()
        except BaseException:
            self._save()
            raise
        self._finish()
        return self.history

    def _run_stage(self, stage: Stage) -> None:
        budget = self._budget(stage)
        best: tuple[float, dict[str, Tensor]] | None = None
        since_best, reason = 0, "all steps done"
        saved = time.perf_counter()
        while self._step < stage.steps:
            started = time.perf_counter()
            progress = max(self._step / stage.steps, self._stage_seconds / budget if budget else 0.0)
            if progress >= 1.0:
                reason = "time is up"
                break
            if self._max_evaluations is not None and self._evaluations() >= self._max_evaluations:
                reason = "energy evaluations are used up"
                break
            record = self._take_step(stage, progress)
            self._step += 1
            if stage.patience is not None and self._step % (2 * LOG_EVERY) == 0 and len(self.dataset.validation):
                validation = self._validation_loss()
                record["validation"] = validation
                if best is None or validation < best[0]:
                    best, since_best = (validation, copy.deepcopy(self.generator.flow.state_dict())), 0
                else:
                    since_best += 1
            elapsed = time.perf_counter() - started
            self._stage_seconds += elapsed
            self.history.seconds += elapsed
            if self._step % LOG_EVERY == 0 or self._step == 1 or "validation" in record:
                self._log(stage, progress, record)
            if stage.patience is not None and since_best >= stage.patience:
                reason = "the validation loss stopped falling"
                break
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.perf_counter()
        if best is not None:
            self.generator.flow.load_state_dict(best[1])
            self._optimizer = _optimizer(self.generator)
        self._norms.clear()
        self.history.stages.append(
            {"name": stage.name, "steps": self._step, "seconds": self._stage_seconds, "stopped_because": reason}
        )
        if self._potential is not None:
            self._evaluate()

    def _take_step(self, stage: Stage, progress: float) -> dict[str, Any]:
        temperature = self._temperature(stage, progress)
        kt = BOLTZMANN * temperature
        parts: dict[str, Tensor] = {}
        record: dict[str, Any] = {"temperature": temperature}
        if stage.nll:
            rows = self.dataset.train[self._draw(self.dataset.weights[self.dataset.train], stage.batch_size)]
            parts["nll"] = stage.nll * negative_log_likelihood(
                self.generator, *self._to_device(self.dataset.circular[rows], self.dataset.linear[rows])
            )
        if stage.reverse_kl:
            latent = self.generator.flow.sample_base(stage.batch_size, self._rng)
            positions, _ = self.generator._decode(latent)
            log_prob = self.generator._path_log_prob(positions)
            reduced = self._energies()(positions) / kt
            mean = self._mean_energy() / (BOLTZMANN * self._hot)
            parts["reverse_kl"] = stage.reverse_kl * reverse_kl(log_prob, reduced, EnergyCap(), mean)
            record["finite"] = float(torch.isfinite(reduced).double().mean())
        if stage.reweighted:
            if self._step % stage.refresh == 0:
                self._refresh_pool(stage, kt)
            if self._pool is not None:
                circular, weights = self._pool
                rows = self._draw(weights, stage.batch_size)
                parts["reweighted"] = -stage.reweighted * self.generator.flow.torsion_log_prob(circular[rows]).mean()
        if not parts:
            return record
        loss = torch.stack([part.double() for part in parts.values()]).sum()
        for group in self._optimizer.param_groups:
            group["lr"] = group["factor"] * self._learning_rate(stage, progress)
        self._optimizer.zero_grad()
        loss.backward()
        limit = CLIP_FACTOR * statistics.median(self._norms) if len(self._norms) >= 10 else FIRST_CLIP
        norm = float(torch.nn.utils.clip_grad_norm_(self.generator.flow.parameters(), limit))
        record["gradient_norm"] = norm
        if math.isfinite(norm):
            self._norms.append(norm)
            self._optimizer.step()
        return record | {"loss": float(loss.detach())} | {name: float(part.detach()) for name, part in parts.items()}

    def _temperature(self, stage: Stage, progress: float) -> float:
        start, end = (self._hot if t == "data" else t or self._target for t in stage.temperature)
        fraction = min(1.0, progress / 0.75)
        return 1.0 / ((1.0 - fraction) / start + fraction / end)

    def _learning_rate(self, stage: Stage, progress: float) -> float:
        start, end = stage.learning_rate
        warm = min(1.0, (self._step + 1) / min(WARM_UP, max(1, stage.steps // 4)))
        return warm * (end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    def _refresh_pool(self, stage: Stage, kt: float) -> None:
        """Draw samples, weigh them at the present temperature, keep them if the weights are even enough."""
        with torch.no_grad():
            latent = self.generator.flow.sample_base(stage.pool_size, self._rng)
            positions, log_prob = self.generator._decode(latent)
            energies = torch.as_tensor(self._energies().energy(positions.cpu().numpy()), device=positions.device)
            weights = torch.softmax(-energies / kt - log_prob, 0)
            effective = float(1.0 / (weights**2).sum()) / stage.pool_size
            if not effective >= stage.minimum_ess:
                self._pool = None
                return
            circular = self.generator.features.encode(self.generator.coordinates.to_internal(positions))[0]
            self._pool = (circular.float(), weights.cpu())

    def _evaluate(self) -> None:
        """Effective sample size and well populations of fresh samples at the generator's temperature."""
        latent = self.generator.flow.sample_base(EVALUATION_SIZE, self._rng)
        with torch.no_grad():
            positions, log_prob = self.generator._decode(latent)
            circular = self.generator.features.encode(self.generator.coordinates.to_internal(positions))[0]
        energies = self._energies().energy(positions.cpu().numpy())
        log_weights = -energies / (BOLTZMANN * self._target) - log_prob.cpu().numpy()
        log_weights[~np.isfinite(log_weights)] = -np.inf
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        self.history.evaluations.append(
            {
                "stage": self._stages[self._stage_index].name,
                "seconds": self.history.seconds,
                "ess_fraction": float(1.0 / (weights**2).sum() / EVALUATION_SIZE),
                "populations": self._wells.populations(circular.cpu().numpy(), weights),
            }
        )

    def _finish(self) -> None:
        if self._potential is not None and self.history.evaluations:
            for well in self.history.evaluations[-1]["populations"]:
                if well["reweighted"] > 0.005 and well["generator"] < 0.2 * well["reweighted"]:
                    self.history.warnings.append(
                        f"The generator visits torsion {well['torsion']} in [{well['low']:.2f}, {well['high']:.2f}] "
                        f"rad with {well['generator']:.4f} of its samples, the reweighted ensemble holds "
                        f"{well['reweighted']:.4f}: that basin is starved. Train longer or start from more data there."
                    )
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
        costs = [s.steps * (1.0 if s.reverse_kl and s.reweighted else 0.6 if s.reverse_kl else 0.5) for s in to_come]
        return left * costs[0] / sum(costs)

    def _validation_loss(self) -> float:
        rows = self.dataset.validation
        with torch.no_grad():
            return float(
                negative_log_likelihood(
                    self.generator, *self._to_device(self.dataset.circular[rows], self.dataset.linear[rows])
                )
            )

    def _draw(self, weights: Tensor, n: int) -> Tensor:
        return torch.multinomial(weights, n, replacement=True, generator=self._rng)

    def _to_device(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.generator.device) for tensor in tensors)

    def _energies(self) -> SystemPotential:
        assert self._potential is not None  # checked by train before the first stage
        return self._potential

    def _evaluations(self) -> int:
        done = 0 if self._potential is None else self._potential.n_evaluations - self._evaluations_at_start
        return self._evaluations_before + done

    def _mean_energy(self) -> float:
        if self._energy_mean is None:
            frames = self.dataset.positions[:: max(1, len(self.dataset.positions) // 500)]
            energies = self._energies().energy(frames)
            self._energy_mean = float(np.median(energies[np.isfinite(energies)]))
        return self._energy_mean

    def _save(self) -> None:
        if self._checkpoint is not None:
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
                },
                self._run,
            )

    def _restore(self) -> None:
        assert self._checkpoint is not None
        self.history, place = self._checkpoint.read(self.generator, self._optimizer, self._rng, self._run)
        self._evaluations_before = place["evaluations"]
        self._stage_index, self._step = place["stage"], place["step"]
        self._stage_seconds = place["stage_seconds"]


@contextmanager
def _threads(generator: BoltzmannGenerator) -> Iterator[None]:
    """One thread for a small flow: a second gains 1.2 on free cores and, spinning, loses tenfold on busy ones."""
    before = torch.get_num_threads()
    if generator.n_dof < ONE_THREAD_BELOW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _optimizer(generator: BoltzmannGenerator) -> torch.optim.Adam:
    """Adam with a smaller learning rate for the torsions' layers."""
    torsions = list(generator.flow.torsion_layers.parameters())
    linear = [*generator.flow.linear_layers.parameters(), *generator.flow.affine.parameters()]
    groups = [{"params": torsions, "factor": TORSION_FACTOR}, {"params": linear, "factor": 1.0}]
    return torch.optim.Adam([group for group in groups if group["params"]], lr=1e-3)

"""Training of a map between two states on samples of both.

The loss is the mean work in both directions, as in the mapped Bennett estimator that the map is for (Wirnsberger et
al., J. Chem. Phys. 153, 144112 (2020)).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.training.data import load_trajectory
from openmm_bg.training.history import TrainingHistory
from openmm_bg.training.losses import BOLTZMANN, EnergyCap, most_force, reverse_kl, with_capped_forces
from openmm_bg.training.maps import FlowMap
from openmm_bg.training.optimizer import make_optimizer, one_thread_if_small
from openmm_bg.training.progress import show_progress
from openmm_bg.training.stages import Stage

CLIP = 50.0  # of the norm of the gradient
VALIDATE_EVERY = 25  # steps
MOST_VALIDATION = 512  # held-out frames of each state
FEWEST_FRAMES = 20  # of each state


class PotentialAtTemperature(Protocol):
    """What the training of a map needs of a state: `EnergyState` of a SystemPotential is one."""

    @property
    def potential(self) -> Any:
        """A SystemPotential."""
        ...

    @property
    def kelvin(self) -> float:
        """Temperature in K."""
        ...


def train_map(
    flow_map: FlowMap,
    state_a: PotentialAtTemperature,
    samples_a: Any,
    state_b: PotentialAtTemperature,
    samples_b: Any,
    *,
    fraction: float = 0.5,
    n_steps: int = 1000,
    batch_size: int = 128,
    learning_rate: tuple[float, float] = (5e-4, 1e-5),
    patience: int = 8,
    max_seconds: float | None = None,
    seed: int = 0,
    progress: bool | Callable[[dict[str, Any]], None] = False,
) -> TrainingHistory:
    """Train a map to carry each of two states to the other, on a part of the samples of both.

    The mean work in both directions is minimised,

        < u_B(M(x)) - u_A(x) - ln abs det dM >_A  +  < u_A(M^-1(y)) - u_B(y) - ln abs det dM^-1 >_B,

    the symmetrised Kullback-Leibler divergence between each state and the image of the other; it is zero only if the
    map is perfect. The target's flow learns; the source's stays as it is. Every configuration used, those held out for
    early stopping included, is remembered by the map, and `targeted_free_energy` leaves it out of its estimate, so that
    both can be given the same samples.

    Parameters
    ----------
    flow_map : FlowMap
        Of two generators; changed in place. On Ctrl-C it is left with the best map found so far.
    state_a, state_b : EnergyState
        The states of its source and its target, each with a SystemPotential.
    samples_a, samples_b
        Equilibrium samples of the two states, in whatever form `load_trajectory` takes (arrays of shape
        (n, n_atoms, 3) or (n_chains, n, n_atoms, 3) in nm, an mdtraj Trajectory, files).
    fraction : float
        The first part of each chain, in time, that may be used; the rest is for the estimate. In (0, 1).
    n_steps, batch_size : int
        Gradient steps, and samples of each state in each.
    learning_rate : tuple of (float, float)
        At the start and at the end; a cosine between them.
    patience : int
        Stop after so many evaluations of the held-out fifth, one every 25 steps, without a new minimum.
    max_seconds : float, optional
        Wall time.
    seed : int
    progress : bool or callable
        Whether to show a progress bar; or called with a dict after every step.

    Returns
    -------
    TrainingHistory
        `steps` hold the loss, the sum of both mean works in kT up to a constant, and "validation" where it was
        evaluated on held-out frames.

    Raises
    ------
    ValueError
        If the states have other atoms or constraints than the map, there are too few frames, or an argument is out of
        range.
    TypeError
        If the map is not one of generators or a potential is not a SystemPotential.
    """
    source, target = flow_map.source, flow_map.target
    if not (isinstance(source, BoltzmannGenerator) and isinstance(target, BoltzmannGenerator)):
        raise TypeError("Only a map of two BoltzmannGenerators can be trained.")
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction is {fraction}; expected a number between 0 and 1, the rest is for the estimate.")
    if max_seconds is not None and not max_seconds > 0.0:
        raise ValueError(f"max_seconds is {max_seconds}; expected a positive number of seconds, or None.")
    if n_steps < 1 or batch_size < 4 or patience < 1:
        raise ValueError("n_steps and patience must be positive, and batch_size at least 4.")
    ends = (_End.prepare(source, state_a, samples_a, fraction), _End.prepare(target, state_b, samples_b, fraction))
    for end in ends:
        flow_map.remember(end.positions.numpy())
    schedule = Stage("map", n_steps, nll=1.0, learning_rate=learning_rate, batch_size=batch_size, patience=patience)
    with show_progress(progress) as report, one_thread_if_small(target), _frozen(source):
        return _MapTrainer(*ends, schedule, max_seconds, seed, report).run()


@dataclass
class _End:
    """One state of a map in training: its generator, its potential, the frames that may be used."""

    generator: BoltzmannGenerator
    potential: SystemPotential
    kt: float
    positions: Tensor
    train: Tensor
    validation: Tensor
    mean: float

    @classmethod
    def prepare(
        cls, generator: BoltzmannGenerator, state: PotentialAtTemperature, samples: Any, fraction: float
    ) -> _End:
        potential = state.potential
        if not isinstance(potential, SystemPotential):
            raise TypeError(
                f"A map is trained with gradients of the energy, for which a SystemPotential is needed; found "
                f"{type(potential).__name__}."
            )
        replace(generator.molecule, charges=None).check(potential.system)
        chains = load_trajectory(samples, generator.topology)
        n_used = math.floor(fraction * chains.shape[1])
        n_train = n_used - math.ceil(0.2 * n_used)
        if n_train * len(chains) < FEWEST_FRAMES:
            raise ValueError(
                f"{chains.shape[0] * chains.shape[1]} frames leave {n_train * len(chains)} to learn from at a fraction "
                f"of {fraction}; at least {FEWEST_FRAMES} are needed."
            )
        used = chains[:, :n_used].reshape(-1, *chains.shape[2:])
        rows = torch.arange(len(used)).reshape(len(chains), n_used)
        held_out = rows[:, n_train:].flatten()
        kt = BOLTZMANN * state.kelvin
        positions = torch.as_tensor(np.ascontiguousarray(used))
        energies = potential.energy(used[:: max(1, len(used) // MOST_VALIDATION)])
        mean = float(np.median(energies[np.isfinite(energies)])) / kt
        held_out = held_out[:: max(1, len(held_out) // MOST_VALIDATION)]
        return cls(generator, potential, kt, positions, rows[:, :n_train].flatten(), held_out, mean)

    def work(self, latent: Tensor) -> Tensor:
        """Mean of u + log p of what this end's generator makes of latents: its part of the work, differentiable."""
        positions, log_prob = self.generator._decode(latent)
        reduced = with_capped_forces(lambda x: self.potential(x) / self.kt, positions, most_force(self.kt))
        return reverse_kl(log_prob, reduced, EnergyCap(), self.mean)


class _MapTrainer:
    """The loop of `train_map`."""

    def __init__(
        self,
        a: _End,
        b: _End,
        schedule: Stage,
        max_seconds: float | None,
        seed: int,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._a, self._b = a, b
        self._schedule = schedule
        self._max_seconds = max_seconds
        self._report = report
        self._rng = torch.Generator().manual_seed(seed)
        self._latent_a = self._latents(a)  # the source does not learn: once and for all
        self._best: tuple[float, dict[str, Tensor]] = (math.inf, copy.deepcopy(b.generator.flow.state_dict()))
        self._since_best = 0

    def run(self) -> TrainingHistory:
        flow, schedule = self._b.generator.flow, self._schedule
        optimizer = make_optimizer(self._b.generator)
        history = TrainingHistory()
        before = self._evaluations()
        begin = time.perf_counter()
        reason = "all steps done"
        try:
            for step in range(schedule.steps + 1):
                record: dict[str, Any] = {"stage": "map", "step": step, "loss": math.nan}
                if step % VALIDATE_EVERY == 0 or step == schedule.steps:
                    record["validation"] = self._validate()
                seconds = time.perf_counter() - begin
                late = self._max_seconds is not None and seconds > self._max_seconds
                stalled = schedule.patience is not None and self._since_best >= schedule.patience
                if step < schedule.steps and not late and not stalled:
                    used = 0.0 if self._max_seconds is None else seconds / self._max_seconds
                    record |= self._take_step(optimizer, step, max(step / schedule.steps, used))
                history.steps.append(record | {"seconds": time.perf_counter() - begin})
                if self._report is not None:
                    progress = {"progress": step / schedule.steps, "steps": schedule.steps, "ess_fraction": None}
                    self._report(history.steps[-1] | progress)
                if late or stalled:
                    reason = "time is up" if late else "the work on held-out frames stopped falling"
                    break
        finally:
            flow.load_state_dict(self._best[1])
        history.seconds = time.perf_counter() - begin
        history.n_energy_evaluations = self._evaluations() - before
        history.stages.append({"name": "map", "steps": step, "seconds": history.seconds, "stopped_because": reason})
        return history

    def _take_step(self, optimizer: torch.optim.Adam, step: int, progress: float) -> dict[str, Any]:
        rate = self._schedule.learning_rate_at(progress, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(*(self._draw(end.train) for end in (self._a, self._b)))
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self._b.generator.flow.parameters(), CLIP))
        if math.isfinite(norm):
            optimizer.step()
        return {"loss": float(loss.detach()), "gradient_norm": norm, "learning_rate": rate}

    def _draw(self, rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (self._schedule.batch_size,), generator=self._rng)]

    def _loss(self, rows_a: Tensor, rows_b: Tensor) -> Tensor:
        """Sum of the mean works of both directions, less what the map cannot change."""
        forward = self._b.work(self._latent_a[rows_a])
        positions = self._b.positions[rows_b].to(self._b.generator.device)
        latent, log_prob = self._b.generator._encode(positions, torch.float32)
        known = torch.isfinite(log_prob)
        return forward + self._a.work(latent[known]) - log_prob[known].mean()

    def _validate(self) -> float:
        with torch.no_grad():
            loss = float(self._loss(self._a.validation, self._b.validation))
        if loss < self._best[0]:
            self._best, self._since_best = (loss, copy.deepcopy(self._b.generator.flow.state_dict())), 0
        else:
            self._since_best += 1
        return loss

    def _latents(self, end: _End) -> Tensor:
        with torch.no_grad():
            positions = end.positions.to(end.generator.device)
            return torch.cat([end.generator._encode(part, torch.float32)[0] for part in positions.split(4096)])

    def _evaluations(self) -> int:
        return self._a.potential.n_evaluations + self._b.potential.n_evaluations


@contextmanager
def _frozen(generator: BoltzmannGenerator) -> Iterator[None]:
    generator.flow.requires_grad_(False)
    try:
        yield
    finally:
        generator.flow.requires_grad_(True)

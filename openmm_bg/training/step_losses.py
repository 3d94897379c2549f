"""The losses of one step of training, and what they keep from step to step."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmm_bg.density import FloatArray
from openmm_bg.flows import Flow, SplitFlow
from openmm_bg.flows.frozen import FlowWithFrozen
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.training.dataset import Dataset
from openmm_bg.training.energies import Energies
from openmm_bg.training.losses import BOLTZMANN, EnergyCap, log_likelihood, most_force, reverse_kl, with_capped_forces
from openmm_bg.training.pool import Pool, draw_pool
from openmm_bg.training.processes import Processes
from openmm_bg.training.rotamer_jumps import RotamerJumps
from openmm_bg.training.stages import Stage
from openmm_bg.training.wasserstein import backbone_pairs, distances, w2_baseline, wasserstein_2

CAP = EnergyCap()
MOST_PAIRS = 2048  # of backbone atoms in a step, drawn from all; sorting more costs more than the flow
START_DRAWS = 20_000  # of frames, by their weights, from whose torsions a flow starts
START_FROM = 100  # frames or more: fewer say little of a distribution
BASELINES = 4  # pairs of batches of the data that are compared


class StepLosses:
    """Draws batches and returns their losses.

    Parameters
    ----------
    generator : BoltzmannGenerator
    dataset : Dataset
    energies : Energies
    rng : torch.Generator
        The same in all processes.
    processes : Processes

    Attributes
    ----------
    target, hot : float
        Temperatures (K) of the generator and of the data.
    pool : Pool or None
        The resampled torsions of the loss `reweighted`.
    """

    def __init__(
        self,
        generator: BoltzmannGenerator,
        dataset: Dataset,
        energies: Energies,
        rng: torch.Generator,
        processes: Processes,
    ) -> None:
        self.target = generator.temperature._value
        self.hot = dataset.temperature or self.target
        self.pool: Pool | None = None
        self._generator = generator
        self._dataset = dataset
        self._energies = energies
        self._rng = rng
        self._processes = processes
        self._pool_temperature = self.target
        self._wide: Flow | None = None  # the flow as it was when the first stage with energies began
        self._energy_mean: float | None = None
        self._pairs: Tensor | None = None  # of backbone atoms
        self._jumps: RotamerJumps | None = None

    def begin(self, stage: Stage) -> None:
        """Prepare for a stage.

        Raises
        ------
        ValueError
            If the stage compares backbones and the molecule has none, or turns side chains and there are none.
        """
        if stage.rotamer_jumps and self._jumps is None:
            self._jumps = RotamerJumps(self._generator)
        self._start(stage)
        if stage.needs_energies and self._wide is None:
            with self._generator._held_at(self.hot):
                self._wide = copy.deepcopy(self._generator.flow).requires_grad_(False)
        if stage.w2 and self._pairs is None:
            self._pairs = backbone_pairs(self._generator.topology).to(self._generator.device)

    def _start(self, stage: Stage) -> None:
        """Let a new split flow start from the distributions of single torsions, as the stage shows them."""
        flow = self._generator.flow
        flow = flow.generated if isinstance(flow, FlowWithFrozen) else flow
        n_frames = len(self._dataset.train)
        if not isinstance(flow, SplitFlow) or not flow.is_new or n_frames < START_FROM:
            return
        rng = torch.Generator().manual_seed(0)
        flow.start_from(self._torsions(self._draw_frames(START_DRAWS, rng), stage, rng), n_frames)
        if self._processes.size > 1:  # machines round differently
            tensors = {name: value.cpu() for name, value in flow.state_dict().items()}
            flow.load_state_dict(self._processes.agree(tensors))

    def cost(self, stage: Stage, step: int) -> int:
        """Energy evaluations of a step."""
        cost = 0
        if stage.reverse_kl or stage.conditional_kl:
            cost += len(self._typical_frames()) if self._energy_mean is None else 0
        if stage.reverse_kl:
            cost += stage.batch_size
        if stage.conditional_kl:
            cost += stage.batch_size // 4
        if stage.reweighted and step % stage.refresh == 0:
            cost += stage.pool_size
        return cost

    def __call__(self, stage: Stage, step: int, progress: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Losses of a step by name, weights included, this process's part of each; and what to record of the batch."""
        temperature = self._temperature(stage, progress)
        record: dict[str, Any] = {"temperature": temperature}
        parts: dict[str, Tensor] = {}
        if stage.nll:
            rows = self._share(self._draw_frames(stage.batch_size))
            features = self._to_device(self._torsions(rows, stage), self._dataset.linear[rows])
            with self._generator._held_at(self.hot):
                parts["nll"] = -stage.nll * self._mean(log_likelihood(self._generator, *features), stage.batch_size)
        if stage.torsion_nll:
            rows = self._share(self._draw_frames(stage.batch_size))
            circular = self._to_device(self._torsions(rows, stage))[0]
            with self._generator._held_at(self.hot):
                log_prob = self._generator.flow.torsion_log_prob(circular)
                parts["torsion_nll"] = -stage.torsion_nll * self._mean(log_prob, stage.batch_size)
        samples = None
        if stage.reverse_kl or stage.conditional_kl:
            with self._generator._held_at(temperature):
                losses, samples = self._reverse_kl(stage, BOLTZMANN * temperature, record)
                parts |= losses
        if stage.w2:
            if self._generator.config.temperature_range is not None and temperature != self.hot:
                samples = None  # of another temperature than the data
            with self._generator._held_at(self.hot):
                parts["w2"] = stage.w2 * self._w2(self._sampled(stage) if samples is None else samples, stage)
        if stage.reweighted:
            if step % stage.refresh == 0:
                self._refresh_pool(stage, temperature)
            if self.pool is not None:
                rows = self._share(self._draw(self.pool.weights, stage.batch_size))
                with self._generator._held_at(self._pool_temperature):
                    log_prob = self._generator.flow.torsion_log_prob(self.pool.circular[rows])
                    parts["reweighted"] = -stage.reweighted * self._mean(log_prob, stage.batch_size)
        return parts, record

    def w2_baseline(self, stage: Stage) -> float:
        """W2 (nm) of two batches of the data, on average: what the loss of a perfect generator comes to."""
        train, weights = self._dataset.train.numpy(), self._dataset.weights.double().numpy()
        pairs = self._some_pairs(backbone_pairs(self._generator.topology), torch.Generator().manual_seed(0))
        positions = self._dataset.positions[train]
        found = w2_baseline(
            positions,
            pairs,
            stage.batch_size,
            weights=weights[train],
            n_repeats=BASELINES,
            rng=np.random.default_rng(0),
        )
        return found[0]

    def state(self) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """Plain data and tensors, by part, from which `restore` goes on."""
        numbers = {"energy_mean": self._energy_mean, "pool_temperature": self._pool_temperature}
        return numbers, {
            "pool": {} if self.pool is None else vars(self.pool),
            "wide": {} if self._wide is None else self._wide.state_dict(),
        }

    def restore(self, numbers: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        """Take what `state` gave; other entries are ignored."""
        self._energy_mean = numbers["energy_mean"]
        self._pool_temperature = numbers["pool_temperature"]
        if pool := tensors["pool"]:
            self.pool = Pool(pool["circular"].to(self._generator.device), pool["weights"])
        if tensors["wide"]:
            with self._generator._held_at(self.hot):
                self._wide = copy.deepcopy(self._generator.flow).requires_grad_(False)
            self._wide.load_state_dict(tensors["wide"])

    def _temperature(self, stage: Stage, progress: float) -> float:
        """Temperature (K) of the energy losses of a step.

        A temperature-conditioned generator that has arrived at its own is trained for its whole range from there on.
        """
        temperature = stage.temperature_at(progress, self.hot, self.target)
        if self._generator.config.temperature_range is None or temperature != self.target:
            return temperature
        low, high = self._generator.config.temperature_range
        return low * (high / low) ** float(torch.rand((), generator=self._rng))

    def _torsions(self, rows: Tensor, stage: Stage, rng: torch.Generator | None = None) -> Tensor:
        """Those of frames of the data, some of their side chains turned where the stage asks for it."""
        circular = self._dataset.circular[rows]
        if stage.rotamer_jumps and self._jumps is not None:
            circular = self._jumps(circular, stage.rotamer_jumps, rng or self._rng)
        return circular

    def _sampled(self, stage: Stage) -> Tensor:
        """Positions of fresh samples, this process's share of a batch."""
        latent = self._generator.flow.sample_base(stage.batch_size, self._rng)
        return self._generator._decode(self._share(latent))[0]

    def _reverse_kl(self, stage: Stage, kt: float, record: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Reverse KL of fresh samples, and of samples at torsions of the data, energies in one batch; the former."""
        positions = {}
        if stage.reverse_kl:
            positions["reverse_kl"] = self._sampled(stage)
        if stage.conditional_kl:
            rows = self._draw_frames(stage.batch_size // 4)
            circular = self._to_device(self._dataset.circular[rows])[0]
            own = self._processes.share(len(rows))
            positions["conditional_kl"] = self._generator._decode_given(circular, self._rng, own)
        sizes = [len(part) for part in positions.values()]
        batch = torch.cat(list(positions.values()))
        log_prob = self._generator._path_log_prob(batch)
        reduced = with_capped_forces(lambda x: self._energies.of_share(x) / kt, batch, most_force(kt))
        self._energies.count()
        # by equipartition, where harmonic energies at this temperature are expected to be
        mean = (self._mean_energy() - 0.5 * self._generator.n_dof * (BOLTZMANN * self.hot - kt)) / kt
        finite = torch.isfinite(reduced)
        usable = [float(part.sum()) for part in (finite & torch.isfinite(log_prob)).split(sizes)]
        counts = float(finite.sum()), float((finite & (reduced > mean + CAP.start)).sum()), len(reduced)
        n_finite, n_above, n_all, *n_usable = self._processes.sum(*counts, *usable)
        record |= {"finite": n_finite / n_all, "above_cap": n_above / n_all}
        losses = {}
        split = zip(positions, log_prob.split(sizes), reduced.split(sizes), usable, n_usable, strict=True)
        for name, own_log_prob, own_reduced, n, n_together in split:
            loss = reverse_kl(own_log_prob, own_reduced, CAP, mean) * (n / max(n_together, 1.0))
            losses[name] = getattr(stage, name) * loss
        return losses, positions.get("reverse_kl")

    def _w2(self, samples: Tensor, stage: Stage) -> Tensor:
        """W2 between the samples of all processes and a batch of frames; here its part by this process's samples."""
        assert self._pairs is not None  # set when the stage began
        pairs = self._some_pairs(self._pairs, self._rng)
        frames = torch.as_tensor(self._dataset.positions[self._draw_frames(stage.batch_size).numpy()])
        generated = self._processes.join(distances(samples, pairs).T).T
        w2 = wasserstein_2(generated, distances(self._to_device(frames)[0], pairs)).mean()
        return w2 - (1.0 - 1.0 / self._processes.size) * w2.detach()  # values add up to w2, gradients to its own

    @staticmethod
    def _some_pairs(pairs: Tensor, rng: torch.Generator) -> Tensor:
        if len(pairs) <= MOST_PAIRS:
            return pairs
        return pairs[torch.randperm(len(pairs), generator=rng)[:MOST_PAIRS].to(pairs.device)]

    def _refresh_pool(self, stage: Stage, temperature: float) -> None:
        """Weigh torsions at the present temperature; keep them if the weights are even enough."""
        assert self._wide is not None  # set when the stage began
        self._pool_temperature = temperature
        kt = BOLTZMANN * temperature
        with self._generator._held_at(temperature):
            pool = draw_pool(self._generator, self._wide, self._energies, kt, stage.pool_size, self._rng)
        pool = self._processes.agree(None if pool is None else Pool(pool.circular.cpu(), pool.weights))
        self.pool = None
        if pool is not None and pool.ess_fraction >= stage.minimum_ess:
            self.pool = Pool(pool.circular.to(self._generator.device), pool.weights)

    def _mean_energy(self) -> float:
        if self._energy_mean is None:
            energies = self._energies(self._typical_frames())
            self._energy_mean = float(np.median(energies[np.isfinite(energies)]))
        return self._energy_mean

    def _typical_frames(self) -> FloatArray:
        return self._dataset.positions[:: max(1, len(self._dataset.positions) // 500)]

    def _draw_frames(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Rows of frames to learn from, drawn by their weights."""
        train = self._dataset.train
        return train[self._draw(self._dataset.weights[train], n, rng)]

    def _draw(self, weights: Tensor, n: int, rng: torch.Generator | None = None) -> Tensor:
        return torch.multinomial(weights, n, replacement=True, generator=rng or self._rng)

    def _share(self, rows: Tensor) -> Tensor:
        return rows[self._processes.share(len(rows))]

    def _to_device(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self._generator.device) for tensor in tensors)

    def _mean(self, values: Tensor, n: int) -> Tensor:
        """What this process's share adds to the mean over a batch of n."""
        return values.mean() * (len(values) / n)

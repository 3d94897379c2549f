"""The spline flow: rotatable torsions by circular splines, then everything else given the torsions.

p(features) = p(torsions) p(linear | torsions). The torsions are a stack of couplings on the torus with a uniform
base. The linear features, nearly Gaussian given the torsions, are a Gaussian whose mean and full covariance within a
local group depend on the torsions, refined by a few spline couplings.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from openmm_bg.flows.affine import ConditionalAffine
from openmm_bg.flows.couplings import HARMONICS, CircularCoupling, LinearCoupling, circular_embedding


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of a spline flow.

    Attributes
    ----------
    torsion_layers, torsion_bins, torsion_hidden : int
        Couplings among torsions, bins of their splines, width of their conditioners.
    linear_layers, linear_bins, linear_hidden : int
        The same for the couplings of linear features.
    affine_hidden : int
        Width of the conditioner of means and covariances.
    linear_bound : float
        Half width of the splines of linear features, in standard deviations; the identity outside.
    group_size : int
        Largest number of linear features whose covariance is modelled in full.
    torsion_group_size : int
        Largest number of torsions that share one conditioner.
    temperature_range : tuple of (float, float), optional
        In K: the density depends on the temperature, and is meant to be trained between these two. None: one density.
    """

    torsion_layers: int = 4
    torsion_bins: int = 16
    torsion_hidden: int = 64
    linear_layers: int = 2
    linear_bins: int = 8
    linear_hidden: int = 64
    affine_hidden: int = 128
    linear_bound: float = 5.0
    group_size: int = 64
    torsion_group_size: int = 16
    temperature_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.temperature_range is None:
            return
        low, high = (float(temperature) for temperature in self.temperature_range)
        if not 0.0 < low < high < math.inf:
            raise ValueError(f"temperature_range is {self.temperature_range}; expected two rising temperatures in K.")
        object.__setattr__(self, "temperature_range", (low, high))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the model file."""
        described = asdict(self)
        if self.temperature_range is None:  # files of generators for one temperature have no such entry
            del described["temperature_range"]
        return described


class SplineFlow(nn.Module):
    """A normalised density over (torsions, linear features).

    Parameters
    ----------
    torsion_places, linear_places : list of int
        Where each feature sits along the molecule (an atom index): what is near in it is local to a conditioner.
    config : FlowConfig
    seed : int
        Seed of the initial weights.
    """

    def __init__(self, torsion_places: list[int], linear_places: list[int], config: FlowConfig, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.n_circular, self.n_linear = len(torsion_places), len(linear_places)
        self._conditions = [] if config.temperature_range is None else [2 * HARMONICS * self.n_circular]
        self._log_ratio = 0.0
        order = sorted(range(self.n_linear), key=lambda i: (linear_places[i], i))
        places = [linear_places[i] for i in order]
        self.register_buffer("_order", torch.tensor(order, dtype=torch.long), persistent=False)
        self.register_buffer("_rank", torch.argsort(torch.tensor(order, dtype=torch.long)), persistent=False)
        groups = _contiguous_groups(places, config.group_size)
        reach = [_reach([places[i] for i in group]) for group in groups]
        near_torsions = [_within(torsion_places, *span) for span in reach]
        self.torsion_layers = nn.ModuleList(
            self._torsion_layer(torsion_places, layer, generator)
            for layer in range(config.torsion_layers if self.n_circular else 0)
        )
        self.linear_layers = nn.ModuleList()
        for layer in range(config.linear_layers if self.n_linear > 1 else 0):
            active = [[i for i in group if (i // 2 ** (layer // 2) + layer) % 2] for group in groups]
            moved = {i for block in active for i in block}
            passive = [[i for i in _within(places, *span) if i not in moved] for span in reach]
            self.linear_layers.append(
                LinearCoupling(
                    active,
                    passive,
                    near_torsions,
                    self.n_circular,
                    config.linear_bins,
                    config.linear_hidden,
                    config.linear_bound,
                    generator,
                    self._conditions,
                )
            )
        self.affine = ConditionalAffine(
            [len(group) for group in groups], near_torsions, config.affine_hidden, generator, self._conditions
        )

    _order: Tensor
    _rank: Tensor

    def _torsion_layer(self, places: list[int], layer: int, generator: torch.Generator) -> CircularCoupling:
        active = _alternate(self.n_circular, layer)
        blocks = _contiguous_groups([places[i] for i in active], self.config.torsion_group_size)
        members = [[active[i] for i in block] for block in blocks]
        seen = [
            [i for i in _within(places, *_reach([places[j] for j in block])) if i not in active] for block in members
        ]
        return CircularCoupling(
            members, seen, self.config.torsion_bins, self.config.torsion_hidden, generator, self._conditions
        )

    def set_temperature(self, temperature: float) -> None:
        """Let a flow with a `temperature_range` be the density of a temperature in K, in the range or not.

        Linear features are as wide as those of the middle of the range times the root of the ratio of temperatures,
        as of harmonic oscillators; what else depends on the temperature, the conditioners learn.
        """
        assert self.config.temperature_range is not None
        self._log_ratio = math.log(temperature) - 0.5 * sum(map(math.log, self.config.temperature_range))

    def _condition(self, like: Tensor) -> Tensor | None:
        """The temperature as conditioners see it beside the torsions, a row for as many configurations."""
        if self.config.temperature_range is None:
            return None
        low, high = self.config.temperature_range
        return like.new_full((1, like.shape[1]), 2.0 * self._log_ratio / math.log(high / low))

    @torch.no_grad()
    def standardise(self, linear: Tensor) -> None:
        """Take the fixed whitening of linear features from data, shape (n, n_linear), at the flow's temperature."""
        if self.n_linear:
            linear = linear.T[self._order]
            mean = linear.mean(1, keepdim=True)
            self.affine.standardise(mean + (linear - mean) * math.exp(-0.5 * self._log_ratio))

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, shape (n, n_circular + n_linear), to torsions, linear features and ln |d features / d latent|."""
        torsions, linear = latent.T.contiguous().split([self.n_circular, self.n_linear])
        log_det = latent.new_zeros(len(latent))
        condition = self._condition(torsions)
        for layer in self.torsion_layers:
            torsions, change = layer(torsions, condition)
            log_det = log_det + change
        linear, change = self._linear_given(torsions, linear)
        return torsions.T, linear[self._rank].T, log_det + change

    def linear_given(self, torsions: Tensor, latent: Tensor) -> Tensor:
        """Linear features of their latents, shape (n, n_linear), at given torsions, shape (n, n_circular)."""
        return self._linear_given(torsions.T.contiguous(), latent.T.contiguous())[0][self._rank].T

    def _linear_given(self, torsions: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
        log_det = linear.new_zeros(linear.shape[1])
        if self.n_linear:
            embedded = circular_embedding(torsions, self._condition(torsions))
            for layer in self.linear_layers:
                linear, change = layer(linear, embedded)
                log_det = log_det + change
            linear, change = self.affine(linear * math.exp(0.5 * self._log_ratio), embedded)
            log_det = log_det + change + 0.5 * self.n_linear * self._log_ratio
        return linear, log_det

    def inverse(self, torsions: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
        """Features, shapes (n, n_circular) and (n, n_linear), to latents and ln |d latent / d features|."""
        torsions, linear = torsions.T.contiguous(), linear.T[self._order]
        log_det = torsions.new_zeros(torsions.shape[1])
        if self.n_linear:
            embedded = circular_embedding(torsions, self._condition(torsions))
            linear, log_det = self.affine.inverse(linear, embedded)
            linear = linear * math.exp(-0.5 * self._log_ratio)
            log_det = log_det - 0.5 * self.n_linear * self._log_ratio
            for layer in reversed(list(self.linear_layers)):
                assert isinstance(layer, LinearCoupling)
                linear, change = layer.inverse(linear, embedded)
                log_det = log_det + change
        torsions, change = self._invert_torsions(torsions)
        return torch.cat([torsions, linear]).T, log_det + change

    def torsion_log_prob(self, torsions: Tensor) -> Tensor:
        """Log of the marginal density of the torsions, shape (n, n_circular) to (n,)."""
        _, log_det = self._invert_torsions(torsions.T.contiguous())
        return log_det - self.n_circular * math.log(2.0 * math.pi)

    def _invert_torsions(self, torsions: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torsions.new_zeros(torsions.shape[1])
        condition = self._condition(torsions)
        for layer in reversed(list(self.torsion_layers)):
            assert isinstance(layer, CircularCoupling)
            torsions, change = layer.inverse(torsions, condition)
            log_det = log_det + change
        return torsions, log_det

    def base_log_prob(self, latent: Tensor) -> Tensor:
        """Log density of the base: uniform on circles, standard normal otherwise."""
        linear = latent[:, self.n_circular :].double()
        return (
            -self.n_circular * math.log(2.0 * math.pi)
            - 0.5 * (linear**2).sum(-1)
            - 0.5 * self.n_linear * math.log(2.0 * math.pi)
        )

    def sample_base(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents drawn from the base, shape (n, n_circular + n_linear)."""
        device = self.affine.marginal.device
        circular = (2.0 * torch.rand(n, self.n_circular, generator=generator) - 1.0) * math.pi
        return torch.cat([circular, torch.randn(n, self.n_linear, generator=generator)], -1).to(device)


def _alternate(n: int, layer: int) -> list[int]:
    """Active columns of a layer: halves by each binary digit of the index in turn, then their complements."""
    digits = max(1, (n - 1).bit_length())
    digit, flip = (layer // 2) % digits, layer % 2
    active = [i for i in range(n) if ((i >> digit) & 1) != flip]
    return active or list(range(n))


def _contiguous_groups(places: list[int], size: int) -> list[list[int]]:
    """Columns sorted along the molecule and cut into groups of nearly equal size."""
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    n_groups = max(1, math.ceil(len(order) / size))
    bounds = [round(k * len(order) / n_groups) for k in range(n_groups + 1)]
    return [order[start:stop] for start, stop in pairwise(bounds)]


def _reach(places: list[int]) -> tuple[int, int]:
    """The span of places widened by a margin of about one residue and a half."""
    margin = 24
    return (min(places, default=0) - margin, max(places, default=0) + margin)


def _within(places: list[int], low: int, high: int) -> list[int]:
    return [i for i, place in enumerate(places) if low <= place <= high]


def default_config(n_dof: int) -> FlowConfig:
    """Sizes for a molecule with that many degrees of freedom."""
    if n_dof <= 12:
        return FlowConfig(torsion_hidden=32, linear_hidden=32, affine_hidden=32)
    return FlowConfig()

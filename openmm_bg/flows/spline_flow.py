"""The spline flow: rotatable torsions by circular splines, then everything else given the torsions.

p(features) = p(torsions) p(linear | torsions). The torsions are a stack of couplings on the torus with a uniform
base. The linear features, nearly Gaussian given the torsions, are a Gaussian whose mean and full covariance within a
local group depend on the torsions, refined by a few spline couplings.

With a layout that is split, p(torsions) = p(backbone) times, for each residue, p(its side chain | backbone nearby), and
the linear features see the torsions of the backbone only: a side chain's latents then move nothing but that side chain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openmm_bg.base import Base, circle_log_normalisation
from openmm_bg.flows.affine import ConditionalAffine
from openmm_bg.flows.couplings import HARMONICS, CircularCoupling, LinearCoupling, circular_embedding
from openmm_bg.flows.layout import Layout, Place

NEIGHBOURS = 1  # residues on either side whose backbone a side chain sees


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
    concentration : float
        Of the von Mises distribution that latents on circles have; zero is the uniform one.
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
    concentration: float = 0.0
    temperature_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.concentration < 500.0:
            raise ValueError(f"concentration is {self.concentration}; expected a number from 0 (uniform) to 500.")
        if self.temperature_range is None:
            return
        low, high = (float(temperature) for temperature in self.temperature_range)
        if not 0.0 < low < high < math.inf:
            raise ValueError(f"temperature_range is {self.temperature_range}; expected two rising temperatures in K.")
        object.__setattr__(self, "temperature_range", (low, high))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the model file."""
        described = asdict(self)
        # files of generators for one temperature, and on uniform circles, have no such entries
        if self.temperature_range is None:
            del described["temperature_range"]
        if not self.concentration:
            del described["concentration"]
        return described


class SplineFlow(nn.Module):
    """A normalised density over (torsions, linear features).

    Parameters
    ----------
    layout : Layout
        Where each feature sits along the molecule: what is near in it is local to a conditioner.
    config : FlowConfig
    seed : int
        Seed of the initial weights.
    """

    def __init__(self, layout: Layout, config: FlowConfig, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.layout = layout
        self.n_circular, self.n_linear = len(layout.circular), len(layout.linear)
        self.base = Base(self.n_circular, self.n_linear, config.concentration)
        self._conditions = [] if config.temperature_range is None else [2 * HARMONICS * self.n_circular]
        self._log_ratio = 0.0
        torsion_atoms = [place.atom for place in layout.circular]
        order = sorted(range(self.n_linear), key=lambda i: (layout.linear[i].atom, i))
        atoms = [layout.linear[i].atom for i in order]
        self.register_buffer("_order", torch.tensor(order, dtype=torch.long), persistent=False)
        self.register_buffer("_rank", torch.argsort(torch.tensor(order, dtype=torch.long)), persistent=False)
        seeing = [i for i in range(self.n_circular) if not (layout.split and layout.circular[i].side_chain)]
        groups = _contiguous_groups(atoms, config.group_size)
        reach = [_reach([atoms[i] for i in group]) for group in groups]
        near_torsions = [[i for i in _within(torsion_atoms, *span) if i in set(seeing)] for span in reach]
        n_layers = config.torsion_layers
        self.torsion_layers = nn.ModuleList(
            self._torsion_layer(seeing, layer, generator) for layer in range(n_layers if seeing else 0)
        )
        if len(seeing) < self.n_circular:
            self.torsion_layers.extend(self._side_chain_layer(layer, generator) for layer in range(n_layers))
        self.linear_layers = nn.ModuleList()
        for layer in range(config.linear_layers if self.n_linear > 1 else 0):
            active = [[i for i in group if (i // 2 ** (layer // 2) + layer) % 2] for group in groups]
            moved = {i for block in active for i in block}
            passive = [[i for i in _within(atoms, *span) if i not in moved] for span in reach]
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

    @property
    def latent_places(self) -> tuple[Place, ...]:
        """Where each latent belongs."""
        return (*self.layout.circular, *(self.layout.linear[i] for i in self._order.tolist()))

    @property
    def n_correlated(self) -> int:
        """Largest number of linear features whose covariance is taken from data in full."""
        return max(self.affine.sizes, default=0)

    def torsion_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the density of the torsions."""
        return self.torsion_layers.parameters()

    def linear_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the density of the linear features given the torsions."""
        yield from self.linear_layers.parameters()
        yield from self.affine.parameters()

    def _torsion_layer(self, modelled: list[int], layer: int, generator: torch.Generator) -> CircularCoupling:
        """A coupling of half of some torsions, given the other half."""
        atoms = [self.layout.circular[i].atom for i in modelled]
        active = _alternate(len(modelled), layer)
        blocks = _contiguous_groups([atoms[i] for i in active], self.config.torsion_group_size)
        members = [[active[i] for i in block] for block in blocks]
        seen = [[i for i in _within(atoms, *_reach([atoms[j] for j in block])) if i not in active] for block in members]
        return self._coupling(
            [[modelled[i] for i in block] for block in members],
            [[modelled[i] for i in rows] for rows in seen],
            generator,
        )

    def _side_chain_layer(self, layer: int, generator: torch.Generator) -> CircularCoupling:
        """A coupling of half of each side chain's torsions, given its other half and the backbone nearby."""
        places = self.layout.circular
        residues = sorted({place.residue for place in places if place.side_chain})
        members, seen = [], []
        for residue in residues:
            own = [i for i, place in enumerate(places) if place.side_chain and place.residue == residue]
            active = [own[i] for i in _alternate(len(own), layer)]
            near = [i for i, p in enumerate(places) if not p.side_chain and abs(p.residue - residue) <= NEIGHBOURS]
            members.append(active)
            seen.append([*near, *(i for i in own if i not in active)])
        return self._coupling(members, seen, generator)

    def _coupling(
        self, members: list[list[int]], seen: list[list[int]], generator: torch.Generator
    ) -> CircularCoupling:
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

    @property
    def log_temperature_ratio(self) -> float:
        """Ln of the temperature over that in the middle of the range; zero without a range."""
        return self._log_ratio

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
        latent, log_det = self._invert_torsions(torsions.T.contiguous())
        return log_det + self._circles_log_prob(latent.T)

    def _invert_torsions(self, torsions: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torsions.new_zeros(torsions.shape[1])
        condition = self._condition(torsions)
        for layer in reversed(list(self.torsion_layers)):
            assert isinstance(layer, CircularCoupling)
            torsions, change = layer.inverse(torsions, condition)
            log_det = log_det + change
        return torsions, log_det

    def base_log_prob(self, latent: Tensor) -> Tensor:
        """Log density of the base."""
        linear = latent[:, self.n_circular :].double()
        return (
            self._circles_log_prob(latent[:, : self.n_circular])
            - 0.5 * (linear**2).sum(-1)
            - 0.5 * self.n_linear * math.log(2.0 * math.pi)
        )

    def _circles_log_prob(self, circles: Tensor) -> Tensor | float:
        kappa = self.config.concentration
        constant = -self.n_circular * circle_log_normalisation(kappa)
        return kappa * circles.double().cos().sum(-1) + constant if kappa else constant

    def sample_base(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents drawn from the base, shape (n, n_circular + n_linear)."""
        device = self.affine.marginal.device
        if self.config.concentration:
            rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
            drawn = rng.vonmises(0.0, self.config.concentration, (n, self.n_circular))
            circular = torch.as_tensor(drawn, dtype=torch.float32)
        else:
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

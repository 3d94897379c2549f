"""The split flow: a channel for the backbone, one for the side chains given the backbone, residues as tokens.

p(features) = p(backbone torsions) p(side-chain torsions | backbone torsions) p(other backbone | backbone torsions)
p(other side chain | everything before). Every factor is a stack of rational-quadratic couplings whose networks are
gated attention units over the residues; angles and bonds end in a Gaussian whose mean and covariance depend on the
torsions nearby. All torsions come before all other features, so that their joint density is known by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from openmm_bg.base import Base, circle_log_normalisation
from openmm_bg.flows.couplings import HARMONICS, embedding_rows
from openmm_bg.flows.gated_attention import Sizes, rotary_positions
from openmm_bg.flows.layout import Layout, Place
from openmm_bg.flows.residue_couplings import CircularStack, LinearStack, Setting, embedded_for
from openmm_bg.flows.splines import FEWEST_BINS, LEAST_TAILS
from openmm_bg.flows.split_config import SplitConfig

NEIGHBOURS = 1  # residues on either side whose torsions mean and covariance of angles and bonds depend on


class SplitFlow(nn.Module):
    """A normalised density over (torsions, linear features) of a chain of residues.

    A latent and the feature in its place belong to each other: latents are in the order of the features.

    Parameters
    ----------
    layout : Layout
        Which residue and channel each feature belongs to. With `layout.split` side chains do not see each other, so
        that latents of a side chain move nothing but that side chain; else the networks of the side chains attend to
        each other.
    config : SplitConfig
    seed : int
        Seed of the initial weights.

    Raises
    ------
    ValueError
        If the layout is split and the configuration is not.
    """

    def __init__(self, layout: Layout, config: SplitConfig, seed: int = 0) -> None:
        super().__init__()
        if layout.split and not config.split:
            raise ValueError(
                "The layout asks for side chains that are modelled each by itself, but the configuration has one "
                "channel (split=False). Use a layout with split=False, or a configuration with split=True."
            )
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.layout = layout
        self.n_circular, self.n_linear = len(layout.circular), len(layout.linear)
        self.base = Base(self.n_circular, self.n_linear, config.concentration)
        self._conditions = [] if config.temperature_range is None else [2 * HARMONICS * self.n_circular]
        self._log_ratio = 0.0
        self._residues = sorted({(place.chain, place.residue) for place in (*layout.circular, *layout.linear)})
        circles = [self._of_channel(layout.circular, side_chain) for side_chain in (False, True)]
        lines = [self._of_channel(layout.linear, side_chain) for side_chain in (False, True)]
        self.torsion_stacks, self.linear_stacks = nn.ModuleList(), nn.ModuleList()
        for channel in (0, 1):
            if any(circles[channel]):
                self.torsion_stacks.append(self._torsion_stack(circles, channel, generator))
        for channel in (0, 1):
            if any(lines[channel]):
                self.linear_stacks.append(self._linear_stack(circles, lines, channel, generator))

    @property
    def latent_places(self) -> tuple[Place, ...]:
        """Where each latent belongs."""
        return (*self.layout.circular, *self.layout.linear)

    @property
    def n_correlated(self) -> int:
        """Largest number of linear features whose covariance is taken from data in full."""
        sizes = [size for stack in self.linear_stacks if isinstance(stack, LinearStack) for size in stack.affine.sizes]
        return max(sizes, default=0)

    def torsion_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the density of the torsions."""
        return self.torsion_stacks.parameters()

    def linear_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the density of the linear features given the torsions."""
        return self.linear_stacks.parameters()

    def set_temperature(self, temperature: float) -> None:
        """Let a flow with a `temperature_range` be the density of a temperature in K, in the range or not.

        Linear features are as wide as those of the middle of the range times the root of the ratio of temperatures,
        as of harmonic oscillators; what else depends on the temperature, the networks learn.

        Raises
        ------
        ValueError
            If the flow has no `temperature_range`.
        """
        if self.config.temperature_range is None:
            raise ValueError("The flow has one density for all temperatures; make it with a temperature_range.")
        self._log_ratio = math.log(temperature) - 0.5 * sum(map(math.log, self.config.temperature_range))

    @property
    def log_temperature_ratio(self) -> float:
        """Ln of the temperature over that in the middle of the range; zero without a range."""
        return self._log_ratio

    @torch.no_grad()
    def standardise(self, linear: Tensor) -> None:
        """Take the fixed whitening of linear features from data, shape (n, n_linear), at the flow's temperature."""
        for stack in self.linear_stacks:
            assert isinstance(stack, LinearStack)
            stack.standardise(linear.T, self._log_ratio)

    @property
    def is_new(self) -> bool:
        """Whether training may start from `start_from`: a flow with a uniform base that has learned no torsion."""
        stacks: list[CircularStack] = list(self.torsion_stacks)  # type: ignore[arg-type]
        is_uniform = not self.config.concentration
        return is_uniform and self.config.torsion_bins >= FEWEST_BINS and all(stack.is_new for stack in stacks)

    @torch.no_grad()
    def start_from(self, torsions: Tensor, n_frames: int) -> None:
        """Start from the distributions of single torsions, each in the last coupling that has it.

        Parameters
        ----------
        torsions : Tensor, shape (n, n_circular)
        n_frames : int
            Of how many frames they are: of few, less is known of the tails.
        """
        stacks: list[CircularStack] = list(self.torsion_stacks)  # type: ignore[arg-type]
        for stack in stacks:
            stack.start_from(torsions.T, max(LEAST_TAILS, 1.0 / (n_frames + 1)))

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, shape (n, n_circular + n_linear), to torsions, linear features and ln |d features / d latent|."""
        torsions, linear = latent.T.contiguous().split([self.n_circular, self.n_linear])
        log_det = latent.new_zeros(len(latent))
        condition = self._condition(torsions)
        for stack in self.torsion_stacks:
            torsions, change = stack(torsions, condition)
            log_det = log_det + change
        linear, change = self._linear_given(torsions, linear)
        return torsions.T, linear.T, log_det + change

    def linear_given(self, torsions: Tensor, latent: Tensor) -> Tensor:
        """Linear features of their latents, shape (n, n_linear), at given torsions, shape (n, n_circular)."""
        return self._linear_given(torsions.T.contiguous(), latent.T.contiguous())[0].T

    def inverse(self, torsions: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
        """Features, shapes (n, n_circular) and (n, n_linear), to latents and ln |d latent / d features|."""
        torsions, linear = torsions.T.contiguous(), linear.T.contiguous()
        log_det = torsions.new_zeros(torsions.shape[1])
        if self.n_linear:
            embedded = embedded_for(self, torsions, self._condition(torsions))
            for stack in reversed(list(self.linear_stacks)):
                assert isinstance(stack, LinearStack)
                linear, change = stack.inverse(linear, embedded, self._log_ratio)
                log_det = log_det + change
        torsions, change = self._invert_torsions(torsions)
        return torch.cat([torsions, linear]).T, log_det + change

    def torsion_log_prob(self, torsions: Tensor) -> Tensor:
        """Log of the marginal density of the torsions, shape (n, n_circular) to (n,)."""
        latent, log_det = self._invert_torsions(torsions.T.contiguous())
        return log_det + self._circles_log_prob(latent.T)

    def base_log_prob(self, latent: Tensor) -> Tensor:
        """Log density of the base."""
        linear = latent[:, self.n_circular :].double()
        normal = -0.5 * (linear**2).sum(-1) - 0.5 * self.n_linear * math.log(2.0 * math.pi)
        return normal + self._circles_log_prob(latent[:, : self.n_circular])

    def sample_base(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents drawn from the base, shape (n, n_circular + n_linear)."""
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        drawn = torch.as_tensor(self.base.draw(n, rng), dtype=torch.float32)
        return drawn.to(next(self.parameters()).device)

    def _circles_log_prob(self, circles: Tensor) -> Tensor:
        kappa = self.config.concentration
        return (kappa * circles.double().cos() - circle_log_normalisation(kappa)).sum(-1)

    def _linear_given(self, torsions: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
        log_det = linear.new_zeros(linear.shape[1])
        if self.n_linear:
            embedded = embedded_for(self, torsions, self._condition(torsions))
            for stack in self.linear_stacks:
                linear, change = stack(linear, embedded, self._log_ratio)
                log_det = log_det + change
        return linear, log_det

    def _invert_torsions(self, torsions: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torsions.new_zeros(torsions.shape[1])
        condition = self._condition(torsions)
        for stack in reversed(list(self.torsion_stacks)):
            assert isinstance(stack, CircularStack)
            torsions, change = stack.inverse(torsions, condition)
            log_det = log_det + change
        return torsions, log_det

    def _condition(self, like: Tensor) -> Tensor | None:
        """The temperature as the networks see it beside the torsions, a row for as many configurations."""
        if self.config.temperature_range is None:
            return None
        low, high = self.config.temperature_range
        return like.new_full((1, like.shape[1]), 2.0 * self._log_ratio / math.log(high / low))

    def _of_channel(self, places: tuple[Place, ...], side_chain: bool) -> list[list[int]]:
        """Features of one channel, by residue, along the chain."""
        found: list[list[int]] = [[] for _ in self._residues]
        for i in sorted(range(len(places)), key=lambda i: (places[i].atom, i)):
            if (places[i].side_chain and self.config.split) == side_chain:
                found[self._residues.index((places[i].chain, places[i].residue))].append(i)
        return found

    def _torsion_stack(self, circles: list[list[list[int]]], channel: int, generator: torch.Generator) -> CircularStack:
        config = self.config
        nothing: list[list[int]] = [[] for _ in self._residues]
        return CircularStack(
            own=circles[channel],
            given=circles[0] if channel else nothing,
            apart=bool(channel) and self.layout.split,
            n_layers=config.torsion_layers,
            n_bins=config.torsion_bins,
            setting=self._setting(generator),
        )

    def _linear_stack(
        self, circles: list[list[list[int]]], lines: list[list[list[int]]], channel: int, generator: torch.Generator
    ) -> LinearStack:
        config = self.config
        nothing: list[list[int]] = [[] for _ in self._residues]
        apart = bool(channel) and self.layout.split
        offset = 2 * HARMONICS * self.n_circular + len(self._conditions)
        groups, members = self._groups(lines[channel], apart)
        return LinearStack(
            own=lines[channel],
            far=[
                [*embedding_rows(torsions), *(offset + row for row in rows)]
                for torsions, rows in zip(circles[0], lines[0] if channel else nothing, strict=True)
            ],
            near=[embedding_rows(rows) for rows in (circles[1] if channel else nothing)],
            groups=groups,
            group_torsions=[self._near(circles, channel, apart, residues) for residues in members],
            apart=apart,
            n_layers=config.linear_layers,
            n_bins=config.linear_bins,
            bound=config.linear_bound,
            affine_hidden=config.affine_hidden,
            offset=offset,
            setting=self._setting(generator),
        )

    def _setting(self, generator: torch.Generator) -> Setting:
        sizes = Sizes(self.config.width, self.config.key_width, self.config.attention)
        return Setting(sizes, rotary_positions(self._residues), self._conditions, generator)

    def _groups(self, own: list[list[int]], apart: bool) -> tuple[list[list[int]], list[list[int]]]:
        """Groups of nearly equal size, of one residue each if they are apart, and the residues that each holds."""
        tagged = [(row, residue) for residue, rows in enumerate(own) for row in rows]
        blocks = [[tag for tag in tagged if tag[1] == residue] for residue in range(len(own))] if apart else [tagged]
        cut = []
        for block in blocks:
            n_groups = math.ceil(len(block) / self.config.group_size)
            bounds = [round(k * len(block) / max(n_groups, 1)) for k in range(n_groups + 1)]
            cut += [block[start:stop] for start, stop in pairwise(bounds)]
        return [[row for row, _ in group] for group in cut], [sorted({tag for _, tag in group}) for group in cut]

    def _near(self, circles: list[list[list[int]]], channel: int, apart: bool, residues: list[int]) -> list[int]:
        """Torsions of the residues and their neighbours along the chain; of side chains apart, the own ones."""

        def close(residue: int, reach: int) -> bool:
            chain, index = self._residues[residue]
            keys = [self._residues[other] for other in residues]
            return any(chain == other_chain and abs(index - other) <= reach for other_chain, other in keys)

        found = [row for residue, rows in enumerate(circles[0]) if close(residue, NEIGHBOURS) for row in rows]
        if channel:
            reach = 0 if apart else NEIGHBOURS
            found += [row for residue, rows in enumerate(circles[1]) if close(residue, reach) for row in rows]
        return found

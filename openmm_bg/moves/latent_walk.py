"""Metropolis steps from the current state in the latent space of a generator: as a whole, and block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmm_bg.base import Base
from openmm_bg.density import FloatArray, LatentProposals, Proposals
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.moves.independence import Scan
from openmm_bg.moves.latent_blocks import BLOCKS, REDRAWN, STEPLESS, LatentBlocks, redrawn, stepped
from openmm_bg.moves.walk_chain import WalkChain


@dataclass(frozen=True)
class WalkTuning:
    """How the steps of a walk were found: the record of an equilibration phase that is over.

    Attributes
    ----------
    target_acceptance : float
    temperature : float
        In K, of the state that was equilibrated.
    n_scans, n_proposals : int
        Length of the phase.
    n_fixed_scans : int
        How many of these scans, the last ones, were made with the steps fixed.
    kinds : list of str
        The walk's blocks and "independence", as far as there were proposals.
    acceptance : list of float
        Accepted part of the proposals of each kind in these last scans.
    acceptance_error : list of float
        Its standard errors.
    step : list of float
        Steps of the blocks, fixed from then on.
    """

    target_acceptance: float
    temperature: float
    n_scans: int
    n_proposals: int
    n_fixed_scans: int
    kinds: list[str]
    acceptance: list[float]
    acceptance_error: list[float]
    step: list[float]


@dataclass(frozen=True)
class LatentWalk:
    """A scan of Metropolis steps that start from the latents of the current state.

    The current state is mapped to latents, some of them are changed, and the configuration that they stand for is
    accepted or rejected. What independence proposals cannot do in a protein, small or local changes can: the size of a
    step, and the number of latents that move at once, decide how many are accepted. Blocks of latents:

    - "global": all of them, by a step.
    - "side_chain": those of one residue's side chain, drawn anew. Each residue is as likely as any other; several
      candidates for the same side chain are made at once and judged in turn.
    - "rotamer": no latents, but one or two torsions of a side chain, which turn by about a third; the energy alone
      decides, whatever the generator has learnt. `SPREAD` and the choice of bonds: `LatentBlocks.turned`.
    - "side_chains": those of all side chains, by a step, the backbone as it is.
    - "backbone": those of the backbone of consecutive residues, by a step.
    - "frozen": those of one residue's coordinates that the generator draws from a fixed density, by a step.

    All but "global" need a generator of reduced coordinates.

    Parameters
    ----------
    n_proposals : int
        Proposals per application of the move.
    step : float or dict of float
        Size of the steps, above 0 and at most 1; one for all blocks, or one for each by its name. A step of one is a
        fresh draw. Stored as a list in the order of `blocks`. Let `tune_latent_walk` find it.
    blocks : sequence of str
        What moves.
    shares : sequence of float, optional
        Parts of the proposals that go to the blocks, in their order, relative to each other; even by default.
    target_acceptance : float
        Accepted part of the steps of each kind that `tune_latent_walk` aims at.
    fraction_independence : float
        Part of the proposals in which all latents are drawn anew from the base, as by `Independence`.
    stretch : int
        Residues of a "backbone" block.
    n_candidates : int
        Proposals of one kind that are made in a row, before the walk turns to another.
    tuning : WalkTuning, optional
        How the steps were found; set by `tune_latent_walk`.

    Raises
    ------
    ValueError
        If a number is out of its range, or a block unknown.

    Notes
    -----
    Docs: theory, "Latent walk". Cotter, Roberts, Stuart and White, Stat. Sci. 28, 424 (2013), for the steps of normal
    latents.
    """

    n_proposals: int = 64
    step: float | Mapping[str, float] | Sequence[float] = 0.1
    blocks: Sequence[str] = ("global", "side_chain")
    shares: Sequence[float] | None = None
    target_acceptance: float = 0.25
    fraction_independence: float = 0.05
    stretch: int = 3
    n_candidates: int = 16
    tuning: WalkTuning | None = None

    def __post_init__(self) -> None:
        for name in ("n_proposals", "stretch", "n_candidates"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a positive integer, but is {value!r}.")
            object.__setattr__(self, name, int(value))
        if not 0.0 < self.target_acceptance < 1.0:
            raise ValueError(f"target_acceptance must be between 0 and 1, but is {self.target_acceptance!r}.")
        if not 0.0 <= self.fraction_independence <= 1.0:
            raise ValueError(f"fraction_independence must be from 0 to 1, but is {self.fraction_independence!r}.")
        object.__setattr__(self, "target_acceptance", float(self.target_acceptance))
        object.__setattr__(self, "fraction_independence", float(self.fraction_independence))
        object.__setattr__(self, "blocks", _known_blocks(self.blocks))
        object.__setattr__(self, "step", _known_steps(self.step, list(self.blocks)))
        if self.shares is not None:
            object.__setattr__(self, "shares", _known_shares(self.shares, list(self.blocks)))
        if self.tuning is not None and self.tuning.step != self.step:
            raise ValueError(
                f"The steps {self.step} are not those that were tuned, {self.tuning.step}; give tuning=None with them."
            )

    @property
    def steps(self) -> dict[str, float]:
        """The size of the step of each block that moves by steps."""
        assert isinstance(self.step, list)
        named = zip(self.blocks, self.step, strict=True)
        return {kind: step for kind, step in named if kind not in STEPLESS}

    def scan(
        self,
        density: Proposals,
        current: FloatArray,
        place: Callable[[FloatArray], FloatArray],
        energies: ContextEnergies,
        rng: np.random.Generator,
    ) -> Scan:
        """Make proposals one after the other, or a few at once where the rest is kept, and judge each.

        Parameters
        ----------
        density : LatentProposals
        current : ndarray, shape (n_atoms, 3)
            Finite positions in nm.
        place : callable
            Brings finite proposals, (n, n_atoms, 3), into the pose in which they are judged.
        energies : ContextEnergies
            Of the thermodynamic state.
        rng : numpy.random.Generator

        Raises
        ------
        ValueError
            If the density has no latents, or none of a block's kind.
        """
        blocks = LatentBlocks(density, list(self.blocks), self.stretch)
        assert isinstance(density, LatentProposals)
        chain = WalkChain(density, current, place, energies, self.n_proposals)
        for kind, count in self._plan(rng):
            if not chain.on_support:
                chain.skip(kind, count)
            elif kind in REDRAWN:
                moves = np.repeat(blocks.choose(kind, 1, rng), count, axis=0)
                chain.judge_in_turn(redrawn(blocks.base, chain.latents, moves, rng), kind, rng)
            elif kind == "rotamer":
                left = count
                while left:
                    left -= chain.judge_turned(self._turned(blocks, chain.positions, left, rng), kind, rng)
            else:
                left = count
                while left:
                    moves = blocks.choose(kind, min(left, self._n_ahead), rng)
                    proposed = self._stepped(blocks.base, chain.latents, moves, self.steps[kind], rng)
                    before = self._log_circles(blocks.base, chain.latents[None])[0]
                    change = self._log_circles(blocks.base, proposed) - before
                    left -= chain.judge_until_accepted(proposed, change, kind, rng)
        return chain.scan()

    @property
    def _n_ahead(self) -> int:
        """Steps from one state that pass the flow at once; those after the first accepted one are not used."""
        return max(1, round(1.0 / self.target_acceptance))

    def _plan(self, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
        """Kinds of proposals and how many of each in a row, drawn without regard to any state."""
        n_independence = math.floor(self.fraction_independence * self.n_proposals + rng.random())
        n_left = self.n_proposals - min(n_independence, self.n_proposals)
        counts = {"independence": self.n_proposals - n_left}
        shares = np.ones(len(self.blocks)) if self.shares is None else np.array(self.shares)
        ends = np.cumsum(shares) / shares.sum() * n_left
        ends[-1] = n_left
        whole = np.floor(np.r_[0.0, ends] + rng.random()).astype(int)  # the right number of each on average
        counts |= dict(zip(self.blocks, np.diff(whole).tolist(), strict=True))
        rows = [
            (kind, min(self.n_candidates, count - start))
            for kind, count in counts.items()
            for start in range(0, count, self.n_candidates)
        ]
        return (rows[i] for i in rng.permutation(len(rows)))

    def _turned(self, blocks: LatentBlocks, positions: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
        return blocks.turned(positions, n, rng)

    def _stepped(
        self, base: Base, latents: FloatArray, moves: NDArray[np.bool_], step: float, rng: np.random.Generator
    ) -> FloatArray:
        return stepped(base, latents, moves, step, rng)

    def _log_circles(self, base: Base, latents: FloatArray) -> FloatArray:
        """Log density, up to a constant, of what steps do not preserve of the base, shape (n, n_dof) to (n,)."""
        log_prob: FloatArray = base.concentration * np.cos(latents[:, : base.n_circles]).sum(axis=1)
        return log_prob


def _known_blocks(blocks: Sequence[str]) -> list[str]:
    known = [blocks] if isinstance(blocks, str) else list(blocks)
    unknown = [kind for kind in known if kind not in BLOCKS]
    if unknown or not known or len(set(known)) < len(known):
        raise ValueError(f"blocks must be some of {list(BLOCKS)}, each once, but is {known}.")
    return known


def _known_shares(shares: Sequence[float], blocks: list[str]) -> list[float]:
    known = [float(share) for share in shares]
    if len(known) != len(blocks) or not all(0.0 < share < math.inf for share in known):
        raise ValueError(f"shares must be a positive number for each of the blocks {blocks}, but is {shares!r}.")
    return known


def _known_steps(step: float | Mapping[str, float] | Sequence[float], blocks: list[str]) -> list[float]:
    """Steps in the order of the blocks, one where a block is drawn anew or turned."""
    if isinstance(step, Mapping):
        named = {kind: step.get(kind, 1.0 if kind in STEPLESS else None) for kind in blocks}
        if set(step) - set(blocks) or None in named.values():
            raise ValueError(
                f"step names {sorted(step)}; expected one step for each block that moves by steps: {blocks}."
            )
        steps = [float(value) for value in named.values() if value is not None]
    elif isinstance(step, int | float | np.number):
        steps = [1.0 if kind in STEPLESS else float(step) for kind in blocks]
    else:
        steps = [float(value) for value in step]
    if len(steps) != len(blocks) or not all(0.0 < value <= 1.0 for value in steps):
        raise ValueError(f"step must be above 0 and at most 1 for each of the blocks {blocks}, but is {step!r}.")
    if any(value != 1.0 for kind, value in zip(blocks, steps, strict=True) if kind in STEPLESS):
        raise ValueError(
            "A side_chain block is drawn anew and a rotamer block turns by thirds: their step is 1, but step is "
            f"{step!r}."
        )
    return steps

"""The input of every free-energy estimator: reduced potentials of all samples in all states."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmm_bg.analysis.states import Measure
from openmm_bg.analysis.timeseries import resample_multiplicities, statistical_inefficiency
from openmm_bg.density import FloatArray

_FEWEST_SAMPLES = 2
_ABSENT: Any = None  # filled in by __post_init__, so that a finished object has every array
INDEPENDENT = 1.5  # an inefficiency up to which samples pass for independent
_BLOCKS_IN_INEFFICIENCIES = 5.0


@dataclass(frozen=True)
class ReducedEnergies:
    """Reduced potentials u_k(x_n) of N samples in K states, and what is known of both.

    The samples are ordered by chain, each chain in time, and the chains by the state that they were sampled in. A
    state without samples is a target; its free energy is estimated all the same.

    Parameters
    ----------
    names : sequence of str
        Names of the K states.
    u_kn : array_like, shape (K, N)
        Reduced potentials, +inf where a configuration is impossible in a state.
    n_k : array_like, shape (K,)
        Number of samples from each state, in the order of the columns.
    temperatures : array_like, shape (K,), optional
        K; NaN where a state has none.
    known : array_like, shape (K,), optional
        Reduced free energies that are known, as that of a normalised density; NaN for all others.
    measure : Measure, optional
        The measure on which they are known.
    chains : array_like of int, shape (N,), optional
        The chain of each sample, counted up from 0; by default the samples of a state are one chain.
    independent : array_like of bool, shape (K,), optional
        States whose samples were drawn independently.
    positions : ndarray, shape (N, n_atoms, 3), optional
        nm.
    kept : array_like of int, shape (N,), optional
        Which of the original samples these are, where correlated ones were left out.
    n_original : int, optional
        How many the original samples were.
    inefficiencies : dict, optional
        Statistical inefficiency of each state's samples as they came, the largest of its chains.

    Raises
    ------
    ValueError
        If the shapes do not fit, an energy is NaN or -inf, a sample is impossible in every state or in its own, a
        sampled state has a single sample, or no state has any.
    """

    names: Sequence[str]
    u_kn: FloatArray = field(repr=False)
    n_k: NDArray[np.int64]
    temperatures: FloatArray = _ABSENT
    known: FloatArray = _ABSENT
    measure: Measure | None = None
    chains: NDArray[np.int64] = field(default=_ABSENT, repr=False)
    independent: NDArray[np.bool_] = _ABSENT
    positions: FloatArray | None = field(default=None, repr=False)
    kept: NDArray[np.int64] = field(default=_ABSENT, repr=False)
    n_original: int = 0
    inefficiencies: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        set_("names", tuple(str(name) for name in self.names))
        set_("u_kn", np.asarray(self.u_kn, dtype=np.float64))
        set_("n_k", _counts(self.n_k))
        n_states, n_samples = len(self.names), int(self.n_k.sum())
        if self.u_kn.shape != (n_states, n_samples) or len(self.n_k) != n_states:
            raise ValueError(
                f"{n_states} states with {self.n_k.tolist()} samples need energies of shape ({n_states}, {n_samples}), "
                f"found {self.u_kn.shape}; every sample needs an energy in every state"
            )
        if len(set(self.names)) < n_states:
            raise ValueError(f"every state needs a name of its own, found {self.names}")
        own = np.repeat(np.arange(n_states), self.n_k)
        nothing = np.full(n_states, math.nan)
        set_("temperatures", _per_state(self.temperatures, nothing, "temperatures"))
        set_("known", _per_state(self.known, nothing, "known free energies"))
        set_("independent", _per_state(self.independent, np.zeros(n_states, dtype=bool), "marks of independence"))
        set_("chains", own if self.chains is None else np.asarray(self.chains, dtype=np.int64))
        set_("kept", np.arange(n_samples) if self.kept is None else np.asarray(self.kept, dtype=np.int64))
        set_("n_original", self.n_original or n_samples)
        for name in ("chains", "kept"):
            if getattr(self, name).shape != (n_samples,):
                raise ValueError(f"{name} has shape {getattr(self, name).shape}; expected ({n_samples},)")
        steps = np.diff(self.chains)
        if np.any(steps < 0) or np.any(steps[np.diff(own) != 0] == 0):
            raise ValueError("the samples must be ordered by chain, and a chain belongs to one state")
        if self.positions is not None and len(self.positions) != n_samples:
            raise ValueError(f"{len(self.positions)} configurations were given for {n_samples} samples")
        self._check_energies(own)

    def _check_energies(self, own: NDArray[np.int64]) -> None:
        if self.u_kn.shape[1] == 0:
            raise ValueError(f"none of the states {list(self.names)} has samples; give those of at least one")
        for state, count in zip(self.names, self.n_k, strict=True):
            if 0 < count < _FEWEST_SAMPLES:
                raise ValueError(
                    f"state {state!r} has a single sample, from which no error can be estimated; sample on"
                )
        for wrong, what in ((np.isnan(self.u_kn), "NaN"), (np.isneginf(self.u_kn), "-inf")):
            if wrong.any():
                k, n = np.argwhere(wrong)[0]
                raise ValueError(
                    f"{int(wrong.sum())} reduced energies are {what}, the first in state {self.names[k]!r} of sample "
                    f"{n} (sampled from {self.names[own[n]]!r}); remove the sample or repair the energy"
                )
        impossible = np.isposinf(self.u_kn[own, np.arange(len(own))])
        if impossible.any():
            n = int(np.argmax(impossible))
            raise ValueError(
                f"{int(impossible.sum())} samples have an infinite energy in the very state that they are said to be "
                f"from, the first is sample {n} of {self.names[own[n]]!r}; they are not samples of it"
            )

    @property
    def n_states(self) -> int:
        """Number of states, K."""
        return len(self.names)

    @property
    def n_samples(self) -> int:
        """Number of samples, N."""
        return self.u_kn.shape[1]

    @property
    def own(self) -> NDArray[np.int64]:
        """Index of the state that each sample is from, shape (N,)."""
        return np.repeat(np.arange(self.n_states), self.n_k)

    def index(self, state: str | int) -> int:
        """Return the index of a state, given by its name or its index."""
        if isinstance(state, str):
            if state not in self.names:
                raise ValueError(f"there is no state {state!r}; there are {list(self.names)}")
            return list(self.names).index(state)
        if not -self.n_states <= state < self.n_states:
            raise ValueError(f"there is no state {state}; there are {self.n_states}")
        return int(state) % self.n_states

    def chain_slices(self) -> Iterator[slice]:
        """Yield the samples of each chain."""
        edges = np.flatnonzero(np.diff(self.chains)) + 1
        for start, stop in zip([0, *edges], [*edges, self.n_samples], strict=True):
            yield slice(int(start), int(stop))

    def inefficiency(self, samples: slice) -> float:
        """Statistical inefficiency of a chain: the largest of its own reduced potential and its differences.

        The differences to the states before and after it are what the estimators average. Infinite energies count as
        the largest finite one.
        """
        k = int(self.own[samples.start])
        own = self.u_kn[k, samples]
        series = [own, *(self.u_kn[j, samples] - own for j in (k - 1, k + 1) if 0 <= j < self.n_states)]
        largest = 1.0
        for values in series:
            finite = np.isfinite(values)
            if finite.sum() >= _FEWEST_SAMPLES and np.ptp(values[finite]) > 0.0:
                largest = max(largest, statistical_inefficiency(np.where(finite, values, values[finite].max())))
        return largest

    @cached_property
    def remaining_inefficiencies(self) -> tuple[float, ...]:
        """Statistical inefficiency of each chain as it is here, in the order of `chain_slices`."""
        return tuple(self.inefficiency(samples) for samples in self.chain_slices())

    def decorrelate(self) -> ReducedEnergies:
        """Return a subset of effectively independent samples, every g-th of each chain.

        g is the statistical inefficiency of `inefficiency`. States that are marked as independent are kept whole, and
        energies that were decorrelated are returned as they are.
        """
        if self.inefficiencies:
            return self
        kept: list[NDArray[np.int64]] = []
        found: dict[str, float] = {}
        for samples, inefficiency in zip(self.chain_slices(), self.remaining_inefficiencies, strict=True):
            k = int(self.own[samples.start])
            g = 1.0 if self.independent[k] else inefficiency
            found[self.names[k]] = max(g, found.get(self.names[k], 1.0))
            kept.append(samples.start + np.arange(0.0, samples.stop - samples.start - 0.5, g).astype(np.int64))
        return replace(self.take(np.concatenate(kept)), inefficiencies=found)

    def take(self, indices: ArrayLike) -> ReducedEnergies:
        """Return the energies of some of the samples, given by increasing indices."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            u_kn=self.u_kn[:, chosen],
            n_k=np.bincount(self.own[chosen], minlength=self.n_states),
            chains=self.chains[chosen],
            positions=None if self.positions is None else self.positions[chosen],
            kept=self.kept[chosen],
        )

    def resamples(self, n: int, rng: np.random.Generator | int | None = 0) -> Iterator[NDArray[np.int64]]:
        """Yield how often each sample occurs in each of n bootstrap resamples, shape (N,).

        Every chain is resampled by itself in circular blocks of five statistical inefficiencies.
        """
        generator = np.random.default_rng(rng)
        parts = []
        for samples, inefficiency in zip(self.chain_slices(), self.remaining_inefficiencies, strict=True):
            length = samples.stop - samples.start
            g = 1.0 if self.independent[self.own[samples.start]] else inefficiency
            block = 1 if g < INDEPENDENT else max(1, min(math.ceil(_BLOCKS_IN_INEFFICIENCIES * g), length // 10))
            parts.append(resample_multiplicities(length, block, n, generator))
        for counts in zip(*parts, strict=True):
            yield np.concatenate(counts)


def _counts(n_k: Any) -> NDArray[np.int64]:
    counts = np.asarray(n_k)
    if counts.ndim != 1 or np.any(counts != counts.astype(np.int64)) or np.any(counts < 0):
        raise ValueError(f"n_k is {n_k!r}; expected the number of samples of each state")
    return counts.astype(np.int64)


def _per_state(values: Any, default: NDArray[Any], what: str) -> NDArray[Any]:
    array = default if values is None else np.asarray(values, dtype=default.dtype)
    if array.shape != default.shape:
        raise ValueError(f"{what} have shape {array.shape}; expected {default.shape}, one for each state")
    return array

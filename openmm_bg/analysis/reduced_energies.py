"""The input of every free-energy estimator: reduced potentials of all samples in all states."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from openmm_bg.analysis.states import GeneratorState, Measure, State, check_states
from openmm_bg.analysis.timeseries import resample_multiplicities, statistical_inefficiency
from openmm_bg.density import FloatArray, Samples

logger = logging.getLogger(__name__)

_FEWEST_SAMPLES = 2
_LOG_PROB_TOLERANCE = 0.01  # forward and inverse pass of a float32 network differ by less
_ABSENT: Any = None  # filled in by __post_init__, so that a finished object has every array
_INDEPENDENT = 1.5  # an inefficiency up to which samples pass for independent
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
        """Statistical inefficiency of a chain: of its own reduced potential and of its differences to other states.

        The differences are what the estimators average; the largest of all counts. Infinite energies are left out.
        """
        k = int(self.own[samples.start])
        own = self.u_kn[k, samples]
        if len(own) < _FEWEST_SAMPLES:
            return 1.0
        series = [own] if np.ptp(own) > 0.0 else []
        for j in range(self.n_states):
            difference = self.u_kn[j, samples] - own
            finite = np.isfinite(difference)
            if j != k and finite.sum() >= _FEWEST_SAMPLES and np.ptp(difference[finite]) > 0.0:
                series.append(np.where(finite, difference, difference[finite].max()))
        return max((statistical_inefficiency(values) for values in series), default=1.0)

    def decorrelate(self) -> ReducedEnergies:
        """Return a subset of effectively independent samples, every g-th of each chain.

        g is the statistical inefficiency of `inefficiency`. States that are marked as independent are kept whole.
        """
        kept: list[NDArray[np.int64]] = []
        found: dict[str, float] = dict(self.inefficiencies)
        for samples in self.chain_slices():
            k = int(self.own[samples.start])
            g = 1.0 if self.independent[k] else self.inefficiency(samples)
            found[self.names[k]] = max(g, found.get(self.names[k], 1.0))
            length = samples.stop - samples.start
            kept.append(samples.start + np.arange(0.0, length - 0.5, g).astype(np.int64))
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
        for samples in self.chain_slices():
            length = samples.stop - samples.start
            g = 1.0 if self.independent[self.own[samples.start]] else self.inefficiency(samples)
            block = 1 if g < _INDEPENDENT else max(1, min(math.ceil(_BLOCKS_IN_INEFFICIENCIES * g), length // 10))
            parts.append(resample_multiplicities(length, block, n, generator))
        for counts in zip(*parts, strict=True):
            yield np.concatenate(counts)


def evaluate(
    states: Sequence[State],
    samples: Mapping[str, Any],
    *,
    decorrelate: bool = True,
    independent: Sequence[str] = (),
) -> ReducedEnergies:
    """Evaluate all samples in all states.

    Parameters
    ----------
    states : sequence of EnergyState or GeneratorState
    samples : mapping of str to samples
        For each sampled state, by name: positions of shape (n, n_atoms, 3) in nm or as a Quantity in the order in
        which they were sampled, a `Samples`, an mdtraj Trajectory, or a list of these: several chains.
    decorrelate : bool
        Whether to leave out correlated samples, by the statistical inefficiency of each chain.
    independent : sequence of str
        States whose samples were drawn independently although they do not come as `Samples`. It is checked.

    Returns
    -------
    ReducedEnergies

    Raises
    ------
    ValueError
        If samples of an unknown state or of another molecule are given, the log density that came with samples is not
        that of their state, or the energies are refused by `ReducedEnergies`.
    """
    n_atoms, measure = check_states(states)
    names = [state.name for state in states]
    if unknown := [name for name in [*samples, *independent] if name not in names]:
        raise ValueError(f"samples of {unknown} were given, but the states are {names}")
    positions: list[FloatArray] = []
    chains: list[NDArray[np.int64]] = []
    n_k: list[int] = []
    drawn: list[bool] = []
    for state in states:
        parts = samples.get(state.name, [])
        parts = parts if isinstance(parts, list) else [parts]
        arrays = [_positions(part, state.name, n_atoms) for part in parts]
        for part, array in zip(parts, arrays, strict=True):
            n_atoms = array.shape[1]
            if isinstance(part, Samples):
                array = _drawn(part, state)
            positions.append(array)
            chains.append(np.full(len(array), len(chains)))
        n_k.append(sum(len(array) for array in positions[len(positions) - len(parts) :]) if parts else 0)
        drawn.append(bool(parts) and (all(isinstance(p, Samples) for p in parts) or state.name in independent))
    if not positions:
        raise ValueError(f"none of the states {names} has samples; give those of at least one")
    everything = np.concatenate(positions)
    energies = ReducedEnergies(
        names,
        np.stack([state.reduced_potential(everything) for state in states]),
        np.array(n_k),
        temperatures=np.array([state.kelvin for state in states]),
        known=np.array([state.known_free_energy for state in states]),
        measure=measure,
        chains=np.concatenate(chains),
        independent=np.array(drawn),
        positions=everything,
    )
    return energies.decorrelate() if decorrelate else energies


def _positions(part: Any, name: str, n_atoms: int | None) -> FloatArray:
    if hasattr(part, "xyz"):
        part = part.xyz
    if isinstance(part, Samples):
        part = part.positions
    if unit.is_quantity(part):
        part = part.value_in_unit(unit.nanometer)
    array = np.asarray(part, dtype=np.float64)
    expected = "(n, n_atoms, 3)" if n_atoms is None else f"(n, {n_atoms}, 3)"
    if array.ndim != 3 or array.shape[2] != 3 or (n_atoms is not None and array.shape[1] != n_atoms):
        raise ValueError(f"the samples of state {name!r} have shape {array.shape}; expected {expected}, in nm")
    return array


def _drawn(samples: Samples, state: State) -> FloatArray:
    """Positions of independent draws, those off the support left out, after a look at their log density."""
    supported = np.isfinite(samples.log_prob)
    positions = samples.positions[supported]
    if not isinstance(state, GeneratorState):
        raise ValueError(
            f"draws of a density, with their log density, were given as samples of {state.name!r}, which is a "
            "potential at a temperature; give them to the GeneratorState of that density"
        )
    found = -state.reduced_potential(positions)
    difference = np.abs(found - samples.log_prob[supported])
    if not np.all(np.median(difference) <= _LOG_PROB_TOLERANCE):
        raise ValueError(
            f"the draws given for {state.name!r} carry log densities that differ from its own by "
            f"{np.median(difference):.3g} (median): they are from another density, or their densities are clipped or "
            "not normalised; draw them with its `sample`"
        )
    return positions[np.isfinite(found)]


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

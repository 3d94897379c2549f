"""Averages of many features of a molecule at once, and how far apart those of two ensembles are.

Features are computed for a few frames at a time, so that memory does not grow with frames times features. Errors are
those of the linearised difference: with delta_k the difference of the averages of feature k,

    mean_k |delta_k|  changes as  mean_k sign(delta_k) f_k(x)

with each frame x, one number a frame, whose error along the chain is estimated like that of any observable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openmm_bg.analysis.ensembles import Ensemble
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.density import FloatArray


@dataclass(frozen=True)
class Features:
    """Functions of a configuration.

    Attributes
    ----------
    function : callable
        (m, n_atoms, 3) nm to (m, n_features).
    n_features : int
    n_numbers : int
        Numbers that computing them takes in memory for one frame.
    """

    function: Callable[[FloatArray], FloatArray]
    n_features: int
    n_numbers: int


def feature_means(ensemble: Ensemble, features: Features) -> FloatArray:
    """Return the (weighted) average of each feature, shape (n_features,)."""
    total = np.zeros(features.n_features)
    for part in ensemble.chunks(features.n_numbers):
        total += ensemble.weights.share[part] @ features.function(ensemble.positions[part])
    return total


def frame_values(ensemble: Ensemble, features: Features, reduce: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Return one number a frame, shape (n,), made of its features by `reduce`, (m, n_features) to (m,)."""
    parts = ensemble.chunks(features.n_numbers)
    return np.concatenate([reduce(features.function(ensemble.positions[part])) for part in parts])


def mean_absolute_difference(first: Ensemble, second: Ensemble, features: Features) -> Estimate:
    """Return the mean over features of the absolute difference of their averages in two independent ensembles.

    The value is never below the noise of finite samples: compare it with that of two halves of one ensemble.
    """
    delta = feature_means(first, features) - feature_means(second, features)
    direction = np.sign(delta) / len(delta)
    sides = [side.weights.mean(frame_values(side, features, lambda f: f @ direction)) for side in (first, second)]
    return combined(float(np.abs(delta).mean()), *sides)


def combined(value: float, first: Estimate, second: Estimate) -> Estimate:
    """Return a value with the errors of two independent contributions to it."""
    return Estimate(value, math.hypot(first.error, second.error), min(first.n_effective, second.n_effective))

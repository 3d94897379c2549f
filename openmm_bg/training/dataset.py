"""Training data as features of a generator, with a part of the time held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openmm import unit
from torch import Tensor

from openmm_bg.coordinates.internal import Internal
from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.training.data import TrajectoryData, load_trajectory
from openmm_bg.training.rare_forms import regular_frames

MINIMUM_FRAMES = 20
FRAMES_EACH = 5  # frames for each coordinate whose covariance is taken from them
N_BLOCKS = 5  # of time, in each chain


@dataclass(frozen=True)
class Dataset:
    """Frames as features, split by blocks of time.

    Attributes
    ----------
    positions : ndarray, shape (n, n_atoms, 3), nm
        All frames that are used.
    circular, linear : Tensor, shapes (n, n_circular), (n, n_linear), float32
    weights : Tensor, shape (n,)
        Not negative, of mean one.
    train, validation : Tensor of int64
        Rows to learn from, rows held out; none without weight.
    temperature : float or None
        Temperature (K) the frames were made at, if known.
    warnings : list of str
    """

    positions: FloatArray
    circular: Tensor
    linear: Tensor
    weights: Tensor
    train: Tensor
    validation: Tensor
    temperature: float | None
    warnings: list[str]

    def digest(self) -> str:
        """SHA-256 of frames, weights and split, as a hexadecimal string."""
        digest = hashlib.sha256(self.positions.tobytes())
        for tensor in (self.weights, self.train, self.validation):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def prepare(
    generator: BoltzmannGenerator, source: Any, weights: FloatArray | None, validation_fraction: float
) -> Dataset:
    """Load frames, centre and scale the generator's features on them, and hold out blocks of time.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Its features and whitening are set from the frames.
    source
        Whatever `load_trajectory` takes.
    weights : ndarray or None
        One weight per frame, chain after chain.
    validation_fraction : float
        Share of each chain that is held out, as five blocks spread over it; in [0, 0.5].

    Raises
    ------
    ValueError
        If there are too few frames, they belong to another molecule, or an argument is out of range.
    """
    if not 0.0 <= validation_fraction <= 0.5:
        raise ValueError(f"validation_fraction is {validation_fraction}; expected a number from 0 to 0.5.")
    chains = load_trajectory(source, generator.topology)
    temperature = source.temperature if isinstance(source, TrajectoryData) else None
    n_chains, n_frames = chains.shape[:2]
    positions = chains.reshape(-1, *chains.shape[2:])
    if len(positions) < MINIMUM_FRAMES:
        raise ValueError(
            f"The trajectory has {len(positions)} frames; at least {MINIMUM_FRAMES} are needed, thousands help."
        )
    frame_weights = np.ones(len(positions)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    allowed = np.isfinite(frame_weights) & (frame_weights >= 0.0)
    if frame_weights.shape != (len(positions),) or not allowed.all() or not frame_weights.any():
        raise ValueError(
            f"There are {frame_weights.size} weights for {len(positions)} frames; expected one finite weight >= 0 for "
            "each, not all zero."
        )
    held_out = np.tile(held_out_frames(n_frames, validation_fraction), n_chains)
    device = generator.device
    generator.to("cpu")  # where all the data fit
    try:
        internal = generator.coordinates.to_internal(torch.as_tensor(positions))
        kept, warnings = regular_frames(generator, positions, internal)
        used = kept.numpy()
        to_learn = used & ~held_out & (frame_weights > 0.0)
        if np.count_nonzero(to_learn) < MINIMUM_FRAMES // 2:
            raise ValueError(
                f"Only {np.count_nonzero(to_learn)} of {len(positions)} frames are left to learn from once those held "
                f"out ({np.count_nonzero(held_out)}), those without weight ({np.count_nonzero(frame_weights == 0.0)}) "
                f"and those of rare forms ({np.count_nonzero(~used)}) are left out. Give more frames of one form."
            )
        warnings += _check_covariances(generator.flow.n_correlated, int(kept.sum()))
        internal = Internal(*(value[kept] for value in internal))
        generator.features.standardise(internal)
        circular, linear, _ = generator.features.encode(internal)
        with generator._held_at(temperature or generator.temperature.value_in_unit(unit.kelvin)):
            generator.flow.standardise(linear)
    finally:
        generator.to(device)
    return Dataset(
        positions=positions[used],
        circular=circular.float(),
        linear=linear.float(),
        weights=torch.as_tensor(frame_weights[used] / frame_weights[used].mean(), dtype=torch.float32),
        train=torch.as_tensor(np.flatnonzero(to_learn[used])),
        validation=torch.as_tensor(np.flatnonzero((held_out & (frame_weights > 0.0))[used])),
        temperature=temperature,
        warnings=warnings,
    )


def held_out_frames(n_frames: int, fraction: float) -> NDArray[np.bool_]:
    """Mask of the frames of a chain that are held out: blocks of time, evenly spread over it."""
    place = (np.arange(n_frames) / n_frames * N_BLOCKS) % 1.0
    return np.asarray((place > 0.5 - fraction / 2) & (place < 0.5 + fraction / 2))


def _check_covariances(n_correlated: int, n_frames: int) -> list[str]:
    """Raise ValueError unless frames are enough to tell a covariance; warn where they are few."""
    if n_frames <= n_correlated:
        raise ValueError(
            f"The covariance of {n_correlated} coordinates is to be taken from {n_frames} frames; more than "
            f"{n_correlated} are needed for it to have a meaning, {FRAMES_EACH * n_correlated} for it to be of use. "
            "Give more frames, or make the generator with a FlowConfig of smaller group_size."
        )
    if n_frames < FRAMES_EACH * n_correlated:
        return [
            f"The covariance of {n_correlated} coordinates is taken from {n_frames} frames only, which makes it "
            f"uncertain: {FRAMES_EACH * n_correlated} or more are better."
        ]
    return []

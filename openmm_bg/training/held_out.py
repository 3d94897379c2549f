"""How likely frames that were held out of training are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.training.data import load_trajectory
from openmm_bg.training.dataset import N_BLOCKS, held_out_frames
from openmm_bg.training.rare_forms import frames_of_form


@dataclass(frozen=True)
class HeldOutNLL:
    """Mean of -log p of held-out frames.

    Attributes
    ----------
    nll : float
        In nats, with lengths in nm; inf if a frame is off the support.
    error : float
        Standard error, from the scatter between blocks of time.
    n_frames, n_blocks : int
    n_left_out : int
        Frames of rare forms that no generator of these coordinates proposes, such as cis peptide bonds.
    """

    nll: float
    error: float
    n_frames: int
    n_blocks: int
    n_left_out: int


def held_out_nll(generator: BoltzmannGenerator, trajectory: Any, *, fraction: float = 0.1) -> HeldOutNLL:
    """Mean of -`log_prob` of the frames that `fit` and `train` hold out.

    The density is that of positions, on the measure that OpenMM samples, modulo pose: the same for all generators of
    one molecule with the same constraints, whatever their flow or features, so that their values can be compared.
    Differences between generators are more precise than `error`, as the frames are the same. With reduced coordinates
    the density of the frozen ones is part of it, with `frozen="keep"` and "mean" that of "thermal".

    Parameters
    ----------
    generator : BoltzmannGenerator
        Unchanged.
    trajectory : as for `fit`
        What the generator was trained on, in the same order; or frames that it never saw, with `fraction` 1.
    fraction : float
        Share of each chain that was held out, as five blocks of time spread over it; in (0, 0.5], or 1 for all frames.

    Raises
    ------
    ValueError
        If the frames belong to another molecule, `fraction` is out of range, or there are too few frames.
    """
    if not (0.0 < fraction <= 0.5 or fraction == 1.0):
        raise ValueError(f"fraction is {fraction}; expected a number above 0, up to 0.5, or 1 for all frames.")
    chains = load_trajectory(trajectory, generator.topology)
    n_chains, n_frames = chains.shape[:2]
    chosen = np.ones(n_frames, dtype=bool) if fraction == 1.0 else held_out_frames(n_frames, fraction)
    block = np.arange(n_frames) * N_BLOCKS // max(n_frames, 1)
    blocks = np.concatenate([chain * N_BLOCKS + block[chosen] for chain in range(n_chains)])
    positions = chains[:, chosen].reshape(-1, *chains.shape[2:])
    with torch.no_grad():
        internal = generator.coordinates.to_internal(torch.as_tensor(positions, device=generator.device))
        kept = frames_of_form(generator, internal, generator.features.centre).cpu().numpy()
    found, counts = np.unique(blocks[kept], return_counts=True)
    if len(found) < 2:
        raise ValueError(
            f"{len(positions)} frames are held out, {np.count_nonzero(kept)} of them of the generator's form, in "
            f"{len(found)} blocks of time; expected at least two blocks. Give a longer trajectory or a larger fraction."
        )
    values = -generator._in_chunks(positions[kept], lambda x: generator._encode(x)[1])
    mean = float(values.mean())
    if not math.isfinite(mean):
        return HeldOutNLL(math.inf, math.nan, len(values), len(found), int((~kept).sum()))
    excess = np.array([(values[blocks[kept] == one] - mean).sum() for one in found])
    error = math.sqrt(len(found) / (len(found) - 1) * float(excess @ excess)) / int(counts.sum())
    return HeldOutNLL(mean, error, len(values), len(found), int((~kept).sum()))

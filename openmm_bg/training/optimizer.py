"""The optimizer of a generator's flow, and how many threads its small operations should have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from openmm_bg.generator import BoltzmannGenerator

ONE_THREAD_BELOW = 300  # degrees of freedom


@contextmanager
def one_thread_if_small(generator: BoltzmannGenerator) -> Iterator[None]:
    """One thread for a small flow: a second gains 1.2 on free cores and, spinning, loses tenfold on busy ones."""
    before = torch.get_num_threads()
    if generator.n_dof < ONE_THREAD_BELOW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_optimizer(generator: BoltzmannGenerator) -> torch.optim.Adam:
    """Adam, with the torsions' layers in a group of their own."""
    torsions, linear = list(generator.flow.torsion_parameters()), list(generator.flow.linear_parameters())
    groups = [{"params": torsions, "torsions": True}, {"params": linear, "torsions": False}]
    return torch.optim.Adam([group for group in groups if group["params"]], lr=1e-3)

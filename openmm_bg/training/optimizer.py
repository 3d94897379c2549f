"""The optimizer of a generator's flow, its gradients, and how many threads its small operations should have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.training.processes import Processes

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


def backward(
    losses: dict[str, Tensor], parameters: list[torch.nn.Parameter], processes: Processes, *, apart: bool
) -> dict[str, float]:
    """Leave the gradient of the sum of losses, over all processes, in `.grad`.

    Parameters
    ----------
    losses : dict of Tensor
        Scalars by name, at least one of which depends on the parameters.
    parameters : list of Parameter
    processes : Processes
    apart : bool
        Differentiate the losses one by one.

    Returns
    -------
    dict of float
        With `apart`, the norm of the gradient of each loss, as `NAME_gradient_norm`; else empty.
    """
    learned = {name: loss.double() for name, loss in losses.items() if loss.requires_grad}
    groups = [[name] for name in learned] if apart else [list(learned)]
    total: list[Tensor | None] = [None] * len(parameters)
    norms = dict.fromkeys((f"{name}_gradient_norm" for name in losses), 0.0) if apart else {}
    for group in groups:
        for parameter in parameters:
            parameter.grad = None
        torch.stack([learned[name] for name in group]).sum().backward(retain_graph=group is not groups[-1])
        processes.sum_gradients(parameters)
        found = [parameter.grad for parameter in parameters]
        if apart:
            norms[f"{group[0]}_gradient_norm"] = _norm(found)
        total = [
            new if old is None else old if new is None else old + new for old, new in zip(total, found, strict=True)
        ]
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient
    return norms


def _norm(tensors: list[Tensor | None]) -> float:
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors if tensor is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0

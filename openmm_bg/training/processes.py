"""The processes of one training run, started by torchrun: each computes its share of every batch.

All draw the same random numbers and hold the same parameters. Losses and gradients are sums over the shares, so that
several processes take the steps that one would take, to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from openmm_bg.density import FloatArray
from openmm_bg.training.stages import Stage

Value = TypeVar("Value")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """One process among those of a run.

    Attributes
    ----------
    rank, size : int
    group : ProcessGroup or None
        Gloo's, which takes what is on the CPU and works on every machine; None in a run of one process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def find(cls) -> Processes:
        """Find the processes that torchrun started, or torch.distributed was initialised with; one process otherwise.

        Raises
        ------
        RuntimeError
            If the processes do not find each other.
        """
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2 or any(name not in os.environ for name in _VARIABLES):
                return cls()
            dist.init_process_group("gloo")
        if dist.get_world_size() == 1:
            return cls()
        group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return cls(dist.get_rank(), dist.get_world_size(), group)

    def share(self, n: int) -> slice:
        """Rows of a batch of n that are this process's; sizes differ by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def check_batches(self, stages: Iterable[Stage]) -> None:
        """Raise ValueError if a batch is too small for every process to have a share of it."""
        for stage in stages:
            smallest = stage.batch_size // 4 if stage.conditional_kl else stage.batch_size
            if smallest < self.size:
                raise ValueError(
                    f"Stage {stage.name!r} has batches of {smallest}, which cannot be shared by {self.size} processes: "
                    f"raise its batch_size{' (conditional_kl uses a quarter)' if stage.conditional_kl else ''}, or "
                    "start fewer processes."
                )

    def sum(self, *values: float) -> list[float]:
        """Sums of numbers over the processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        self._together(dist.all_reduce, total)
        return [float(value) for value in total]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of the parameters by their sums over the processes."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = torch.cat([gradient.reshape(-1).cpu() for gradient in gradients])
        self._together(dist.all_reduce, total)
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, value: Value) -> Value:
        """Return what the first process gives: for decisions that depend on clocks, files or rounding."""
        if self.size == 1:
            return value
        values = [value]
        self._together(dist.broadcast_object_list, values, src=0)
        return values[0]

    def evaluate(self, function: Callable[[FloatArray], FloatArray], rows: FloatArray) -> FloatArray:
        """Values of a function of each row, shape (n, ...) to (n,); each process computes those of its share."""
        if self.size == 1:
            return function(rows)
        parts: list[Any] = [None] * self.size
        self._together(dist.all_gather_object, parts, function(rows[self.share(len(rows))]))
        return np.concatenate(parts)

    def join(self, own: Tensor) -> Tensor:
        """Rows of all processes, in their order; those of the others are constants."""
        if self.size == 1:
            return own
        parts: list[Any] = [None] * self.size
        self._together(dist.all_gather_object, parts, own.detach().cpu())
        return torch.cat([own if rank == self.rank else part.to(own.device) for rank, part in enumerate(parts)])

    def require_equal(self, names: dict[str, Any]) -> None:
        """Raise ValueError, in every process, if one was given something else than the first.

        Parameters
        ----------
        names : dict
            What must be the same, by what it is called in the message.
        """
        if self.size == 1:
            return
        others: list[Any] = [None] * self.size
        self._together(dist.all_gather_object, others, names)
        for rank, other in enumerate(others):
            differing = [name for name, value in others[0].items() if other[name] != value]
            if differing:
                raise ValueError(
                    f"Process {rank} of {self.size} was started with other {', '.join(differing)} than process 0; "
                    "start all of them with the same script, options and files."
                )

    def _together(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            operation(*arguments, group=self.group, **options)
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {self.rank} of {self.size} lost the others: one of them ended or cannot be reached. "
                f"What ended it is in its own messages. ({error})"
            ) from error

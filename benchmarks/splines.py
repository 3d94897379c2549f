"""The package's rational-quadratic spline beside zuko's."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

from benchmarks.molecules import Options
from benchmarks.table import Table
from benchmarks.timing import interleave, microseconds, ratio
from openmm_bg.flows.splines import n_parameters, rational_quadratic

N_FEATURES, N_BINS, BOUND = 30, 8, 5.0


def run(options: Options) -> Table:
    """Time both splines on the same numbers of configurations, features and bins, each in its own layout of memory."""
    rows: list[dict[str, Any]] = []
    for n in (256, 4096):
        functions = _tasks(n)
        times = interleave(functions, 5 if options.quick else 40)
        rows += [
            {
                "configurations": n,
                "task": task,
                "ours / us": microseconds(times, f"ours {task}", n),
                "zuko / us": microseconds(times, f"zuko {task}", n),
                "zuko / ours": ratio(times, f"zuko {task}", f"ours {task}"),
            }
            for task in ("forward", "inverse", "forward and gradient")
        ]
    most, least = max(row["zuko / ours"] for row in rows), min(row["zuko / ours"] for row in rows)
    notes = [
        f"{N_FEATURES} splines of {N_BINS} bins per configuration, float32, value and log slope, parameters included. "
        f"MonotonicRQSTransform of zuko {metadata.version('zuko')} takes {least:.1f} to {most:.1f} times as long: "
        "ours keeps the configurations last in memory, so that every operation runs along contiguous numbers."
    ]
    return Table("Splines", rows, notes)


def _tasks(n: int) -> dict[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(1)
    parameters = torch.randn(n_parameters(N_BINS, circular=False), N_FEATURES, n, generator=generator)
    x = 6.0 * torch.rand(N_FEATURES, n, generator=generator) - 3.0
    theirs = parameters.permute(2, 1, 0).contiguous()
    x_theirs = x.T.contiguous()

    def ours(inverse: bool = False, parameters: Tensor = parameters) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, parameters, bound=BOUND, circular=False, inverse=inverse)

    def zuko(inverse: bool = False, parameters: Tensor = theirs) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = parameters.split([N_BINS, N_BINS, N_BINS - 1], -1)
        spline = MonotonicRQSTransform(widths, heights, slopes, bound=BOUND)
        if not inverse:
            return spline.call_and_ladj(x_theirs)
        y = spline.inv(x_theirs)
        return y, -spline.log_abs_det_jacobian(y, x_theirs)

    def with_gradient(spline: Callable[..., tuple[Tensor, Tensor]], values: Tensor) -> None:
        leaf = values.detach().requires_grad_()
        y, log_slope = spline(parameters=leaf)
        (y.sum() + log_slope.sum()).backward()

    def quietly(spline: Callable[..., Any], inverse: bool) -> None:
        with torch.no_grad():
            spline(inverse)

    return {
        "ours forward": lambda: quietly(ours, False),
        "zuko forward": lambda: quietly(zuko, False),
        "ours inverse": lambda: quietly(ours, True),
        "zuko inverse": lambda: quietly(zuko, True),
        "ours forward and gradient": lambda: with_gradient(ours, parameters),
        "zuko forward and gradient": lambda: with_gradient(zuko, theirs),
    }

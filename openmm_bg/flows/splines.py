"""Monotone rational-quadratic splines on a line and on a circle.

Durkan et al. 2019, arXiv 1906.04032; circular: Rezende et al. 2020, arXiv 2002.02428.

A spline maps [-bound, bound] onto itself. On the line it continues with slope 1 outside; on the circle the slopes at
both ends are equal and bound = pi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

MIN_WIDTH = 1e-3
MIN_SLOPE = 1e-3
LEAST_TAILS = 1.5 * MIN_WIDTH
FEWEST_BINS = 4  # of `circular_marginal`
_SLOPE_OFFSET = math.log(math.expm1(1.0 - MIN_SLOPE))  # softplus of it is a slope of one


def n_parameters(n_bins: int, *, circular: bool) -> int:
    """Number of unconstrained parameters of one spline."""
    return 3 * n_bins if circular else 3 * n_bins - 1


def rational_quadratic(
    x: Tensor, parameters: Tensor, *, bound: float, circular: bool, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply a spline elementwise.

    Parameters
    ----------
    x : Tensor, shape (...)
    parameters : Tensor, shape (n_parameters, ...)
        Unconstrained; zeros give the identity. Parameters come first in memory too: every operation then runs along
        contiguous configurations, which on a CPU is several times faster.
    bound : float
        Half width of the interval that the spline maps onto itself.
    circular : bool
        Equal slopes at both ends, instead of slope 1 there and outside.
    inverse : bool
        Evaluate the inverse function.

    Returns
    -------
    y : Tensor, shape (...)
    log_slope : Tensor, shape (...)
        ln |dy/dx|.
    """
    n_bins = (len(parameters) + (0 if circular else 1)) // 3
    knots_x = _knots(parameters[:n_bins], bound)
    knots_y = _knots(parameters[n_bins : 2 * n_bins], bound)
    inside = x.clamp(-bound, bound)
    searched = (knots_y if inverse else knots_x).detach()
    bin_ = (inside >= searched[1:-1]).sum(0, keepdim=True)
    ends = torch.cat([bin_, bin_ + 1])
    x0, x1 = knots_x.gather(0, ends)
    y0, y1 = knots_y.gather(0, ends)
    raw_slopes = parameters[2 * n_bins :]
    if circular:
        d0, d1 = MIN_SLOPE + softplus(raw_slopes.gather(0, ends % n_bins) + _SLOPE_OFFSET)
    else:
        slope_index = (ends - 1).clamp(0, n_bins - 2)
        at_end = (ends == 0) | (ends == n_bins)
        d0, d1 = torch.where(at_end, 1.0, MIN_SLOPE + softplus(raw_slopes.gather(0, slope_index) + _SLOPE_OFFSET))
    width, height = x1 - x0, y1 - y0
    slope = height / width
    curvature = d0 + d1 - 2.0 * slope
    if inverse:
        offset = inside - y0
        a = height * (slope - d0) + offset * curvature
        b = height * d0 - offset * curvature
        c = -slope * offset
        root = (b * b - 4.0 * a * c).clamp_min(1e-30).sqrt()
        t = (-2.0 * c / (b + root)).clamp(0.0, 1.0)
        y = x0 + t * width
        rest = t * (1.0 - t)
        denominator = slope + curvature * rest
    else:
        t = (inside - x0) / width
        rest = t * (1.0 - t)
        denominator = slope + curvature * rest
        y = y0 + height * (slope * t * t + d0 * rest) / denominator
    numerator = d1 * t * t + 2.0 * slope * rest + d0 * (1.0 - t) ** 2
    log_slope = 2.0 * (slope / denominator).log() + numerator.log()
    if inverse:
        log_slope = -log_slope
    if not circular:
        outside = x.abs() > bound
        y = torch.where(outside, x, y)
        log_slope = torch.where(outside, 0.0, log_slope)
    return y, log_slope


def circular_marginal(angles: Tensor, n_bins: int, tails: float = LEAST_TAILS) -> tuple[float, Tensor]:
    """Centre of angles on a circle, and the circular spline that takes the uniform density to theirs around it.

    Parameters
    ----------
    angles : Tensor, shape (n,)
    n_bins : int
        At least `FEWEST_BINS`.
    tails : float
        Share of the angles in the first bin and in the last one; knots between are quantiles.

    Returns
    -------
    centre : float
        The direction of the mean.
    parameters : Tensor, shape (n_parameters,), float64, on the CPU
    """
    angles = angles.detach().cpu().double()
    centre = float(torch.atan2(angles.sin().mean(), angles.cos().mean()))
    around = torch.remainder(angles - centre + math.pi, 2.0 * math.pi) - math.pi
    end = torch.ones(1, dtype=torch.float64)
    mass = torch.cat([0.0 * end, torch.linspace(tails, 1.0 - tails, n_bins - 1, dtype=torch.float64), end])
    knots = torch.cat([-math.pi * end, torch.quantile(around, mass[1:-1]), math.pi * end])
    widths, heights = mass.diff(), (knots.diff() / (2.0 * math.pi)).clamp_min(1.1 * MIN_WIDTH)
    heights = heights / heights.sum()
    steepness = (heights / widths).log()
    slopes = (0.5 * (steepness + steepness.roll(1))).exp()
    raw = [(part - MIN_WIDTH).clamp_min(0.1 * MIN_WIDTH).log() for part in (widths, heights)]
    return centre, torch.cat([*raw, torch.expm1((slopes - MIN_SLOPE).clamp_min(1e-3)).log() - _SLOPE_OFFSET])


def _knots(unconstrained: Tensor, bound: float) -> Tensor:
    """Ordered knots from -bound to bound, shape (n_bins + 1, ...)."""
    n_bins = len(unconstrained)
    widths = MIN_WIDTH + (1.0 - MIN_WIDTH * n_bins) * torch.softmax(unconstrained, 0)
    inner = -bound + 2.0 * bound * widths[:-1].cumsum(0)
    end = torch.full_like(inner[:1], bound)
    return torch.cat([-end, inner, end])

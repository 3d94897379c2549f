"""Monotone rational-quadratic splines (Durkan et al. 2019, arXiv 1906.04032; circular: Rezende et al. 2020, 2002.02428).

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
    x : Tensor, shape (..., d)
    parameters : Tensor, shape (..., d, n_parameters)
        Unconstrained; zeros give the identity.
    bound : float
        Half width of the interval that the spline maps onto itself.
    circular : bool
        Equal slopes at both ends, instead of slope 1 there and outside.
    inverse : bool
        Evaluate the inverse function.

    Returns
    -------
    y : Tensor, shape (..., d)
    log_slope : Tensor, shape (..., d)
        ln |dy/dx|.
    """
    n_bins = (parameters.shape[-1] + (0 if circular else 1)) // 3
    knots_x = _knots(parameters[..., :n_bins], bound)
    knots_y = _knots(parameters[..., n_bins : 2 * n_bins], bound)
    slopes = MIN_SLOPE + softplus(parameters[..., 2 * n_bins :] + _SLOPE_OFFSET)
    if circular:
        slopes = torch.cat([slopes, slopes[..., :1]], -1)
    else:
        one = torch.ones_like(slopes[..., :1])
        slopes = torch.cat([one, slopes, one], -1)
    inside = x.clamp(-bound, bound)
    searched = knots_y if inverse else knots_x
    bin_ = (inside[..., None] >= searched[..., 1:-1]).sum(-1, keepdim=True)
    pairs = torch.stack([knots_x, knots_y, slopes], -2)
    left = pairs.gather(-1, bin_[..., None, :].expand(*bin_.shape[:-1], 3, 1))[..., 0]
    right = pairs.gather(-1, (bin_ + 1)[..., None, :].expand(*bin_.shape[:-1], 3, 1))[..., 0]
    x0, y0, d0 = left.unbind(-1)
    x1, y1, d1 = right.unbind(-1)
    width, height = x1 - x0, y1 - y0
    slope = height / width
    curvature = d0 + d1 - 2.0 * slope
    if inverse:
        offset = inside - y0
        a = height * (slope - d0) + offset * curvature
        b = height * d0 - offset * curvature
        c = -slope * offset
        root = (b * b - 4.0 * a * c).clamp_min(0.0).sqrt()
        t = (-2.0 * c / (b + root)).clamp(0.0, 1.0)
        y = x0 + t * width
    else:
        t = (inside - x0) / width
        y = y0 + height * (slope * t * t + d0 * t * (1.0 - t)) / (slope + curvature * t * (1.0 - t))
    rest = t * (1.0 - t)
    log_slope = (
        2.0 * slope.log()
        + (d1 * t * t + 2.0 * slope * rest + d0 * (1.0 - t) ** 2).log()
        - 2.0 * (slope + curvature * rest).log()
    )
    if inverse:
        log_slope = -log_slope
    if not circular:
        outside = x.abs() > bound
        y = torch.where(outside, x, y)
        log_slope = torch.where(outside, torch.zeros_like(log_slope), log_slope)
    return y, log_slope


def _knots(unconstrained: Tensor, bound: float) -> Tensor:
    """Ordered knots from -bound to bound, shape (..., n_bins + 1)."""
    n_bins = unconstrained.shape[-1]
    widths = MIN_WIDTH + (1.0 - MIN_WIDTH * n_bins) * torch.softmax(unconstrained, -1)
    inner = -bound + 2.0 * bound * widths[..., :-1].cumsum(-1)
    end = torch.full_like(inner[..., :1], bound)
    return torch.cat([-end, inner, end], -1)

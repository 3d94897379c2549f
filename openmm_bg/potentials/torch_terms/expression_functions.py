"""Functions and operators of OpenMM's expression language on tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Value = Tensor | float
TensorFunction = Callable[..., Tensor]


class _FiniteGradient(torch.autograd.Function):
    """Identity whose gradient is finite: a branch that was not selected sends back 0 * inf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.nan_to_num(gradients[0], nan=0.0)


def _select(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition != 0, x, y)


def _select_not_negative(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition >= 0, x, y)


FUNCTIONS: dict[str, tuple[int, TensorFunction]] = {
    "sqrt": (1, torch.sqrt),
    "exp": (1, torch.exp),
    "log": (1, torch.log),
    "sin": (1, torch.sin),
    "cos": (1, torch.cos),
    "sec": (1, lambda x: 1 / torch.cos(x)),
    "csc": (1, lambda x: 1 / torch.sin(x)),
    "tan": (1, torch.tan),
    "cot": (1, lambda x: 1 / torch.tan(x)),
    "asin": (1, torch.asin),
    "acos": (1, torch.acos),
    "atan": (1, torch.atan),
    "atan2": (2, torch.atan2),
    "sinh": (1, torch.sinh),
    "cosh": (1, torch.cosh),
    "tanh": (1, torch.tanh),
    "erf": (1, torch.erf),
    "erfc": (1, torch.erfc),
    "step": (1, lambda x: (x >= 0).to(x.dtype)),
    "delta": (1, lambda x: (x == 0).to(x.dtype)),
    "square": (1, lambda x: x * x),
    "cube": (1, lambda x: x * x * x),
    "recip": (1, torch.reciprocal),
    "min": (2, torch.minimum),
    "max": (2, torch.maximum),
    "abs": (1, torch.abs),
    "floor": (1, torch.floor),
    "ceil": (1, torch.ceil),
    "select": (3, _select),
}
OPERATORS: dict[str, TensorFunction] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": operator.pow,
    "negate": operator.neg,
    "select>=0": _select_not_negative,
}
TAKE_NUMBERS = {"+", "-", "*", "/", "^"}  # beside a tensor
SINGULAR = {"/", "^", "sqrt", "log", "asin", "acos", "recip", "sec", "csc", "tan", "cot"}


def finite_gradient(value: Value) -> Value:
    """The value, whose gradient becomes zero where it is not a number."""
    if isinstance(value, Tensor) and value.requires_grad:
        return _FiniteGradient.apply(value)
    return value

"""OpenMM's expression language (Lepton), read into a list of torch operations: nothing is ever passed to `eval`.

`Expression("k*(r-r0)^2; k=100")(variables)` evaluates on tensors that broadcast against each other. Equal parts are
computed once, whatever depends on parameters alone stays as small as the parameters, and integer
powers become products.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_bg.potentials.torch_terms.expression_functions import (
    FUNCTIONS,
    OPERATORS,
    SINGULAR,
    TAKE_NUMBERS,
    TensorFunction,
    Value,
    finite_gradient,
)

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<function>[^\s+\-*/^,();=]+\()"
    r"|(?P<name>[^\s+\-*/^,();=]+)|(?P<symbol>[+\-*/^(),])"
)
_PRECEDENCE = {"+": 0, "-": 0, "*": 1, "/": 1, "^": 3}
_NEGATION = 2  # binds tighter than a product, looser than a power: -x^2 is -(x^2)
_LARGEST_PRODUCT = 24  # integer powers up to this one become products


class ExpressionError(ValueError):
    """An expression that OpenMM's language does not allow; the message shows the place."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


@dataclass(frozen=True)
class _Step:
    """One operation: a constant, a variable, or a function of earlier steps."""

    kind: str  # "constant", "variable", "operation", "custom"
    name: str
    arguments: tuple[int, ...] = ()
    value: float = 0.0


class Expression:
    """A compiled expression of OpenMM's language.

    Parameters
    ----------
    text
        The expression, with sub-definitions after semicolons; each may use those to its right.
    functions
        Functions beyond the language's own, by name: tabulated ones, or `distance`, `angle`, `dihedral` of points. They
        take and return tensors.

    Attributes
    ----------
    variables : frozenset of str
        The names that have to be given for an evaluation.

    Raises
    ------
    ExpressionError
        Where the text is not an expression of the language; the message has the position.
    """

    def __init__(self, text: str, functions: Mapping[str, TensorFunction] | None = None):
        self.text = text
        self._functions = dict(functions or {})
        self._steps: list[_Step] = []
        self._numbers: dict[_Step, int] = {}
        self._result = self._parse_all()
        self._drop_unused()
        self.variables = frozenset(step.name for step in self._steps if step.kind == "variable")
        self._guarded = self._find_guarded()

    def __call__(self, variables: Mapping[str, Value], like: Tensor | None = None) -> Value:
        """Value of the expression; a number where only numbers went in.

        Parameters
        ----------
        variables
            Tensors that broadcast against each other, or numbers.
        like
            Give a tensor, and a result that is a number becomes a tensor of its type and device.
        """
        missing = self.variables - variables.keys()
        if missing:
            raise ExpressionError(f"'{self.text}' needs {sorted(missing)}, which are not defined here")
        values: list[Value] = []
        entering: dict[tuple[int, tuple[int, int]], Value] = {}
        reciprocals: dict[int, Tensor] = {}
        for number, step in enumerate(self._steps):
            if step.kind == "constant":
                values.append(step.value)
            elif step.kind == "variable":
                values.append(variables[step.name])
            else:
                arguments = [values[index] for index in step.arguments]
                for position, branch in self._guarded.get(number, ()):
                    key = step.arguments[position], branch
                    if key not in entering:
                        entering[key] = finite_gradient(arguments[position])
                    arguments[position] = entering[key]
                divisor = arguments[-1]
                if step.name == "/" and isinstance(divisor, Tensor) and divisor.requires_grad:
                    # the gradient of a product is the cheaper one, and several quotients often share a divisor
                    if id(divisor) not in reciprocals:
                        reciprocals[id(divisor)] = divisor.reciprocal()
                    reciprocal = reciprocals[id(divisor)]
                    is_one = not isinstance(arguments[0], Tensor) and arguments[0] == 1.0
                    values.append(reciprocal if is_one else arguments[0] * reciprocal)
                else:
                    values.append(self._apply(step, arguments))
        result = values[-1]
        if like is not None and not isinstance(result, Tensor):
            return torch.full((), result, dtype=like.dtype, device=like.device)
        return result

    def _apply(self, step: _Step, arguments: list[Value]) -> Value:
        if step.kind == "custom":
            function = self._functions[step.name]
        else:
            function = OPERATORS[step.name] if step.name in OPERATORS else FUNCTIONS[step.name][1]
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if not tensors:
            return float(function(*(torch.tensor(argument, dtype=torch.float64) for argument in arguments)))
        if step.name not in TAKE_NUMBERS:
            arguments = [a if isinstance(a, Tensor) else tensors[0].new_full((), a) for a in arguments]
        return function(*arguments)

    def _parse_all(self) -> int:
        definitions: dict[str, int] = {}
        end = len(self.text)
        while True:
            start = self.text.rfind(";", 0, end) + 1
            if start == 0:
                break
            part = self.text[start:end]
            if part.strip():
                name, equals, _ = part.partition("=")
                if not equals or not name.strip():
                    raise self._error("a sub-definition of the form 'name = expression' was expected", start)
                definitions[name.strip()] = self._parse(start + len(name) + 1, end, definitions)
            end = start - 1
        return self._parse(0, end, definitions)

    def _parse(self, start: int, end: int, definitions: Mapping[str, int]) -> int:
        tokens = self._tokens(start, end)
        result, rest = self._parse_operand(tokens, 0, definitions, 0)
        if rest < len(tokens) - 1:
            raise self._error(f"unexpected '{tokens[rest].text}'", tokens[rest].position)
        return result

    def _tokens(self, start: int, end: int) -> list[_Token]:
        tokens = []
        position = start
        while position < end:
            match = _TOKEN.match(self.text, position, end)
            if match is None:
                raise self._error(f"unexpected '{self.text[position]}'", position)
            if match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match.group(), position))
            position = match.end()
        return [*tokens, _Token("end", "end of the expression", end)]

    def _parse_operand(
        self, tokens: Sequence[_Token], at: int, definitions: Mapping[str, int], precedence: int
    ) -> tuple[int, int]:
        """Parse one value and the operators behind it that bind at least as tightly as `precedence`."""
        token = tokens[at]
        if token.kind == "number":
            result, at = self._constant(float(token.text)), at + 1
        elif token.kind == "name":
            known = definitions.get(token.text)
            result, at = (self._add(_Step("variable", token.text)) if known is None else known), at + 1
        elif token.text == "(":
            result, at = self._parse_operand(tokens, at + 1, definitions, 0)
            at = self._closing(tokens, at)
        elif token.kind == "function":
            arguments = []
            at += 1
            while True:
                argument, at = self._parse_operand(tokens, at, definitions, 0)
                arguments.append(argument)
                if tokens[at].text != ",":
                    break
                at += 1
            at = self._closing(tokens, at)
            result = self._function(token, arguments)
        elif token.text == "-":
            operand, at = self._parse_operand(tokens, at + 1, definitions, _NEGATION)
            result = self._operation("negate", operand)
        else:
            raise self._error(f"unexpected {token.text if token.kind == 'end' else repr(token.text)}", token.position)
        while tokens[at].text in _PRECEDENCE and _PRECEDENCE[tokens[at].text] >= precedence:
            symbol = tokens[at].text
            right = _PRECEDENCE[symbol] + (symbol != "^")  # only powers group from the right
            operand, at = self._parse_operand(tokens, at + 1, definitions, right)
            result = self._power(result, operand) if symbol == "^" else self._operation(symbol, result, operand)
        return result, at

    def _closing(self, tokens: Sequence[_Token], at: int) -> int:
        if tokens[at].text != ")":
            raise self._error(f"')' expected, {tokens[at].text} found", tokens[at].position)
        return at + 1

    def _function(self, token: _Token, arguments: list[int]) -> int:
        name = token.text[:-1]
        if name in self._functions:
            return self._add(_Step("custom", name, tuple(arguments)))
        if name not in FUNCTIONS:
            raise self._error(
                f"unknown function '{name}'; known are {', '.join([*FUNCTIONS, *self._functions])}", token.position
            )
        expected = FUNCTIONS[name][0]
        if len(arguments) != expected:
            raise self._error(f"{name} takes {expected} arguments, {len(arguments)} found", token.position)
        condition = self._steps[arguments[0]]
        if name == "select" and condition.name == "step" and condition.kind == "operation":
            return self._operation("select>=0", condition.arguments[0], *arguments[1:])
        return self._operation(name, *arguments)

    def _power(self, base: int, exponent: int) -> int:
        step = self._steps[exponent]
        if step.kind == "constant" and step.value.is_integer() and 0 < abs(step.value) <= _LARGEST_PRODUCT:
            base = base if step.value > 0 else self._operation("/", self._constant(1.0), base)
            return self._product(base, abs(int(step.value)))
        return self._operation("^", base, exponent)

    def _product(self, base: int, exponent: int) -> int:
        if exponent == 1:
            return base
        half = self._product(base, exponent // 2)
        square = self._operation("*", half, half)
        return self._operation("*", square, base) if exponent % 2 else square

    def _constant(self, value: float) -> int:
        return self._add(_Step("constant", "", (), value))

    def _operation(self, name: str, *arguments: int) -> int:
        step = _Step("operation", name, arguments)
        if name == "/":
            numerator, divisor = (self._steps[index] for index in arguments)
            if numerator.value == 1.0 and divisor.name == "*" and len(set(divisor.arguments)) == 1:
                return self._product(self._operation("/", arguments[0], divisor.arguments[0]), 2)  # 1/x is often there
        if all(self._steps[index].kind == "constant" for index in arguments):
            value = self._apply(step, [self._steps[index].value for index in arguments])
            if math.isfinite(value):
                return self._constant(float(value))
        return self._add(step)

    def _add(self, step: _Step) -> int:
        if step not in self._numbers:
            self._numbers[step] = len(self._steps)
            self._steps.append(step)
        return self._numbers[step]

    def _drop_unused(self) -> None:
        """Keep what the result needs; it is the last step, since every step follows its arguments."""
        needed = {self._result}
        for number in range(self._result, -1, -1):
            if number in needed:
                needed.update(self._steps[number].arguments)
        kept = sorted(needed)
        renumbered = {old: new for new, old in enumerate(kept)}
        self._steps = [
            _Step(s.kind, s.name, tuple(renumbered[index] for index in s.arguments), s.value)
            for s in (self._steps[old] for old in kept)
        ]

    def _find_guarded(self) -> dict[int, list[tuple[int, tuple[int, int]]]]:
        """For every step the arguments, with branch, that enter a branch of `select` whose gradient can be infinite.

        A step belongs to a branch if nothing else uses it. Where the branch is not selected, whatever comes back from
        it to its inputs, NaN from 0 * inf included, is zero.
        """
        users: list[list[tuple[int, int]]] = [[] for _ in self._steps]
        for number, step in enumerate(self._steps):
            for position, index in enumerate(step.arguments):
                users[index].append((number, position))
        branches: list[tuple[int, int] | None] = [None] * len(self._steps)

        def branch_of(user: int, position: int) -> tuple[int, int] | None:
            is_branch = position > 0 and self._steps[user].name in ("select", "select>=0")
            return (user, position) if is_branch else branches[user]

        for number in range(len(self._steps) - 2, -1, -1):
            if self._steps[number].kind == "variable":
                continue
            found = {branch_of(*use) for use in users[number]}
            branches[number] = found.pop() if len(found) == 1 else None
        singular = {branches[number] for number, step in enumerate(self._steps) if step.name in SINGULAR}
        guarded: dict[int, list[tuple[int, tuple[int, int]]]] = {}
        for number, uses in enumerate(users):
            for user, position in uses:
                branch = branch_of(user, position)
                if branch is not None and branch in singular and branch != branches[number]:
                    guarded.setdefault(user, []).append((position, branch))
        inside = {user for user, positions in guarded.items() if positions}
        for number in range(len(self._steps) - 1, -1, -1):  # what branches share with the rest: each by itself
            step = self._steps[number]
            if any(branch_of(*use) is not None or use[0] in inside for use in users[number]):
                inside.add(number)
                if step.name in SINGULAR and branches[number] is None:
                    guarded[number] = [(position, (number, position)) for position in range(len(step.arguments))]
        return guarded

    def _error(self, problem: str, position: int) -> ExpressionError:
        return ExpressionError(
            f"{problem} at position {position} of the expression\n  {self.text}\n  {' ' * position}^"
        )

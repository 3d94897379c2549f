"""The expression language against OpenMM itself: a CustomIntegrator evaluates the same text on the same numbers."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openmm_bg.potentials.torch_terms.expression import Expression, ExpressionError

NAMES = ("a", "b", "c")


def openmm_values(text: str, arguments: np.ndarray) -> np.ndarray:
    """OpenMM's values of an expression of a, b and c at arguments (3, n)."""
    n_particles = -(-arguments.shape[1] // 3)
    padded = np.ones((3, 3 * n_particles))
    padded[:, : arguments.shape[1]] = arguments
    system = openmm.System()
    for _ in range(n_particles):
        system.addParticle(1.0)
    integrator = openmm.CustomIntegrator(0.001)
    for name in (*NAMES, "result"):
        integrator.addPerDofVariable(name, 0.0)
    integrator.addComputePerDof("result", text)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.zeros((n_particles, 3)))
    for name, values in zip(NAMES, padded, strict=True):
        integrator.setPerDofVariableByName(name, values.reshape(-1, 3).tolist())
    integrator.step(1)
    result = np.array([[v[0], v[1], v[2]] for v in integrator.getPerDofVariableByName("result")])
    return result.reshape(-1)[: arguments.shape[1]]


def openmm_derivatives(text: str, arguments: np.ndarray) -> np.ndarray:
    """OpenMM's derivative with respect to a of an expression, from the force of a CustomExternalForce."""
    system, force = openmm.System(), openmm.CustomExternalForce(text + ";a=x")
    for name in NAMES[1:]:
        force.addPerParticleParameter(name)
    for index, (_, b, c) in enumerate(arguments.T):
        system.addParticle(1.0)
        force.addParticle(index, [b, c])
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(1.0), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.column_stack([arguments[0], np.zeros((arguments.shape[1], 2))]))
    return -context.getState(getForces=True).getForces(asNumpy=True)._value[:, 0]


def torch_values(text: str, arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tensors = dict(zip(NAMES, torch.tensor(arguments, dtype=torch.float64), strict=True))
    tensors["a"].requires_grad_()
    result = Expression(text)(tensors, like=tensors["a"])
    assert isinstance(result, torch.Tensor)
    result = result + 0 * tensors["a"].detach()
    derivative = torch.zeros_like(tensors["a"])
    if result.requires_grad:
        (derivative,) = torch.autograd.grad(result.sum(), tensors["a"])
    return result.detach().numpy(), derivative.numpy()


def random_arguments(low: float, high: float, n: int = 30) -> np.ndarray:
    return np.random.default_rng(1).uniform(low, high, (3, n))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        *((f"{name}(a)", 0.05, 4.0) for name in ("sqrt", "log", "recip", "csc", "cot")),
        *((f"{name}(a)", -3.0, 3.0) for name in ("exp", "sin", "cos", "tan", "sec", "atan", "sinh", "cosh", "tanh")),
        *((f"{name}(a)", -3.0, 3.0) for name in ("erf", "erfc", "square", "cube", "abs", "floor", "ceil")),
        *((f"{name}(a)", -0.99, 0.99) for name in ("asin", "acos", "step")),
        *((f"{name}(a,b)", -3.0, 3.0) for name in ("atan2", "min", "max")),
        ("select(step(a-b),a*b,sin(c))", -2.0, 2.0),
        ("select(a-b,a*b,sin(c))", -2.0, 2.0),
        ("b*delta(a)+delta(0)+select(0,1,2)+step(0)", -2.0, 2.0),
        *((f"a^{exponent}", 0.2, 2.0) for exponent in ("2", "3", "6", "12", "24", "25", "0.5", "1.5", "b", "0")),
        *((f"a^{exponent}", -2.0, -0.2) for exponent in ("2", "(-1)", "-3", "-7", "12")),
        ("-a^2", -2.0, 2.0),
        ("2^-a^2", -2.0, 2.0),
        ("a^b^c", 0.3, 1.7),
        ("(a^b)^c", 0.3, 1.7),
        ("a-b-c", -2.0, 2.0),
        ("a/b/c*a", 0.5, 2.0),
        ("-a*-b--c", -2.0, 2.0),
        ("-(a+b)*c", -2.0, 2.0),
        ("--a", -2.0, 2.0),
        ("1.5e-1*a + .5*b+2.*c + 1E+1 +3e0", -2.0, 2.0),
        ("x*y; x=y+a; y=b*c", -2.0, 2.0),
        ("x*y; x=y+a ; y = b*c;", -2.0, 2.0),
        ("a*x; x=2*b; b=c", -2.0, 2.0),
        (" min( a , b ) ", -2.0, 2.0),
        ("0.5*(1/L-1/U+0.25*(a-b^2/a)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/a);U=a+b;L=max(c,D);D=abs(a-b)", 0.1, 0.5),
    ],
)
def test_value_and_derivative_equal_openmm(text: str, low: float, high: float) -> None:
    arguments = random_arguments(low, high)
    values, derivatives = torch_values(text, arguments)
    np.testing.assert_allclose(values, openmm_values(text, arguments), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(derivatives, openmm_derivatives(text, arguments), rtol=1e-10, atol=1e-11)


def _texts() -> st.SearchStrategy[str]:
    leaves = st.one_of(st.sampled_from(NAMES), st.floats(0.1, 3.0).map(lambda x: f"{x:.3g}"))

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, st.sampled_from("+-*"), inner).map("".join),
            inner.map("({})".format),
            inner.map("-{}".format),
            st.tuples(inner, st.sampled_from(["^2", "^3", "^-2", "/2"])).map("".join),
            st.tuples(st.sampled_from(["sin", "cos", "tanh", "abs", "erf", "step"]), inner).map(
                "{0[0]}({0[1]})".format
            ),
            st.tuples(st.sampled_from(["min", "max"]), inner, inner).map("{0[0]}({0[1]},{0[2]})".format),
        )

    return st.recursive(leaves, grow, max_leaves=8)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(_texts())
def test_random_expressions_group_as_in_openmm(text: str) -> None:
    arguments = random_arguments(0.3, 1.7, n=6)
    expected = openmm_values(text, arguments)
    values, _ = torch_values(text, arguments)
    moderate = np.isfinite(expected) & (np.abs(expected) < 1e8)
    np.testing.assert_allclose(values[moderate], expected[moderate], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("text", "position", "word"),
    [
        ("a+", 2, "end of the expression"),
        ("a b", 2, "unexpected 'b'"),
        ("(a+b", 4, r"'\)' expected"),
        ("a+b)", 3, "unexpected"),
        ("a+sine(b)", 2, "unknown function 'sine'"),
        ("sin (a)", 4, "unexpected"),
        ("atan2(a)", 0, "takes 2 arguments, 1 found"),
        ("a+*b", 2, r"unexpected '\*'"),
        ("+a", 0, "unexpected"),
        ("a; 2*b", 2, "sub-definition"),
        ("a*x; x=b+", 9, "end of the expression"),
        ("a==b", 1, "unexpected '='"),
        ("", 0, "end of the expression"),
    ],
)
def test_errors_name_the_position(text: str, position: int, word: str) -> None:
    with pytest.raises(ExpressionError, match=word) as error:
        Expression(text)
    assert f"position {position} " in str(error.value)
    assert str(error.value).endswith("\n  " + " " * position + "^")


def test_missing_variable_is_named() -> None:
    with pytest.raises(ExpressionError, match=r"\['k'\]"):
        Expression("k*a")({"a": torch.ones(2)})


def test_variables_are_those_that_the_result_needs() -> None:
    assert Expression("a+x; x=b*b; unused=c").variables == {"a", "b"}


def test_numbers_alone_give_a_number() -> None:
    assert Expression("1+k^2; k=2*j")({"j": 1.5}) == pytest.approx(10.0)
    assert Expression("1/j")({"j": 0.0}) == np.inf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select(step(a-1), sqrt(a)+1/a+log(a), a^2)", [-2.0, 0.0, 1 / 4 - 1 / 16 + 1 / 4]),
        ("select(step(a-1), log(L), 2*L)+select(step(a-1), L^0.5, a); L=a-1", [3.0, 3.0, 1 / 3 + 0.5 / 3**0.5]),
        ("select(step(a-1), S, a)+select(step(a-1), 2*S, a); S=sqrt(a)", [2.0, 2.0, 0.75]),
        ("select(step(a-1), select(step(a-2), 1/a, sqrt(-a)), a)", [1.0, 1.0, -1 / 16]),
    ],
)
def test_branch_that_is_not_selected_leaves_the_gradient_finite(text: str, expected: list[float]) -> None:
    a = torch.tensor([-1.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    result = Expression(text)({"a": a})
    assert isinstance(result, torch.Tensor)
    (gradient,) = torch.autograd.grad(result.sum(), a)
    np.testing.assert_allclose(gradient.numpy(), expected)


def test_equal_parts_are_computed_once() -> None:
    calls = []

    def table(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x

    Expression("(table(a)+1)^2+table(a)*b; b=table(a)", {"table": table})({"a": torch.ones(2)})
    assert len(calls) == 1

"""CustomBondForce, CustomAngleForce, CustomTorsionForce, CustomExternalForce and CustomCompoundBondForce."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor, nn

from openmm_bg.potentials.torch_terms import geometry
from openmm_bg.potentials.torch_terms.expression import Expression, ExpressionError
from openmm_bg.potentials.torch_terms.tabulated import tabulated_functions
from openmm_bg.potentials.torch_terms.term import Parameters, Term, UnsupportedForce, register

Geometry = Callable[[Tensor, Tensor], dict[str, Tensor]]


def compile_expression(force: openmm.Force, text: str, functions: Mapping[str, Any] | None = None) -> Expression:
    """Compile an expression of a force.

    Raises
    ------
    UnsupportedForce
        With the force's name where the expression cannot be read.
    """
    try:
        return Expression(text, functions)
    except ExpressionError as error:
        raise UnsupportedForce(f"The force {force.getName()!r} ({type(force).__name__}): {error}") from error


class CustomBondedTerm(Term):
    """Sum of one expression over groups of atoms, as many atoms in every group.

    Parameters
    ----------
    force
        The force, for its name, group, expression, per-group and global parameters.
    atoms
        Atoms of every group (k, m).
    values
        Values of the per-group parameters (k, number of parameters).
    names
        Names of the per-group parameters.
    variables
        From coordinates (3, n_atoms, n) and atoms (m, k) to the expression's variables, (k, n) or (3, k, n), by name.
    tables
        Tabulated functions by name; they follow the term to its device.
    functions
        Further functions beyond those of the language.
    """

    def __init__(
        self,
        force: Any,
        atoms: list[Any],
        values: list[Any],
        names: list[str],
        variables: Geometry,
        tables: nn.ModuleDict | None = None,
        functions: Mapping[str, Any] | None = None,
    ) -> None:
        width = len(atoms[0]) if atoms else 1
        super().__init__(force, elements=3 * width * len(atoms))
        self.names, self._variables = names, variables
        self.tables = tables or nn.ModuleDict()
        self.expression = compile_expression(force, force.getEnergyFunction(), {**(functions or {}), **self.tables})
        self.atoms = self.store("atoms", np.asarray(atoms, dtype=np.int64).reshape(len(atoms), width).T, torch.int64)
        self.values = self.store("values", np.asarray(values, dtype=np.float64).reshape(len(atoms), len(names)).T)

    def forward(self, positions: Tensor, parameters: Parameters) -> Tensor:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3) in nm."""
        n_groups = self.atoms.shape[1]
        if n_groups == 0:
            return positions.new_zeros(len(positions))
        x = geometry.configurations_last(positions)
        given: dict[str, Tensor | float] = {name: parameters[name] for name in self.defaults}
        given.update(zip(self.names, self.values.to(x.dtype)[:, :, None], strict=True))
        given.update(self._variables(x, self.atoms))
        energy = self.expression(given, like=x)
        assert isinstance(energy, Tensor)
        return energy.expand(n_groups, len(positions)).sum(0)


def _build(force: Any, kind: str, n_atoms: int, variables: Geometry) -> CustomBondedTerm:
    terms = [getattr(force, f"get{kind}Parameters")(index) for index in range(getattr(force, f"getNum{kind}s")())]
    names = [
        getattr(force, f"getPer{kind}ParameterName")(index)
        for index in range(getattr(force, f"getNumPer{kind}Parameters")())
    ]
    tables = tabulated_functions(force) if hasattr(force, "getNumTabulatedFunctions") else None
    atoms = [list(term[:n_atoms]) for term in terms]
    return CustomBondedTerm(force, atoms, [term[n_atoms] for term in terms], names, variables, tables)


@register(openmm.CustomBondForce)
def _custom_bond(force: openmm.CustomBondForce, system: openmm.System) -> CustomBondedTerm:
    return _build(force, "Bond", 2, lambda x, atoms: {"r": geometry.distances(x, *atoms)})


@register(openmm.CustomAngleForce)
def _custom_angle(force: openmm.CustomAngleForce, system: openmm.System) -> CustomBondedTerm:
    return _build(force, "Angle", 3, lambda x, atoms: {"theta": geometry.angles(x, *atoms)})


@register(openmm.CustomTorsionForce)
def _custom_torsion(force: openmm.CustomTorsionForce, system: openmm.System) -> CustomBondedTerm:
    return _build(force, "Torsion", 4, lambda x, atoms: {"theta": geometry.dihedrals(x, *atoms)})


@register(openmm.CustomExternalForce)
def _custom_external(force: openmm.CustomExternalForce, system: openmm.System) -> CustomBondedTerm:
    return _build(force, "Particle", 1, lambda x, atoms: dict(zip("xyz", x.index_select(1, atoms[0]), strict=True)))


@register(openmm.CustomCompoundBondForce)
def _custom_compound_bond(force: openmm.CustomCompoundBondForce, system: openmm.System) -> CustomBondedTerm:
    terms = [force.getBondParameters(index) for index in range(force.getNumBonds())]
    names = [force.getPerBondParameterName(index) for index in range(force.getNumPerBondParameters())]
    atoms, values = [term[0] for term in terms], [term[1] for term in terms]
    return CustomBondedTerm(force, atoms, values, names, _points, tabulated_functions(force), _POINT_FUNCTIONS)


def _points(x: Tensor, atoms: Tensor) -> dict[str, Tensor]:
    """Variables x1, y1, z1, x2, ... (k, n), and the points p1, p2, ... (3, k, n) that `distance` takes."""
    variables: dict[str, Tensor] = {}
    for number, indices in enumerate(atoms, start=1):
        point = x.index_select(1, indices)
        variables[f"p{number}"] = point
        variables.update({f"{axis}{number}": point[i] for i, axis in enumerate("xyz")})
    return variables


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return geometry.length(b - a)


def _angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return geometry.angle_between(a - b, c - b)


def _dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return geometry.dihedral_of(b - a, c - b, d - c)


def _of_coordinates(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def evaluate(*coordinates: Tensor) -> Tensor:
        together = torch.broadcast_tensors(*coordinates)
        return function(*(torch.stack(together[i : i + 3]) for i in range(0, len(together), 3)))

    return evaluate


_POINT_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "distance": _distance,
    "angle": _angle,
    "dihedral": _dihedral,
    "pointdistance": _of_coordinates(_distance),
    "pointangle": _of_coordinates(_angle),
    "pointdihedral": _of_coordinates(_dihedral),
}

"""Constraints as fixed internal coordinates, and the metric that constrained dynamics samples with.

With constraints sigma(x) = 0, eliminated coordinates e and remaining f, OpenMM samples

    log pi(f) = -beta U + log J + 1/2 ln det Z - ln |det(d sigma / d e)|,      Z = C M^-1 C^T,  C = d sigma / d x.

Here each constraint is the length of a bond of the z-matrix, or a 1-3 distance across an angle of the z-matrix whose
two bonds are constrained too; then the last term is constant. Any other constraint is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import openmm
import openmm.app
import torch
from openmm import unit
from torch import Tensor, nn

from openmm_bg.coordinates.zmatrix import ZMatrix


@dataclass(frozen=True)
class Constraints:
    """The constraints of a System in terms of a z-matrix.

    Attributes
    ----------
    pairs : tuple of (int, int)
        Constrained pairs of atoms, the first index the smaller.
    fixed_bonds : dict of int to float
        Index of a bond (the order of `Internal.bonds`) and its exact length in nm.
    fixed_angles : dict of int to float
        Index of an angle (the order of `Internal.angles`) and its exact value in rad.
    log_jacobian : float
        ln abs det(d sigma / d e), of the 1-3 distances by the angles that they fix, in nm: without it a density would
        be off by a constant, which only an absolute free energy sees.
    """

    pairs: tuple[tuple[int, int], ...]
    fixed_bonds: dict[int, float]
    fixed_angles: dict[int, float]
    log_jacobian: float = 0.0


def find_constraints(system: openmm.System, zmatrix: ZMatrix, topology: openmm.app.Topology) -> Constraints:
    """Map the constraints of a System to coordinates of a z-matrix that are fixed.

    Raises
    ------
    ValueError
        If a constraint is not a bond of the z-matrix nor an angle of it between two constrained bonds: its Jacobian
        is not constant and leaving it out would bias the ensemble.
    """
    atoms = list(topology.atoms())
    bond_index, angle_index = _coordinate_indices(zmatrix)
    lengths: dict[tuple[int, int], float] = {}
    for index in range(system.getNumConstraints()):
        i, j, distance = system.getConstraintParameters(index)
        pair = (min(i, j), max(i, j))
        if pair in lengths:
            raise ValueError(f"The System constrains {_name(atoms, pair)} twice; remove the redundant constraint.")
        lengths[pair] = distance.value_in_unit(unit.nanometer)
    fixed_bonds = {bond_index[pair]: length for pair, length in lengths.items() if pair in bond_index}
    fixed_angles = {}
    log_jacobian = 0.0
    for pair, length in lengths.items():
        if pair in bond_index:
            continue
        found = angle_index.get(pair)
        sides = [] if found is None else [lengths.get(_pair(end, found[1])) for end in pair]
        if found is None or None in sides:
            raise ValueError(
                f"The System constrains the distance {_name(atoms, pair)}, which is neither a bond nor an angle "
                "between two constrained bonds of the internal coordinates (a bond that closes a ring, an H-H "
                "distance, or a 1-3 distance with a free bond). Its Jacobian varies from one configuration to the "
                "next and is not implemented: build the System with constraints=HBonds or constraints=None."
            )
        first, second = (float(side) for side in sides if side is not None)
        cosine = (first**2 + second**2 - length**2) / (2.0 * first * second)
        if not -1.0 < cosine < 1.0:
            raise ValueError(f"The constraint {_name(atoms, pair)} of {length} nm does not close with its two bonds.")
        fixed_angles[found[0]] = float(np.arccos(cosine))
        log_jacobian += float(np.log(first * second * np.sqrt(1.0 - cosine**2) / length))
    return Constraints(tuple(lengths), fixed_bonds, fixed_angles, log_jacobian)


def _pair(i: int, j: int) -> tuple[int, int]:
    return (min(i, j), max(i, j))


def _coordinate_indices(
    zmatrix: ZMatrix,
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], tuple[int, int]]]:
    """Index of the bond of each bonded pair; index and central atom of the angle of each 1-3 pair."""
    a0, a1, a2 = zmatrix.seed
    bonds = {_pair(a0, a1): 0, _pair(a1, a2): 1}
    angles = {_pair(a0, a2): (0, a1)}
    for row, (atom, (p1, p2, _)) in enumerate(zip(zmatrix.atoms, zmatrix.references, strict=True)):
        bonds[_pair(int(atom), int(p1))] = row + 2
        angles[_pair(int(atom), int(p2))] = (row + 1, int(p1))
    return bonds, angles


def _name(atoms: list[openmm.app.topology.Atom], pair: tuple[int, int]) -> str:
    return " - ".join(f"{atoms[i].residue.name}{atoms[i].residue.id}:{atoms[i].name} (atom {i})" for i in pair)


class ConstraintMetric(nn.Module):
    """1/2 ln det Z of the constraints as a function of positions.

    Z is block-diagonal over groups of constraints that share atoms. A group around one central atom X, with outer
    masses m_i and bond directions e_i, has det Z = det(I3 + sum_i (m_i/m_X) e_i e_i^T) / prod_i m_i; other groups
    are done by a Cholesky decomposition.

    Parameters
    ----------
    pairs : sequence of (int, int)
        Constrained pairs of atoms.
    masses : sequence of float
        Masses of all atoms in amu, the System's own.
    """

    def __init__(self, pairs: tuple[tuple[int, int], ...], masses: list[float]) -> None:
        super().__init__()
        for pair in pairs:
            if min(masses[i] for i in pair) <= 0.0:
                raise ValueError(f"Constrained atoms {pair} include one without mass; it could not move. Give it mass.")
        graph = nx.Graph(pairs)
        stars: dict[int, list[tuple[int, list[int]]]] = {}
        self._dense: list[tuple[Tensor, Tensor, Tensor]] = []
        for nodes in nx.connected_components(graph):
            group = graph.subgraph(nodes)
            centre = max(nodes, key=lambda node: (group.degree(node), masses[node], -node))
            if group.number_of_edges() == 1:
                continue  # det Z = 1/m_i + 1/m_j does not depend on the positions, see log_constant
            if group.number_of_edges() == len(nodes) - 1 and group.degree(centre) == len(nodes) - 1:
                stars.setdefault(len(nodes) - 1, []).append((centre, sorted(set(nodes) - {centre})))
            else:
                self._dense.append(_dense_group(sorted(group.edges), masses))
        self._stars = []
        constant = 0.0
        for n, members in sorted(stars.items()):
            centres = torch.tensor([centre for centre, _ in members])
            outer = torch.tensor([others for _, others in members])
            mass = torch.tensor(masses, dtype=torch.float64)
            constant -= float(mass[outer].log().sum())
            self._stars.append(n)
            self.register_buffer(f"_centres_{n}", centres, persistent=False)
            self.register_buffer(f"_outer_{n}", outer, persistent=False)
            self.register_buffer(f"_ratio_{n}", mass[outer] / mass[centres][:, None], persistent=False)
        for i, j in pairs:
            if graph.degree(i) == graph.degree(j) == 1:
                constant += float(np.log(1.0 / masses[i] + 1.0 / masses[j]))
        self.log_constant = 0.5 * constant

    def forward(self, positions: Tensor) -> Tensor:
        """1/2 ln det Z of positions in nm, shape (n, n_atoms, 3) to (n,), masses in amu; NaN where Z is singular."""
        result = torch.full((len(positions),), self.log_constant, dtype=positions.dtype, device=positions.device)
        for n in self._stars:
            centres, outer = getattr(self, f"_centres_{n}"), getattr(self, f"_outer_{n}")
            bonds = positions[:, outer] - positions[:, centres][:, :, None]
            bonds = bonds * (getattr(self, f"_ratio_{n}").sqrt()[..., None] / bonds.norm(dim=-1, keepdim=True))
            gram = bonds.transpose(-1, -2) @ bonds + torch.eye(3, dtype=bonds.dtype, device=bonds.device)
            result = result + 0.5 * torch.linalg.cross(gram[..., 0], gram[..., 1]).mul(gram[..., 2]).sum(-1).log().sum(
                -1
            )
        for ends, signed_inverse_mass, diagonal in self._dense:
            ends = ends.to(positions.device)
            direction = positions[:, ends[:, 0]] - positions[:, ends[:, 1]]
            direction = direction / direction.norm(dim=-1, keepdim=True)
            z = (direction @ direction.transpose(-1, -2)) * signed_inverse_mass.to(positions.device)
            z = z + torch.diag(diagonal.to(positions.device))
            # a degenerate or NaN configuration must not end the batch that it is in
            factor, failed = torch.linalg.cholesky_ex(z)
            half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            result = result + torch.where(failed > 0, torch.nan, half_log_det)
        return result


def _dense_group(edges: list[tuple[int, int]], masses: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of the constraints, signed inverse masses of shared atoms, and the diagonal of Z."""
    n = len(edges)
    coupling = torch.zeros(n, n, dtype=torch.float64)
    for row, first in enumerate(edges):
        for column, second in enumerate(edges):
            if row != column:
                for atom in set(first) & set(second):
                    sign = 1.0 if first.index(atom) == second.index(atom) else -1.0
                    coupling[row, column] += sign / masses[atom]
    diagonal = torch.tensor([1.0 / masses[i] + 1.0 / masses[j] for i, j in edges], dtype=torch.float64)
    return torch.tensor(edges), coupling, diagonal

"""The split flow alone, without coordinates and energies: drawing, density and a step of likelihood."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.molecules import Options
from benchmarks.table import Table
from benchmarks.timing import interleave
from openmm_bg.flows.layout import Layout, Place
from openmm_bg.flows.split_config import SplitConfig
from openmm_bg.flows.split_flow import SplitFlow

DRAWN, BATCH = 1024, 256
SIDE_CHAIN_TORSIONS, BACKBONE_LINEAR, SIDE_CHAIN_LINEAR = 4, 4, 38  # of a mean residue with hydrogens


def chain(n_residues: int, *, full: bool = False) -> Layout:
    """As many features, to a residue, as a protein has in reduced and in full coordinates."""
    circular, linear = [], []
    for residue in range(n_residues):
        first = 20 * residue
        circular += [Place(first + k, residue) for k in range(2)]
        circular += [Place(first + 5 + k, residue, side_chain=True) for k in range(SIDE_CHAIN_TORSIONS)]
        linear += [Place(first + k, residue) for k in range(BACKBONE_LINEAR)]
        if full:
            linear += [Place(first + 5 + k % 15, residue, side_chain=True) for k in range(SIDE_CHAIN_LINEAR)]
    return Layout(tuple(circular), tuple(linear))


def run(options: Options) -> Table:
    """Time untrained flows of villin's and protein G's length, and what attention and two channels cost."""
    config = SplitConfig()
    cases = {
        "35 residues, reduced": (chain(35), config),
        "56 residues, reduced": (chain(56), config),
        "56 residues, no attention": (chain(56), replace(config, attention=False)),
        "56 residues, one channel": (chain(56), replace(config, split=False)),
        "35 residues, full": (chain(35, full=True), config),
    }
    rows: list[dict[str, Any]] = []
    for name, (layout, sizes) in cases.items():
        flow = SplitFlow(layout, sizes, 0)
        latent = flow.sample_base(DRAWN, torch.Generator().manual_seed(0))
        with torch.no_grad():
            features = flow(latent[:BATCH])[:2]

        def draw(flow: SplitFlow = flow, latent: Tensor = latent) -> None:
            with torch.no_grad():
                flow(latent.double())

        def density(flow: SplitFlow = flow, features: tuple[Tensor, Tensor] = features) -> None:
            with torch.no_grad():
                flow.inverse(*(part.double() for part in features))

        def step(flow: SplitFlow = flow, features: tuple[Tensor, Tensor] = features) -> None:
            flow.zero_grad()
            latent, log_det = flow.inverse(*features)
            (-(flow.base_log_prob(latent) + log_det).mean()).backward()

        functions = {"draw": draw, "density": density, "step": step}
        times = interleave(functions, 2 if options.quick else 7)
        rows.append(
            {
                "flow": name,
                "features": flow.n_circular + flow.n_linear,
                "parameters": sum(parameter.numel() for parameter in flow.parameters()),
                f"draw {DRAWN} / s": float(torch.tensor(times["draw"]).median()),
                f"density of {BATCH} / s": float(torch.tensor(times["density"]).median()),
                f"step of {BATCH} / s": float(torch.tensor(times["step"]).median()),
            }
        )
    notes = [
        "Drawing and density with float64 splines bent by float32 networks, as moves and weights need them; a step is "
        "the likelihood and its gradient in float32. Coordinates and energies come on top."
    ]
    return Table("Split flow", rows, notes)

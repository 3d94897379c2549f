"""The rows: which flow, which losses; flows of equal numbers of parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.paper.molecules import TEMPERATURE, Case
from openmm_bg.files import write_bytes
from openmm_bg.flows import FlowConfig, SplitConfig
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.systems import MolecularSystem
from openmm_bg.training import Stage, paper_stages

_WITHOUT_END = 1000.0  # times the recipe's steps: the time ends the stages
_NARROWEST, _WIDEST = 4, 512

Config = FlowConfig | SplitConfig


@dataclass(frozen=True)
class Row:
    """A flow and the losses it is trained by.

    Attributes
    ----------
    title : str
    is_split : bool
        Ours; else the spline flow without attention and channels.
    w2, reverse_kl : bool
        Losses beside the likelihood.
    attention, channels : bool
        Parts of ours.
    """

    title: str
    is_split: bool
    w2: bool = False
    reverse_kl: bool = False
    attention: bool = True
    channels: bool = True

    def stages(self, case: Case) -> tuple[Stage, ...]:
        """The recipe, for a time that the caller sets."""
        w2, reverse_kl = case.weights
        stages = paper_stages(
            _WITHOUT_END, w2=w2 if self.w2 else 0.0, reverse_kl=reverse_kl if self.reverse_kl else 0.0
        )
        return tuple(replace(stage, batch_size=case.batch_size) for stage in stages)


BASELINE, FULL = "nsf-nll", "ours-all"
ROWS = {
    BASELINE: Row("NSF + NLL", False),
    "nsf-all": Row("NSF + all losses", False, w2=True, reverse_kl=True),
    "ours-nll": Row("ours + NLL", True),
    "ours-nll-w2": Row("ours + NLL + W2", True, w2=True),
    "ours-nll-kl": Row("ours + NLL + KL", True, reverse_kl=True),
    FULL: Row("ours + NLL + KL + W2", True, w2=True, reverse_kl=True),
    "no-attention": Row("ours without attention, all losses", True, w2=True, reverse_kl=True, attention=False),
    "no-split": Row("ours without split, all losses", True, w2=True, reverse_kl=True, channels=False),
}


def make_generator(molecule: MolecularSystem, case: Case, config: Config, seed: int) -> BoltzmannGenerator:
    """An untrained generator; all rows of a molecule have the same coordinates."""
    return BoltzmannGenerator.from_system(
        molecule.system,
        molecule.topology,
        TEMPERATURE,
        coordinates=case.coordinates,
        flow=config,
        positions=molecule.positions,
        seed=seed,
    )


def n_parameters(generator: BoltzmannGenerator) -> int:
    """Number of the flow's parameters."""
    return sum(parameter.numel() for parameter in generator.flow.parameters())


def spline_config(width: int) -> FlowConfig:
    """A spline flow all of whose networks are as wide."""
    return FlowConfig(torsion_hidden=width, linear_hidden=width, affine_hidden=width)


def split_config(row: Row, width: int) -> SplitConfig:
    """A split flow, or one that lacks a part, all of whose networks are as wide as the row says."""
    return SplitConfig(width=width, affine_hidden=2 * width, attention=row.attention, split=row.channels)


def matched_configs(molecule: MolecularSystem, case: Case, path: Path) -> dict[str, Config]:
    """The flow of each row, as large as the full split flow of standard sizes; widths are kept in a file."""
    widths = json.loads(path.read_text()) if path.exists() else {}
    kinds = {name: partial(split_config, row) if row.is_split else spline_config for name, row in ROWS.items()}
    if not widths:
        standard = split_config(ROWS[FULL], SplitConfig().width)
        wanted = n_parameters(make_generator(molecule, case, standard, 0))
        found = {kinds[FULL](_NARROWEST): standard.width}  # by kind, which the narrowest of it stands for
        for name, config_of in kinds.items():
            kind = config_of(_NARROWEST)
            if kind not in found:
                found[kind] = match(_counter(molecule, case, config_of), wanted)
            widths[name] = found[kind]
        write_bytes(path, (json.dumps(widths) + "\n").encode())
    return {name: config_of(widths[name]) for name, config_of in kinds.items()}


def _counter(molecule: MolecularSystem, case: Case, config_of: Callable[[int], Config]) -> Callable[[int], int]:
    return lambda width: n_parameters(make_generator(molecule, case, config_of(width), 0))


def match(count: Callable[[int], int], wanted: int) -> int:
    """The width whose count is nearest to the one that is wanted; counts grow with the width."""
    low, high = _NARROWEST, _WIDEST
    counts: dict[int, int] = {}
    while high - low > 1:
        middle = (low + high) // 2
        counts[middle] = count(middle)
        low, high = (middle, high) if counts[middle] < wanted else (low, middle)
    return min((low, high), key=lambda width: abs(counts.get(width, count(width)) - wanted))

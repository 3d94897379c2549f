"""What a run of the demo gave: tables for the tutorial, a paragraph for the README."""

from __future__ import annotations

import math
import platform
import re
import textwrap
from pathlib import Path
from typing import Any

from openmm_bg.analysis import Estimate, z_score
from openmm_bg.potentials.platforms import n_cores
from openmm_bg.report.page import percent
from openmm_bg.report.results import BG_LANGEVIN, GENERATOR, LANGEVIN, TITLES

BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def machine() -> str:
    """Describe the machine that this runs on."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), flags=re.MULTILINE) if info.exists() else []
    return f"{models[0] if models else platform.machine()}, {n_cores()} cores"


def tables(summary: dict[str, Any], reference: dict[str, Any], on: str) -> str:
    """Markdown tables of a finished run, beside the reference by replica exchange."""
    trips = summary["n_round_trips"]
    exchange = _estimate(reference["populations_mbar"]["phi_positive"])
    length = f"{reference['length_ns_per_replica']:.0f} ns in each of {len(reference['temperatures_K'])} replicas"
    populations = [
        (TITLES[key], percent(found), _z(found, exchange))
        for key, entry in summary["phi_positive_population"].items()
        if (found := _estimate(entry))
    ]
    evaluations = summary["energy_evaluations"]
    times = {name: seconds for name, seconds in summary["wall_time_s"].items() if name != "total"}
    together = sum(times.values()) > summary["wall_time_s"]["total"] + 1.0
    phases = [
        (
            f"{name}, beside sample" if name == "langevin" and together else name,
            f"{seconds:.0f}",
            _count(evaluations, name),
        )
        for name, seconds in times.items()
    ]
    phases.append(("all phases", f"{summary['wall_time_s']['total']:.0f}", ""))
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    parts = [
        _table(
            ("figure", "value"),
            [
                ("proposals accepted", f"{100 * summary['fraction_accepted']:.1f} %"),
                ("effective sample size / N, unclipped", f"{100 * summary['ess_fraction']:.1f} %"),
                (r"Pareto $\hat k$", f"{summary['pareto_k']:.2f}"),
                ("largest weight", f"{100 * summary['largest_weight']:.2f} %"),
                (r"round trips of $\phi$, BG + Langevin", f"{trips[BG_LANGEVIN]:,}"),
                (r"round trips of $\phi$, Langevin alone", _trips_alone(summary)),
            ],
        ),
        _table(
            (r"$P(0<\phi<2.3\ \mathrm{rad})$ by", "population", "against replica exchange"),
            [*populations, (f"Replica exchange (MBAR, {length})", percent(exchange), "")],
        ),
        _table(
            ("basin of origin", "proposals accepted", "proposals"),
            [
                (name, percent(_estimate(entry)), f"{entry['n_proposed']:,}")
                for name, entry in summary["acceptance_by_basin"].items()
            ],
        ),
        _table(("phase", "wall time / s", "energy evaluations"), phases),
        textwrap.fill(
            f"{on}; OpenMM's {summary['platform']} platform; seed {summary['seed']}; {versions}. "
            f"Verdict of the report: {summary['verdict_sentence']}",
            120,
            break_on_hyphens=False,
        ),
    ]
    return "<!-- written by docs/images/draw.py -->\n\n" + "\n\n".join(parts) + "\n"


def paragraph(summary: dict[str, Any], reference: dict[str, Any], on: str) -> str:
    """The main numbers in a few sentences."""
    trips = summary["n_round_trips"]
    found = {key: percent(_estimate(entry)) for key, entry in summary["phi_positive_population"].items()}
    exchange = percent(_estimate(reference["populations_mbar"]["phi_positive"]))
    text = (
        f"In {summary['wall_time_s']['total']:.0f} s for all phases ({on}; seed {summary['seed']}), "
        f"{100 * summary['fraction_accepted']:.0f} % of the generator's proposals were accepted, its samples had an "
        f"effective size of {100 * summary['ess_fraction']:.0f} % of their number, and φ made {trips[BG_LANGEVIN]:,} "
        f"round trips between φ < 0 and 0 < φ < 2.3 rad; Langevin dynamics alone, in the same wall time, made "
        f"{trips[LANGEVIN]:,}. P(0 < φ < 2.3 rad) is {found[BG_LANGEVIN]} by the chain, {found[GENERATOR]} by "
        f"reweighting, and {exchange} by long temperature replica exchange. [All figures](docs/demo_figures.md)."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


def between_markers(page: str, text: str) -> str:
    """Replace what stands between the two markers of a page."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"The page must hold {BEGIN} and {END} once each.")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def _estimate(entry: dict[str, Any]) -> Estimate:
    value, error = (math.nan if entry[key] is None else float(entry[key]) for key in ("value", "error"))
    return Estimate(value, error)


def _trips_alone(summary: dict[str, Any]) -> str:
    count = summary["n_round_trips"][LANGEVIN]
    bound = summary["crossing_rate_upper_bound_per_s"].get(LANGEVIN)
    return f"{count:,}" if bound is None else f"{count}; at most {bound:.2f} crossings per second (95 %)"


def _z(found: Estimate, exchange: Estimate) -> str:
    z = z_score(found, exchange)
    return "cannot tell" if math.isnan(z) else f"{z:+.1f} standard errors"


def _count(evaluations: dict[str, int], name: str) -> str:
    return f"{evaluations[name]:,}" if name in evaluations else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

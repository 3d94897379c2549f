"""What a benchmark returns, and how it is shown and kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openmm_bg.files import write_bytes


@dataclass(frozen=True)
class Table:
    """Rows of numbers under a title.

    Attributes
    ----------
    title : str
    rows : list of dict
        All with the same keys, which are the columns.
    notes : list of str
        What the numbers mean, and what follows from them.
    """

    title: str
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as a section of a page."""
        columns = list(self.rows[0]) if self.rows else []
        lines = [f"## {self.title}", ""]
        if columns:
            lines += [_line(columns), _line(["---"] * len(columns))]
            lines += [_line([_text(row[column]) for column in columns]) for row in self.rows]
            lines.append("")
        for note in self.notes:
            lines += [note, ""]
        return "\n".join(lines)


def write(folder: Path, machine: dict[str, Any], tables: dict[str, Table]) -> None:
    """Write `benchmarks.json` and `benchmarks.md`; tables of earlier runs that were not made anew are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "benchmarks.json"
    kept: dict[str, Any] = json.loads(path.read_text())["tables"] if path.exists() else {}
    kept |= {name: {**asdict(table), "machine": machine} for name, table in tables.items()}
    write_bytes(path, (json.dumps({"tables": kept}, indent=1) + "\n").encode())
    note = "Made by `python -m benchmarks`; times are medians, ratios those of interleaved rounds."
    page = ["# Benchmarks", "", note, ""]
    shown = None
    for name in sorted(kept):
        entry = dict(kept[name])
        described = describe(entry.pop("machine"))
        if described != shown:
            page += [described, ""]
            shown = described
        page.append(Table(**entry).markdown())
    write_bytes(folder / "benchmarks.md", "\n".join(page).encode())


def describe(machine: dict[str, Any]) -> str:
    """One line about a machine."""
    found = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f", {machine['cuda']}" if machine["cuda"] else ""
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores (load {machine['load']}){gpu}, "
        f"{machine['system']}; torch with {machine['threads_of_torch']} thread(s); {found}."
    )


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)

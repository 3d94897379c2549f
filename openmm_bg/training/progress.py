"""A progress bar of training: stage, loss, effective sample size, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[dict[str, Any]], None]


@contextmanager
def show_progress(progress: bool | Report) -> Iterator[Report | None]:
    """Yield what the trainer reports to: a bar on the terminal, the caller's own function, or nothing."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        tasks: dict[str, Any] = {}

        def report(record: dict[str, Any]) -> None:
            name = record["stage"]
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=1.0, state="")
            state = f"loss {record['loss']:.2f}"
            if record["ess_fraction"] is not None:
                state += f"  ESS/N {record['ess_fraction']:.2f}"
            bar.update(tasks[name], completed=max(record["progress"], record["step"] / record["steps"]), state=state)

        yield report

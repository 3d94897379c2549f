"""What the commands say on the terminal: progress, results, errors a user can act on, how to resume."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

INTERRUPTED, WRONG_USE, NOT_TO_BE_USED = 130, 2, 3
TRACEBACK_VARIABLE = "OPENMM_BG_TRACEBACK"

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)

# Called with the fraction done, from 0 to 1, and a word on how it goes.
Report = Callable[[float, str], None]


@contextmanager
def clear_errors(resume: str) -> Iterator[None]:
    """Turn what a user can act on into one message and an exit code: 2 for wrong use, 130 for Ctrl-C.

    Parameters
    ----------
    resume : str
        The command that continues after an interruption.
    """
    try:
        yield
    except KeyboardInterrupt:
        error_console.print(f"\n[yellow]Stopped.[/] Nothing is lost; resume with: [bold]{escape(resume)}[/]")
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        error_console.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(WRONG_USE) from None


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """Show a bar while something runs; yields the function that moves it."""
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=error_console) as progress:
        task = progress.add_task(title, total=1.0, note="")

        def report(fraction: float, note: str) -> None:
            progress.update(task, completed=min(1.0, fraction), note=escape(note))

        yield report


def say(text: str) -> None:
    """Print a line of results."""
    console.print(text, soft_wrap=True)


def import_quietly() -> None:
    """Import what prints walls of advice on import (openmmtools, pymbar: JAX, time series), without the advice."""
    from openmm_bg.analysis.timeseries import quiet_pymbar

    with warnings.catch_warnings(), quiet_pymbar():
        warnings.simplefilter("ignore")
        import openmmtools.mcmc  # noqa: F401
        import pymbar.timeseries  # noqa: F401
    warnings.filterwarnings("ignore", module=r"openmmtools|mdtraj|pymbar")

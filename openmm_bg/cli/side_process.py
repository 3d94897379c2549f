"""Langevin dynamics alone in a process of its own, which stops when the main one does."""

from __future__ import annotations

import signal
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openmm_bg.cli.sample_options import SampleOptions
    from openmm_bg.potentials import PlatformChoice

_stop: Event | None = None


def prepare(stop: Event) -> None:
    """Leave Ctrl-C to the main process, which sets `stop`."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def langevin(path: Path, options: SampleOptions, platform: PlatformChoice) -> dict[str, Any]:
    """Run `run_langevin` until its end or until the main process is stopped; what was sampled is kept."""
    from openmm_bg.cli.sample import run_langevin

    def check(fraction: float, note: str) -> None:
        if _stop is not None and _stop.is_set():
            raise KeyboardInterrupt

    return run_langevin(path, options, platform, check)

"""Times of several functions in turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openmm_bg.report.summary import versions

Times = dict[str, NDArray[np.float64]]


def interleave(
    functions: Mapping[str, Callable[[], Any]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Seconds of each function, shape (repetitions,), in rounds of all of them after one that does not count.

    `clock=time.process_time` leaves out what other processes take.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repetitions + 1):
        for name, function in functions.items():
            begin = clock()
            function()
            if round_ > 0:
                times[name].append(clock() - begin)
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: Times, numerator: str, denominator: str) -> float:
    """Median over the rounds of the ratio of two times of the same round."""
    return float(np.median(times[numerator] / times[denominator]))


def microseconds(times: Times, name: str, n: int) -> float:
    """Median time of one of `n` things that a function does."""
    return float(1e6 * np.median(times[name]) / n)


def machine() -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in _lines(info) if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads_of_torch": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []

"""Counts of a simulation as a table (CSV) that survives crashes, full disks and resumed runs."""

from __future__ import annotations

import errno
import os
from os import PathLike
from pathlib import Path
from typing import IO

COLUMNS = ("step", "n_accepted", "n_proposed", "n_nonfinite_energy", "n_off_support", "n_current_off_support")
_HEADER = ",".join(COLUMNS)


class ScanLog:
    """Lines of counts so far, one for each scan, appended to a file or written to a stream.

    A file that exists is continued. A last line that a crash left incomplete is cut off; nothing else is ever removed.

    Parameters
    ----------
    target : path or text stream

    Attributes
    ----------
    last : dict of int
        The counts of the last line of a file that existed, else empty.

    Raises
    ------
    ValueError
        If the file is not such a table.
    OSError
        If it cannot be written to.
    """

    def __init__(self, target: str | PathLike[str] | IO[str]) -> None:
        self.last: dict[str, int] = {}
        self._target: Path | IO[str]
        if isinstance(target, str | PathLike):
            self._target = Path(target).absolute()
            has_header = self._continue(self._target)
        elif hasattr(target, "write") and hasattr(target, "flush"):
            self._target, has_header = target, False
        else:
            raise ValueError(f"log is {target!r}; give the name of a file, or a text stream that can be written to.")
        self._append("" if has_header else f"{_HEADER}\n")

    def write(self, step: int, counts: dict[str, int]) -> None:
        """Append one line.

        Raises
        ------
        OSError
            If that fails; all lines before it are intact.
        """
        values = {"step": step, **counts}
        self._append(",".join(str(values[name]) for name in COLUMNS) + "\n")

    def _continue(self, path: Path) -> bool:
        """Read the last line of a file, if there is one, and cut off an incomplete one."""
        content = path.read_bytes() if path.is_file() else b""
        complete, newline, rest = content.rpartition(b"\n")
        lines = complete.decode(errors="replace").splitlines()
        header = lines[0] if newline else rest.decode(errors="replace")
        if not (header == _HEADER if newline else _HEADER.startswith(header)):
            raise ValueError(
                f"{path} exists and is no log of a generator's move: it does not begin with {_HEADER!r}. It is left as "
                "it is; choose another name."
            )
        if len(lines) > 1:
            try:
                self.last = dict(zip(COLUMNS, map(int, lines[-1].split(",")), strict=True))
            except ValueError as error:
                message = f"The last line of {path} is damaged: {lines[-1]!r}. Remove it, or choose another name."
                raise ValueError(message) from error
        if rest:
            os.truncate(path, len(content) - len(rest))
        return bool(newline)

    def _append(self, text: str) -> None:
        if not isinstance(self._target, Path):
            self._target.write(text)
            self._target.flush()
            return
        line = text.encode()
        try:
            with open(self._target, "ab", buffering=0) as file:
                before = file.tell()
                if file.write(line) != len(line):
                    os.truncate(self._target, before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(
                error.errno,
                f"Cannot write the log of the generator's move to {self._target}: {error.strerror}. Lines written "
                "before are intact, and so is the simulation; free some space, or choose a writable place.",
            ) from error

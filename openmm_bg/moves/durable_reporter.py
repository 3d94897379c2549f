"""A storage of openmmtools that survives a kill, a full disk or a lost node at any moment.

HDF5 files are not consistent while they are written: a process that dies then may leave a file that cannot be opened,
and with it the whole simulation. Here every file has a copy, and never are both written at the same time. A word on
disk says which one is; whoever opens the storage next repairs it from the other.
"""

from __future__ import annotations

import atexit
import copy
import logging
import os
import shutil
import signal
import time
import weakref
from os import PathLike
from pathlib import Path
from typing import Any

import mpiplus
from openmmtools.mcmc import MCMCMove
from openmmtools.multistate import MultiStateReporter

from openmm_bg.moves.safe_folder import SafeFolder, Word
from openmm_bg.moves.state_checks import check_start

_logger = logging.getLogger(__name__)
_WAIT = 600.0  # s; how long an MPI process waits for the first one to repair the storage


class DurableReporter(MultiStateReporter):
    """openmmtools' `MultiStateReporter` with a copy of its files that is always one step behind or ahead.

    After a crash at any moment the simulation can be resumed from the last checkpoint that was stored: with
    `checkpoint_interval=1` at most the iteration that was running is lost. Counts of moves are stored with checkpoints,
    not between them, so that a resumed simulation counts no lost iteration.

    Use it wherever openmmtools takes a reporter, also to open the storage again. Files are those of openmmtools and
    can be read without this class once the simulation has ended. The copies are in a folder beside them, `NAME.safe`;
    it may be deleted when the simulation is finished.

    A new storage comes into being when all that it begins with is known, and only if generator moves can be made there:
    what `check_states` and `check_ranks` refuse is refused before there is a file.

    Parameters
    ----------
    storage : str or path
        The .nc file.
    open_mode : str, optional
    **options
        Those of `MultiStateReporter`.

    Raises
    ------
    ValueError, RuntimeError
        When a simulation is created: for what `check_states` and `check_ranks` say.
    OSError
        When opened or written to: if the folder cannot be written to, the disk is full, or another process writes to
        the storage. What was stored before is intact.

    Notes
    -----
    Covers the death of the process, not of the machine: nothing is forced from the operating system's memory to disk.
    openmmtools reads a storage in every MPI process, and does not wait for the others before the first one writes. Here
    that one writes when it has completed an iteration, for which all of them have worked, or when it closes.
    Costs twice the time and the space of storing.
    """

    _copy: MultiStateReporter | None = None
    _failed = False
    _iteration = 0
    _new: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # how to open a storage that does not exist yet
    _later: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # the same of one that others may still be reading
    _moves: list[MCMCMove]
    _handlers: dict[signal.Signals, Any]

    def __init__(self, storage: str | PathLike[str], open_mode: str | None = None, **options: Any) -> None:
        self._calls: list[tuple[str, tuple[Any, ...]]] = []
        self._options = options
        self._safe = SafeFolder(os.fspath(storage))
        super().__init__(os.fspath(storage), open_mode=open_mode, **options)

    @property
    def safe_folder(self) -> Path:
        """Folder of the copies."""
        return self._safe.path

    def storage_exists(self, skip_size: bool = False) -> bool:
        """Whether there is a simulation to resume, after repairing it if it crashed."""
        self._repair()
        exists: bool = super().storage_exists(skip_size)
        return exists

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> None:
        """Open as `MultiStateReporter` does, after repairing the storage if it crashed."""
        self.close()
        if mode == "r":
            self._repair()
            super().open(mode, *args, **kwargs)
            return
        self._acquire()
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if mode == "w":
            self._calls, self._failed, self._moves, self._new = [], False, [], (args, kwargs)
            return
        try:
            if self._safe.has_word or os.path.exists(self.filepath):
                self._repair()
        except OSError:
            self._safe.release()
            raise
        atexit.register(_close, weakref.ref(self))  # while modules are still there: closing writes
        is_new, mpi = not os.path.exists(self.filepath), mpiplus.get_mpicomm()
        if is_new or mpi is None or mpi.size == 1:
            self._open_files(mode, is_new, args, kwargs)
        else:
            self._open_later(args, kwargs)

    def close(self) -> None:
        """Close all files; the storage is clean then, unless writing failed before."""
        if self._new is not None:
            self._abandon()
        if self._later is not None:
            self._leave_reading()
        duplicate, self._copy = self._copy, None
        if duplicate is None:
            super().close()
            return
        state = self._safe.word
        try:
            super().close()
            if not self._failed and state != "creating":
                self._repeat(duplicate)
            duplicate.close()
            if not self._failed and state != "creating":
                self._say("clean")
        except (OSError, RuntimeError) as error:
            _logger.warning("%s", self._explained(error, "close"))
        finally:
            self._safe.release()

    def write_thermodynamic_states(self, *args: Any) -> None:
        """Write to both files, as do all methods of this kind."""
        self._write("write_thermodynamic_states", *args)

    def write_sampler_states(self, sampler_states: list[Any], iteration: int) -> None:
        """Write as `MultiStateReporter` does."""
        self._iteration = iteration
        self._write("write_sampler_states", sampler_states, iteration)

    def write_replica_thermodynamic_states(self, *args: Any) -> None:
        """Write as `MultiStateReporter` does."""
        self._write("write_replica_thermodynamic_states", *args)

    def write_mcmc_moves(self, mcmc_moves: list[Any]) -> None:
        """Write moves and their counts, at checkpoints only: they are what a resumed simulation starts from."""
        self._moves = mcmc_moves
        if self._calculate_checkpoint_iteration(self._iteration) is not None:
            super().write_mcmc_moves(mcmc_moves)

    def write_energies(self, *args: Any) -> None:
        """Write as `MultiStateReporter` does."""
        self._write("write_energies", *args)

    def write_mixing_statistics(self, *args: Any) -> None:
        """Write as `MultiStateReporter` does."""
        self._write("write_mixing_statistics", *args)

    def write_timestamp(self, iteration: int) -> None:
        """Write as `MultiStateReporter` does."""
        self._write("write_timestamp", iteration)

    def write_dict(self, path: str, data: dict[str, Any]) -> None:
        """Write as `MultiStateReporter` does."""
        self._write("write_dict", path, data)

    def write_online_analysis_data(self, iteration: int | None, **kwargs: Any) -> None:
        """Write as `MultiStateReporter` does."""
        self._write("write_online_analysis_data", iteration, kwargs)

    def write_last_iteration(self, iteration: int) -> None:
        """Declare an iteration complete: first in the storage, then, when that is whole, in its copy."""
        if self._new is not None:
            self._create()
        if self._later is not None:
            self._append()
        self._write("write_last_iteration", iteration)
        assert self._copy is not None
        try:
            self._repeat(self._copy)
            self._say("clean")
        except (OSError, RuntimeError) as error:
            raise self._given_up(error) from error

    def _open_files(self, mode: str, new: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Open the storage and its copy for writing."""
        try:
            self._say("creating" if new else "main")
            super().open(mode, *args, **kwargs)
            self.sync()
            if not new:
                self._say("copy")
            options = {**self._options, "checkpoint_storage": os.path.basename(self._storage_paths[1])}
            duplicate = MultiStateReporter(self._safe.copy_of(self.filepath), **options)
            duplicate.open(mode, *args, **kwargs)
            duplicate.sync()
            if not new:
                self._say("clean")
        except (OSError, RuntimeError) as error:
            self._safe.release()
            raise self._explained(error, "open") from error
        self._calls, self._failed, self._copy = [], False, duplicate

    def _open_later(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Become the writer, but only read until `_append`."""
        try:
            super().open("r", *args, **kwargs)
        except (OSError, RuntimeError) as error:
            self._safe.release()
            raise self._explained(error, "open") from error
        self._calls, self._failed, self._later = [], False, (args, kwargs)

    def _leave_reading(self) -> None:
        """Write what was to be written, if anything; else let others write."""
        if not self._calls:
            self._later = None
            self._safe.release()
            return
        try:
            self._append()
        except OSError as error:
            _logger.warning("%s", error)

    def _append(self) -> None:
        """Open the storage that `_open_later` reads, and write what was to be written."""
        assert self._later is not None
        calls, (args, kwargs), self._later = self._calls, self._later, None
        super().close()
        try:
            self._open_files("a", False, args, kwargs)
        except OSError:
            self._end_delays()
            raise
        for name, values in calls:
            self._write(name, *values)

    def _create(self) -> None:
        """Create the storage and write what was to be written, unless it can not be simulated."""
        assert self._new is not None
        first = dict(self._calls)
        try:
            check_start(first["write_thermodynamic_states"][0], first["write_sampler_states"][0], self._moves)
        except (ValueError, RuntimeError):
            self._abandon()
            self._end_delays()
            raise
        calls, (args, kwargs), self._new = self._calls, self._new, None
        atexit.register(_close, weakref.ref(self))  # while modules are still there: closing writes
        self._open_files("w", True, args, kwargs)
        for name, values in calls:
            self._write(name, *values)

    def _abandon(self) -> None:
        """Leave nothing of a storage that was not created."""
        self._new = None
        self._safe.discard()

    def _write(self, name: str, *args: Any) -> None:
        if self._new is not None or self._later is not None:
            self._calls.append((name, copy.deepcopy(args)))
            return
        if self._copy is None:
            raise OSError(f"{self.filepath} is not open for writing.")
        if self._failed:
            raise OSError(f"An earlier write to {self.filepath} failed. Restart the simulation from its storage.")
        try:
            if self._safe.word == "clean":
                self._say("main")
            _call(super(), name, args)
        except (OSError, RuntimeError) as error:  # netCDF4 reports a full disk as a RuntimeError
            raise self._given_up(error) from error
        self._calls.append((name, copy.deepcopy(args)))

    def _given_up(self, error: Exception) -> OSError:
        """What to raise when a write has failed; nothing is written from then on."""
        self._failed = True
        self._end_delays()
        return self._explained(error, "write")

    def _end_delays(self) -> None:
        """Let Ctrl-C interrupt again: openmmtools holds signals back while it writes, and for good if that fails."""
        for number, handler in self._handlers.items():
            if getattr(signal.getsignal(number), "__qualname__", "").startswith("delay_termination."):
                signal.signal(number, handler)

    def _repeat(self, duplicate: MultiStateReporter) -> None:
        """Bring the copy to where the storage is, which is whole."""
        self._say("copy")
        for name, args in self._calls:
            _call(duplicate, name, args)
        self._calls = []

    def _repair(self) -> None:
        """Make storage and copy equal again after a crash; nothing if the last writer ended well or is alive."""
        held = self._safe.held
        if self._safe.word == "clean" or not (held or self._safe.has_word):
            return
        mpi = mpiplus.get_mpicomm()
        if not held and mpi is not None and mpi.rank != 0:
            self._wait_until_clean()
            return
        if not held:
            try:
                self._acquire()
            except BlockingIOError:
                return  # the writer is alive
        try:
            self._restore()
        except OSError as error:
            raise self._explained(error, "repair") from error
        finally:
            if not held:
                self._safe.release()

    def _restore(self) -> None:
        paths = [(path, self._safe.copy_of(path)) for path in self._storage_paths]
        state = self._safe.word
        if state == "creating":
            _logger.warning("%s was interrupted before its first iteration was stored; starting anew.", self.filepath)
            for path in (path for pair in paths for path in pair):
                Path(path).unlink(missing_ok=True)
            self._safe.forget()
            return
        if state == "main":
            missing = [duplicate for _, duplicate in paths if not os.path.exists(duplicate)]
            if missing:
                raise OSError(f"it was interrupted while it was written, and its copy is gone: {missing[0]}")
            self._say("restoring")
        if self._safe.word == "restoring":
            _logger.warning("%s was interrupted while it was written; taking its copy.", self.filepath)
            for path, duplicate in paths:
                if os.path.exists(duplicate):  # else it was moved by a repair that was itself interrupted
                    os.replace(duplicate, path)
        self._say("copy")
        for path, duplicate in paths:
            shutil.copyfile(path, f"{duplicate}.part")
            os.replace(f"{duplicate}.part", duplicate)
        self._say("clean")

    def _wait_until_clean(self) -> None:
        deadline = time.monotonic() + _WAIT
        while self._safe.has_word and self._safe.word != "clean":
            if time.monotonic() > deadline:
                raise OSError(f"The first MPI process did not repair {self.filepath} within {_WAIT:.0f} s.")
            time.sleep(0.1)

    def _say(self, word: Word) -> None:
        self._safe.say(word)

    def _acquire(self) -> None:
        try:
            self._safe.acquire()
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._explained(error, "write to") from error

    def _explained(self, error: Exception, what: str) -> OSError:
        message = (
            f"Cannot {what} {self.filepath}: {getattr(error, 'strerror', None) or error}. Its folder may not exist, "
            "not be writable or the disk may be full. What was stored before is intact; remedy that and resume."
        )
        number = getattr(error, "errno", None)
        return OSError(message) if number is None else OSError(number, message)


def _call(reporter: Any, name: str, args: tuple[Any, ...]) -> None:
    if name == "write_online_analysis_data":
        reporter.write_online_analysis_data(args[0], **args[1])
    else:
        getattr(reporter, name)(*args)


def _close(reference: weakref.ref[DurableReporter]) -> None:
    reporter = reference()
    if reporter is not None:
        reporter.close()

"""The folder beside a storage that holds its copy, a word on what is being written, and the lock of the one writer."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
from pathlib import Path
from typing import Literal

Word = Literal["creating", "main", "restoring", "copy", "clean"]


class SafeFolder:
    """The folder `NAME.safe` of a storage NAME; it comes into being when it is locked.

    Parameters
    ----------
    storage : str
        The storage's main file.
    """

    _lock: int | None = None

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self.path = Path(f"{storage}.safe")

    @property
    def word(self) -> str:
        """What was being written when the last word was left; "copy" of a storage that never had one."""
        try:
            return self._word_file.read_text()
        except FileNotFoundError:
            return "copy"

    @property
    def has_word(self) -> bool:
        """Whether a word was ever left."""
        return self._word_file.exists()

    def say(self, word: Word) -> None:
        """Leave a word, as a whole or not at all."""
        temporary = self._word_file.with_suffix(".part")
        temporary.write_text(word)
        os.replace(temporary, self._word_file)

    def forget(self) -> None:
        """Take the last word back."""
        self._word_file.unlink()

    def copy_of(self, path: str) -> str:
        """Where the copy of a file is."""
        return str(self.path / os.path.basename(path))

    @property
    def held(self) -> bool:
        """Whether this object is the only writer."""
        return self._lock is not None

    def acquire(self) -> None:
        """Become the only writer until `release`, or until this process ends.

        Raises
        ------
        BlockingIOError
            If there is another one.
        OSError
            If the folder can not be made or written to.
        """
        try:
            self._lock = self._locked()
        except BlockingIOError:
            gc.collect()  # a simulation of this process that is no longer referenced closes its storage now
            self._lock = self._locked()

    def release(self) -> None:
        """Let others write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Release, and remove the folder if there never was a storage."""
        if self.held and not self.has_word:
            (self.path / "lock").unlink()
            if not any(self.path.iterdir()):
                self.path.rmdir()
        self.release()

    def _locked(self) -> int:
        """The open file of the lock, once it is ours."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(lock).st_nlink:  # discarded by the writer before, just now
                raise BlockingIOError(errno.EAGAIN, "the lock is gone")
        except OSError as error:
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise
            raise BlockingIOError(
                error.errno,
                f"Another process, or another reporter of this one, writes to {self.storage}. "
                "Wait until it ends, end it, or close it.",
            ) from error
        return lock

    @property
    def _word_file(self) -> Path:
        return self.path / "state"

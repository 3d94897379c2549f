"""Files that are replaced as a whole or, when that fails, left as they were."""

from __future__ import annotations

import os
import tempfile
from os import PathLike
from pathlib import Path


def write_bytes(path: str | PathLike[str], content: bytes) -> None:
    """Write a file beside its place and move it there when it is complete.

    Raises
    ------
    OSError
        If the folder cannot be written to or the disk is full; an existing file is intact then.
    """
    target = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise OSError(
            error.errno,
            f"Cannot write {target}: {error.strerror}. What was there before is intact; free some space or choose a "
            "folder that exists and can be written to.",
        ) from error
    finally:
        if temporary is not None:
            os.unlink(temporary)

"""Files that are replaced as a whole or, when that fails, left as they were."""

from __future__ import annotations

import os
import stat
import uuid
from os import PathLike
from pathlib import Path


def write_bytes(path: str | PathLike[str], content: bytes) -> None:
    """Write a file beside its place and move it there when it is complete; an existing one keeps its permissions.

    Raises
    ------
    OSError
        If the folder cannot be written to or the disk is full; an existing file is intact then.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as stream:
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(
            error.errno,
            f"Cannot write {target}: {error.strerror}. What was there before is intact; free some space or choose a "
            "folder that exists and can be written to.",
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()

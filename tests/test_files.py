"""Files that are replaced as a whole."""

from __future__ import annotations

import errno
import os

import pytest

from openmm_bg.files import write_bytes


def test_an_existing_file_is_replaced(tmp_path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"one")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*intact"):
        write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_does_not_exist_is_named(tmp_path) -> None:
    with pytest.raises(OSError, match="missing/file"):
        write_bytes(tmp_path / "missing" / "file", b"one")

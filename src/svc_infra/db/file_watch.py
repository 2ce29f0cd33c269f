"""Noticing that a SQLite file was written, without asking again and again: Linux tells by inotify.

Elsewhere, and where the system has no watch left to give, the file is looked at five times a second.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK_SECONDS = 0.2
_IN_MODIFY, _IN_CREATE = 0x2, 0x100
_EVENT = struct.Struct("iIII")
_BUFFER_BYTES = 65_536


@contextmanager
def watched(file: Path, on_write: Callable[[], None]) -> Iterator[bool]:
    """Call ``on_write`` in the running loop whenever ``file`` or its write-ahead log was written.

    Gives False, and calls nothing, where the system cannot watch files.
    """
    descriptor = _watch(file.parent)
    if descriptor is None:
        yield False
        return
    names = {os.fsencode(file.name), os.fsencode(f"{file.name}-wal")}
    loop = asyncio.get_running_loop()

    def read() -> None:
        if names & set(_names(os.read(descriptor, _BUFFER_BYTES))):
            on_write()

    loop.add_reader(descriptor, read)
    try:
        yield True
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _watch(folder: Path) -> int | None:
    """Watch the folder, for the log may be made anew; None if that is impossible here."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "inotify_init1"):
        return None
    descriptor: int = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        return None
    if library.inotify_add_watch(descriptor, os.fsencode(folder), _IN_MODIFY | _IN_CREATE) < 0:
        os.close(descriptor)
        return None
    return descriptor


def _names(events: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(events):
        *_, length = _EVENT.unpack_from(events, start)
        start += _EVENT.size
        yield events[start : start + length].rstrip(b"\0")
        start += length

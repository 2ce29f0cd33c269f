"""The physical lines of a file that is streamed, counted, and given back when a record went wrong."""

from __future__ import annotations

import gzip
import io
import zlib
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, cast

from svc_infra.exceptions import InvalidUsage

MAX_LINE_LENGTH = 1024 * 1024
"""Characters of a line. A longer one is cut, and is bad: memory stays flat whatever the file holds."""

_BLOCK_BYTES = 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"


class LineSource:
    """An iterator over lines that knows where it is.

    Lines end at a line feed, which they keep. Bytes that are not UTF-8 come through as lone surrogates, so
    nothing is lost before a line is judged. ``number`` is that of the last line handed out, from 1;
    ``taken`` holds the lines handed out since it was cleared.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self.number = 0
        self.taken: list[str] = []
        self._waiting: deque[str] = deque()
        self._lines = _split(_decompressed(stream))

    def __iter__(self) -> LineSource:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else self._read()
        self.number += 1
        self.taken.append(line)
        return line

    def give_back_all_but_first(self) -> None:
        """Hand the lines in ``taken`` out again, except the first."""
        back = self.taken[1:]
        self._waiting.extendleft(reversed(back))
        self.number -= len(back)
        del self.taken[1:]

    def first_character(self) -> str:
        """Return the first character that is not blank, without taking its line; empty if there is none."""
        for line in self:
            if line.strip():
                break
        found = "".join(self.taken).lstrip()[:1]
        self._waiting.extendleft(reversed(self.taken))
        self.number = 0
        self.taken.clear()
        return found

    def _read(self) -> str:
        try:
            return next(self._lines)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidUsage(
                f"{self.name}:{self.number + 1}: the gzip data is damaged or cut off here ({error}); "
                "get the file again, what is imported already stays and is not counted twice"
            ) from None


def _decompressed(stream: BinaryIO) -> BinaryIO:
    # Told by the content, because standard input has no name.
    buffered = (
        stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))
    )
    if buffered.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
        return cast(BinaryIO, gzip.GzipFile(fileobj=buffered))
    return cast(BinaryIO, buffered)


def _split(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of ``stream``, reading in blocks: several times quicker than line by line."""
    tail = b""
    is_first = True
    while block := stream.read(_BLOCK_BYTES):
        if is_first:
            block, is_first = block.removeprefix(_BYTE_ORDER_MARK), False
        whole, newline, rest = block.rpartition(b"\n")
        if newline:
            yield from _lines(tail + whole)
            tail = rest
        elif len(tail) <= 4 * MAX_LINE_LENGTH:  # bytes of a character; what is over the limit is only counted
            tail += rest
    if tail:
        yield tail.decode("utf-8", "surrogateescape")


def _lines(whole: bytes) -> Iterator[str]:
    for line in whole.decode("utf-8", "surrogateescape").split("\n"):
        yield line + "\n"

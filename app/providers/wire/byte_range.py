"""A Range header and a size -> the part of the file that it names. Source: RFC 9110, section 14."""

import re
from dataclasses import dataclass

from app.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """`length` bytes from `start` of a file of `size` bytes."""

    start: int
    length: int
    size: int

    @property
    def content_range(self) -> str:
        """The value of the Content-Range header."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{self.size}"


def part_of(byte_range: str | None, size: int) -> Part | None:
    """The one part that the header asks for, or None for the whole file.

    None too for several ranges and for what is no range: a server may ignore those. Raises
    RangeNotSatisfiable for a part behind the end.
    """
    found = _RANGE.fullmatch(byte_range.strip()) if byte_range else None
    if found is None or found["first"] == found["last"] == "":
        return None
    if not found["first"]:
        length = min(int(found["last"]), size)
        if length == 0 and size == 0 and int(found["last"]):
            return None  # The last bytes of an empty file: there is no way to name that part.
        start = size - length
    else:
        start = int(found["first"])
        last = int(found["last"]) if found["last"] else size - 1
        if found["last"] and last < start:
            return None
        length = min(last, size - 1) - start + 1
    if length <= 0:
        raise RangeNotSatisfiable(
            f"range {byte_range!r} lies outside the {size} bytes of the file",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return Part(start, length, size)

"""What large files are made of: one random block, again and again, so nobody has to keep it."""

import functools
import hashlib
import random
from collections.abc import Iterator

MB = 1024 * 1024
BLOCK = random.Random(6).randbytes(MB)


def pieces(size: int) -> Iterator[bytes]:
    """The content of a file of `size` bytes, in blocks."""
    for _ in range(size // MB):
        yield BLOCK
    if size % MB:
        yield BLOCK[: size % MB]


@functools.cache
def sha256(size: int) -> str:
    """The SHA-256 of that content."""
    digest = hashlib.sha256()
    for piece in pieces(size):
        digest.update(piece)
    return digest.hexdigest()

"""The hash of pieces of any size, and of those that are hashed beside the work."""

import hashlib
import random

import pytest

from app.digest import Digest


@pytest.mark.parametrize("sizes", [[], [1], [100_000] * 5, [70_000, 3, 0, 200_000, 64], [65536]])
def test_it_is_that_of_all_pieces_in_their_order(sizes):
    pieces = [random.Random(n).randbytes(size) for n, size in enumerate(sizes)]
    digest = Digest()
    for piece in pieces:
        digest.update(piece)
    assert digest.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()
    digest.update(b"more")
    assert digest.hexdigest() == hashlib.sha256(b"".join(pieces) + b"more").hexdigest()

"""A page of a list that a provider gives item by item."""

from collections.abc import Iterable, Iterator
from itertools import dropwhile, islice
from typing import Protocol, TypeVar

from app.errors import InvalidRequest
from app.sdk.objects import Page

_MOST = 100


class _Named(Protocol):
    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=_Named)


def page_of(items: Iterable[N], after: str | None, limit: int) -> Page[N]:
    """So many items behind `after`; no more is asked of the provider than that takes.

    Raises InvalidRequest for a limit out of bounds, and for an `after` that is not in the list.
    """
    if not 1 <= limit <= _MOST:
        raise InvalidRequest(f"limit is {limit}; it must be 1 to {_MOST}", param="limit")
    rest: Iterator[N] = iter(items)
    if after is not None:
        rest = dropwhile(lambda item: item.id != after, rest)
        if next(rest, None) is None:
            raise InvalidRequest(f"after names nothing of this list: {after!r:.200}", param="after")
    found = list(islice(rest, limit + 1))
    shown = found[:limit]
    return Page(
        shown,
        has_more=len(found) > limit,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
    )

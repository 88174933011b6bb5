"""Which page of a list the query asks for, and the links to the pages beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import request

from app.errors import InvalidRequest
from app.services.browse import Shown, Turn

PAGE_SIZE = 50


@dataclass(frozen=True)
class Links:
    """Addresses of the pages beside this one; None where there is none."""

    first: str | None
    newer: str | None
    older: str | None


def asked() -> Turn:
    """The page that the query asks for, by a row id that it begins behind."""
    newer, older = request.args.get("newer_than"), request.args.get("older_than")
    at = newer or older
    return Turn(at=plain(at, 36) if at else None, newer=bool(newer), size=PAGE_SIZE)


def links(shown: Shown[Any], filters: Mapping[str, str | None]) -> Links:
    """The addresses beside a page of things that have a `uuid`."""
    kept = {name: value for name, value in filters.items() if value}

    def to(**more: str) -> str:
        return f"{request.path}?{urlencode({**kept, **more})}"

    has_items = bool(shown.items)
    return Links(
        first=to() if shown.has_newer else None,
        newer=to(newer_than=shown.items[0].uuid) if shown.has_newer and has_items else None,
        older=to(older_than=shown.items[-1].uuid) if shown.has_older and has_items else None,
    )


def numbered(page: int, size: int, total: int, filters: Mapping[str, str | None]) -> Links:
    """The addresses beside a page of a list that counts its pages from 1."""
    kept = {name: value for name, value in filters.items() if value}

    def to(number: int) -> str:
        return f"{request.path}?{urlencode({**kept, 'page': number})}"

    return Links(
        first=to(1) if page > 2 else None,
        newer=to(page - 1) if page > 1 else None,
        older=to(page + 1) if page * size < total else None,
    )


def query(**named: str) -> str:
    """A query of these names."""
    return urlencode(named)


def text(name: str, longest: int = 255) -> str | None:
    """A field of the query, None when it is empty. Raises InvalidRequest."""
    value = request.args.get(name, "").strip()
    return plain(value, longest) if value else None


def plain(value: str, longest: int) -> str:
    """The text, if a database can look for it. Raises InvalidRequest."""
    if "\0" in value or len(value) > longest:
        raise InvalidRequest("the address of this page is not one of ours")
    return value

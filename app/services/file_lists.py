"""One page of files: the caller's own from the database, or an account as its provider has it."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from app import ids
from app.db import files as rows
from app.db.engine import Database
from app.errors import InvalidRequest, NotPermitted
from app.objects import FileObject, Page, page
from app.services.callers import MASTER_OWNER, MASTER_USER_ID, Caller
from app.services.file_objects import file_object, stored_object
from app.services.router import Router, Selector, Way


@dataclass(frozen=True)
class ListQuery:
    """What a list asks for. `after` is an id as it was handed out; `user_id` is for admins."""

    limit: int = 10_000
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    purpose: str | None = None
    user_id: str | None = None


class FileLists:
    """Lists of files, by the three ways of naming an account and by none."""

    def __init__(self, database: Database, router: Router) -> None:
        self._database = database
        self._router = router

    def page(self, caller: Caller, query: ListQuery, selector: Selector) -> Page:
        """A page of files in the order of (created_at, id).

        Without a selector or with target model names: the caller's own files, from the database.
        With a model or a provider: the caller's own files of that account; an admin sees the
        account as the provider does. Raises InvalidRequest with `param` for an unknown cursor.
        """
        if query.user_id is not None and not caller.sees_everything:
            raise NotPermitted("only an admin may list another user's files")
        owner = caller.owner if query.user_id is None else _owner_of(query.user_id)
        if selector == Selector():
            return self._stored(rows.Filters(owner, purpose=query.purpose), query)
        way = self._router.way(selector, caller)
        if way.kind != "unified" and caller.is_admin and query.user_id is None:
            return self._upstream(way, query)
        filters = rows.Filters(
            owner,
            kind=None if way.kind == "unified" else way.kind,
            purpose=query.purpose,
            deployment_ids=tuple(route.deployment.id for route in way.routes),
        )
        return self._stored(filters, query)

    def _stored(self, filters: rows.Filters, query: ListQuery) -> Page:
        after = None if query.after is None else self._place(filters.owner, query.after)
        with self._database.ask() as asking:
            files = rows.page(
                asking,
                filters,
                after=after,
                descending=query.order == "desc",
                limit=query.limit + 1,
            )
        shown = [file_object(file) for file in files[: query.limit]]
        return page(shown, has_more=len(files) > query.limit)

    def _place(self, owner: str, cursor: str) -> tuple[dt.datetime, str]:
        """Where the file of a cursor stands. It may be deleted by now: its row still says it."""
        meaning = ids.decode(cursor)
        if isinstance(meaning, ids.UnifiedId):
            with self._database.ask() as asking:
                found = rows.place(asking, meaning.file_uuid)
            if found and found[:2] == (owner, cursor):
                return found[2], meaning.file_uuid
        elif meaning is not None:
            with self._database.read() as session:
                for file in rows.by_deployment_file_id(session, meaning.raw):
                    if (file.owner, file.public_id) == (owner, cursor):
                        return file.created_at, file.id
        raise _unknown_cursor(cursor)

    def _upstream(self, way: Way, query: ListQuery) -> Page:
        handed: Callable[[str], str] = (
            (lambda raw: ids.encode_file(raw, way.names[0])) if way.kind == "encoded" else str
        )
        found = {
            stored.id: stored_object(stored, handed(stored.id))
            for route in way.routes
            for stored in route.provider.files(query.purpose)
            if query.purpose in (None, stored.purpose)
        }
        descending = query.order == "desc"
        objects: Sequence[FileObject] = sorted(
            found.values(), key=lambda file: (file["created_at"], file["id"]), reverse=descending
        )
        if query.after is not None:
            places = [i for i, file in enumerate(objects) if file["id"] == query.after]
            if not places:
                raise _unknown_cursor(query.after)
            objects = objects[places[0] + 1 :]
        return page(list(objects[: query.limit]), has_more=len(objects) > query.limit)


def _owner_of(user_id: str) -> str:
    return MASTER_OWNER if user_id == MASTER_USER_ID else f"user:{user_id}"


def _unknown_cursor(after: str) -> InvalidRequest:
    return InvalidRequest(f"after names no file of this list: {after[:200]!r}", param="after")

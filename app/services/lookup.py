"""Whose file an id means. The row decides: an id that merely decodes proves nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from app import ids
from app.db import files as rows
from app.db.engine import Database
from app.db.tables import Copy, File, now
from app.errors import NotFound, NotPermitted
from app.services.callers import Caller
from app.services.router import Hints, Route, Router
from app.settings import Settings

READABLE = ("ready", "stored")
"""States of a copy that its upstream knows: the last one may still be processed there."""


@dataclass(frozen=True)
class Held:
    """A file that has a row, and its copies."""

    file: File
    copies: tuple[Copy, ...]

    @property
    def readable(self) -> list[Copy]:
        """The copies that their upstream has, for all that is known."""
        moment = now()
        return [
            copy
            for copy in self.copies
            if copy.deployment_file_id
            and copy.state in READABLE
            and (copy.expires_at is None or copy.expires_at > moment)
        ]


@dataclass(frozen=True)
class Unrecorded:
    """A provider's file without a row, which an admin (or a setting) may use directly.

    `model` is the model name of its account when the id says so.
    """

    raw: str
    handed: str
    model: str | None


@dataclass(frozen=True)
class _Asked:
    """An id as it was sent, what it says, and what the request says beside it."""

    file_id: str
    meaning: ids.EncodedId | ids.RawId
    hints: Hints


class Lookup:
    """Every use of a file id starts here: retrieve, content, delete, list, chat, jobs."""

    def __init__(self, settings: Settings, database: Database, router: Router) -> None:
        self._settings = settings
        self._database = database
        self._router = router

    def resolve(
        self,
        caller: Caller,
        file_id: str,
        hints: Hints,
        *,
        deleting: bool = False,
        seen: rows.WithCopies | None = None,
    ) -> Held | Unrecorded:
        """What an id means for this caller; no upstream is asked.

        `seen` is the file that was found with the caller, if there was one. Raises NotFound for
        what nobody has, NotPermitted (or NotFound, as the setting says) for what somebody else has.
        """
        meaning = ids.decode(file_id)
        if isinstance(meaning, ids.UnifiedId) and seen and seen[0].id == meaning.file_uuid:
            held = _held(seen, file_id)
        else:
            held = self._find(caller, meaning, file_id, hints) if meaning else None
        if held is not None:
            self.admit(caller, held.file, file_id, changing=deleting)
            usable = ("ready", "deleting") if deleting else ("ready",)
            expired = held.file.expires_at is not None and held.file.expires_at <= now()
            if held.file.state not in usable or (expired and not deleting):
                raise _unknown(file_id)
            return held
        if meaning is None or isinstance(meaning, ids.UnifiedId):
            raise _unknown(file_id)
        if not caller.is_admin and not (
            self._settings.allow_unrecorded_ids and self._is_unheard_of(meaning.raw)
        ):
            raise _unknown(file_id)
        # An address names an object wherever it lies: not even the setting opens it to everybody.
        if not ids.is_raw(meaning.raw) and not (caller.is_admin and ids.is_address(meaning.raw)):
            raise _unknown(file_id)
        model = meaning.model if isinstance(meaning, ids.EncodedId) else None
        return Unrecorded(meaning.raw, file_id, model)

    def accounts(self, caller: Caller, found: Unrecorded, hints: Hints) -> tuple[Route, ...]:
        """Where a file without a row may be: by its id, else by what the request says."""
        if found.model is not None:
            return self._router.routes(found.model, caller)
        return self._router.way(hints.selector(), caller).routes

    def admit(self, caller: Caller, file: File, file_id: str, *, changing: bool) -> None:
        """Return when the caller may use the file. Raises NotPermitted or NotFound."""
        if file.owner == caller.owner or caller.is_admin:
            return
        if caller.sees_everything and not changing:
            return
        if self._settings.hide_foreign_objects:
            raise _unknown(file_id)
        raise NotPermitted(f"User {caller.display_name} does not have access to the file {file_id}")

    def _find(self, caller: Caller, meaning: ids.FileId, file_id: str, hints: Hints) -> Held | None:
        if isinstance(meaning, ids.UnifiedId):
            with self._database.ask() as asking:
                return _held(rows.with_copies(asking, meaning.file_uuid), file_id)
        with self._database.read() as session:
            found = rows.by_deployment_file_id(session, meaning.raw)
            copies = rows.copies_of(session, [file.id for file in found])
            file = self._choose(caller, found, copies, _Asked(file_id, meaning, hints))
            if file is None:
                return None
            return Held(file, tuple(rows.copies_of(session, [file.id])))

    def _is_unheard_of(self, raw: str) -> bool:
        """Whether no row has this provider's id: an account may have several model names, and
        under none of them is a file that has an owner free for everybody."""
        with self._database.read() as session:
            return not rows.by_deployment_file_id(session, raw)

    def _choose(
        self,
        caller: Caller,
        found: Sequence[File],
        copies: Sequence[Copy],
        asked: _Asked,
    ) -> File | None:
        """Of several accounts' files with one provider id, the one that is meant."""
        exact = [file for file in found if file.public_id == asked.file_id]
        if isinstance(asked.meaning, ids.EncodedId) and not exact:
            accounts = self._router.accounts_of(asked.meaning.model)
            raw = asked.meaning.raw
            there = {
                c.file_id
                for c in copies
                if c.deployment_id in accounts and c.deployment_file_id == raw
            }
            found = [file for file in found if file.id in there]
        candidates = exact or found
        alive = [file for file in candidates if file.state != "deleted"]
        candidates = alive or candidates
        if len(candidates) > 1 and (provider := asked.hints.selector().provider):
            there = {c.file_id for c in copies if c.provider == provider}
            candidates = [file for file in candidates if file.id in there] or candidates
        own = [file for file in candidates if file.owner == caller.owner]
        return next(iter(own or candidates), None)


def _held(found: rows.WithCopies | None, file_id: str) -> Held | None:
    """A file that was found by what its id says, if it has this id."""
    if found is None or found[0].public_id != file_id:
        return None
    return Held(found[0], tuple(found[1]))


def _unknown(file_id: str) -> NotFound:
    shown = file_id if len(file_id) <= 200 else file_id[:200] + "..."
    return NotFound(f"No such File object: {shown}", param="id")

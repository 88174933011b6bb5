"""The import: table by table, some hundred rows at a time, as often as one likes.

Without `apply` nothing is written, and everything is told as if it were. What is here already stays
as it is; what was deleted here does not come back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.engine import Database
from app.db.tables import AuditEntry, Copy, File, Job, Key, User, now
from app.errors import OperationRefused
from app.litellm_import import objects, people
from app.litellm_import import source as theirs
from app.litellm_import.deployments import Deployments
from app.litellm_import.people import Left, Taken
from app.litellm_import.report import Report
from app.litellm_import.source import Row, Source
from app.services import audit
from app.services.callers import MASTER_OWNER, operator, owner_of

_GONE = ("user.delete", "key.delete", "file.delete")


@dataclass(frozen=True)
class Asked:
    """Whether to write, and for which of the four to look."""

    apply: bool = False
    keys: bool = True
    files: bool = True
    jobs: bool = True


class Import:
    """One pass over LiteLLM's tables."""

    def __init__(
        self, source: Source, database: Database, deployments: Deployments, report: Report
    ) -> None:
        self._source = source
        self._database = database
        self._deployments = deployments
        self._report = report
        self._teams: dict[str, Row] = {}
        self._left_users: dict[str, str] = {}
        self._blank: set[str] = set()
        self._gone: set[tuple[str, str]] = set()

    def run(self, asked: Asked) -> Report:
        """Take users, keys, files, batches and jobs, in this order. Raises DatabaseUnavailable."""
        self._gone = self._deleted_here()
        self._teams = {
            row["team_id"]: row
            for batch in self._source.batches(theirs.TEAMS, "team_id", people.TEAM_COLUMNS)
            for row in batch
        }
        self._users(asked)
        if asked.keys:
            self._keys(asked)
        if asked.files:
            self._files(asked)
        if asked.jobs:
            self._jobs(asked)
        if asked.apply:
            with self._database.write() as session:
                audit.record(session, operator(), "litellm.import", None)
        return self._report

    # Users

    def _users(self, asked: Asked) -> None:
        doubled = people.second_ones(self._source.alike(theirs.USERS, "user_id", "created_at"))
        emails = people.second_ones(self._source.alike(theirs.USERS, "user_email", "created_at"))
        for batch in self._source.batches(theirs.USERS, "user_id", people.USER_COLUMNS):
            taken: list[Taken] = []
            for row in batch:
                if row["user_id"] in doubled:
                    self._leave_user(
                        row["user_id"], "another user's id differs in letter case only"
                    )
                    continue
                with self._leaving("user", row["user_id"], self._left_users):
                    found = people.user(row, self._teams)
                    if found.columns["email"] in emails:
                        found.columns["email"] = None
                        found.notes.append("its e-mail is another user's, too: none here")
                    taken.append(found)
            self._store_users(taken, asked)
        wanted = self._team_users()
        for start in range(0, len(wanted), theirs.AT_ONCE):
            self._store_users(wanted[start : start + theirs.AT_ONCE], asked)

    def _team_users(self) -> list[Taken]:
        found = []
        for row in self._teams.values():
            with self._leaving("team", row["team_id"], self._left_users):
                found.append(people.team(row))
        return found

    def _store_users(self, taken: list[Taken], asked: Asked) -> None:
        with self._writing(asked) as session:
            columns = [each.columns for each in taken]
            folded = [each["id_folded"] for each in columns]
            here = {
                row.id_folded: row.user_id
                for row in session.execute(
                    select(User.id_folded, User.user_id).where(User.id_folded.in_(folded))
                )
            }
            mails = [each["email"].casefold() for each in columns if each["email"]]
            known = set(
                session.scalars(select(User.email_folded).where(User.email_folded.in_(mails)))
            )
            new = []
            for each in taken:
                row = each.columns
                user_id = row["user_id"]
                if here.get(row["id_folded"]) == user_id:
                    self._report.add("user", user_id, "here")
                    continue
                if row["id_folded"] in here:
                    self._leave_user(user_id, "another user's id differs in letter case only")
                    continue
                if ("user.delete", user_id) in self._gone:
                    self._leave_user(user_id, "it was deleted here")
                    continue
                row["email_folded"] = row["email"].casefold() if row["email"] else None
                if row["email_folded"] in known:
                    row["email"] = row["email_folded"] = None
                    each.notes.append("its e-mail is another user's, too: none here")
                new.append(row)
                self._note("user", user_id, each)
            self._insert(session, User, new, asked)

    def _leave_user(self, user_id: str, why: str) -> None:
        self._left_users[user_id] = why
        self._report.add("user", user_id, "skipped", why)

    # Keys

    def _keys(self, asked: Asked) -> None:
        repeated = {
            alias.casefold() for alias in self._source.alike(theirs.KEYS, "key_alias", "created_at")
        }
        met: set[tuple[str, str]] = set()
        for batch in self._source.batches(theirs.KEYS, "token", people.KEY_COLUMNS):
            taken = []
            for row, around in self._with_surroundings(batch):
                name = row["key_alias"] or row["key_name"] or str(row["token"])[:12]
                with self._leaving("key", name):
                    user_id = people.user_of(row["user_id"], row["team_id"])
                    if user_id in self._left_users:
                        raise Left("its user is not taken", self._left_users[user_id])
                    found = people.key(row, around)
                    alias = found.columns["alias"]
                    if alias is not None and alias.casefold() in repeated:
                        scoped = (alias, found.columns["alias_scope"])
                        if scoped in met:
                            found.columns["alias"] = None
                            found.notes.append("its alias is another key's, too: none here")
                        met.add(scoped)
                    missing = self._deployments.missing(found.columns["models"])
                    if [name for name in missing if name != "no-default-models"]:
                        found.notes.append("it names models that the configuration does not have")
                    taken.append((name, found))
            self._store_keys(taken, asked)

    def _with_surroundings(self, batch: Sequence[Row]) -> Iterator[tuple[Row, people.Around]]:
        def by(table: str, key: str, column: str, columns: Sequence[str]) -> dict[str, Row]:
            wanted = {row[column] for row in batch if row[column] is not None}
            found = self._source.some(table, key, wanted, columns)
            return {row[key]: row for row in found}

        users = by(theirs.USERS, "user_id", "user_id", people.USER_COLUMNS)
        budgets = by(theirs.BUDGETS, "budget_id", "budget_id", people.BUDGET_COLUMNS)
        old = by(
            theirs.OLD_KEYS, "active_token_id", "token", ["token", "active_token_id", "revoke_at"]
        )
        for row in batch:
            previous = old.get(row["token"])
            ends = theirs.moment(previous["revoke_at"]) if previous else None
            yield (
                row,
                people.Around(
                    users.get(row["user_id"] or ""),
                    self._teams.get(row["team_id"] or ""),
                    budgets.get(row["budget_id"] or ""),
                    previous if ends is not None and ends > now() else None,
                ),
            )

    def _store_keys(self, taken: list[tuple[str, Taken]], asked: Asked) -> None:
        with self._writing(asked) as session:
            rows = [each.columns for _, each in taken]
            here = self._keys_here(session, rows)
            aliases = {row["alias"] for row in rows if row["alias"]}
            used = {
                (row.alias, row.alias_scope)
                for row in session.execute(
                    select(Key.alias, Key.alias_scope).where(Key.alias.in_(aliases))
                )
            }
            new: list[dict[str, Any]] = []
            for name, each in taken:
                row = each.columns
                known = [here[each] for each in (row["id"], row["token"]) if each in here]
                if known:
                    self._report.add("key", name, "here")
                    if row["blocked"] and not any(known):
                        self._report.add("key", name, "noted", "it is blocked there and not here")
                    continue
                if ("key.delete", row["token"]) in self._gone:
                    self._report.add("key", name, "skipped", "it was deleted here")
                    continue
                if row["user_id"] and ("user.delete", row["user_id"]) in self._gone:
                    self._report.add("key", name, "skipped", "its user was deleted here")
                    continue
                if (row["alias"], row["alias_scope"]) in used:
                    row["alias"] = None
                    each.notes.append("its alias is another key's, too: none here")
                new.append(row)
                self._note("key", name, each)
            new = self._with_users(session, new, asked)
            self._insert(session, Key, new, asked)

    @staticmethod
    def _keys_here(session: Session, rows: Sequence[dict[str, Any]]) -> dict[str, bool]:
        """By row id and by hash, whether a key that is here is blocked.

        One whose secret was renewed here is known by its id; its old secret stays dead.
        """
        wanted = [row["id"] for row in rows]
        tokens = [row["token"] for row in rows]
        found = session.execute(
            select(Key.id, Key.token, Key.blocked).where(
                or_(Key.id.in_(wanted), Key.token.in_(tokens), Key.previous_token.in_(tokens))
            )
        ).all()
        return {
            **{row.id: row.blocked for row in found},
            **{row.token: row.blocked for row in found},
        }

    def _with_users(
        self, session: Session, rows: list[dict[str, Any]], asked: Asked
    ) -> list[dict[str, Any]]:
        """The keys whose user there is; one that LiteLLM has no row of is made."""
        wanted = {row["user_id"] for row in rows if row["user_id"] is not None}
        there = set(session.scalars(select(User.user_id).where(User.user_id.in_(wanted))))
        if not asked.apply:
            there |= {
                row["user_id"]
                for row in self._source.some(theirs.USERS, "user_id", wanted, ["user_id"])
            }
            there |= {people.team_user(team) for team in self._teams}
            there |= {people.DEFAULT_USER, *self._blank}
        folded = {user_id.casefold() for user_id in wanted - there}
        taken = set(session.scalars(select(User.id_folded).where(User.id_folded.in_(folded))))
        blank: list[dict[str, Any]] = []
        for user_id in sorted(wanted - there):
            with self._leaving("user", user_id, self._left_users):
                if user_id.casefold() in taken:
                    raise Left("another user's id differs in letter case only")
                blank.append(people.blank_user(user_id))
                taken.add(user_id.casefold())
                self._blank.add(user_id)
                self._report.add("user", user_id, "taken")
        self._insert(session, User, blank, asked)
        return [row for row in rows if row["user_id"] not in self._left_users]

    # Files, batches and jobs

    def _files(self, asked: Asked) -> None:
        for batch in self._source.batches(theirs.FILES, "id", objects.FILE_COLUMNS):
            taken = []
            for row in batch:
                with self._leaving("file", row["unified_file_id"]):
                    taken.append(objects.file(row, self._deployments))
            with self._writing(asked) as session:
                owners = self._owners(session, [each.columns["owner"] for each, _ in taken])
                wanted = [each.columns["id"] for each, _ in taken]
                here = set(session.scalars(select(File.id).where(File.id.in_(wanted))))
                new: list[dict[str, Any]] = []
                copies: list[dict[str, Any]] = []
                for each, at in taken:
                    row = each.columns
                    if row["id"] in here:
                        self._report.add("file", row["public_id"], "here")
                    elif ("file.delete", row["public_id"]) in self._gone:
                        self._report.add("file", row["public_id"], "skipped", "it was deleted here")
                    elif row["owner"] not in owners:
                        self._report.add("file", row["public_id"], "skipped", _NOBODY)
                    else:
                        here.add(row["id"])
                        new.append(row)
                        copies += at
                        self._note("file", row["public_id"], each)
                self._insert(session, File, new, asked)
                self._insert(session, Copy, copies, asked)

    def _jobs(self, asked: Asked) -> None:
        met: set[int] = set()
        for batch in self._source.batches(theirs.OBJECTS, "id", objects.OBJECT_COLUMNS):
            taken = []
            for row in batch:
                kind = _kind(row["file_purpose"])
                with self._leaving(kind, row["unified_object_id"]):
                    taken.append((kind, objects.job(row, self._deployments)))
            with self._writing(asked) as session:
                rows = [each.columns for _, each in taken]
                owners = self._owners(session, [row["owner"] for row in rows])
                here = set(
                    session.scalars(select(Job.id).where(Job.id.in_([row["id"] for row in rows])))
                )
                raws = [row["upstream_id"] for row in rows]
                linked = {
                    tuple(row)
                    for row in session.execute(
                        select(Job.deployment_id, Job.type, Job.upstream_id).where(
                            Job.upstream_id.in_(raws)
                        )
                    )
                }
                new = []
                for kind, each in taken:
                    row = each.columns
                    place = (row["deployment_id"], row["type"], row["upstream_id"])
                    if row["id"] in here:
                        self._report.add(kind, row["public_id"], "here")
                    elif row["owner"] not in owners:
                        self._report.add(kind, row["public_id"], "skipped", _NOBODY)
                    elif place in linked or hash(place) in met:
                        why = "it has another id, too, which is taken or here"
                        self._report.add(kind, row["public_id"], "skipped", why)
                    else:
                        met.add(hash(place))
                        new.append(row)
                        self._note(kind, row["public_id"], each)
                self._insert(session, Job, new, asked)

    def _owners(self, session: Session, owners: Iterable[str]) -> set[str]:
        """Those of these owners that there are: a later user of the same id inherits nothing."""
        wanted = set(owners)
        found = {MASTER_OWNER} & wanted
        users = {name.removeprefix("user:") for name in wanted if name.startswith("user:")}
        there = set(session.scalars(select(User.user_id).where(User.user_id.in_(users))))
        keys = {name for name in wanted if name.startswith("key:")}
        found |= set(session.scalars(select(Key.owner).where(Key.owner.in_(keys))))
        # What is not here yet comes with the same import.
        tokens = {name.removeprefix("key:") for name in keys}
        rest = users - there
        there |= {
            row["user_id"]
            for row in self._source.some(theirs.USERS, "user_id", rest, ["user_id"])
            if row["user_id"] not in self._left_users
        }
        of_keys = self._source.some(theirs.KEYS, "user_id", rest, ["user_id"])
        there |= {row["user_id"] for row in of_keys if row["user_id"] not in self._left_users}
        there |= {user for user in map(people.team_user, self._teams) if user in rest}
        there -= {user for action, user in self._gone if action == "user.delete"}
        found |= {owner_of(user) for user in there}
        named = self._source.some(theirs.KEYS, "token", tokens, ["token"])
        return found | {f"key:{row['token']}" for row in named}

    # All of them

    def _deleted_here(self) -> set[tuple[str, str]]:
        """What the audit trail says that somebody has deleted here."""
        query = select(AuditEntry.action, AuditEntry.target).where(
            AuditEntry.action.in_(_GONE), AuditEntry.status < 300, AuditEntry.target.is_not(None)
        )
        with self._database.read() as session:
            return {(row.action, row.target) for row in session.execute(query)}

    @contextmanager
    def _leaving(self, kind: str, id: str, left: dict[str, str] | None = None) -> Iterator[None]:
        """Report a row that cannot be taken, and go on."""
        try:
            yield
        except Left as error:
            if left is not None:
                left[id] = error.reason
            self._report.add(kind, id, "skipped", error.reason, about=error.about)

    def _note(self, kind: str, id: str, taken: Taken) -> None:
        self._report.add(kind, id, "taken")
        for note in taken.notes:
            self._report.add(kind, id, "noted", note)

    @contextmanager
    def _writing(self, asked: Asked) -> Iterator[Session]:
        opening: Callable[[], Any] = self._database.write if asked.apply else self._database.read
        try:
            with opening() as session:
                yield session
        except IntegrityError as error:
            raise OperationRefused(
                "somebody has written the same rows at this moment; nothing of the last "
                f"{theirs.AT_ONCE} was kept. Run the import again"
            ) from error

    @staticmethod
    def _insert(session: Session, table: type, rows: list[dict[str, Any]], asked: Asked) -> None:
        if asked.apply and rows:
            session.execute(insert(table), rows)


_NOBODY = "its user or its key does not exist any more"


def _kind(purpose: str) -> str:
    return {"batch": "batch", "fine-tune": "job"}.get(purpose, "object")

"""What a check finds, tells and mends: one line each, and the numbers at its end."""

import datetime as dt
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from app.db.engine import Database
from app.db.tables import Copy, now
from app.errors import DatabaseUnavailable, GatewayError
from app.providers.protocol import Flaw
from app.services import audit
from app.services.callers import operator

T = TypeVar("T")

PAGE = 500
"""Rows, and ids in a question, that are in memory at a time."""
_FLAWS_AT_ONCE = 200
_LONGEST = 300

Outcome = Literal["found", "mended", "left", "noted", "unasked"]
"""`found`: nothing was done, for nobody asked to; `left`: it was, or there is nothing to be done.
`noted` is no difference; `unasked` is what could not be looked at."""

Mend = Callable[[], str | None]
"""Mends one difference; the reason why it is left, None when it is not."""


@dataclass(frozen=True)
class Difference:
    """What is not as it should be. `where` is a deployment's id, or a part of the data directory,
    or `database`; `repair` says in the operator's words what `mend` does, if anything can be."""

    kind: str
    where: str
    id: str
    meaning: str
    repair: str
    mend: Mend | None = None


@dataclass(frozen=True)
class Finding:
    """What is told of one difference, or of what is none; `reason` is why it is left."""

    kind: str
    where: str
    id: str
    meaning: str
    repair: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True)
class Asked:
    """What a check is to do. `own` are the ids of deployments whose accounts are the gateway's
    alone; what is younger than `grace` may be somebody's who is at work."""

    repair: bool = False
    own: frozenset[str] = frozenset()
    read: bool = False
    grace: dt.timedelta = dt.timedelta(minutes=5)

    def is_fresh(self, moment: dt.datetime) -> bool:
        return moment > now() - self.grace


@dataclass
class Summary:
    """What a check has looked at, and how often each outcome was."""

    files: int = 0
    copies: int = 0
    accounts: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)

    @property
    def differences(self) -> int:
        return sum(self.outcomes[each] for each in ("found", "mended", "left"))


class Report:
    """One check under way: what it is to do, whom it tells, and what it has counted.

    `settle_seconds` is how long a trace is given to go away by itself: between two steps of a
    process that is at work there are a few milliseconds.
    """

    def __init__(
        self,
        database: Database,
        asked: Asked,
        tell: Callable[[Finding], None],
        settle_seconds: float = 1.0,
    ) -> None:
        self.asked = asked
        self.summary = Summary()
        self._database = database
        self._tell = tell
        self._settle_seconds = settle_seconds

    def difference(self, found: Difference) -> None:
        """Tell of a difference, and mend it if that is asked for and can be done."""
        told = partial(Finding, found.kind, found.where, found.id, found.meaning, found.repair)
        if not self.asked.repair:
            self._add(told("found"))
        elif found.mend is None:
            self._add(told("left"))
        else:
            reason = self._mended(found.kind, f"{found.where}/{found.id}", found.mend)
            self._add(told("mended") if reason is None else told("left", reason))

    def note(self, found: Difference) -> None:
        """Tell of something that is no difference, as far as anybody knows."""
        told = found.kind, found.where, found.id, found.meaning, found.repair
        self._add(Finding(*told, "noted"))

    def unasked(self, where: str, reason: str, id: str = "-") -> None:
        """Tell what could not be looked at."""
        self._add(Finding("unasked", where, id, f"could not be asked: {reason}", "", "unasked"))

    def flaws(self, found: Iterable[Flaw]) -> Iterator[Flaw]:
        """Those that are still there a moment later."""
        flaws = iter(found)
        while some := list(itertools.islice(flaws, _FLAWS_AT_ONCE)):
            self.wait()
            yield from (flaw for flaw in some if flaw.persists())

    def wait(self) -> None:
        """Give the traces of processes that are at work the time to go away."""
        time.sleep(self._settle_seconds)

    def _mended(self, kind: str, target: str, mend: Mend) -> str | None:
        note = audit.noting(operator(), f"fsck.{kind}", target)
        with self._database.write() as session:
            note(session, status=audit.BEGUN)
        status = audit.DONE
        try:
            reason = mend()
        except DatabaseUnavailable:
            raise
        except GatewayError as error:
            reason, status = error.message, error.status
        except OSError as error:
            reason, status = error.strerror or type(error).__name__, 500
        if reason is not None and status == audit.DONE:
            status = 409
        with self._database.write() as session:
            note(session, status=status)
        return None if reason is None else shown(reason)

    def _add(self, finding: Finding) -> None:
        self.summary.outcomes[finding.outcome] += 1
        self._tell(finding)


def is_held(copy: Copy) -> bool:
    """Whether somebody is at a copy now."""
    return copy.lease_until is not None and copy.lease_until > now()


def pages(read: Callable[[str], list[T]], key: Callable[[T], str]) -> Iterator[list[T]]:
    """Pages of rows, each read behind the last row of the one before."""
    after = ""
    while page := read(after):
        yield page
        after = key(page[-1])


def shown(text: str) -> str:
    """A text that others have chosen, on one line, and not too long."""
    plain = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(plain)[:_LONGEST]

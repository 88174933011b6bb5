"""Usage: requests counted in memory and written down now and then, and what charts are made of.

A request costs a few additions. Each process writes what it has counted every FLUSH_SECONDS, and at
its end, in one transaction; a process that is killed loses what it has counted since. What the
trail of who did what needs is elsewhere (`app.services.audit`): this is for charts.
"""

import atexit
import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from app.db import usage as rows
from app.db.engine import Database
from app.db.tables import now
from app.errors import DatabaseUnavailable
from app.services.callers import Caller

T = TypeVar("T")

log = logging.getLogger("manifold.usage")

FLUSH_SECONDS = 10.0
RETENTION = dt.timedelta(days=90)
MOST_PLACES = 20_000
"""How many rows' counts are kept in memory while the database is away; others are not counted."""

_HOUR = 3600
_USE_SECONDS = 60.0
"""How often it is written down, at most, that a key was used."""
_SLOW_SECONDS = 0.05
_KEPT_SECONDS = 60.0
"""How long a sum that was slow to make is shown again before it is made anew."""
_MOST_KEPT = 1000

_Counts = list[int]
_Place = tuple[int, str, str, str]


@dataclass(frozen=True)
class Series:
    """Counts over time: `hours` are the beginnings, each of `counts` has one value for each."""

    hours: tuple[dt.datetime, ...]
    counts: dict[str, tuple[int, ...]]

    def total(self, name: str) -> int:
        """The sum of one count."""
        return sum(self.counts[name])


@dataclass(frozen=True)
class _Kept:
    until: float
    value: object


class Usage:
    """Counts requests, and answers what was used and what is stored.

    Without `flush_seconds` nothing is written but by `flush`. What is asked is answered for the
    caller's own things, and for everybody's to those who see everything.
    """

    def __init__(
        self,
        database: Database,
        model_of: Callable[[str], str | None] = lambda _: None,
        flush_seconds: float | None = FLUSH_SECONDS,
    ) -> None:
        self._database = database
        self._model_of = model_of
        self._flush_seconds = flush_seconds
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._counts: dict[_Place, _Counts] = {}
        self._uses: dict[str, dt.datetime] = {}
        self._noted: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._kept: dict[tuple[str | None, ...], _Kept] = {}

    # Counting

    def count(
        self,
        caller: Caller,
        *,
        is_error: bool,
        bytes_in: int = 0,
        bytes_out: int = 0,
        deployments: Sequence[str] = (),
    ) -> None:
        """Count a request that has ended. `deployments` are the ids of those it was about."""
        moment = time.time()
        hour, owner = int(moment // _HOUR), caller.owner
        places = [(hour, owner, "", "")]
        if deployments:
            models = dict.fromkeys(map(self._model_of, deployments))
            places += [(hour, owner, "model", model) for model in models if model]
            places += [(hour, owner, "deployment", one) for one in dict.fromkeys(deployments)]
        with self._lock:
            for place in places:
                counts = self._counts.get(place)
                if counts is None:
                    if len(self._counts) >= MOST_PLACES:
                        continue
                    counts = self._counts[place] = [0, 0, 0, 0]
                counts[0] += 1
                counts[1] += is_error
                counts[2] += bytes_in
                counts[3] += bytes_out
            key_id = caller.key_id
            if key_id is not None and moment - self._noted.get(key_id, 0.0) > _USE_SECONDS:
                if len(self._noted) >= MOST_PLACES:
                    self._noted.clear()
                self._noted[key_id] = moment
                self._uses[key_id] = now()
            if self._thread is None and self._flush_seconds is not None:
                self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
                self._thread.start()
                atexit.register(self._end)

    def flush(self) -> None:
        """Write down what this process has counted. Raises DatabaseUnavailable; it stays then."""
        with self._flushing:
            with self._lock:
                counts, self._counts = self._counts, {}
                uses, self._uses = self._uses, {}
            if not counts and not uses:
                return
            try:
                with self._database.write() as session:
                    rows.add(session, {_row(place): _named(c) for place, c in counts.items()})
                    rows.note_uses(session, uses)
            except BaseException:
                self._take_back(counts, uses)
                raise

    def _take_back(self, counts: dict[_Place, _Counts], uses: dict[str, dt.datetime]) -> None:
        with self._lock:
            for place, earlier in counts.items():
                later = self._counts.get(place, [0] * len(earlier))
                self._counts[place] = [a + b for a, b in zip(earlier, later, strict=True)]
            self._uses = {**uses, **self._uses}

    def _run(self) -> None:
        while not self._is_over.wait(self._flush_seconds):
            self._try_to_flush()

    def _end(self) -> None:
        self._is_over.set()
        self._try_to_flush()

    def _try_to_flush(self) -> None:
        try:
            self.flush()
        except DatabaseUnavailable as error:
            log.warning("usage is not written down yet", extra={"error": error.message})
        except Exception:  # the thread's border
            log.exception("usage")

    def sweep(self) -> None:
        """Remove hours that are over for long."""
        with self._database.write() as session:
            rows.sweep(session, now() - RETENTION)

    # Answering

    def history(self, caller: Caller, hours: int, *, step: int = 1) -> Series:
        """The last so many hours, this one too; each value is the sum of `step` of them."""
        first = _first_hour(hours)
        with self._database.read() as session:
            found = rows.by_hour(session, first, owner=_scope(caller))
        sums = {name: [0] * (hours // step) for name in rows.COUNTS}
        for hour, _, counts in found:
            at = int((hour - first).total_seconds() // _HOUR) // step
            if 0 <= at < hours // step:
                for name, value in counts.items():
                    sums[name][at] += value
        starts = tuple(first + dt.timedelta(hours=i * step) for i in range(hours // step))
        return Series(starts, {name: tuple(values) for name, values in sums.items()})

    def busiest(
        self, caller: Caller, hours: int, by: str, limit: int = 8
    ) -> list[tuple[str, dict[str, int]]]:
        """The busiest names in the last hours; `by` is model, deployment or owner."""
        with self._database.read() as session:
            return rows.by_name(
                session, _first_hour(hours), owner=_scope(caller), dimension=by, limit=limit
            )

    def deployments(self, hours: int) -> dict[str, dict[str, int]]:
        """What every deployment was asked in the last hours; for administrators."""
        with self._database.read() as session:
            found = rows.by_name(
                session, _first_hour(hours), owner=None, dimension="deployment", limit=1000
            )
        return dict(found)

    def stored(self, caller: Caller, by: str, limit: int = 8) -> list[rows.Stored]:
        """Who has stored the most, or what is stored for each model; `by` is owner or model.

        At most a minute old, where finding it out takes its time.
        """
        ask = rows.stored_by_owner if by == "owner" else rows.stored_by_model
        owner = _scope(caller)

        def asked() -> list[rows.Stored]:
            with self._database.read() as session:
                return ask(session, owner=owner, limit=limit)

        return self._kept_when_slow((by, str(limit), owner), asked)

    def copies(self) -> list[rows.CopyCount]:
        """Copies by deployment and state, likewise; for administrators."""

        def asked() -> list[rows.CopyCount]:
            with self._database.read() as session:
                return rows.copies_by_deployment(session)

        return self._kept_when_slow(("copies",), asked)

    def last_uses(self, tokens: Sequence[str]) -> dict[str, dt.datetime]:
        """When the keys with these hashes were used last, to a minute or so."""
        with self._database.read() as session:
            return rows.last_uses(session, tokens)

    def _kept_when_slow(self, key: tuple[str | None, ...], ask: Callable[[], T]) -> T:
        begun = time.monotonic()
        kept = self._kept.get(key)
        if kept is not None and begun < kept.until:
            return kept.value  # type: ignore[return-value]  # what `ask` has answered
        value = ask()
        moment = time.monotonic()
        if moment - begun > _SLOW_SECONDS:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = _Kept(moment + _KEPT_SECONDS, value)
        else:
            self._kept.pop(key, None)
        return value


def _scope(caller: Caller) -> str | None:
    return None if caller.sees_everything else caller.owner


def _first_hour(hours: int) -> dt.datetime:
    this = int(time.time() // _HOUR)
    return dt.datetime.fromtimestamp((this - hours + 1) * _HOUR, dt.UTC)


def _row(place: _Place) -> rows.Place:
    hour, owner, dimension, name = place
    return rows.Place(dt.datetime.fromtimestamp(hour * _HOUR, dt.UTC), owner, dimension, name)


def _named(counts: _Counts) -> dict[str, int]:
    return dict(zip(rows.COUNTS, counts, strict=False))

"""Engine and sessions from the URL: pragmas, one SQLite writer at a time, trouble as an error."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import (
    TimeoutError as PoolTimeout,
)
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool, StaticPool

from app import turns
from app.db.change import Changing
from app.db.question import Asking
from app.errors import ConfigError, DatabaseUnavailable, InvalidRequest

BUSY_TIMEOUT_SECONDS = 10
"""How long somebody else's lock on a SQLite file is waited for; our own writers wait in a line."""
LINE_SECONDS = 30
"""How long a writer waits for the writers before it in its own process."""
POOL_TIMEOUT_SECONDS = 10
PATIENCE = {"connect_timeout": "5", "tcp_user_timeout": "10000", "keepalives_idle": "30"}
"""PostgreSQL's seconds, milliseconds and seconds until a host that is gone counts as gone; what the
URL says of them wins."""
SUPPORTED = ("sqlite:///path/to/file.db", "postgresql://user:password@host/name")


class Database:
    """One engine of this process, and the ways to use it: `read()` and `write()` with a session
    of objects, `ask()` and `change()` with a connection.

    All raise DatabaseUnavailable when the database does not answer; IntegrityError passes
    through, for the caller knows what it means. Nothing may wait for an upstream inside.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._read = sessionmaker(engine, expire_on_commit=False)
        writing = engine.execution_options(manifold_writes=True)
        self._write = sessionmaker(writing, expire_on_commit=False)
        is_sqlite = engine.dialect.name == "sqlite"
        self._turn: Any = _Turn(engine.url.database) if is_sqlite else nullcontext()
        # A server's connection may be gone when it is wanted again, which the pool finds out. A
        # file's is there: so one to ask and one to write are kept out of the pool, whose way is
        # longer than a question's.
        self._resting: list[_Lent] = []
        size = engine.pool.size() if isinstance(engine.pool, QueuePool) else 1
        self._most_resting = min(2, size - 1) if is_sqlite else 0
        self._is_far = not is_sqlite
        event.listen(engine, "engine_disposed", self._end_resting)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for questions; what it sees is one moment's state."""
        self.let_others_work()
        with _as_unavailable(), self._read() as session:
            yield session

    def ask(self) -> "_Ask":
        """A connection for questions that are asked all the time: see `app.db.question`."""
        return _Ask(self)

    def lend(self, *, asks: bool) -> "_Lent":
        """A connection to ask or to write on; `take_back` is for one that is as good as it was."""
        try:
            return self._resting.pop()
        except IndexError:
            return _Lent(self.engine, is_autocommit=asks and self._is_far)

    def take_back(self, lent: "_Lent") -> None:
        """Keep a connection for the next one who wants it, or give it back to the pool."""
        if len(self._resting) < self._most_resting:
            self._resting.append(lent)
        else:
            lent.back()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end and rolls back on any error."""
        turns.leave()
        with _as_unavailable(), self._turn, self._write.begin() as session:
            yield session

    @contextmanager
    def change(self) -> Iterator[Changing]:
        """The same for changes that are made all the time: see `app.db.change`."""
        turns.leave()
        dialect = self.engine.dialect
        driver: Any = dialect.loaded_dbapi
        with _as_unavailable(), self._turn:
            lent = self.lend(asks=False)
            try:
                if not self._is_far:
                    # The lock is taken at the beginning, as `_prepare_sqlite` says.
                    lent.connection.execute("BEGIN IMMEDIATE")
                yield Changing(lent.connection, dialect)
                lent.connection.commit()
            except driver.Error as error:
                lent.back_after(error)
                raise DBAPIError.instance(
                    None, None, error, driver.Error, dialect=dialect
                ) from error
            except BaseException as error:
                lent.back_after(error)
                raise
            self.take_back(lent)

    def _end_resting(self, _engine: Engine) -> None:
        while self._resting:
            self._resting.pop().end()

    def let_others_work(self) -> None:
        """Leave the turn, if it takes a while to be answered."""
        # A file answers at once, a server over the network.
        if self._is_far:
            turns.leave()

    def when(self, happens: str, do: Callable[..., None]) -> None:
        """Call `do` whenever this happens to a connection of the pool: SQLAlchemy's pool events."""
        event.listen(self.engine, happens, do)

    def ping(self) -> None:
        """Return if the database answers, else raise DatabaseUnavailable."""
        with self.read() as session:
            session.execute(text("SELECT 1"))


class _Ask:
    """What `Database.ask` is used with; a generator would cost as much as the question."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> Asking:
        self._database.let_others_work()
        self._lent = self._database.lend(asks=True)
        return Asking(self._lent.connection, self._database.engine.dialect)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._database.take_back(self._lent)
            return
        self._lent.back_after(error)
        driver: Any = self._database.engine.dialect.loaded_dbapi
        if isinstance(error, driver.DataError):
            raise _cannot_be_stored() from error
        if isinstance(error, driver.Error):
            raise DatabaseUnavailable from error


class _Lent:
    """One of the pool's connections. Raises DatabaseUnavailable when none can be had.

    On one with `is_autocommit` no transaction begins and none ends; SQLite's statements stand for
    themselves anyway, unless one says BEGIN (see `_prepare_sqlite`).
    """

    def __init__(self, engine: Engine, *, is_autocommit: bool) -> None:
        self._dialect = engine.dialect
        self._is_autocommit = is_autocommit
        try:
            self._lent: Any = engine.raw_connection()
        except (engine.dialect.loaded_dbapi.Error, DBAPIError, PoolTimeout) as error:
            raise DatabaseUnavailable from error
        self.connection: Any = self._lent.dbapi_connection
        self._let_autocommit(on=True)

    def back(self) -> None:
        """Give it back; what was not committed is rolled back."""
        self._let_autocommit(on=False)
        self._lent.close()

    def back_after(self, error: BaseException) -> None:
        """Give it back after an error, or drop it where that has broken it."""
        is_drivers = isinstance(error, self._dialect.loaded_dbapi.Error)
        if is_drivers and self._dialect.is_disconnect(error, self.connection, None):  # type: ignore[arg-type]  # it is the driver's
            # What was lent before this connection is as broken as this one.
            self._lent.invalidate(error)
            self._lent.close()
        else:
            self.back()

    def end(self) -> None:
        """Close it for good."""
        self._lent.detach()
        self._lent.close()

    def _let_autocommit(self, *, on: bool) -> None:
        if self._is_autocommit:
            self.connection.autocommit = on


class _Turn:
    """SQLite has one writer: the writers of all processes wait in line here, for no time at all.

    Without a line they wait in SQLite's busy handler, which sleeps up to 0.1 s between two looks,
    while whoever has just written comes back at once: measured with 4 processes, one upload in a
    hundred took 1.7 s, and 0.5 s since they wait here. The line is two locks on a file beside the
    database: whoever holds `_NEXT` waits for `_NOW`, so nobody is overtaken twice. The kernel
    takes both from a process that dies. Where there are no such locks, SQLite's own remains.

    When somebody outside the line, an operator's tool, holds the file for so long that a writer
    gives up, all who stood in line meanwhile give up with it instead of one after another.
    """

    _NEXT, _NOW = 0, 1

    def __init__(self, database: str | None) -> None:
        is_file = database not in (None, "", ":memory:")
        self._path = f"{database}-queue" if is_file else None
        self._threads = threading.Lock()
        self._line: int | None = None
        self._gave_up = 0

    def __enter__(self) -> None:
        before = self._gave_up
        # One thread of a process at a time, for these locks are the whole process's.
        if not self._threads.acquire(timeout=LINE_SECONDS):
            raise DatabaseUnavailable from _held()
        try:
            self._wait_in_line(before)
        except OSError:
            self._leave()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, _kind: object = None, error: object = None, _trace: object = None) -> None:
        if isinstance(error, OperationalError) and _is_busy(error):
            self._give_up()
        self._leave()
        self._threads.release()

    def _wait_in_line(self, gave_up: int) -> None:
        if self._gave_up != gave_up:
            raise DatabaseUnavailable from _held()
        if self._path is None:
            return
        if self._line is None:
            self._line = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        before = os.fstat(self._line).st_mtime_ns
        fcntl.lockf(self._line, fcntl.LOCK_EX, 1, self._NEXT)
        fcntl.lockf(self._line, fcntl.LOCK_EX, 1, self._NOW)
        fcntl.lockf(self._line, fcntl.LOCK_UN, 1, self._NEXT)
        if os.fstat(self._line).st_mtime_ns != before:
            self._gave_up += 1
            raise DatabaseUnavailable from _held()

    def _give_up(self) -> None:
        self._gave_up += 1
        if self._line is not None:
            # The file is empty; its time tells the other processes.
            with suppress(OSError):
                os.utime(self._line)

    def _leave(self) -> None:
        if self._line is not None:
            with suppress(OSError):
                fcntl.lockf(self._line, fcntl.LOCK_UN, 2, self._NEXT)


def _held() -> TimeoutError:
    return TimeoutError("somebody else holds the database file's write lock")


def _is_busy(error: OperationalError) -> bool:
    code: int = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


def connect(url: str, *, pool_size: int = 16) -> Database:
    """The database behind a URL. Raises ConfigError for one that is not supported.

    `pool_size` is the most connections this process will hold.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            [f"database_url: not a URL; supported: {', '.join(SUPPORTED)}"]
        ) from error
    backend = parsed.get_backend_name()
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif backend not in ("postgresql", "sqlite"):
        raise ConfigError(
            [f"database_url: {backend!r} is not supported; supported: {', '.join(SUPPORTED)}"]
        )
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": POOL_TIMEOUT_SECONDS,
        # What users sent is not for the log.
        "hide_parameters": True,
    }
    if backend == "sqlite":
        options["connect_args"] = {"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False}
        if parsed.database in (None, "", ":memory:"):
            options = {
                "connect_args": options["connect_args"],
                "poolclass": StaticPool,
                "hide_parameters": True,
            }
    else:
        options["pool_pre_ping"] = True
        patience = {name: PATIENCE[name] for name in PATIENCE if name not in parsed.query}
        parsed = parsed.update_query_dict(patience)
    try:
        engine = create_engine(parsed, **options)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            [f"database_url: the driver is missing ({error}); install manifold-gateway[postgres]"]
        ) from error
    if backend == "sqlite":
        _prepare_sqlite(engine)
    return Database(engine)


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # Transactions are begun by `on_begin` alone: the driver's own rules begin them too late.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "foreign_keys=ON",
            "journal_mode=WAL",
            "synchronous=FULL",
            f"busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}",
            "temp_store=MEMORY",
            # Measured: with SQLite's own 1000 an upload costs a tenth more. 16 MB of log, then.
            "wal_autocheckpoint=4000",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        # A read that turns into a write fails at once when another writer came between, whatever
        # the busy time-out; so a writing transaction takes the lock at its beginning.
        writes = connection.get_execution_options().get("manifold_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class _as_unavailable:
    """Raises what is the database's own trouble as ours."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, IntegrityError):
            return
        if isinstance(error, DataError):
            raise _cannot_be_stored() from error
        if isinstance(error, DBAPIError | PoolTimeout):
            raise DatabaseUnavailable from error


def _cannot_be_stored() -> InvalidRequest:
    return InvalidRequest("a value holds what the database cannot store")

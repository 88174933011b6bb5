"""One line for an outage, however often it is met; a traceback for what is a fault of ours."""

import io
import logging
import sqlite3
from collections.abc import Iterator

import pytest

from app.errors import DatabaseUnavailable
from app.outages import AGAIN_SECONDS, OneLine, reason
from tests.conftest import Clock

EVENTS: dict[type[Exception], str] = {
    DatabaseUnavailable: "database_unavailable",
    sqlite3.Error: "queue_away",
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Iterator[tuple[logging.Logger, io.StringIO]]:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.Logger("of the test")
    logger.addHandler(handler)
    logger.addFilter(OneLine(EVENTS, clock))
    yield logger, out


def met(logger: logging.Logger, error: Exception, cause: Exception | None = None) -> None:
    try:
        raise error from cause
    except Exception:
        logger.exception("Unhandled exception in task %s.", "1")


def test_an_outage_is_one_line_and_said_again_after_a_minute(log, clock):
    logger, out = log
    for _ in range(1000):
        met(logger, DatabaseUnavailable(), sqlite3.OperationalError("database is locked"))
    assert out.getvalue() == "ERROR database_unavailable\n"
    clock.seconds += AGAIN_SECONDS - 1
    met(logger, DatabaseUnavailable())
    assert out.getvalue().count("\n") == 1
    clock.seconds += 1
    met(logger, DatabaseUnavailable())
    assert out.getvalue().count("\n") == 2


def test_each_thing_that_is_away_has_its_line(log):
    logger, out = log
    for _ in range(3):
        met(logger, DatabaseUnavailable())
        met(logger, sqlite3.OperationalError("disk I/O error"))
    assert out.getvalue() == "ERROR database_unavailable\nERROR queue_away\n"


def test_everything_else_passes_as_it_is(log):
    logger, out = log
    logger.warning("Task %s was revoked", "1")
    for _ in range(2):
        met(logger, KeyError("oops"))
    assert out.getvalue().startswith("WARNING Task 1 was revoked\n")
    assert out.getvalue().count("Traceback") == 2
    assert out.getvalue().count("Unhandled exception in task 1.") == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (sqlite3.OperationalError("database is locked"), "OperationalError: database is locked"),
        (ValueError("first\nsecond: secret"), "ValueError: first"),
    ],
)
def test_the_reason_is_one_line_of_the_drivers(error, told):
    assert reason(error) == told
    outer = DatabaseUnavailable()
    outer.__cause__ = error
    assert reason(outer) == told

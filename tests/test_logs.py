"""One JSON object a line, whatever is logged."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from app import logs


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a gateway writes on stderr; afterwards logging is as it was."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    logs.configure()
    yield stderr
    root.handlers[:] = before
    root.setLevel(level)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


log = logging.getLogger("manifold.test")


def test_a_line_holds_time_level_event_and_fields(written: io.StringIO):
    log.info("upload %s", "done", extra={"bytes": 7, "deployment": "d-1"})
    (line,) = lines(written)
    assert line["time"].endswith("Z")
    assert (line["level"], line["event"], line["logger"]) == ("INFO", "upload done", log.name)
    assert (line["bytes"], line["deployment"]) == (7, "d-1")


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x00\x1b[31mb", "a\u2028b\x85c", "\ud800"])
def test_no_text_breaks_the_line(written: io.StringIO, text: str):
    log.info(text, extra={"field": text})
    line = written.getvalue()
    assert line.count("\n") == 1
    assert all(" " <= character <= "~" for character in line[:-1])
    assert json.loads(line)["event"] == text
    assert json.loads(line)["field"] == text


def test_an_exception_is_one_line_with_its_traceback(written: io.StringIO):
    try:
        raise KeyError("missing")
    except KeyError:
        log.exception("unexpected_error")
    (line,) = lines(written)
    assert "KeyError: 'missing'" in line["traceback"]


def test_a_field_that_json_does_not_know_becomes_text(written: io.StringIO):
    log.info("odd", extra={"thing": {1, 2}, "level": "mine"})
    (line,) = lines(written)
    assert line["thing"] == "{1, 2}"
    assert line["level"] == "INFO"


def test_configuring_twice_writes_once(written: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr", written)
    logs.configure("debug")
    log.debug("once")
    assert [line["event"] for line in lines(written)] == ["once"]


def test_libraries_that_write_addresses_stay_silent_at_debug(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stderr", written)
    logs.configure("DEBUG")
    logging.getLogger("urllib3.connectionpool").debug("GET /v1beta/files?key=secret")
    assert lines(written) == []


def test_an_unknown_level_is_refused(written: io.StringIO):
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("loud")

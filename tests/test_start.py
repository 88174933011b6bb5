"""What a process does that cannot start: the first ends the server, a later one waits its turn."""

import pytest

from app import start
from app.errors import ConfigError

MISTAKE = ConfigError(["general_settings.fan_out: not a word"])


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it was waited for."""
    found: list[float] = []
    monkeypatch.setattr("app.start.time.sleep", found.append)
    return found


def test_the_first_process_ends_the_whole_server(pauses, capsys):
    # gunicorn's WORKER_BOOT_ERROR.
    assert start.refused(MISTAKE, {}) == 3
    assert pauses == []
    assert "general_settings.fan_out: not a word" in capsys.readouterr().err


def test_a_later_one_leaves_those_alone_that_serve(pauses, capsys):
    """The file was broken since: who replaces a process that died must not stop the others."""
    assert start.refused(MISTAKE, {start.ANNOUNCED: "1"}) not in (0, 3, 4)
    assert len(pauses) == 1 and pauses[0] > 0
    assert "general_settings.fan_out: not a word" in capsys.readouterr().err

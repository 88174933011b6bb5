"""What a look at an installation finds."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    `check` names it, `what` says how it is; of what is not well, `why` says what comes of it and
    `cure` what to do. None of them holds a secret.
    """

    check: str
    level: Level
    what: str
    why: str = ""
    cure: str = ""


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", what)


def warning(check: str, what: str, why: str, cure: str) -> Finding:
    """It works, and may not for long or not for everybody."""
    return Finding(check, "warning", what, why, cure)


def fault(check: str, what: str, why: str, cure: str) -> Finding:
    """It does not work."""
    return Finding(check, "fault", what, why, cure)

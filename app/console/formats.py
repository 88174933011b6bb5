"""How sizes, moments, roles and owners are written for people; pure functions."""

import datetime as dt

from app.services.callers import MASTER_OWNER

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_ROLES = {
    "proxy_admin": "Administrator",
    "proxy_admin_viewer": "Administrator, view only",
    "internal_user": "User",
    "internal_user_viewer": "User, view only",
}
_STEPS = ((60, 1, "second"), (3600, 60, "minute"), (86400, 3600, "hour"), (0, 86400, "day"))


def size(count: float | None) -> str:
    """Bytes as people say them: `18 B`, `1.4 MB`; 1 KB is 1024 bytes, as in the settings."""
    if count is None:
        return "unknown"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    shown = f"{value:.0f}" if unit == 0 or value >= 100 else f"{value:.1f}".removesuffix(".0")
    return f"{shown} {_UNITS[unit]}"


def number(count: float) -> str:
    """A count with thousands apart: `12,345`."""
    return f"{count:,.0f}"


def moment(when: dt.datetime | float | str | None) -> dt.datetime | None:
    """An aware moment from a row's, from Unix seconds or from ISO 8601."""
    if when is None or isinstance(when, dt.datetime):
        return when
    if isinstance(when, str):
        return dt.datetime.fromisoformat(when)
    return dt.datetime.fromtimestamp(when, dt.UTC)


def absolute(when: dt.datetime) -> str:
    """`21 Nov 2026, 10:15 UTC`."""
    return f"{when.astimezone(dt.UTC):%-d %b %Y, %H:%M} UTC"


def relative(when: dt.datetime, now: dt.datetime | None = None) -> str:
    """`3 minutes ago`, `in 2 days`, `just now`."""
    seconds = (when - (now or dt.datetime.now(dt.UTC))).total_seconds()
    away = abs(seconds)
    if away < 5:
        return "just now"
    for bound, unit, name in _STEPS:
        if away < bound or not bound:
            count = max(1, int(away // unit))
            words = f"{count} {name}{'' if count == 1 else 's'}"
            return f"in {words}" if seconds > 0 else f"{words} ago"
    raise AssertionError("the last step has no bound")


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def role(name: str) -> str:
    """A role as people say it."""
    return _ROLES.get(name, name)


def owner(name: str) -> str:
    """Whose something is: a user's id, or words for those who are none."""
    kind, _, rest = name.partition(":")
    if name == MASTER_OWNER:
        return "master key"
    if kind == "user":
        return rest
    if kind == "key":
        return f"key {rest[:8]}…"
    if kind == "deleted-user":
        return f"{rest.rpartition(':')[0]} (deleted)"
    return name


def share(part: float, whole: float) -> str:
    """A share in percent: `0 %`, `0.4 %`, `12 %`."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if 0 < percent < 10 else f"{percent:.0f} %"

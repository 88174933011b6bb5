"""What a key or a user may have and do at most; None is no limit."""

import functools
import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict, cast


class LimitFields(TypedDict, total=False):
    """Limits that are set; one that is left out stays as it is."""

    rpm_limit: int | None
    upload_rpm_limit: int | None
    max_parallel_requests: int | None
    max_files: int | None
    max_bytes_stored: int | None


class LimitValues(TypedDict):
    """Limits as clients see them."""

    rpm_limit: int | None
    upload_rpm_limit: int | None
    max_parallel_requests: int | None
    max_files: int | None
    max_bytes_stored: int | None


@dataclass(frozen=True)
class Limits:
    """`rpm_limit` and `upload_rpm_limit` are a minute's; `max_bytes_stored` is in bytes."""

    rpm_limit: int | None = None
    upload_rpm_limit: int | None = None
    max_parallel_requests: int | None = None
    max_files: int | None = None
    max_bytes_stored: int | None = None

    @classmethod
    def of(cls, columns: Any, prefix: str = "") -> "Limits":
        """Those that a row has as columns of these names, each behind a prefix."""
        found = _columns(prefix)(columns)
        return UNLIMITED if found == _NONE else cls(*found)

    def within(self, others: "Limits") -> bool:
        """Whether nothing that these allow is refused by the others."""
        pairs = ((getattr(self, name), getattr(others, name)) for name in NAMES)
        return all(most is None or (own is not None and own <= most) for own, most in pairs)

    def as_fields(self) -> LimitValues:
        """By name, as bodies and answers spell them."""
        return cast(LimitValues, asdict(self))


NAMES = tuple(field.name for field in fields(Limits))
UNLIMITED = Limits()
_NONE = (None,) * len(NAMES)


@functools.cache
def _columns(prefix: str) -> Callable[[Any], tuple[int | None, ...]]:
    return operator.attrgetter(*(prefix + name for name in NAMES))


@dataclass(frozen=True)
class Subject:
    """A key or a user whose limits are counted under its own name, `key:<id>` or `user:<id>`."""

    name: str
    limits: Limits

    @property
    def is_user(self) -> bool:
        return self.name.startswith("user:")

    @property
    def id(self) -> str:
        """The row id of the key, or the id of the user."""
        return self.name.partition(":")[2]

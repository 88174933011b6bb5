"""What an import has taken, what not, and why: counts, and a line for each row that is told of."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["taken", "here", "skipped", "noted"]
"""Taken; here already; not taken; or taken with something that is not as it was."""


@dataclass(frozen=True)
class Line:
    """One row of LiteLLM's: its kind (user, key, file, batch, job), what became of it, and why."""

    kind: str
    id: str
    outcome: Outcome
    reason: str


class Report:
    """Counts by kind, outcome and reason. `tell` takes each row that is skipped or noted."""

    def __init__(self, tell: Callable[[Line], None]) -> None:
        self._tell = tell
        self.counts: Counter[tuple[str, Outcome]] = Counter()
        self.reasons: Counter[tuple[str, Outcome, str]] = Counter()
        self.examples: dict[tuple[str, Outcome, str], str] = {}

    def add(
        self, kind: str, id: str, outcome: Outcome, reason: str = "", *, about: str = ""
    ) -> None:
        """Count a row. `reason` is the same for all of its sort, `about` what is this one's own."""
        self.counts[kind, outcome] += 1
        if outcome in ("skipped", "noted"):
            sort = (kind, outcome, reason)
            self.reasons[sort] += 1
            self.examples.setdefault(sort, f"{id}{': ' if about else ''}{about}")
            self._tell(Line(kind, id, outcome, reason + (f" ({about})" if about else "")))

    @property
    def is_whole(self) -> bool:
        """Whether nothing was skipped."""
        return not any(
            number for (_, outcome), number in self.counts.items() if outcome == "skipped"
        )

"""What was measured: for each work and gateway the figures of every round."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import Figures


@dataclass
class Results:
    """Figures by work, gateway and name, one value a round; and what went wrong instead."""

    figures: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Title, day, rounds and so on, by work."""

    def begin(self, work: str, about: Mapping[str, Any]) -> None:
        """Forget what an earlier run has found: what is compared comes from one run."""
        self.figures[work], self.failed[work] = {}, {}
        self.about[work] = dict(about)

    def add(self, work: str, gateway: str, figures: Figures) -> None:
        self.figures[work].setdefault(gateway, []).append(figures)

    def fail(self, work: str, gateway: str, why: str) -> None:
        """Give up on a gateway in a work: it has no figures then."""
        self.failed[work][gateway] = why
        self.figures[work].pop(gateway, None)

    def median(self, work: str, gateway: str, figure: str) -> float | None:
        """The median of all rounds; None when it was not measured."""
        found = self._values(work, gateway, figure)
        return statistics.median(found) if found else None

    def most(self, work: str, gateway: str, figure: str) -> float | None:
        """The largest of all rounds, for memory and failures."""
        return max(self._values(work, gateway, figure), default=None)

    def _values(self, work: str, gateway: str, figure: str) -> list[float]:
        rounds = self.figures.get(work, {}).get(gateway, [])
        return [figures[figure] for figures in rounds if figure in figures]

    def save(self, path: Path) -> None:
        """Keep it for a later run that does other works."""
        path.write_text(json.dumps(vars(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Results":
        """What was kept; nothing when there is no such file."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

"""The points that the code names, which a drill can kill a process at."""

import re
from pathlib import Path

APP = Path(__file__).parents[2] / "app"


def points_in_code() -> list[str]:
    """Every name that `faults.point` is called with, in alphabetical order."""
    return sorted(
        {
            name
            for path in APP.rglob("*.py")
            for name in re.findall(r'faults\.point\("([^"]+)"\)', path.read_text())
        }
    )

"""Named points between two steps, where a crash test ends the process.

Nothing happens at a point unless a test in the same process has asked for it.
"""

from collections.abc import Callable

_reached: Callable[[str], None] | None = None


def point(name: str) -> None:
    """This step is done and the next one has not begun."""
    if _reached is not None:
        _reached(name)


def watch(do: Callable[[str], None] | None) -> None:
    """Call `do` with the name of every point that is reached from now on; None: no more."""
    global _reached  # noqa: PLW0603  # one switch for the whole process, off but for tests
    _reached = do

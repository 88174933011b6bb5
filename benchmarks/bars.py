"""The bars: what Manifold must reach, as ratios within one run on two cores."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import Results

OURS = "manifold"


@dataclass(frozen=True)
class Found:
    """A value that is held against a bar, and the figures it was made from."""

    value: float
    behind: str


Find = Callable[[Results], Found | None]


@dataclass(frozen=True)
class Yardstick:
    """What an application of this stack without any rule needs for the same, and needed there.

    Seconds and milliseconds are a machine's own, and those of the bars were set on another: by this
    they can be told for that one.
    """

    find: Find
    there: float
    """What it needed where the bar was set, in the unit of the bar."""


@dataclass(frozen=True)
class Bar:
    """One bar. `find` is None where the works it needs were not done."""

    work: str
    says: str
    find: Find
    limit: float
    is_least: bool = False
    """Whether the value must be at least the limit, rather than at most."""
    yardstick: Yardstick | None = None

    def there(self, results: Results) -> float | None:
        """What the value comes to at the speed of the machine that the bar was set on."""
        if self.yardstick is None:
            return None
        found, measure = self.find(results), self.yardstick.find(results)
        if found is None or measure is None or not measure.value:
            return None
        return found.value * self.yardstick.there / measure.value

    def is_met(self, found: Found) -> bool:
        return found.value >= self.limit if self.is_least else found.value <= self.limit


def ratio(work: str, figure: str, over: str, over_work: str = "", of: str = OURS) -> Find:
    """One gateway's median over another's in the same work, or over its own in another."""

    def find(results: Results) -> Found | None:
        ours = results.median(work, of, figure)
        theirs = results.median(over_work or work, over, figure)
        if ours is None or not theirs:
            return None
        return Found(ours / theirs, f"{_told(ours, figure)} and {_told(theirs, figure)}")

    return find


def plain(work: str, figure: str, gateway: str = OURS) -> Find:
    """A median as it is."""

    def find(results: Results) -> Found | None:
        value = results.median(work, gateway, figure)
        return None if value is None else Found(value, _told(value, figure))

    return find


def most(work: str, *figures: str) -> Find:
    """The most that these figures together were in any round."""

    def find(results: Results) -> Found | None:
        values = [results.most(work, OURS, figure) for figure in figures]
        if any(value is None for value in values):
            return None
        known = [(value or 0.0, figure) for value, figure in zip(values, figures, strict=True)]
        told = ", ".join(_told(value, figure) for value, figure in known)
        return Found(sum(value for value, _ in known), told)

    return find


def added(work: str, figure: str, over: str, of: str = OURS) -> Find:
    """By how much one gateway's median is more than another's."""

    def find(results: Results) -> Found | None:
        ours, theirs = results.median(work, of, figure), results.median(work, over, figure)
        if ours is None or theirs is None:
            return None
        return Found(ours - theirs, f"{_told(ours, figure)} and {_told(theirs, figure)}")

    return find


def better(work: str, figure: str, *others: str) -> Find:
    """Over the best of several, of which one at least was measured."""

    def find(results: Results) -> Found | None:
        known = [(results.median(work, other, figure) or 0.0, other) for other in others]
        best, name = max(known)
        return ratio(work, figure, name)(results) if best else None

    return find


def within(work: str, figure: str, over: str) -> Find:
    """One figure over another of the same measurement."""

    def find(results: Results) -> Found | None:
        ours, theirs = results.median(work, OURS, figure), results.median(work, OURS, over)
        if ours is None or not theirs:
            return None
        return Found(ours / theirs, f"{_told(ours, figure)} and {_told(theirs, over)}")

    return find


def _told(value: float, figure: str) -> str:
    if figure == "per_second":
        return f"{value:,.0f}/s"
    if figure.endswith("_ms"):
        return f"{value:.2f} ms"
    if "_mb" in figure or figure.startswith("mb_"):
        return f"{value:.1f} MB"
    if figure.endswith("_s") or figure == "seconds":
        return f"{value:.2f} s"
    return f"{value:g} {figure}"


_LITELLM = ("litellm", "litellm-managed")

BARS: tuple[Bar, ...] = (
    Bar("file read, 16", ">= 2 x Portkey", ratio("file-read-16", "per_second", "portkey"), 2, True),
    Bar(
        "file read, 16",
        ">= 10 x LiteLLM managed",
        ratio("file-read-16", "per_second", "litellm-managed"),
        10,
        True,
    ),
    Bar(
        "file read, 16",
        ">= 60 x LiteLLM by encoded id",
        ratio("file-read-16", "per_second", "litellm"),
        60,
        True,
    ),
    Bar(
        "file read, 16",
        ">= 0.5 x bare Flask from SQLite",
        ratio("file-read-16", "per_second", "bare-sqlite"),
        0.5,
        True,
    ),
    Bar(
        "file read, 1",
        "p50 <= 0.6 ms",
        plain("file-read-1", "p50_ms"),
        0.6,
        yardstick=Yardstick(plain("file-read-1", "p50_ms", "bare-sqlite"), 0.23),
    ),
    Bar("list of 20", ">= 2 x Portkey", ratio("list-16", "per_second", "portkey"), 2, True),
    Bar(
        "list of 20",
        "deep page <= 1.2 x the first",
        within("list-deep", "deep_p50_ms", "first_p50_ms"),
        1.2,
    ),
    Bar(
        "chat with a file",
        "added p50 <= 1.0 ms",
        added("chat-1", "p50_ms", "direct"),
        1.0,
        yardstick=Yardstick(added("chat-1", "p50_ms", "direct", "bare"), 0.8),
    ),
    Bar("chat with a file", ">= Portkey", ratio("chat-16", "per_second", "portkey"), 1, True),
    Bar(
        "chat with a file",
        ">= 0.75 x bare relay",
        ratio("chat-16", "per_second", "bare"),
        0.75,
        True,
    ),
    Bar("chat with a file", ">= 6 x LiteLLM", better("chat-16", "per_second", *_LITELLM), 6, True),
    Bar(
        "stream",
        "first event <= 1.5 ms after the bare relay's",
        added("stream-first", "p50_ms", "bare"),
        1.5,
    ),
    Bar("many streams", "none starved, none failed", most("stream-many", "starved", "failures"), 0),
    Bar("many streams", "<= 1 MB a stream", most("stream-many", "mb_a_stream"), 1),
    Bar(
        "1 KB upload",
        "p50 <= 3 ms",
        plain("upload-1kb-1", "p50_ms"),
        3,
        yardstick=Yardstick(plain("upload-1kb-1", "p50_ms", "bare"), 0.7),
    ),
    Bar(
        "1 KB upload",
        ">= 0.4 x bare relay",
        ratio("upload-1kb-16", "per_second", "bare"),
        0.4,
        True,
    ),
    Bar(
        "1 KB upload",
        ">= 20 x LiteLLM",
        better("upload-1kb-16", "per_second", *_LITELLM),
        20,
        True,
    ),
    Bar(
        "1 KB upload, four targets",
        "p50 <= 1.6 x one target",
        ratio("upload-1kb-to-4", "p50_ms", OURS, "upload-1kb-1"),
        1.6,
    ),
    *(
        Bar(
            f"large upload, {targets}",
            f"<= {limit} x direct",
            ratio(f"upload-large-{targets}", "seconds", "direct"),
            limit,
        )
        for targets, limit in ((1, 1.9), (2, 1.7), (4, 1.1))
    ),
    *(
        Bar(
            f"large upload, {targets}",
            "grows by < 32 MB",
            most(f"upload-large-{targets}", "growth_mb"),
            32,
        )
        for targets in (1, 2, 4)
    ),
    Bar("large download", "<= 2.3 x direct", ratio("download-large", "seconds", "direct"), 2.3),
    Bar(
        "large download",
        "first byte <= 10 ms",
        plain("download-large", "first_byte_ms"),
        10,
        yardstick=Yardstick(plain("download-large", "first_byte_ms", "bare"), 3.5),
    ),
    Bar("large download", "grows by < 32 MB", most("download-large", "growth_mb"), 32),
    Bar("batch file", "grows by < 32 MB", most("batch", "growth_mb"), 32),
    Bar("batch file", "others' p99 <= 3 x idle", within("batch", "p99_ms", "idle_p99_ms"), 3),
    Bar(
        "key look-up",
        "p50 with very many keys <= 1.2 x with ten",
        ratio("keys", "p50_ms", OURS, of="manifold-full"),
        1.2,
    ),
    *(
        Bar(
            "cold start",
            f"<= 1.5 s, {where}",
            plain("start", figure),
            1.5,
            yardstick=Yardstick(plain("start", figure, "bare"), 0.16),
        )
        for where, figure in (
            ("in an empty folder", "first_ever_s"),
            ("on data that exist", "seconds"),
        )
    ),
    Bar("idle memory", "a worker <= 75 MB", plain("start", "worker_mb"), 75),
    Bar("idle memory", "the background worker <= 75 MB", plain("start", "background_mb"), 75),
)

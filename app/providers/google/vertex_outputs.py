"""What a Vertex AI batch has written to the bucket, as OpenAI's output and error file.

Both are virtual: their lines are made of the job's shards whenever somebody reads them, and are
the same bytes each time. Memory is bounded by one row. Source: Google Cloud, Batch inference with
Gemini, output; read 2026-11.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from app.errors import NotFound
from app.providers.google import batch_results as results
from app.providers.google.batch_results import Result
from app.providers.google.batch_rows import mark_of, row_id
from app.providers.google.storage import Bucket
from app.providers.protocol import StoredFile
from app.providers.upstream import Answer
from app.transfers import Cancellation, Download

Kind = Literal["output", "errors"]

_FILE = re.compile("([0-9]+)-(output|errors)")
_SHARD = re.compile(r"predictions\.jsonl(?:-([0-9]+)-of-[0-9]+)?|[0-9]{12}\.jsonl")
_KEPT_ERRORS = "manifold-errors.jsonl"
"""The error file on its own, once the output file was deleted."""
_NO_ERRORS = "manifold-errors-deleted"
_BLOCK = 64 * 1024
_REMEMBERED = 256

# What became of rows that have no result, by the state in which the job ended.
_CUT_SHORT: Mapping[str, tuple[str, str]] = {
    "CANCELLED": ("batch_cancelled", "the batch was cancelled before this row was executed"),
    "EXPIRED": ("batch_expired", "the batch expired before this row was executed"),
    "PARTIALLY_SUCCEEDED": ("batch_expired", "the batch ended before this row was executed"),
    "FAILED": ("batch_failed", "the batch failed before this row was executed"),
}
_UNREADABLE = ("server_error", "the provider gave no readable result for this row")


@dataclass(frozen=True)
class Ended:
    """A job that has ended. `folder` and `rows` are names in the bucket, of what it wrote and of
    what it read; `ended_at` is in Unix seconds, `state` without JOB_STATE_."""

    job: results.Job
    state: str
    folder: str
    rows: str
    ended_at: int


@dataclass
class Outcome:
    """What one pass over the results has found. Sizes are in bytes, `usage` is in tokens."""

    sizes: dict[Kind, int] = field(default_factory=lambda: {"output": 0, "errors": 0})
    completed: int = 0
    failed: int = 0
    usage: dict[str, int] = field(default_factory=dict)

    def add(self, found: Result) -> None:
        """Count one line."""
        self.sizes["errors" if found.is_error else "output"] += len(found.line)
        self.failed += found.is_error
        self.completed += not found.is_error
        for key, value in _tokens(found.usage).items():
            self.usage[key] = self.usage.get(key, 0) + value


@dataclass(frozen=True)
class _Listing:
    """What lies in the folder; `mark` is another one when anything of it is. `rest` is what
    Vertex AI has left there beside the results."""

    shards: tuple[str, ...]
    rest: tuple[str, ...]
    mark: tuple[object, ...]
    kept_errors: int | None
    is_without_errors: bool


class Outputs:
    """The output and error files of one account's batches. `bucket` gives the bucket, or raises."""

    def __init__(self, bucket: Callable[[], Bucket]) -> None:
        self._bucket = bucket
        self._guard = threading.Lock()
        self._outcomes: OrderedDict[tuple[object, ...], Outcome] = OrderedDict()
        self._passes: dict[tuple[object, ...], threading.Lock] = {}

    def outcome(self, ended: Ended) -> Outcome:
        """What the job has given; files that were deleted have no bytes.

        Read once for all who ask at the same time, and remembered for a while.
        """
        listing = self._listing(ended)
        found = self._measured(ended, listing)
        if listing.kept_errors is not None:
            sizes: dict[Kind, int] = {"output": 0, "errors": listing.kept_errors}
        else:
            sizes = {**found.sizes}
        if listing.is_without_errors:
            sizes["errors"] = 0
        return Outcome(sizes, found.completed, found.failed, found.usage)

    def stored(self, ended: Ended, kind: Kind) -> StoredFile:
        """One of the two files. Raises NotFound when it has no line or was deleted."""
        size = self.outcome(ended).sizes[kind]
        if not size:
            raise _no_file(ended, kind)
        return StoredFile(
            id=file_id(ended.job.id, kind),
            filename=f"batch_{ended.job.id}_{'output' if kind == 'output' else 'error'}.jsonl",
            purpose="batch_output",
            size=size,
            created_at=ended.ended_at,
        )

    def content(self, ended: Ended, kind: Kind, cancellation: Cancellation | None) -> Download:
        """The whole file. Raises NotFound as `stored` does, before its first byte."""
        listing = self._listing(ended)
        opened = _Opened(self._bucket(), cancellation)
        if kind == "errors" and listing.is_without_errors:
            raise _no_file(ended, kind)
        if listing.kept_errors is not None:
            if kind == "output":
                raise _no_file(ended, kind)
            answer = opened.answer(f"{ended.folder}/{_KEPT_ERRORS}")
            return Download(answer.chunks(), answer.length, close=opened.close)
        with self._guard:
            known = self._outcomes.get(_key(ended, listing))
        found = _of_kind(self._results(ended, listing, opened), kind)
        try:
            first = next(found, None)
        except BaseException:
            opened.close()
            raise
        if first is None:
            opened.close()
            raise _no_file(ended, kind)
        return Download(
            _blocks(chain((first,), found)),
            known.sizes[kind] if known else None,
            close=opened.close,
        )

    def delete(self, ended: Ended, kind: Kind) -> None:
        """Remove one of the two files; the other one stays as it is."""
        bucket = self._bucket()
        listing = self._listing(ended)
        if kind == "errors":
            # Among the output's lines they go with those; until then they are not shown.
            self._hide_errors(ended, listing, bucket)
            if listing.kept_errors is not None:
                bucket.delete(f"{ended.folder}/{_KEPT_ERRORS}")
            return
        if listing.kept_errors is None and not listing.is_without_errors:
            self._keep_errors(ended, listing, bucket)
        for name in (*listing.shards, *listing.rest):
            bucket.delete(name)

    def _keep_errors(self, ended: Ended, listing: _Listing, bucket: Bucket) -> None:
        if not self._measured(ended, listing).sizes["errors"]:
            self._hide_errors(ended, listing, bucket)
            return
        opened = _Opened(bucket, None)
        try:
            found = _of_kind(self._results(ended, listing, opened), "errors")
            bucket.put_lines(f"{ended.folder}/{_KEPT_ERRORS}", found, "application/jsonl")
        finally:
            opened.close()

    def _hide_errors(self, ended: Ended, listing: _Listing, bucket: Bucket) -> None:
        if not listing.is_without_errors:
            bucket.put_lines(f"{ended.folder}/{_NO_ERRORS}", iter(()), "text/plain")

    def _listing(self, ended: Ended) -> _Listing:
        shards: dict[str, str] = {}
        sizes: dict[str, int] = {}
        rest: list[str] = []
        for item in self._bucket().list(f"{ended.folder}/"):
            name = str(item.get("name"))
            last = name.rpartition("/")[2]
            if _SHARD.fullmatch(last):
                shards[name] = str(item.get("generation"))
            elif last in (_KEPT_ERRORS, _NO_ERRORS):
                sizes[last] = int(item.get("size") or 0)
            else:
                rest.append(name)
        names = tuple(sorted(shards, key=_place))
        return _Listing(
            names,
            tuple(rest),
            (*((name, shards[name]) for name in names), *sorted(sizes)),
            sizes.get(_KEPT_ERRORS),
            _NO_ERRORS in sizes,
        )

    def _measured(self, ended: Ended, listing: _Listing) -> Outcome:
        key = _key(ended, listing)
        with self._guard:
            if (known := self._outcomes.get(key)) is not None:
                return known
            one_pass = self._passes.setdefault(key, threading.Lock())
        with one_pass:
            with self._guard:
                if (known := self._outcomes.get(key)) is not None:
                    return known
            try:
                found = self._pass(ended, listing)
                with self._guard:
                    self._outcomes[key] = found
                    while len(self._outcomes) > _REMEMBERED:
                        self._outcomes.popitem(last=False)
            finally:
                with self._guard:
                    self._passes.pop(key, None)
        return found

    def _pass(self, ended: Ended, listing: _Listing) -> Outcome:
        outcome = Outcome()
        opened = _Opened(self._bucket(), None)
        try:
            for found in self._results(ended, listing, opened):
                outcome.add(found)
        finally:
            opened.close()
        return outcome

    def _results(self, ended: Ended, listing: _Listing, opened: "_Opened") -> Iterator[Result]:
        """Every line of both files, in the order of the shards; then the rows without a result."""
        lookup = _Lookup(opened, ended.rows)
        is_whole = True
        for raw in opened.lines(listing.shards):
            found = results.result(raw, ended.job, lookup)
            is_whole = is_whole and found is not None
            if found is not None:
                yield found
        if listing.kept_errors is not None or (ended.state == "FAILED" and not listing.shards):
            # Either it is told already, or the whole job's own error says it.
            return
        why = _CUT_SHORT.get(ended.state) or (None if is_whole else _UNREADABLE)
        if why is not None:
            yield from self._unfinished(ended, listing, opened, why)

    def _unfinished(
        self, ended: Ended, listing: _Listing, opened: "_Opened", why: tuple[str, str]
    ) -> Iterator[Result]:
        # The shards are read once more, so that a job which has run to its end keeps no ids.
        lookup = _Lookup(opened, ended.rows)
        seen = {hash(results.custom_id(raw, lookup)) for raw in opened.lines(listing.shards)}
        for raw in opened.rows(ended.rows):
            custom_id = results.custom_id(raw)
            if custom_id is not None and hash(custom_id) not in seen:
                yield results.unfinished(custom_id, ended.job, *why)


class _Opened:
    """The objects that one reader reads, one after the other; `close` ends the one at hand."""

    def __init__(self, bucket: Bucket, cancellation: Cancellation | None) -> None:
        self._bucket = bucket
        self._cancellation = cancellation
        self._answers: list[Answer] = []

    def answer(self, name: str) -> Answer:
        """An object, to be read. Raises NotFound."""
        found = self._bucket.read(name, None, self._cancellation)
        self._answers.append(found)
        return found

    def lines(self, names: Iterable[str]) -> Iterator[bytes]:
        """The lines of objects, none that is blank."""
        for name in names:
            answer = self.answer(name)
            yield from filter(bytes.strip, results.lines(answer.chunks()))
            answer.close()
            self._answers.remove(answer)

    def rows(self, name: str) -> Iterator[bytes]:
        """The rows that the job has read, none when somebody has deleted them."""
        try:
            yield from self.lines((name,))
        except NotFound:
            return

    def close(self) -> None:
        """End whatever is still being read."""
        while self._answers:
            self._answers.pop().close()


class _Lookup:
    """The custom_ids of requests that came back without labels, from the rows the job has read.

    Equal requests get the ids of their rows in turn: which is which makes no difference. The rows
    are read when the first one is asked for; 100 bytes are kept of each.
    """

    def __init__(self, opened: _Opened, rows: str) -> None:
        self._opened = opened
        self._rows = rows
        self._ids: dict[bytes, list[str]] | None = None

    def __call__(self, request: Mapping[str, Any]) -> str | None:
        if self._ids is None:
            self._ids = {}
            for raw in self._opened.rows(self._rows):
                row = results.row_of(raw)
                found = row_id(row)
                if found is not None and isinstance(row.get("request"), dict):
                    self._ids.setdefault(mark_of(row["request"]), []).append(found[0])
            for ids in self._ids.values():
                ids.reverse()
        left = self._ids.get(mark_of(request))
        return left.pop() if left else None


def file_id(job_id: str, kind: Kind) -> str:
    """The id of one of a job's two files."""
    return f"{job_id}-{kind}"


def file_of(file_id: str) -> tuple[str, Kind] | None:
    """The job and the kind of file that an id says, None for any other file's id."""
    found = _FILE.fullmatch(file_id)
    return (found[1], "output" if found[2] == "output" else "errors") if found else None


def _key(ended: Ended, listing: _Listing) -> tuple[object, ...]:
    return (ended.job.id, ended.state, *listing.mark)


def _place(name: str) -> tuple[str, int, str]:
    """Where a shard stands among the others; their numbers are not always of one length."""
    folder, _, last = name.rpartition("/")
    found = _SHARD.fullmatch(last)
    return folder, int(found[1]) if found and found[1] else -1, last


def _of_kind(found: Iterable[Result], kind: Kind) -> Iterator[bytes]:
    return (result.line for result in found if result.is_error == (kind == "errors"))


def _blocks(found: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that are worth sending."""
    block = bytearray()
    for line in found:
        block += line
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _tokens(usage: Mapping[str, Any]) -> dict[str, int]:
    """A batch's words for the usage of one answer. Source: OpenAI API reference, Batch, usage."""

    def count(of: object, key: str) -> int:
        value = of.get(key) if isinstance(of, Mapping) else None
        return value if type(value) is int and value > 0 else 0

    return {
        "input_tokens": count(usage, "prompt_tokens"),
        "cached_tokens": count(usage.get("prompt_tokens_details"), "cached_tokens"),
        "output_tokens": count(usage, "completion_tokens"),
        "reasoning_tokens": count(usage.get("completion_tokens_details"), "reasoning_tokens"),
        "total_tokens": count(usage, "total_tokens"),
    }


def _no_file(ended: Ended, kind: Kind) -> NotFound:
    return NotFound(f"No such File object: {file_id(ended.job.id, kind)}", param="id")

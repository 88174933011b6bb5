"""Any history of uploads, deletes, faults, deaths and pauses loses no file and leaves none over.

The services run over a database, a disk and three accounts as they do in a gateway, and what they
say is held against a model that knows only what each owner was told. `MANIFOLD_TEST_LIVES` is how
many histories are tried, each of four times as many steps when it is set.
"""

import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from app.db.tables import File
from app.errors import (
    DatabaseUnavailable,
    GatewayError,
    NotFound,
    NotPermitted,
)
from app.providers.protocol import Operation
from app.services.callers import Caller
from app.services.file_lists import ListQuery
from app.services.inference import Inference
from app.services.router import Hints, Selector
from app.services.uploads import Announced
from app.transfers import Cancellation, ExpiresAfter
from tests.builders import make_upload, path_of
from tests.conftest import NO_HINTS, make_caller
from tests.life import FAULTS, PLACES, Killed, World, bytes_seen, chat_body

T = TypeVar("T")
LIVES = int(os.environ.get("MANIFOLD_TEST_LIVES", "0"))
HOUR, DAY = 3600, 86_400
PASSES = 100
"""After how many passes of the worker there must be nothing left to do."""
CLOSE = 10.0
"""Seconds around the end of a file in which either answer is right."""
SELECTORS = {
    "a": Selector(target_model_names=("a",)),
    "b": Selector(target_model_names=("b",)),
    "a, b": Selector(target_model_names=("a", "b")),
    "model a": Selector(model="a"),
}
QUIET_SECONDS = 900.0


@dataclass(eq=False)
class Known:
    """A file as its owner knows it. `number` is its place among all uploads.

    `forms` are the contents that an account may have for it; `ends` is when, by its owner's wish.
    """

    number: int
    owner: Caller
    forms: frozenset[bytes]
    ends: float | None
    way: str
    id: str = ""
    state: str = "live"
    is_lost: bool = False
    """Whether no holder is left that the gateway could know of."""

    def __repr__(self) -> str:
        return (
            f"<{self.number} {self.way!r} of {self.owner.user_id}: {self.state} until {self.ends}>"
        )


@dataclass(eq=False)
class Parts:
    """An upload in parts that was begun; `made` is what is known of its file."""

    upload_id: str
    part_ids: list[str]
    planned: Known
    made: Known | None = None

    def __repr__(self) -> str:
        return f"<parts of {self.planned}>"


@dataclass
class Ended:
    """How a call of the services ended."""

    value: Any = None
    error: GatewayError | None = None
    died: bool = False


places = st.integers(0, 20)
"""Which of the files, or whatever there are several of, something is done with."""
fuses = st.none() | st.none() | st.integers(1, 50)
troubles = st.lists(
    st.tuples(
        st.sampled_from(PLACES),
        st.sampled_from([*FAULTS, "lost after", "lost after", "lost before", "broken"]),
    ),
    max_size=2,
)
"""Which accounts fail in which way at the next call of a kind."""


class LifeOfFiles(RuleBasedStateMachine):
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.people = (make_caller("alice"), make_caller("bob"))
        self.files: list[Known] = []
        self.parts: list[Parts] = []
        self.names: dict[str, list[str]] = {}
        """What the upstream has called each copy, by its row id, the latest last."""
        self.count = 0
        self._stop: Callable[[], object] = lambda: None

    @initialize(
        seed=st.integers(0, 1000),
        keyed=st.sets(st.sampled_from(PLACES)),
        slow=st.sets(st.sampled_from(PLACES)),
        mortal=st.sets(st.sampled_from(PLACES)),
        keep=st.booleans(),
        fan_out=st.sampled_from(["every_model", "every_deployment"]),
    )
    def begin(self, seed, keyed, slow, mortal, keep, fan_out):
        self.world = World(
            seed=seed,
            keyed=keyed,
            slow=slow,
            lifetimes=dict.fromkeys(mortal, 2 * DAY),
            keep_content=keep,
            fan_out=fan_out,
        )
        # Ids decide the order of rows: they have to be the same when an example is tried again.
        patch = mock.patch.object(uuid, "uuid4", self.world.new_uuid)
        patch.start()
        self._stop = patch.stop

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.settle()
            finally:
                self._stop()
                self.world.close()

    # What happens

    def _trouble(self, found: list[tuple[str, str]], method: str | None) -> None:
        for place, kind in found:
            error, is_late = FAULTS[kind]()
            self.world.accounts[place].fail_next(error, method=method, after_doing=is_late)

    def _try(self, act: Callable[[], Any], fuse: int | None = None) -> Ended:
        process = self.world.process
        process.fuse = fuse
        try:
            return Ended(act())
        except Killed:
            self.world.restart()
            return Ended(died=True)
        except GatewayError as error:
            return Ended(error=error)
        finally:
            process.fuse = None

    def _plan(self, owner: int, way: str, purpose: str, expires: int | None) -> Known:
        self.count += 1
        number = f"{self.count:06}"
        if purpose == "batch":
            model = "b" if way == "b" else "a"
            row = (
                '{"custom_id": "%s", "method": "POST", "url": "/v1/embeddings", '
                '"body": {"model": "%s", "input": "x"}}\n'
            )
            forms = {row % (number, name) for name in (model, "up-a", "up-b")}
            content = row % (number, model)
            contents = [content, *(forms - {content})]
        else:
            contents = [f"content {number}"]
        ends = None if expires is None else self.world.seconds + expires
        known = Known(self.count, self.people[owner], frozenset(), ends, way)
        known.forms = frozenset(text.encode() for text in contents)
        self._sent = contents[0].encode()
        return known

    def _acknowledged(self, known: Known, file_id: str) -> None:
        known.id = file_id
        self.files.append(known)
        self.files.sort(key=lambda file: file.number)

    def _adopted(self, known: Known) -> bool:
        """Whether a file is there whose upload was cut off before anybody was told."""
        listed = set(self._listed(known.owner, 7, "asc"))
        new = listed - {file.id for file in self.files}
        assert len(new) <= 1, f"of one upload there are {new}"
        for file_id in new:
            self._acknowledged(known, file_id)
        return bool(new)

    @rule(
        owner=st.integers(0, 1),
        way=st.sampled_from(sorted(SELECTORS)),
        name=st.sampled_from(["x.jsonl", "y.jsonl"]),
        purpose=st.sampled_from(["user_data", "batch"]),
        expires=st.sampled_from([None, None, None, HOUR, DAY]),
        trouble=troubles,
        fuse=fuses,
    )
    def upload(self, owner, way, name, purpose, expires, trouble, fuse):
        self._trouble(trouble, "upload")
        known = self._plan(owner, way, purpose, expires)
        upload = make_upload(
            self._sent,
            filename=name,
            purpose=purpose,
            expires_after_seconds=expires,
            folder=self.world.process.spool.folder(),
        )
        process = self.world.process
        ended = self._try(
            lambda: process.files.create(
                known.owner, upload, process.router.way(SELECTORS[way], known.owner)
            ),
            fuse,
        )
        path_of(upload).unlink(missing_ok=True)
        if ended.died:
            self._adopted(known)
        elif ended.error is None:
            self._acknowledged(known, ended.value["id"])

    @rule(
        owner=st.integers(0, 1),
        way=st.sampled_from(sorted(SELECTORS)),
        purpose=st.sampled_from(["user_data", "batch"]),
        expires=st.sampled_from([None, DAY]),
        trouble=troubles,
        fuse=fuses,
    )
    def upload_in_parts(self, owner, way, purpose, expires, trouble, fuse):
        self._trouble(trouble, "upload")
        known = self._plan(owner, way, purpose, expires)
        uploads = self.world.process.uploads
        announced = Announced(
            "x.jsonl",
            "application/jsonl",
            purpose,
            len(self._sent),
            ExpiresAfter("created_at", expires) if expires else None,
        )
        with self.world.calm():
            upload_id = uploads.create(known.owner, announced, SELECTORS[way])["id"]
            part_ids = []
            for piece in (self._sent[:9], self._sent[9:]):
                folder = uploads.part_folder(known.owner, upload_id)
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / "part"
                path.write_bytes(piece)
                digest = hashlib.sha256(piece).hexdigest()
                part = uploads.add_part(known.owner, upload_id, path, len(piece), digest)
                part_ids.append(part["id"])
        parts = Parts(upload_id, part_ids, known)
        self.parts.append(parts)
        self._complete(parts, fuse)

    @precondition(lambda self: self.parts)
    @rule(which=places, fuse=fuses)
    def complete_again(self, which, fuse):
        parts = self.parts[which % len(self.parts)]
        self._complete(parts, fuse)

    def _complete(self, parts: Parts, fuse: int | None) -> None:
        process, planned = self.world.process, parts.planned
        known = Known(0, planned.owner, planned.forms, None, planned.way)
        self.count += 1
        known.number = self.count
        if planned.ends is not None:
            known.ends = self.world.seconds + DAY
        ended = self._try(
            lambda: process.uploads.complete(
                planned.owner, parts.upload_id, parts.part_ids, NO_HINTS
            ),
            fuse,
        )
        if ended.died:
            if self._adopted(known):
                assert parts.made is None or parts.made.state != "live", "a twin"
                parts.made = known
            return
        if ended.error is not None:
            return
        file = ended.value["file"]
        if parts.made is not None and parts.made.state == "live" and not self._is_over(parts.made):
            assert file is None or file["id"] == parts.made.id, "a twin"
        elif file is not None and all(file["id"] != each.id for each in self.files):
            self._acknowledged(known, file["id"])
            parts.made = known

    @rule(
        trouble=troubles,
        method=st.sampled_from([None, "retrieve", "files", "content"]),
        outage=st.none() | st.integers(1, 30),
    )
    def misfortune(self, trouble, method, outage):
        """Calls to come will fail, downloads will stall, the database will go away."""
        self._trouble(trouble, method)
        if method == "content":
            for place, _ in trouble:
                self.world.accounts[place].stalls += 1
        self.world.process.outage = outage

    @rule(
        place=st.sampled_from(PLACES),
        seconds=st.sampled_from([0.5, 5.0, 40.0]),
        when=st.sampled_from(["before", "after"]),
    )
    def be_interrupted(self, place, seconds, when):
        """Around the next upload's arrival another worker looks, perhaps taking us for dead."""
        account = self.world.accounts[place]

        def interrupt() -> None:
            account.before_arrival = account.after_arrival = lambda: None
            self._pass(seconds)
            with self.world.another_process():
                self.world.look()

        setattr(account, f"{when}_arrival", interrupt)

    @precondition(lambda self: self.files)
    @rule(which=places, trouble=troubles, fuse=fuses)
    def delete(self, which, trouble, fuse):
        self._trouble(trouble, "delete")
        file = self.files[which % len(self.files)]
        files = self.world.process.files
        ended = self._try(lambda: files.delete(file.owner, file.id, NO_HINTS), fuse)
        was = file.state
        if was == "gone":
            assert ended.error is not None or ended.died
            assert ended.died or isinstance(ended.error, NotFound | DatabaseUnavailable)
        elif ended.value is not None:
            file.state = "gone"
            assert not self._left_of(file), "acknowledged, and not gone"
        elif was == "live" and file.id not in self._listed(file.owner, 50, "asc"):
            file.state = "deleting"

    @precondition(lambda self: self.files)
    @rule(which=places, fuse=fuses)
    def read(self, which, fuse):
        file = self.files[which % len(self.files)]
        ended = self._try(lambda: self._content(file.owner, file), fuse)
        if not ended.died and ended.error is None:
            self._right(file, ended.value)
        ended = self._try(
            lambda: self.world.process.files.retrieve(file.owner, file.id, NO_HINTS), fuse
        )
        if ended.error is not None and not self._is_unsure(file):
            is_gone = file.state != "live" or self._is_over(file)
            expected = NotFound if is_gone else DatabaseUnavailable
            assert isinstance(ended.error, expected | DatabaseUnavailable), ended.error

    @precondition(lambda self: self.files)
    @rule(which=places, model=st.sampled_from(["a", "b"]), fuse=fuses)
    def chat(self, which, model, fuse):
        file = self.files[which % len(self.files)]
        document = Inference.read(chat_body(file.id, model))
        run = self.world.process.inference.run
        ended = self._try(
            lambda: run(
                file.owner,
                Operation.CHAT,
                document,
                Hints([("body", "model", (model,))]),
                Cancellation(),
            ),
            fuse,
        )
        if ended.value is not None and ended.value.reply.status == 200:
            self._right(file, bytes_seen(ended.value.reply))

    @rule(which=places)
    def vanish(self, which):
        """An upstream forgets a file before its time."""
        known = sorted({(p, raw) for p, raw in self.world.objects() if self._is_linked(p, raw)})
        if known:
            place, raw = known[which % len(known)]
            self.world.accounts[place].lose(raw)
            self._note_losses()

    @rule(seconds=st.sampled_from([2 * HOUR, DAY + HOUR, 3 * DAY]))
    def time_passes(self, seconds):
        self._pass(seconds)

    @rule(
        order=st.sampled_from(["by place", "by age"]),
        trouble=troubles,
        seconds=st.sampled_from([0, 40, 700]),
        fuse=fuses,
        is_swept=st.booleans(),
    )
    def work(self, order, trouble, seconds, fuse, is_swept):
        """The worker comes, after some time; what it asks for may fail."""
        self._pass(seconds)
        self._trouble(trouble, None)
        ended = self._try(lambda: self.world.look(order), fuse)
        if is_swept and not ended.died:
            self._try(lambda: self.world.process.sweeper.run(young_seconds=0.0), fuse)

    @rule(owner=st.integers(0, 1), size=st.integers(1, 4), order=st.sampled_from(["asc", "desc"]))
    def walk(self, owner, size, order):
        person = self.people[owner]
        with self._quietly():
            found = self._listed(person, size, order)
        self._expected(person, found if order == "asc" else found[::-1])

    @rule()
    def settle(self):
        """No fault any more, and the worker has all the time that it wants."""
        world = self.world
        world.forgive()
        for _ in range(PASSES):
            world.look()
            world.process.sweeper.run(young_seconds=0.0)
            next_look = world.next_look()
            is_completing = any(row.status == "completing" for row in world.uploads())
            if is_completing:
                self._pass(301.0)
            elif next_look is None or next_look > QUIET_SECONDS:
                break
            else:
                self._pass(max(next_look, 0.0) + 0.5)
        else:
            raise AssertionError(f"the worker has no end: {self._story()}")
        self._note_names()
        for file in self.files:
            if file.state == "deleting":
                file.state = "gone"
        self._compare()

    # What must hold

    @invariant()
    def owners_find_what_they_were_told(self):
        if not hasattr(self, "world"):
            return
        self._note_names()
        self._note_losses()
        with self._quietly():
            for person in self.people:
                self._expected(person, self._listed(person, 50, "asc"))
            for file in self.files:
                self._check(file)

    def _check(self, file: Known) -> None:
        alice, bob = self.people
        other = bob if file.owner is alice else alice
        try:
            self._content(other, file)
        except (NotPermitted, NotFound):
            pass
        else:
            raise AssertionError("a stranger reads it")
        if self._is_unsure(file):
            return
        try:
            found = self._content(file.owner, file)
        except NotFound:
            assert file.is_lost or file.state != "live" or self._is_over(file), self._story()
        except GatewayError:
            assert file.is_lost, self._story()
        else:
            assert file.state == "live" and not self._is_over(file), "it was deleted"
            self._right(file, found)

    def _right(self, file: Known, found: bytes) -> None:
        assert found in file.forms, f"{found!r} is not of {file.forms}: {self._story()}"

    def _expected(self, person: Caller, found: list[str]) -> None:
        mine = [f for f in self.files if f.owner is person and f.state == "live"]
        unsure = {file.id for file in mine if self._is_unsure(file)}
        wanted = [f.id for f in mine if f.id not in unsure and not self._is_over(f)]
        assert [file_id for file_id in found if file_id not in unsure] == wanted, self._story()

    def _compare(self) -> None:
        """Rows, accounts, disk and what the owners know, exactly."""
        world = self.world
        objects = world.objects()
        former = {raw for names in self.names.values() for raw in names[:-1]}
        linked: dict[tuple[str, str], str] = {}
        by_id = {file.id: file for file in self.files}
        for row, copies in world.rows():
            assert row.state in ("ready", "deleted"), self._story()
            if row.state == "deleted":
                states = {copy.state for copy in copies}
                assert states <= {"deleted"}, self._story()
                continue
            file = by_id[row.public_id or ""]
            for copy in copies:
                assert copy.lease_until is None, self._story()
                place = (copy.deployment_id, copy.deployment_file_id or "")
                if copy.state == "ready":
                    assert place not in linked, f"two rows say {place}: {self._story()}"
                    linked[place] = copy.id
                    if place in objects:
                        self._right(file, objects[place])
                else:
                    assert copy.state in ("missing", "expired"), self._story()
                    assert place not in objects, self._story()
        for held, content in objects.items():
            name, raw = held
            is_left_to_expire = (
                raw in former and world.accounts[name].stored[raw].expires_at is not None
            )
            assert held in linked or is_left_to_expire, (
                f"orphan {content!r} at {name}: {self._story()}"
            )
        self._compare_disk()

    def _compare_disk(self) -> None:
        world = self.world
        wanted = {f"kept/{row.id}" for row, _ in world.rows() if _is_wanted(row)}
        hashes = {str(row.sha256) for row, _ in world.rows() if _is_wanted(row)}
        wanted |= {f"local/blobs/{name[:2]}/{name}" for name in hashes}
        # Of an upload that is over a crash may leave the parts for as long as its row.
        begun = {row.id for row in world.uploads()}
        found = {
            path
            for path in world.on_disk()
            if not (path.startswith("uploads/") and path.split("/")[1] in begun)
        }
        assert found == wanted, f"{found} for {wanted}: {self._story()}"

    # Looks

    @staticmethod
    def _bytes(content: Any) -> bytes:
        try:
            return b"".join(content.download.chunks)
        finally:
            content.download.close()

    def _content(self, caller: Caller, file: Known) -> bytes:
        return self._bytes(self.world.process.files.content(caller, file.id, NO_HINTS))

    def _quietly(self) -> Any:
        return self.world.calm()

    def _listed(self, person: Caller, size: int, order: Any) -> list[str]:
        found: list[str] = []
        after = None
        with self.world.calm():
            while True:
                query = ListQuery(limit=size, order=order, after=after)
                page = self.world.process.lists.page(person, query, Selector())
                found += [file["id"] for file in page["data"]]
                if not page["has_more"]:
                    return found
                after = page["last_id"]

    def _is_over(self, file: Known) -> bool:
        return file.ends is not None and file.ends <= self.world.seconds

    def _is_unsure(self, file: Known) -> bool:
        return file.ends is not None and abs(file.ends - self.world.seconds) < CLOSE

    def _left_of(self, file: Known) -> list[tuple[str, str]]:
        self._note_names()
        former = {raw for names in self.names.values() for raw in names[:-1]}
        return [
            (place, raw)
            for (place, raw), content in self.world.objects().items()
            if content in file.forms and raw not in former
        ]

    def _pass(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self._note_losses()

    def _is_linked(self, place: str, raw: str) -> bool:
        return any(
            (copy.deployment_id, copy.deployment_file_id) == (place, raw)
            for _, copies in self.world.rows()
            for copy in copies
        )

    def _note_names(self) -> None:
        for _, copies in self.world.rows():
            for copy in copies:
                names = self.names.setdefault(copy.id, [])
                raw = copy.deployment_file_id
                if raw and (not names or names[-1] != raw):
                    names.append(raw)

    def _note_losses(self) -> None:
        """Which files have no holder any more that their rows tell of."""
        objects = self.world.objects()
        held = {
            row.public_id: any(
                copy.state in ("ready", "stored")
                and (copy.deployment_id, copy.deployment_file_id) in objects
                for copy in copies
            )
            or (row.is_kept and self.world.settings.keep_content)
            for row, copies in self.world.rows()
            if row.state == "ready"
        }
        for file in self.files:
            if file.state == "live":
                file.is_lost = not held.get(file.id, False)

    def _story(self) -> str:
        """Everything there is, for a failure's message."""
        rows = [
            f"{row.public_id!r:.40} {row.state} {row.filename} kept={row.is_kept}: "
            + ", ".join(
                f"{c.deployment_id} {c.state} {c.deployment_file_id} next={c.next_look_at} "
                f"({c.last_error})"
                for c in copies
            )
            for row, copies in self.world.rows()
        ]
        return "\n".join(["", *rows, repr(self.world.objects()), repr(self.files)])


def _is_wanted(row: File) -> bool:
    """Whether the file's content is to be on the gateway's disk."""
    return row.is_kept and row.state != "deleted"


LifeOfFiles.TestCase.settings = settings(
    max_examples=LIVES or 25,
    stateful_step_count=100 if LIVES else 25,
    deadline=None,
    derandomize=not LIVES,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestLifeOfFiles = LifeOfFiles.TestCase

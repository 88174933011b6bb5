"""Batch input files: what is refused before anything is sent, and each deployment's own copy."""

import hashlib
import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest

from app.errors import InvalidRequest, ModelAccessDenied, StorageFull, TooLarge
from app.providers.wire.jsonl import Row, openai_url
from app.services.batch_files import BatchFiles
from app.services.router import Router, Selector
from app.settings import Settings
from app.transfers import Upload
from tests.builders import make_deployment, make_upload, path_of
from tests.conftest import make_caller
from tests.fakes import FakeProvider
from tests.job_builders import ACCOUNTS, make_row, make_rows

MB = 1024 * 1024


class ShortUrls(FakeProvider):
    """Spells the url of a row as Azure's classic addresses do."""

    def row_url(self, url: str) -> str:
        return url.removeprefix("/v1")


class OwnRows(FakeProvider):
    """Takes rows of a form of its own, and none that asks for a picture."""

    takes_openai_rows = False

    def batch_rows(self, rows: Iterable[Row | bytes], model: str) -> Iterator[bytes]:
        for row in rows:
            if not isinstance(row, Row):
                yield b""
                continue
            if row.url == "/v1/images/edits":
                raise InvalidRequest(f"line {row.number}: no pictures", param="file")
            yield f"<{row.custom_id} for {model or row.model}>\n".encode()


DEPLOYMENTS = (
    make_deployment("a-1", model_name="a", upstream_model="up-a"),
    make_deployment("a-2", model_name="a", provider="azure", upstream_model="azure-a"),
    make_deployment("b-1", model_name="b", upstream_model="up-b"),
    make_deployment("a-3", model_name="c", upstream_model="up-a"),
    make_deployment("w-1", model_name="wild/*", provider="wild", upstream_model="*"),
)


@pytest.fixture
def room(tmp_path):
    return make_room(tmp_path)


OWN_ACCOUNT = make_deployment("own-account", model_name=None, provider="own", upstream_model="")


def make_room(tmp_path, *, own=(), **settings):
    """A room whose deployments of these ids take rows of a form of their own."""
    accounts = (*ACCOUNTS, OWN_ACCOUNT)
    made = Settings(deployments=DEPLOYMENTS, file_accounts=accounts, **settings)
    fakes = {d.id: FakeProvider(d) for d in (*DEPLOYMENTS, *accounts)}
    fakes["a-2"] = ShortUrls(DEPLOYMENTS[1])
    for deployment in (*DEPLOYMENTS, *accounts):
        if deployment.id in (*own, OWN_ACCOUNT.id):
            fakes[deployment.id] = OwnRows(deployment)
    return Room(made, Router(made, fakes), tmp_path)


class Room:
    """Batch files, and the ways to them."""

    def __init__(self, settings, router, folder):
        self.files = BatchFiles(settings, router)
        self.router = router
        self.folder = folder

    def way(self, caller, **selector):
        return self.router.way(Selector(**(selector or {"target_model_names": ("a",)})), caller)

    def check(self, caller, content, filename="rows.jsonl", **selector):
        upload = make_upload(content, purpose="batch", filename=filename)
        way = self.way(caller, **selector)
        with self.files.copies(upload, way, self.folder, sent_by=caller):
            pass

    def refusal(self, caller, content, error=InvalidRequest, **more):
        with pytest.raises(error) as refused:
            self.check(caller, content, **more)
        assert refused.value.param == "file"
        return refused.value

    def copies(self, caller, content, **selector):
        """What each deployment gets; the copies are gone from the disk then."""
        upload = make_upload(content, purpose="batch", folder=self.folder)
        with self.files.copies(upload, self.way(caller, **selector), self.folder) as copies:
            found = {}
            for key, copy in copies.items():
                found[key] = path_of(copy).read_bytes()
                assert copy.size == len(found[key])
                assert copy.sha256 == hashlib.sha256(found[key]).hexdigest()
                assert (copy.filename, copy.purpose) == (upload.filename, "batch")
        assert list(self.folder.iterdir()) == [upload.source]
        return found


# What is refused


def test_a_good_file(room, alice):
    room.check(alice, make_rows("a", "a", None, "up-a", "openai/up-a", "azure-a"))
    room.check(alice, make_rows("a").rstrip(b"\n"))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"custom_id": None}, "custom_id must be a string"),
        ({"custom_id": ""}, "custom_id must be a string"),
        ({"custom_id": 7}, "custom_id must be a string"),
        ({"method": "GET"}, "method must be 'POST'"),
        ({"method": "post"}, "method must be 'POST'"),
        ({"method": None}, "method must be 'POST'"),
        ({"url": None}, "url must be one of"),
        ({"url": 5}, "url must be one of"),
        ({"url": "https://api.openai.com/v1/responses"}, "url must be one of"),
        ({"url": "/v1/files"}, "url must be one of"),
        ({"url": "v1/responses"}, "url must be one of"),
        ({"url": "/v1/chat/completions/"}, "url must be one of"),
        ({"url": "/v1/embeddings"}, "the rows before say '/v1/chat/completions'"),
        ({"body": None}, "body must be a JSON object"),
        ({"body": []}, "body must be a JSON object"),
        ({"body": "{}"}, "body must be a JSON object"),
        ({"body": {"model": ""}}, "body.model must be a string"),
        ({"body": {"model": 5}}, "body.model must be a string"),
        ({"body": {"model": False}}, "body.model must be a string"),
        ({"body": {"model": []}}, "body.model must be a string"),
        ({"body": {"model": {"a": 1}}}, "body.model must be a string"),
        ({"body": {"model": "none"}}, "the model 'none' does not exist"),
        ({"body": {"model": "A"}}, "the model 'A' does not exist"),
        ({"body": {"model": "a "}}, "the model 'a ' does not exist"),
        ({"body": {"model": "\ud800"}}, "does not exist"),
        ({"body": {"model": "b"}}, "is not one that the file is for: a"),
        ({"body": {"model": "wild/x"}}, "is not one that the file is for: a"),
    ],
)
def test_a_bad_row_is_named(room, alice, row, what):
    content = make_row("1") + b"\n" + make_row(**{"custom_id": "2", **row}) + b"\n"
    error = room.refusal(alice, content)
    assert error.message.startswith("line 2: ")
    assert what in error.message


@pytest.mark.parametrize("key", ["custom_id", "method", "url", "body"])
def test_a_missing_key_is_named(room, alice, key):
    row = json.loads(make_row())
    del row[key]
    error = room.refusal(alice, json.dumps(row).encode())
    assert (error.message, error.code) == (
        f"line 1: {key} is missing",
        "missing_required_parameter",
    )


@pytest.mark.parametrize("twin", [b'"same"', b'"s\\u0061me"'], ids=["as it is", "escaped"])
def test_a_custom_id_stands_once(room, alice, twin):
    rows = [make_row("same"), make_row("other"), make_row("x").replace(b'"x"', twin)]
    error = room.refusal(alice, b"\n".join(rows))
    assert (error.message, error.code) == ("line 3: custom_id 'same' stands twice",
                                           "duplicate_custom_id")  # fmt: skip


def test_half_a_surrogate_pair_is_a_custom_id_too(room, alice):
    room.check(alice, make_row("\ud800") + b"\n" + make_row("\ud801") + b"\n" + make_row("?"))
    assert (
        "stands twice"
        in room.refusal(alice, make_row("\ud800") + b"\n" + make_row("\ud800")).message
    )


def test_both_spellings_of_a_url_are_one(room, alice):
    rows = [make_row(str(n), url=url) for n, url in enumerate(["/embeddings", "/v1/embeddings"])]
    room.check(alice, b"\n".join(rows))


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_rows_is_refused(room, alice, content):
    assert room.refusal(alice, content).code == "empty_file"


@pytest.mark.parametrize("name", ["rows.json", "rows", "rows.jsonl.gz", ".jsonl.txt"])
def test_a_file_is_jsonl_by_its_name(room, alice, name):
    assert name in room.refusal(alice, make_rows("a"), filename=name).message
    room.check(alice, make_rows("a"), filename="ROWS.JSONL")


def test_too_many_rows(alice, tmp_path):
    room = make_room(tmp_path, max_batch_file_records=3)
    room.check(alice, make_rows("a", "a", "a") + b"\n\n")
    error = room.refusal(alice, make_rows(*"aaaa"), TooLarge)
    assert error.message == "the batch file has more than 3 rows"


@pytest.mark.parametrize("validate", [True, False])
def test_too_many_bytes(alice, tmp_path, validate):
    room = make_room(tmp_path, max_batch_file_size_mb=1, validate_batch_files=validate)
    rows = b"".join(make_row(str(n), filler="x" * 1000) + b"\n" for n in range(1100))
    error = room.refusal(alice, rows, TooLarge)
    assert str(len(rows)) in error.message and str(MB) in error.message


def test_a_row_that_is_too_long(alice, tmp_path):
    room = make_room(tmp_path, max_batch_row_mb=1)
    rows = make_rows("a") + make_row("2", filler="x" * MB)
    assert room.refusal(alice, rows).message.startswith("line 2 is too long")


# Whose models


def test_a_row_names_no_model_that_the_key_must_not_use(room):
    caller = make_caller("alice", key_models=["a"])
    content = make_rows(*["a"] * 999, "b")
    error = room.refusal(caller, content, ModelAccessDenied)
    assert error.message == "line 1000: this key may not use the model 'b'"
    assert error.status == 403


def test_by_the_provider_way_rows_name_the_providers_models(room):
    for models in (["gpt-x"], ["openai/gpt-x"], ["gpt-*"], ["openai/*"], []):
        caller = make_caller("alice", key_models=models)
        room.check(caller, make_rows("gpt-x", None, "gpt-x"), provider="openai")
    for models in (["a"], ["azure/*"]):
        caller = make_caller("alice", key_models=models)
        error = room.refusal(caller, make_rows("gpt-x"), ModelAccessDenied, provider="openai")
        assert error.message == "line 1: this key may not use the model 'gpt-x'"


def test_what_the_provider_calls_its_models_may_be_said_by_whoever_may_use_them(room):
    caller = make_caller("alice", key_models=["a"])
    room.check(caller, make_rows("up-a", "azure-a", "openai/up-a", "azure/azure-a"))
    room.refusal(caller, make_rows("up-b"))


def test_behind_a_wildcard_rows_name_what_was_asked_for(room, alice):
    room.check(alice, make_rows("wild/x"), model="wild/x")
    room.check(alice, make_rows("x"), model="wild/x")
    assert (
        "is not one that the file is for"
        in room.refusal(alice, make_rows("wild/y"), model="wild/x").message
    )


# Without validation


@pytest.fixture
def lax(tmp_path):
    return make_room(tmp_path, validate_batch_files=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"\n\n",
        b"[]",
        make_row("same") + b"\n" + make_row("same"),
        make_row(method="GET", url=5),
        make_row(body=[]),
        make_row(body={"model": []}),
        make_row(body={"model": "none"}),
        b"\xff\xfe" * 20,
    ],
)
def test_without_validation_a_file_is_the_upstreams_to_judge(lax, alice, content):
    lax.check(alice, content, filename="anything")
    lax.copies(alice, content)


@pytest.mark.parametrize(
    "row",
    [
        make_row(model="b"),
        b'{"body":{"model":"a","model":"b"}}',
        b'{"body":{"model":"a"},"body":{"model":"b"}}',
        b'\xef\xbb\xbf{"n":NaN,"body":{"model":"b"}}',
        b'{"t":"a\tb","body":{"model":"b"}}',
        b'{"t":"\xff","body":{"model":"b"}}',
    ],
)
@pytest.mark.parametrize("way", [{}, {"provider": "openai"}, {"model": "a"}])
def test_without_validation_the_models_are_still_those_of_the_key(lax, row, way):
    caller = make_caller("alice", key_models=["a"])
    lax.refusal(caller, row, ModelAccessDenied, **way)


def test_a_line_too_deep_to_be_read_is_refused_all_the_same(lax, alice):
    lax.refusal(alice, b'{"body":' * 100_000)


# Copies


def test_each_deployment_gets_its_own_names_and_spelling(room, alice):
    odd = (
        b'{ "body":{"temperature":1.10,"seed":123456789012345678901, "model" : "a","t":"\\u00fc"},'
        b'"url":"/v1/chat/completions","method":"POST",  "custom_id":"\\ud83d\\ude00"}\r\n'
    )
    copies = room.copies(alice, b"\xef\xbb\xbf" + odd + odd, target_model_names=("a", "b"))
    assert copies["a-1"] == odd.replace(b'"a"', b'"up-a"') * 2
    assert copies["b-1"] == odd.replace(b'"a"', b'"up-b"') * 2
    short = odd.replace(b'"a"', b'"azure-a"').replace(b"/v1/chat", b"/chat")
    assert copies["a-2"] == short * 2


def test_a_short_url_is_spelled_as_each_wants_it(room, alice):
    copies = room.copies(alice, make_row(url="/embeddings"))
    assert json.loads(copies["a-1"])["url"] == "/v1/embeddings"
    assert json.loads(copies["a-2"])["url"] == "/embeddings"


def test_a_row_without_a_model_gets_the_deployments(room, alice):
    assert json.loads(room.copies(alice, make_rows(None))["a-1"])["body"]["model"] == "up-a"


def test_behind_a_wildcard_a_copy_has_the_name_that_was_asked_for(room, alice):
    [copy] = room.copies(alice, make_rows("wild/x"), model="wild/x").values()
    assert json.loads(copy)["body"]["model"] == "x"


def test_one_copy_is_written_for_each_name_and_spelling(room, alice):
    upload = make_upload(make_rows("a"), purpose="batch", folder=room.folder)
    way = room.way(alice, target_model_names=("a", "b", "c"))
    with room.files.copies(upload, way, room.folder) as copies:
        assert copies["a-1"].source == copies["a-3"].source
        assert len({copy.source for copy in copies.values()}) == 3


def test_by_the_provider_way_rows_go_as_they_are(room, alice):
    content = b"\xef\xbb\xbf" + make_row(url="/embeddings", model="gpt-x") + b"\n\n"
    assert room.copies(alice, content, provider="azure") == {"azure-account": content}


# Rows of a provider's own form


def test_a_copy_is_in_the_form_of_its_provider(alice, tmp_path):
    room = make_room(tmp_path, own=("b-1",))
    copies = room.copies(alice, make_rows("a", "b"), target_model_names=("a", "b"))
    assert copies["b-1"] == b"<1 for up-b>\n<2 for up-b>\n"
    assert json.loads(copies["a-1"].splitlines()[0])["body"]["model"] == "up-a"


def test_two_forms_of_one_upstream_model_are_two_copies(alice, tmp_path):
    room = make_room(tmp_path, own=("a-3",))
    upload = make_upload(make_rows("a"), purpose="batch", folder=room.folder)
    way = room.way(alice, target_model_names=("a", "c"))
    with room.files.copies(upload, way, room.folder) as copies:
        assert (copies["a-1"].model, copies["a-3"].model) == ("up-a", "up-a")
        assert copies["a-1"].source != copies["a-3"].source


def test_a_copy_knows_its_model_and_what_was_sent(alice, tmp_path):
    room = make_room(tmp_path, own=("b-1",))
    upload = make_upload(make_rows("a"), purpose="batch", folder=room.folder)
    way = room.way(alice, target_model_names=("a", "b"))
    with room.files.copies(upload, way, room.folder) as copies:
        assert {key: copy.model for key, copy in copies.items()} == {
            "a-1": "up-a",
            "a-2": "azure-a",
            "b-1": "up-b",
        }
        assert all(copy.original is upload for copy in copies.values())


def test_what_a_provider_cannot_do_names_its_line_and_leaves_nothing(alice, tmp_path):
    room = make_room(tmp_path, own=("b-1",))
    rows = [make_row(str(n), model=None, url="/v1/images/edits") for n in range(2)]
    with pytest.raises(InvalidRequest, match="line 1: no pictures"):
        room.copies(alice, b"\n".join(rows), target_model_names=("a", "b"))
    assert len(list(room.folder.iterdir())) == 1


def test_by_the_provider_way_a_form_of_its_own_is_written_too(room, alice):
    upload = make_upload(make_rows("m-1", "m-1"), purpose="batch", folder=room.folder)
    with room.files.copies(upload, room.way(alice, provider="own"), room.folder) as copies:
        [copy] = copies.values()
        assert path_of(copy).read_bytes() == b"<1 for m-1>\n<2 for m-1>\n"
        assert (copy.model, copy.original) == ("m-1", upload)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("models", "what"),
    [
        (("m-1", "m-1", "m-2"), "line 3: the model is 'm-2', the rows before say 'm-1'"),
        (("m-1", None), "line 2: body.model is missing"),
        ((None,), "line 1: body.model is missing"),
    ],
)
def test_by_the_provider_way_such_a_batch_is_of_one_model(alice, tmp_path, models, what, validate):
    room = make_room(tmp_path, validate_batch_files=validate)
    with pytest.raises(InvalidRequest) as refused:
        room.copies(alice, make_rows(*models), provider="own")
    assert what in refused.value.message
    assert refused.value.param == "file"


def test_without_validation_no_unread_line_reaches_such_a_provider_by_that_way(alice, tmp_path):
    room = make_room(tmp_path, validate_batch_files=False)
    content = make_rows("m-1") + b'{"body":{"model":"m-1","model":"m-2"}}\n'
    with pytest.raises(InvalidRequest, match="line 2: is not a JSON object"):
        room.copies(alice, content, provider="own")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
def test_without_validation_another_encoding_hides_no_model(lax, encoding):
    caller = make_caller("alice", key_models=["a"])
    for models in ("ba", "ab", "aba"):
        lax.refusal(caller, make_rows(*models).decode().encode(encoding), ModelAccessDenied)


def test_without_validation_what_is_no_row_goes_as_it_is(lax, alice):
    content = b"no json\n\n" + make_row(url="https://x/y") + b"\n" + make_row(body=[1])
    assert lax.copies(alice, content)["a-1"] == content.replace(b'"a"', b'"up-a"')


def test_copies_go_away_when_sending_fails(room, alice):
    upload = make_upload(make_rows("a"), purpose="batch", folder=room.folder)
    with (
        pytest.raises(FileNotFoundError, match="of the sending"),
        room.files.copies(upload, room.way(alice), room.folder),
    ):
        raise FileNotFoundError("of the sending")
    assert list(room.folder.iterdir()) == [upload.source]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_is_said(room, alice, tmp_path, monkeypatch):
    # The only full disk there is: a copy is written to it in place of a temporary file.
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    upload = make_upload(make_rows("a"), purpose="batch", folder=tmp_path)
    with pytest.raises(StorageFull), room.files.copies(upload, room.way(alice), tmp_path):
        pass


def test_a_file_is_read_once_for_all_its_copies(room, alice, monkeypatch):
    opened = []

    def opening(upload):
        opened.append(upload)
        return upload.source.open("rb")

    monkeypatch.setattr(Upload, "open", opening)
    upload = make_upload(make_rows("a"), purpose="batch", folder=room.folder)
    way = room.way(alice, target_model_names=("a", "b"))
    with room.files.copies(upload, way, room.folder, sent_by=alice) as copies:
        assert len({copy.source for copy in copies.values()}) == 3
    assert opened == [upload]


def test_rows_that_a_provider_leaves_out_are_not_held_for_another(tmp_path, alice):
    room = make_room(tmp_path, own=("a-1",), validate_batch_files=False)
    content = (b" " * 1023 + b"\n") * 8 * 1024
    upload = make_upload(content, purpose="batch", folder=tmp_path)
    tracemalloc.start()
    try:
        with room.files.copies(upload, room.way(alice), tmp_path) as copies:
            sizes = {key: copy.size for key, copy in copies.items()}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == {"a-1": 0, "a-2": len(content)}
    assert peak < 6 * MB


def test_neither_the_file_nor_its_rows_are_held(room, alice):
    row = make_row("%06d", filler="x" * 4000)
    content = b"".join(row % n + b"\n" for n in range(2_700))
    upload = make_upload(content, purpose="batch", folder=room.folder)
    del content
    way = room.way(alice, target_model_names=("a", "b"))
    tracemalloc.start()
    try:
        with room.files.copies(upload, way, room.folder, sent_by=alice):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Three buffers of 1 MB, and 16 bytes for each custom_id.
    assert upload.size > 10 * MB
    assert peak < 6 * MB


@pytest.mark.parametrize(
    ("url", "found"),
    [("/v1/responses", "/v1/responses"), ("/responses", "/v1/responses"), ("/v1", "/v1/v1")],
)
def test_openais_spelling(url, found):
    assert openai_url(url) == found

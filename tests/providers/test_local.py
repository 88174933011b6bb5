"""Local: files in the data directory, and inference with their contents put into the body."""

import base64
import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest
import responses
from marshmallow import ValidationError

from app.errors import InvalidRequest, NotFound, NotSupported, StorageFull, UpstreamError
from app.providers.local import Local
from app.providers.protocol import Operation
from app.transfers import Cancellation
from tests.builders import make_deployment, make_place, make_upload, path_of
from tests.providers.contract import EVERY_BYTE, FilesContract, read

ENGINE = "http://engine.test:8000/v1"
COMPLETION = {"id": "chatcmpl-1", "object": "chat.completion", "choices": []}


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def provider(data_dir):
    return make_local(data_dir)


def make_local(data_dir, id="deployment-1", provider="local", max_inline_bytes=1024, **params):
    deployment = make_deployment(
        id, model_name="llama", provider=provider, upstream_model="llama3", params=params
    )
    return Local(deployment, make_place(data_dir, max_inline_bytes=max_inline_bytes))


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestLocal(FilesContract):
    """The contract, with the fixture above."""


class TestEngine(FilesContract):
    """The contract once more, of a deployment that can chat."""

    @pytest.fixture
    def provider(self, data_dir):
        return make_local(data_dir, provider="hosted_vllm", api_base=ENGINE)


HOSTILE_IDS = [
    "",
    ".",
    "..",
    "../../etc/passwd",
    "file-../../x",
    "/etc/passwd",
    "file-" + "0" * 31,
    "file-" + "0" * 33,
    "file-" + "A" * 32,
    "file-" + "0" * 32 + "\n",
    "file-" + "0" * 32 + "\0",
    "file-" + "\u0660" * 32,
    "%2e%2e%2f",
    "x" * 100_000,
]


@pytest.mark.parametrize("file_id", HOSTILE_IDS, ids=range(len(HOSTILE_IDS)))
def test_an_id_that_is_not_of_our_making_never_reaches_the_disk(provider, data_dir, file_id):
    with pytest.raises(NotFound):
        provider.retrieve(file_id)
    with pytest.raises(NotFound):
        provider.content(file_id)
    provider.delete(file_id)
    assert not data_dir.exists()


@pytest.mark.parametrize(
    "filename",
    ["../../etc/passwd", "C:\\x", "a\0b", "报告😀.pdf", 'q"u\r\no.txt', "n" * 300, "", "\ud800"],
)
def test_a_file_name_is_kept_and_is_no_path(provider, data_dir, filename):
    stored = provider.upload(make_upload(filename=filename))
    assert provider.retrieve(stored.id).filename == filename
    names = [name for name in everything_below(data_dir) if not name.startswith("local/blobs/")]
    assert [Path(name).name for name in names] == [f"{stored.id}.bin", f"{stored.id}.json"]


@pytest.mark.parametrize("deployment_id", ["../../x", "/", "a/b", "C:\\", ".", "é" * 500])
def test_a_deployments_id_is_no_path(data_dir, deployment_id):
    local = make_local(data_dir, deployment_id)
    stored = local.upload(make_upload(b"abc"))
    assert read(local.content(stored.id)) == b"abc"
    assert [path.name for path in data_dir.parent.iterdir()] == ["data"]
    assert [path.name for path in data_dir.iterdir()] == ["local"]


def test_two_deployments_share_the_bytes_and_nothing_else(data_dir):
    one, other = make_local(data_dir, "one"), make_local(data_dir, "other")
    mine, theirs = one.upload(make_upload(EVERY_BYTE)), other.upload(make_upload(EVERY_BYTE))
    assert len(list(data_dir.glob("local/blobs/??/*"))) == 1
    with pytest.raises(NotFound):
        other.retrieve(mine.id)
    other.delete(mine.id)
    assert list(one.files()) == [mine]
    one.delete(mine.id)
    assert read(other.content(theirs.id)) == EVERY_BYTE
    other.delete(theirs.id)
    assert everything_below(data_dir) == []


def test_files_outlive_the_process(data_dir):
    stored = make_local(data_dir).upload(make_upload())
    assert list(make_local(data_dir).files()) == [stored]


def test_opening_a_deployment_touches_no_disk(data_dir):
    assert list(make_local(data_dir).files()) == []
    assert not data_dir.exists()


def test_a_file_expires(provider, data_dir):
    lasting = provider.upload(make_upload(expires_after_seconds=3600))
    assert lasting.expires_at == lasting.created_at + 3600
    over = provider.upload(make_upload(expires_after_seconds=0))
    assert list(provider.files()) == [lasting]
    with pytest.raises(NotFound):
        provider.retrieve(over.id)
    with pytest.raises(NotFound):
        provider.content(over.id)
    provider.sweep()
    assert not any(over.id in name for name in everything_below(data_dir))
    assert list(provider.files()) == [lasting]


def test_an_expired_file_can_be_deleted(provider, data_dir):
    over = provider.upload(make_upload(expires_after_seconds=0))
    provider.delete(over.id)
    assert everything_below(data_dir) == []


def test_a_download_goes_on_when_the_file_is_deleted(provider):
    content = os.urandom(3_000_000)
    stored = provider.upload(make_upload(content))
    download = provider.content(stored.id)
    first = next(download.chunks)
    provider.delete(stored.id)
    assert first + read_rest(download) == content


def read_rest(download):
    rest = b"".join(download.chunks)
    download.close()
    return rest


def test_a_download_that_nobody_reads_is_closed(provider):
    stored = provider.upload(make_upload())
    provider.content(stored.id).close()  # An open file would warn, and warnings are errors.


def test_a_file_that_was_cut_short_breaks_the_transfer(provider, data_dir):
    stored = provider.upload(make_upload(b"12345"))
    os.truncate(next(data_dir.rglob(f"{stored.id}.bin")), 3)
    download = provider.content(stored.id)
    with pytest.raises(UpstreamError):
        list(download.chunks)
    download.close()


def test_several_ranges_give_the_whole_file(provider):
    stored = provider.upload(make_upload(EVERY_BYTE))
    download = provider.content(stored.id, "bytes=0-1,5-6")
    assert download.content_range is None
    assert read(download) == EVERY_BYTE


def test_a_damaged_entry_hides_no_other_file_and_can_be_deleted(provider, data_dir):
    damaged, good = (provider.upload(make_upload()) for _ in range(2))
    next(data_dir.rglob(f"{damaged.id}.json")).write_bytes(b"{")
    assert list(provider.files()) == [good]
    with pytest.raises(UpstreamError):
        provider.retrieve(damaged.id)
    provider.delete(damaged.id)
    with pytest.raises(NotFound):
        provider.retrieve(damaged.id)


def test_a_crash_before_the_entry_was_written_leaves_no_file(provider, data_dir):
    stored = provider.upload(make_upload())
    entry = next(data_dir.rglob(f"{stored.id}.json"))
    entry.unlink()
    assert list(provider.files()) == []
    with pytest.raises(NotFound):
        provider.content(stored.id)
    provider.sweep()
    assert len(everything_below(data_dir)) == 2  # Too young: it could be an upload under way.
    provider.sweep(max_age_seconds=-1)
    assert everything_below(data_dir) == []


def test_a_crash_in_the_middle_of_a_deletion_is_finished_by_the_next(provider, data_dir):
    stored = provider.upload(make_upload())
    next(data_dir.rglob(f"{stored.id}.json")).unlink()
    provider.delete(stored.id)
    assert not list(data_dir.rglob(f"{stored.id}.*"))


def test_an_entry_that_cannot_be_written_leaves_nothing(provider, data_dir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    upload = make_upload(EVERY_BYTE)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageFull):
        provider.upload(upload)
    assert everything_below(data_dir) == []


def test_memory_does_not_grow_with_the_file(provider):
    upload = make_upload(b"x" * (64 * 1024 * 1024))
    tracemalloc.start()
    try:
        stored = provider.upload(upload)
        download = provider.content(stored.id)
        assert sum(len(chunk) for chunk in download.chunks) == upload.size
        download.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


@pytest.mark.parametrize("alias", Local.aliases)
def test_an_engine_needs_its_address(data_dir, alias):
    with pytest.raises(ValidationError) as refusal:
        make_local(data_dir, provider=alias)
    assert refusal.value.messages == {"api_base": ["missing: the engine's address"]}


@pytest.mark.parametrize(
    "params",
    [
        {"api_base": "ftp://x/v1"},
        {"api_base": "engine"},
        {"api_base": "http://"},
        {"api_base": "http://engine:port/v1"},
        {"api_base": ENGINE + "?key=1"},
        {"api_bas": ENGINE},
        {"inline_images": "base64"},
        {"max_inline_file_size_mb": 0},
    ],
    ids=str,
)
def test_wrong_parameters_are_refused(data_dir, params):
    with pytest.raises(ValidationError):
        make_local(data_dir, **params)


@pytest.mark.parametrize(
    "operation", [Operation.CHAT, Operation.RESPONSES, Operation.COMPLETIONS, Operation.EMBEDDINGS]
)
def test_without_an_engine_it_stores_files_only(provider, operation):
    assert provider.operations == {Operation.FILES}
    with pytest.raises(NotSupported, match="set its api_base"):
        provider.infer(operation, b"{}", "llama3", Cancellation())


class TestInference:
    @pytest.fixture
    def mock(self):
        with responses.RequestsMock() as mock:
            yield mock

    @staticmethod
    def ask(local, body, operation=Operation.CHAT):
        reply = local.infer(operation, json.dumps(body).encode(), "llama3", Cancellation())
        answer = b"".join(reply.chunks)
        reply.close()
        return reply.status, json.loads(answer)

    @pytest.mark.parametrize(
        ("provider", "api_base", "address"),
        [
            ("local", ENGINE, ENGINE),
            ("hosted_vllm", ENGINE + "/", ENGINE),
            ("ollama", "http://localhost:11434", "http://localhost:11434/v1"),
            ("ollama", "http://localhost:11434/", "http://localhost:11434/v1"),
            ("ollama", "http://localhost:11434/v1", "http://localhost:11434/v1"),
            ("lm_studio", "http://lm_studio:1234/v1", "http://lm_studio:1234/v1"),
        ],
    )
    def test_it_goes_to_the_engine(self, data_dir, mock, provider, api_base, address):
        mock.post(f"{address}/chat/completions", json=COMPLETION)
        local = make_local(data_dir, provider=provider, api_base=api_base)
        body = {"model": "llama3", "messages": []}
        assert self.ask(local, body) == (200, COMPLETION)
        assert json.loads(mock.calls[0].request.body) == body
        assert "Authorization" not in mock.calls[0].request.headers

    @pytest.mark.parametrize("operation", [Operation.COMPLETIONS, Operation.EMBEDDINGS])
    def test_what_has_no_files_is_sent_as_it_is(self, data_dir, mock, operation):
        mock.post(f"{ENGINE}/{operation.value}", json={"data": []})
        local = make_local(data_dir, api_base=ENGINE, api_key="sk-engine")
        body = {"model": "llama3", "input": [{"content": [file_part("f")]}]}
        assert self.ask(local, body, operation) == (200, {"data": []})
        assert json.loads(mock.calls[0].request.body) == body
        assert mock.calls[0].request.headers["Authorization"] == "Bearer sk-engine"

    def test_files_are_put_into_the_body(self, data_dir, mock):
        mock.post(f"{ENGINE}/chat/completions", json=COMPLETION)
        local = make_local(data_dir, provider="hosted_vllm", api_base=ENGINE)
        text = local.upload(make_upload(b"a,b", filename="t.csv", mime_type="text/csv"))
        png = local.upload(make_upload(b"\x89PNG", filename="i.png", mime_type="image/png"))
        parts = [file_part(text.id), file_part(png.id)]
        self.ask(local, {"model": "llama3", "messages": [{"role": "user", "content": parts}]})
        url = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
        assert json.loads(mock.calls[0].request.body)["messages"][0]["content"] == [
            {"type": "text", "text": "File: t.csv\na,b"},
            {"type": "image_url", "image_url": {"url": url}},
        ]

    def test_the_responses_api_gets_its_own_parts(self, data_dir, mock):
        mock.post(f"{ENGINE}/responses", json={"object": "response"})
        local = make_local(data_dir, api_base=ENGINE)
        pdf = local.upload(make_upload(b"%PDF", filename="a.pdf", mime_type="application/pdf"))
        part = {"type": "input_file", "file_id": pdf.id}
        body = {"model": "llama3", "input": [{"role": "user", "content": [part]}]}
        self.ask(local, body, Operation.RESPONSES)
        url = "data:application/pdf;base64," + base64.b64encode(b"%PDF").decode()
        assert json.loads(mock.calls[0].request.body)["input"][0]["content"] == [
            {"type": "input_file", "filename": "a.pdf", "file_data": url}
        ]

    @pytest.mark.parametrize(
        ("provider", "params", "kind"),
        [
            ("local", {}, "file"),
            ("local", {"inline_images": "image_url"}, "image_url"),
            ("vllm", {}, "image_url"),
            ("vllm", {"inline_images": "file_data"}, "file"),
        ],
    )
    def test_how_an_image_goes_out_can_be_set(self, data_dir, mock, provider, params, kind):
        mock.post(f"{ENGINE}/chat/completions", json=COMPLETION)
        local = make_local(data_dir, provider=provider, api_base=ENGINE, **params)
        png = local.upload(make_upload(b"\x89PNG", filename="i.png", mime_type="image/png"))
        messages = [{"role": "user", "content": [file_part(png.id)]}]
        self.ask(local, {"model": "llama3", "messages": messages})
        sent = json.loads(mock.calls[0].request.body)["messages"][0]["content"][0]
        assert sent["type"] == kind

    def test_a_file_that_is_too_large_is_refused_before_anything_is_sent(self, data_dir, mock):
        local = make_local(data_dir, api_base=ENGINE)
        text = local.upload(make_upload(b"x" * 1025, filename="t.txt", mime_type="text/plain"))
        with pytest.raises(InvalidRequest) as refusal:
            self.ask(local, {"messages": [{"content": [file_part(text.id)]}]})
        assert refusal.value.code == "file_too_large_to_inline"
        for named in ("'t.txt'", "1025", "1024"):
            assert named in refusal.value.message

    def test_the_limit_can_be_set(self, data_dir, mock):
        mock.post(f"{ENGINE}/chat/completions", json=COMPLETION)
        local = make_local(data_dir, api_base=ENGINE, max_inline_file_size_mb=1)
        text = local.upload(make_upload(b"x" * 1025, filename="t.txt", mime_type="text/plain"))
        assert self.ask(local, {"messages": [{"content": [file_part(text.id)]}]})[0] == 200

    def test_many_files_together_have_a_limit_too(self, data_dir, mock):
        local = make_local(data_dir, api_base=ENGINE)
        text = local.upload(make_upload(b"x" * 1000, filename="t.txt", mime_type="text/plain"))
        with pytest.raises(InvalidRequest, match="together") as refusal:
            self.ask(local, {"messages": [{"content": [file_part(text.id)] * 5}]})
        assert refusal.value.code == "file_too_large_to_inline"

    def test_an_id_that_is_not_here_is_not_found(self, data_dir, mock):
        local = make_local(data_dir, api_base=ENGINE)
        for file_id in ("file-" + "0" * 32, "../../etc/passwd"):
            with pytest.raises(NotFound):
                self.ask(local, {"messages": [{"content": [file_part(file_id)]}]})

    def test_the_engines_error_arrives(self, data_dir, mock):
        error = {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}
        mock.post(f"{ENGINE}/chat/completions", json=error, status=400)
        status, answer = self.ask(make_local(data_dir, api_base=ENGINE), {"messages": []})
        assert status == 400
        assert answer["error"]["message"] == "too long"


def file_part(file_id):
    return {"type": "file", "file": {"file_id": file_id}}


def test_a_store_that_is_in_order_has_no_flaw(provider, data_dir):
    assert list(provider.flaws(-1, read=True)) == []
    stored = provider.upload(make_upload())
    assert list(provider.flaws(-1, read=True)) == []
    assert provider.is_ours(stored.id) and not provider.is_ours("file-abc123")
    assert provider.account != make_local(data_dir, id="another").account


def test_a_content_that_is_being_stored_is_no_leftover(provider, data_dir):
    stored = provider.upload(make_upload())
    [entry] = data_dir.glob("local/*/*.json")
    entry.unlink()
    assert list(provider.flaws(60)) == []
    [flaw] = provider.flaws(-1)
    assert (flaw.kind, flaw.id, flaw.file_id) == ("leftover", stored.id, None)
    flaw.mend()
    assert not flaw.persists() and list(provider.flaws(-1)) == []


@pytest.mark.parametrize("damage", ["entry", "size", "bytes", "gone"])
def test_a_flaw_takes_nothing_from_a_file(provider, data_dir, damage):
    upload = make_upload()
    stored = provider.upload(upload)
    [entry], [content] = data_dir.glob("local/*/*.json"), data_dir.glob("local/*/*.bin")
    if damage == "entry":
        entry.write_text("{")
    elif damage == "gone":
        content.unlink()
    else:
        content.write_bytes(b"x" if damage == "size" else b"x" * upload.size)
    assert len(list(provider.flaws(-1))) == (damage != "bytes")
    [flaw] = provider.flaws(-1, read=True)
    assert (flaw.kind, flaw.file_id) == ("damaged", stored.id)
    assert flaw.has_bytes == (damage != "gone")
    before = entry.read_bytes(), content.exists()
    flaw.mend()
    assert (entry.read_bytes(), content.exists()) == before
    again = provider.upload(upload)
    assert read(provider.content(again.id)) == path_of(upload).read_bytes()
    provider.delete(stored.id)
    assert not flaw.persists() and list(provider.flaws(-1, read=True)) == []

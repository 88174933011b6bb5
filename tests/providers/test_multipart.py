"""MultipartFile: what a form parser reads is what was put in, and nothing is held in memory."""

import io
import tracemalloc
from dataclasses import dataclass

import pytest
from urllib3.util.request import body_to_chunks
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from app.providers.multipart import MultipartFile
from tests.builders import make_upload, path_of


@dataclass
class Parsed:
    form: dict[str, str]
    content: bytes
    filename: str
    mimetype: str
    headers: set[str]


def parsed(body: bytes, content_type: str) -> Parsed:
    mime_type, options = parse_options_header(content_type)
    _, form, files = FormDataParser().parse(io.BytesIO(body), mime_type, len(body), options)
    file = files["file"]
    content = file.read()
    file.close()
    name = file.filename or ""
    return Parsed(form.to_dict(), content, name, file.mimetype, set(file.headers.keys()))


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\r\n", b"--\r\n", bytes(range(256)) * 1000],
    ids=["empty", "one byte", "line end", "dashes", "every byte"],
)
def test_what_is_read_is_what_was_put_in(content):
    fields = {"purpose": "batch", "expires_after[seconds]": "3600", "note": "ä\r\nb"}
    with MultipartFile(fields, make_upload(content)) as body:
        whole = body.read()
        assert len(body) == len(whole)
    found = parsed(whole, body.content_type)
    assert found.form == fields
    assert found.content == content
    assert (found.filename, found.mimetype) == ("hello.jsonl", "application/jsonl")


@pytest.mark.parametrize(
    "filename",
    [
        "a.jsonl",
        "näme 日本 \U0001f600.jsonl",
        "a'b;c=d&e.txt",
        "  a  b  ",
        "x" * 500,
        "%41.txt",
    ],
)
def test_the_file_keeps_its_name(filename):
    with MultipartFile({}, make_upload(filename=filename)) as body:
        whole = body.read()
    assert b"filename*" not in whole, "some servers do not know it"
    assert parsed(whole, body.content_type).filename == filename


@pytest.mark.parametrize(
    "filename", ['a"b', 'a"; name="purpose', "a\r\nX-Evil: 1\r\n\r\nb", "a\nb"]
)
def test_a_name_cannot_leave_its_quotes(filename):
    with MultipartFile({"purpose": "batch"}, make_upload(b"abc", filename=filename)) as body:
        whole = body.read()
    found = parsed(whole, body.content_type)
    assert (found.form, found.content) == ({"purpose": "batch"}, b"abc")
    assert found.headers == {"Content-Disposition", "Content-Type"}
    name = found.filename.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
    assert name == filename


@pytest.mark.parametrize("size", [1, 7, 100, 65536])
def test_any_piece_size_gives_the_same_bytes(size):
    with MultipartFile({"purpose": "batch"}, make_upload(b"abc" * 200)) as body:
        whole = body.read()
        body.seek(0)
        pieces = list(iter(lambda: body.read(size), b""))
        assert b"".join(pieces) == whole
        assert max(map(len, pieces)) <= size
        assert body.read(1) == b""
        assert body.read(0) == b""


@pytest.mark.parametrize("at", [0, 1, 50, 150, 300, 500, 780, 10_000])
def test_it_can_be_read_from_anywhere(at):
    with MultipartFile({"purpose": "batch"}, make_upload(b"abc" * 200)) as body:
        whole = body.read()
        assert body.seek(at) == at == body.tell()
        assert body.read() == whole[at:]
        assert body.seek(-5, io.SEEK_END) == len(whole) - 5
        assert body.read() == whole[-5:]
        body.seek(3)
        body.seek(2, io.SEEK_CUR)
        assert body.read(4) == whole[5:9]


def test_two_bodies_have_different_boundaries_and_readers():
    upload = make_upload(b"abc")
    with MultipartFile({}, upload) as one, MultipartFile({}, upload) as other:
        assert one.content_type != other.content_type
        first = one.read()
        assert parsed(other.read(), other.content_type).content == b"abc"
        assert parsed(first, one.content_type).content == b"abc"


def test_the_boundary_is_not_in_the_content():
    content = b"\r\n--boundary\r\n--" + b"0" * 32 + b"--\r\n"
    with MultipartFile({}, make_upload(content)) as body:
        assert parsed(body.read(), body.content_type).content == content


def test_a_file_that_shrank_is_noticed():
    upload = make_upload(b"abc" * 1000)
    path_of(upload).write_bytes(b"abc")
    with MultipartFile({}, upload) as body, pytest.raises(OSError, match="shorter"):
        body.read()


def test_a_file_that_grew_is_sent_as_it_was():
    upload = make_upload(b"abc")
    with path_of(upload).open("ab") as file:
        file.write(b"def")
    with MultipartFile({}, upload) as body:
        whole = body.read()
        assert len(whole) == len(body)
    assert parsed(whole, body.content_type).content == b"abc"


def test_closing_it_closes_the_file():
    body = MultipartFile({}, make_upload())
    body.close()
    with pytest.raises(ValueError):
        body.read()


def test_a_large_file_is_never_held():
    upload = make_upload(b"x" * 20_000_000)
    with MultipartFile({"purpose": "batch"}, upload) as body:
        tracemalloc.start()
        try:
            sent = sum(map(len, body_to_chunks(body, "POST", 256 * 1024).chunks or ()))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert sent == len(body)
    assert peak < 2_000_000

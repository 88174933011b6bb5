"""What a file may be given as, and what comes back: on this machine's own store."""

import asyncio
import io
from typing import Any

import pytest

from app import sdk
from app.errors import InvalidRequest, NotFound
from app.sdk import objects
from app.sdk.objects import FileContent, batch_of, job_of
from app.transfers import Download

HERE: Any = {"custom_llm_provider": "local"}


def test_all_that_can_be_a_file(place):
    path = place / "Bericht.pdf"
    path.write_bytes(b"content")
    read_into = io.BytesIO(b"..content")
    read_into.seek(2)
    with path.open("rb") as opened:
        given = {
            "Bericht.pdf": [path, opened, ("Bericht.pdf", b"content")],
            "upload": [b"content", read_into, (None, b"content")],
            "b.txt": [("a/b.txt", path), ("b.txt", io.BytesIO(b"content"), "text/plain")],
        }
        for name, files in given.items():
            for file in files:
                made = sdk.create_file(file, "user_data", **HERE)
                assert (made.filename, made.bytes) == (name, 7)
                assert sdk.file_content(made.id, **HERE).text == "content"


@pytest.mark.parametrize(
    ("file", "purpose", "told"),
    [
        ("report.pdf", "user_data", "pathlib.Path"),
        (io.StringIO("text"), "user_data", "'rb'"),
        (b"", "user_data", "empty"),
        (b"x", "anything", "not one of: assistants"),
    ],
)
def test_what_is_no_file_is_refused(file, purpose, told):
    with pytest.raises(InvalidRequest, match=told):
        sdk.create_file(file, purpose, **HERE)


def test_a_path_that_is_not_there_is_the_systems_own_error(place):
    with pytest.raises(FileNotFoundError):
        sdk.create_file(place / "none", "user_data", **HERE)


def test_a_file_that_expires():
    made = sdk.create_file(
        b"x", "user_data", expires_after={"anchor": "created_at", "seconds": 7200}, **HERE
    )
    assert made.expires_at == made.created_at + 7200
    with pytest.raises(InvalidRequest, match="expires_after"):
        sdk.create_file(b"x", "user_data", expires_after={"anchor": "now", "seconds": 1}, **HERE)
    with pytest.raises(InvalidRequest, match="limit is 0"):
        sdk.file_list(limit=0, **HERE)


def test_a_content_can_be_read_in_every_way(place):
    made = sdk.create_file(b"one\r\ntwo\n" * 1000, "user_data", **HERE)
    with sdk.file_content(made.id, **HERE) as content:
        assert content.size == 9000
        assert content.content == content.read() == asyncio.run(content.aread())
        assert list(content.iter_lines())[:2] == ["one", "two"]
        assert [len(piece) for piece in content.iter_bytes(5000)] == [5000, 4000]
        content.write_to_file(place / "out")
    assert (place / "out").read_bytes() == b"one\r\ntwo\n" * 1000
    with pytest.raises(ValueError, match="closed"):
        content.read()
    sdk.file_delete(made.id, **HERE)
    with pytest.raises(NotFound):
        asyncio.run(sdk.afile_content(made.id, **HERE))


def test_a_content_that_ends_before_its_time_is_none():
    closed = []
    short = Download(iter([b"abc"]), 4, close=lambda: closed.append(True))
    with pytest.raises(sdk.GatewayError, match="3 bytes of 4"):
        FileContent(short)
    assert closed == [True]


def test_objects_of_lenient_providers():
    """What a provider adds is kept where there is room for it, and never breaks a reader."""
    batch: Any = dict.fromkeys(objects.Batch.__dataclass_fields__)
    batch |= {"id": "b", "request_counts": {"total": 2, "completed": 1, "failed": 1}, "new": 1}
    batch["errors"] = {"object": "list", "data": [{"message": "bad", "line": 3, "hint": "x"}, None]}
    errors = batch_of(batch).errors
    assert errors and (errors.data[0].message, errors.data[0].line) == ("bad", 3)
    batch["errors"] = None
    assert batch_of(batch).errors is None

    told = {"id": "j", "created_at": 1, "model": "m", "status": "failed", "training_file": "f"}
    job = job_of({**told, "error": {"message": "no"}, "hyperparameters": {"n_epochs": "auto"}})
    assert job.error and (job.error.message, job.hyperparameters.n_epochs) == ("no", "auto")
    other = job_of({**told, "error": {}, "hyperparameters": None, "user_provided_suffix": "s"})
    assert (other.error, other.more) == (None, {"user_provided_suffix": "s"})
    assert other.to_dict()["user_provided_suffix"] == "s"
    assert "more" not in other.model_dump()

"""What the contract says of batches and fine-tuning, where Google's rows and words differ.

A provider's test inherits it in place of JobsContract and supplies the same fixture.
"""

import json
import secrets
import time
from dataclasses import replace
from typing import ClassVar

import pytest

from app.errors import InvalidRequest, NotFound, NotSupported
from app.providers.protocol import BatchRequest, Operation, Provider
from app.providers.wire import jsonl
from app.transfers import Upload
from tests.builders import make_upload
from tests.providers.contract import JobsContract, batch_calls, job_calls

CHAT = "/v1/chat/completions"
TRAINING = (
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "hi"},
            ]
        }
    ).encode()
    + b"\n"
)


def make_rows(count: int = 2) -> bytes:
    """A batch file as a client writes it."""
    rows = [
        {
            "custom_id": f"Row №{number}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": "public", "messages": [{"role": "user", "content": f"{number}"}]},
        }
        for number in range(count)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def batch_upload(provider: Provider, model: str, content: bytes | None = None) -> Upload:
    """A batch file as the gateway hands it to a provider: its rows, and what was sent."""
    original = make_upload(content or make_rows(), purpose="batch", filename="rows.jsonl")
    with original.open() as file:
        rows = list(provider.batch_rows(jsonl.rows(jsonl.lines(file, 1024 * 1024)), model))
    written = make_upload(b"".join(rows), purpose="batch", filename="rows.jsonl")
    return replace(written, key=secrets.token_hex(16), model=model, original=original)


class GoogleJobsContract(JobsContract):
    """Tests of a provider whose batches have rows of Google's form."""

    unknown_id: ClassVar[str] = "f" * 32
    """An id that could be one of the provider's files', and is not."""
    model: ClassVar[str] = "gemini-2.5-flash"
    """An upstream model that takes batches, and can be tuned where the provider tunes."""

    def _request(self, provider: Provider, model: str | None = None) -> BatchRequest:
        file_id = provider.upload(batch_upload(provider, self.model)).id
        return BatchRequest(file_id, CHAT, "24h", model=self.model if model is None else model)

    @pytest.mark.parametrize("metadata", [None, {}, {"k": "v"}], ids=["none", "empty", "a pair"])
    def test_a_batch_is_described_as_it_was_asked_for(
        self, provider: Provider, metadata: dict[str, str] | None
    ) -> None:
        request = replace(self._request(provider), metadata=metadata)
        before = int(time.time())
        batch = provider.create_batch(request)
        assert (batch["input_file_id"], batch["completion_window"]) == (
            request.input_file_id,
            "24h",
        )
        assert batch["endpoint"] in ("", CHAT)
        # Google has no room for them: the gateway's own row says what was sent.
        assert batch["metadata"] is None
        assert batch["status"] == "validating"
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
        assert before - 60 <= batch["created_at"] <= time.time() + 60
        assert provider.retrieve_batch(batch["id"])["id"] == batch["id"]

    def test_the_list_has_every_batch_newest_first(self, provider: Provider) -> None:
        assert list(provider.batches()) == []
        request = self._request(provider)
        made = [provider.create_batch(request)["id"] for _ in range(3)]
        found = list(provider.batches())
        assert sorted(batch["id"] for batch in found) == sorted(made)
        times = [batch["created_at"] for batch in found]
        assert times == sorted(times, reverse=True)
        assert {batch["input_file_id"] for batch in found} == {request.input_file_id}

    def test_a_batch_can_be_cancelled(self, provider: Provider) -> None:
        batch = provider.create_batch(self._request(provider))
        for _ in range(2):
            found = provider.cancel_batch(batch["id"])
            assert found["status"] in ("cancelling", "cancelled")

    def test_an_unknown_batch_is_not_found(self, provider: Provider) -> None:
        for call in batch_calls(provider, "batch_unknown", "")[1:3]:
            with pytest.raises(NotFound):
                call()

    def test_a_batch_of_a_file_that_is_not_there_is_not_started(self, provider: Provider) -> None:
        with pytest.raises(NotFound):
            provider.create_batch(BatchRequest(self.unknown_id, CHAT, "24h", model=self.model))
        assert list(provider.batches()) == []

    def test_what_google_has_no_batches_of_is_refused(self, provider: Provider) -> None:
        request = replace(self._request(provider), endpoint="/v1/responses")
        with pytest.raises(NotSupported):
            provider.create_batch(request)
        row = make_rows(1).replace(CHAT.encode(), b"/v1/responses")
        with pytest.raises(InvalidRequest, match="line 1"):
            batch_upload(provider, self.model, row)

    def test_a_job_is_described_as_it_was_asked_for(self, provider: Provider) -> None:
        if Operation.FINE_TUNING not in provider.operations:
            with pytest.raises(NotSupported):
                provider.create_job({"model": self.model, "training_file": self.unknown_id})
            return
        file_id = provider.upload(make_upload(TRAINING, purpose="fine-tune")).id
        body = {"model": self.model, "training_file": file_id, "suffix": "s"}
        job = provider.create_job(body)
        assert {key: job[key] for key in body} == body
        assert (job["status"], job["result_files"]) == ("queued", [])
        assert provider.retrieve_job(job["id"])["id"] == job["id"]
        second = provider.create_job(body)
        assert {found["id"] for found in provider.jobs()} == {second["id"], job["id"]}
        assert [file.id for file in provider.files()] == [file_id]

    def test_a_job_can_be_steered(self, provider: Provider) -> None:
        if Operation.FINE_TUNING not in provider.operations:
            with pytest.raises(NotSupported):
                provider.steer_job("1", "cancel")
            return
        file_id = provider.upload(make_upload(TRAINING, purpose="fine-tune")).id
        job = provider.create_job({"model": self.model, "training_file": file_id})
        for action in ("pause", "resume"):
            with pytest.raises(NotSupported):
                provider.steer_job(job["id"], action)
        assert provider.steer_job(job["id"], "cancel")["id"] == job["id"]
        for what in ("events", "checkpoints"):
            page = provider.job_page(job["id"], what, None, 20)
            assert (page["object"], page["has_more"]) == ("list", False)

    def test_an_unknown_job_is_not_found(self, provider: Provider) -> None:
        is_there = Operation.FINE_TUNING in provider.operations
        for call in job_calls(provider, "ftjob-unknown", "")[1:4]:
            with pytest.raises(NotFound if is_there else NotSupported):
                call()

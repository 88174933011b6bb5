"""What the stories of batches and fine-tuning do again and again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.e2e.gateway import Account, Gateway, Seen, Server, model, wait_until
from tests.e2e.upstream_jobs import rows, training_rows

CHAT = "/v1/chat/completions"
SHORT_CHAT = "/chat/completions"
QUICK: dict[str, Any] = {"poll_seconds": 0.5, "poll_max_seconds": 2, "file_wait_seconds": 5}
"""`general_settings` that look often and wait briefly."""

BATCHES = "/v1/batches"
JOBS = "/v1/fine_tuning/jobs"

ENDS = ("completed", "failed", "expired", "cancelled", "succeeded")


def upload(
    client: Any, content: bytes, purpose: str = "batch", name: str = "in.jsonl", **routing: Any
) -> str:
    """The id of a new file."""
    made = client.files.create(file=(name, content), purpose=purpose, extra_body=routing)
    return str(made.id)


def start(client: Any, file_id: str, **more: Any) -> Any:
    """A new batch."""
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **more}
    return client.batches.create(**asked)


def ended(client: Any, batch_id: str, timeout: float = 10.0, **more: Any) -> Any:
    """The batch, once it has come to an end."""

    def found() -> Any:
        batch = client.batches.retrieve(batch_id, **more)
        return batch if batch.status in ENDS else None

    return wait_until(found, timeout)


def job_ended(client: Any, job_id: str, timeout: float = 10.0, **more: Any) -> Any:
    """The fine-tuning job, once it has come to an end."""

    def found() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id, **more)
        return job if job.status in ENDS else None

    return wait_until(found, timeout)


def bytes_at(account: Account, file_id: str) -> bytes:
    """What an upstream keeps of a file."""
    assert file_id in {file["id"] for file in account.files()}
    [kept] = account.upstream.log_dir.glob(f"*-files/*/{file_id}")
    return kept.read_bytes()


def raw_ids(gateway: Gateway, file_id: str) -> dict[str, str]:
    """By deployment, what an admin is shown as the providers' ids of a file."""
    answer = gateway.api("GET", f"/v1/files/{file_id}?include=copies")
    assert answer.status_code == 200, answer.text
    return {copy["deployment"]: copy["provider_file_id"] for copy in answer.json()["copies"]}


def posts(account: Account, path_end: str) -> int:
    """How many POSTs to such a path it was sent."""
    return sum(r.path.endswith(path_end) for r in account.requests(method="POST"))


def one_account(account: Account, **general: Any) -> dict[str, Any]:
    kind = "azure/dep" if account.kind == "azure" else "openai/gpt-4o"
    return {"model_list": [model("a", kind, account)], "general_settings": {**QUICK, **general}}


class Kind:
    """Batches or fine-tuning jobs, for what is the same with both."""

    def __init__(self, name: str, gateway: Gateway, account: Account) -> None:
        self.name = name
        self.is_batch = name == "batch"
        self.path = BATCHES if self.is_batch else JOBS
        self.gateway = gateway
        self.account = account

    def input(self, client: Any) -> str:
        if self.is_batch:
            return upload(client, rows(3, "a"), target_model_names="a")
        return upload(client, training_rows(10), "fine-tune", target_model_names="a")

    def start(self, client: Any, file_id: str, **more: Any) -> Any:
        if self.is_batch:
            return start(client, file_id, **more)
        return client.fine_tuning.jobs.create(model="a", training_file=file_id, **more)

    def api(self, client: Any) -> Any:
        return client.batches if self.is_batch else client.fine_tuning.jobs

    def made(self) -> list[dict[str, Any]]:
        return self.account.batches() if self.is_batch else self.account.jobs()

    def ended(self, client: Any, job_id: str) -> Any:
        return ended(client, job_id) if self.is_batch else job_ended(client, job_id)

    def ids(self, client: Any) -> list[str]:
        return [each.id for each in self.api(client).list()]


def looks(account: Account, raw: str) -> list[Seen]:
    """The retrieves of a batch that an upstream was sent."""
    return [r for r in account.requests(method="GET") if r.path.endswith(raw)]


@contextmanager
def workers(gateway: Gateway, number: int) -> Iterator[list[Server]]:
    """So many processes of `manifold worker`; all of them that still run end with exit status 0."""
    running = [gateway.start_worker(f"worker-{n}") for n in range(1, number + 1)]
    try:
        yield running
        for worker in running:
            if worker.running:
                assert worker.stop() == 0, worker.log_text()
    finally:
        for worker in running:
            if worker.running:
                worker.kill()

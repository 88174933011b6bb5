"""From a LiteLLM proxy to this one: old keys and old ids work, for their owners and nobody else."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from app import ids
from app.litellm_import.deployments import deployment_id
from tests.e2e import inside
from tests.e2e.batching import QUICK, ended, start
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MANIFOLD, Account, Gateway, Upstream, model
from tests.e2e.upstream_jobs import rows, training_rows
from tests.litellm_rows import LiteLLM, encoded

LEA, MAX, BOT = "sk-lea-0123456789abcdef", "sk-max-0123456789abcdef", "sk-bot-0123456789abcdef"
TEXT = b"what LiteLLM had stored"


@dataclass
class Moved:
    """A gateway, the database that LiteLLM has left behind, and ids that people hold."""

    gateway: Gateway
    litellm: LiteLLM
    account: Account
    file: str
    team_file: str
    batch: str
    encoded_batch: str
    job: str
    encoded_file: str
    encoded_output: str

    def run(self, *words: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [MANIFOLD, "import-litellm", "--config", str(self.gateway.config_path), *words],
            env={"PATH": "/usr/bin", "LITELLM_DATABASE_URL": self.litellm.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def moved(upstream: Upstream, start_gateway: StartGateway) -> Iterator[Moved]:
    """What LiteLLM had done before: files, batches and a job at the provider, and its rows."""
    account = upstream.account("moved", download_any=True, batch_delay_s=0.0)
    entry = model("gpt-4o", "openai/gpt-4o", account)
    gateway = start_gateway({"model_list": [entry], "general_settings": QUICK}, workers=1)
    theirs = deployment_id("gpt-4o", entry["litellm_params"])
    direct = openai.OpenAI(
        base_url=account.api_base,
        api_key=account.key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )
    with inside.scratch_postgres() as url, direct:
        litellm = LiteLLM(url)
        stored = direct.files.create(file=("report.pdf", TEXT), purpose="user_data")
        of_team = direct.files.create(file=("team.txt", b"team"), purpose="user_data")
        for user in ("lea", "max"):
            litellm.user(user, user_email=f"{user}@example.org", models=["gpt-4o"])
        litellm.add("LiteLLM_TeamTable", team_id="t1", team_alias="search", models=["gpt-4o"])
        litellm.key(LEA, user_id="lea", key_alias="laptop", rpm_limit=600)
        litellm.key(MAX, user_id="max")
        litellm.key(BOT, team_id="t1", key_alias="bot")
        told = {"object": "file", "bytes": len(TEXT), "created_at": stored.created_at}
        told |= {"filename": "report.pdf", "purpose": "user_data", "status": "uploaded"}
        file = litellm.file({theirs: stored.id}, ["gpt-4o"], told, created_by="lea")
        team_file = litellm.file(
            {theirs: of_team.id}, ["gpt-4o"], {**told, "bytes": 4}, team_id="t1"
        )
        batches = []
        for _ in range(2):
            # LiteLLM has written the provider's own model into the rows that it sent.
            source = direct.files.create(file=("in.jsonl", rows(2, "gpt-4o")), purpose="batch")
            batches.append(ended(direct, start(direct, source.id).id).model_dump())
        first, second = batches
        unified_input = litellm.file(
            {theirs: first["input_file_id"]},
            ["gpt-4o"],
            {**told, "purpose": "batch", "filename": "in.jsonl"},
            created_by="lea",
        )
        seen = {**first, "status": "in_progress", "output_file_id": None}
        batch = litellm.batch(theirs, {**seen, "input_file_id": unified_input}, created_by="lea")
        # By the model way ids are encoded before LiteLLM writes the row.
        names = ("input_file_id", "output_file_id")
        told_second = {**second, **{n: ids.encode_file(second[n], "gpt-4o") for n in names}}
        encoded_batch = ids.encode_batch(second["id"], "gpt-4o")
        litellm.object(
            "batch",
            encoded_batch,
            encoded_batch,
            {**told_second, "id": encoded_batch},
            created_by="lea",
        )
        training = direct.files.create(file=("t.jsonl", training_rows(10)), purpose="fine-tune")
        tuning = direct.fine_tuning.jobs.create(model="gpt-4o", training_file=training.id)
        job = encoded(f"litellm_proxy;model_id:{theirs};generic_response_id:{tuning.id}")
        litellm.object("fine-tune", job, tuning.id, tuning.model_dump(), created_by="lea")
        try:
            yield Moved(
                gateway,
                litellm,
                account,
                file,
                team_file,
                batch,
                encoded_batch,
                job,
                ids.encode_file(stored.id, "gpt-4o"),
                told_second["output_file_id"],
            )
        finally:
            litellm.close()


def of_gateway(moved: Moved) -> dict[str, Any]:
    tables = ("users", "keys", "files", "copies", "jobs", "audit")
    return {table: inside.rows(moved.gateway, table)[table] for table in tables}


def test_what_was_litellm_s_is_ours(moved):
    before = of_gateway(moved)
    dry = moved.run()
    assert "Nothing was written" in dry.stdout
    assert of_gateway(moved) == before

    done = moved.run("--apply")
    told = [line.split() for line in done.stdout.splitlines() if line]
    # Three of them by rows; the fourth user is the team.
    assert ["users", "3", "0", "0"] in told and ["keys", "3", "0", "0"] in told
    assert ["files", "3", "0", "0"] in told and ["batches", "2", "0", "0"] in told
    assert [line for line in dry.stdout.splitlines() if "users" in line] == [
        line for line in done.stdout.splitlines() if "users" in line
    ]
    after = of_gateway(moved)
    again = [line.split() for line in moved.run("--apply").stdout.splitlines() if line]
    assert ["keys", "0", "3", "0"] in again and ["files", "0", "3", "0"] in again
    changed = of_gateway(moved)
    for table in ("users", "keys", "files", "copies"):
        assert changed[table] == after[table], table
    assert len(changed["jobs"]) == len(after["jobs"]) == 3

    gateway, account = moved.gateway, moved.account
    lea, max_, bot = (gateway.client(key) for key in (LEA, MAX, BOT))
    assert [each.id for each in lea.models.list()] == ["gpt-4o"]
    assert lea.files.retrieve(moved.file).filename == "report.pdf"
    assert lea.files.content(moved.file).read() == TEXT
    assert lea.files.content(moved.encoded_file).read() == TEXT
    assert moved.file in {each.id for each in lea.files.list()}
    assert bot.files.content(moved.team_file).read() == b"team"

    batch = lea.batches.retrieve(moved.batch)
    assert (batch.id, batch.status) == (moved.batch, "completed")
    assert b"row-1" in lea.files.content(batch.output_file_id or "").read()
    assert lea.batches.retrieve(moved.encoded_batch).status == "completed"
    # The output's old id, of which LiteLLM has no row, is the batch's owner's.
    assert b"row-1" in lea.files.content(moved.encoded_output).read()
    assert {each.id for each in lea.batches.list()} == {moved.batch, moved.encoded_batch}
    assert lea.fine_tuning.jobs.retrieve(moved.job).id == moved.job

    account.upstream.forget_requests()
    for stranger in (max_, bot):
        for call in (
            lambda c: c.files.retrieve(moved.file),
            lambda c: c.files.content(moved.encoded_file),
            lambda c: c.files.content(moved.encoded_output),
            lambda c: c.files.delete(moved.file),
            lambda c: c.batches.retrieve(moved.batch),
            lambda c: c.batches.cancel(moved.encoded_batch),
            lambda c: c.fine_tuning.jobs.retrieve(moved.job),
            lambda c: start(c, moved.file),
        ):
            with pytest.raises(openai.PermissionDeniedError):
                call(stranger)
    with pytest.raises(openai.PermissionDeniedError):
        lea.files.retrieve(moved.team_file)
    assert account.requests() == []

    # A new batch of an old file, and what was deleted here stays deleted.
    source = lea.batches.retrieve(moved.batch).input_file_id
    assert ended(lea, start(lea, source).id).status == "completed"
    assert lea.files.delete(moved.file).deleted
    gateway.api("POST", "/key/delete", json={"keys": ["bot"]})
    moved.run("--apply", status=4)
    with pytest.raises(openai.NotFoundError):
        lea.files.retrieve(moved.file)
    with pytest.raises(openai.AuthenticationError):
        bot.models.list()

    # Nor does the secret before the last one.
    answer = gateway.api("POST", "/key/regenerate", json={"key_alias": "laptop"})
    moved.run("--apply", status=4)
    with pytest.raises(openai.AuthenticationError):
        lea.models.list()
    assert list(gateway.client(answer.json()["key"]).models.list())

"""The library without a server: LiteLLM's own examples, and every provider over real sockets."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import sdk
from app.errors import (
    InvalidRequest,
    NotFound,
    UnknownModel,
    UnknownProvider,
    UpstreamAuthFailed,
)
from app.providers.registry import PROVIDERS
from tests.e2e.gateway import ROOT, Account, Upstream, wait_until
from tests.e2e.google import BUCKET, PROJECT, GoogleUpstream
from tests.e2e.pages import Story
from tests.e2e.upstream_jobs import rows

PAGE = ROOT / "docs" / "sdk.md"
TRAINING = b'{"messages": [{"role": "user", "content": "Hi"}]}\n' * 10

# As LiteLLM's documentation prints them, mistakes included.
EXAMPLES = {
    "create": """
        from litellm
        import os

        os.environ["OPENAI_API_KEY"] = "sk-.."

        file_obj = await litellm.acreate_file(
            file=open("mydata.jsonl", "rb"),
            purpose="fine-tune",
            custom_llm_provider="openai",
        )
        print("Response from creating file=", file_obj)
        """,
    "list": """
        files = await litellm.alist_files(
            custom_llm_provider="openai",
            limit=10
        )
        print("files=", files)
        """,
    "retrieve": """
        file = await litellm.aretrieve_file(
            file_id="file-abc123",
            custom_llm_provider="openai"
        )
        print("file=", file)
        """,
    "content": """
        content = await litellm.afile_content(
            file_id="file-abc123",
            custom_llm_provider="openai"
        )
        print("file content=", content)
        """,
    "delete": """
        response = await litellm.adelete_file(
            file_id="file-abc123",
            custom_llm_provider="openai"
        )
        print("delete response=", response)
        """,
}


def run(name: str, *, is_async: bool, key: str, file_id: str = "") -> dict[str, Any]:
    """The names that an example leaves behind."""
    code = textwrap.dedent(EXAMPLES[name])
    code = code.replace("from litellm\n", "").replace('"sk-.."', repr(key))
    code = "from app import sdk as litellm\n" + code.replace("file-abc123", file_id)
    with ExitStack() as files:
        # The example never closes its file.
        names: dict[str, Any] = {
            "open": lambda path, mode: files.enter_context(Path(path).open(mode))
        }
        if not is_async:
            exec(re.sub(r"await litellm\.a", "litellm.", code), names)
            return names
        body = textwrap.indent(code, "    ")
        exec(f"async def main():\n{body}\n    return locals()\n", names)
        return asyncio.run(names["main"]())


@pytest.fixture
def account(upstream: Upstream) -> Account:
    return upstream.account("sdk", download_any=True)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program's place: nothing of anybody's accounts in its environment."""
    known = re.compile("OPENAI_|AZURE_|MANIFOLD_|GEMINI_|GOOGLE_|VERTEXAI_|GCS_|.*_proxy", re.I)
    for name in filter(known.match, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_the_examples_run_as_they_are_printed(
    is_async, account, upstream, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("OPENAI_BASE_URL", account.api_base)
    monkeypatch.setenv("OPENAI_API_KEY", "the example sets it")
    (tmp_path / "mydata.jsonl").write_bytes(TRAINING)

    def example(name: str, file_id: str = "") -> dict[str, Any]:
        return run(name, is_async=is_async, key=account.key, file_id=file_id)

    made = example("create")["file_obj"]
    assert (made.filename, made.purpose, made.bytes) == ("mydata.jsonl", "fine-tune", len(TRAINING))
    [stored] = account.files()
    assert stored["id"] == made.id
    assert [file.id for file in example("list")["files"]] == [made.id]
    assert example("retrieve", made.id)["file"] == made
    assert example("content", made.id)["content"].content == TRAINING
    gone = example("delete", made.id)["response"]
    assert gone.to_dict() == {"id": made.id, "object": "file", "deleted": True}
    assert account.files() == []
    assert not upstream.unexpected()
    assert capsys.readouterr().out.startswith("Response from creating file= FileObject(id=")


def test_the_page_is_true(upstream, account, monkeypatch, tmp_path, capsys):
    """docs/sdk.md from its top to its end; Azure's address is the fake's here."""
    azure = upstream.account("sdk-page", "azure")
    monkeypatch.setenv("OPENAI_BASE_URL", account.api_base)
    monkeypatch.setenv("OPENAI_API_KEY", account.key)
    monkeypatch.setenv("AZURE_API_KEY", azure.key)
    (tmp_path / "mydata.jsonl").write_bytes(TRAINING)
    replaced = {"https://my-resource.openai.azure.com": azure.api_base}
    with ExitStack() as files:
        names = {"open": lambda path, mode: files.enter_context(Path(path).open(mode))}
        Story(PAGE, tmp_path, replaced=replaced, names=names).run()
    said = capsys.readouterr().out
    assert "completed 1" in said
    assert "404 not_found" in said
    assert (tmp_path / "again.jsonl").read_bytes() == TRAINING
    assert [seen.headers["api-key"] for seen in azure.uploads()] == [azure.key]


def test_the_page_names_every_call_and_every_variable():
    text = PAGE.read_text()
    plain = {name for name in sdk.__all__ if name.islower()}
    shortened = {"aretrieve_fine_tuning_job", "acancel_fine_tuning_job"}
    assert not [name for name in plain - shortened if f"`{name}" not in text]
    table = text.partition("| provider | variables |")[2].partition("\n\n")[0]
    for cls in PROVIDERS:
        if cls.environment:
            row = next(line for line in table.splitlines() if f"`{cls.name}`" in line)
            assert not [n for n in cls.environment.values() if f"`{n[0]}`" not in row], cls.name


def test_each_spelling_is_the_same_call(account):
    """`alist_files` of the documentation and `afile_list` of the library it documents."""
    for one, other in (
        (sdk.list_files, sdk.file_list),
        (sdk.retrieve_file, sdk.file_retrieve),
        (sdk.delete_file, sdk.file_delete),
        (sdk.alist_files, sdk.afile_list),
        (sdk.aretrieve_file, sdk.afile_retrieve),
        (sdk.adelete_file, sdk.afile_delete),
    ):
        assert one is other
    forms = {name for name in sdk.__all__ if asyncio.iscoroutinefunction(getattr(sdk, name))}
    plain = {n for n in sdk.__all__ if callable(getattr(sdk, n)) and n.islower()} - forms
    assert forms == {f"a{name}" for name in plain}
    assert len(plain) == 16


def test_azure_by_its_environment_and_by_arguments(upstream, monkeypatch):
    azure = upstream.account("sdk-azure", "azure", download_any=True)
    monkeypatch.setenv("AZURE_API_BASE", azure.api_base)
    monkeypatch.setenv("AZURE_API_KEY", azure.key)
    monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")
    monkeypatch.setenv("AZURE_TENANT_ID", "half of a credential of somebody else")
    made = sdk.create_file(("a.jsonl", TRAINING), "fine-tune", custom_llm_provider="azure")
    [seen] = azure.uploads()
    assert seen.headers["api-key"] == azure.key
    assert seen.query == {"api-version": "2024-10-21"}

    other = upstream.account("sdk-azure-2", "azure")
    monkeypatch.setenv("AZURE_AD_TOKEN", "a token that is not meant")
    found = sdk.file_list(
        custom_llm_provider="azure",
        api_base=other.api_base,
        api_key=other.key,
        api_version="2024-10-21",
    )
    assert found.data == []
    assert sdk.file_delete(made.id, custom_llm_provider="azure").deleted


def config_at(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_accounts_of_a_configuration(upstream, account, tmp_path, monkeypatch):
    """By provider, by model and by nothing; what the file does not name is asked of nobody."""
    other = upstream.account("sdk-other", download_any=True)
    monkeypatch.setenv("OTHER_KEY", other.key)
    config = config_at(
        tmp_path / "manifold.yaml",
        {
            "model_list": [
                {
                    "model_name": "gpt-4o",
                    "litellm_params": {
                        "model": "openai/gpt-4o-2024",
                        "api_base": other.api_base,
                        "api_key": "os.environ/OTHER_KEY",
                    },
                }
            ],
            "files_settings": [{"custom_llm_provider": "openai", **account.params}],
        },
    )
    plain = sdk.create_file(("a.txt", b"text"), "user_data", config=config)
    named = sdk.create_file(
        ("rows.jsonl", rows(2, "gpt-4o")), "batch", model="gpt-4o", config=config
    )
    assert [f["id"] for f in account.files()] == [plain.id]
    assert [f["id"] for f in other.files()] == [named.id]
    # Its rows were written for the account's own model.
    content = sdk.file_content(named.id, model="gpt-4o", config=config)
    assert {json.loads(line)["body"]["model"] for line in content.iter_lines()} == {"gpt-4o-2024"}

    monkeypatch.setenv("MANIFOLD_CONFIG", str(config))
    assert sdk.file_retrieve(plain.id, custom_llm_provider="openai").filename == "a.txt"
    upstream.forget_requests()
    # What is in the environment does not count beside a configuration.
    monkeypatch.setenv("AZURE_API_KEY", "x")
    monkeypatch.setenv("AZURE_API_BASE", account.api_base)
    with pytest.raises(UnknownProvider, match="there: openai"):
        sdk.file_list(custom_llm_provider="azure")
    with pytest.raises(UnknownModel, match="gpt-4o"):
        sdk.file_list(model="x")
    assert upstream.requests() == []


def test_lists_have_an_order_and_pages(account):
    own = account.params
    made = [sdk.create_file((f"{n}.txt", b"x"), "user_data", **own).id for n in range(3)]
    sdk.create_file(("b.jsonl", rows(1, "m")), "batch", **own)
    found = sdk.file_list(purpose="user_data", order="asc", limit=2, **own)
    assert ({f.id for f in found} <= set(made), len(found), found.has_more) == (True, 2, True)
    rest = sdk.file_list(purpose="user_data", order="asc", after=found.last_id, **own)
    assert [f.id for f in (*found, *rest)] == [
        f.id for f in sdk.file_list(purpose="user_data", **own)
    ][::-1]
    assert (rest.has_more, len(sdk.file_list(**own))) == (False, 4)
    with pytest.raises(InvalidRequest, match="after"):
        sdk.file_list(after="file-unknown", **own)


@pytest.mark.parametrize("kind", ["openai", "azure"])
def test_a_batch_from_its_file_to_its_output(upstream, kind):
    account = upstream.account(f"sdk-batch-{kind}", kind, download_any=True)
    own: Any = {"custom_llm_provider": kind, **account.params}
    text = rows(
        3, "gpt-4o", url="/v1/chat/completions" if kind == "openai" else "/chat/completions"
    )
    file = sdk.create_file(("rows.jsonl", text), "batch", **own)
    batch = sdk.create_batch("24h", "/v1/chat/completions", file.id, metadata={"a": "b"}, **own)
    assert (batch.input_file_id, batch.metadata) == (file.id, {"a": "b"})

    def finished() -> sdk.Batch | None:
        found = sdk.retrieve_batch(batch.id, **own)
        return found if found.status == "completed" else None

    ended = wait_until(finished)
    assert ended and ended.output_file_id and ended.request_counts.completed == 3
    output = sdk.file_content(ended.output_file_id, **own)
    assert len([json.loads(line) for line in output.iter_lines()]) == 3
    assert [b.id for b in sdk.list_batches(**own)] == [batch.id]
    again = sdk.create_batch("24h", "/v1/chat/completions", file.id, **own)
    assert sdk.cancel_batch(again.id, **own).status in ("cancelling", "cancelled")
    page = sdk.list_batches(limit=1, **own)
    assert (page.has_more, len(page)) == (True, 1)
    assert len(sdk.list_batches(after=page.last_id, **own)) == 1


def test_a_fine_tuning_job(account):
    own: Any = account.params

    async def tuned() -> sdk.FineTuningJob:
        file = await sdk.acreate_file(("t.jsonl", TRAINING), "fine-tune", **own)
        job = await sdk.acreate_fine_tuning_job("gpt-4o-mini", file.id, suffix="mine", **own)
        assert (job.training_file, job.error) == (file.id, None)
        while job.status != "succeeded":
            await asyncio.sleep(0.05)
            job = await sdk.aretrieve_fine_tuning_job(job.id, **own)
        assert [j.id for j in await sdk.alist_fine_tuning_jobs(**own)] == [job.id]
        other = await sdk.acreate_fine_tuning_job("gpt-4o-mini", file.id, seed=7, **own)
        stopped = await sdk.acancel_fine_tuning_job(other.id, **own)
        assert (stopped.status, stopped.seed) == ("cancelled", 7)
        return job

    job = asyncio.run(tuned())
    assert job.fine_tuned_model and "mine" in job.fine_tuned_model
    assert job.hyperparameters.n_epochs is not None
    assert job.to_dict()["object"] == "fine_tuning.job"


def test_the_event_loop_does_not_wait(upstream):
    """Three slow uploads at the same time, and the loop turns meanwhile."""
    slow = upstream.account("sdk-slow", upload_delay_s=0.6)
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    async def main() -> list[sdk.FileObject]:
        turn = asyncio.create_task(turning())
        own: Any = slow.params
        sent = [sdk.acreate_file((f"{n}.txt", b"x"), "user_data", **own) for n in range(3)]
        made = await asyncio.gather(*sent)
        turn.cancel()
        return made

    assert len({file.id for file in asyncio.run(main())}) == 3
    assert turns > 20
    first, *others = slow.uploads()
    assert all(first.overlaps(other) for other in others)


def test_what_a_provider_refuses_is_raised(account, upstream):
    own: Any = account.params
    with pytest.raises(NotFound, match="file-none"):
        sdk.file_retrieve("file-none", **own)
    with pytest.raises(UpstreamAuthFailed):
        sdk.file_list(api_base=account.api_base, api_key="sk-wrong")
    account.fail(method="POST", status=429, body={"error": {"message": "slow down"}})
    with pytest.raises(sdk.GatewayError) as raised:
        sdk.create_file(("a.txt", b"x"), "user_data", max_retries=0, **own)
    assert (raised.value.status, raised.value.message) == (429, "slow down")
    upstream.clear_faults()
    upstream.forget_requests()
    assert sdk.file_delete("file-none", **own).deleted
    # Connections are kept: these five calls shared one.
    for _ in range(4):
        sdk.file_list(**own)
    assert len({seen.connection for seen in upstream.requests()}) == 1


# ------------------------------------------------------------------- Google


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleUpstream]:
    with GoogleUpstream(tmp_path_factory.mktemp("google")) as running:
        yield running


def plain_rows(*models: str) -> bytes:
    """A batch file with a row for each of the models."""
    said = [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "Hi"}]},
        }
        for number, model in enumerate(models)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in said)


def test_vertex_with_the_rows_in_its_own_form(google, monkeypatch):
    monkeypatch.setenv("VERTEXAI_PROJECT", PROJECT)
    monkeypatch.setenv("VERTEXAI_LOCATION", "us-central1")
    monkeypatch.setenv("GCS_BUCKET_NAME", BUCKET)
    own: Any = {
        "custom_llm_provider": "vertex_ai",
        "vertex_credentials": google.credentials,
        "api_base": google.url,
        "gcs_api_base": google.url,
    }
    text = plain_rows("gemini-2.0-flash", "gemini-2.0-flash")
    file = sdk.create_file(("rows.jsonl", text), "batch", **own)
    assert sdk.file_content(file.id, **own).content == text
    batch = sdk.create_batch("24h", "/v1/chat/completions", file.id, **own)
    assert (batch.input_file_id, batch.model) == (file.id, "gemini-2.0-flash")
    ended = wait_until(
        lambda: (b := sdk.retrieve_batch(batch.id, **own)).status == "completed" and b
    )
    assert ended and ended.output_file_id
    lines = list(sdk.file_content(ended.output_file_id, **own).iter_lines())
    assert {json.loads(line)["custom_id"] for line in lines} == {
        json.loads(line)["custom_id"] for line in text.splitlines()
    }
    with pytest.raises(InvalidRequest, match=r"line 2.*one model"):
        mixed = plain_rows("gemini-2.0-flash", "gemini-1.5-pro")
        sdk.create_file(("rows.jsonl", mixed), "batch", **own)
    assert sdk.file_delete(file.id, **own).deleted


def test_gemini_by_its_environment(google, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", google.studio_key)
    own: Any = {"custom_llm_provider": "gemini", "api_base": google.url}
    file = sdk.create_file(("a.pdf", b"%PDF-1.7 x"), "user_data", **own)
    assert (file.filename, file.bytes) == ("a.pdf", 10)
    assert file.id in {found.id for found in sdk.file_list(**own)}
    with pytest.raises(InvalidRequest, match="give files back"):
        sdk.file_content(file.id, **own)
    assert sdk.file_delete(file.id, **own).deleted


# ------------------------------------------------------------------- what it needs


def test_it_brings_neither_a_server_nor_a_database():
    code = "import sys, app.sdk; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"flask", "werkzeug", "gunicorn", "sqlalchemy", "alembic", "huey"}
    loaded = set(done.stdout.split())
    assert not {n for n in loaded if n.startswith(("app.db", "app.services", "app.api"))}


def test_a_large_file_is_never_in_memory(account, tmp_path):
    """Up from an open file and down into another: the process grows by little."""
    size = 96 * 1024 * 1024
    big = tmp_path / "big.bin"
    with big.open("wb") as out:
        piece = random.Random(1).randbytes(1024 * 1024)
        for _ in range(size // len(piece)):
            out.write(piece)
    code = f"""
import resource
from app import sdk
own = {dict(account.params)!r}
sdk.file_list(**own)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open({str(big)!r}, "rb") as file:
    made = sdk.create_file(file, "user_data", **own)
assert made.bytes == {size}
with sdk.file_content(made.id, **own) as content:
    assert content.size == {size}
    content.write_to_file({str(tmp_path / "again.bin")!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 1024, "KiB"
    assert (tmp_path / "again.bin").read_bytes() == big.read_bytes()

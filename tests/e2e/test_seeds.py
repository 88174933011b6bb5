"""The code examples that people bring from LiteLLM's documentation, run as they stand there.

One gateway stands in front of three OpenAI accounts and an Azure resource that check address,
credential, api-version and form fields and know nothing of each other. Replaced in the copies below
are addresses, keys and file ids; the download of a PDF is left out; Google's model, which Manifold
does not serve yet, is an Azure deployment, and since Azure takes no `user_data`, the purpose is
`assistants` there. Batches and fine-tuning have stories of their own.
"""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import openai
import pytest

from app import settings
from app.providers import registry
from tests.e2e.asking import carriers, echo
from tests.e2e.conftest import StartGateway, missing
from tests.e2e.gateway import API_VERSION, Account, Gateway, Seeds, Upstream, seeds

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
ROWS = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-4o"}}\n'
SEEDS_ID = (
    "bGl0ZWxsbV9wcm94eTphcHBsaWNhdGlvbi9vY3RldC1zdHJlYW07dW5pZmllZF9pZCwyYTgzOWIyYS03YzI1LTRiNTUt"
    "YTUxYS1lZjdhODljNzZkMzU7dGFyZ2V0X21vZGVsX25hbWVzLGdwdC00by1iYXRjaA"
)


@dataclass(frozen=True)
class Way:
    """How an example is run: by which client, at which base URL."""

    gateway: Gateway
    is_async: bool
    v1: bool

    def run(self, code: str, *, key: str = "sk-1234", file_id: str = "", **names: Any) -> Any:
        """The names that the example leaves behind."""
        address = self.gateway.url + ("/v1" if self.v1 else "")
        code = re.sub(r"http://0\.0\.0\.0:4000(/v1)?", address, dedent(code))
        code = code.replace("sk-...", key).replace("file-abc123", file_id)
        if "OpenAI(" not in code:
            code = f'client = OpenAI(base_url="{address}", api_key="{key}")\n{code}'
        close = "client.close()"
        if self.is_async:
            code = re.sub(
                r"client\.[a-z_.]+\(", r"await \g<0>", code.replace("OpenAI", "AsyncOpenAI")
            )
            close = f"await {close}"
        code = f"try:\n{indent(code, '    ')}\nfinally:\n    {close}\n"
        with ExitStack() as files:
            names["open"] = lambda *named: files.enter_context(Path(named[0]).open(named[1]))
            names |= {"OpenAI": openai.OpenAI, "AsyncOpenAI": openai.AsyncOpenAI}
            if not self.is_async:
                exec(code, names)
                return names
            head = f"async def main({', '.join(names)}):\n"
            made: dict[str, Any] = {}
            exec(head + indent(code, "    ") + "\n    return locals()\n", made)
            return asyncio.run(made["main"](**names))


@pytest.fixture(scope="module")
def accounts(upstream: Upstream) -> Seeds:
    return seeds(upstream, download_any=True)


@pytest.fixture(scope="module")
def gateway(accounts: Seeds, start_gateway: StartGateway) -> Gateway:
    """As people run it: only deployments have keys, none is in the environment (M-04)."""
    return start_gateway(
        {**accounts.config, "general_settings": {"master_key": "sk-1234"}}, workers=1
    )


@pytest.fixture(
    params=[(False, False), (False, True), (True, False), (True, True)],
    ids=["sync", "sync v1", "async", "async v1"],
)
def way(
    request: pytest.FixtureRequest,
    gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Way:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Path("2403.05530.pdf").write_bytes(PDF)
    Path("batch_data.jsonl").write_bytes(ROWS)
    Path("fine_tuning.jsonl").write_bytes(b'{"messages": []}\n')
    return Way(gateway, *request.param)


@pytest.fixture(autouse=True)
def _nothing_is_left(gateway: Gateway, upstream: Upstream, accounts: Seeds) -> Iterator[None]:
    """Every request was one that its provider knows, with that account's own credential."""
    yield
    for seen in upstream.requests():
        assert seen.account is not None, f"nobody's key in {seen.method} {seen.path}"
        assert not seen.unexpected, f"{seen.account} has no {seen.method} {seen.path}"
        if seen.account == "azure":
            assert seen.headers["api-key"] == accounts.azure.key
            assert "authorization" not in seen.headers
            assert (seen.path.split("/")[1], seen.query["api-version"]) == ("openai", API_VERSION)
    assert "api_key client option" not in gateway.log_text()
    for file in gateway.api("GET", "/v1/files").json()["data"]:
        gateway.api("DELETE", f"/v1/files/{file['id']}")
    for account in (accounts.litellm, accounts.free, accounts.mini, accounts.azure):
        upstream.account(account.name, account.kind, key=account.key, **account.options)


def ids_at(account: Account) -> list[str]:
    return [f["id"] for f in account.files()]


# ------------------------------------------------------- the provider's own API, /files endpoints

UPLOAD = """
    from openai import OpenAI

    client = OpenAI(
        api_key="sk-...",
        base_url="http://0.0.0.0:4000/v1"
    )

    made = client.files.create(
        file=wav_data,
        purpose="user_data",
        SELECTOR
    )
"""
LIST = """
    from openai import OpenAI

    client = OpenAI(
        api_key="sk-...",
        base_url="http://0.0.0.0:4000/v1"
    )

    files = client.files.list(SELECTOR)
    print("files=", files)
"""
RETRIEVE = """
    from openai import OpenAI

    client = OpenAI(
        api_key="sk-...",
        base_url="http://0.0.0.0:4000/v1"
    )

    file = client.files.retrieve(file_id="file-abc123", SELECTOR)
    print("file=", file)
"""
DELETE = """
    from openai import OpenAI

    client = OpenAI(
        api_key="sk-...",
        base_url="http://0.0.0.0:4000/v1"
    )

    response = client.files.delete(file_id="file-abc123", SELECTOR)
    print("delete response=", response)
"""
CONTENT = """
    from openai import OpenAI

    client = OpenAI(
        api_key="sk-...",
        base_url="http://0.0.0.0:4000/v1"
    )

    content = client.files.content(file_id="file-abc123", SELECTOR)
    print("content=", content)
"""
SELECTORS = {
    "body": 'extra_body={"custom_llm_provider": "openai"}',
    "header": 'extra_headers={"custom-llm-provider": "openai"}',
    "query": 'extra_query={"custom_llm_provider": "openai"}',
    "short query": 'extra_query={"provider": "openai"}',
}


@pytest.mark.parametrize(
    ("provider", "where"),
    [*(("openai", where) for where in SELECTORS), ("azure", "body"), ("azure", "header")],
)
def test_a_providers_files(way, accounts, upstream, provider, where):
    account = accounts.litellm if provider == "openai" else accounts.azure
    others = (accounts.free, accounts.mini, accounts.azure, accounts.litellm)

    def example(code: str, **names: Any) -> Any:
        code = code.replace("SELECTOR", SELECTORS[where])
        if provider == "azure":
            code = code.replace('"openai"', '"azure"').replace("user_data", "assistants")
        return way.run(code, **names)

    made = example(UPLOAD, wav_data=("speech.wav", PDF))["made"]
    [upload] = upstream.requests(method="POST")
    assert ids_at(account) == [made.id]
    assert not any(ids_at(other) for other in others if other.name != account.name)
    # Nothing of the gateway's own travels on: only what the provider's API has.
    assert upload.fields == [
        ["purpose", "user_data" if provider == "openai" else "assistants"],
        ["file", None],
    ]
    assert upload.file["filename"] == "speech.wav"
    assert upload.file["size"] == len(PDF)
    assert (made.filename, made.bytes) == ("speech.wav", len(PDF))

    # The master key sees the account as its provider does; a client that drops the body of a GET
    # asks for the caller's own files instead, which is the same one here.
    files = example(LIST)["files"]
    assert [f.id for f in files.data] == [made.id]
    file = example(RETRIEVE, file_id=made.id)["file"]
    assert (file.id, file.bytes, file.filename) == (made.id, len(PDF), "speech.wav")
    content = example(CONTENT, file_id=made.id)["content"]
    assert content.content == PDF
    response = example(DELETE, file_id=made.id)["response"]
    assert response.to_dict() == {"id": made.id, "object": "file", "deleted": True}
    assert ids_at(account) == []
    assert {seen.account for seen in upstream.requests()} == {account.name}
    assert not carriers(
        upstream.requests(), "custom_llm_provider", "custom-llm-provider", "sk-1234"
    )


def test_the_body_of_a_get_is_dropped_by_the_client_and_read_by_us(way, accounts, gateway):
    """`list(extra_body=...)` cannot work any more; curl and old clients still send it."""
    selector = {"custom_llm_provider": "azure"}
    there = way.run(
        UPLOAD.replace("SELECTOR", f"extra_body={selector}").replace("user_data", "assistants"),
        wav_data=("speech.wav", PDF),
    )["made"]
    elsewhere = way.run(
        UPLOAD.replace("SELECTOR", 'extra_body={"model": "gpt-4o-free"}'), wav_data=("b.wav", PDF)
    )["made"]

    found = way.run(LIST.replace("SELECTOR", f"extra_body={selector}"))["files"]
    assert {f.id for f in found.data} == {there.id, elsewhere.id}
    for form in (f"extra_query={selector}", 'extra_headers={"custom-llm-provider": "azure"}'):
        found = way.run(LIST.replace("SELECTOR", form))["files"]
        assert [f.id for f in found.data] == [there.id]
    path = "/v1/files" if way.v1 else "/files"
    assert [f["id"] for f in gateway.api("GET", path, json=selector).json()["data"]] == [there.id]
    by_curl = curl(
        f"curl -s -X GET {gateway.url}{path} -H 'Authorization: Bearer sk-1234' "
        f"-H 'Content-Type: application/json' -d '{json.dumps(selector)}'"
    )
    assert [f["id"] for f in by_curl["data"]] == [there.id]
    body = {"model": "gpt-4o-free"}
    found_there = gateway.api("GET", path, json=body).json()["data"]
    assert [f["id"] for f in found_there] == [elsewhere.id]
    for file_id in (there.id, elsewhere.id):
        assert gateway.api("DELETE", f"{path}/{file_id}", json=body).json()["deleted"] is True


def test_a_provider_in_the_path(gateway, accounts):
    """`/{provider}/v1/files`, as LiteLLM's pass-through documentation writes it."""
    for provider, account in (("azure", accounts.azure), ("openai", accounts.litellm)):
        base = f"/{provider}/v1/files"
        form = {"data": {"purpose": "batch"}, "files": {"file": ("rows.jsonl", ROWS)}}
        made = gateway.api("POST", base, **form).json()
        assert ids_at(account) == [made["id"]]
        assert [f["id"] for f in gateway.api("GET", base).json()["data"]] == [made["id"]]
        assert gateway.api("GET", f"{base}/{made['id']}").json()["filename"] == "rows.jsonl"
        assert gateway.api("GET", f"{base}/{made['id']}/content").content == ROWS
        assert gateway.api("DELETE", f"{base}/{made['id']}").json()["deleted"] is True
    answer = gateway.api("GET", "/vertex_ai/v1/files")
    assert answer.status_code == 400
    assert "azure, openai" in answer.json()["error"]["message"]


def test_what_openai_does_not_give_back_is_refused_in_its_own_words(way, accounts):
    made = way.run(UPLOAD.replace("SELECTOR", SELECTORS["body"]), wav_data=("speech.wav", PDF))[
        "made"
    ]
    with (
        accounts.litellm.changed(download_any=False),
        pytest.raises(openai.BadRequestError, match="download files of purpose: user_data"),
    ):
        way.run(CONTENT.replace("SELECTOR", SELECTORS["body"]), file_id=made.id)


# ------------------------------------------------------- several accounts, by `model`

CREATE_BY_MODEL = """
    from openai import OpenAI

    client = OpenAI(
        api_key="sk-1234", # Your LiteLLM proxy key
        base_url="http://0.0.0.0:4000"
    )

    # Create file using litellm account
    file_response = client.files.create(
        file=open("batch_data.jsonl", "rb"),
        purpose="batch",
        extra_body={"model": "gpt-4o-litellm"} # Routes to litellm key
    )
    print(f"File ID: {file_response.id}")
"""
LIST_BY_MODEL = """
    # List files for a specific account
    files = client.files.list(
        extra_body={"model": "gpt-4o-free"} # List free files
    )
"""
MIGRATION_OLD = """
    made = client.files.create(file=open("batch_data.jsonl", "rb"), purpose="batch", extra_headers={"custom-llm-provider": "openai"})
    file_id = made.id
    again = client.files.retrieve(file_id, extra_headers={"custom-llm-provider": "openai"})
"""  # noqa: E501
MIGRATION_NEW = """
    # Specify model once on create
    file = client.files.create(file=open("batch_data.jsonl", "rb"), purpose="batch", extra_body={"model": "gpt-4o-litellm"})

    # Then just use the ID - routing is automatic
    again = client.files.retrieve(file.id) # No need to specify account
"""  # noqa: E501
MODEL_FORMS = {
    "body": 'extra_body={"model": "gpt-4o-litellm"}',
    "query": 'extra_query={"model": "gpt-4o-litellm"}',
    "header": 'extra_headers={"x-litellm-model": "gpt-4o-litellm"}',
}


@pytest.mark.parametrize(
    ("name", "form"),
    [("gpt-4o-litellm", "body"), ("gpt-4o-free", "query"), ("gpt-4o-litellm", "header")],
)
def test_a_model_names_the_account(way, accounts, upstream, name, form):
    account = accounts.litellm if name == "gpt-4o-litellm" else accounts.free
    code = CREATE_BY_MODEL.replace(MODEL_FORMS["body"], MODEL_FORMS[form])
    file = way.run(code.replace("gpt-4o-litellm", name))["file_response"]

    [upload] = upstream.requests(method="POST")
    assert upload.headers["authorization"] == f"Bearer {account.key}"
    assert upload.form == {"purpose": "batch"}
    [raw] = ids_at(account)
    assert file.id.startswith("file-bGl0ZWxsbTpmaWxlL")
    # No need to name the model again: the id says it.
    assert way.run(RETRIEVE.replace("SELECTOR", ""), file_id=file.id)["file"].id == file.id
    assert way.run(CONTENT.replace("SELECTOR", ""), file_id=file.id)["content"].content == ROWS
    chat = CHAT.replace("gpt-4o-mini-openai", name)
    assert echo(way.run(chat, file=file)["completion"])["account"] == account.name
    for selector in (
        f'extra_query={{"model": "{name}"}}',
        f'extra_headers={{"x-litellm-model": "{name}"}}',
    ):
        found = way.run(LIST.replace("SELECTOR", selector))["files"]
        assert [f.id for f in found.data] == [file.id]
    other = "gpt-4o-free" if name == "gpt-4o-litellm" else "gpt-4o-litellm"
    found = way.run(LIST.replace("SELECTOR", f'extra_query={{"model": "{other}"}}'))["files"]
    assert found.data == []
    assert way.run(DELETE.replace("SELECTOR", ""), file_id=file.id)["response"].id == file.id
    assert ids_at(account) == []
    assert not carriers(upstream.requests(), file.id, name)
    assert all(carriers([s], raw) for s in upstream.requests() if raw in s.path)


def test_the_old_and_the_new_way_live_side_by_side(way, accounts):
    old = way.run(MIGRATION_OLD)
    assert old["again"].id == old["file_id"] in ids_at(accounts.litellm)
    new = way.run(MIGRATION_NEW)
    assert new["again"].id == new["file"].id not in ids_at(accounts.litellm)
    assert len(ids_at(accounts.litellm)) == 2
    files = way.run(LIST_BY_MODEL.replace("extra_body", "extra_query").replace("free", "litellm"))
    assert len(files["files"].data) == 2
    files = way.run(LIST_BY_MODEL.replace("extra_body", "extra_query"))
    assert files["files"].data == []


# ------------------------------------------------------- managed files

STORE = """
    from openai import OpenAI

    client = OpenAI(base_url="http://0.0.0.0:4000", api_key="sk-1234", max_retries=0)

    file = client.files.create(
        file=open("2403.05530.pdf", "rb"),
        purpose="assistants", # can be any openai 'purpose' value
        extra_body={"target_model_names": "gpt-4o-mini-openai, azure-gpt-4o"}, # Specify model_names
    )

    print(f"file id={file.id}")
"""
CHAT = """
    completion = client.chat.completions.create(
        model="gpt-4o-mini-openai",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is in this recording?"},
                    {
                        "type": "file",
                        "file": {
                            "file_id": file.id,
                        },
                    },
                ],
            },
        ]
    )

    print(completion.choices[0].message)
"""
COMPLETE = """
    import base64
    import requests
    from openai import OpenAI

    client = OpenAI(base_url="http://0.0.0.0:4000", api_key="sk-1234", max_retries=0)

    # Read the local PDF file
    file = client.files.create(
        file=open("2403.05530.pdf", "rb"),
        purpose="assistants", # can be any openai 'purpose' value
        extra_body={"target_model_names": "gpt-4o-mini-openai, azure/gpt-4o-my-special-deployment"},
    )

    print(f"file.id: {file.id}") # Unified file id

    ## GEMINI CALL ###
    completion = client.chat.completions.create(
        model="azure-gpt-4o",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is in this recording?"},
                    {
                        "type": "file",
                        "file": {
                            "file_id": file.id,
                        },
                    },
                ],
            },
        ]
    )

    print(completion.choices[0].message)
    first = completion


    ### OPENAI CALL ###
    completion = client.chat.completions.create(
        model="gpt-4o-mini-openai",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is in this recording?"},
                    {
                        "type": "file",
                        "file": {
                            "file_id": file.id,
                        },
                    },
                ],
            },
        ],
    )

    print(completion.choices[0].message)
"""
MANAGED_RETRIEVE = """
    client = OpenAI(base_url="http://0.0.0.0:4000", api_key="sk-1234", max_retries=0)

    file = client.files.retrieve(file_id=file.id)
"""
MANAGED_DELETE = """
    client = OpenAI(base_url="http://0.0.0.0:4000", api_key="sk-1234", max_retries=0)

    file = client.files.delete(file_id=file.id)
"""
MANAGED_LIST = """
    client = OpenAI(base_url="http://0.0.0.0:4000", api_key="sk-1234", max_retries=0)

    files = client.files.list(extra_body={"target_model_names": "gpt-4o-mini-openai"})

    print(files) # All files user has created
"""
TARGETS = 'extra_body={"target_model_names": "gpt-4o-mini-openai, azure-gpt-4o"}'


@pytest.mark.parametrize(
    "form",
    [
        TARGETS,
        'extra_query={"target_model_names": "gpt-4o-mini-openai, azure-gpt-4o"}',
        'extra_headers={"x-litellm-target-model-names": "gpt-4o-mini-openai, azure-gpt-4o"}',
        'extra_body={"target_model_names": ["gpt-4o-mini-openai", "azure-gpt-4o"]}',
    ],
    ids=["body", "query", "header", "list"],
)
def test_one_id_for_two_providers(way, accounts, upstream, form):
    file = way.run(STORE.replace(TARGETS, form))["file"]
    [in_openai], [in_azure] = ids_at(accounts.mini), ids_at(accounts.azure)
    assert not ids_at(accounts.litellm) + ids_at(accounts.free)
    for upload in upstream.requests(method="POST"):
        assert upload.form == {"purpose": "assistants"}
        assert (upload.file["filename"], upload.file["size"]) == ("2403.05530.pdf", len(PDF))

    told = echo(way.run(CHAT, file=file)["completion"])
    assert (told["account"], told["model"]) == ("mini", "gpt-4o-mini")
    told = echo(
        way.run(CHAT.replace("gpt-4o-mini-openai", "azure-gpt-4o"), file=file)["completion"]
    )
    assert (told["account"], told["deployment"]) == ("azure", "gpt-4o-my-special-deployment")

    shown = way.run(MANAGED_RETRIEVE, file=file)["file"]
    assert (shown.id, shown.filename, shown.bytes) == (file.id, "2403.05530.pdf", len(PDF))
    for selector in ("extra_body", "extra_query"):
        listing = MANAGED_LIST.replace("extra_body", selector)
        assert [f.id for f in way.run(listing)["files"].data] == [file.id]
    gone = way.run(MANAGED_DELETE, file=file)["file"]
    assert gone.to_dict() == {"id": file.id, "object": "file", "deleted": True}
    assert not ids_at(accounts.mini) + ids_at(accounts.azure)
    mini, azure = upstream.requests("mini"), upstream.requests("azure")
    assert not carriers(mini + azure, file.id, "target_model_names", "sk-1234")
    assert not carriers(mini, in_azure, accounts.azure.key)
    assert not carriers(azure, in_openai, accounts.mini.key)


def test_the_complete_example(way, accounts):
    left = way.run(COMPLETE)
    assert echo(left["first"])["account"] == "azure"
    assert echo(left["completion"])["account"] == "mini"
    assert echo(left["completion"])["file_ids"] == [left["file"].id]
    path = f"{'/v1' if way.v1 else ''}/files/{left['file'].id}/delete"
    assert way.gateway.api("POST", path).json()["deleted"] is True


def test_a_purpose_that_one_provider_does_not_take_is_told_in_its_words(way, accounts):
    """Azure takes no `user_data`, so the example's own purpose fails beside Azure, whole."""
    with pytest.raises(openai.BadRequestError, match=r"'azure-gpt-4o'.*Invalid value for purpose"):
        way.run(STORE.replace("assistants", "user_data"))
    assert not ids_at(accounts.mini) + ids_at(accounts.azure)
    code = STORE.replace("assistants", "user_data").replace(", azure-gpt-4o", "")
    assert way.run(code)["file"].purpose == "user_data"


# ------------------------------------------------------- users, keys, permissions

NEW_USER = """\
curl -L -X POST 'http://0.0.0.0:4000/user/new' \\
-H 'Authorization: Bearer sk-1234' \\
-H 'Content-Type: application/json' \\
-d '{"models": ["gpt-4o-mini-openai"], "user_id": "user_123"}'
"""
USER_UPLOADS = """
    from openai import OpenAI

    client = OpenAI(
        base_url="http://0.0.0.0:4000",
        api_key="sk-...", # Use the key you generated in step 3
        max_retries=0
    )

    # Upload file
    finetuning_input_file = client.files.create(
        file=open("./fine_tuning.jsonl", "rb"), # {"model": "azure-gpt-4o"} <-> {"model": "gpt-4o-my-special-deployment"}
        purpose="fine-tune",
        extra_body={"target_model_names": "gpt-4o-mini-openai"} # Tells litellm which regions/projects to write the file in.
    )

    print(finetuning_input_file)
"""  # noqa: E501
USER_RETRIEVES = """
    file = client.files.retrieve(
        file_id=finetuning_input_file.id
    )

    print(file) # File retrieved successfully
"""
USER_DID_NOT_CREATE = f"""
    try:
        file = client.files.retrieve(
            file_id="{SEEDS_ID}"
        )
    except Exception as e:
        print(e) # User does not have access to this file
        refusal = e
"""


def curl(command: str) -> Any:
    if shutil.which("curl") is None:
        missing("curl is not installed")
    done = subprocess.run(
        ["bash", "-euc", command], capture_output=True, text=True, check=True, timeout=20
    )
    return json.loads(done.stdout)


def test_a_users_file_is_his(way, accounts, upstream, tmp_path):
    command = NEW_USER.replace("http://0.0.0.0:4000", way.gateway.url)
    # The example runs once; each way gets a user of its own.
    user = f"user_123{way.is_async:d}{way.v1:d}" if way.is_async or way.v1 else "user_123"
    answer = curl(command.replace("user_123", user))
    assert answer["key"].startswith("sk-")
    assert (answer["user_id"], answer["models"]) == (user, ["gpt-4o-mini-openai"])
    assert answer["key_name"] == "sk-..." + answer["key"][-4:]
    expected = {
        *("token", "user_role", "expires", "created_at", "metadata", "key_alias"),
        *("key", "key_name", "user_id", "models"),
    }
    assert expected <= set(answer)

    left = way.run(USER_UPLOADS, key=answer["key"])
    file = left["finetuning_input_file"]
    assert file.purpose == "fine-tune"
    assert ids_at(accounts.mini)
    shown = way.run(USER_RETRIEVES, key=answer["key"], finetuning_input_file=file)["file"]
    assert shown.id == file.id

    stranger = way.gateway.new_user(models=["gpt-4o-mini-openai"])["key"]
    upstream.forget_requests()
    refusal = way.run(USER_DID_NOT_CREATE.replace(SEEDS_ID, file.id), key=stranger)["refusal"]
    assert isinstance(refusal, openai.PermissionDeniedError)
    assert "does not have access to the file" in str(refusal)
    # The id that the example shows is nobody's here.
    missing = way.run(USER_DID_NOT_CREATE, key=stranger)["refusal"]
    assert isinstance(missing, openai.NotFoundError)
    assert upstream.requests() == []
    for name, error in (
        ("azure-gpt-4o", openai.PermissionDeniedError),
        ("gpt-4.1-openai", openai.BadRequestError),
    ):
        other = USER_UPLOADS.replace("gpt-4o-mini-openai", name)
        with pytest.raises(error, match=name):
            way.run(other, key=answer["key"])
    assert upstream.requests() == []


def test_the_models_that_a_key_may_name_are_listed(way, gateway):
    """The example says: check /v1/models for the names that `target_model_names` takes."""
    key = gateway.new_user(models=["gpt-4o-mini-openai"])["key"]
    code = "names = [m.id for m in (client.models.list()).data]"
    assert way.run(code)["names"] == [
        *("gpt-4o-litellm", "gpt-4o-free", "gpt-4o-mini-openai", "azure-gpt-4o", "local-llama"),
    ]
    assert way.run(code, key=key)["names"] == ["gpt-4o-mini-openai"]


# ------------------------------------------------------- configuration

CONFIGURATIONS = {
    "files endpoints": """
        # for /files endpoints
        files_settings:
          - custom_llm_provider: azure
            api_base: https://exampleopenaiendpoint-production.up.railway.app
            api_key: fake-key
            api_version: "2023-03-15-preview"
          - custom_llm_provider: openai
            api_key: os.environ/OPENAI_API_KEY
        """,
    "several accounts": """
        model_list:
          # litellm OpenAI Account
          - model_name: "gpt-4o-litellm"
            litellm_params:
              model: openai/gpt-4o
              api_key: os.environ/OPENAI_LITELLM_API_KEY

          # Free OpenAI Account
          - model_name: "gpt-4o-free"
            litellm_params:
              model: openai/gpt-4o
              api_key: os.environ/OPENAI_FREE_API_KEY
        """,
    "permissions": """
        model_list:
            - model_name: "gpt-4o-mini-openai"
              litellm_params:
                model: gpt-4o-mini
                api_key: os.environ/OPENAI_API_KEY

        general_settings:
          master_key: sk-1234 # alternatively use the env var - LITELLM_MASTER_KEY
          database_url: "postgresql://<user>:<password>@<host>:<port>/<dbname>" # or DATABASE_URL
        """,
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_their_configuration_is_understood(name, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dedent(CONFIGURATIONS[name]))
    variables = re.findall(r"os\.environ/(\w+)", path.read_text())
    found = settings.load(path, dict.fromkeys(variables, "sk-x"), check=registry.mistakes)
    assert len(found.deployments) + len(found.file_accounts) == CONFIGURATIONS[name].count(
        "api_key:"
    )
    ids = [d.id for d in (*found.deployments, *found.file_accounts)]
    assert len(set(ids)) == len(ids)

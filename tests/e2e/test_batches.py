"""Batches as people use them: the documentation's examples, their outputs, lists, many at once."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import create_engine, text

from tests.e2e import inside
from tests.e2e.batching import CHAT, QUICK, SHORT_CHAT, bytes_at, ended, start, upload
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Seeds, Upstream, model, seeds, wait_until
from tests.e2e.test_seeds import Way
from tests.e2e.upstream_jobs import by_custom_id, custom_ids, rows

MASTER = "sk-1234"


def query(gateway: Gateway, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    """What the gateway's SQLite database answers."""
    engine = create_engine(f"sqlite:///{gateway.data_dir / 'manifold.db'}")
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql), values)]
    finally:
        engine.dispose()


@pytest.fixture(autouse=True)
def _nothing_strange(upstream: Upstream) -> Iterator[None]:
    yield
    assert not upstream.unexpected()


# -------------------------------------------------------------------- the documentation's examples


@pytest.fixture(scope="module")
def accounts(upstream: Upstream) -> Seeds:
    return seeds(upstream, batch_delay_s=0, job_delay_s=0)


@pytest.fixture(scope="module")
def seeds_gateway(accounts: Seeds, start_gateway: StartGateway) -> Gateway:
    general = {"master_key": MASTER, **QUICK}
    return start_gateway({**accounts.config, "general_settings": general}, workers=1)


@pytest.fixture(
    params=[(False, False), (False, True), (True, False), (True, True)],
    ids=["sync", "sync v1", "async", "async v1"],
)
def way(
    request: pytest.FixtureRequest,
    seeds_gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Way:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Path("batch_data.jsonl").write_bytes(rows(3, "gpt-4o-litellm"))
    return Way(seeds_gateway, *request.param)


MULTI_ACCOUNT = """
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

    # Create batch using the encoded file ID
    # No need to specify model again - it's embedded in the file ID
    batch_response = client.batches.create(
        input_file_id=file_response.id, # Encoded ID
        endpoint="/v1/chat/completions",
        completion_window="24h"
    )

    # Retrieve batch - routing happens automatically
    batch_status = client.batches.retrieve(batch_response.id)

    # List files for a specific account
    files = client.files.list(
        extra_body={"model": "gpt-4o-free"} # List free files
    )

    # List batches for a specific account
    batches = client.batches.list(
        extra_query={"model": "gpt-4o-litellm"} # List litellm batches
    )
"""


def test_the_multi_account_example(way, accounts):
    before = len(accounts.litellm.batches())
    names = way.run(MULTI_ACCOUNT)
    file_id, batch_id = names["file_response"].id, names["batch_response"].id
    # As the documentation shows them: file-bGl0ZWxsbTp..., a batch likewise.
    assert file_id.startswith("file-bGl0ZWxsbTpmaWxl")
    assert batch_id.startswith("batch_bGl0ZWxsbTpiYXRjaF")
    assert names["batch_status"].id == batch_id
    assert names["batches"].data[0].id == batch_id
    assert not accounts.free.batches()
    assert not accounts.mini.batches()
    [made] = accounts.litellm.batches()[before:]
    assert made["input_file_id"] == accounts.litellm.files()[-1]["id"] or made["output_file_id"]
    with closing(way.gateway.client(MASTER)) as client:
        done = ended(client, batch_id)
        answers = by_custom_id(client.files.content(done.output_file_id).read())
    assert set(answers) == set(custom_ids(3))
    assert {line["response"]["body"]["model"] for line in answers.values()} == {"gpt-4o"}


@pytest.mark.parametrize("form", ["extra_headers", "extra_body", "extra_query", "path"])
def test_the_provider_examples(seeds_gateway, accounts, form):
    for provider, account, name, url in (
        ("openai", accounts.litellm, "gpt-4o", CHAT),
        ("azure", accounts.azure, "gpt-4o-my-special-deployment", SHORT_CHAT),
    ):
        key = "custom-llm-provider" if form == "extra_headers" else "custom_llm_provider"
        more: dict[str, Any] = {} if form == "path" else {form: {key: provider}}
        with openai.OpenAI(
            base_url=seeds_gateway.url + (f"/{provider}/v1" if form == "path" else ""),
            api_key=MASTER,
            max_retries=0,
        ) as typed:
            client: Any = typed
            made = client.files.create(
                file=("in.jsonl", rows(3, name, url=url)), purpose="batch", **more
            )
            assert made.id == account.files()[-1]["id"]
            # OpenAI's spelling of the endpoint goes with any provider.
            batch = client.batches.create(
                input_file_id=made.id, endpoint=CHAT, completion_window="24h", **more
            )
            assert batch.id == account.batches()[-1]["id"]
            assert account.batches()[-1]["endpoint"] == url
            done = ended(client, batch.id, **more)
            assert (done.id, done.status, done.endpoint) == (batch.id, "completed", CHAT)
            assert set(by_custom_id(client.files.content(done.output_file_id, **more).read())) == (
                set(custom_ids(3))
            )
            listed = client.batches.list(limit=100, **more)
            assert batch.id in [each.id for each in listed]
            if form != "extra_body":  # The client sends no body with a GET.
                assert {each.id for each in listed} <= {b["id"] for b in account.batches()}
            # Afterwards nobody has to name the provider.
            assert client.batches.retrieve(batch.id) == done


def test_the_managed_example_runs_on_azure(way, accounts):
    """ "{"model": "azure-gpt-4o"} <-> {"model": "gpt-4o-my-special-deployment"}", in a batch."""
    Path("batch_data.jsonl").write_bytes(rows(4, "azure-gpt-4o", fail=[2]))
    names = way.run(
        """
        from openai import OpenAI

        client = OpenAI(base_url="http://0.0.0.0:4000", api_key="sk-1234", max_retries=0)

        file = client.files.create(
            file=open("batch_data.jsonl", "rb"),
            purpose="batch",
            extra_body={"target_model_names": "azure-gpt-4o"},
        )
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        """
    )
    assert accounts.azure.batches()[-1]["endpoint"] == SHORT_CHAT
    with closing(way.gateway.client(MASTER)) as client:
        done = ended(client, names["batch"].id)
        assert (done.status, done.endpoint) == ("completed", CHAT)
        assert (done.request_counts.completed, done.request_counts.failed) == (3, 1)
        assert set(by_custom_id(client.files.content(done.error_file_id).read())) == {"row-2"}


# -------------------------------------------------------------------- as other engineers see them


def configuration(house: tuple[Account, Account], **general: Any) -> dict[str, Any]:
    east, west = house
    return {
        "model_list": [
            model("a", "openai/gpt-4o", east),
            model("b", "azure/dep", west),
        ],
        "files_settings": [{"custom_llm_provider": "openai", **east.params}],
        "general_settings": {**QUICK, **general},
    }


@pytest.fixture(scope="module")
def house(upstream: Upstream) -> tuple[Account, Account]:
    return (
        upstream.account("east", batch_delay_s=0),
        upstream.account("west", "azure", batch_delay_s=0, models=["dep"]),
    )


@pytest.fixture(scope="module")
def gateway(house: tuple[Account, Account], start_gateway: StartGateway) -> Gateway:
    """Two processes of gunicorn and the background worker."""
    return start_gateway(configuration(house), workers=2, worker=True)


@pytest.fixture(scope="module")
def people(gateway: Gateway) -> dict[str, Any]:
    names = ("alice", "bob")
    clients = {name: gateway.client(gateway.new_user(user_id=name)["key"]) for name in names}
    return {**clients, "root": gateway.client()}


def test_many_looks_at_the_end_give_one_output_and_one_row(gateway, house, people):
    alice, root = people["alice"], people["root"]
    east, _ = house
    file_id = upload(alice, rows(20, "a", fail={7}), target_model_names="a")
    with east.changed(batch_delay_s=1.5):
        ids = [start(alice, file_id).id for _ in range(3)]

        def watch(number: int) -> list[tuple[str, str | None, str | None]]:
            who = root if number % 3 == 0 else alice
            seen = []
            end = time.monotonic() + 15
            turns = itertools.cycle(ids)
            open_ones = set(ids)
            while open_ones and time.monotonic() < end:
                batch = who.batches.retrieve(next(turns))
                seen.append((batch.id, batch.output_file_id, batch.error_file_id))
                if batch.status == "completed":
                    assert batch.output_file_id
                    assert batch.error_file_id
                    open_ones.discard(batch.id)
            assert not open_ones
            return seen

        with ThreadPoolExecutor(20) as pool:
            seen = [each for found in pool.map(watch, range(20)) for each in found]
    for batch_id in ids:
        outputs = {(output, error) for found, output, error in seen if found == batch_id and output}
        [(output, error)] = outputs
        again = alice.batches.retrieve(batch_id)
        assert (again.output_file_id, again.error_file_id) == (output, error)
        for public_id in (output, error):
            [(owner, purpose)] = query(
                gateway, "SELECT owner, purpose FROM files WHERE public_id = :id", id=public_id
            )
            assert (owner, purpose) == ("user:alice", "batch_output")
    upstreams = {b[name] for b in east.batches() for name in ("output_file_id", "error_file_id")}
    copies = query(gateway, "SELECT deployment_file_id FROM copies")
    found = [raw for (raw,) in copies if raw in upstreams]
    assert len(found) == len(set(found)) == 6
    assert len(query(gateway, "SELECT id FROM files WHERE purpose = 'batch_output'")) == 6


def test_a_batch_ends_without_anybody_looking(gateway, house, people):
    alice = people["alice"]
    file_id = upload(alice, rows(4, "b"), target_model_names="b")
    made = start(alice, file_id)

    def listed() -> Any:
        [batch] = [b for b in alice.batches.list() if b.id == made.id]
        return batch if batch.status == "completed" else None

    batch = wait_until(listed)
    files = {file.id: file for file in alice.files.list()}
    assert files[batch.output_file_id].purpose == "batch_output"


def test_the_output_is_the_owner_s_whoever_looks_or_cancels_first(gateway, house, people):
    alice, bob, root = people["alice"], people["bob"], people["root"]
    east, _ = house
    for first in ("root retrieves", "root cancels", "bob tries"):
        with east.changed(batch_stay="in_progress"):
            made = start(alice, upload(alice, rows(4, "a"), model="a"))
            running(root, made.id)
            if first == "root cancels":
                assert root.batches.cancel(made.id).status == "cancelling"
        if first == "bob tries":
            for use in (bob.batches.retrieve, bob.batches.cancel):
                with pytest.raises(openai.PermissionDeniedError):
                    use(made.id)
        done = ended(root, made.id)
        assert done.status == ("cancelled" if first == "root cancels" else "completed")
        for file_id in filter(None, (done.output_file_id, done.error_file_id)):
            assert file_id in [file.id for file in alice.files.list()]
            assert file_id not in [file.id for file in bob.files.list()]
            assert file_id not in [file.id for file in root.files.list()]
            assert alice.files.content(file_id).read() == root.files.content(file_id).read()
            with pytest.raises(openai.PermissionDeniedError):
                bob.files.content(file_id)
        assert made.id in [batch.id for batch in alice.batches.list()]
        assert made.id not in [batch.id for batch in root.batches.list()]
        response = gateway.api("GET", "/v1/batches?user_id=alice&limit=100")
        assert made.id in [batch["id"] for batch in response.json()["data"]]


def test_output_files_are_files_like_all_others(gateway, house, people):
    alice, bob = people["alice"], people["bob"]
    east, _ = house
    file_id = upload(alice, rows(6, "a", fail={2}), target_model_names="a")
    done = ended(alice, start(alice, file_id).id)
    known = east.batches()[-1]
    stored = {file["id"]: file for file in east.files()}
    listed = {file.id: file for file in alice.files.list()}
    assert listed[file_id].purpose == "batch"
    for shown, raw in (
        (done.output_file_id, known["output_file_id"]),
        (done.error_file_id, known["error_file_id"]),
    ):
        file = alice.files.retrieve(shown)
        assert file == listed[shown]
        assert file.purpose == "batch_output"
        assert (file.bytes, file.filename) == (stored[raw]["size"], stored[raw]["filename"])
        assert (file.status, file.object, file.id) == ("processed", "file", shown)
        assert [f.id for f in alice.files.list(purpose="batch_output")].count(shown) == 1
        response = alice.files.with_raw_response.content(shown)
        assert response.content == bytes_at(east, raw)
        assert int(response.headers["content-length"]) == stored[raw]["size"]
        with pytest.raises(openai.PermissionDeniedError):
            bob.files.delete(shown)
        assert alice.files.delete(shown).deleted
        assert raw not in [f["id"] for f in east.files()]
        with pytest.raises(openai.NotFoundError):
            alice.files.content(shown)
        # The batch goes on naming what it made.
        again = alice.batches.retrieve(done.id)
        assert shown in (again.output_file_id, again.error_file_id)
    assert alice.files.delete(file_id).deleted
    assert alice.batches.retrieve(done.id).status == "completed"


def test_the_input_of_a_running_batch_stays(gateway, house, people):
    alice, root = people["alice"], people["root"]
    for names, account in (("a", house[0]), ("b", house[1])):
        with account.changed(batch_stay="validating"):
            file_id = upload(alice, rows(2, names), target_model_names=names)
            made = start(alice, file_id)
            for who in (alice, root):
                with pytest.raises(openai.ConflictError) as refused:
                    who.files.delete(file_id)
                assert refused.value.code == "file_in_use"
                assert made.id in refused.value.message
            assert alice.files.retrieve(file_id).id == file_id
        ended(alice, made.id)
        assert alice.files.delete(file_id).deleted


def test_the_list_keeps_up_with_the_upstream(gateway, house, people):
    alice, (_, west) = people["alice"], house
    file_id = upload(alice, rows(2, "b"), target_model_names="b")
    with west.changed(batch_stay="validating"):
        made = start(alice, file_id)
        for stay in ("validating", "in_progress", "finalizing", None):
            west.upstream.control("PATCH", "/accounts", {"name": "west", "batch_stay": stay})
            wanted = (made.id, stay or "completed")
            wait_until(partial(is_listed, alice, wanted))


def is_listed(client: Any, wanted: tuple[str, str]) -> bool:
    return wanted in [(batch.id, batch.status) for batch in client.batches.list()]


def running(client: Any, batch_id: str) -> None:
    wait_until(lambda: client.batches.retrieve(batch_id).status == "in_progress")


@pytest.mark.parametrize(
    "oddity",
    [
        *({"capitalised": True}, {"iso_dates": True}, {"sparse": True}, {"list_as_value": True}),
        {"capitalised": True, "iso_dates": True, "sparse": True},
    ],
    ids=str,
)
def test_azure_s_ways_of_writing_are_openai_s_to_the_client(gateway, house, people, oddity):
    alice = people["alice"]
    _, west = house
    with west.changed(**oddity):
        file_id = upload(alice, rows(3, "b", fail={1}), target_model_names="b")
        made = start(alice, file_id, metadata={"a": "b"})
        done = ended(alice, made.id)
    assert (done.status, done.endpoint, done.metadata) == ("completed", CHAT, {"a": "b"})
    assert abs(done.created_at - time.time()) < 60
    assert (done.input_file_id, done.completion_window, done.object) == (file_id, "24h", "batch")
    assert abs(done.completed_at - time.time()) < 60
    if not oddity.get("sparse"):
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert set(by_custom_id(alice.files.content(done.output_file_id).read())) == {"row-2", "row-3"}
    assert set(by_custom_id(alice.files.content(done.error_file_id).read())) == {"row-1"}


@pytest.mark.parametrize("end", ["failed", "expired"])
def test_other_ends(gateway, house, people, end):
    alice = people["alice"]
    east, _ = house
    with east.changed(batch_end=end):
        done = ended(alice, start(alice, upload(alice, rows(4, "a"), model="a")).id)
        assert done.status == end
        if end == "failed":
            assert done.errors.data[0].code == "token_limit_exceeded"
            assert (done.output_file_id, done.failed_at is None) == (None, False)
        else:
            answers = by_custom_id(alice.files.content(done.error_file_id).read())
            assert {line["error"]["code"] for line in answers.values()} == {"batch_expired"}
        with pytest.raises(openai.ConflictError):
            alice.batches.cancel(done.id)


def test_an_empty_error_file_of_azure_s(gateway, house, people):
    alice = people["alice"]
    done = ended(alice, start(alice, upload(alice, rows(2, "b"), target_model_names="b")).id)
    assert alice.files.content(done.error_file_id).read() == b""
    assert alice.files.retrieve(done.error_file_id).bytes == 0


def test_the_row_answers_while_the_upstream_does_not(gateway, house, people):
    alice = people["alice"]
    east, _ = house
    with east.changed(batch_stay="in_progress"):
        made = start(alice, upload(alice, rows(2, "a"), model="a"))
        running(alice, made.id)
        fault = {"method": "GET", "path_prefix": "/v1/batches", "status": 401}
        east.fail(**fault)
        assert alice.batches.retrieve(made.id).status == "in_progress"
        east.upstream.clear_faults()
    done = ended(alice, made.id)
    east.fail(**fault)
    assert alice.batches.retrieve(made.id) == done


# -------------------------------------------------------------------- several models, several lists


def test_of_several_models_one_must_be_named(gateway, house, people, upstream):
    alice = people["alice"]
    content = rows(2, "a", replace={2: rows(1, "b", first=2).decode().strip()})
    file_id = upload(alice, content, target_model_names="a, b")
    upstream.forget_requests()
    with pytest.raises(openai.BadRequestError) as refused:
        start(alice, file_id)
    assert refused.value.param == "model"
    assert "a, b" in refused.value.message
    with pytest.raises(openai.BadRequestError):
        start(alice, file_id, extra_body={"model": "nobody"})
    assert upstream.requests() == []
    for name, account in (("a", house[0]), ("b", house[1])):
        before = len(account.batches())
        for place in (
            {"extra_body": {"model": name}},
            {"extra_headers": {"x-litellm-model": name}},
        ):
            assert ended(alice, start(alice, file_id, **place).id).status == "completed"
        assert len(account.batches()) == before + 2


@pytest.fixture(scope="module")
def crowd(gateway: Gateway, house: tuple[Account, Account]) -> dict[str, list[str]]:
    """50 batches of Anna's between 50 of Ben's; their ids, newest first."""
    clients = {
        name: gateway.client(gateway.new_user(user_id=name)["key"]) for name in ("anna", "ben")
    }
    files = {
        (name, to): upload(client, rows(1, to), target_model_names=to)
        for name, client in clients.items()
        for to in ("a", "b")
    }
    made: dict[str, list[str]] = {"anna": [], "ben": []}
    for number in range(50):
        for name, client in clients.items():
            file_id = files[name, "a" if number % 5 else "b"]
            made[name].insert(0, start(client, file_id).id)
    return made


@pytest.mark.parametrize("limit", [1, 7, 20, 50, 100])
def test_a_list_pages_to_exactly_the_caller_s_own(gateway, crowd, limit):
    for name in ("anna", "ben"):
        key = gateway.api("POST", "/key/generate", json={"user_id": name}).json()["key"]
        with closing(gateway.client(key)) as client:
            assert [batch.id for batch in client.batches.list(limit=limit)] == crowd[name]
            page = client.batches.list(limit=limit)
            assert [batch.id for batch in page.data] == crowd[name][:limit]
            assert page.has_more == (limit < 50)
            assert len(client.batches.list().data) == 20
            rest = client.batches.list(limit=100, after=crowd[name][29])
            assert [batch.id for batch in rest.data] == crowd[name][30:]


async def _all(gateway: Gateway, key: str) -> list[str]:
    async with gateway.async_client(key) as client:
        return [batch.id async for batch in client.batches.list(limit=9)]


def test_an_asynchronous_client_pages_too(gateway, crowd):
    key = gateway.api("POST", "/key/generate", json={"user_id": "anna"}).json()["key"]
    assert asyncio.run(_all(gateway, key)) == crowd["anna"]


def test_lists_are_narrowed_by_model_and_provider(gateway, crowd):
    key = gateway.api("POST", "/key/generate", json={"user_id": "anna"}).json()["key"]

    def listed(**parameters: str) -> list[str]:
        response = gateway.api("GET", "/v1/batches", key=key, params={"limit": "100", **parameters})
        assert response.status_code == 200, response.text
        return [batch["id"] for batch in response.json()["data"]]

    to_b = [batch_id for number, batch_id in enumerate(reversed(crowd["anna"])) if number % 5 == 0]
    to_b.reverse()
    to_a = [batch_id for batch_id in crowd["anna"] if batch_id not in to_b]
    assert listed(target_model_names="b") == to_b
    assert listed(target_model_names="a") == to_a
    assert listed(target_model_names="a,b") == crowd["anna"]
    assert listed(model="b") == to_b
    assert listed(model="a") == to_a
    assert listed(custom_llm_provider="openai") == []
    in_body = gateway.api("GET", "/v1/batches?limit=100", key=key, json={"model": "b"})
    assert [batch["id"] for batch in in_body.json()["data"]] == to_b


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": "1.5"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"after": "batch_nobody"}, "after"),
        ({"after": "\0"}, "after"),
        ({"after": "x" * 5000}, "after"),
        ({"model": "nobody"}, "model"),
        ({"custom_llm_provider": "nobody"}, "custom_llm_provider"),
        ({"model": "a", "custom_llm_provider": "openai"}, "model"),
    ],
)
def test_bad_parameters_of_a_list_are_named(gateway, crowd, upstream, parameters, param):
    upstream.forget_requests()
    response = gateway.api("GET", "/v1/batches", params=parameters)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_another_s_cursor_is_no_cursor(gateway, crowd):
    key = gateway.api("POST", "/key/generate", json={"user_id": "anna"}).json()["key"]
    response = gateway.api("GET", f"/v1/batches?after={crowd['ben'][3]}", key=key)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "after")
    response = gateway.api("GET", "/v1/batches?user_id=ben", key=key)
    assert response.status_code == 403


def test_a_restart_changes_nothing(house, start_gateway):
    gateway = start_gateway(configuration(house), workers=1)
    key = gateway.new_user(user_id="rosa")["key"]
    with closing(gateway.client(key)) as client:
        made = start(client, upload(client, rows(2, "a"), target_model_names="a"))
        done = ended(client, made.id)
    gateway.kill()
    gateway.start()
    with closing(gateway.client(key)) as client:
        assert client.batches.retrieve(made.id) == done
        assert [batch.id for batch in client.batches.list()] == [made.id]
        assert len(client.files.content(done.output_file_id).read()) > 0
    assert inside.spooled(gateway) == []

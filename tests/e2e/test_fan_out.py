"""One upload goes to every account of every named model; one id comes back and works with all."""

import concurrent.futures
import hashlib
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import openai
import psycopg
import pytest

from app.api.form import IN_MEMORY_BYTES
from tests.e2e.asking import ask, ask_responses, carriers, echo
from tests.e2e.conftest import StartGateway, missing
from tests.e2e.gateway import Account, Gateway, Upstream, model, wait_until

ROWS = b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
POSTGRES = os.environ.get("MANIFOLD_TEST_POSTGRES")


def entry(deployment: str, name: str, upstream_model: str, account: Account, **more) -> Any:
    """A deployment with an id of its own; a second try would only make these tests slow."""
    made = model(name, upstream_model, account, **{"max_retries": 0, **more})
    return {**made, "model_info": {"id": deployment}}


@dataclass(frozen=True)
class House:
    """A gateway in front of three accounts: two for the model `a`, one for the model `b`."""

    gateway: Gateway
    east: Account
    west: Account
    other: Account

    @property
    def accounts(self) -> tuple[Account, Account, Account]:
        return (self.east, self.west, self.other)

    def upload(
        self, names: str = "a, b", purpose: Any = "fine-tune", name: str = "rows.jsonl"
    ) -> Any:
        with closing(self.gateway.client()) as client:
            return client.files.create(
                file=(name, ROWS), purpose=purpose, extra_body={"target_model_names": names}
            )

    def stored(self) -> dict[str, list[str]]:
        """The ids that each account has for what it holds now."""
        return {account.name: [f["id"] for f in account.files()] for account in self.accounts}


def configuration(east: Account, west: Account, other: Account) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        refusing = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
    return {
        "model_list": [
            entry("a-east", "a", "openai/gpt-4o", east, timeout=1),
            entry("a-west", "a", "azure/gpt-4o-west", west, timeout=1),
            entry("west-alone", "west", "azure/gpt-4o-west", west),
            entry("b-other", "b", "openai/gpt-4o-mini", other, timeout=1),
            entry("half-there", "half", "openai/gpt-4o", east),
            entry("half-refused", "half", "openai/gpt-4o", east, api_base=refusing),
            entry("gone", "gone", "openai/gpt-4o", east, api_base=refusing),
        ],
        "files_settings": [{"custom_llm_provider": "azure", **west.params}],
        "router_settings": {"cooldown_time": 0},
    }


@pytest.fixture(scope="module")
def house(upstream: Upstream, start_gateway: StartGateway) -> House:
    east, other = (upstream.account(name) for name in ("east", "other"))
    west = upstream.account("west", "azure", models=["gpt-4o-west"])
    gateway = start_gateway(configuration(east, west, other), workers=1)
    return House(gateway, east, west, other)


@pytest.fixture(autouse=True)
def _clean(house: House, upstream: Upstream) -> Iterator[None]:
    yield
    with closing(house.gateway.client()) as client:
        for file in client.files.list():
            client.files.delete(file.id)
    assert not upstream.unexpected()


def the_main_story(house: House, upstream: Upstream) -> None:
    """Upload to all at once, use everywhere, delete everywhere."""
    client = house.gateway.client()
    east, west, other = house.accounts
    with (
        east.changed(upload_delay_s=0.6),
        west.changed(upload_delay_s=0.6),
        other.changed(upload_delay_s=0.6),
    ):
        begun = time.monotonic()
        file = house.upload("a, b")
        assert time.monotonic() - begun < 1.6
    [first], [second], [third] = (account.uploads() for account in house.accounts)
    assert first.overlaps(second)
    assert second.overlaps(third)
    assert first.overlaps(third)
    assert {seen.file["sha256"] for seen in (first, second, third) if seen.file} == {
        east.files()[0]["sha256"]
    }
    assert (file.filename, file.bytes, file.purpose) == ("rows.jsonl", len(ROWS), "fine-tune")
    # `a` has a copy that is ready at once, in the east; so it is processed for every model.
    assert file.status == "processed"

    raw = house.stored()
    assert [len(ids) for ids in raw.values()] == [1, 1, 1]
    used: Counter[str] = Counter()
    for _ in range(16):
        told = echo(client.chat.completions.create(model="a", messages=ask(file.id)))
        used[told["account"]] += 1
        # The fake has checked that it was its own id; what comes back names ours again.
        assert told["file_ids"] == [file.id]
    assert set(used) == {"east", "west"}
    told = echo(client.chat.completions.create(model="b", messages=ask(file.id)))
    assert (told["account"], told["model"]) == ("other", "gpt-4o-mini")
    answer = client.responses.create(model="b", input=ask_responses(file.id))
    assert file.id in answer.output_text
    chats = upstream.requests(path_prefix="/", method="POST")
    for account in house.accounts:
        sent = [s for s in chats if s.account == account.name and "/files" not in s.path]
        assert sent
        assert all(carriers([s], *raw[account.name]) for s in sent)

    assert client.files.content(file.id).read() == ROWS
    assert [f.id for f in client.files.list()] == [file.id]
    assert client.files.delete(file.id).to_dict() == {
        "id": file.id,
        "object": "file",
        "deleted": True,
    }
    assert house.stored() == {"east": [], "west": [], "other": []}
    assert_nobody_got_a_strange_id(house, upstream, raw, file.id)


def assert_nobody_got_a_strange_id(
    house: House, upstream: Upstream, raw: dict[str, list[str]], *managed: str
) -> None:
    for account in house.accounts:
        strange = [id_ for name, ids in raw.items() if name != account.name for id_ in ids]
        assert not carriers(upstream.requests(account.name), *managed, *strange)
        assert not carriers(upstream.requests(account.name), house.gateway.master_key)


def test_one_id_for_three_accounts(house, upstream):
    the_main_story(house, upstream)


@pytest.mark.parametrize("size", [1, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 1024 * 1024])
def test_a_file_of_any_size_arrives_as_it_was(house, size):
    """What is small goes from memory, what is larger from the disk."""
    content = os.urandom(size)
    with closing(house.gateway.client()) as client:
        file = client.files.create(
            file=("a.bin", content),
            purpose="assistants",
            extra_body={"target_model_names": "a, b"},
        )
        assert file.bytes == size
    digest = hashlib.sha256(content).hexdigest()
    for account in house.accounts:
        assert [stored["sha256"] for stored in account.files()] == [digest]


def test_the_same_with_postgresql(house, upstream, start_gateway):
    if POSTGRES is None:
        missing("MANIFOLD_TEST_POSTGRES is not set")
    name = f"fan_out_{uuid.uuid4().hex}"
    with closing(psycopg.connect(POSTGRES, autocommit=True)) as server:
        server.execute(f"CREATE DATABASE {name}")
        url = POSTGRES.rpartition("/")[0] + f"/{name}"
        gateway = start_gateway(configuration(*house.accounts), workers=1, database_url=url)
        try:
            theirs = House(gateway, *house.accounts)
            the_main_story(theirs, upstream)
            file = theirs.upload()
            gateway.kill()
            gateway.start()
            assert gateway.client().files.delete(file.id).deleted
            assert theirs.stored() == {"east": [], "west": [], "other": []}
        finally:
            gateway.kill()
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    "fields",
    [
        [("target_model_names", "a,b")],
        [("target_model_names", "a , b")],
        [("target_model_names", "a"), ("target_model_names", "b")],
        [("target_model_names[]", "a"), ("target_model_names[]", "b")],
        [("target_model_names[0]", "a"), ("target_model_names[1]", "b")],
        [("target_model_names", '["a", "b"]')],
        [("target_model_names", "a, b, a")],
    ],
    ids=["comma", "blanks", "repeated", "brackets", "numbered", "json", "twice"],
)
def test_names_may_be_written_in_every_way(house, fields):
    file = house.gateway.api(
        "POST",
        "/v1/files",
        data=[("purpose", "fine-tune"), *fields],
        files={"file": ("rows.jsonl", ROWS)},
    ).json()

    client = house.gateway.client()
    assert {len(ids) for ids in house.stored().values()} == {1}
    for names in ("a", "b", "a,b"):
        listed = client.files.list(extra_query={"target_model_names": names})
        assert [f.id for f in listed] == [file["id"]]
    assert [f.id for f in client.files.list(extra_query={"target_model_names": "half"})] == []


@pytest.mark.parametrize(
    "how",
    [
        {"status": 500, "body": {"error": {"message": "the west is on fire"}}},
        {"close": "before_body"},
        {"hang": True},
        {"status": 401},
    ],
    ids=["error", "broken", "hanging", "credential"],
)
def test_one_account_down_of_a_model_with_two_is_no_failure(house, upstream, how):
    house.west.fail(method="POST", path_regex="/files$", **how)

    file = house.upload("a, b")

    assert file.status == "processed"
    assert {name: len(ids) for name, ids in house.stored().items()} == {
        "east": 1,
        "west": 0,
        "other": 1,
    }
    client = house.gateway.client()
    for _ in range(6):
        told = echo(client.chat.completions.create(model="a", messages=ask(file.id)))
        assert told["account"] == "east"
    copies = house.gateway.api("GET", f"/v1/files/{file.id}?include=copies").json()["copies"]
    west = next(copy for copy in copies if copy["deployment"] == "a-west")
    assert (west["provider_file_id"], bool(west["last_error"])) == (None, True)
    assert west["state"] in ("missing", "uploading")
    assert client.files.delete(file.id).deleted
    assert not any(house.stored().values())


def test_only_the_slow_account_is_ready_later(house):
    with house.west.changed(polls_until_processed=1):
        file = house.upload("west, b")
        assert file.status == "uploaded"
        client = house.gateway.client()
        assert client.files.retrieve(file.id).status == "uploaded"
        assert client.files.retrieve(file.id).status == "processed"
    polls = len(house.west.requests(method="GET"))
    assert client.files.retrieve(file.id).status == "processed"
    assert len(house.west.requests(method="GET")) == polls


def test_a_file_that_its_provider_cannot_read_says_so(house):
    client = house.gateway.client()
    for names, status in (("west", "error"), ("west, b", "error"), ("a", "processed")):
        with house.west.changed(final_status="error"):
            shown = client.files.retrieve(house.upload(names).id)
        assert shown.status == status
        assert shown.status_details == ("Line 1: told to fail" if status == "error" else None)


def test_an_account_that_refuses_connections_is_left_out(house):
    file = house.upload("half")

    assert file.status == "processed"
    client = house.gateway.client()
    for _ in range(4):
        told = echo(client.chat.completions.create(model="half", messages=ask(file.id)))
        assert told["account"] == "east"
    assert client.files.content(file.id).read() == ROWS


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        (
            {"status": 500, "body": {"error": {"message": "the disk of b is full"}}},
            500,
            "the disk of b is full",
        ),
        ({"status": 400, "body": {"error": {"message": "odd rows"}}}, 400, "odd rows"),
        ({"close": "before_body"}, 502, "broke the connection"),
        ({"hang": True}, 504, "did not answer in time"),
    ],
    ids=["error", "refusal", "broken", "hanging"],
)
def test_a_model_without_any_copy_fails_the_upload(house, upstream, how, status, message):
    house.other.fail(method="POST", path_prefix="/v1/files", **how)

    with pytest.raises(openai.APIStatusError, match=message) as error:
        house.upload("a, b")

    assert error.value.status_code == status
    assert "'b'" in error.value.message
    assert "'a'" not in error.value.message
    assert not any(house.stored().values())
    assert list(house.gateway.client().files.list()) == []
    # A copy in the east and one in the west were there, and were taken back.
    assert [len(a.requests(method="DELETE")) for a in house.accounts] == [1, 1, 0]


def test_a_model_that_cannot_be_reached_is_named(house):
    with pytest.raises(openai.InternalServerError, match=r"'gone' failed.* reached") as error:
        house.upload("gone, a")
    assert error.value.status_code == 502
    assert error.value.response.headers["x-should-retry"] == "false"
    assert not any(house.stored().values())


@pytest.mark.parametrize(
    ("names", "status", "code"),
    [("a, nobody", 400, "model_not_found"), ("a, b", 403, "model_access_denied")],
)
def test_a_bad_name_sends_nothing_anywhere(house, upstream, names, status, code):
    key = house.gateway.new_user(models=["a"])["key"]
    with (
        pytest.raises(openai.APIStatusError) as error,
        closing(house.gateway.client(key)) as client,
    ):
        client.files.create(
            file=("rows.jsonl", ROWS), purpose="fine-tune", extra_body={"target_model_names": names}
        )
    assert (error.value.status_code, error.value.code) == (status, code)
    assert names.split(", ")[1] in error.value.message
    assert upstream.requests() == []


def test_all_accounts_are_needed_when_the_operator_says_so(house, upstream, start_gateway):
    config = configuration(*house.accounts)
    config["general_settings"] = {"fan_out": "every_deployment"}
    strict = House(start_gateway(config, workers=1), *house.accounts)
    house.west.fail(method="POST", path_regex="/files$", status=500, times=1)

    with pytest.raises(openai.InternalServerError, match="'a' failed: told to fail"):
        strict.upload("a, b")
    assert not any(house.stored().values())
    strict.gateway.client().files.delete(strict.upload("a, b").id)
    strict.gateway.kill()


def test_a_delete_that_one_upstream_refuses_goes_on_when_repeated(house, upstream):
    file = house.upload("a, b")
    fault = house.other.fail(method="DELETE", status=500)
    client = house.gateway.client()

    with pytest.raises(openai.InternalServerError) as error:
        client.files.delete(file.id)
    assert (error.value.status_code, error.value.code) == (502, "delete_incomplete")
    assert "at: b;" in error.value.message
    assert [len(ids) for ids in house.stored().values()] == [0, 0, 1]
    assert fault
    # From the first attempt on the file is unusable, and seen no more.
    for use in (client.files.retrieve, client.files.content):
        with pytest.raises(openai.NotFoundError):
            use(file.id)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="b", messages=ask(file.id))
    assert list(client.files.list()) == []

    upstream.clear_faults()
    assert client.files.delete(file.id).deleted
    assert not any(house.stored().values())
    # A copy that is gone was not asked for again.
    assert len(house.east.requests(method="DELETE")) == 1
    with pytest.raises(openai.NotFoundError):
        client.files.delete(file.id)


def test_a_copy_that_is_gone_already_does_not_stop_the_delete(house):
    file = house.upload("a, b")
    [raw] = house.stored()["other"]
    with closing(openai.OpenAI(base_url=house.other.api_base, api_key=house.other.key)) as direct:
        direct.files.delete(raw)

    assert house.gateway.client().files.delete(file.id).deleted
    assert not any(house.stored().values())


def test_a_model_gives_an_encoded_id_of_one_account(house, upstream):
    client = house.gateway.client()
    seen: set[str] = set()
    # Which account it is, is left to chance: of 8 files all went to one in one run of 128.
    for number in range(40):
        if number >= 8 and len(seen) == 2:
            break
        file = client.files.create(
            file=("rows.jsonl", ROWS), purpose="fine-tune", extra_body={"model": "a"}
        )
        assert file.id.startswith("file-")
        [(account, ids)] = [(name, ids) for name, ids in house.stored().items() if ids]
        told = echo(client.chat.completions.create(model="a", messages=ask(file.id)))
        assert told["account"] == account
        assert client.files.content(file.id).read() == ROWS
        assert client.files.retrieve(file.id).id == file.id
        with pytest.raises(openai.BadRequestError, match=r"model 'b'; it is at: a") as error:
            client.chat.completions.create(model="b", messages=ask(file.id))
        assert error.value.code == "file_not_available"
        assert client.files.delete(file.id).deleted
        assert_nobody_got_a_strange_id(house, upstream, {account: ids}, file.id)
        seen.add(account)
    assert seen == {"east", "west"}


def test_an_encoded_upload_moves_on_when_an_account_is_busy(house):
    client = house.gateway.client()
    house.west.fail(method="POST", path_regex="/files$", status=429)
    for _ in range(6):
        client.files.create(
            file=("rows.jsonl", ROWS), purpose="fine-tune", extra_body={"model": "a"}
        )
    assert {name: len(ids) for name, ids in house.stored().items()} == {
        "east": 6,
        "west": 0,
        "other": 0,
    }


def test_a_provider_gives_its_own_id(house, upstream):
    client = house.gateway.client()
    file = client.files.create(
        file=("rows.jsonl", ROWS),
        purpose="fine-tune",
        extra_headers={"custom-llm-provider": "azure"},
    )

    assert house.stored() == {"east": [], "west": [file.id], "other": []}
    # Azure's answer to an upload is `pending`; our question a moment later finds it ready.
    assert file.status == "uploaded"
    assert client.files.retrieve(file.id).status == "processed"
    assert client.files.content(file.id).read() == ROWS
    chat = client.chat.completions.create(
        model="gpt-4o-west", messages=ask(file.id), extra_body={"custom_llm_provider": "azure"}
    )
    assert (echo(chat)["account"], echo(chat)["file_ids"]) == ("west", [file.id])
    assert [f.id for f in client.files.list(extra_query={"custom_llm_provider": "azure"})] == [
        file.id
    ]
    assert client.files.delete(file.id).deleted
    assert not any(house.stored().values())
    assert {seen.account for seen in upstream.requests()} == {"west"}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_ids_outlive_the_processes(house, end):
    unified = house.upload("a, b")
    client = house.gateway.client()
    encoded = client.files.create(
        file=("rows.jsonl", ROWS), purpose="fine-tune", extra_body={"model": "b"}
    )

    house.gateway.close_clients()
    getattr(house.gateway, end)()
    house.gateway.start()

    client = house.gateway.client()
    for file in (unified, encoded):
        assert client.files.retrieve(file.id).filename == "rows.jsonl"
        assert client.files.content(file.id).read() == ROWS
        told = echo(client.chat.completions.create(model="b", messages=ask(file.id)))
        assert told["account"] == "other"
        assert client.files.delete(file.id).deleted
    assert not any(house.stored().values())


def test_content_comes_from_another_copy_when_one_cannot_give_it(house, upstream):
    file = house.upload("a, b")
    house.east.fail(method="GET", path_regex="/content$", status=404)
    house.other.fail(method="GET", path_regex="/content$", close="before_body")
    client = house.gateway.client()
    for _ in range(4):
        assert client.files.content(file.id).read() == ROWS
    part = client.files.content(file.id, extra_headers={"Range": "bytes=2-10"})
    assert (part.response.status_code, part.read()) == (206, ROWS[2:11])
    house.west.fail(method="GET", path_regex="/content$", status=500)
    for _ in range(6):
        # Whichever was asked last: what may pass later is not said to be gone.
        with pytest.raises(openai.InternalServerError):
            client.files.content(file.id)


@pytest.mark.parametrize("prefix", ["openai", "litellm_proxy"])
def test_a_gateway_in_front_of_a_gateway(house, upstream, start_gateway, prefix):
    """One that passes for OpenAI needs a default target; one named as a proxy is told its own."""
    config = configuration(*house.accounts)
    if prefix == "openai":
        config["general_settings"] = {"default_target_model_names": ["a", "b"]}
    back = start_gateway(config, workers=1, name="back")
    key = back.new_user(user_id="front-gateway")["key"]
    account = {"api_base": f"{back.url}/v1", "api_key": key}
    front = start_gateway(
        {
            "model_list": [
                {"model_name": name, "litellm_params": {"model": f"{prefix}/{name}", **account}}
                for name in ("a", "b")
            ]
        },
        workers=1,
        name="front",
    )
    with closing(front.client(front.new_user(user_id="somebody")["key"])) as client:
        file = client.files.create(
            file=("rows.jsonl", ROWS),
            purpose="fine-tune",
            extra_body={"target_model_names": "a, b"},
        )
        for name, accounts in (("a", {"east", "west"}), ("b", {"other"})):
            told = echo(client.chat.completions.create(model=name, messages=ask(file.id)))
            assert told["account"] in accounts
            assert told["file_ids"] == [file.id]
        assert client.files.content(file.id).read() == ROWS
        assert client.files.retrieve(file.id).bytes == len(ROWS)
        # Both models of the front gateway are one account of the second, with a file each.
        with closing(back.client(key)) as behind:
            found = [
                f.id for n in "ab" for f in behind.files.list(extra_query={"target_model_names": n})
            ]
        assert (len(set(found)), len(found)) == ((2, 4) if prefix == "openai" else (2, 2))
        assert not carriers(upstream.requests(), file.id, key, front.master_key)
        assert client.files.delete(file.id).deleted
    assert not any(house.stored().values())
    front.kill()
    back.kill()


def test_uploads_at_the_same_time_do_not_mix(house):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        uploads = [pool.submit(house.upload, "a, b", "fine-tune", f"{n}.jsonl") for n in range(8)]
        files = [each.result() for each in uploads]
    assert len({file.id for file in files}) == 8
    for account in house.accounts:
        assert sorted(f["filename"] for f in account.files()) == [f"{n}.jsonl" for n in range(8)]
    client = house.gateway.client()
    for file in files:
        chat = client.chat.completions.create(model="a", messages=ask(file.id))
        assert echo(chat)["filenames"] == [file.filename]
    wait_until(lambda: len(list(client.files.list())) == 8)

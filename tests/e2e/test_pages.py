"""Lists: every page, in order, only the caller's own, and an end to them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from app.ids import encode_file, encode_unified, new_uuid
from app.objects import LISTED_PURPOSES
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, model

EACH = 250
FIELDS = {"purpose": "user_data", "target_model_names": "disk"}


@dataclass
class Setting:
    gateway: Gateway
    openai: Account
    azure: Account
    alice: str
    bob: str
    of_alice: set[str]
    of_bob: set[str]


@pytest.fixture(scope="module")
def setting(upstream: Upstream, start_gateway: StartGateway) -> Setting:
    account = upstream.account("paged", page_size=10)
    azure = upstream.account("paged-azure", "azure")
    config = {
        "model_list": [
            model("cloud", "openai/gpt-4o", account),
            {"model_name": "disk", "litellm_params": {"model": "local/disk"}},
            {"model_name": "shelf", "litellm_params": {"model": "local/shelf"}},
        ],
        "files_settings": [
            {"custom_llm_provider": "azure", **azure.params},
            {"custom_llm_provider": "openai", **account.params},
        ],
    }
    gateway = start_gateway(config, workers=2, threads=16)
    alice = gateway.new_user(user_id="alice")["key"]
    bob = gateway.new_user(user_id="bob")["key"]
    clients = {key: gateway.client(key) for key in (alice, bob)}

    def make(n: int) -> tuple[str, str]:
        key = (alice, bob)[n % 2]
        return key, create(clients[key], f"{n}.txt").id

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(2 * EACH)))
    return Setting(
        gateway,
        account,
        azure,
        alice,
        bob,
        {file_id for key, file_id in made if key == alice},
        {file_id for key, file_id in made if key == bob},
    )


def create(client: openai.OpenAI, name: str, **fields: str) -> Any:
    fields = {**FIELDS, **fields} if "purpose" in fields or not fields else fields
    purpose: Any = fields.pop("purpose", "user_data")
    return client.files.create(file=(name, b"content"), purpose=purpose, extra_body=fields)


def counted(gateway: Gateway, key: str | None = None) -> tuple[openai.OpenAI, list[str]]:
    """A client, and the queries of the lists it has asked for so far."""
    client = gateway.client(key)
    asked: list[str] = []
    client._client.event_hooks = {
        "request": [lambda request: asked.append(request.url.query.decode())]
    }
    return client, asked


def walk(client: openai.OpenAI, limit: int, **query: Any) -> list[str]:
    """The ids of all pages, each page checked."""
    found: list[str] = []
    after: dict[str, Any] = {}
    while True:
        page = client.files.with_raw_response.list(limit=limit, extra_query={**query, **after})
        shown = page.http_response.json()
        ids = [file["id"] for file in shown["data"]]
        assert shown["object"] == "list"
        assert (shown["first_id"], shown["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
        assert len(ids) <= limit
        found += ids
        if not shown["has_more"]:
            return found
        assert len(ids) == limit
        after = {"after": ids[-1]}


def test_the_client_s_own_loop_ends_after_three_pages(setting: Setting):
    for key, expected in ((setting.alice, setting.of_alice), (setting.bob, setting.of_bob)):
        client, asked = counted(setting.gateway, key)

        ids = [file.id for file in client.files.list(limit=100)]

        assert len(asked) == 3
        assert len(ids) == EACH
        assert set(ids) == expected


def test_a_list_without_a_limit_is_one_page_of_one_s_own(setting: Setting):
    client, asked = counted(setting.gateway, setting.alice)

    page = client.files.list()

    assert {file.id for file in page} == setting.of_alice
    assert len(asked) == 1


@pytest.mark.parametrize("limit", [7, 125, 249, 250, 251, 10_000])
def test_both_orders_name_everything_once(setting: Setting, limit: int):
    client = setting.gateway.client(setting.alice)
    down = walk(client, limit)
    up = walk(client, limit, order="asc")

    assert set(down) == setting.of_alice
    assert len(down) == EACH
    assert up == down[::-1]


def test_the_master_key_has_files_of_its_own_and_may_name_a_user(setting: Setting):
    client = setting.gateway.client()

    assert not {file.id for file in client.files.list()} & (setting.of_alice | setting.of_bob)
    assert set(walk(client, 100, user_id="bob")) == setting.of_bob
    response = setting.gateway.api("GET", "/v1/files?user_id=bob", key=setting.alice)
    assert response.status_code == 403


_INTS = ("integer_below_min_value", "integer_above_max_value", "invalid_type")


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", _INTS[0]),
        ("limit=-1", "limit", _INTS[0]),
        ("limit=10001", "limit", _INTS[1]),
        (f"limit={'9' * 50}", "limit", _INTS[1]),
        ("limit=abc", "limit", _INTS[2]),
        ("limit=1e3", "limit", _INTS[2]),
        ("limit=1.0", "limit", _INTS[2]),
        ("limit=", "limit", _INTS[2]),
        ("limit=%20", "limit", _INTS[2]),
        ("limit=1&limit=2", "limit", None),
        ("order=up", "order", None),
        ("order=", "order", None),
        ("order=DESC", "order", None),
        ("after=garbage", "after", None),
        ("after=", "after", None),
        ("after=file-doesnotexist", "after", None),
        (f"after={encode_unified('text/plain', new_uuid(), ['disk'])}", "after", None),
        (f"after={encode_file('file-abc', 'cloud')}", "after", None),
        ("after=FOREIGN", "after", None),
        ("purpose=bacth", "purpose", None),
        ("purpose=", "purpose", None),
    ],
)
@pytest.mark.parametrize("selector", ["", "&target_model_names=disk", "&model=cloud"])
def test_what_cannot_be_meant_is_refused(
    setting: Setting, query: str, param: str, code: str | None, selector: str
):
    query = query.replace("FOREIGN", sorted(setting.of_bob)[0])

    response = setting.gateway.api("GET", f"/v1/files?{query}{selector}", key=setting.alice)

    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert code in (None, error["code"])
    if param == "purpose":
        assert all(purpose in error["message"] for purpose in LISTED_PURPOSES)


def test_purposes_narrow_a_list(setting: Setting):
    gateway = setting.gateway
    key = gateway.new_user(user_id="carol")["key"]
    client = gateway.client(key)
    by_purpose = {
        purpose: {create(client, f"{purpose}-{n}", purpose=purpose).id for n in range(3)}
        for purpose in ("assistants", "user_data", "vision")
    }

    for purpose, expected in by_purpose.items():
        assert {file.id for file in client.files.list(purpose=purpose)} == expected
        assert set(walk(client, 2, purpose=purpose)) == expected
    for purpose in set(LISTED_PURPOSES) - set(by_purpose):
        page = client.files.list(purpose=purpose)
        assert (page.data, page.has_more) == ([], False)


def test_deleting_what_is_listed_meets_every_file_once(setting: Setting):
    gateway = setting.gateway
    client = gateway.client(gateway.new_user(user_id="dora")["key"])
    made = [create(client, f"{n}").id for n in range(25)]

    met = []
    for file in client.files.list(limit=10):
        assert client.files.delete(file.id).deleted
        met.append(file.id)

    assert sorted(met) == sorted(made)
    assert client.files.list().data == []


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_cursor_that_is_deleted_between_pages_still_works(setting: Setting, order: str):
    gateway = setting.gateway
    client = gateway.client(gateway.new_user(user_id=f"emil-{order}")["key"])
    made = [create(client, f"{n}").id for n in range(7)]
    query = {"order": order, "limit": 3}
    first = client.files.list(extra_query=query)
    client.files.delete(first.data[-1].id)

    second = client.files.list(after=first.data[-1].id, extra_query=query)
    third = client.files.list(after=second.data[-1].id, extra_query=query)

    ids = [file.id for page in (first, second, third) for file in page.data]
    assert ids == (made if order == "asc" else made[::-1])
    assert not third.has_more


def test_target_models_narrow_a_list(setting: Setting):
    gateway = setting.gateway
    client = gateway.client(gateway.new_user(user_id="fred")["key"])

    def make(name: str, targets: str) -> str:
        return str(create(client, name, purpose="user_data", target_model_names=targets).id)

    disk = [make(f"disk {n}", "disk") for n in range(3)]
    shelf = [make(f"shelf {n}", "shelf") for n in range(3)]
    both = [make(f"both {n}", "disk,shelf") for n in range(3)]

    def listed(names: Any, limit: int = 2) -> list[str]:
        found = walk(client, limit, target_model_names=names)
        assert len(found) == len(set(found))
        return sorted(found)

    assert listed("disk") == sorted(disk + both)
    assert listed("shelf") == sorted(shelf + both)
    assert listed("disk,shelf") == listed("shelf, disk", 4) == sorted(disk + shelf + both)
    assert listed("cloud") == []
    response = gateway.api("GET", "/v1/files?target_model_names=nothing", key=setting.alice)
    assert response.json()["error"]["code"] == "model_not_found"


def handed_out(
    gateway: Gateway, key: str, number: int, selector: dict[str, str], purpose: Any
) -> Iterator[str]:
    client = gateway.client(key)
    for n in range(number):
        made = client.files.create(file=(f"{n}", b"x"), purpose=purpose, extra_body=selector)
        yield made.id


@pytest.mark.parametrize(
    ("which", "selector", "purpose"),
    [
        ("openai", {"model": "cloud"}, "user_data"),
        ("openai", {"custom_llm_provider": "openai"}, "user_data"),
        ("azure", {"custom_llm_provider": "azure"}, "assistants"),
    ],
    ids=["by model", "by provider", "by a provider without pages"],
)
def test_one_account_s_list_is_one_s_own_and_an_admin_s_the_provider_s(
    setting: Setting, upstream: Upstream, which: str, selector: dict[str, str], purpose: str
):
    gateway = setting.gateway
    account: Account = getattr(setting, which)
    for held in account.files():
        gateway.api("DELETE", f"/v1/files/{held['id']}?custom_llm_provider={which}")
    number = 12
    made = {
        key: list(handed_out(gateway, key, number, selector, purpose))
        for key in (setting.alice, setting.bob)
    }
    everything = sorted(made[setting.alice] + made[setting.bob])
    assert len(account.files()) == 2 * number

    upstream.forget_requests()
    for key, own in made.items():
        client = gateway.client(key)
        assert walk(client, 5, order="asc", **selector) == own
        assert walk(client, 5, **selector) == own[::-1]
        assert walk(client, 5, **selector, purpose="vision") == []
    # A caller's own list needs no upstream.
    assert upstream.requests() == []

    admin = gateway.client()
    for limit in (5, 12, 10_000):
        assert sorted(walk(admin, limit, **selector)) == everything
    assert walk(admin, 5, order="asc", **selector) == walk(admin, 7, **selector)[::-1]
    assert sorted(walk(admin, 5, purpose=purpose, **selector)) == everything
    assert walk(admin, 5, purpose="fine-tune", **selector) == []
    client, asked = counted(gateway)
    assert len([f.id for f in client.files.list(limit=10, extra_query=selector)]) == 2 * number
    assert len(asked) == 3
    refused(gateway, selector, "after=garbage", "after")
    refused(gateway, selector, "limit=0", "limit")
    refused(gateway, selector, "order=up", "order")

    owner = gateway.client(setting.alice)
    met = []
    for file in owner.files.list(limit=5, extra_query=selector):
        assert owner.files.delete(file.id).deleted
        met.append(file.id)
    assert met == made[setting.alice][::-1]
    assert sorted(walk(admin, 5, **selector)) == sorted(made[setting.bob])


def refused(gateway: Gateway, selector: dict[str, str], query: str, param: str) -> None:
    named = "&".join(f"{name}={value}" for name, value in selector.items())
    response = gateway.api("GET", f"/v1/files?{query}&{named}")
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_the_provider_may_stand_in_the_path(setting: Setting):
    gateway = setting.gateway
    ids = list(handed_out(gateway, setting.bob, 3, {"custom_llm_provider": "openai"}, "vision"))

    listed: Sequence[dict[str, Any]] = gateway.api(
        "GET", "/openai/v1/files?purpose=vision&order=asc&limit=2", key=setting.bob
    ).json()["data"]

    assert [file["id"] for file in listed] == ids[:2]

"""A file is its owner's alone, by whatever id and in whatever use; no upstream hears of a refusal.

Alice owns, Bob is a stranger with a file of his own, Rita may only read, two keys have no user,
the auditor reads everything, the master key may do everything.
"""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import openai
import pytest

from tests.e2e.asking import ask, ask_responses, echo
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, model

TEXT = b"what only Alice may read"
USES = ("retrieve", "content", "delete", "delete by POST", "chat", "responses")
READS = ("retrieve", "content")


@dataclass(frozen=True)
class House:
    """A gateway, the accounts behind it, the people's keys, and Alice's files by all their ids."""

    gateway: Gateway
    east: Account
    west: Account
    keys: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    """Every id that means one of Alice's files, by what kind of id it is."""

    def use(self, who: str, use: str, file_id: str, **more: Any) -> Any:
        """One use of an id, which stands in a path as it is; the HTTP response."""
        key = self.keys[who]
        match use:
            case "retrieve":
                return self.gateway.api("GET", f"/v1/files/{file_id}", key=key, **more)
            case "content":
                return self.gateway.api("GET", f"/v1/files/{file_id}/content", key=key, **more)
            case "delete":
                return self.gateway.api("DELETE", f"/v1/files/{file_id}", key=key, **more)
            case "delete by POST":
                return self.gateway.api("POST", f"/v1/files/{file_id}/delete", key=key, **more)
            case "chat":
                body: dict[str, Any] = {"model": "a", "messages": ask(file_id)}
                return self.gateway.api("POST", "/v1/chat/completions", key=key, json=body, **more)
            case "responses":
                body = {"model": "a", "input": ask_responses(file_id)}
                return self.gateway.api("POST", "/v1/responses", key=key, json=body, **more)
        raise AssertionError(use)

    def upload(self, who: str, **routing: str) -> str:
        with closing(self.gateway.client(self.keys[who])) as client:
            made = client.files.create(
                file=("secret.txt", TEXT), purpose="assistants", extra_body=routing
            )
        return made.id


def encoded(raw: str, name: str) -> str:
    return "file-" + unpadded(f"litellm:{raw};model,{name}")


def unpadded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decoded(file_id: str) -> str:
    return base64.urlsafe_b64decode(file_id + "=" * (-len(file_id) % 4)).decode()


def configuration(east: Account, west: Account, **general: Any) -> dict[str, Any]:
    return {
        "model_list": [
            model("a", "openai/gpt-4o", east),
            model("a-too", "openai/gpt-4o", east),
            model("b", "azure/gpt-4o-west", west),
        ],
        "files_settings": [
            {"custom_llm_provider": "openai", **east.params},
            {"custom_llm_provider": "azure", **west.params},
        ],
        "general_settings": general,
    }


def settle(gateway: Gateway, east: Account, west: Account) -> House:
    """Everybody's keys, and Alice's three files."""

    def key(**fields: Any) -> str:
        answer = gateway.api("POST", "/key/generate", json=fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["key"])

    keys = {
        "alice": gateway.new_user(user_id="alice")["key"],
        "bob": gateway.new_user(user_id="bob")["key"],
        "rita": gateway.new_user(user_id="rita", user_role="internal_user_viewer")["key"],
        "auditor": gateway.new_user(user_id="auditor", user_role="proxy_admin_viewer")["key"],
        "nobody": key(),
        "nobody else": key(),
        "root": gateway.master_key,
    }
    house = House(gateway, east, west, {**keys, "alice's other key": key(user_id="alice")})
    files = house.files
    files["unified"] = house.upload("alice", target_model_names="a, b")
    [in_east], [in_west] = ([f["id"] for f in account.files()] for account in (east, west))
    files["raw id of its copy in the east"] = in_east
    files["raw id of its copy in the west"] = in_west
    files["copy in the east, encoded by hand"] = encoded(in_east, "a")
    files["copy in the west, encoded by hand"] = encoded(in_west, "b")
    files["encoded"] = house.upload("alice", model="a")
    known = {in_east}
    [files["raw id of the encoded"]] = {f["id"] for f in east.files()} - known
    known.add(files["raw id of the encoded"])
    files["raw"] = house.upload("alice", custom_llm_provider="openai")
    assert [f["id"] for f in east.files() if f["id"] not in known] == [files["raw"]]
    return house


@pytest.fixture(scope="module")
def accounts(upstream: Upstream) -> tuple[Account, Account]:
    return (
        upstream.account("east", download_any=True),
        upstream.account("west", "azure", download_any=True),
    )


@pytest.fixture(scope="module")
def house(accounts: tuple[Account, Account], start_gateway: StartGateway) -> House:
    return settle(start_gateway(configuration(*accounts), workers=1), *accounts)


@pytest.fixture(autouse=True)
def _nothing_strange(upstream: Upstream) -> Iterator[None]:
    yield
    assert not upstream.unexpected()


def refused(
    house: House, who: str, ids: dict[str, str], uses: tuple[str, ...] = USES
) -> dict[tuple[str, str], int]:
    """How each use of each id was answered; every answer is an error in the envelope."""
    statuses = {}
    for name, file_id in ids.items():
        for use in uses:
            response = house.use(who, use, file_id)
            statuses[name, use] = response.status_code
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert TEXT not in response.content
    return statuses


def every(statuses: dict[tuple[str, str], int], status: int) -> bool:
    assert {key: found for key, found in statuses.items() if found != status} == {}
    return True


@pytest.mark.parametrize("who", ["bob", "nobody", "nobody else", "rita"])
def test_a_stranger_is_refused_by_every_id_and_no_upstream_is_asked(house, upstream, who):
    assert every(refused(house, who, house.files), 403)
    assert upstream.requests() == []


def test_the_refusal_says_who_and_which(house):
    for name, user in (("unified", "bob"), ("encoded", "bob"), ("raw", "bob")):
        file_id = house.files[name]
        with closing(house.gateway.client(house.keys["bob"])) as client:
            for use in (client.files.retrieve, client.files.content, client.files.delete):
                with pytest.raises(openai.PermissionDeniedError) as error:
                    use(file_id)
                text = f"User {user} does not have access to the file {file_id}"
                assert error.value.response.json()["error"]["message"] == text
                assert error.value.type == "permission_error"


def test_the_owner_by_any_of_his_keys_and_the_admin_may_do_everything(house):
    for who in ("alice", "alice's other key", "root"):
        for name, file_id in house.files.items():
            shown = house.use(who, "retrieve", file_id)
            assert (shown.status_code, shown.json()["id"]) == (200, file_id), name
            assert house.use(who, "content", file_id).content == TEXT, name
            # A provider's own file goes with that provider's own model name.
            own = {"params": {"custom_llm_provider": "openai"}} if name == "raw" else {}
            for use in ("chat", "responses"):
                answer = house.use(who, use, file_id, **own)
                assert answer.status_code == 200, (name, answer.text)


def test_the_auditor_may_look_and_nothing_else(house, upstream):
    for file_id in house.files.values():
        assert house.use("auditor", "retrieve", file_id).json()["id"] == file_id
        assert house.use("auditor", "content", file_id).content == TEXT
    shown = house.use("auditor", "retrieve", house.files["unified"] + "?include=copies").json()
    assert {copy["provider"] for copy in shown["copies"]} == {"openai", "azure"}
    upstream.forget_requests()
    uses = ("delete", "delete by POST", "chat", "responses")
    assert every(refused(house, "auditor", house.files, uses), 403)
    assert upstream.requests() == []


def test_a_viewer_reads_what_was_his_before(house, upstream):
    user = house.gateway.new_user(user_id="carla")
    carla = House(house.gateway, house.east, house.west, {**house.keys, "carla": user["key"]})
    file_id = carla.upload("carla", target_model_names="a, b")
    demoted = {"user_id": "carla", "user_role": "internal_user_viewer"}
    assert house.gateway.api("POST", "/user/update", json=demoted).status_code == 200
    assert carla.use("carla", "retrieve", file_id).status_code == 200
    assert carla.use("carla", "content", file_id).content == TEXT
    upstream.forget_requests()
    uses = ("delete", "delete by POST", "chat", "responses")
    assert every(refused(carla, "carla", {"own": file_id}, uses), 403)
    with (
        closing(house.gateway.client(user["key"])) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        client.files.create(file=("a.txt", b"x"), purpose="assistants")
    assert upstream.requests() == []
    assert house.use("root", "delete", file_id).status_code == 200


def all_percent(text: str, form: str = "%{:02x}") -> str:
    return "".join(form.format(byte) for byte in text.encode())


PATH_SPELLINGS: dict[str, Callable[[str], str]] = {
    "percent": all_percent,
    "percent in capitals": lambda text: all_percent(text, "%{:02X}"),
    "one letter in percent": lambda text: text[:-1] + all_percent(text[-1]),
}
"""The same id for every server that reads a path."""

OTHER_SPELLINGS: dict[str, Callable[[str], str]] = {
    "padded": lambda text: text + "=",
    "padded to four": lambda text: text + "=" * (-len(text) % 4 or 4),
    "padded in percent": lambda text: text + "%3D",
    "double percent": lambda text: quote(all_percent(text)),
    "double percent of one": lambda text: text[:-1] + quote(all_percent(text[-1])),
    "a blank behind": lambda text: text + "%20",
    "a line end behind": lambda text: text + "%0A",
    "a null byte behind": lambda text: text + "%00",
    "a dot behind": lambda text: text + ".",
    "a slash inside": lambda text: text[:9] + "%2F" + text[9:],
    "a step up": lambda text: f"x%2F..%2F{text}",
    "a step up in dots": lambda text: f"..%2Ffiles%2F{text}",
    "a query inside": lambda text: text + "%3Fa=b",
    "in capitals": str.upper,
    "prefixed": lambda text: f"file-{text}",
    "encoded again": unpadded,
    "other letters behind": lambda text: text + "QQ",
    "full-width": lambda text: quote(text[:-1] + chr(ord(text[-1]) + 0xFEE0)),
    "too long": lambda text: text * 20,
}
"""Nobody's id, were it only read strictly."""


@pytest.mark.parametrize("spelling", PATH_SPELLINGS)
def test_another_spelling_of_a_path_is_the_same_id(house, upstream, spelling):
    ids = {name: PATH_SPELLINGS[spelling](file_id) for name, file_id in house.files.items()}
    in_path = ("retrieve", "content", "delete", "delete by POST")
    for who in ("bob", "nobody"):
        assert every(refused(house, who, ids, in_path), 403)
    assert upstream.requests() == []
    for name, file_id in ids.items():
        assert house.use("alice", "retrieve", file_id).json()["id"] == house.files[name]
        assert house.use("alice", "content", file_id).content == TEXT


@pytest.mark.parametrize("spelling", [*PATH_SPELLINGS, *OTHER_SPELLINGS])
def test_another_spelling_in_a_body_is_no_id(house, upstream, spelling):
    spell = {**PATH_SPELLINGS, **OTHER_SPELLINGS}[spelling]
    ids = {name: spell(file_id) for name, file_id in house.files.items()}
    for who in ("bob", "alice"):
        assert every(refused(house, who, ids, ("chat", "responses")), 404)
    assert upstream.requests() == []


@pytest.mark.parametrize("spelling", OTHER_SPELLINGS)
def test_an_id_that_is_not_spelled_as_it_was_given_is_nobodys(house, upstream, spelling):
    ids = {name: OTHER_SPELLINGS[spelling](file_id) for name, file_id in house.files.items()}
    in_path = ("retrieve", "content", "delete", "delete by POST")
    for who in ("bob", "nobody", "alice"):
        statuses = refused(house, who, ids, in_path)
        # A path with one more slash may be no route at all, with or without that verb.
        assert set(statuses.values()) <= {404, 405}, statuses
    assert upstream.requests() == []


def forgeries(house: House) -> dict[str, str]:
    """Ids that somebody made who knows everything but has no row for them."""
    unified = decoded(house.files["unified"])
    uuid = unified.partition("unified_id,")[2][:36]
    copy, own = (
        house.files["raw id of its copy in the east"],
        house.files["raw id of the encoded"],
    )
    return {
        "other models": unpadded(unified.replace("target_model_names,a,b", "target_model_names,a")),
        "other type": unpadded(unified.replace("text/plain", "text/html")),
        "uuid in capitals": unpadded(unified.replace(uuid, uuid.upper())),
        "another uuid": unpadded(unified.replace(uuid, "0" * 8 + uuid[8:])),
        "the longer form": unpadded(
            f"{unified};llm_output_file_id,{copy};llm_output_file_model_id,a"
        ),
        "a batch": unpadded(f"litellm_proxy;model_id:a;llm_batch_id:{copy}"),
        "another account": encoded(copy, "b"),
        "another name of the account": encoded(copy, "a-too"),
        "another name for the encoded": encoded(own, "a-too"),
        "no such model": encoded(copy, "nobody"),
        "wrapped twice": encoded(encoded(copy, "a"), "a"),
        "wrapped unified": encoded(house.files["unified"], "a"),
        "path in it": encoded(f"../files/{copy}", "a"),
        "query in it": encoded(f"{copy}?x=y", "a"),
        "empty": encoded("", "a"),
        "unknown raw": "file-0123456789abcdef",
        "nonsense": "file-%F0%9F%92%A5",
    }


def test_a_forged_id_is_nobodys(house, upstream):
    for who in ("bob", "nobody", "alice", "rita"):
        uses = READS if who == "rita" else USES
        for name, file_id in forgeries(house).items():
            statuses = refused(house, who, {name: file_id}, uses)
            assert every(statuses, 404)
    assert upstream.requests() == []
    # Nor does a forged id of a managed file serve the admin.
    for name in ("other models", "uuid in capitals", "the longer form"):
        assert house.use("root", "content", forgeries(house)[name]).status_code == 404
    assert upstream.requests() == []


def test_hints_beside_an_id_open_nothing(house, upstream):
    raw = house.files["raw id of its copy in the east"]
    places: list[dict[str, Any]] = [
        {"params": {"custom_llm_provider": "openai"}},
        {"params": {"provider": "openai"}},
        {"params": {"model": "a"}},
        {"params": {"target_model_names": "a"}},
        {"headers": {"custom-llm-provider": "openai"}},
        {"headers": {"x-litellm-model": "a"}},
        {"json": {"custom_llm_provider": "openai"}},
        {"json": {"model": "a"}},
        {"params": {"model": "a", "custom_llm_provider": "openai"}},
        {"params": {"model": "nobody"}},
    ]
    for place in places:
        for file_id in (raw, house.files["unified"], house.files["encoded"]):
            for use in ("retrieve", "content", "delete"):
                assert house.use("bob", use, file_id, **place).status_code == 403, place
                if use != "delete":
                    assert house.use("alice", use, file_id, **place).status_code == 200, place
    for path in (f"/openai/v1/files/{raw}", f"/azure/v1/files/{raw}", f"/files/{raw}"):
        for method, rest in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/delete")):
            answer = house.gateway.api(method, path + rest, key=house.keys["bob"])
            assert answer.status_code == 403, path
    asked = {seen.path.rpartition("/")[2] for seen in upstream.requests()}
    assert asked <= {"content"}  # Those were Alice's.


PLACES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "file part": ("chat", lambda i: [{"type": "file", "file": {"file_id": i}}]),
    "file part, flat": ("chat", lambda i: [{"type": "file", "file_id": i}]),
    "image file": ("chat", lambda i: [{"type": "image_file", "image_file": {"file_id": i}}]),
    "input file": ("responses", lambda i: [{"type": "input_file", "file_id": i}]),
    "input image": ("responses", lambda i: [{"type": "input_image", "file_id": i}]),
}


@pytest.mark.parametrize("role", ["user", "system", "developer", "assistant", "tool"])
@pytest.mark.parametrize("place", PLACES)
def test_every_place_for_a_file_id_is_guarded_and_translated(house, upstream, place, role):
    operation, part = PLACES[place]
    name = "messages" if operation == "chat" else "input"
    path = "/v1/chat/completions" if operation == "chat" else "/v1/responses"
    body = {"model": "a", name: [{"role": role, "content": part(house.files["unified"])}]}

    answer = house.gateway.api("POST", path, key=house.keys["bob"], json=body)
    assert (answer.status_code, upstream.requests()) == (403, [])
    answer = house.gateway.api("POST", path, key=house.keys["alice"], json=body)
    assert answer.status_code == 200, answer.text
    [seen] = upstream.requests()
    raw = house.files["raw id of its copy in the east"]
    expected = {"model": "gpt-4o", name: [{"role": role, "content": part(raw)}]}
    assert json.loads(seen.text or "") == expected


@pytest.mark.parametrize(
    "more",
    [
        {"attachments": [{"file_id": "ID", "tools": [{"type": "code_interpreter"}]}]},
        {
            "tools": [
                {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["ID"]}}
            ]
        },
        {"tool_resources": {"code_interpreter": {"file_ids": ["ID"]}}},
        {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": "ID"}}]},
    ],
    ids=["attachments", "container", "tool resources", "mask"],
)
def test_files_of_tools_are_guarded_and_translated(house, upstream, more):
    def body(file_id: str) -> Any:
        text = json.dumps({"model": "a", "input": "hello", **more})
        return json.loads(text.replace('"ID"', json.dumps(file_id)))

    call = {"method": "POST", "path": "/v1/responses"}
    answer = house.gateway.api(**call, key=house.keys["bob"], json=body(house.files["unified"]))
    assert (answer.status_code, upstream.requests()) == (403, [])
    answer = house.gateway.api(**call, key=house.keys["alice"], json=body(house.files["unified"]))
    assert answer.status_code == 200, answer.text
    [seen] = upstream.requests()
    expected = {**body(house.files["raw id of its copy in the east"]), "model": "gpt-4o"}
    assert json.loads(seen.text or "") == expected


def test_one_foreign_file_among_own_ones_stops_the_request(house, upstream):
    own = house.upload("bob", target_model_names="a, b")
    upstream.forget_requests()
    with closing(house.gateway.client(house.keys["bob"])) as client:
        for messages in (ask(own, house.files["unified"]), ask(house.files["raw"], own)):
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(model="a", messages=messages)
        assert upstream.requests() == []
        assert echo(client.chat.completions.create(model="b", messages=ask(own)))["account"] == (
            "west"
        )
        assert client.files.delete(own).deleted


def test_lists_show_the_callers_own(house, upstream):
    bobs = house.upload("bob", target_model_names="a")
    nobodys = house.upload("nobody", model="b")
    alices = {house.files[name] for name in ("unified", "encoded", "raw")}
    upstream.forget_requests()

    def listed(who: str, **query: str) -> set[str]:
        with closing(house.gateway.client(house.keys[who])) as client:
            return {f.id for f in client.files.list(extra_query=query)}

    for who in ("alice", "alice's other key"):
        assert listed(who) == alices
        assert listed(who, target_model_names="b") == {house.files["unified"]}
        assert listed(who, model="a") == {house.files["encoded"]}
        assert listed(who, custom_llm_provider="openai") == {house.files["raw"]}
        assert listed(who, custom_llm_provider="azure") == set()
    for who, own in (
        ("bob", {bobs}),
        ("nobody", {nobodys}),
        ("nobody else", set()),
        ("rita", set()),
    ):
        assert listed(who) == own
        for query in ({"target_model_names": "a, b"}, {"model": "a"}, {"provider": "openai"}):
            assert not listed(who, **query) & alices
        for foreign in alices:
            answer = house.gateway.api("GET", f"/v1/files?after={foreign}", key=house.keys[who])
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")
        answer = house.gateway.api("GET", "/v1/files?user_id=alice", key=house.keys[who])
        assert answer.status_code == 403
    assert upstream.requests() == []
    # Whoever sees everything sees another's list, or the account as its provider has it.
    for who in ("root", "auditor"):
        assert listed(who, user_id="alice") == alices
        assert listed(who) == set()
    in_east = {f["id"] for f in house.east.files()}
    assert listed("root", custom_llm_provider="openai") == in_east
    assert listed("root", model="a") == {encoded(raw, "a") for raw in in_east}
    for file_id in (bobs, nobodys):
        assert house.use("root", "delete", file_id).status_code == 200


def test_files_without_a_row_are_the_admins(house, upstream):
    with closing(openai.OpenAI(base_url=house.east.api_base, api_key=house.east.key)) as direct:
        raw = direct.files.create(file=("a.txt", TEXT), purpose="assistants").id
    upstream.forget_requests()
    hints = {"params": {"custom_llm_provider": "openai"}}
    for who in ("alice", "bob", "nobody"):
        for file_id in (raw, encoded(raw, "a")):
            for use in USES:
                assert house.use(who, use, file_id, **hints).status_code == 404, (who, use)
    assert upstream.requests() == []
    for file_id, more in ((raw, hints), (encoded(raw, "a"), {}), (encoded(raw, "a-too"), {})):
        assert house.use("root", "retrieve", file_id, **more).json()["id"] == file_id
        assert house.use("root", "content", file_id, **more).content == TEXT
    for file_id in (raw, encoded(raw, "a")):
        assert house.use("root", "chat", file_id).status_code == 200
    assert house.use("root", "retrieve", raw, params={"provider": "azure"}).status_code == 404
    assert house.use("root", "delete", raw, **hints).json() == {
        "id": raw,
        "object": "file",
        "deleted": True,
    }
    assert house.use("root", "delete", raw, **hints).status_code == 404


def test_foreign_and_missing_look_alike_where_the_operator_wants_it(accounts, start_gateway):
    upstream = accounts[0].upstream
    fresh = (
        upstream.account("east-hidden", download_any=True),
        upstream.account("west-hidden", "azure", download_any=True),
    )
    config = configuration(*fresh, hide_foreign_objects=True)
    hidden = settle(start_gateway(config, workers=1), *fresh)
    upstream.forget_requests()
    for who in ("bob", "nobody"):
        assert every(refused(hidden, who, hidden.files), 404)
        for file_id in hidden.files.values():
            error = hidden.use(who, "retrieve", file_id).json()["error"]
            missing = file_id[:-1] + ("A" if file_id[-1] != "A" else "B")
            expected = hidden.use(who, "retrieve", missing).json()["error"]
            assert error == {**expected, "message": expected["message"].replace(missing, file_id)}
    assert upstream.requests() == []
    assert hidden.use("alice", "content", hidden.files["unified"]).content == TEXT
    hidden.gateway.kill()


def test_without_a_shared_database_ids_may_be_enough(accounts, start_gateway):
    """Each of the three ids without a row works for everybody; a row still decides."""
    upstream = accounts[0].upstream
    fresh = (
        upstream.account("east-open", download_any=True),
        upstream.account("west-open", "azure", download_any=True),
    )
    config = configuration(*fresh, allow_unrecorded_ids=True)
    house = settle(start_gateway(config, workers=1), *fresh)
    east, _ = fresh
    with closing(openai.OpenAI(base_url=east.api_base, api_key=east.key)) as direct:
        raw = direct.files.create(file=("a.txt", TEXT), purpose="assistants").id
    hints = {"params": {"custom_llm_provider": "openai"}}
    for who in ("alice", "bob", "nobody"):
        for file_id, more in ((raw, hints), (encoded(raw, "a"), {})):
            assert house.use(who, "retrieve", file_id, **more).json()["id"] == file_id
            assert house.use(who, "content", file_id, **more).content == TEXT
            assert house.use(who, "chat", file_id).status_code == 200
    key = house.gateway.new_user(user_id="only-b", models=["b"])["key"]
    narrow = House(house.gateway, *fresh, {**house.keys, "only-b": key})
    upstream.forget_requests()
    for use in ("retrieve", "content", "delete", "chat"):
        answer = narrow.use("only-b", use, encoded(raw, "a"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_access_denied")
    for who in ("bob", "nobody"):
        assert every(refused(house, who, house.files), 403)
        # An account may have two model names; the file is still Alice's by the other one.
        forged = {k: v for k, v in forgeries(house).items() if k.startswith("another ")}
        assert every(refused(house, who, forged), 404)
        assert upstream.requests() == []
        forged = {k: v for k, v in forgeries(house).items() if k not in forged}
        assert set(refused(house, who, forged).values()) <= {400, 404}
        upstream.forget_requests()
    assert house.use("bob", "delete", raw, **hints).status_code == 200
    house.gateway.kill()


def test_what_a_key_is_shown_is_what_it_may_use(house):
    key = house.gateway.new_user(user_id="narrow", models=["a"])["key"]
    with closing(house.gateway.client(key)) as client:
        assert [m.id for m in client.models.list()] == ["a"]
        upload = partial(client.files.create, file=("a.txt", b"x"), purpose="assistants")
        for name in ("a", "a-too", "b", "openai/gpt-4o", "azure/gpt-4o-west"):
            may = name == "a"
            calls: list[Callable[[], Any]] = [
                partial(client.chat.completions.create, model=name, messages=ask()),
                partial(client.responses.create, model=name, input="hello"),
                partial(upload, extra_body={"target_model_names": name}),
                partial(upload, extra_body={"model": name}),
                partial(client.files.list, extra_query={"model": name}),
            ]
            for call in calls:
                if may:
                    call()
                    continue
                with pytest.raises(openai.PermissionDeniedError) as error:
                    call()
                assert error.value.code == "model_access_denied"
        for file in client.files.list():
            client.files.delete(file.id)


def test_deleting_by_any_id_deletes_the_whole_file(house):
    """Last, for it takes Alice's files away."""
    for name in ("raw id of its copy in the west", "raw id of the encoded", "raw"):
        file_id = house.files[name]
        assert house.use("alice", "delete", file_id).json() == {
            "id": file_id,
            "object": "file",
            "deleted": True,
        }
    assert house.east.files() == house.west.files() == []
    for file_id in house.files.values():
        for who in ("alice", "bob", "root"):
            assert house.use(who, "retrieve", file_id).status_code in (403, 404)

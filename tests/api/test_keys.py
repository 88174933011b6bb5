"""/key/*: bodies in, keys out; a secret is shown once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.db.engine import connect
from app.services.access import Access
from tests.access_builders import (
    MASTER_KEY,
    Client,
    everything,
    issue,
    make_app,
    statements,
)
from tests.tables import make_tables


@pytest.fixture
def access(database):
    return Access(database, MASTER_KEY)


@pytest.fixture
def root(database, access):
    return Client(make_app(database, access).test_client(), MASTER_KEY)


def _error(response, status, param=None):
    assert response.status_code == status, response.text
    error = response.get_json()["error"]
    assert error["param"] == param
    return error


def test_an_administrator_makes_a_key_for_nobody_or_anybody(root):
    nobodys = root.post("/key/generate").get_json()
    assert nobodys["user_id"] is None
    anybodys = root.post("/key/generate", {"user_id": "new"}).get_json()
    assert anybodys["user_id"] == "new"
    assert root.get("/user/info", user_id="new").get_json()["user_info"]["user_role"] == (
        "internal_user"
    )


WRITTEN = {
    "user_id": "alice",
    "key_alias": "prod",
    "models": ["gpt"],
    "metadata": {"a": [1, None]},
    "blocked": True,
}


@pytest.mark.parametrize("route", ["generate", "update"])
def test_what_is_written_reads_back_and_null_clears(root, route):
    if route == "generate":
        token = root.post("/key/generate", {**WRITTEN, "duration": "1d"}).get_json()["token"]
    else:
        token = root.post("/key/generate").get_json()["token"]
        changed = root.post("/key/update", {"key": token, **WRITTEN, "duration": "1d"})
        assert changed.status_code == 200
    shown = root.get("/key/info", key=token).get_json()
    assert shown["key"] == token
    assert {name: shown["info"][name] for name in WRITTEN} == WRITTEN
    assert shown["info"]["expires"]
    cleared = root.post(
        "/key/update", {"key": token, "duration": None, **dict.fromkeys(WRITTEN)}
    ).get_json()
    assert {name: cleared[name] for name in (*WRITTEN, "expires")} == {
        "user_id": None,
        "key_alias": None,
        "models": [],
        "metadata": {},
        "blocked": False,
        "expires": None,
    }


def test_a_secret_is_shown_once(root, access):
    made = root.post("/key/generate", {"user_id": "alice", "key_alias": "prod"}).get_json()
    secret = made["key"]
    alice = root.acting_as(secret)
    answers = [
        alice.get("/key/info"),
        alice.get("/key/info", key=secret),
        alice.get("/key/list"),
        alice.get("/user/info"),
        alice.get("/user/list"),
        alice.post("/key/update", {"key": secret, "metadata": {}}),
        root.get("/key/list"),
        root.get("/user/info", user_id="alice"),
        root.post("/key/block", {"key": secret}),
        root.post("/key/unblock", {"key": secret}),
        root.get("/key/info", key="sk-unknown"),
        root.post("/key/delete", {"keys": [secret]}),
        alice.get("/key/info"),
    ]
    assert [answer.status_code for answer in answers] == [200] * 10 + [404, 200, 401]
    assert all("sk-unknown" not in answer.text for answer in answers)
    assert all(secret not in answer.text for answer in answers)


def test_keys_are_named_by_secret_hash_or_alias(root):
    for name in ("key", "token", "key_alias"):
        made = root.post("/key/generate", {"key_alias": "prod"}).get_json()
        assert root.get("/key/info", key=made[name]).get_json()["key"] == made["token"]
        for path in ("/key/block", "/key/unblock"):
            assert root.post(path, {"key": made[name]}).get_json()["token"] == made["token"]
        assert root.post("/key/delete", {"keys": [made[name]]}).get_json() == {
            "deleted_keys": [made["token"]]
        }
    made = root.post("/key/generate", {"key_alias": "prod"}).get_json()
    assert root.get("/key/info", key_alias="prod").get_json()["key"] == made["token"]
    root.post("/key/block", {"key_alias": "prod"})
    assert root.get("/key/info", key_alias="prod").get_json()["info"]["blocked"] is True
    assert root.post("/key/delete", {"key_aliases": ["prod"]}).status_code == 200


def test_an_alias_of_several_keys_is_400(root, database):
    for user_id in ("alice", "bob"):
        root.post("/key/generate", {"user_id": user_id, "key_alias": "prod"})
    before = everything(database)
    for answer in (
        root.get("/key/info", key_alias="prod"),
        root.post("/key/update", {"key": "prod", "models": ["x"]}),
        root.post("/key/delete", {"key_aliases": ["prod"]}),
        root.post("/key/block", {"key_alias": "prod"}),
        root.post("/key/regenerate", {"key_alias": "prod"}),
    ):
        _error(answer, 400, "key_alias")
    assert everything(database) == before


def test_an_alias_is_unique_for_its_owner(root):
    assert root.post("/key/generate", {"user_id": "a", "key_alias": "x"}).status_code == 200
    _error(root.post("/key/generate", {"user_id": "a", "key_alias": "x"}), 409, "key_alias")
    assert root.post("/key/generate", {"user_id": "b", "key_alias": "x"}).status_code == 200
    assert root.post("/key/generate", {"key_alias": "x"}).status_code == 200
    _error(root.post("/key/generate", {"key_alias": "x"}), 409, "key_alias")


def test_twenty_calls_at_once_make_one_alias_and_one_user(tmp_path):
    database = connect(f"sqlite:///{tmp_path / 'manifold.db'}")
    make_tables(database)
    app = make_app(database)

    def call(number):
        client = Client(app.test_client(), MASTER_KEY)
        client.post("/key/generate", {"user_id": "new"})
        body = {"user_id": "new", "key_alias": "prod"}
        return client.post("/key/generate", body).status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(call, range(20)))
    assert sorted(statuses) == [200] + [409] * 19
    database.engine.dispose()


def test_a_new_user_is_made_once_by_many_first_keys(database, root):
    app = make_app(database)

    def call(number):
        client = Client(app.test_client(), MASTER_KEY)
        return client.post("/key/generate", {"user_id": f"new-{number % 3}"}).status_code

    workers = 1 if database.engine.dialect.name == "sqlite" else 8
    with ThreadPoolExecutor(workers) as pool:
        assert set(pool.map(call, range(24))) == {200}
    assert root.get("/user/list").get_json()["total"] == 3


def test_unknown_keys_are_404_and_bad_names_400(root):
    for name in ("sk-unknown", "0" * 64, "nobody", "' OR 1=1--", "a" * 1000):
        _error(root.get("/key/info", key=name), 404, "key")
        _error(root.post("/key/update", {"key": name}), 404, "key")
        _error(root.post("/key/delete", {"keys": [name]}), 404, "key")
        _error(root.post("/key/regenerate", {"key": name}), 404, "key")
    for name in ("", "a\x00", "a" * 1_000, "\ud800"):
        status = 404 if len(name) == 1_000 else 400
        _error(root.post("/key/block", {"key": name}), status, "key")
    _error(root.get("/key/info"), 400, "key")
    _error(root.get("/key/info", key="a", key_alias="a"), 400, "key_alias")
    _error(root.post("/key/block"), 400, "key")
    _error(root.post("/key/delete"), 400, "keys")
    _error(root.post("/key/delete", {"keys": []}), 400, "keys")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/key/generate", {"soft_budget": 1}, "soft_budget"),
        ("/key/generate", {"allowed_routes": ["/*"]}, "allowed_routes"),
        ("/key/generate", {"duration": "soon"}, "duration"),
        ("/key/generate", {"user_id": "default_user_id"}, "user_id"),
        ("/key/generate", {"models": [None]}, "models[0]"),
        ("/key/generate", {"metadata": 1}, "metadata"),
        ("/key/update", {"key": "prod", "soft_budget": 1}, "soft_budget"),
        ("/key/update", {"key": "prod", "token": "x"}, "token"),
        ("/key/update", {"models": []}, "key"),
        ("/key/regenerate", {"key": "prod", "models": []}, "models"),
        ("/key/regenerate", {"key": "prod", "grace_period": "x"}, "grace_period"),
    ],
    ids=str,
)
def test_a_bad_field_is_named_and_nothing_changes(root, database, path, body, param):
    root.post("/key/generate", {"key_alias": "prod"})
    before = everything(database)
    _error(root.post(path, body), 400, param)
    assert everything(database) == before


def test_renewal_with_and_without_grace(root, access):
    old = issue(access, "alice")
    renewed = root.acting_as(old).post("/key/regenerate", {"key": old, "grace_period": "1h"})
    new = renewed.get_json()["key"]
    assert new != old
    for secret in (old, new):
        assert root.acting_as(secret).get("/key/info").status_code == 200
    newest = root.acting_as(new).post("/key/regenerate", {"key": new}).get_json()["key"]
    assert [root.acting_as(s).get("/key/info").status_code for s in (old, new, newest)] == [
        401, 401, 200,
    ]  # fmt: skip


def test_keys_come_in_pages_within_three_statements(root, database, access):
    viewer = root.acting_as(issue(access, "seen"))
    for number in range(7):
        root.post("/key/generate", {"key_alias": f"key-{number}"})
    seen = statements(database)
    pages = [root.get("/key/list", page=page, size=3).get_json() for page in (1, 2, 3)]
    assert len(seen) <= 3 * 3
    assert [len(page["keys"]) for page in pages] == [3, 3, 2]
    assert {(p["total_count"], p["total_pages"], p["size"]) for p in pages} == {(8, 3, 3)}
    assert [page["current_page"] for page in pages] == [1, 2, 3]
    aliases = [key["key_alias"] for page in pages for key in page["keys"]]
    assert aliases == [*(f"key-{number}" for number in reversed(range(7))), None]
    seen.clear()
    assert viewer.get("/key/list").get_json()["total_count"] == 1
    assert len(seen) <= 3
    assert root.get("/key/list", key_alias="key-3").get_json()["total_count"] == 1
    assert root.get("/key/list", user_id="seen", page_size=1).get_json()["size"] == 1

"""/user/*: bodies in, users out."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.db.engine import connect
from app.services.access import Access
from app.services.callers import operator
from tests.access_builders import (
    MASTER_KEY,
    Client,
    everything,
    issue,
    make_app,
    sign_in,
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
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    return error


def test_the_seeds_curl_call(root):
    body = {"models": ["gpt-4o-mini-openai"], "user_id": "user_123"}
    answer = root.post("/user/new", body).get_json()
    assert answer["user_id"] == "user_123"
    assert answer["models"] == ["gpt-4o-mini-openai"]
    assert answer["user_role"] == "internal_user"
    assert answer["key"].startswith("sk-") and len(answer["key"]) >= 35
    assert answer["key_name"] == f"sk-...{answer['key'][-4:]}"
    assert len(answer["token"]) == 64
    assert answer["expires"] is None and answer["created_at"]
    assert (answer["metadata"], answer["key_alias"], answer["blocked"]) == ({}, None, False)
    info = root.acting_as(answer["key"]).get("/user/info").get_json()
    assert info["user_id"] == "user_123"
    assert info["user_info"]["models"] == ["gpt-4o-mini-openai"]
    assert [key["token"] for key in info["keys"]] == [answer["token"]]
    assert answer["key"] not in str(info)


def test_an_id_is_made_when_there_is_none(root):
    first, second = root.post("/user/new").get_json(), root.post("/user/new").get_json()
    assert first["user_id"] != second["user_id"]


def test_without_a_first_key_its_fields_are_null(root):
    answer = root.post("/user/new", {"user_id": "a", "auto_create_key": False}).get_json()
    assert {answer[name] for name in ("key", "key_name", "token", "expires", "key_alias")} == {None}
    assert root.get("/user/info", user_id="a").get_json()["keys"] == []


WRITTEN = {
    "user_email": "Alice@Example.org",
    "user_alias": "Alice Ü 👩‍💻",
    "user_role": "proxy_admin_viewer",
    "models": ["gpt", "openai/*"],
    "metadata": {"team": {"name": "x"}, "n": 1.5, "nul": "\x00"},
    "blocked": True,
}


@pytest.mark.parametrize("route", ["new", "update"])
def test_what_is_written_reads_back_and_null_clears(root, route):
    if route == "new":
        assert root.post("/user/new", {"user_id": "a", **WRITTEN}).status_code == 200
    else:
        root.post("/user/new", {"user_id": "a"})
        assert root.post("/user/update", {"user_id": "a", **WRITTEN}).status_code == 200
    shown = root.get("/user/info", user_id="a").get_json()["user_info"]
    assert {name: shown[name] for name in WRITTEN} == WRITTEN
    nulls = dict.fromkeys(set(WRITTEN) - {"user_role"})
    cleared = root.post("/user/update", {"user_id": "a", **nulls}).get_json()
    assert cleared["user_email"] is None and cleared["user_alias"] is None
    assert (cleared["models"], cleared["metadata"], cleared["blocked"]) == ([], {}, False)
    assert cleared["user_role"] == "proxy_admin_viewer"
    # The e-mail is free again.
    assert root.post("/user/new", {"user_email": "alice@example.org"}).status_code == 200


def test_an_update_leaves_alone_what_it_does_not_name(root):
    root.post("/user/new", {"user_id": "a", **WRITTEN})
    shown = root.post("/user/update", {"user_id": "a", "user_alias": "b"}).get_json()
    assert {name: shown[name] for name in WRITTEN} == {**WRITTEN, "user_alias": "b"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_budget": 1}, "max_budget"),
        ({"soft_budget": 1}, "soft_budget"),
        ({"user_role": "king"}, "user_role"),
        ({"user_role": None}, "user_role"),
        ({"models": "gpt"}, "models"),
        ({"models": [1]}, "models[0]"),
        ({"models": ["a\x00"]}, "models[0]"),
        ({"metadata": []}, "metadata"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"x": "y" * 70_000}}, "metadata"),
        ({"blocked": "true"}, "blocked"),
        ({"blocked": 1}, "blocked"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": "a" * 256}, "user_id"),
        ({"user_id": "a\x00"}, "user_id"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"user_id": " a"}, "user_id"),
        ({"user_id": "default_user_id"}, "user_id"),
        ({"user_email": "nobody"}, "user_email"),
        ({"user_email": "a@b\x00"}, "user_email"),
        ({"user_alias": "\x00"}, "user_alias"),
        ({"metadata": {"half": "\ud800"}}, "metadata"),
        ({"key_alias": "sk-like-a-secret"}, "key_alias"),
        ({"key_alias": "0" * 64}, "key_alias"),
        ({"duration": "1y"}, "duration"),
        ({"duration": "0d"}, "duration"),
        ({"duration": "-1d"}, "duration"),
        ({"duration": 30}, "duration"),
        ({"duration": "999999999w"}, "duration"),
        ({"duration": "999999999mo"}, "duration"),
        ({"duration": "٣d"}, "duration"),
    ],
    ids=str,
)
def test_a_bad_field_is_named_and_nothing_is_made(root, database, body, param):
    error = _error(root.post("/user/new", body), 400, param)
    assert error["type"] == "invalid_request_error"
    assert everything(database) == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"metadata": {"a": NaN}}',
     b'{"metadata": {"a": 1e999}}', b'{"metadata": {"a": ' + b"9" * 5000 + b"}}",
     b'{"metadata": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
     b'{"metadata": {"a": ' + b"[" * 200 + b"]" * 200 + b"}}"],
    ids=range(11),
)  # fmt: skip
def test_a_body_that_is_no_good_json_object_is_400(root, database, body):
    response = root.post("/user/new", data=body, content_type="application/json")
    assert response.status_code == 400
    assert response.get_json()["error"]["type"] == "invalid_request_error"
    assert everything(database) == []


def test_a_huge_body_is_refused_unread(root):
    _error(root.post("/user/new", {"user_alias": "a" * 2_000_000}), 413)


@pytest.mark.parametrize(
    ("duration", "days"),
    [("86400s", 1), ("1440m", 1), ("24h", 1), ("30d", 30), ("1w", 7), ("1mo", None)],
)
def test_durations(root, access, duration, days):
    answer = root.post("/user/new", {"duration": duration}).get_json()
    end = access.authenticate(answer["key"]).expires_at
    assert end.isoformat() == answer["expires"]
    made = access.key_info(operator(), answer["token"])["created_at"]
    length = (end - end.fromisoformat(made)).total_seconds() / 86400
    if days is None:
        assert 27.9 < length < 31.1
    else:
        assert length == pytest.approx(days, abs=0.01)


def test_an_existing_user_is_a_conflict_and_gets_no_key(root, database):
    root.post("/user/new", {"user_id": "user_123", "user_email": "a@b.c"})
    before = everything(database)
    for body, param in (
        ({"user_id": "user_123"}, "user_id"),
        ({"user_id": "USER_123"}, "user_id"),
        ({"user_email": "A@B.C"}, "user_email"),
    ):
        response = root.post("/user/new", body)
        assert _error(response, 409, param)["type"] == "conflict_error"
        assert response.headers["x-should-retry"] == "false"
    assert everything(database) == before


@pytest.mark.parametrize("body", [{"user_id": "same"}, {"user_email": "same@example.org"}])
def test_twenty_calls_at_once_make_one_user(tmp_path, body):
    database = connect(f"sqlite:///{tmp_path / 'manifold.db'}")
    make_tables(database)
    app = make_app(database)

    def call(_):
        return Client(app.test_client(), MASTER_KEY).post("/user/new", body).status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(call, range(20)))
    assert sorted(statuses) == [200] + [409] * 19
    assert len(everything(database)) == 2
    database.engine.dispose()


def test_deleting_users(root, database, access):
    alice = issue(access, "alice")
    issue(access, "bob")
    answer = root.post("/user/delete", {"user_ids": ["alice"], "user_id": "bob"}).get_json()
    assert answer["deleted_users"] == ["alice", "bob"]
    assert answer["deleted_keys"] == 2
    assert everything(database) == []
    assert root.acting_as(alice).get("/user/info").status_code == 401
    _error(root.post("/user/delete", {"user_ids": ["alice"]}), 404, "user_id")
    _error(root.post("/user/delete", {}), 400, "user_ids")
    _error(root.post("/user/delete", {"user_ids": ["x"], "files": "burn"}), 400, "files")
    _error(root.post("/user/delete", {"user_ids": ["x"], "files": "transfer"}), 400, "transfer_to")


def test_people_see_only_themselves(root, access):
    alice = root.acting_as(issue(access, "alice"))
    issue(access, "bob")
    assert alice.get("/user/info").get_json()["user_id"] == "alice"
    _error(alice.get("/user/info", user_id="bob"), 403, "user_id")
    _error(alice.get("/user/info", user_id="nobody"), 403, "user_id")
    listed = alice.get("/user/list").get_json()
    assert ([user["user_id"] for user in listed["users"]], listed["total"]) == (["alice"], 1)
    _error(root.get("/user/info", user_id="nobody"), 404, "user_id")
    assert root.get("/user/info").get_json()["user_id"] == "default_user_id"


def test_users_come_in_pages(root, access):
    for number in range(7):
        issue(access, f"user-{number}")
    pages = [root.get("/user/list", page=page, size=3).get_json() for page in (1, 2, 3, 4)]
    assert [len(page["users"]) for page in pages] == [3, 3, 1, 0]
    assert {(page["total"], page["total_pages"], page["size"]) for page in pages} == {(7, 3, 3)}
    assert [page["page"] for page in pages] == [1, 2, 3, 4]
    ids = [user["user_id"] for page in pages for user in page["users"]]
    assert ids == [f"user-{number}" for number in reversed(range(7))]
    found = root.get("/user/list", user_email="x@y.z").get_json()
    assert (found["total"], found["total_pages"]) == (0, 0)


@pytest.mark.parametrize("path", ["/user/list", "/key/list"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("page", "0"), ("page", "-1"), ("page", "x"), ("page", "9" * 30), ("size", "0"),
     ("size", "101"), ("size", "500"), ("size", ""), ("page_size", "101"), ("sort", "; DROP"),
     ("user_id", "a\x00"), ("user_id", "' OR 1=1--\n")],
)  # fmt: skip
def test_a_bad_query_names_its_parameter(root, path, name, value):
    _error(root.get(path, **{name: value}), 400, name)


@pytest.mark.parametrize("text", ["' OR 1=1--", '"', ";", "x'); DROP TABLE users;--", "%", "_"])
def test_sql_in_a_field_is_only_text(root, database, access, text):
    sign_in(access, "alice")
    made = root.post("/user/new", {"user_id": text, "user_alias": text, "key_alias": text})
    assert made.status_code == 200
    assert root.get("/user/info", user_id=text).get_json()["user_id"] == text
    assert root.get("/key/info", key=text).get_json()["key"] == made.get_json()["token"]
    assert root.get("/user/list", user_id=text).get_json()["total"] == 1
    assert root.post("/user/delete", {"user_id": text}).get_json()["deleted_keys"] == 1
    assert len(everything(database)) == 2

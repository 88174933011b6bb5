"""The audit trail as requests write it: actions, refusals, and no answer without its row."""

import json
from dataclasses import replace

import pytest
from sqlalchemy import text

from app.api import audit
from app.api.auth import OPEN_ROUTES
from app.db.audit import AuditFilter
from app.db.engine import connect
from app.factory import create_app
from app.services.access import Access
from app.services.audit import Trail
from app.services.callers import Role
from app.settings import Settings
from tests.access_builders import MASTER_KEY
from tests.api.conftest import ACCOUNTS, DEPLOYMENTS, Gateway, Person, error_of
from tests.api.test_roles import ROUTES, ROW, FakeAccount, normalised
from tests.fakes import FakeProvider

LOOKING = {
    "GET /user/info", "GET /user/list", "GET /key/info", "GET /key/list", "GET /health",
    "GET /files", "GET /files/<file_id>", "GET /batches", "GET /batches/<batch_id>",
    "GET /fine_tuning/jobs", "GET /fine_tuning/jobs/<job_id>", "GET /models",
    "GET /fine_tuning/jobs/<job_id>/<any(events, checkpoints):what>",
    "GET /models/<path:model>", "GET /model/info", "GET /model_group/info", "GET /metrics",
}  # fmt: skip
WITHOUT = {
    "POST /uploads", "POST /uploads/<upload_id>/parts", "POST /uploads/<upload_id>/cancel",
    "POST /chat/completions", "POST /responses", "POST /completions", "POST /embeddings",
    "POST /engines/<path:model>/chat/completions", "POST /engines/<path:model>/completions",
    "POST /engines/<path:model>/embeddings",
}  # fmt: skip
"""Routes that change no file, no batch, no job, no user and no key."""


class Holder(FakeAccount):
    """Counts the downloads that were closed."""

    let_go = 0

    def content(self, *arguments):
        download = super().content(*arguments)
        return replace(download, close=self._let_go)

    def _let_go(self):
        self.let_go += 1


@pytest.fixture
def gateway(tmp_path, api_database) -> Gateway:
    """The app over fakes that can do everything."""
    fakes: dict[str, FakeProvider] = {d.id: Holder(d) for d in (*DEPLOYMENTS, *ACCOUNTS)}
    settings = Settings(
        deployments=DEPLOYMENTS,
        file_accounts=ACCOUNTS,
        master_key=MASTER_KEY,
        data_dir=tmp_path / "data",
    )
    app = create_app(settings, api_database, fakes)
    return Gateway(app, api_database, Access(api_database, MASTER_KEY), fakes, settings.data_dir)


def rows(gateway: Gateway, **among):
    return Trail(gateway.database, 365).newest(AuditFilter(**among), 1000)


def told(gateway: Gateway, **among):
    return [(row.action, row.status, row.actor, row.target) for row in rows(gateway, **among)]


def test_every_route_that_changes_something_is_noted():
    app = create_app(Settings(), connect("sqlite://"), {})
    noted = {
        f"{method} {normalised(rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if app.view_functions[rule.endpoint] in audit.ACTIONS
    }
    everything = {
        f"{method} {normalised(rule)}" for method, rule in ROUTES if rule not in OPEN_ROUTES
    }
    assert noted == everything - LOOKING - WITHOUT


def test_a_file_from_upload_to_delete(gateway, alice):
    file_id = alice.upload(b"12345", target_model_names="a")
    assert alice.get(f"/v1/files/{file_id}/content").data == b"12345"
    assert alice.open("HEAD", f"/v1/files/{file_id}/content").status_code == 200
    assert alice.get(f"/v1/files/{file_id}/content", headers={"Range": "bytes=1-2"}).data
    assert alice.delete(f"/v1/files/{file_id}").status_code == 200
    assert [
        (r.action, r.status, r.actor, r.target, r.bytes) for r in rows(gateway, actor="alice")
    ] == [
        ("file.upload", 200, "alice", file_id, 5),
        ("file.download", 200, "alice", file_id, 5),
        ("file.download", 206, "alice", file_id, 2),
        ("file.delete", 202, "alice", file_id, 5),
        ("file.delete", 200, "alice", file_id, 5),
    ]


@pytest.mark.parametrize("way", [{"model": "a"}, {"custom_llm_provider": "openai"}])
def test_a_files_row_names_the_id_that_was_handed_out(gateway, alice, way):
    file_id = alice.upload(**way)
    assert told(gateway, actor="alice") == [("file.upload", 200, "alice", file_id)]


def test_an_upload_in_parts_is_an_upload(gateway, alice):
    announced = {"purpose": "user_data", "filename": "a", "bytes": 3, "mime_type": "text/plain"}
    made = alice.post("/v1/uploads", json={**announced, "model": "a"}).get_json()["id"]
    refused = alice.post(f"/v1/uploads/{made}/complete", json={"part_ids": ["part_x"]})
    assert refused.status_code == 400
    assert told(gateway, actor="alice") == [("file.upload", 400, "alice", made)]


def test_a_batch_and_a_job(gateway, alice):
    file_id = alice.upload(ROW, name="a.jsonl", purpose="batch", target_model_names="a")
    wanted = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = alice.post("/v1/batches", json={"input_file_id": file_id, **wanted}).get_json()["id"]
    alice.post(f"/v1/batches/{batch}/cancel")
    training = alice.upload(ROW, name="a.jsonl", purpose="fine-tune", target_model_names="a")
    job = alice.post("/v1/fine_tuning/jobs", json={"model": "a", "training_file": training})
    job_id = job.get_json()["id"]
    alice.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    assert [row for row in told(gateway, actor="alice") if row[0] != "file.upload"] == [
        ("batch.create", 202, "alice", batch),
        ("batch.create", 200, "alice", batch),
        ("batch.cancel", 202, "alice", batch),
        ("batch.cancel", 200, "alice", batch),
        ("fine_tuning.create", 202, "alice", job_id),
        ("fine_tuning.create", 200, "alice", job_id),
        ("fine_tuning.cancel", 202, "alice", job_id),
        ("fine_tuning.cancel", 200, "alice", job_id),
    ]


def test_what_is_refused_is_noted_with_who_tried(gateway, alice, bob):
    file_id = alice.upload()
    assert bob.delete(f"/v1/files/{file_id}").status_code == 403
    assert bob.get(f"/v1/files/{file_id}/content").status_code == 403
    assert bob.get("/v1/files/file-nothing/content").status_code == 404
    assert bob.send(purpose="nonsense").status_code == 400
    assert (
        bob.post("/user/update", json={"user_id": "bob", "user_role": "proxy_admin"}).status_code
        == 403
    )
    raised = bob.post("/key/generate", json={"user_id": "alice", "models": ["a"]})
    assert raised.status_code == 403
    assert told(gateway, actor="bob") == [
        ("file.delete", 403, "bob", file_id),
        ("file.download", 403, "bob", file_id),
        ("file.download", 404, "bob", "file-nothing"),
        ("file.upload", 400, "bob", None),
        # Refused by the guard: the body was not read.
        ("user.update", 403, "bob", None),
        ("key.generate", 403, "bob", "alice"),
    ]
    assert rows(gateway, actor="bob")[-1].fields == ["models", "user_id"]


def test_a_row_says_where_a_request_came_from_and_which_it_was(gateway, alice):
    alice.upload(headers={"x-request-id": "mine-1"})
    [row] = rows(gateway, actor="alice")
    key = gateway.access.authenticate(alice.secret).key_hash
    assert (row.request_id, row.address, row.key) == ("mine-1", "127.0.0.1", key[:12])
    assert row.role == "internal_user"


def test_who_has_no_good_key_writes_nothing(gateway, alice):
    file_id = alice.upload()
    before = len(rows(gateway))
    nobody = Person(gateway.app, "sk-" + "x" * 40)
    assert nobody.delete(f"/v1/files/{file_id}").status_code == 401
    assert gateway.app.test_client().post("/user/new").status_code == 401
    assert len(rows(gateway)) == before


def test_looking_is_not_noted(gateway, alice):
    file_id = alice.upload()
    before = len(rows(gateway))
    for path in ("/v1/files", f"/v1/files/{file_id}", "/user/info", "/key/list", "/v1/models"):
        assert alice.get(path).status_code == 200
    assert len(rows(gateway)) == before


def test_no_value_is_ever_kept(gateway, root, alice):
    hidden = "val-ue-of-a-field"
    fields = {"user_alias": hidden, "metadata": {hidden: hidden}, "models": [hidden]}
    made = root.post(
        "/user/new", json={"user_id": "carol", "key_alias": hidden, **fields}
    ).get_json()
    root.post("/user/update", json={"user_id": "carol", "user_email": f"{hidden}@b.c"})
    root.post("/key/update", json={"key": made["key"], "metadata": {"x": hidden}})
    alice.post("/key/update", json={"key": made["key"], "metadata": {hidden: hidden}})
    root.post("/key/regenerate", json={"key": made["key"]})
    root.post("/key/delete", json={"keys": [made["token"], hidden]})
    alice.upload(hidden.encode(), name=f"{hidden}.txt")
    kept = repr([vars(row) for row in rows(gateway)])
    assert len(rows(gateway)) >= 8
    assert hidden not in kept
    assert made["key"] not in kept and alice.secret not in kept


def _without_trail(gateway):
    with gateway.database.write() as session:
        session.execute(text("ALTER TABLE audit RENAME TO away"))


def test_a_download_without_its_row_is_refused_and_its_copy_is_let_go(gateway, alice):
    file_id = alice.upload(b"12345", target_model_names="a")
    _without_trail(gateway)
    response = alice.get(f"/v1/files/{file_id}/content")
    error_of(response, 503, code="database_unavailable")
    assert b"12345" not in response.data
    assert response.headers["Retry-After"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert [fake.let_go for fake in gateway.fakes.values() if fake.let_go] == [1]


def test_a_refusal_stays_what_it_is_when_it_cannot_be_noted(gateway, alice, bob, caplog):
    file_id = alice.upload()
    _without_trail(gateway)
    error_of(bob.delete(f"/v1/files/{file_id}"), 403)
    assert "audit_failed" in {record.message for record in caplog.records}


@pytest.mark.parametrize("role", [Role.INTERNAL_USER_VIEWER, Role.PROXY_ADMIN_VIEWER])
def test_what_a_viewer_tries_is_noted(gateway, role):
    viewer = gateway.person("v", role=role)
    assert viewer.post("/key/generate", json={}).status_code == 403
    assert told(gateway, actor="v") == [("key.generate", 403, "v", None)]
    assert rows(gateway, actor="v")[0].role == role.value


def test_a_hostile_id_stays_on_one_line(gateway, alice):
    alice.delete("/v1/files/a%0d%0aevent:%20fake%1b%5b2J")
    [row] = rows(gateway, actor="alice")
    assert "\n" not in row.target and "\x1b" not in row.target
    assert json.dumps(row.target).isascii()

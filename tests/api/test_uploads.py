"""/uploads through the whole app: bodies, ids, limits, owners, and the openai client itself."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from sqlalchemy import update
from werkzeug.serving import make_server

from app import ids
from app.db.engine import connect
from app.db.tables import UploadSession, now
from app.factory import create_app
from app.services.access import Access
from app.services.callers import Role
from app.services.uploads import PART_BYTES
from app.settings import Settings
from tests.access_builders import MASTER_KEY, issue
from tests.api.conftest import multipart
from tests.builders import make_deployment
from tests.tables import make_tables

MB = 1024 * 1024
PREFIXES = ("", "/v1", "/openai")


@pytest.fixture
def database(tmp_path):
    database = connect(f"sqlite:///{tmp_path / 'manifold.db'}")
    make_tables(database)
    yield database
    database.engine.dispose()


@pytest.fixture
def app(database, tmp_path):
    return make_app(database, tmp_path)


def make_app(database, tmp_path, **more):
    settings = Settings(
        deployments=(
            make_deployment("d-1", model_name="gpt", provider="local"),
            make_deployment("d-2", model_name="gemini", provider="local"),
        ),
        file_accounts=(make_deployment("d-3", model_name=None, provider="local"),),
        master_key=MASTER_KEY,
        data_dir=tmp_path / "data",
        **{"max_file_size_mb": 80, **more},
    )
    return create_app(settings, database)


@pytest.fixture
def access(database):
    return Access(database, MASTER_KEY)


@pytest.fixture
def alice(app, access):
    return Person(app, issue(access, "alice"))


@pytest.fixture
def bob(app, access):
    return Person(app, issue(access, "bob"))


class Person:
    """Somebody's view of the app."""

    def __init__(self, app, secret):
        self._client = app.test_client()
        self.secret = secret

    def post(self, path, body=None, *, headers=None, **options):
        if body is not None:
            options["json"] = body
        headers = {"Authorization": f"Bearer {self.secret}", **(headers or {})}
        return self._client.post(path, headers=headers, **options)

    def get(self, path):
        return self._client.get(path, headers={"Authorization": f"Bearer {self.secret}"})

    def announce(self, **more):
        return self.post("/v1/uploads", announced(**more))

    def send(self, upload_id, content, prefix="/v1"):
        # Werkzeug's own encoder leaves a temporary file open for a large form.
        head = b'--edge\r\nContent-Disposition: form-data; name="data"; filename="upload"\r\n\r\n'
        return self.post(
            f"{prefix}/uploads/{upload_id}/parts",
            data=head + content + b"\r\n--edge--\r\n",
            content_type="multipart/form-data; boundary=edge",
        )

    def pending(self, content=b"abc", **more):
        """The ids of an upload and of its only part."""
        upload = self.announce(bytes=len(content), **more).get_json()
        return upload["id"], self.send(upload["id"], content).get_json()["id"]


def announced(**more):
    body = {
        "filename": "notes.txt",
        "purpose": "user_data",
        "bytes": 6,
        "mime_type": "text/plain",
        "target_model_names": "gpt, gemini",
    }
    return {key: value for key, value in {**body, **more}.items() if value is not None}


def unified(file):
    found = ids.decode(file["id"])
    assert isinstance(found, ids.UnifiedId)
    return found


def error(response, status, param=None):
    assert response.status_code == status, response.text
    found = response.get_json()["error"]
    assert found["param"] == param
    return found


@pytest.mark.parametrize("prefix", PREFIXES)
def test_from_create_to_content(alice, prefix, tmp_path):
    body = announced(expires_after={"anchor": "created_at", "seconds": 3600})
    upload = alice.post(f"{prefix}/uploads", body).get_json()
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "bytes": 6,
        "created_at": upload["created_at"],
        "expires_at": upload["created_at"] + 3600,
        "filename": "notes.txt",
        "purpose": "user_data",
        "status": "pending",
        "file": None,
    }
    parts = []
    for content in (b"abc", b"def"):
        part = alice.send(upload["id"], content, prefix).get_json()
        assert part == {
            "id": part["id"],
            "object": "upload.part",
            "created_at": part["created_at"],
            "upload_id": upload["id"],
        }
        parts.append(part["id"])
    done = alice.post(
        f"{prefix}/uploads/{upload['id']}/complete",
        {"part_ids": parts, "md5": hashlib.md5(b"abcdef").hexdigest()},
    ).get_json()
    file = done["file"]
    assert done == {**upload, "status": "completed", "file": file}
    assert file["expires_at"] == file["created_at"] + 3600
    assert unified(file).target_model_names == ("gpt", "gemini")
    with alice.get(f"/v1/files/{file['id']}/content") as content:
        assert content.data == b"abcdef"
        assert content.content_type == "text/plain"
    assert alice.get(f"/v1/files/{file['id']}").get_json() == file
    assert list((tmp_path / "data" / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("selector", "kind"),
    [
        ({"json": {"target_model_names": ["gpt"]}}, ids.UnifiedId),
        ({"query": {"target_model_names[]": "gpt"}}, ids.UnifiedId),
        ({"headers": {"x-litellm-target-model-names": "gpt"}}, ids.UnifiedId),
        ({"json": {"model": "gpt"}}, ids.EncodedId),
        ({"headers": {"x-litellm-model": "gpt"}}, ids.EncodedId),
        ({"json": {"custom_llm_provider": "local"}}, ids.RawId),
        ({"query": {"provider": "local"}}, ids.RawId),
        ({}, ids.RawId),
    ],
)
def test_the_selector_is_read_from_every_place_of_create(alice, selector, kind):
    body = announced(**{"bytes": 3, "target_model_names": None, **selector.get("json", {})})
    upload = alice.post(
        "/v1/uploads",
        body,
        query_string=selector.get("query"),
        headers=selector.get("headers"),
    ).get_json()
    part = alice.send(upload["id"], b"abc").get_json()
    # A client with such a header sends it with every call.
    done = alice.post(
        f"/v1/uploads/{upload['id']}/complete",
        {"part_ids": [part["id"]]},
        headers=selector.get("headers"),
    ).get_json()
    assert isinstance(ids.decode(done["file"]["id"]), kind)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"purpose": "nonsense"}, "purpose"),
        ({"purpose": None}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"filename": None}, "filename"),
        ({"filename": ""}, "filename"),
        ({"filename": 7}, "filename"),
        ({"mime_type": None}, "mime_type"),
        ({"mime_type": "pdf"}, "mime_type"),
        ({"mime_type": "text/plain\n"}, None),
        ({"mime_type": "a;b/c"}, "mime_type"),
        ({"bytes": None}, "bytes"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": True}, "bytes"),
        ({"bytes": "6"}, "bytes"),
        ({"bytes": 1.5}, "bytes"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after[seconds]"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after[anchor]"),
        ({"expires_after": [1]}, "expires_after"),
        ({"target_model_names": "gpt, nope"}, "model"),
        ({"api_base": "http://elsewhere"}, "api_base"),
    ],
)
def test_what_is_wrong_with_create_is_named(alice, change, param):
    if param is None:  # White space around a type is no mistake.
        assert alice.announce(**change).status_code == 200
    else:
        error(alice.announce(**change), 400, param)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"'])
def test_a_body_that_is_no_object_is_refused(alice, body):
    for path in ("/v1/uploads", f"/v1/uploads/{alice.pending()[0]}/complete"):
        response = alice.post(path, data=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert response.get_json()["error"]["type"] == "invalid_request_error"


def test_two_selectors_that_differ_are_refused(alice):
    error(alice.announce(model="gpt"), 400, "target_model_names")
    upload_id, part_id = alice.pending()
    response = alice.post(
        f"/v1/uploads/{upload_id}/complete", {"part_ids": [part_id], "model": "gpt"}
    )
    assert error(response, 400, "model")["code"] == "ambiguous_routing"


def test_a_size_over_the_limit_is_413_naming_both(alice):
    told = error(alice.announce(bytes=80 * MB + 1), 413, "bytes")
    assert str(80 * MB) in told["message"]
    assert str(80 * MB + 1) in told["message"]


def test_name_and_type_are_cleaned_as_those_of_files(alice):
    upload_id, part_id = alice.pending(
        filename="../../etc/a\u202e\x00.pdf", mime_type="application/octet-stream"
    )
    done = alice.post(f"/v1/uploads/{upload_id}/complete", {"part_ids": [part_id]}).get_json()
    assert done["filename"] == done["file"]["filename"] == "a.pdf"
    assert unified(done["file"]).mime_type == "application/pdf"


# Parts


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"data": "text"},
        {"file": ("upload", None, b"abc")},
        {"data": ("upload", None, b"")},
        {"data": [("upload", None, b"a"), ("upload", None, b"b")]},
    ],
    ids=["nothing", "a field", "another name", "empty", "two"],
)
def test_a_part_is_one_file_named_data(alice, form, tmp_path):
    upload_id = alice.announce().get_json()["id"]
    # Written here: Werkzeug's own test client leaves a line end out before an empty file.
    body, content_type = multipart(*form.items())
    response = alice.post(f"/v1/uploads/{upload_id}/parts", data=body, content_type=content_type)
    error(response, 400, "data")
    left = tmp_path / "data" / "uploads" / upload_id.removeprefix("upload_")
    assert not left.exists() or list(left.iterdir()) == []


def test_a_part_that_is_no_form_is_refused(alice):
    upload_id = alice.announce().get_json()["id"]
    error(alice.post(f"/v1/uploads/{upload_id}/parts", {"data": "abc"}), 400, "data")


def test_a_part_over_the_total_is_refused_and_not_kept(alice, tmp_path):
    upload_id = alice.announce(bytes=2).get_json()["id"]
    told = error(alice.send(upload_id, b"abc"), 400, "data")
    assert "3 bytes" in told["message"]
    assert "2 bytes" in told["message"]
    assert list((tmp_path / "data" / "uploads").glob("*/*")) == []


def test_a_part_has_at_most_64_mb(alice, tmp_path):
    assert PART_BYTES == 64 * MB
    upload_id = alice.announce(bytes=80 * MB).get_json()["id"]
    # Told by its length, and found while it is read.
    error(alice.send(upload_id, b"x" * (67 * MB)), 413, "data")
    told = error(alice.send(upload_id, b"x" * (64 * MB + 1)), 413, "data")
    assert str(64 * MB) in told["message"]
    assert list((tmp_path / "data" / "uploads").glob("*/*")) == []
    assert alice.send(upload_id, b"x" * (64 * MB)).status_code == 200


# Complete and cancel


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "part_ids"),
        ({"part_ids": []}, "part_ids"),
        ({"part_ids": "part_1"}, "part_ids"),
        ({"part_ids": [7]}, "part_ids[0]"),
        ({"part_ids": ["part_1"]}, "part_ids"),
        ({"part_ids": None}, "part_ids"),
        ({"part_ids": ["part_1"], "md5": "abc"}, "md5"),
        ({"part_ids": ["part_1"], "md5": "0" * 32 + "\n"}, "md5"),
        ({"part_ids": ["part_1"], "md5": 7}, "md5"),
    ],
)
def test_what_is_wrong_with_complete_is_named(alice, body, param):
    upload_id, _ = alice.pending()
    error(alice.post(f"/v1/uploads/{upload_id}/complete", body), 400, param)


def test_cancel_and_what_comes_after(alice):
    upload_id, part_id = alice.pending()
    for _ in range(2):
        cancelled = alice.post(f"/v1/uploads/{upload_id}/cancel")
        assert cancelled.get_json()["status"] == "cancelled"
    error(alice.send(upload_id, b"a"), 400, "upload_id")
    complete = {"part_ids": [part_id]}
    error(alice.post(f"/v1/uploads/{upload_id}/complete", complete), 400, "upload_id")
    other_id, other_part = alice.pending()
    alice.post(f"/v1/uploads/{other_id}/complete", {"part_ids": [other_part]})
    error(alice.post(f"/v1/uploads/{other_id}/cancel"), 400, "upload_id")


def test_an_expired_upload_is_named(alice, database):
    upload_id, _ = alice.pending()
    with database.write() as session:
        session.execute(update(UploadSession).values(expires_at=now()))
    told = error(alice.send(upload_id, b"abc"), 400, "upload_id")
    assert told["code"] == "upload_expired"
    assert upload_id in told["message"]


def every_call(person, upload_id, part_id):
    return (
        person.send(upload_id, b"abc"),
        person.post(f"/v1/uploads/{upload_id}/complete", {"part_ids": [part_id]}),
        person.post(f"/v1/uploads/{upload_id}/cancel"),
    )


@pytest.mark.parametrize(("hide", "status"), [(False, 403), (True, 404)])
def test_a_strangers_upload_is_not_touched(database, tmp_path, access, hide, status):
    app = make_app(database, tmp_path, hide_foreign_objects=hide)
    alice, bob = (Person(app, issue(access, name)) for name in ("alice", "bob"))
    upload_id, part_id = alice.pending()
    for response in every_call(bob, upload_id, part_id):
        assert response.status_code == status
    done = alice.post(f"/v1/uploads/{upload_id}/complete", {"part_ids": [part_id]})
    assert done.get_json()["status"] == "completed"


def test_an_upload_that_nobody_has_is_404(alice):
    for upload_id in ("upload_" + "f" * 32, "upload_", "..", "a%00b"):
        for response in every_call(alice, upload_id, "part_1"):
            error(response, 404, "upload_id")


def test_viewers_and_the_keyless_are_refused(app, access, alice):
    upload_id, part_id = alice.pending()
    viewers = [
        Person(app, issue(access, role.value, role=role))
        for role in (Role.INTERNAL_USER_VIEWER, Role.PROXY_ADMIN_VIEWER)
    ]
    for person, status in ((viewers[0], 403), (viewers[1], 403), (Person(app, "sk-no"), 401)):
        assert person.announce().status_code == status
        assert {r.status_code for r in every_call(person, upload_id, part_id)} == {status}


def test_an_admin_may_finish_what_is_alices(app, alice):
    upload_id, part_id = alice.pending()
    root = Person(app, MASTER_KEY)
    done = root.post(f"/v1/uploads/{upload_id}/complete", {"part_ids": [part_id]}).get_json()
    assert alice.get(f"/v1/files/{done['file']['id']}").get_json() == done["file"]


# The real client


@pytest.fixture
def client(app, alice):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=alice.secret, max_retries=0
    ) as client:
        yield client
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_openai_client_uploads_a_file_in_chunks(client, tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(bytes(range(256)) * 1000)
    done = client.with_options(
        default_headers={"x-litellm-target-model-names": "gpt,gemini"}
    ).uploads.upload_file_chunked(
        file=path,
        mime_type="text/plain",
        purpose="user_data",
        part_size=100_000,
        md5=hashlib.md5(path.read_bytes()).hexdigest(),
    )
    assert done.status == "completed"
    assert done.file.filename == "large.txt"
    assert done.file.bytes == path.stat().st_size
    assert client.files.content(done.file.id).read() == path.read_bytes()


def test_the_openai_clients_own_steps(client):
    contents = [bytes([number]) * 50_000 for number in range(6)]
    upload = client.uploads.create(
        bytes=300_000,
        filename="a.jsonl",
        mime_type="application/jsonl",
        purpose="user_data",
        extra_body={"model": "gpt"},
    )
    with ThreadPoolExecutor(6) as pool:
        parts = list(
            pool.map(lambda data: client.uploads.parts.create(upload.id, data=data), contents)
        )
    assert {part.upload_id for part in parts} == {upload.id}
    done = client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    assert done.model_dump(exclude_none=True).keys() >= upload.model_dump(exclude_none=True).keys()
    assert isinstance(ids.decode(done.file.id), ids.EncodedId)
    assert client.files.content(done.file.id).read() == b"".join(contents)
    with pytest.raises(openai.BadRequestError, match="is completed"):
        client.uploads.cancel(upload.id)
    other = client.uploads.create(
        bytes=1, filename="b", mime_type="text/plain", purpose="user_data"
    )
    assert client.uploads.cancel(other.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as refused:
        client.uploads.parts.create(other.id, data=b"x")
    assert json.loads(refused.value.response.text)["error"]["code"] == "upload_cancelled"

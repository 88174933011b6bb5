"""/files through the whole app: forms in, file objects, lists and bytes out."""

import io
import json
import unicodedata
from typing import Any
from urllib.parse import quote

import pytest

from app import ids
from app.errors import UpstreamError, UpstreamRejected
from app.objects import PURPOSES
from app.transfers import Download
from tests.access_builders import statements
from tests.api.conftest import Person, error_of, make_gateway, multipart
from tests.builders import spooled
from tests.fakes import FakeProvider

PREFIXES = ("", "/v1", "/openai")
FILE = ("file", ("a.txt", "text/plain", b"content"))
PURPOSE = ("purpose", "user_data")
BATCH_LINE = (
    b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"a"}}\n'
)


def post(person: Person, *parts: tuple[str, Any], path: str = "/v1/files", **options: Any) -> Any:
    body, content_type = multipart(*parts)
    return person.post(path, data=body, content_type=content_type, **options)


class Chunked(io.RawIOBase):
    """A body of unknown length."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._rest = io.BytesIO(body)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._rest.readinto(memoryview(buffer)[:1000])


def post_chunked(person: Person, *parts: tuple[str, Any]) -> Any:
    body, content_type = multipart(*parts)
    return person.post(
        "/v1/files",
        environ_overrides={
            "wsgi.input": Chunked(body),
            "wsgi.input_terminated": True,
            "CONTENT_TYPE": content_type,
            "HTTP_TRANSFER_ENCODING": "chunked",
        },
    )


# Upload


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_file_goes_where_its_targets_are(alice, gateway, prefix):
    response = post(alice, PURPOSE, ("target_model_names", "a, b"), FILE, path=f"{prefix}/files")
    assert response.status_code == 200, response.text
    file = response.get_json()
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": 7,
        "created_at": file["created_at"],
        "expires_at": None,
        "filename": "a.txt",
        "purpose": "user_data",
        "status": "processed",
        "status_details": None,
    }
    meaning = ids.decode(file["id"])
    assert isinstance(meaning, ids.UnifiedId)
    assert meaning.target_model_names == ("a", "b")
    for name in ("a-1", "b-1"):
        assert list(gateway.fakes[name].contents.values()) == [b"content"]
        (upload,) = gateway.fakes[name].called("upload")[0]
        assert (upload.filename, upload.mime_type, upload.purpose) == (
            "a.txt",
            "text/plain",
            "user_data",
        )
    assert spooled(gateway.data_dir) == []


SELECTORS = [
    ([("model", "a")], {}, "", ids.EncodedId, {"a-1"}),
    ([], {"x-litellm-model": "b"}, "", ids.EncodedId, {"b-1"}),
    ([], {}, "?model=a", ids.EncodedId, {"a-1"}),
    ([("target_model_names", "a,b")], {}, "", ids.UnifiedId, {"a-1", "b-1"}),
    ([("target_model_names[]", ["a", "b"])], {}, "", ids.UnifiedId, {"a-1", "b-1"}),
    ([("target_model_names", ["a", "b"])], {}, "", ids.UnifiedId, {"a-1", "b-1"}),
    ([("target_model_names", '["a","b"]')], {}, "", ids.UnifiedId, {"a-1", "b-1"}),
    ([], {"x-litellm-target-model-names": "b"}, "", ids.UnifiedId, {"b-1"}),
    ([], {}, "?target_model_names=a,b", ids.UnifiedId, {"a-1", "b-1"}),
    ([("custom_llm_provider", "azure")], {}, "", ids.RawId, {"azure-account"}),
    ([("provider", "openai")], {}, "", ids.RawId, {"openai-account"}),
    ([], {"custom-llm-provider": "azure"}, "", ids.RawId, {"azure-account"}),
    ([], {}, "?provider=azure", ids.RawId, {"azure-account"}),
    ([], {}, "", ids.RawId, {"openai-account"}),
]


@pytest.mark.parametrize(("fields", "headers", "query", "kind", "where"), SELECTORS)
@pytest.mark.parametrize("file_first", [True, False])
def test_every_place_of_a_selector(alice, gateway, fields, headers, query, kind, where, file_first):
    parts = [FILE, PURPOSE, *fields] if file_first else [*fields, PURPOSE, FILE]
    response = post(alice, *parts, path=f"/v1/files{query}", headers=headers)
    assert response.status_code == 200, response.text
    assert isinstance(ids.decode(response.get_json()["id"]), kind)
    assert {name for name, fake in gateway.fakes.items() if fake.contents} == where


@pytest.mark.parametrize("provider", ["azure", "openai"])
def test_the_providers_own_path(alice, gateway, provider):
    path = f"/{provider}/v1/files"
    file_id = alice.upload(path=path)
    assert gateway.fakes[f"{provider}-account"].called("upload")
    assert alice.get(f"{path}/{file_id}").get_json()["id"] == file_id
    assert alice.get(f"{path}/{file_id}/content").data == b"content"
    assert [f["id"] for f in alice.get(path).get_json()["data"]] == [file_id]
    assert alice.delete(f"{path}/{file_id}").get_json()["deleted"] is True


def test_an_unknown_provider_is_named_with_the_known_ones(alice, gateway):
    for response in (alice.send(path="/vertex_ai/v1/files"), alice.get("/vertex_ai/v1/files")):
        error = error_of(response, 400, "custom_llm_provider", "provider_not_found")
        assert all(word in error["message"] for word in ("vertex_ai", "openai", "azure"))
    assert not gateway.calls()


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"target_model_names": "a,nope"}, 400, "model_not_found", "model"),
        ({"model": "nope"}, 400, "model_not_found", "model"),
        ({"target_model_names": "a,b"}, 403, "model_access_denied", "model"),
        ({"model": "b"}, 403, "model_access_denied", "model"),
        ({"target_model_names": "a", "model": "a"}, 400, "ambiguous_routing", "target_model_names"),
        ({"api_base": "http://evil"}, 400, "forbidden_parameter", "api_base"),
        ({"model": "a", "purpose": "bacth"}, 400, None, "purpose"),
        ({"model": "a", "purpose": ["batch", "vision"]}, 400, None, "purpose"),
        ({"model": "a", "expires_after[anchor]": "now"}, 400, None, "expires_after[anchor]"),
    ],
)
def test_what_is_wrong_goes_nowhere(gateway, fields, status, code, param):
    person = gateway.person("carol", key={"models": ["a"]})
    error = error_of(person.send(**fields), status, param, code)
    assert "nope" not in str(fields) or "nope" in error["message"]
    assert not gateway.calls()
    assert person.get("/v1/files").get_json()["data"] == []


def test_a_wrong_purpose_is_told_the_right_ones(reader):
    error = error_of(reader.send(purpose="bacth"), 400, "purpose")
    assert "bacth" in error["message"]
    assert all(purpose in error["message"] for purpose in PURPOSES)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_every_purpose_of_openai_is_taken(alice, purpose):
    content = BATCH_LINE if purpose == "batch" else b"{}"
    assert alice.send(content, purpose=purpose, name="a.jsonl", model="a").status_code == 200


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([PURPOSE], "file"),
        ([FILE], "purpose"),
        ([PURPOSE, ("file", "text without a name")], "file"),
        ([PURPOSE, ("file", ("a.txt", None, b""))], "file"),
        ([PURPOSE, ("file", ("", None, b""))], "file"),
        ([PURPOSE, FILE, FILE], "file"),
        ([PURPOSE, FILE, ("other", ("b", None, b"b"))], "file"),
        ([PURPOSE, ("File", ("a.txt", None, b"x"))], "file"),
    ],
    ids=["no file", "no purpose", "text", "empty", "nothing chosen", "two", "other", "case"],
)
def test_a_missing_empty_or_second_part(reader, still, parts, param):
    error_of(post(reader, *parts), 400, param)
    error_of(post_chunked(reader, *parts), 400, param)
    assert not still.calls()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"purpose": "batch"}'),
        ("application/x-www-form-urlencoded", b"purpose=batch"),
        ("multipart/form-data", b"x"),
        ("", b""),
        ("text/plain", b"x"),
    ],
)
def test_what_is_no_form_is_400(reader, content_type, body):
    error_of(reader.post("/v1/files", data=body, content_type=content_type), 400, "file")


def test_a_broken_form_is_400(reader):
    body, content_type = multipart(PURPOSE, FILE)
    for cut in (5, 60, len(body) - 3):
        response = reader.post("/v1/files", data=body[:cut], content_type=content_type)
        error_of(response, 400, None, "invalid_form")


def test_the_key_is_asked_for_before_the_body_is_read(client):
    class Untouchable(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _: Any) -> int:
            raise AssertionError("the body was read")

    for headers in ({}, {"Authorization": "Bearer sk-nobody-has-this-key"}):
        response = client.post(
            "/v1/files",
            headers=headers,
            environ_overrides={
                "wsgi.input": Untouchable(),
                "wsgi.input_terminated": True,
                "CONTENT_TYPE": "multipart/form-data; boundary=" + "-" * 10_000_000,
            },
        )
        error_of(response, 401)
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_an_upload_of_unknown_length(alice, gateway):
    response = post_chunked(alice, FILE, PURPOSE, ("model", "a"))
    assert response.status_code == 200, response.text
    assert list(gateway.fakes["a-1"].contents.values()) == [b"content"]


NAMES = [
    ("näme 日本.jsonl", None),
    (unicodedata.normalize("NFD", "näme.txt"), "näme.txt"),
    ("\U0001f600\U0001f468\u200d\U0001f469.pdf", None),
    ("a%22b.txt", 'a"b.txt'),
    ("a%0D%0AX-Evil: 1.txt", "aX-Evil: 1.txt"),
    ("a\u202egnp.exe", "agnp.exe"),
    ("x" * 600, "x" * 500),
    ("../../etc/passwd", "passwd"),
    ("C:\\\\x", "x"),
    ("a\0b.txt", "ab.txt"),
    ("日" * 500, None),
    ("'; DROP TABLE files; --", None),
    ("<script>alert(1)<", "script>alert(1)<"),
    (" ", "upload"),
]


@pytest.mark.parametrize(("sent", "kept"), NAMES)
def test_any_name_comes_back_clean(alice, gateway, sent, kept):
    kept = sent if kept is None else kept
    kept = kept.removeprefix("<") if sent.startswith("<") else kept
    if sent.startswith("<"):
        kept = sent
    response = alice.send(model="a", name=sent)
    assert response.status_code == 200, response.text
    file = response.get_json()
    assert file["filename"] == kept
    assert gateway.fakes["a-1"].called("upload")[0][0].filename == kept
    content = alice.get(f"/v1/files/{file['id']}/content")
    assert content.headers["Content-Disposition"] == (
        f"attachment; filename*=UTF-8''{quote(kept, safe='')}"
    )
    assert "X-Evil" not in content.headers
    assert alice.get("/v1/files?model=a").get_json()["data"][0]["filename"] == kept


def test_a_header_that_is_no_utf8_is_400_or_kept(alice):
    body, content_type = multipart(PURPOSE, ("file", ("NAME", None, b"x")))
    body = body.replace(b"NAME", b"n\xe4me.txt")
    response = alice.post("/v1/files", data=body, content_type=content_type)
    assert response.status_code in (200, 400), response.text


@pytest.mark.parametrize("kind", ["audio/wav", None, "application/octet-stream"])
def test_the_provider_sees_the_true_type(alice, gateway, kind):
    alice.upload(name="a.wav", type=kind, model="a")
    assert gateway.fakes["a-1"].called("upload")[0][0].mime_type == "audio/wav"


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
        {"expires_after.anchor": "created_at", "expires_after.seconds": "3600"},
        {"expires_after": '{"anchor": "created_at", "seconds": 3600}'},
        {"expires_after": '{"anchor": "created_at", "seconds": "3600"}'},
    ],
)
def test_an_expiry_is_forwarded_and_told(alice, gateway, fields):
    file = alice.send(model="a", **fields).get_json()
    assert file["expires_at"] - file["created_at"] == 3600
    assert gateway.fakes["a-1"].called("upload")[0][0].expires_after.seconds == 3600


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        *(
            (
                {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds},
                "expires_after[seconds]",
            )
            for seconds in ("3599", "2592001", "1e4", "-1", "", "٣٦٠٠", "9" * 5000, "3600.0")
        ),
        ({"expires_after": "nonsense"}, "expires_after"),
        ({"expires_after": "[]"}, "expires_after"),
        ({"expires_after": "[" * 100_000}, "expires_after"),
        ({"expires_after": "{}"}, "expires_after[anchor]"),
        ({"expires_after": '{"anchor":"created_at","seconds":true}'}, "expires_after[seconds]"),
        ({"expires_after": '{"anchor":null,"seconds":3600}'}, "expires_after[anchor]"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": ["3600", "7200"]},
            "expires_after[seconds]",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_expiry_is_400(reader, still, fields, param):
    error_of(reader.send(model="a", **fields), 400, param)
    assert not still.calls()


def test_limits_name_themselves(tmp_path, api_database):
    gateway = make_gateway(
        tmp_path / "data", api_database, max_file_size_mb=2, max_batch_file_size_mb=1
    )
    person = gateway.person()
    for response in (
        person.send(b"x" * (2 * 1024 * 1024 + 1), model="a"),
        post_chunked(person, ("file", ("a", None, b"x" * (2 * 1024 * 1024 + 1)))),
    ):
        error = error_of(response, 413, "file", "file_too_large")
        assert "2097152" in error["message"]
    error = error_of(
        person.send(b"x" * (1024 * 1024 + 1), purpose="batch", name="a.jsonl", model="a"),
        413,
        "file",
        "file_too_large",
    )
    assert "1048576" in error["message"] and "1048577" in error["message"]
    assert person.send(b"x" * (2 * 1024 * 1024), model="a").status_code == 200
    assert len(gateway.fakes["a-1"].contents) == 1


def test_an_upstreams_refusal_reaches_the_client(alice, gateway):
    gateway.fakes["a-1"].fail_next(
        UpstreamRejected(
            "Invalid value for purpose.",
            status=400,
            type="invalid_request_error",
            code="invalidPayload",
            provider="openai",
            headers={"retry-after": "3"},
        )
    )
    response = alice.send(model="a")
    error = error_of(response, 400, None, "invalidPayload")
    assert "Invalid value for purpose." in error["message"]
    assert (response.headers["llm-provider"], response.headers["retry-after"]) == ("openai", "3")


# List


def test_a_list_is_the_callers_own(alice, bob, root):
    mine, his = alice.upload(model="a"), bob.upload(model="a")
    assert [f["id"] for f in alice.get("/v1/files").get_json()["data"]] == [mine]
    assert [f["id"] for f in bob.get("/v1/files").get_json()["data"]] == [his]
    assert [f["id"] for f in root.get("/v1/files?user_id=bob").get_json()["data"]] == [his]
    error_of(bob.get("/v1/files?user_id=alice"), 403)


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        *(
            (f"limit={limit}", "limit", code)
            for limit, code in (
                ("0", "integer_below_min_value"),
                ("-1", "integer_below_min_value"),
                ("10001", "integer_above_max_value"),
                ("9" * 5000, "integer_above_max_value"),
                ("abc", "invalid_type"),
                ("1e3", "invalid_type"),
                ("--5", "invalid_type"),
                ("-", "invalid_type"),
                ("+5", "invalid_type"),
                ("5.0", "invalid_type"),
                ("%D9%A3", "invalid_type"),
                ("%205", "invalid_type"),
                ("5%0A", "invalid_type"),
                ("", "invalid_type"),
                ("0x10", "invalid_type"),
            )
        ),
        ("order=up", "order", None),
        ("order=DESC", "order", None),
        ("purpose=bacth", "purpose", None),
        ("purpose=", "purpose", None),
        ("after=file-nobody", "after", None),
        ("after=", "after", None),
        ("after=%00", "after", None),
        ("after=../x", "after", None),
        ("limit=1&limit=2", "limit", None),
        ("order=asc&order=desc", "order", None),
        ("api_base=x", "api_base", "forbidden_parameter"),
    ],
)
def test_a_wrong_query_is_400_with_its_param(reader, query, param, code):
    error = error_of(reader.get(f"/v1/files?{query}"), 400, param, code)
    assert len(error["message"]) < 300


@pytest.mark.parametrize("user_id", ["%00", "a%0Ab", "%20a", "", "x" * 5000])
def test_a_users_id_that_nobody_can_have_is_refused(root, user_id):
    error_of(root.get(f"/v1/files?user_id={user_id}"), 400, "user_id")


@pytest.mark.parametrize("limit", ["1", "10000", "007"])
def test_a_right_limit(reader, limit):
    assert reader.get(f"/v1/files?limit={limit}").status_code == 200


def test_pages_have_everything_once(alice):
    made = [alice.upload(model="a") for _ in range(5)]
    for order in ("asc", "desc"):
        seen: list[str] = []
        after = ""
        while True:
            page = alice.get(f"/v1/files?limit=2&order={order}{after}").get_json()
            assert page["first_id"] == page["data"][0]["id"]
            assert page["last_id"] == page["data"][-1]["id"]
            seen += [file["id"] for file in page["data"]]
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert sorted(seen) == sorted(made)


def test_an_empty_list_is_one(reader):
    assert reader.get("/v1/files").get_json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"query_string": "target_model_names=b"},
        {"query_string": "target_model_names[]=b"},
        {"headers": {"x-litellm-target-model-names": "b"}},
        {"json": {"target_model_names": "b"}},
        {"json": {"target_model_names": ["b"]}},
        {"data": b'{"target_model_names": "b"}'},
    ],
    ids=str,
)
def test_a_list_is_asked_for_in_any_way(alice, options):
    alice.upload(target_model_names="a")
    wanted = alice.upload(target_model_names="b")
    response = alice.get("/v1/files", **options)
    assert [file["id"] for file in response.get_json()["data"]] == [wanted]


BODIES = [b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b"1"]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("GET", "/v1/files/file-1"),
        ("GET", "/v1/files/file-1/content"),
        ("DELETE", "/v1/files/file-1"),
        ("POST", "/v1/files/file-1/delete"),
    ],
)
def test_a_body_that_is_no_object_is_400(reader, method, path, body):
    error_of(reader.open(method, path, data=body), 400, None, "invalid_json")


def test_a_body_of_white_space_is_none(reader):
    assert reader.get("/v1/files", data=b" \r\n").status_code == 200


# One file


def test_an_id_is_enough_whatever_stands_beside_it(alice):
    for way in ({"model": "a"}, {"target_model_names": "a,b"}, {"provider": "azure"}):
        file_id = alice.upload(**way)
        for suffix in ("", "?model=nope", "?provider=nope", "?model=a&target_model_names=b"):
            response = alice.get(f"/v1/files/{file_id}{suffix}")
            assert response.get_json()["id"] == file_id, response.text
        content = alice.get(f"/v1/files/{file_id}/content", headers={"x-litellm-model": "nope"})
        assert content.data == b"content"
        gone = alice.delete(f"/v1/files/{file_id}", json={"custom_llm_provider": "nope"})
        assert gone.get_json() == {"id": file_id, "object": "file", "deleted": True}


@pytest.mark.parametrize(
    "file_id",
    [
        "file-unknown",
        "..",
        "%2e%2e",
        "a%2Fb",
        "a%00b",
        "a%0Ab",
        "a%3Fb",
        "a%23b",
        "%ED%A0%80",
        "日本",
        "x" * 5000,
        "gs:%2F%2Fbucket%2Fa",
        "file-bGl0ZWxsbTpmaWxlLWFiYzEyMzttb2RlbCxncHQtNG8tbGl0ZWxsbQ",
        ids.encode_unified("text/plain", ids.new_uuid(), ["a"]),
        ids.encode_file("../../x", "a"),
        ids.encode_file("file\0x", "a"),
    ],
)
def test_an_unknown_id_is_404_and_nobody_is_asked(reader, still, file_id):
    for method, path in (
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("DELETE", f"/v1/files/{file_id}"),
        ("POST", f"/v1/files/{file_id}/delete"),
    ):
        response = reader.open(method, path)
        assert response.status_code in (404, 405), response.text
        assert set(response.get_json()["error"]) == {"message", "type", "param", "code"}
    assert not still.calls()


def test_copies_are_told_to_who_asks(alice, root):
    file_id = alice.upload(target_model_names="a,b")
    (first, _) = alice.get(f"/v1/files/{file_id}?include=copies").get_json()["copies"]
    assert set(first) == {"model", "state", "expires_at"}
    (first, _) = root.get(f"/v1/files/{file_id}?include[]=copies").get_json()["copies"]
    assert {"deployment", "provider", "provider_file_id"} <= set(first)
    error_of(alice.get(f"/v1/files/{file_id}?include=secrets"), 400, "include")


def test_deleting_twice(alice):
    file_id = alice.upload(model="a")
    assert alice.post(f"/v1/files/{file_id}/delete").status_code == 200
    error_of(alice.delete(f"/v1/files/{file_id}"), 404, "id")
    error_of(alice.get(f"/v1/files/{file_id}"), 404, "id")
    error_of(alice.get(f"/v1/files/{file_id}/content"), 404, "id")


# Content


def test_content_says_what_it_is_and_does_not_run_in_a_browser(alice):
    file_id = alice.upload(b"<script>", name="a.html", type="text/html", model="a")
    response = alice.get(f"/v1/files/{file_id}/content")
    assert response.data == b"<script>"
    headers = response.headers
    assert headers["Content-Type"] == "text/html"
    assert headers["Content-Length"] == "8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''a.html"
    assert "sandbox" in headers["Content-Security-Policy"]
    assert headers["Accept-Ranges"] == "bytes"


def test_head_says_the_same_without_the_bytes(alice):
    file_id = alice.upload(b"12345", model="a")
    response = alice.open("HEAD", f"/v1/files/{file_id}/content")
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Content-Length"] == "5"


def test_a_part(alice):
    file_id = alice.upload(b"0123456789", model="a")
    path = f"/v1/files/{file_id}/content"
    response = alice.get(path, headers={"Range": "bytes=2-4"})
    assert (response.status_code, response.data) == (206, b"234")
    assert response.headers["Content-Range"] == "bytes 2-4/10"
    assert response.headers["Content-Length"] == "3"
    response = alice.get(path, headers={"Range": "bytes=10-"})
    error_of(response, 416)
    assert response.headers["Content-Range"] == "bytes */10"
    response = alice.get(path, headers={"Range": "bytes=0-1,3-4"})
    assert (response.status_code, response.data) == (200, b"0123456789")


def _giving(monkeypatch: Any, length: int | None, *chunks: bytes) -> list[bool]:
    closed: list[bool] = []
    monkeypatch.setattr(
        FakeProvider,
        "content",
        lambda *_: Download(iter(chunks), length, close=lambda: closed.append(True)),
    )
    return closed


def test_a_length_that_the_holder_does_not_say_is_the_rows(alice, monkeypatch):
    file_id = alice.upload(b"12345", model="a")
    closed = _giving(monkeypatch, None, b"12", b"345")
    response = alice.get(f"/v1/files/{file_id}/content")
    assert response.headers["Content-Length"] == "5"
    assert response.data == b"12345"
    response.close()
    assert closed


@pytest.mark.parametrize("chunks", [(b"12", b"34"), (b"12", b"3456"), (b"123456",), ()])
@pytest.mark.parametrize("said", [True, False])
def test_a_download_of_another_length_than_was_said_breaks(alice, monkeypatch, chunks, said):
    file_id = alice.upload(b"12345", model="a")
    _giving(monkeypatch, 5 if said else None, *chunks)
    got = b""
    with pytest.raises(UpstreamError):
        response = alice.get(f"/v1/files/{file_id}/content", buffered=False)
        assert response.headers["Content-Length"] == "5"
        for chunk in response.response:
            got += chunk
    assert len(got) < 5, "the client takes what is cut at its length for the whole"


def test_the_next_copy_is_read_when_the_first_fails(alice, gateway):
    file_id = alice.upload(target_model_names="a,b")
    gateway.fakes["a-1"].fail_next(UpstreamError("down"), method="content")
    gateway.fakes["b-1"].fail_next(UpstreamError("down"), method="content")
    first = alice.get(f"/v1/files/{file_id}/content")
    second = alice.get(f"/v1/files/{file_id}/content")
    third = alice.get(f"/v1/files/{file_id}/content")
    assert third.data == b"content"
    assert {first.status_code, second.status_code} <= {200, 502}


# Everywhere


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        ("abc-DEF_1.2:3", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ("", False),
        ("a\u00e4", False),
        ("<script>", False),
    ],
)
@pytest.mark.parametrize("path", ["/v1/files", "/nowhere", "/v1/files/file-x"])
def test_every_answer_has_a_request_id(reader, still, sent, is_kept, path):
    for person in (reader, still.app.test_client()):
        found = person.get(path, headers={"x-request-id": sent}).headers["x-request-id"]
        assert (found == sent) == is_kept
        assert is_kept or found.startswith("req_")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/files", "GET, HEAD, POST"),
        ("PATCH", "/v1/files/x", "DELETE, GET, HEAD"),
        ("OPTIONS", "/v1/files", "GET, HEAD, POST"),
    ],
)
def test_a_wrong_verb_is_405(reader, method, path, allowed):
    response = reader.open(method, path)
    error_of(response, 405)
    assert sorted(response.headers["Allow"].split(", ")) == allowed.split(", ")


@pytest.mark.parametrize(
    "path",
    [
        "//v1/files",
        "/v1//files",
        "/v1/../key/list",
        "/v1/%2e%2e/key/list",
        "/V1/files",
        "/key/list;x",
        "/key/list/",
        "/v1/files/",
        "/v1/files/x/y",
        "/v1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "TRACE"])
def test_a_crooked_path_opens_nothing(still, method, path):
    headers = {"X-Original-URL": "/health/liveness", "X-Forwarded-Prefix": "/health"}
    response = still.app.test_client().open(path, method=method, headers=headers)
    assert response.status_code in (400, 401, 404, 405), response.text


def test_messages_are_json_whatever_was_sent(reader):
    for body in (
        json.dumps({"model": "\ud800"}).encode(),
        json.dumps({"s3_\ud800": 1}).encode(),
        json.dumps({"target_model_names": "\udfff,\0"}).encode(),
        json.dumps({"custom_llm_provider": "\ud800\U0001f600"}).encode(),
    ):
        response = reader.get("/v1/files", data=body)
        assert response.status_code == 400, response.text
        json.loads(response.data)


@pytest.mark.parametrize("end", ["", "/content"])
def test_a_key_and_its_file_are_asked_for_once(gateway, alice, end):
    file_id = alice.upload(target_model_names="a")
    seen = statements(gateway.database)
    assert alice.get(f"/v1/files/{file_id}{end}").status_code == 200
    asked = [text for text in seen if text.startswith("SELECT")]
    assert len(asked) == 1, asked
    assert "FROM keys" in asked[0] and "JOIN files" in asked[0]


def test_what_changes_a_file_looks_at_it_when_it_does(gateway, alice):
    file_id = alice.upload(target_model_names="a")
    seen = statements(gateway.database)
    assert alice.delete(f"/v1/files/{file_id}").status_code == 200
    [key, *_] = [text for text in seen if text.startswith("SELECT")]
    assert "FROM keys" in key and "JOIN files" not in key

"""Limits as clients meet them: set by administrators, told in the envelope, before the body."""

import io
from typing import Any

import pytest

from app.api.form import MAX_FIELDS_BYTES
from app.services.limits import NAMES
from tests.api.conftest import Gateway, Person, error_of

LIMITS = {
    "rpm_limit": 100,
    "upload_rpm_limit": 10,
    "max_parallel_requests": 5,
    "max_files": 3,
    "max_bytes_stored": 1 << 40,
}


class Closing(Person):
    """Takes every answer to its end, unless it is said otherwise."""

    def open(self, method: str, path: str, **options: Any) -> Any:
        return super().open(method, path, **{"buffered": True, **options})


def made(root: Person, path: str, **fields: Any) -> dict[str, Any]:
    response = root.post(path, json=fields)
    assert response.status_code == 200, response.text
    return dict(response.get_json())


@pytest.fixture
def limited(gateway: Gateway, root: Person):
    """`limited(rpm_limit=1)`: somebody whose key has these limits."""

    def make(**limits: int) -> Person:
        return Closing(gateway.app, made(root, "/key/generate", user_id="carol", **limits)["key"])

    return make


def test_nobody_is_limited_unless_it_is_said(root):
    user = made(root, "/user/new", user_id="dora")
    key = made(root, "/key/generate", user_id="dora")
    assert {user[name] for name in NAMES} == {key[name] for name in NAMES} == {None}


def test_limits_are_set_shown_changed_and_cleared(root):
    made(root, "/user/new", user_id="dora", **LIMITS)
    key = made(root, "/key/generate", user_id="dora", **LIMITS)
    user = root.get("/user/info?user_id=dora").get_json()["user_info"]
    for shown in (user, key, root.get(f"/key/info?key={key['token']}").get_json()["info"]):
        assert {name: shown[name] for name in NAMES} == LIMITS
    changed = made(root, "/key/update", key=key["token"], rpm_limit=7, max_files=None)
    assert (changed["rpm_limit"], changed["max_files"], changed["upload_rpm_limit"]) == (
        7,
        None,
        10,
    )
    user = made(root, "/user/update", user_id="dora", max_bytes_stored=0)
    user = root.get("/user/info?user_id=dora").get_json()["user_info"]
    assert (user["max_bytes_stored"], user["rpm_limit"]) == (0, 100)


@pytest.mark.parametrize("value", [-1, 1.5, "5", True, [], 2**63])
@pytest.mark.parametrize("name", NAMES)
def test_a_limit_is_a_whole_number(root, name, value):
    error_of(root.post("/key/generate", json={name: value}), 400, name)


def test_a_key_that_its_user_makes_has_the_limits_of_the_calling_one(limited):
    carol = limited(**LIMITS)
    key = carol.post("/key/generate", json={}).get_json()
    assert {name: key[name] for name in NAMES} == LIMITS
    for name in NAMES:
        error_of(carol.post("/key/generate", json={name: None}), 403, name)
        error_of(carol.post("/key/generate", json={name: LIMITS[name] - 1}), 403, name)
        same = carol.post("/key/generate", json={name: LIMITS[name]})
        assert same.status_code == 200
        error_of(carol.post("/key/update", json={"key": key["token"], name: None}), 403, name)


def test_a_limited_key_does_not_renew_one_without_limits(limited, root):
    free = made(root, "/key/generate", user_id="carol")
    carol = limited(rpm_limit=100)
    error_of(carol.post("/key/regenerate", json={"key": free["token"]}), 403)
    own = carol.post("/key/regenerate", json={"key": carol.secret})
    assert (own.status_code, own.get_json()["rpm_limit"]) == (200, 100)


def test_too_many_requests_are_429(limited):
    carol = limited(rpm_limit=2)
    assert [carol.get("/v1/files").status_code for _ in range(2)] == [200, 200]
    response = carol.get("/v1/files")
    error = error_of(response, 429, code="rate_limit_exceeded")
    assert error["type"] == "rate_limit_error"
    assert 1 <= int(response.headers["Retry-After"]) <= 60


def test_what_a_role_may_not_do_counts_too(limited):
    carol = limited(rpm_limit=1)
    error_of(carol.post("/user/new", json={}), 403)
    error_of(carol.get("/v1/files"), 429)


def test_uploads_have_their_own_limit(limited):
    carol = limited(upload_rpm_limit=2)
    announced = {
        "filename": "a.txt",
        "purpose": "user_data",
        "bytes": 1,
        "mime_type": "text/plain",
        "target_model_names": "a",
    }
    assert carol.send(target_model_names="a").status_code == 200
    upload = carol.post("/v1/uploads", json=announced)
    assert upload.status_code == 200
    error_of(carol.send(target_model_names="a"), 429)
    error_of(carol.post("/v1/uploads", json=announced), 429)
    assert carol.get("/v1/files").status_code == 200
    # Its parts belong to an upload that was counted.
    parts = carol.post(
        f"/v1/uploads/{upload.get_json()['id']}/parts", data={"data": (io.BytesIO(b"x"), "part")}
    )
    assert parts.status_code == 200


class Untouched(io.RawIOBase):
    """A body that must not be read."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, _whence: int = 0) -> int:
        return offset

    def tell(self) -> int:
        return 0

    def readinto(self, _buffer: Any) -> int:
        raise AssertionError("the body was read")


def upload_unread(person: Person, length: int) -> Any:
    return person.post(
        "/v1/files",
        input_stream=Untouched(),
        environ_overrides={"CONTENT_LENGTH": str(length)},
        content_type="multipart/form-data; boundary=b",
    )


def test_a_refused_request_s_body_is_not_read(limited):
    error_of(upload_unread(limited(rpm_limit=0), 1000), 429)
    error_of(upload_unread(limited(upload_rpm_limit=0), 1000), 429)
    error_of(upload_unread(limited(max_parallel_requests=0), 1000), 429)
    error_of(upload_unread(limited(max_files=0), 1000), 429, code="file_limit_exceeded")
    too_much = 1000 + 2 * MAX_FIELDS_BYTES + 1
    full = upload_unread(limited(max_bytes_stored=1000), too_much)
    error_of(full, 413, "file", "storage_limit_exceeded")


def test_over_the_limits_nothing_is_stored_or_sent(gateway, limited):
    carol = limited(max_bytes_stored=10)
    assert carol.send(b"1234567", target_model_names="a,b").status_code == 200
    calls = gateway.calls()
    error_of(carol.send(b"1234", target_model_names="a"), 413, "file", "storage_limit_exceeded")
    assert gateway.calls() == calls
    assert len(carol.get("/v1/files").get_json()["data"]) == 1
    assert carol.send(b"123", target_model_names="a").status_code == 200


def test_an_upload_in_parts_is_refused_when_it_is_announced(limited):
    carol = limited(max_bytes_stored=10)
    announced = {
        "filename": "a.txt",
        "purpose": "user_data",
        "bytes": 6,
        "mime_type": "text/plain",
        "target_model_names": "a",
    }
    assert carol.post("/v1/uploads", json=announced).status_code == 200
    # What is announced already counts, or many could be announced at once.
    error_of(carol.post("/v1/uploads", json=announced), 413, "file", "storage_limit_exceeded")


def test_a_streamed_answer_counts_until_its_end(limited):
    carol = limited(max_parallel_requests=1)
    file_id = carol.upload(b"x" * 1000, target_model_names="a")
    answer = carol.get(f"/v1/files/{file_id}/content", buffered=False)
    assert answer.status_code == 200
    error_of(carol.get("/v1/files"), 429)
    assert answer.get_data() == b"x" * 1000
    answer.close()
    assert carol.get("/v1/files").status_code == 200


def test_an_error_gives_its_place_back(limited):
    carol = limited(max_parallel_requests=1)
    for _ in range(3):
        error_of(carol.get("/v1/files/nothing"), 404, "id")
        error_of(carol.post("/user/new", json={}), 403)

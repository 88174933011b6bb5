"""Tokens: one refresh for all threads, early, from a file or a text; failures tell no secret."""

import datetime as dt
import json
import threading
import time

import jwt
import pytest
import responses
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from marshmallow import ValidationError

from app.errors import UpstreamAuthFailed
from app.providers.google import credentials as module
from app.providers.google.credentials import Credentials, check_credentials
from tests.builders import make_deployment

TOKEN_URI = "https://tokens.example/token"
AUDIENCE = "https://oauth2.googleapis.com/token"
"""What the library writes there, wherever the token endpoint is."""
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
INFO = {
    "type": "service_account",
    "project_id": "project-1",
    "private_key_id": "k1",
    "private_key": PEM,
    "client_email": "me@project-1.iam.gserviceaccount.com",
    "client_id": "1",
    "token_uri": TOKEN_URI,
}


def make(given=INFO) -> Credentials:
    return Credentials(given, make_deployment("d", provider="vertex_ai"))


class Tokens:
    """The token endpoint: how often it was asked, and what it says next."""

    def __init__(self, mock: responses.RequestsMock) -> None:
        self.asked: list[dict] = []
        self.seconds = 3599
        self.delay = 0.0
        self.refusal: tuple[int, str] | None = None
        mock.add_callback("POST", TOKEN_URI, self._answer)

    def _answer(self, request):
        time.sleep(self.delay)
        text = request.body if isinstance(request.body, str) else request.body.decode()
        assertion = text.partition("assertion=")[2].partition("&")[0]
        claims = jwt.decode(assertion, KEY.public_key(), algorithms=["RS256"], audience=AUDIENCE)
        self.asked.append(claims)
        if self.refusal:
            return self.refusal[0], {}, self.refusal[1]
        told = {"access_token": f"t{len(self.asked)}", "expires_in": self.seconds}
        return 200, {}, json.dumps({**told, "token_type": "Bearer"})


@pytest.fixture
def tokens():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield Tokens(mock)


@pytest.mark.parametrize("form", ["mapping", "text", "path"])
def test_an_account_is_given_as_a_mapping_a_text_or_a_path(tokens, tmp_path, form):
    path = tmp_path / "account.json"
    path.write_text(json.dumps(INFO))
    given = {"mapping": INFO, "text": json.dumps(INFO), "path": str(path)}[form]
    found = make(given)
    assert found.headers() == {"Authorization": "Bearer t1"}
    assert found.project() == "project-1"
    [claims] = tokens.asked
    assert claims["iss"] == INFO["client_email"]
    assert claims["scope"] == module.SCOPE
    assert claims["exp"] - claims["iat"] <= 3600


def test_fifty_threads_cause_one_refresh(tokens):
    tokens.delay = 0.1
    found, together, seen = make(), threading.Barrier(50), []

    def ask() -> None:
        together.wait()
        seen.append(found.headers()["Authorization"])

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(tokens.asked), set(seen), len(seen)) == (1, {"Bearer t1"}, 50)


def test_a_token_is_replaced_early_and_goes_on_to_be_used_if_that_fails(tokens):
    tokens.seconds = 240
    found = make()
    assert found.headers() == {"Authorization": "Bearer t1"}
    assert found.headers() == {"Authorization": "Bearer t2"}, "it had four minutes left"
    tokens.refusal = (400, '{"error": "invalid_grant"}')
    assert found.headers() == {"Authorization": "Bearer t2"}


def test_while_one_thread_fetches_the_others_use_the_old_one(tokens):
    tokens.seconds = 240
    found = make()
    found.headers()
    tokens.delay = 0.5
    fetching = threading.Thread(target=found.headers)
    fetching.start()
    time.sleep(0.1)
    begun = time.perf_counter()
    assert found.headers() == {"Authorization": "Bearer t1"}
    assert time.perf_counter() - begun < 0.3
    fetching.join()


@pytest.mark.parametrize(
    "refusal",
    [
        (400, '{"error": "invalid_grant", "error_description": "Invalid JWT secret-text"}'),
        (200, "<html>secret-text</html>"),
        (200, "{}"),
        (500, "secret-text"),
    ],
)
def test_a_refusal_tells_no_secret(tokens, refusal, caplog):
    tokens.refusal = refusal
    with pytest.raises(UpstreamAuthFailed, match="gave no token for vertex_ai") as failed:
        make().headers()
    assert failed.value.__cause__ is None
    assert "secret-text" not in str(failed.value) + caplog.text
    assert "PRIVATE" not in str(failed.value) + caplog.text


@pytest.mark.parametrize(
    "given",
    ["/nowhere/account.json", '{"type": "service_account"}', '{"type": "quantum"}', "[1]"],
)
def test_credentials_that_are_no_good_fail_when_they_are_used(given):
    with pytest.raises(UpstreamAuthFailed):
        make(given).headers()


@pytest.mark.parametrize("given", ["", "{", "{}", 7, {"type": 7}, [], None])
def test_some_mistakes_are_found_at_the_start(given):
    with pytest.raises(ValidationError):
        check_credentials(given)
    check_credentials(INFO)
    check_credentials("/a/path")


def test_the_machines_own_credentials_are_used_without_any(monkeypatch):
    import google.auth

    class Own:
        token = "metadata-token"
        expiry = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(hours=1)

        def refresh(self, _request) -> None:
            pass

    monkeypatch.setattr(google.auth, "default", lambda scopes: (Own(), "own-project"))
    found = make(None)
    assert found.headers() == {"Authorization": "Bearer metadata-token"}
    assert found.project() == "own-project"

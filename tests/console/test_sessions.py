"""Signing in and out: cookies, fixation, the end of a session, limits on trying."""

import datetime as dt
import re

import pytest
from sqlalchemy import select, update

from app.db.tables import ConsoleSession, now
from app.services import sessions
from app.services.callers import operator, sha256
from app.services.sessions import ATTEMPTS, IDLE, Sessions
from app.settings import RetiringKey
from tests.access_builders import MASTER_KEY, issue
from tests.console.conftest import Browser, Gateway, signed_in

COOKIE = "manifold_session"


def rows(gateway: Gateway) -> list[ConsoleSession]:
    with gateway.database.read() as session:
        return list(session.scalars(select(ConsoleSession)))


def is_in(browser: Browser) -> bool:
    response = browser.get("/ui/files")
    if response.status_code == 200:
        return True
    assert response.status_code == 303
    assert response.headers["Location"].startswith("/ui/sign-in")
    return False


def test_the_cookie_is_random_and_nobody_but_the_server_reads_it(gateway):
    secret = issue(gateway.access)
    browser = Browser(gateway.app)
    response = browser.sign_in(secret)
    [cookie] = [
        line
        for line in response.headers.getlist("Set-Cookie")
        if line.startswith(COOKIE) and "Max-Age=0" not in line
    ]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Path=/ui" in cookie
    assert "Secure" not in cookie, "it would not come back over plain HTTP"
    token = browser.cookie().value
    assert len(token) >= 43
    [row] = rows(gateway)
    assert row.id == sha256(token) and token not in repr(vars(row))
    for kept in (response.text, *response.headers.getlist("Set-Cookie")):
        assert secret not in kept
    page = browser.get("/ui/files").text
    assert secret not in page and token not in page


def test_behind_tls_no_other_host_can_set_the_cookie(gateway):
    browser = Browser(gateway.app, secure=True)
    response = browser.sign_in(issue(gateway.access))
    [cookie] = [
        line
        for line in response.headers.getlist("Set-Cookie")
        if line.startswith(f"__Host-{COOKIE}=")
    ]
    assert "Secure" in cookie and "Path=/;" in cookie and "Domain" not in cookie
    assert is_in(browser)


@pytest.mark.parametrize("secret", ["", "sk-wrong", "sk-" + "x" * 40, "x" * 2000, "ключ", "a\0b"])
def test_a_wrong_key_gets_no_session(gateway, secret):
    browser = Browser(gateway.app)
    response = browser.sign_in(secret)
    assert response.status_code == 401
    assert "not valid" in response.text
    assert browser.cookie() is None and rows(gateway) == []
    assert secret not in response.text or len(secret) < 5


def test_the_hash_of_a_key_is_no_key(gateway):
    browser = Browser(gateway.app)
    assert browser.sign_in(sha256(issue(gateway.access))).status_code == 401
    assert browser.sign_in(sha256(MASTER_KEY)).status_code == 401


def test_a_session_that_somebody_else_has_begun_is_not_gone_on_with(gateway):
    """Session fixation: whatever cookie is there before, another one is there after."""
    attacker, victim = signed_in(gateway, "mallory"), Browser(gateway.app)
    planted = attacker.cookie().value
    victim.client.set_cookie(COOKIE, planted, path="/ui")
    made_up = "x" * 43
    for given in (planted, made_up):
        victim.client.set_cookie(COOKIE, given, path="/ui")
        victim.get("/ui/sign-in")
        assert victim.sign_in(MASTER_KEY).status_code == 303
        assert victim.cookie().value not in (planted, made_up)
    assert not is_in(attacker), "the session that was planted is over"


def test_a_form_secret_that_was_planted_gives_no_session(gateway):
    """Login CSRF: the sign-in form needs the token of its own page."""
    browser = Browser(gateway.app)
    secret = issue(gateway.access, "mallory")
    assert browser.post("/ui/sign-in", token="", data={"key": secret}).status_code == 403
    assert browser.post("/ui/sign-in", token="f" * 64, data={"key": secret}).status_code == 403
    token = browser.token("/ui/sign-in")
    other = Browser(gateway.app)
    other.get("/ui/sign-in")
    assert other.post("/ui/sign-in", token=token, data={"key": secret}).status_code == 403
    assert rows(gateway) == []


def test_signing_out_ends_the_session_on_our_side(gateway, alice):
    token = alice.cookie().value
    assert alice.post("/ui/sign-out").status_code == 303
    assert rows(gateway) == []
    alice.client.set_cookie(COOKIE, token, path="/ui")
    assert not is_in(alice)


def test_a_session_is_worth_what_its_key_is(gateway):
    root, access = operator(), gateway.access
    for end in (
        lambda key: access.block_key(root, key),
        lambda key: access.regenerate_key(root, key),
        lambda key: access.delete_keys(root, [key]),
        lambda key: access.update_key(root, key, {"expires_at": now() - dt.timedelta(seconds=1)}),
        lambda key: access.update_user(
            root, access.authenticate(key).user_id or "", {"blocked": True}
        ),
        lambda key: access.delete_users(root, [access.authenticate(key).user_id or ""]),
    ):
        secret = issue(access, f"user-{len(rows(gateway))}-{id(end)}")
        browser = Browser(gateway.app)
        browser.sign_in(secret)
        assert is_in(browser)
        end(secret)
        assert not is_in(browser)
    assert rows(gateway) == [], "what is over is removed at once"


def test_a_master_session_ends_with_the_master_key(gateway, root):
    assert is_in(root)
    app_sessions = gateway.app.extensions["manifold"].sessions
    token = root.cookie().value
    [row] = rows(gateway)
    assert row.key_hash is None
    assert sha256(MASTER_KEY) not in (row.id, row.master_mac), "a short one could be found from it"
    assert app_sessions.find(token).is_admin

    def after(master: str, retiring: tuple[RetiringKey, ...] = ()) -> Sessions:
        access = type(gateway.access)(gateway.database, master, retiring_master_keys=retiring)
        return Sessions(gateway.database, access)

    was = RetiringKey(sha256(MASTER_KEY), now() + dt.timedelta(hours=1))
    assert after("sk-another", (was,)).find(token).is_admin, "as long as the old one works"
    with pytest.raises(Exception, match="master key"):
        after("sk-another").find(token)
    assert not is_in(root)


def test_who_does_nothing_is_signed_out_and_so_is_everybody_in_the_end(gateway, alice, bob):
    with gateway.database.write() as session:
        session.execute(update(ConsoleSession).values(seen_at=now() - IDLE))
    assert not is_in(alice)
    bob = signed_in(gateway, "carol")
    assert is_in(bob)
    with gateway.database.write() as session:
        session.execute(update(ConsoleSession).values(expires_at=now()))
    assert not is_in(bob)


def test_a_page_that_asks_by_itself_keeps_nobody_signed_in(gateway, alice):
    before = now() - dt.timedelta(minutes=5)
    with gateway.database.write() as session:
        session.execute(update(ConsoleSession).values(seen_at=before))
    assert alice.get("/ui/files", headers={"X-Manifold-Poll": "1"}).status_code == 200
    assert rows(gateway)[0].seen_at == before
    assert is_in(alice)
    assert rows(gateway)[0].seen_at > before


def test_trying_is_limited_by_address_and_tells_for_how_long(gateway):
    browser = Browser(gateway.app)
    secret = issue(gateway.access)
    for _ in range(ATTEMPTS):
        assert browser.sign_in("sk-wrong").status_code == 401
    refused = browser.sign_in(secret)
    assert refused.status_code == 429 and 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "too many attempts" in refused.text and rows(gateway) == []
    # Somebody elsewhere is not kept out by it.
    other = Browser(gateway.app)
    token = other.token("/ui/sign-in")
    data = {"key": secret, "csrf_token": token}
    elsewhere = {"REMOTE_ADDR": "198.51.100.7"}
    assert (
        other.client.post("/ui/sign-in", data=data, environ_overrides=elsewhere).status_code == 303
    )


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        (None, "unknown"),
        ("not an address", "unknown"),
    ],
)
def test_attempts_of_a_whole_network_are_counted_together(address, counted):
    assert sessions._network(address) == counted


@pytest.mark.parametrize(
    ("wanted", "goes"),
    [
        ("/ui/keys", "/ui/keys"),
        ("/ui/files?purpose=batch", "/ui/files?purpose=batch"),
        ("https://evil.example/ui/", "/ui/"),
        ("//evil.example/ui/", "/ui/"),
        ("/ui//evil.example", "/ui//evil.example"),
        ("/\\evil.example", "/ui/"),
        ("/ui/\r\nSet-Cookie: a=b", "/ui/"),
        ("javascript:alert(1)", "/ui/"),
        ("/uix", "/ui/"),
    ],
)
def test_one_comes_back_to_our_own_pages_only(gateway, wanted, goes):
    browser = Browser(gateway.app)
    response = browser.sign_in(issue(gateway.access), next=wanted)
    assert response.status_code == 303 and response.headers["Location"] == goes


def test_who_is_not_signed_in_is_sent_to_the_form_and_then_back(gateway):
    browser = Browser(gateway.app)
    response = browser.get("/ui/files?purpose=batch")
    assert response.headers["Location"] == "/ui/sign-in?next=%2Fui%2Ffiles%3Fpurpose%3Dbatch"
    page = browser.get(response.headers["Location"]).text
    assert 'name="next" value="/ui/files?purpose=batch"' in page
    told = browser.get("/ui/files", headers={"Accept": "application/json"})
    assert told.status_code == 401 and told.get_json()["error"]["code"] == "invalid_api_key"


def test_a_cookie_opens_no_door_but_the_consoles_and_a_key_not_that_one(gateway, root):
    """No page of another site can use the API by somebody's cookie: the API looks at none."""
    cookie = {"Cookie": f"{COOKIE}={root.cookie().value}"}
    client = gateway.app.test_client()
    assert client.get("/v1/files", headers=cookie).status_code == 401
    assert client.post("/user/new", json={}, headers=cookie).status_code == 401
    bearer = {"Authorization": f"Bearer {MASTER_KEY}"}
    assert client.get("/ui/files", headers=bearer).status_code == 303
    assert client.get("/v1/files", headers=bearer).status_code == 200


def test_sessions_that_are_over_are_swept(gateway, alice, bob):
    mine = alice.cookie().value
    with gateway.database.write() as session:
        late = update(ConsoleSession).where(ConsoleSession.id != sha256(mine))
        session.execute(late.values(expires_at=now() - dt.timedelta(seconds=1)))
    gateway.app.extensions["manifold"].sweeper.run()
    assert [row.id for row in rows(gateway)] == [sha256(mine)]


def test_the_key_is_in_no_log_line(gateway, caplog):
    caplog.set_level("DEBUG")
    secret = issue(gateway.access)
    browser = Browser(gateway.app)
    browser.sign_in(secret)
    browser.get("/ui/files")
    told = " ".join(str(vars(record)) for record in caplog.records)
    assert not re.search(re.escape(secret) + "|" + re.escape(browser.cookie().value), told)

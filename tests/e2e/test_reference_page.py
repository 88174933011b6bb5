"""The API reference in a real browser: it shows everything, tries a call, and asks nobody else."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.e2e.conftest import StartGateway, missing
from tests.e2e.gateway import Gateway

CONFIG = {"model_list": [{"model_name": "documents", "litellm_params": {"model": "local/store"}}]}
OUT = Path(__file__).parents[2] / ".ci" / "out"


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway) -> Gateway:
    return start_gateway(CONFIG, workers=1)


@pytest.fixture
def page(gateway: Gateway) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("chromium is not installed")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def test_the_reference_shows_every_route_and_tries_one(gateway: Gateway, page: Page):
    asked: list[str] = []
    trouble: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.add_init_script(
        "document.addEventListener('securitypolicyviolation', event => "
        "console.error('blocked: ' + event.violatedDirective + ' ' + event.blockedURI))"
    )
    page.goto(gateway.url + "/")
    page.wait_for_selector(".opblock-tag")
    assert page.title() == "Manifold: API reference"

    document: dict[str, Any] = page.evaluate("fetch('openapi.json').then(found => found.json())")
    shown = sum(len(operations) for operations in document["paths"].values())
    for tag in page.query_selector_all(".opblock-tag-section:not(.is-open) .opblock-tag"):
        tag.click()
    page.wait_for_function(f"document.querySelectorAll('.opblock').length === {shown}")

    page.click("button.authorize")
    page.fill("input[aria-label='auth-bearer-value']", gateway.master_key)
    page.click(".auth-container:has(input[aria-label='auth-bearer-value']) button.authorize")
    page.click("button.close-modal")
    operation = page.locator("#operations-Models-get_models")
    operation.locator(".opblock-summary-control").click()
    operation.locator("button.try-out__btn").click()
    operation.locator("button.execute").click()
    answer = operation.locator(".live-responses-table tbody .response-col_status").first
    answer.wait_for()
    assert answer.inner_text().startswith("200")
    assert "documents" in operation.locator(".live-responses-table").first.inner_text()

    # A form with a file, which the page must offer as such.
    upload = page.locator("#operations-Files-post_files")
    upload.locator(".opblock-summary-control").click()
    upload.locator("button.try-out__btn").click()
    assert upload.locator("input[type=file]").count() == 1

    if os.environ.get("MANIFOLD_TEST_NO_SKIP"):
        OUT.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(OUT / "reference.png"))
    assert not trouble
    assert asked and all(url.startswith((gateway.url + "/", "data:")) for url in asked)
    kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert gateway.master_key not in page.evaluate(kept)

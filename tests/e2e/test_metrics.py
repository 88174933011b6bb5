"""/metrics over four real processes and a worker: what it says is what was sent."""

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import promql_parser
import psutil
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import ROOT, Account, Gateway, Upstream, model, wait_until

TOKEN = "a-token-for-prometheus-alone"
WORKERS = 4


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("metrics", download_any=True)


@pytest.fixture(scope="module")
def gateway(account: Account, start_gateway: StartGateway) -> Iterator[Gateway]:
    config = {
        "model_list": [model("a", "openai/gpt-4o", account)],
        "general_settings": {"metrics_token": TOKEN},
    }
    running = start_gateway(config, workers=WORKERS, worker=True)
    wait_until(lambda: scrape(running).one("processes", process="worker") == 1)
    yield running


class Scrape(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of one page, by name and labels."""

    def one(self, name: str, **labels: str) -> float:
        """A sample's value, 0 when it is not there."""
        return self.get((f"manifold_{name}", frozenset(labels.items())), 0.0)

    def sum(self, name: str, **labels: str) -> float:
        """The sum over every label that is not named."""
        wanted = set(labels.items())
        return sum(
            value
            for (found, labels_of), value in self.items()
            if found == f"manifold_{name}" and wanted <= labels_of
        )


def scrape(gateway: Gateway, key: str = TOKEN) -> Scrape:
    page = gateway.api("GET", "/metrics", key=key)
    assert page.status_code == 200, page.text
    assert page.headers["Content-Type"].startswith("text/plain; version=")
    found = Scrape()
    for family in text_string_to_metric_families(page.text):
        assert family.documentation, family.name
        for sample in family.samples:
            key_of = (sample.name, frozenset(sample.labels.items()))
            assert key_of not in found, "a series stands there twice"
            found[key_of] = sample.value
    return found


def processes(gateway: Gateway) -> list[psutil.Process]:
    assert gateway.pid is not None
    return psutil.Process(gateway.pid).children()


def settled(gateway: Gateway, name: str, value: float, **labels: str) -> Scrape:
    """A scrape in which this has come to that: a request is counted when its last byte is gone."""
    last = Scrape()

    def has_come() -> bool:
        last.clear()
        last.update(scrape(gateway))
        return last.sum(name, **labels) >= value

    wait_until(has_come)
    return last


def test_the_counts_are_those_of_what_was_sent(gateway: Gateway, account: Account):
    before = scrape(gateway)
    content = b"x" * 1000
    ids = []
    for _ in range(20):
        sent = gateway.api(
            "POST",
            "/v1/files",
            files={"file": ("a.txt", content)},
            data={"purpose": "user_data", "target_model_names": "a"},
        )
        ids.append(sent.json()["id"])
    for each in ids:
        assert gateway.api("GET", f"/v1/files/{each}/content").content == content
    for prefix in ("", "/v1", "/openai"):
        assert gateway.api("GET", f"{prefix}/files").status_code == 200
    for number in range(5):
        assert gateway.api("GET", f"/v1/files/nothing-{number}").status_code == 400
        assert gateway.api("GET", f"/nowhere/{number}").status_code == 404
        gateway.api("GET", "/v1/files", key="sk-wrong")
    chat = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
    for body in (chat, {**chat, "stream": True}):
        assert gateway.api("POST", "/v1/chat/completions", json=body).status_code == 200
    assert (
        gateway.api("POST", "/v1/chat/completions", json={**chat, "model": "nobody-s"}).status_code
        == 400
    )
    for verb in ("BREW", "PROPFIND"):
        gateway.api(verb, "/v1/files")

    after = settled(
        gateway, "requests_total", before.sum("requests_total", route="none") + 7, route="none"
    )

    def more(name: str, **labels: str) -> float:
        return after.sum(name, **labels) - before.sum(name, **labels)

    assert more("requests_total", route="/files", method="POST", status="2xx") == 20
    assert more("requests_total", route="/files", method="GET", status="2xx") == 3
    assert more("requests_total", route="/files", method="GET", status="4xx") == 5
    assert more("requests_total", route="/files/<file_id>", status="4xx") == 5
    assert more("requests_total", route="none", method="GET", status="4xx") == 5
    assert more("requests_total", route="none", method="other") == 2
    assert more("requests_total", route="/files/<file_id>/content", status="2xx") == 20
    assert more("sent_bytes_total", route="/files/<file_id>/content") == 20 * 1000
    assert 20 * 1000 < more("received_bytes_total", route="/files", method="POST") < 20 * 1500
    assert more("request_seconds_count", route="/files", method="POST") == 20
    assert more("request_seconds_bucket", route="/files", method="POST", le="+Inf") == 20
    assert more("errors_total", code="invalid_api_key") == 5
    assert more("errors_total", code="model_not_found") == 1
    assert more("inference_total", model="a", operation="chat/completions", status="2xx") == 2
    assert after.sum("inference_total", model="nobody-s") == 0
    upstream = {"provider": "openai", "process": "server"}
    assert more("upstream_requests_total", outcome="2xx", **upstream) == 20 + 20 + 2
    assert more("upstream_first_byte_seconds_count", **upstream) == 42
    assert after.sum("copies", state="ready") >= 20 or wait_until(
        lambda: scrape(gateway).sum("copies", state="ready") >= 20
    )
    assert after.one("requests_running") == 1, "the scrape itself"
    assert after.one("processes", process="server") == WORKERS
    assert after.one("processes", process="worker") == 1
    assert after.one("database_connections_max") == (WORKERS + 1) * 16
    assert after.one("database_connections_in_use") <= 3
    assert after.one("upstream_connections_in_use") == 0
    assert after.one("upstream_connections_total") >= 1
    assert after.one("database_up") == 1
    assert after.one("data_dir_free_bytes") > 0


def test_no_label_grows_with_what_clients_say(gateway: Gateway):
    gateway.api("GET", "/v1/files/file-secret-123")
    gateway.api("GET", "/secret-path")
    gateway.api("POST", "/v1/chat/completions", json={"model": "secret-model", "messages": []})
    user = gateway.new_user(user_id="secret-user")
    gateway.api("GET", "/v1/models", key=user["key"])
    found = scrape(gateway)
    values = {value for _, labels in found for _, value in labels}
    assert not [value for value in values if "secret" in value or "127.0.0.1" in value]
    assert len(found) < 3000


def test_an_upstream_that_fails_is_seen(gateway: Gateway, account: Account):
    before = scrape(gateway)
    account.fail(path_regex="chat", status=500, times=1)
    chat = {"model": "a", "messages": []}
    assert gateway.api("POST", "/v1/chat/completions", json=chat).status_code == 500
    after = settled(gateway, "upstream_requests_total", before.sum("upstream_requests_total") + 1)
    failed = {"provider": "openai", "outcome": "5xx"}
    assert after.sum("upstream_requests_total", **failed) == 1 + before.sum(
        "upstream_requests_total", **failed
    )
    assert after.sum("deployment_rests_total") == before.sum("deployment_rests_total") + 1
    assert after.sum("deployment_rests_until_timestamp_seconds") > time.time()
    assert after.one("upstream_connections_in_use") == 0


def test_a_client_that_goes_away_is_no_failure_of_the_upstream(gateway: Gateway, account: Account):
    before = scrape(gateway)
    chat = {"model": "a", "messages": []}
    account.fail(path_regex="chat", delay_s=30.0, times=1)
    with pytest.raises(requests.Timeout):
        gateway.api("POST", "/v1/chat/completions", json=chat, timeout=0.7)
    after = settled(gateway, "upstream_requests_total", before.sum("upstream_requests_total") + 1)
    assert after.sum("upstream_requests_total", outcome="given up") == 1
    for outcome in ("timeout", "no answer"):
        assert after.sum("upstream_requests_total", outcome=outcome) == 0


def test_the_worker_is_seen_beside_the_server(gateway: Gateway):
    found = settled(gateway, "worker_passes_total", 1, outcome="well")
    assert time.time() - found.one("worker_last_success_timestamp_seconds") < 30
    for chore in ("copies", "jobs"):
        assert ("manifold_worker_backlog", frozenset({("chore", chore)})) in found
        assert found.one("worker_late_seconds", chore=chore) < 60


@pytest.mark.parametrize("key", [TOKEN, "master", "viewer"])
def test_who_may_read_them(gateway: Gateway, key: str):
    if key == "master":
        key = gateway.master_key
    elif key == "viewer":
        key = gateway.new_user(user_role="proxy_admin_viewer")["key"]
    scrape(gateway, key)


def test_nobody_else_may(gateway: Gateway):
    user = gateway.new_user()["key"]
    assert gateway.api("GET", "/metrics", key="").status_code == 401
    assert gateway.api("GET", "/metrics", key=TOKEN[:-1]).status_code == 401
    assert gateway.api("GET", "/metrics", key=user).status_code == 403
    # The token opens nothing else.
    for path in ("/v1/files", "/v1/models", "/health", "/user/list"):
        assert gateway.api("GET", path, key=TOKEN).status_code == 401


# What deploy/ asks for


@dataclass(frozen=True)
class Asked:
    """A series that an expression selects, and every label that is named for it."""

    name: str
    labels: frozenset[str]


def asked_in(expression: str) -> list[Asked]:
    """The series of an expression in PromQL; labels of an aggregation are those of all below it."""
    found: list[Asked] = []

    def walk(node: Any, grouped: frozenset[str]) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            named = {matcher.name for matcher in node.matchers.matchers}
            found.append(Asked(node.name or "", frozenset(named | grouped)))
        elif isinstance(node, promql_parser.AggregateExpr):
            walk(node.expr, grouped | set(node.modifier.labels if node.modifier else ()))
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                walk(argument, grouped)
        elif isinstance(node, promql_parser.BinaryExpr):
            walk(node.lhs, grouped)
            walk(node.rhs, grouped)
        elif isinstance(node, promql_parser.ParenExpr):
            walk(node.expr, grouped)
        else:
            assert isinstance(node, promql_parser.NumberLiteral), node

    walk(promql_parser.parse(expression), frozenset())
    return found


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    board = json.loads((ROOT / "deploy/grafana/manifold.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_every_name_and_label_of_dashboard_and_alerts_is_scraped(
    gateway: Gateway, account: Account
):
    account.fail(path_regex="chat", status=500, times=1)
    gateway.api("POST", "/v1/chat/completions", json={"model": "a", "messages": []})
    gateway.api(
        "POST",
        "/v1/uploads",
        json={
            "purpose": "user_data",
            "filename": "a.txt",
            "bytes": 1,
            "mime_type": "text/plain",
            "model": "a",
        },
    )
    rows = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "a"},
    }
    sent = gateway.api(
        "POST",
        "/v1/files",
        files={"file": ("a.jsonl", json.dumps(rows))},
        data={"purpose": "batch", "target_model_names": "a"},
    )
    batch = {
        "input_file_id": sent.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    assert gateway.api("POST", "/v1/batches", json=batch).status_code == 200

    expressions = [rule["expr"] for rule in alerts()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    asked = {each for expression in expressions for each in asked_in(expression)}
    assert len(expressions) > 40

    def unknown() -> set[Asked]:
        labels: dict[str, set[str]] = {"up": set()}
        for name, pairs in scrape(gateway):
            labels.setdefault(name, set()).update(label for label, _ in pairs)
        # Prometheus gives every series these two.
        return {
            each
            for each in asked
            if each.name not in labels or not each.labels <= labels[each.name] | {"instance", "job"}
        }

    with suppress(AssertionError):
        wait_until(lambda: not unknown(), timeout=30)
    assert not unknown()


def test_every_alert_has_words_and_a_section_in_the_docs():
    page = (ROOT / "docs/observability.md").read_text()
    sections = {line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")}
    assert len({rule["alert"] for rule in alerts()}) == len(alerts()) > 8
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/observability.md#{rule['alert'].lower()}"
        assert rule["alert"] in sections


def test_every_panel_says_what_it_shows_and_none_covers_another():
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"] and panel["description"].endswith(".")
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert max(x for x, _ in taken) < 24


def test_the_docs_name_every_metric_there_is(gateway: Gateway):
    page = (ROOT / "docs/observability.md").read_text()
    scraped = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name, _ in scrape(gateway)
        if not name.endswith("_created")
    }
    named = set(re.findall(r"`(manifold_[a-z_]+)`", page))
    assert scraped <= named
    # Those that have no value before something has gone wrong are named too.
    assert all(name.startswith("manifold_") for name in named) and len(named) > 25


# Processes that come and go


def test_a_process_that_dies_takes_no_count_away(gateway: Gateway):
    def count(found: Scrape) -> float:
        return found.sum("requests_total", route="/models", method="GET")

    before = count(scrape(gateway))
    for _ in range(40):
        gateway.api("GET", "/v1/models")
    wait_until(lambda: count(scrape(gateway)) == before + 40)
    victim = processes(gateway)[0]
    victim.send_signal(signal.SIGKILL)
    wait_until(lambda: victim.pid not in {each.pid for each in processes(gateway)})
    wait_until(lambda: scrape(gateway).one("processes", process="server") == WORKERS)
    assert count(scrape(gateway)) == before + 40
    assert scrape(gateway).one("requests_running") == 1


def test_a_new_start_begins_at_nothing_and_leaves_no_files_behind(gateway: Gateway):
    folders = gateway.data_dir / "metrics"
    before = {path.name for path in folders.iterdir()}
    assert len(before) == 2
    gateway.stop()
    gateway.start()
    found = scrape(gateway)
    assert found.sum("requests_total", method="POST") == 0
    wait_until(lambda: len({path.name for path in folders.iterdir()} - before) == 2)
    assert not {path.name for path in folders.iterdir()} & before
    assert all(path.stat().st_mode & 0o077 == 0 for path in folders.rglob("*"))

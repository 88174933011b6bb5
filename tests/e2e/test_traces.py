"""Traces over real sockets: what a receiver of OpenTelemetry's protocol gets from a gateway."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.tracing import is_wanted, open_traces
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import ROOT, Account, Gateway, Upstream, model, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Receiver:
    """Takes what an exporter sends; `spans` are all of them so far."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for attribute in resource.resource.attributes:
                        if attribute.key == "service.name":
                            receiver.services.add(attribute.value.string_value)
                    for scope in resource.scope_spans:
                        receiver.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace: str) -> list[Any]:
        """The spans of one trace."""
        return [span for span in list(self.spans) if span.trace_id.hex() == trace]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture(scope="module")
def accounts(upstream: Upstream) -> list[Account]:
    return [upstream.account(name, download_any=True) for name in ("traced-1", "traced-2")]


@pytest.fixture(scope="module")
def gateway(receiver: Receiver, accounts: list[Account], start_gateway: StartGateway) -> Gateway:
    one, two = accounts
    config = {"model_list": [model("a", "openai/gpt-4o", one), model("b", "openai/gpt-4o", two)]}
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "NO_PROXY": "127.0.0.1",
    }
    return start_gateway(config, workers=2, env=env)


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_an_uploads_trace_has_a_span_for_each_account(
    gateway: Gateway, receiver: Receiver, accounts: list[Account]
):
    answer = gateway.api(
        "POST",
        "/v1/files",
        files={"file": ("a.txt", b"traced")},
        data={"purpose": "user_data", "target_model_names": "a,b"},
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "baggage": "secret=1"},
    )
    assert answer.status_code == 200, answer.text
    wait_until(lambda: len(receiver.of(TRACE)) >= 6)
    spans = {span.span_id.hex(): span for span in receiver.of(TRACE)}
    by_name: dict[str, list[Any]] = {}
    for span in spans.values():
        by_name.setdefault(span.name, []).append(span)
    assert {name: len(found) for name, found in by_name.items()} == {
        "POST /v1/files": 1,
        "fan out": 1,
        "fan out to": 2,
        "POST openai": 2,
    }
    (served,), (fan_out,) = by_name["POST /v1/files"], by_name["fan out"]
    assert served.parent_span_id.hex() == PARENT
    assert attributes(served)["http.response.status_code"] == 200
    assert attributes(served)["http.route"] == "/v1/files"
    assert fan_out.parent_span_id == served.span_id
    assert {each.parent_span_id for each in by_name["fan out to"]} == {fan_out.span_id}
    assert {each.parent_span_id for each in by_name["POST openai"]} == {
        each.span_id for each in by_name["fan out to"]
    }
    assert receiver.services == {"manifold"}

    # Each account is told which span it belongs to, and nothing else of the caller's context.
    told = [seen.headers for account in accounts for seen in account.requests("/v1/files", "POST")]
    parents = {
        {name.lower(): value for name, value in headers.items()}["traceparent"] for headers in told
    }
    assert parents == {f"00-{TRACE}-{each.span_id.hex()}-01" for each in by_name["POST openai"]}
    assert "secret" not in json.dumps([dict(headers) for headers in told])


def test_what_is_sent_while_it_arrives_is_a_part_of_its_request(
    gateway: Gateway, receiver: Receiver
):
    trace = "4" * 32
    answer = gateway.api(
        "POST",
        "/v1/files",
        files={"file": ("large.bin", bytes(8 * 1024 * 1024))},
        data={"purpose": "user_data", "target_model_names": "a,b"},
        headers={"traceparent": f"00-{trace}-{PARENT}-01"},
    )
    assert answer.status_code == 200, answer.text
    wait_until(lambda: "POST /v1/files" in {span.name for span in receiver.of(trace)})
    spans = {span.span_id: span for span in receiver.of(trace)}
    sent = [span for span in spans.values() if span.name == "POST openai"]
    assert len(sent) == 2
    assert {spans[span.parent_span_id].name for span in sent} <= {"head start", "fan out to"}
    assert not [
        span
        for span in list(receiver.spans)
        if span.name == "POST openai" and not span.parent_span_id
    ]


def test_a_failure_is_marked_and_the_log_names_the_trace(
    gateway: Gateway, receiver: Receiver, accounts: list[Account]
):
    trace = "1" * 32
    accounts[0].fail(path_regex="chat", status=500, times=1)
    answer = gateway.api(
        "POST",
        "/v1/chat/completions",
        json={"model": "a", "messages": []},
        headers={"traceparent": f"00-{trace}-{PARENT}-01"},
    )
    assert answer.status_code == 500
    wait_until(lambda: len(receiver.of(trace)) >= 2)
    assert {span.status.code for span in receiver.of(trace)} == {2}, "all of them failed"
    lines = [json.loads(line) for line in gateway.log_text().splitlines() if line.startswith("{")]
    mine = [line for line in lines if line.get("trace_id") == trace]
    assert "request" in {line["event"] for line in mine}


def test_one_request_is_no_part_of_the_one_before(gateway: Gateway, receiver: Receiver):
    for _ in range(4):
        gateway.api("GET", "/v1/models")

    def seen() -> list[Any]:
        return [span for span in list(receiver.spans) if span.name == "GET /v1/models"]

    wait_until(lambda: len(seen()) >= 4)
    assert len({span.trace_id for span in seen()}) == len(seen())
    assert not any(span.parent_span_id for span in seen())


def test_what_is_not_sampled_is_not_sent(gateway: Gateway, receiver: Receiver):
    trace = "2" * 32
    gateway.api("GET", "/v1/models", headers={"traceparent": f"00-{trace}-{PARENT}-00"})
    gateway.api("GET", "/v1/models", headers={"traceparent": f"00-{'3' * 32}-{PARENT}-01"})
    wait_until(lambda: receiver.of("3" * 32))
    assert not receiver.of(trace)


def test_a_header_that_is_none_begins_a_trace_of_its_own(gateway: Gateway):
    for sent in ("nonsense", "00-" + "0" * 32 + "-x-01", "x" * 5000):
        assert gateway.api("GET", "/v1/models", headers={"traceparent": sent}).status_code == 200


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
    ],
)
def test_when_traces_are_wanted(environ: dict[str, str], wanted: bool):
    assert is_wanted(environ) is wanted


def test_a_protocol_that_is_not_spoken_is_said_and_traces_stay_off(caplog):
    asked = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert open_traces(asked, "1") is None
    assert "grpc" in caplog.records[0].reason


def test_without_the_extra_the_gateway_works_and_says_what_is_missing(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert open_traces({"OTEL_TRACES_EXPORTER": "otlp"}, "1") is None
    assert "manifold-gateway[otel]" in caplog.records[0].reason


def test_nothing_is_imported_while_they_are_off():
    code = (
        "import sys; from app.start import tracing; assert tracing.open_traces({}, '1') is None; "
        "print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"

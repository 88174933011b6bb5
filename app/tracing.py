"""Traces by OpenTelemetry: spans of requests, of fan-outs and their copies, of upstream calls.

Off, and nothing of it imported, unless the environment names where traces go, in OpenTelemetry's
own words (`OTEL_EXPORTER_OTLP_ENDPOINT` and so on). It is an extra, `manifold-gateway[otel]`.
Source: OpenTelemetry specification, environment variables and HTTP semantic conventions; read
2026-11.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from app.signals import Answered, Call, Header, Listener, Request

T = TypeVar("T")

_log = logging.getLogger("manifold")

_WHERE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOL = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN = "http/protobuf"


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    if exporter in ("none", "otlp"):
        return exporter == "otlp"
    return any(environ.get(name) for name in _WHERE)


def open_traces(environ: Mapping[str, str], version: str) -> "Traces | None":
    """The traces of this process, None when nobody wants them, or they cannot be: the log says why.

    To be called after the last fork: a thread sends the spans.
    """
    if not is_wanted(environ):
        return None
    protocol = next((environ[name] for name in _PROTOCOL if environ.get(name)), _SPOKEN)
    if protocol != _SPOKEN:
        _log.warning("no_traces", extra={"reason": f"{protocol} is not spoken; use {_SPOKEN}"})
        return None
    try:
        return Traces(environ, version)
    except ImportError:
        _log.warning("no_traces", extra={"reason": "install manifold-gateway[otel]"})
        return None


class Traces(Listener):
    """Spans of what happens in this process. Raises ImportError where the extra is missing."""

    def __init__(self, environ: Mapping[str, str], version: str) -> None:
        from opentelemetry import context, trace  # noqa: PLC0415  # an extra
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  # likewise
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # likewise
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  # likewise
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  # likewise
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415  # likewise
            TraceContextTextMapPropagator,
        )

        said = f"{environ.get('OTEL_SERVICE_NAME', '')} {environ.get('OTEL_RESOURCE_ATTRIBUTES')}"
        own = {"service.version": version}
        if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in said:
            own["service.name"] = "manifold"
        # Sampler, limits and batches are read from the environment by the library itself.
        self._provider = TracerProvider(resource=Resource.create(own))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("manifold", version)
        self._propagator = TraceContextTextMapPropagator()
        self._context = context
        self._trace = trace
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._mark)

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()

    def _mark(self, record: logging.LogRecord) -> bool:
        """Give a log line its trace."""
        found = self._trace.get_current_span().get_span_context()
        if found.is_valid and not hasattr(record, "trace_id"):
            record.trace_id = self._trace.format_trace_id(found.trace_id)
            record.span_id = self._trace.format_span_id(found.span_id)
        return True

    def begun(self, method: str, header: Header) -> Request:
        sent = {name: header(name) for name in ("traceparent", "tracestate")}
        carrier = {name: value for name, value in sent.items() if value is not None}
        span = self._tracer.start_span(
            method,
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": method},
        )
        return _Served(self, span)

    def upstream_call(self, provider: str, deployment: str, method: str) -> Call:
        span = self._tracer.start_span(
            f"{method} {provider}",
            kind=self._trace.SpanKind.CLIENT,
            attributes={
                "http.request.method": method,
                "manifold.provider": provider,
                "manifold.deployment": deployment,
            },
        )
        headers: dict[str, str] = {}
        self._propagator.inject(headers, self._trace.set_span_in_context(span))
        return _Sent(span, self._failed, headers)

    @contextmanager
    def fanned_out(
        self, calls: Mapping[str, Callable[[], T]]
    ) -> Iterator[Mapping[str, Callable[[], T]]]:
        with self._tracer.start_as_current_span(
            "fan out", attributes={"manifold.calls": len(calls)}
        ):
            here = self._context.get_current()
            yield {key: self._branch("fan out to", key, call, here) for key, call in calls.items()}

    def carried(self, deployment: str, call: Callable[[], T]) -> Callable[[], T]:
        return self._branch("head start", deployment, call, self._context.get_current())

    def _branch(
        self, name: str, deployment: str, call: Callable[[], T], here: Any
    ) -> Callable[[], T]:
        def traced() -> T:
            # Another thread, which knows nothing of where it was sent from.
            token = self._context.attach(here)
            try:
                with self._tracer.start_as_current_span(
                    name, attributes={"manifold.deployment": deployment}
                ):
                    return call()
            finally:
                self._context.detach(token)

        return traced

    def _failed(self, description: str) -> Any:
        return self._trace.Status(self._trace.StatusCode.ERROR, description)


class _Served(Request):
    """A client's request. Its span is the current one until the view has answered."""

    def __init__(self, traces: Traces, span: Any) -> None:
        self._traces = traces
        self._span = span
        self._token = traces._context.attach(traces._trace.set_span_in_context(span))
        found = span.get_span_context()
        self.facts = {"trace_id": traces._trace.format_trace_id(found.trace_id)}

    def left(self) -> None:
        if self._token is not None:
            # Or the thread's next request would be a part of this one.
            self._traces._context.detach(self._token)
            self._token = None

    def over(self, answered: Answered) -> None:
        self.left()
        span = self._span
        span.update_name(f"{answered.method} {answered.route or ''}".strip())
        span.set_attribute("http.response.status_code", answered.status)
        if answered.route:
            span.set_attribute("http.route", answered.route)
        span.set_attribute("http.request.body.size", answered.bytes_in)
        span.set_attribute("http.response.body.size", answered.bytes_out)
        if answered.status >= 500 or answered.is_cut_off:
            span.set_status(self._traces._failed("cut off" if answered.is_cut_off else ""))
        span.end()


class _Sent(Call):
    def __init__(self, span: Any, failed: Callable[[str], Any], headers: dict[str, str]) -> None:
        self._span = span
        self._failed = failed
        self.headers = headers

    def over(self, outcome: int | str) -> None:
        if isinstance(outcome, int):
            self._span.set_attribute("http.response.status_code", outcome)
        if not isinstance(outcome, int) or outcome >= 400:
            self._span.set_status(self._failed(str(outcome)))
        self._span.end()

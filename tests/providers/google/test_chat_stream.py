"""Gemini's streams as OpenAI's: a table of cases, and the same events however the bytes are cut."""

import json
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import UpstreamError, UpstreamRejected, UpstreamTimeout
from app.providers.google.chat_answer import completion
from app.providers.google.chat_stream import LONGEST_EVENT, event_data, openai_events

STREAM = "Gemini API, streamGenerateContent; OpenAI API reference, streaming; read 2026-11"
ERRORS = "Google Cloud APIs, Errors; OpenAI API reference, streaming errors; read 2026-11"

FRAME = {
    "id": "chatcmpl-r1",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "gemini-2.5-flash",
}


def event(*parts, reason=None, **more):
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}}
    if reason:
        candidate["finishReason"] = reason
    return {"candidates": [{**candidate, **more}], "responseId": "r1"}


def sse(*events, end="\r\n\r\n"):
    return b"".join(
        f"data: {json.dumps(event, ensure_ascii=False)}{end}".encode() for event in events
    )


def streamed(*chunks: bytes, **more: Any) -> list[Any]:
    """The data of the events, "[DONE]" as it stands."""
    options = {"model": "gemini-2.5-flash", "created": 1_700_000_000, "fallback_id": "x", **more}
    raw = b"".join(openai_events(chunks, **options))
    assert raw.endswith(b"\n\n")
    found = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        assert block.startswith("data: ")
        assert "\n" not in block
        data = block.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found


def choice(delta, reason=None, index=0, logprobs=None):
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def chunk(*args, **more):
    return {**FRAME, "choices": [choice(*args, **more)]}


def call_delta(index, call_id, name="weather", arguments='{"city":"Rome"}'):
    function = {"name": name, "arguments": arguments}
    return {
        "tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]
    }


CALL = {"functionCall": {"id": "g7", "name": "weather", "args": {"city": "Rome"}}}
BEGIN = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, "stop")


class Case(NamedTuple):
    name: str
    source: str
    events: list[dict[str, Any]]
    expected: list[Any]


CASES = [
    Case(
        "texts as they come",
        STREAM,
        [event({"text": "hel"}), event({"text": "lo"}, reason="STOP")],
        [BEGIN, chunk({"content": "hel"}), chunk({"content": "lo"}), STOP, "[DONE]"],
    ),
    Case(
        "a finishReason in every event ends nothing before its time",
        STREAM,
        [event({"text": "a"}, reason="STOP"), event({"text": "b"}, reason="STOP")],
        [BEGIN, chunk({"content": "a"}), chunk({"content": "b"}), STOP, "[DONE]"],
    ),
    Case(
        "an empty text is no event",
        STREAM,
        [event({"text": "a"}), event({"text": ""}, reason="MAX_TOKENS")],
        [BEGIN, chunk({"content": "a"}), chunk({}, "length"), "[DONE]"],
    ),
    Case(
        "a thought",
        STREAM,
        [event({"text": "hm", "thought": True}), event({"text": "a"}, reason="STOP")],
        [BEGIN, chunk({"reasoning_content": "hm"}), chunk({"content": "a"}), STOP, "[DONE]"],
    ),
    Case(
        "parallel calls, in one event and in the next, counted over the whole stream",
        STREAM,
        [
            event({**CALL, "thoughtSignature": "c2ln"}, {"functionCall": {"id": "b", "name": "f"}}),
            event({"functionCall": {"id": "c", "name": "g"}}),
            event(reason="STOP"),
        ],
        [
            BEGIN,
            chunk(call_delta(0, "g7__thought__c2ln")),
            chunk(call_delta(1, "b", "f", "{}")),
            chunk(call_delta(2, "c", "g", "{}")),
            chunk({}, "tool_calls"),
            "[DONE]",
        ],
    ),
    Case(
        "a block for safety in the midst",
        STREAM,
        [event({"text": "a"}), {"candidates": [{"finishReason": "SAFETY"}]}],
        [BEGIN, chunk({"content": "a"}), chunk({}, "content_filter"), "[DONE]"],
    ),
    Case(
        "a blocked prompt",
        STREAM,
        [{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "responseId": "r1"}],
        [BEGIN, chunk({}, "content_filter"), "[DONE]"],
    ),
    Case(
        "several candidates, each with its own end",
        STREAM,
        [
            event({"text": "a"}),
            event({"text": "b"}, reason="MAX_TOKENS", index=1),
            event(reason="STOP"),
        ],
        [
            BEGIN,
            chunk({"content": "a"}),
            chunk({"role": "assistant", "content": ""}, index=1),
            chunk({"content": "b"}, index=1),
            STOP,
            chunk({}, "length", index=1),
            "[DONE]",
        ],
    ),
    Case(
        "a picture",
        STREAM,
        [event({"inlineData": {"mimeType": "image/png", "data": "iVBO"}}, reason="STOP")],
        [
            BEGIN,
            chunk(
                {
                    "images": [
                        {
                            "type": "image_url",
                            "image_url": {"url": "data:image/png;base64,iVBO"},
                            "index": 0,
                        }
                    ]
                }
            ),
            STOP,
            "[DONE]",
        ],
    ),
    Case(
        "an error in the midst",
        ERRORS,
        [
            event({"text": "a"}),
            {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}},
        ],
        [
            BEGIN,
            chunk({"content": "a"}),
            {
                "error": {
                    "message": "overloaded",
                    "type": "server_error",
                    "param": None,
                    "code": "unavailable",
                }
            },
        ],
    ),
    Case(
        "an end without a reason is an error, and no [DONE]",
        STREAM,
        [event({"text": "a"})],
        [
            BEGIN,
            chunk({"content": "a"}),
            {
                "error": {
                    "message": "ended the stream before the answer was whole",
                    "type": "upstream_error",
                    "param": None,
                    "code": "upstream_error",
                }
            },
        ],
    ),
    Case(
        "a refused request that begins as a stream",
        ERRORS,
        [{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}],
        [
            {
                "error": {
                    "message": "no",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid_argument",
                }
            }
        ],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_stream_is_said_to_openais_clients(case):
    assert streamed(sse(*case.events)) == case.expected, case.source


def test_usage_comes_last_and_only_when_it_is_asked_for():
    """Source: OpenAI API reference, stream_options.include_usage; read 2026-11."""
    events = [
        {**event({"text": "a"}), "usageMetadata": {"promptTokenCount": 3}},
        {
            **event(reason="STOP"),
            "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1},
        },
    ]
    *chunks, last, done = streamed(sse(*events), include_usage=True)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 4
    assert "usage" not in json.dumps(streamed(sse(*events)))


def test_all_chunks_have_one_id():
    first, second = event({"text": "a"}), event({"text": "b"}, reason="STOP")
    ids = {c["id"] for c in streamed(sse(first, {**second, "responseId": "r2"}))[:-1]}
    assert ids == {"chatcmpl-r1"}
    del first["responseId"]
    ids = {c["id"] for c in streamed(sse(first, second))[:-1]}
    assert ids == {"chatcmpl-x"}, "the first chunk has decided"


def test_each_event_goes_out_before_the_next_one_comes_in():
    seen = []

    def source():
        for sent in (event({"text": "a"}), event({"text": "b"}, reason="STOP")):
            seen.append("in")
            yield sse(sent)

    for _ in openai_events(source(), model="m", created=0, fallback_id="x"):
        seen.append("out")
    assert seen == ["in", "out", "out", "in", "out", "out", "out"]


LONG = sse(
    event({"text": "Grüße, 世界 😀"}),
    event({"text": "line\u2028one\ntwo\r\n"}, {"text": "data: x\n\n"}),
    event({**CALL, "thoughtSignature": "c2ln"}, reason="STOP"),
)
TWO_LINES = b'\xef\xbb\xbfdata: {"candidates": [{"content": {"parts":\ndata:[{"text": "a"}]},'
TWO_LINES += b' "finishReason": "STOP"}]}\n: hi\nid: 1\nevent: x\n\n'


@given(st.lists(st.integers(min_value=0, max_value=len(LONG)), max_size=12))
@example(list(range(len(LONG))))
def test_the_same_events_however_the_bytes_are_cut(cuts):
    """Unicode split across chunks, CRLF split, several events in one chunk, one over many."""
    edges = [0, *sorted(cuts), len(LONG)]
    pieces = [LONG[a:b] for a, b in pairwise(edges)]
    assert streamed(*pieces) == streamed(LONG)
    assert "Grüße, 世界 😀" in json.dumps(streamed(*pieces), ensure_ascii=False)


@pytest.mark.parametrize("end", ["\r\n\r\n", "\n\n", "\r\r", "\r\n\n"])
def test_every_line_end_will_do(end):
    """Source: WHATWG, Server-sent events, Parsing an event stream; read 2026-11."""
    events = [event({"text": "a"}), event({"text": "b"}, reason="STOP")]
    raw = sse(*events, end=end)
    assert streamed(raw) == streamed(sse(*events))
    assert streamed(*(raw[i : i + 1] for i in range(len(raw)))) == streamed(raw)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_data_over_several_lines_comments_other_fields_and_a_byte_order_mark(end):
    """Source: WHATWG, Server-sent events, Parsing an event stream; read 2026-11."""
    raw = TWO_LINES.replace(b"\n", end)
    found = streamed(*(raw[i : i + 1] for i in range(len(raw))))
    assert [c["choices"][0]["delta"] for c in found[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {},
    ]


def test_the_last_event_may_lack_its_blank_line():
    assert streamed(sse(event({"text": "a"}, reason="STOP"), end="\n"))[-1] == "[DONE]"
    assert streamed(sse(event({"text": "a"}, reason="STOP"), end=""))[-1] == "[DONE]"


def test_an_event_that_is_cut_off_is_an_error():
    raw = sse(event({"text": "a"}, reason="STOP"), event({"text": "b"}, reason="STOP"))
    assert "error" in streamed(raw[:-20])[-1]


def test_a_done_of_googles_own_is_passed_over():
    raw = sse(event({"text": "a"}, reason="STOP")) + b"data: [DONE]\n\n"
    assert streamed(raw).count("[DONE]") == 1


def test_trouble_before_the_first_event_is_raised_so_that_another_deployment_is_asked():
    error = {
        "code": 429,
        "message": "quota",
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "t/google.rpc.RetryInfo", "retryDelay": "7s"}],
    }
    with pytest.raises(UpstreamRejected) as refused:
        streamed(sse({"error": error}))
    assert refused.value.status == 429
    assert refused.value.headers == {"Retry-After": "7"}
    for raw in (b"", b": nothing\n\n", b"<html>", sse({}), b"data: <html>\n\n"):
        with pytest.raises(UpstreamError):
            streamed(raw)


def test_a_connection_that_breaks_is_an_error_event_once_the_stream_has_begun():
    def broken(*before):
        yield from before
        raise UpstreamTimeout("vertex_ai did not answer in time")

    with pytest.raises(UpstreamTimeout):
        list(openai_events(broken(), model="m", created=0, fallback_id="x"))
    raw = b"".join(
        openai_events(broken(sse(event({"text": "a"}))), model="m", created=0, fallback_id="x")
    )
    last = json.loads(raw.decode().rstrip("\n").rpartition("data: ")[2])
    assert last["error"]["code"] == "upstream_timeout"
    assert b"[DONE]" not in raw


def test_an_endless_event_ends():
    piece = b"x" * (1024 * 1024)

    def endless():
        yield b"data: "
        while True:
            yield piece

    with pytest.raises(UpstreamError) as refused:
        list(event_data(endless()))
    assert str(LONGEST_EVENT) in refused.value.message


def test_half_a_character_of_utf_16_does_not_break_the_stream():
    raw = sse(event({"text": "HALF"}, reason="STOP")).replace(b"HALF", b"\\ud83d")
    assert streamed(raw)[1]["choices"][0]["delta"] == {"content": "\ud83d"}


def test_the_stream_says_what_the_whole_answer_would():
    parts = [{"text": "a"}, {"functionCall": {"name": "f"}}, {"text": "b"}, CALL]
    whole = completion(event(*parts, reason="STOP"), model="m", created=0)["choices"][0]
    chunks = streamed(sse(*(event(part) for part in parts), event(reason="STOP")))[:-1]
    deltas = [c["choices"][0]["delta"] for c in chunks]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["message"]["content"]
    assert [{k: v for k, v in call.items() if k != "index"} for call in calls] == whole["message"][
        "tool_calls"
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"] == "tool_calls"


shapes = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("candidates", "content", "parts", "text", "functionCall", "args", "index"),
                    *("finishReason", "promptFeedback", "blockReason", "error", "code", "message"),
                    *("inlineData", "groundingMetadata", "groundingSupports", "segment", "details"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(st.lists(shapes, max_size=4))
def test_any_stream_ends_with_done_or_with_an_error(events):
    try:
        found = streamed(sse(event({"text": "a"}), *events))
    except UpstreamError:
        pytest.fail("it had begun")
    assert found[-1] == "[DONE]" or "error" in found[-1]

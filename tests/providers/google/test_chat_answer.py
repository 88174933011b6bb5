"""Gemini's answers as OpenAI's chat completions: a table of cases, each with its page."""

import base64
import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.providers.google.chat_answer import completion, finish_reason
from app.providers.google.chat_request import generate_request

ANSWER = "Gemini API, GenerateContentResponse and Candidate; read 2026-11"
REASONS = "Gemini API, FinishReason; OpenAI API reference, finish_reason; read 2026-11"
SIGNATURES = "Gemini API, Thought signatures; read 2026-11"
GROUNDING = "Gemini API, Grounding with Google Search, GroundingMetadata; read 2026-11"
CODE = "Gemini API, Code execution; read 2026-11"
IMAGES = "Gemini API, Image generation; LiteLLM, image generation in chat; read 2026-11"
LOGPROBS = "Vertex AI, LogprobsResult; OpenAI API reference, logprobs; read 2026-11"


def answer(*parts, reason="STOP", **more):
    candidate = {"content": {"role": "model", "parts": list(parts)}, "finishReason": reason}
    return {"candidates": [{**candidate, **more}], "responseId": "r1"}


def completed(given: dict[str, Any]) -> dict[str, Any]:
    return completion(given, model="gemini-2.5-flash", created=1_700_000_000)


def call(name="weather", args=None, **more):
    return {"functionCall": {"name": name, "args": args or {"city": "Rome"}, **more}}


def message(content, **more):
    return {"role": "assistant", "content": content, "refusal": None, **more}


def tool_call(call_id, name="weather", arguments='{"city":"Rome"}'):
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def token(text, logprob):
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class Case(NamedTuple):
    name: str
    source: str
    answer: dict[str, Any]
    choices: list[dict[str, Any]]


def choice(said, reason="stop", index=0, logprobs=None):
    return {"index": index, "message": said, "logprobs": logprobs, "finish_reason": reason}


CASES = [
    Case("a text", ANSWER, answer({"text": "hello"}), [choice(message("hello"))]),
    Case(
        "a text in several parts",
        ANSWER,
        answer({"text": "hel"}, {"text": "lo"}),
        [choice(message("hello"))],
    ),
    Case(
        "a thought is not content",
        ANSWER,
        answer({"text": "hm", "thought": True}, {"text": "hello"}),
        [choice(message("hello", reasoning_content="hm"))],
    ),
    Case(
        "empty content",
        ANSWER,
        {"candidates": [{"finishReason": "STOP"}], "responseId": "r1"},
        [choice(message(""))],
    ),
    Case(
        "a length limit reached while thinking",
        REASONS,
        {"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]},
        [choice(message(""), "length")],
    ),
    Case(
        "no finishReason at the end",
        REASONS,
        {"candidates": [{"content": {"parts": [{"text": "a"}]}}]},
        [choice(message("a"))],
    ),
    Case(
        "a block for safety",
        REASONS,
        answer(reason="SAFETY"),
        [choice(message(None), "content_filter")],
    ),
    Case(
        "a block for safety in the midst of a text",
        REASONS,
        answer({"text": "so far"}, reason="PROHIBITED_CONTENT"),
        [choice(message("so far"), "content_filter")],
    ),
    Case(
        "a blocked prompt has no candidates",
        ANSWER,
        {"promptFeedback": {"blockReason": "SAFETY"}, "responseId": "r1"},
        [choice(message(None), "content_filter")],
    ),
    Case(
        "several candidates, the first without its number",
        ANSWER,
        {
            "candidates": [
                {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"},
                {"index": 1, "content": {"parts": [{"text": "b"}]}, "finishReason": "MAX_TOKENS"},
            ]
        },
        [choice(message("a")), choice(message("b"), "length", 1)],
    ),
    Case(
        "a call with Google's own id",
        ANSWER,
        answer(call(id="g7")),
        [choice(message(None, tool_calls=[tool_call("g7")]), "tool_calls")],
    ),
    Case(
        "parallel calls, the first with its signature, beside a text",
        SIGNATURES,
        answer(
            {"text": "Let me see."},
            {**call(id="g7"), "thoughtSignature": "c2ln"},
            call("now", {"zone": "Ö"}, id="g8"),
        ),
        [
            choice(
                message(
                    "Let me see.",
                    tool_calls=[
                        tool_call("g7__thought__c2ln"),
                        tool_call("g8", "now", '{"zone":"Ö"}'),
                    ],
                ),
                "tool_calls",
            )
        ],
    ),
    Case(
        "a call without arguments",
        ANSWER,
        answer({"functionCall": {"name": "now", "id": "g1"}}),
        [choice(message(None, tool_calls=[tool_call("g1", "now", "{}")]), "tool_calls")],
    ),
    Case(
        "code that the model has run",
        CODE,
        answer(
            {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
            {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
            {"text": "One."},
        ),
        [choice(message("```python\nprint(1)\n```\n```\n1\n```\nOne."))],
    ),
    Case(
        "a picture",
        IMAGES,
        answer({"inlineData": {"mimeType": "image/png", "data": "iVBO"}}),
        [
            choice(
                message(
                    "",
                    images=[
                        {
                            "type": "image_url",
                            "image_url": {"url": "data:image/png;base64,iVBO"},
                            "index": 0,
                        }
                    ],
                )
            )
        ],
    ),
    Case(
        "citations, counted in bytes there and in characters here",
        GROUNDING,
        answer(
            {"text": "Äpfel sind rot."},
            groundingMetadata={
                "groundingChunks": [{"web": {"uri": "https://e.com", "title": "E"}}],
                "groundingSupports": [
                    {"segment": {"endIndex": 6}, "groundingChunkIndices": [0, 7]},
                    {"segment": {"startIndex": 7, "endIndex": 16}, "groundingChunkIndices": [0]},
                ],
            },
        ),
        [
            choice(
                message(
                    "Äpfel sind rot.",
                    annotations=[
                        {
                            "type": "url_citation",
                            "url_citation": {
                                "start_index": start,
                                "end_index": end,
                                "title": "E",
                                "url": "https://e.com",
                            },
                        }
                        for start, end in ((0, 5), (6, 15))
                    ],
                )
            )
        ],
    ),
    Case(
        "logprobs",
        LOGPROBS,
        answer(
            {"text": "é"},
            logprobsResult={
                "chosenCandidates": [{"token": "é", "tokenId": 1, "logProbability": -0.5}],
                "topCandidates": [{"candidates": [{"token": "é", "logProbability": -0.5}]}],
            },
        ),
        [
            choice(
                message("é"),
                logprobs={
                    "content": [{**token("é", -0.5), "top_logprobs": [token("é", -0.5)]}],
                    "refusal": None,
                },
            )
        ],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_answer_is_said_to_openais_clients(case):
    found = completed(case.answer)
    assert found["choices"] == case.choices, case.source
    assert found["object"] == "chat.completion"
    assert found["model"] == "gemini-2.5-flash"
    assert found["created"] == 1_700_000_000


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        *((reason, "stop") for reason in (None, "", "STOP", "FINISH_REASON_UNSPECIFIED")),
        *((reason, "length") for reason in ("MAX_TOKENS", "CONTINUATION")),
        *(
            (reason, "content_filter")
            for reason in (
                *("SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "SPII", "NO_IMAGE"),
                *("PROHIBITED_CONTENT", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_OTHER"),
                *("IMAGE_RECITATION", "ESCALATION", "MODEL_ARMOR"),
            )
        ),
        *(
            (reason, "stop")
            for reason in (
                *("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"),
                *("MALFORMED_RESPONSE", "MISSING_THOUGHT_SIGNATURE", "PUP_LIMITED_DISABLED"),
                *("SOMETHING_NEW", 7, ["STOP"]),
            )
        ),
    ],
)
def test_why_an_answer_ended(reason, expected):
    """Source: Gemini API, FinishReason; Vertex AI, Candidate.FinishReason; read 2026-11."""
    assert finish_reason(reason, has_calls=False) == expected
    with_calls = finish_reason(reason, has_calls=True)
    assert with_calls == ("tool_calls" if expected == "stop" else expected)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {
                "promptTokenCount": 5,
                "candidatesTokenCount": 7,
                "thoughtsTokenCount": 30,
                "toolUsePromptTokenCount": 100,
                "totalTokenCount": 142,
                "cachedContentTokenCount": 2,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 3},
                    {"modality": "IMAGE", "tokenCount": 2},
                    {"modality": "DOCUMENT", "tokenCount": 1},
                ],
                "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 7}],
            },
            (105, 37, 142, {"cached_tokens": 2, "text_tokens": 3, "image_tokens": 2}, 30),
        ),
        ({"promptTokenCount": "5", "totalTokenCount": "5"}, (5, 0, 5, {"cached_tokens": 0}, 0)),
        (
            {"promptTokenCount": 5, "candidatesTokenCount": 2},
            (5, 2, 7, {"cached_tokens": 0}, 0),
        ),
        (None, (0, 0, 0, {"cached_tokens": 0}, 0)),
        (
            {"promptTokenCount": -1, "candidatesTokenCount": True},
            (0, 0, 0, {"cached_tokens": 0}, 0),
        ),
    ],
    ids=["everything", "texts", "no total", "nothing", "nonsense"],
)
def test_what_was_used(metadata, expected):
    """Source: Gemini API, UsageMetadata; OpenAI API reference, usage; read 2026-11."""
    prompt, answered, total, details, thinking = expected
    found = completed({**answer({"text": "a"}), "usageMetadata": metadata})["usage"]
    assert (found["prompt_tokens"], found["completion_tokens"]) == (prompt, answered)
    assert found["total_tokens"] == total
    assert found["prompt_tokens_details"] == details
    assert found["completion_tokens_details"]["reasoning_tokens"] == thinking


def test_the_id_is_googles_or_the_one_that_is_given_or_made_of_the_answer():
    nameless = {"candidates": answer({"text": "a"})["candidates"]}
    assert completed(answer({"text": "a"}))["id"] == "chatcmpl-r1"
    given = completion(nameless, model="m", created=0, fallback_id="x")
    assert given["id"] == "chatcmpl-x"
    assert completed(nameless) == completed(json.loads(json.dumps(nameless)))
    assert completed(nameless)["id"] != completed({**nameless, "modelVersion": "2"})["id"]


def test_calls_without_an_id_have_ids_of_their_own_that_stay_the_same():
    given = answer(call(), call())
    first, second = completed(given)["choices"][0]["message"]["tool_calls"]
    assert first["id"].startswith("call_")
    assert first["id"] != second["id"]
    assert completed(given) == completed(given)


def test_a_sound_is_an_audio():
    """Source: OpenAI API reference, message.audio; Gemini API, Speech generation; read 2026-11."""
    parts = [{"inlineData": {"mimeType": "audio/L16;rate=24000", "data": "AAAA"}}]
    audio = completed(answer(*parts))["choices"][0]["message"]["audio"]
    assert audio["data"] == "AAAA"
    assert audio["id"].startswith("audio_")
    assert set(audio) == {"id", "data", "expires_at", "transcript"}


signatures = st.none() | st.binary(min_size=1, max_size=40).map(
    lambda raw: base64.b64encode(raw).decode()
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["f", "g"]),
            st.none() | st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
            signatures,
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda given: given[1] or object(),
    )
)
def test_what_gemini_called_comes_back_to_it_unchanged(given_calls):
    """A round trip through a client: name, arguments, id and signature of every call.

    Source: Gemini API, Thought signatures, and Function calling; read 2026-11.
    """
    parts = []
    for name, google_id, signature in given_calls:
        part = call(name, **({"id": google_id} if google_id else {}))
        parts.append({**part, "thoughtSignature": signature} if signature else part)
    said = completed(answer(*parts))["choices"][0]["message"]
    body = {
        "model": "gemini-2.5-flash",
        "messages": [
            {"role": "user", "content": "hi"},
            said,
            *(
                {"role": "tool", "tool_call_id": made["id"], "content": made["function"]["name"]}
                for made in said["tool_calls"]
            ),
        ],
    }
    request = generate_request(body, lambda file_id: (file_id, ""), labels=False)
    assert request["contents"][1] == {"role": "model", "parts": parts}
    for part, returned in zip(parts, request["contents"][2]["parts"], strict=True):
        response = returned["functionResponse"]
        assert response["response"] == {"output": part["functionCall"]["name"]}
        assert response.get("id") == part["functionCall"].get("id")


def json_shaped(keys):
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=5)
        ),
        max_leaves=20,
    )


SHAPES = json_shaped(
    [
        *("candidates", "content", "parts", "text", "thought", "functionCall", "args", "name"),
        *("finishReason", "index", "inlineData", "mimeType", "data", "usageMetadata", "web"),
        *("promptTokenCount", "groundingMetadata", "groundingChunks", "groundingSupports"),
        *("segment", "startIndex", "groundingChunkIndices", "logprobsResult", "topCandidates"),
        *("chosenCandidates", "executableCode", "code", "promptTokensDetails", "modality"),
    ]
)


@given(st.dictionaries(st.sampled_from(["candidates", "usageMetadata", "responseId"]), SHAPES))
def test_any_answer_gives_a_completion(given_answer):
    found = completed(given_answer)
    json.dumps(found)
    assert found["choices"]
    assert all(isinstance(found["usage"][key], int) for key in ("prompt_tokens", "total_tokens"))

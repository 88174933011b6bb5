"""Embeddings: which of Google's methods is called with what, and the vectors on their way back."""

import base64
import struct

import pytest

from app.errors import InvalidRequest
from app.providers.google.embeddings import calls, embedding_list, question, vectors

PREDICT = "Vertex AI, Text embeddings API; read 2026-11"
EMBED = "Vertex AI, embedContent; google-genai 3.4.0, Models.embed_content; read 2026-11"
BATCH = "Gemini API, batchEmbedContents; read 2026-11"


def content(text):
    return {"content": {"parts": [{"text": text}]}}


CONFIG = {"embedContentConfig": {"autoTruncate": False}}


@pytest.mark.parametrize(
    ("model", "platform", "body", "expected"),
    [
        pytest.param(
            "text-embedding-005",
            "vertex_ai",
            {"input": "a"},
            [("predict", {"instances": [{"content": "a"}], "parameters": {"autoTruncate": False}})],
            id=f"one text. {PREDICT}",
        ),
        pytest.param(
            "text-embedding-005",
            "vertex_ai",
            {"input": ["a", "b"], "dimensions": 8, "task_type": "RETRIEVAL_QUERY", "title": "t"},
            [
                (
                    "predict",
                    {
                        "instances": [
                            {"content": "a", "task_type": "RETRIEVAL_QUERY", "title": "t"},
                            {"content": "b", "task_type": "RETRIEVAL_QUERY", "title": "t"},
                        ],
                        "parameters": {"autoTruncate": False, "outputDimensionality": 8},
                    },
                )
            ],
            id=f"several with options. {PREDICT}",
        ),
        pytest.param(
            "gemini-embedding-001",
            "vertex_ai",
            {"input": "a", "dimensions": 8},
            [
                (
                    "embedContent",
                    {
                        **content("a"),
                        "embedContentConfig": {"outputDimensionality": 8, "autoTruncate": False},
                    },
                )
            ],
            id=f"one text for a Gemini model. {EMBED}",
        ),
        pytest.param(
            "gemini-embedding-2",
            "vertex_ai",
            {"input": ["a", "b"]},
            [
                (
                    "batchEmbedContents",
                    {"requests": [{**content("a"), **CONFIG}, {**content("b"), **CONFIG}]},
                )
            ],
            id=f"several for a Gemini model. {EMBED}",
        ),
        pytest.param(
            "gemini-embedding-001",
            "ai_studio",
            {"input": ["a"], "dimensions": 8, "task_type": "SEMANTIC_SIMILARITY"},
            [
                (
                    "batchEmbedContents",
                    {
                        "requests": [
                            {
                                "model": "models/gemini-embedding-001",
                                **content("a"),
                                "outputDimensionality": 8,
                                "taskType": "SEMANTIC_SIMILARITY",
                            }
                        ]
                    },
                )
            ],
            id=f"AI Studio. {BATCH}",
        ),
    ],
)
def test_a_question_becomes_calls(model, platform, body, expected):
    found = list(calls(question(body, model), platform))
    assert [(call.method, call.body) for call in found] == expected


def test_many_texts_are_several_calls_in_their_order():
    texts = [str(n) for n in range(250)]
    found = list(calls(question({"input": texts}, "gemini-embedding-001"), "ai_studio"))
    assert [call.count for call in found] == [100, 100, 50]
    sent = [r["content"]["parts"][0]["text"] for call in found for r in call.body["requests"]]
    assert sent == texts


def test_long_texts_are_several_calls_for_one_takes_so_many_tokens():
    """Source: Vertex AI, Text embeddings API, quotas: 20,000 tokens a request; read 2026-11."""
    asked = question(
        {"input": ["x" * 30_000, "y" * 30_000, "z", "w" * 90_000]}, "text-embedding-005"
    )
    assert [call.count for call in calls(asked, "vertex_ai")] == [1, 2, 1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            {
                "predictions": [
                    {"embeddings": {"values": [1, 2.5], "statistics": {"token_count": 3}}},
                    {"embeddings": {"values": [0, 1], "statistics": {"token_count": 4.0}}},
                ]
            },
            ([[1, 2.5], [0, 1]], 7),
        ),
        (
            {
                "embeddings": [{"values": [1]}, {"values": [2]}],
                "usageMetadata": {"promptTokenCount": "5"},
            },
            ([[1], [2]], 5),
        ),
        ({"embeddings": [{"values": [1]}, {"values": [2]}]}, ([[1], [2]], 0)),
    ],
    ids=[PREDICT, EMBED, BATCH],
)
def test_vectors_are_read(answer, expected):
    assert vectors(answer, 2) == expected


def test_one_vector_is_read():
    answer = {"embedding": {"values": [1]}, "usageMetadata": {"promptTokenCount": 2}}
    assert vectors(answer, 1) == ([[1]], 2)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"embeddings": [{"values": [1]}]},
        {"embeddings": [{"values": [1]}, {"values": []}]},
        {"embeddings": [{"values": [1]}, {"values": ["x"]}]},
        {"embeddings": [{"values": [1]}, {"values": [True]}]},
        {"embeddings": [{"values": [1]}, {"values": [1e39]}]},
        {"embeddings": [{"values": [1]}, None]},
        {"predictions": [1, 2]},
    ],
)
def test_an_answer_without_a_vector_for_every_text_is_none(answer):
    assert vectors(answer, 2) is None


def test_floats_and_base64():
    """Source: OpenAI API reference, embeddings, encoding_format; read 2026-11."""
    found = [[0.5, -1.0], [2.0, 0.25]]
    plain = embedding_list(question({"input": ["a", "b"]}, "m"), found, 9)
    assert plain == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 0.25]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }
    packed = embedding_list(
        question({"input": ["a", "b"], "encoding_format": "base64"}, "m"), found, 9
    )
    raw = [base64.b64decode(item["embedding"]) for item in packed["data"]]
    assert [list(struct.unpack("<2f", item)) for item in raw] == found


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "encoding_format": []}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": True}, "dimensions"),
        ({"input": "a", "task_type": 1}, "task_type"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_its_name(body, param):
    """Source: OpenAI API reference, embeddings, create; read 2026-11."""
    with pytest.raises(InvalidRequest) as refused:
        question(body, "m")
    assert refused.value.param == param

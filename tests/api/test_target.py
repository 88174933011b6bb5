"""Where a request asks to go: every place, every spelling, and what may not be asked."""

import json
from typing import Any

import pytest
from flask import Flask

from app.api import target
from app.errors import AmbiguousRouting, InvalidRequest
from app.services.router import Selector


def selector(
    body: Any = None, *, query: Any = None, headers: Any = None, path: str = "/files", **more: Any
) -> Selector:
    app = Flask("target")
    for rule in ("/files", "/<provider>/v1/files", "/engines/<path:model>/chat"):
        app.add_url_rule(rule, rule, lambda **_: "", methods=["GET", "POST", "DELETE"])
    with app.test_request_context(path, query_string=query, headers=headers):
        return target.hints(body).selector(**more)


A, B = ("a",), ("a", "b")

SPELLINGS: list[tuple[Any, tuple[str, ...]]] = [
    ({"target_model_names": "a"}, A),
    ({"target_model_names": "a, b"}, B),
    ({"target_model_names": "a,b"}, B),
    ({"target_model_names": " a ,, b , "}, B),
    ({"target_model_names": ["a", "b"]}, B),
    ({"target_model_names": ["a, b"]}, B),
    ({"target_model_names": ["a", "b", "a"]}, B),
    ({"target_model_names": '["a", "b"]'}, B),
    ({"target_model_names": ' ["a","b"] '}, B),
    ({"target_model_names": '["a, b"]'}, B),
    ({"target_model_names": "[]"}, ()),
    ({"target_model_names": ""}, ()),
    ({"target_model_names": []}, ()),
    ({"target_model_names": None}, ()),
    ({"target_model_names[]": ["a", "b"]}, B),
    ({"target_model_names[]": "a"}, A),
    ({"target_model_names[0]": "a", "target_model_names[1]": "b"}, B),
    ({"target_model_names": "a", "target_model_names[]": ["b"]}, B),
]


@pytest.mark.parametrize(("body", "names"), SPELLINGS, ids=json.dumps)
def test_any_spelling_of_a_list_in_a_body(body, names):
    assert selector(body).target_model_names == names


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("target_model_names=a,b", B),
        ("target_model_names=a%2C+b", B),
        ("target_model_names=a&target_model_names=b", B),
        ("target_model_names%5B%5D=a&target_model_names%5B%5D=b", B),
        ("target_model_names[0]=a&target_model_names[1]=b", B),
        ("target_model_names=%5B%22a%22%2C%22b%22%5D", B),
        ("target_model_names=", ()),
        ("", ()),
    ],
)
def test_any_spelling_of_a_list_in_a_query(query, names):
    assert selector(query=query).target_model_names == names


@pytest.mark.parametrize("values", [["a, b"], ["a", "b"], ['["a","b"]']])
def test_any_spelling_of_a_list_in_a_header(values):
    headers = [("x-litellm-target-model-names", value) for value in values]
    assert selector(headers=headers).target_model_names == B


@pytest.mark.parametrize(
    "places",
    [
        {"body": {"model": "m"}},
        {"body": {"model": ["m"]}},
        {"body": {"model": " m "}},
        {"query": "model=m"},
        {"query": "model=m&model=m"},
        {"headers": {"x-litellm-model": "m"}},
        {"headers": {"X-LiteLLM-Model": "m"}},
        {"path": "/engines/m/chat"},
        {"body": {"model": "m"}, "query": "model=m", "headers": {"x-litellm-model": "m"}},
        {"body": {"model": "m"}, "path": "/engines/m/chat"},
    ],
    ids=json.dumps,
)
def test_a_model_from_every_place(places):
    assert selector(**places) == Selector(model="m")


@pytest.mark.parametrize(
    "places",
    [
        {"body": {"custom_llm_provider": "azure"}},
        {"body": {"provider": "azure"}},
        {"body": {"provider": ["azure"], "custom_llm_provider": "azure"}},
        {"query": "custom_llm_provider=azure"},
        {"query": "provider=azure"},
        {"headers": {"custom-llm-provider": "azure"}},
        {"path": "/azure/v1/files"},
        {"path": "/azure/v1/files?provider=azure"},
    ],
    ids=json.dumps,
)
def test_a_provider_from_every_place(places):
    assert selector(**places) == Selector(provider="azure")


def test_a_path_may_hold_slashes():
    assert selector(path="/engines/openai/gpt-4o/chat").model == "openai/gpt-4o"


@pytest.mark.parametrize(
    ("places", "kind", "named"),
    [
        ({"body": {"model": "m"}, "query": "model=n"}, "model", "mn"),
        ({"body": {"model": ["m", "n"]}}, "model", "mn"),
        ({"query": "model=m&model=n"}, "model", "mn"),
        ({"path": "/azure/v1/files?provider=openai"}, "custom_llm_provider", ["azure", "openai"]),
        (
            {"body": {"provider": "azure", "custom_llm_provider": "openai"}},
            "custom_llm_provider",
            ["azure", "openai"],
        ),
        (
            {"body": {"target_model_names": "a"}, "query": "target_model_names=a,b"},
            "target_model_names",
            ["a, b"],
        ),
        (
            {"body": {"target_model_names": "a", "model": "m"}},
            None,
            ["target_model_names", "model"],
        ),
        (
            {"body": {"target_model_names": "a"}, "headers": {"custom-llm-provider": "azure"}},
            None,
            ["target_model_names", "custom_llm_provider", "header", "body"],
        ),
        ({"body": {"model": "m", "provider": "azure"}}, None, ["model", "custom_llm_provider"]),
    ],
    ids=json.dumps,
)
def test_what_contradicts_itself_is_refused_naming_both(places, kind, named):
    with pytest.raises(AmbiguousRouting) as refusal:
        selector(**places)
    assert refusal.value.code == "ambiguous_routing"
    assert kind is None or refusal.value.param == kind
    assert all(name in refusal.value.message for name in named)


def test_the_same_list_in_another_order_is_the_same():
    found = selector({"target_model_names": "b,a"}, query="target_model_names=a,b")
    assert set(found.target_model_names) == {"a", "b"}


def test_in_inference_a_model_beside_a_provider_is_the_providers_own():
    body = {"model": "m", "custom_llm_provider": "azure"}
    assert selector(body, inference=True) == Selector(model="m", provider="azure")


@pytest.mark.parametrize(
    "body",
    [
        {"target_model_names": "[a"},
        {"target_model_names": '["a", 1]'},
        {"target_model_names": '[["a"]]'},
        {"target_model_names": "[" * 100_000},
        {"target_model_names": [1]},
        {"target_model_names": 1},
        {"target_model_names": {"a": "b"}},
        {"target_model_names": [["a"]]},
        {"model": 5},
        {"model": {"name": "m"}},
        {"model": ["m", 5]},
        {"model": True},
        {"custom_llm_provider": 5},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_what_is_no_name_is_refused(body):
    with pytest.raises(InvalidRequest) as refusal:
        selector(body)
    assert refusal.value.param == next(iter(body))


@pytest.mark.parametrize("value", [None, "", "  ", [], [""], [None]], ids=json.dumps)
def test_a_selector_without_a_value_is_none(value):
    body = {"model": value, "custom_llm_provider": value, "target_model_names": value}
    assert selector(body) == Selector()


def test_openrouters_provider_object_is_none_of_ours():
    assert selector({"provider": {"order": ["x"]}}) == Selector()


@pytest.mark.parametrize(
    "name",
    [
        *sorted(target.FORBIDDEN),
        "s3_bucket_name",
        "aws_access_key_id",
        "vertex_project",
        "gcs_bucket_name",
        "azure_ad_token",
        "API_BASE",
        "api_base[]",
        "extra_body[api_base]",
        "litellm_params[api_base]",
    ],
)
@pytest.mark.parametrize("place", ["body", "query"])
def test_nobody_redirects_the_gateways_credentials(name, place):
    given: Any = {place: {name: "http://evil"}}
    with pytest.raises(InvalidRequest) as refusal:
        selector(**given)
    assert refusal.value.code == "forbidden_parameter"
    assert refusal.value.param == name


def test_a_forbidden_name_is_shown_cut():
    with pytest.raises(InvalidRequest) as refusal:
        selector({"s3_" + "x" * 10_000: ""})
    assert len(refusal.value.message) < 300

"""/models, /model/info, /model_group/info: what this key may call, and nothing more."""

import pytest

from tests.api.conftest import ACCOUNTS, DEPLOYMENTS, error_of, make_gateway
from tests.builders import make_deployment

PREFIXES = ("", "/v1", "/openai")
SECRET = {"api_key": "sk-up-secret", "api_base": "http://inside:8000/v1"}


@pytest.fixture
def gateway(tmp_path, api_database):
    deployments = (
        *DEPLOYMENTS,
        make_deployment(
            "b-2", model_name="b", params=SECRET, mode="chat", model_info={"note": "x"}, weight=2
        ),
        make_deployment("w", model_name="openai/*", upstream_model="*"),
    )
    return make_gateway(tmp_path / "data", api_database, deployments)


def names(person, prefix="/v1"):
    return [model["id"] for model in person.get(f"{prefix}/models").get_json()["data"]]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_list_has_the_names_that_the_key_may_use(gateway, alice, root, prefix):
    only_b = gateway.person("carol", key={"models": ["b"]})
    both = gateway.person("dave", key={"models": ["a", "b"]}, user={"models": ["b"]})
    wild = gateway.person("erin", key={"models": ["openai/gpt-5", "openai/*"]})
    assert names(alice, prefix) == names(root, prefix) == ["a", "b"]
    assert names(only_b, prefix) == names(both, prefix) == ["b"]
    assert "openai/gpt-5" in names(wild, prefix)


def test_the_list_is_a_page_as_openai_writes_it(alice):
    page = alice.get("/v1/models").get_json()
    assert page["object"] == "list" and page["has_more"] is False
    assert page["data"][0] == {
        "id": "a",
        "object": "model",
        "created": 1677610602,
        "owned_by": "manifold",
    }


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_model(gateway, prefix):
    person = gateway.person("carol", key={"models": ["b", "openai/gpt-5"]})
    assert person.get(f"{prefix}/models/b").get_json()["id"] == "b"
    assert person.get(f"{prefix}/models/openai/gpt-5").get_json()["id"] == "openai/gpt-5"
    assert person.get(f"{prefix}/models/openai%2Fgpt-5").get_json()["id"] == "openai/gpt-5"
    for other in ("a", "nonsense", "openai/*", "openai/gpt-4", "B", "x" * 5000, "../b", "%00"):
        error = error_of(person.get(f"{prefix}/models/{other}"), 404, "model", "model_not_found")
        assert len(error["message"]) < 400


def test_info_shows_neither_address_nor_credential(alice, root):
    for person in (alice, root):
        for path in ("/model/info", "/model_group/info", "/v1/models"):
            text = person.get(path).text
            assert "sk-up-secret" not in text and "inside" not in text
    entries = {d["model_info"]["id"]: d for d in alice.get("/model/info").get_json()["data"]}
    assert set(entries) == {"a-1", "b-1", "b-2", "w"}
    assert entries["b-2"] == {
        "model_name": "b",
        "litellm_params": {
            "model": "openai/gpt-4o-2026",
            "custom_llm_provider": "openai",
            "weight": 2,
        },
        "model_info": {"note": "x", "id": "b-2"},
    }


def test_groups_are_by_model_name(gateway, alice):
    groups = {g["model_group"]: g for g in alice.get("/model_group/info").get_json()["data"]}
    assert groups["b"]["providers"] == ["azure", "openai"]
    assert groups["b"]["deployments"] == 2
    only_a = gateway.person("carol", key={"models": ["a"]})
    assert [g["model_group"] for g in only_a.get("/model_group/info").get_json()["data"]] == ["a"]
    assert {d["model_name"] for d in only_a.get("/model/info").get_json()["data"]} == {"a"}


def test_accounts_without_a_model_are_not_shown(alice):
    ids = {d["model_info"]["id"] for d in alice.get("/model/info").get_json()["data"]}
    assert not ids & {account.id for account in ACCOUNTS}

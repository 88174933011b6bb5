"""No secret is in a log, an answer, a row or a command line, whatever fails; one line a request."""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from sqlalchemy import make_url

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import (
    API_VERSION,
    MANIFOLD,
    Account,
    Gateway,
    Upstream,
    model,
    wait_until,
)
from tests.e2e.inside import rows, scratch_postgres

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def secret(name: str) -> str:
    """A text that stands nowhere else."""
    return f"sk-{name}-{secrets.token_hex(16)}"


@dataclass
class Setting:
    """A gateway that knows many secrets, at the most talkative level there is."""

    gateway: Gateway
    upstream: Upstream
    accounts: list[Account]
    alice: str
    ids: dict[str, int] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    hidden: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, key: str | None = None, **more: Any) -> requests.Response:
        """A call whose answer is searched later."""
        request_id = f"secrets-{secrets.token_hex(8)}"
        headers = {"x-request-id": request_id, **more.pop("headers", {})}
        key = self.alice if key is None else key
        response = self.gateway.api(method, path, key=key, headers=headers, **more)
        assert response.headers["x-request-id"] == request_id
        self.ids[request_id] = response.status_code
        self.shown += [response.text, str(response.headers)]
        return response

    def lines(self) -> list[dict[str, Any]]:
        """What was logged, line by line; each line is JSON."""
        log = (self.gateway.log_dir / "gateway.stderr").read_text()
        return [json.loads(line) for line in log.splitlines()]


@pytest.fixture(scope="module")
def setting(upstream: Upstream, start_gateway: StartGateway) -> Iterator[Setting]:
    hidden = {
        name: secret(name)
        for name in ("master", "openai", "refused", "slow", "azure", "entra", "engine", "database")
    }
    hidden["token"] = f"eyJ0{secrets.token_hex(30)}"
    account = upstream.account("secretive", key=hidden["openai"])
    slow = upstream.account("secretive-slow", key=hidden["slow"])
    azure = upstream.account("secretive-azure", "azure", key=hidden["azure"])
    engine = upstream.account("secretive-engine", "engine", key=hidden["engine"])
    accounts = [account, slow, azure, engine]
    nowhere = {"api_base": "http://127.0.0.1:1/v1", "api_key": hidden["refused"], "max_retries": 0}
    entra = {"tenant_id": "tenant", "client_id": "client", "client_secret": hidden["entra"]}
    bare = {"api_base": azure.api_base, "api_version": API_VERSION}
    config = {
        "model_list": [
            model("good", "openai/gpt-4o", account, max_retries=0),
            model("slow", "openai/gpt-4o", slow, timeout=0.3, max_retries=0),
            model("azure", "azure/gpt-4o", azure, max_retries=0),
            model("engine", "hosted_vllm/llama", engine),
            {"model_name": "refused", "litellm_params": {"model": "openai/gpt-4o", **nowhere}},
            {
                "model_name": "token",
                "litellm_params": {
                    **bare,
                    "model": "azure/gpt-4o",
                    "azure_ad_token": hidden["token"],
                },
            },
            {
                "model_name": "entra",
                "litellm_params": {
                    **{**bare, **entra},
                    "model": "azure/gpt-4o",
                    "azure_authority_host": "https://127.0.0.1:1",
                },
            },
            {"model_name": "disk", "litellm_params": {"model": "local/disk"}},
        ],
        "files_settings": [{"custom_llm_provider": "openai", **account.params}],
        "general_settings": {"master_key": hidden["master"]},
    }
    with ExitStack() as stack:
        url = None
        if os.environ.get("MANIFOLD_TEST_POSTGRES"):
            parsed = make_url(stack.enter_context(scratch_postgres()))
            # A server that trusts this machine takes any password.
            hidden["database"] = parsed.password or hidden["database"]
            parsed = parsed.set(password=hidden["database"])
            url = parsed.render_as_string(hide_password=False)
        gateway = start_gateway(
            config, workers=2, threads=8, env={"MANIFOLD_LOG_LEVEL": "DEBUG"}, database_url=url
        )
        hidden["alice"] = gateway.new_user(user_id="alice")["key"]
        yield Setting(gateway, upstream, accounts, hidden["alice"], hidden=hidden)
        gateway.close_clients()
        gateway.stop()


def chat(name: str, **more: Any) -> dict[str, Any]:
    return {"json": {**CHAT, "model": name, **more}}


def form(targets: str, purpose: str = "assistants") -> dict[str, Any]:
    return {
        "files": {"file": ("a.txt", b"content")},
        "data": {"purpose": purpose, "target_model_names": targets},
    }


MODELS = ("good", "slow", "azure", "engine", "refused", "token", "entra", "disk")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503])
def test_an_upstream_that_repeats_what_it_was_sent_gives_nothing_away(
    setting: Setting, status: int
):
    for account in setting.accounts:
        key = account.key
        body = {"error": {"message": f"Incorrect API key provided: {key}", "param": key}}
        account.fail(status=status, body=body, headers={"x-secret": key, "Set-Cookie": key})

    for name in MODELS:
        assert setting.ask("POST", "/v1/chat/completions", **chat(name)).status_code >= 400
        kept_here = name in ("disk", "engine")
        assert (setting.ask("POST", "/v1/files", **form(name)).status_code < 400) == kept_here
    setting.ask("GET", "/v1/files?model=good", setting.gateway.master_key)
    setting.ask("GET", "/v1/files/file-abc?model=good", setting.gateway.master_key)
    setting.ask("POST", "/v1/chat/completions", **chat("good", stream=True))


def test_an_upstream_that_breaks_hangs_or_babbles_gives_nothing_away(setting: Setting):
    upstream = setting.upstream
    faults: list[dict[str, Any]] = [
        {"close": "before_body"},
        {"close": "mid_request", "after_bytes": 10},
        {"status": 200, "body": "<html>@"},
        {"status": 302, "headers": {"Location": "http://127.0.0.1:1/?@"}},
        {"status": 500, "body": "<html>Bearer @"},
        {"status": 500, "body": {"detail": {"key": "@"}}},
        {"status": 500, "body": {"error": "@"}},
    ]
    for fault in faults:
        for account in setting.accounts:
            account.fail(**json.loads(json.dumps(fault).replace("@", account.key)))
        for name in ("good", "azure"):
            setting.ask("POST", "/v1/files", **form(name))
            # An answer that is no error is passed on as it is.
            if fault.get("status") != 200:
                setting.ask("POST", "/v1/chat/completions", **chat(name))
        upstream.clear_faults()
    upstream.fail("secretive-slow", hang=True)
    assert setting.ask("POST", "/v1/files", **form("slow")).status_code == 504
    assert setting.ask("POST", "/v1/chat/completions", **chat("slow")).status_code == 504


def test_keys_in_wrong_places_are_not_repeated(setting: Setting):
    api, hidden = setting.ask, setting.hidden
    for key in (hidden["alice"], hidden["master"]):
        assert api("GET", "/v1/files", key + "x").status_code == 401
        assert api("GET", "/v1/files", key.upper()).status_code == 401
        assert api("GET", "/v1/files", "", headers={"Authorization": key}).status_code == 401
        assert api("GET", f"/v1/files?api_key={key}").status_code == 400
        assert api("GET", f"/v1/files?key={key}", "").status_code == 401
        assert api("GET", f"/nothing?key={key}").status_code == 404
        assert api("POST", "/v1/chat/completions", **chat("good", api_key=key)).status_code == 400
        assert api("GET", f"/key/info?key={key}x", hidden["master"]).status_code == 404
        assert (
            api("POST", "/key/block", hidden["master"], json={"key": key + "x"}).status_code == 404
        )
        for name in ("x-api-key", "api-key", "x-litellm-api-key"):
            assert api("GET", "/v1/files", "", headers={name: key + "x"}).status_code == 401
    assert api("GET", f"/key/info?key={hidden['alice']}", hidden["master"]).status_code == 200
    for path in ("/model/info", "/model_group/info", "/v1/models", "/key/list", "/user/list"):
        assert api("GET", path, hidden["master"]).status_code == 200
    assert api("GET", "/health", hidden["master"]).status_code == 200
    assert api("GET", "/user/info?user_id=alice", hidden["master"]).status_code == 200


def test_what_works_is_logged_with_where_it_went_and_how_much(setting: Setting):
    content = b"x" * 1000
    made = setting.ask(
        "POST",
        "/v1/files",
        files={"file": ("a.txt", content)},
        data={"purpose": "assistants", "target_model_names": "disk"},
    ).json()
    setting.ask("GET", f"/v1/files/{made['id']}/content")
    setting.ask("POST", "/v1/chat/completions", **chat("good", stream=True))
    setting.ask("DELETE", f"/v1/files/{made['id']}")

    asked = list(setting.ids)[-4:]

    def logged() -> list[dict[str, Any]]:
        # A line is written after its answer has gone out.
        lines = {line["request_id"]: line for line in setting.lines() if line["event"] == "request"}
        return [lines[each] for each in asked if each in lines]

    wait_until(lambda: len(logged()) == 4)
    uploaded, downloaded, chatted, deleted = logged()
    assert (uploaded["method"], uploaded["route"]) == ("POST", "/v1/files")
    assert (uploaded["status"], uploaded["bytes_in"]) == (200, 1000)
    assert (downloaded["bytes_out"], downloaded["deployment"]) == (1000, uploaded["deployment"])
    assert downloaded["route"] == "/v1/files/<file_id>/content"
    assert (chatted["route"], chatted["status"]) == ("/v1/chat/completions", 200)
    assert chatted["deployment"] not in ("", uploaded["deployment"])
    assert chatted["bytes_out"] > 100
    assert (deleted["method"], deleted["status"]) == ("DELETE", 200)


# The last one: it looks at what the ones before have left.
def test_no_secret_has_appeared_anywhere_and_each_request_has_its_line(setting: Setting):
    gateway = setting.gateway
    assert len(setting.ids) > 200
    log = gateway.log_text()
    stored = repr(rows(gateway))
    commands = " ".join(" ".join(process.cmdline()) for process in gateway.processes())
    for name, value in setting.hidden.items():
        assert value not in log, f"{name} is in the log"
        assert value.upper() not in log, f"{name} is in the log"
        assert value not in stored, f"{name} is in the database"
        assert value not in commands, f"{name} is on a command line"
        for text in setting.shown:
            assert value not in text, f"{name} is in an answer: {text[:500]}"
    assert "Traceback" not in log

    lines: dict[str, list[dict[str, Any]]] = {}
    for line in setting.lines():
        if line["event"] == "request":
            lines.setdefault(line["request_id"], []).append(line)
    for request_id, status in setting.ids.items():
        (line,) = lines[request_id]
        assert line["status"] == status
        assert line["ms"] >= 0
        assert line["bytes_out"] >= 0
        assert line["route"] is None or line["route"].startswith("/")
        if status == 401:
            assert line["key"] is None
        elif status != 404:
            assert len(line["key"]) == 12


MISTAKES: dict[str, Any] = {
    "an unknown key": {"general_settings": {"master_kee": "@"}},
    "a list for a key": {"general_settings": {"master_key": ["@"]}},
    "a mapping for a key": {"general_settings": {"master_key": {"@": "@"}}},
    "another database": {"general_settings": {"database_url": "mysql://user:@@host/db"}},
    "no URL": {"general_settings": {"database_url": "user:@ at host"}},
    "a host that is not there": {
        "general_settings": {"database_url": "postgresql://user:@@127.0.0.1:1/db"}
    },
    "no address": {
        "model_list": [
            {
                "model_name": "x",
                "litellm_params": {"model": "openai/x", "api_key": "@", "api_base": "nonsense"},
            }
        ]
    },
    "a key as a list": {
        "model_list": [
            {"model_name": "x", "litellm_params": {"model": "openai/x", "api_key": ["@"]}}
        ]
    },
    "a key by another name": {
        "model_list": [{"model_name": "x", "litellm_params": {"model": "openai/x", "api_kee": "@"}}]
    },
    "a secret without its tenant": {
        "model_list": [
            {
                "model_name": "x",
                "litellm_params": {
                    "model": "azure/x",
                    "api_base": "https://a.example",
                    "client_secret": "@",
                },
            }
        ]
    },
    "a password in an address": {
        "model_list": [
            {
                "model_name": "x",
                "litellm_params": {
                    "model": "openai/x",
                    "api_key": "@",
                    "api_base": "http://user:@@127.0.0.1/v1?key=@",
                    "timeout": "@",
                },
            }
        ]
    },
    "no YAML": "general_settings:\n  master_key: '@\n  x: [\n",
    "YAML with a tab": "general_settings:\n\tmaster_key: @\n",
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_configuration_is_told_without_its_secret(tmp_path: Path, mistake: Any):
    hidden = secret("config")
    text = mistake if isinstance(mistake, str) else yaml.safe_dump(mistake)
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("@@", hidden + "@").replace("@", hidden))
    if "@@" in text:
        config.write_text(text.replace(":@@", f":{hidden}@").replace("'@'", f"'{hidden}'"))

    ended = subprocess.run(
        [MANIFOLD, "serve", "--config", str(config), "--port", "1", "--workers", "1"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "MANIFOLD_LOG_LEVEL": "DEBUG",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    told = ended.stdout + ended.stderr
    assert hidden in config.read_text()
    assert ended.returncode != 0
    assert hidden not in told
    assert "Traceback" not in told

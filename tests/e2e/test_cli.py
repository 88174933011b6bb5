"""The command line against a real gateway: users, keys, files, batches, models."""

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.batching import QUICK
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MANIFOLD, Account, Gateway, Upstream, model, wait_until
from tests.e2e.serve import plain_environment
from tests.e2e.upstream_jobs import rows

CONTENT = random.Random(7).randbytes(3_000_000)
MB = 1024 * 1024


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("cli", download_any=True)


@pytest.fixture(scope="module")
def gateway(account: Account, start_gateway: StartGateway) -> Gateway:
    config = {
        "model_list": [
            model("a", "openai/gpt-4o", account),
            {"model_name": "kept", "litellm_params": {"model": "local/kept"}},
        ],
        "general_settings": {**QUICK, "default_target_model_names": ["kept"]},
    }
    return start_gateway(config, workers=1)


class Shell:
    """Runs `manifold` as a process, in a directory of its own, with a key."""

    def __init__(self, gateway: Gateway, place: Path, key: str | None = None) -> None:
        self.place = place
        self.env = {
            **{k: v for k, v in plain_environment().items() if not k.lower().endswith("_proxy")},
            "MANIFOLD_URL": gateway.url,
            "MANIFOLD_API_KEY": key or gateway.master_key,
        }

    def start(self, *words: object, **more: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [MANIFOLD, *map(str, words)],
            cwd=self.place,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def run(self, *words: object, status: int = 0) -> "subprocess.CompletedProcess[str]":
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, out + err
        assert "Traceback" not in err
        return subprocess.CompletedProcess("manifold", status, out, err)

    def json(self, *words: object, status: int = 0) -> Any:
        found = [
            json.loads(line)
            for line in self.run(*words, "--json", status=status).stdout.splitlines()
        ]
        return found if len(found) != 1 else found[0]


@pytest.fixture
def shell(gateway: Gateway, tmp_path: Path) -> Shell:
    return Shell(gateway, tmp_path)


def test_files_are_sent_listed_shown_fetched_and_removed(shell, gateway, tmp_path):
    (tmp_path / "report.pdf").write_bytes(CONTENT)
    file_id = shell.run(
        "files", "put", "report.pdf", "--model", "a", "--model", "kept"
    ).stdout.strip()
    listed = shell.json("files", "list", "--model", "a", "--limit", "1")
    assert (listed["id"], listed["filename"], listed["bytes"]) == (
        file_id,
        "report.pdf",
        len(CONTENT),
    )
    assert "report.pdf" in shell.run("files", "list").stdout
    shown = shell.json("files", "show", file_id)
    assert {copy["model"] for copy in shown["copies"]} == {"a", "kept"}
    assert "kept" in shell.run("files", "show", file_id).stdout

    refused = shell.run("files", "get", file_id, status=1).stderr
    assert refused == "manifold: report.pdf is there already; say --force to write over it\n"
    (tmp_path / "folder").mkdir()
    fetched = shell.json("files", "get", file_id, "--out", "folder")
    assert fetched == {"id": file_id, "path": "folder/report.pdf", "bytes": len(CONTENT)}
    assert (tmp_path / "folder" / "report.pdf").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["report.pdf"]

    assert shell.json("files", "rm", file_id) == {"id": file_id, "object": "file", "deleted": True}
    assert shell.run("files", "show", file_id, status=1).stderr.startswith("manifold: No such File")


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(shell, gateway, account, tmp_path):
    (tmp_path / "big.bin").write_bytes(CONTENT)
    file_id = shell.run("files", "put", "big.bin", "--model", "a").stdout.strip()
    # The upstream keeps the rest to itself, and the command is killed meanwhile.
    half = {"hang": "mid_body", "after_bytes": 2 * MB}
    account.fail(method="GET", path_regex="/content$", times=1, **half)
    process = shell.start("files", "get", file_id, "--out", "got.bin")
    part = tmp_path / "got.bin.part"
    wait_until(lambda: part.exists() and part.stat().st_size >= MB)
    process.kill()
    process.communicate()
    account.upstream.clear_faults()
    had = part.stat().st_size
    account.upstream.forget_requests()
    shell.run("files", "get", file_id, "--out", "got.bin")
    assert (tmp_path / "got.bin").read_bytes() == CONTENT
    [asked] = [r for r in account.requests(method="GET") if r.path.endswith("/content")]
    assert asked.headers["range"] == f"bytes={had - 65536}-"
    assert not list(tmp_path.glob("*.part*"))

    # A part of something else counts for nothing, whatever it is called.
    (tmp_path / "again.bin.part").write_bytes(b"x" * MB)
    shell.run("files", "get", file_id, "--out", "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == CONTENT
    # Nor does one of this file whose end is another one.
    shown = shell.json("files", "show", file_id)
    note = {"gateway": gateway.url, "id": file_id}
    note |= {"bytes": shown["bytes"], "created_at": shown["created_at"]}
    (tmp_path / "third.bin.part").write_bytes(b"x" * MB)
    (tmp_path / "third.bin.part.json").write_text(json.dumps(note))
    shell.run("files", "get", file_id, "--out", "third.bin")
    assert (tmp_path / "third.bin").read_bytes() == CONTENT


def test_a_connection_that_breaks_meanwhile_is_made_anew(shell, gateway, account, tmp_path):
    (tmp_path / "big.bin").write_bytes(CONTENT)
    file_id = shell.run("files", "put", "big.bin", "--model", "a").stdout.strip()
    account.fail(method="GET", path_regex="/content$", close="mid_body", after_bytes=MB, times=2)
    shell.run("files", "get", file_id, "--out", "got.bin")
    assert (tmp_path / "got.bin").read_bytes() == CONTENT


def test_a_hostile_name_is_written_here_and_nowhere_else(shell, gateway, tmp_path):
    client = gateway.client()
    name = "\x1b[31m..\\..\\.ssh\\evil\u202e.txt"
    file = client.files.create(file=(name, b"x"), purpose="user_data")
    shown = shell.run("files", "list", "--limit", "1").stdout
    assert "\x1b" not in shown and "\u202e" not in shown
    (tmp_path / "here").mkdir()
    shell.place = tmp_path / "here"
    shell.run("files", "get", file.id)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["evil.txt"]


def test_a_large_file_needs_no_memory_and_shows_how_far_it_is(shell, gateway, tmp_path):
    """384 MB both ways; on a terminal with a bar that tells speed and time left.

    The time left is told after a second: less would be sent by then.
    """
    size = 384 * MB
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(size)
    client_side, terminal = os.openpty()
    seen: list[str] = []

    def listen() -> None:
        while True:
            try:
                seen.append(os.read(client_side, 65536).decode(errors="replace"))
            except OSError:
                return

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()

    def peak_of(*words: object) -> int:
        process = subprocess.Popen(
            [MANIFOLD, *map(str, words)],
            cwd=tmp_path,
            env=shell.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=terminal,
        )
        peak, watched = 0, psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
        assert process.stdout is not None
        answers.append(process.stdout.read().decode().strip())
        process.stdout.close()
        assert process.wait() == 0, "".join(seen)
        return peak

    answers: list[str] = []
    before = peak_of("models")
    grown = peak_of("files", "put", "large.bin", "--model", "kept") - before
    file_id = answers[-1]
    grown = max(grown, peak_of("files", "get", file_id, "--out", "back.bin") - before)
    shell.run("files", "rm", file_id)
    os.close(terminal)
    listening.join(5)
    os.close(client_side)
    print(f"the client grew by {grown / MB:.0f} MB for 128 MB")
    assert grown < 32 * MB
    assert (tmp_path / "back.bin").stat().st_size == size
    bar = "".join(seen)
    assert re.search(r"large\.bin .*%.*\d\d:\d\d.*[MG]B/s", bar), bar[-500:]


def test_users_and_keys(shell, gateway, tmp_path):
    made = shell.json(
        "users", "new", "lea", "--email", "lea@example.org", "--model", "a", "--rpm", 600
    )
    assert made["models"] == ["a"] and made["rpm_limit"] == 600
    assert shell.json("users", "list", "--email", "lea@example.org")["user_id"] == "lea"
    lea = Shell(gateway, tmp_path, made["key"])
    assert lea.run("models").stdout == "a\n"
    assert lea.json("keys", "show")["user_id"] == "lea"
    refused = lea.run("users", "new", "max", status=1).stderr
    assert refused.startswith("manifold: ") and refused.count("\n") == 1

    secret = shell.run(
        "keys", "new", "--user", "lea", "--alias", "laptop", "--only-key"
    ).stdout.strip()
    laptop = Shell(gateway, tmp_path, secret)
    laptop.run("models")
    assert {key["key_alias"] for key in shell.json("keys", "list", "--user", "lea")} == {
        None,
        "laptop",
    }
    assert "laptop" in shell.run("keys", "list", "--user", "lea").stdout
    shell.run("keys", "block", "laptop")
    assert "blocked" in laptop.run("models", status=1).stderr
    shell.run("keys", "unblock", "laptop")
    laptop.run("models")
    renewed = shell.run(
        "keys", "regenerate", "laptop", "--grace", "1h", "--only-key"
    ).stdout.strip()
    for each in (secret, renewed):
        Shell(gateway, tmp_path, each).run("models")
    # Without a word of consent nothing is deleted.
    shell.run("keys", "delete", "laptop", status=1)
    assert shell.run("keys", "delete", "laptop", "--yes").stdout == "1 deleted\n"
    Shell(gateway, tmp_path, renewed).run("models", status=1)
    assert "lea" in shell.run("users", "show", "lea").stdout
    shell.run("users", "delete", "lea", "--yes")
    assert "no user" in shell.run("users", "show", "lea", status=1).stderr


def test_a_secret_is_taken_from_everywhere_but_the_command_line(shell, gateway, tmp_path):
    key = shell.env.pop("MANIFOLD_API_KEY")
    refused = shell.run("models", "--key", key, status=2).stderr
    assert "seen by every user" in refused and key not in refused
    assert "sk-secret" not in shell.run("keys", "block", "sk-secret", status=2).stderr
    (tmp_path / "key").write_text(key)
    shell.run("models", "--key", "file:key")
    shell.env["SOMEWHERE"] = key
    shell.run("models", "--key", "env:SOMEWHERE")
    # Without any: on this machine the gateway's own, from its configuration.
    assert "MANIFOLD_API_KEY" in shell.run("models", status=1).stderr
    shell.env["MANIFOLD_CONFIG"] = str(gateway.config_path)
    shell.run("models")


class Listener(BaseHTTPRequestHandler):
    """Somebody else's server, which remembers what it was sent."""

    seen: list[str] = []

    def do_GET(self) -> None:
        self.seen.append(str(self.headers))
        self.send_response(302)
        self.send_header("Location", "https://elsewhere.example/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_master_key_leaves_this_machine_never_and_no_redirect_is_followed(shell, gateway):
    from app.cli import remote

    del shell.env["MANIFOLD_API_KEY"]
    config = str(gateway.config_path)
    assert remote._key(None, "http://127.0.0.1:1", config) == gateway.master_key
    assert remote._key(None, "http://127.0.0.1.example.org", config) is None
    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shell.env["MANIFOLD_URL"] = f"http://127.0.0.1:{server.server_port}"
        shell.env["MANIFOLD_API_KEY"] = "sk-somebodys"
        told = shell.run("models", status=1).stderr
        server.shutdown()
    assert "302" in told and "elsewhere.example" in told
    assert len(Listener.seen) == 1


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:9", "connection refused"),
        ("http://nowhere.invalid", "no such host"),
    ],
)
def test_a_gateway_that_is_not_there_is_told_in_one_line(shell, url, told):
    shell.env["MANIFOLD_URL"] = url
    err = shell.run("files", "list", status=3).stderr
    assert told in err and err.count("\n") == 1


def test_a_batch_from_file_to_answers_in_one_command(shell, account, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(rows(5, "a"))
    with account.changed(batch_delay_s=0.5):
        done = shell.run("batches", "run", "rows.jsonl", "--model", "a", "--wait", "--every", "0.2")
    assert done.stdout == "completed: 5 of 5 rows answered\nrows.output.jsonl\n"
    answers = [
        json.loads(line) for line in (tmp_path / "rows.output.jsonl").read_text().splitlines()
    ]
    assert {answer["custom_id"] for answer in answers} == {f"row-{n}" for n in range(1, 6)}
    assert "completed" in shell.run("batches", "list", "--limit", "1").stdout
    # It is not written over.
    shell.run("batches", "run", "rows.jsonl", "--model", "a", "--wait", status=1)


def test_a_batch_with_rows_that_failed_says_so(shell, account, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(rows(4, "a", fail={2}))
    with account.changed(batch_delay_s=0.2):
        told = shell.json(
            "batches",
            "run",
            "rows.jsonl",
            "--model",
            "a",
            "--wait",
            "--every",
            "0.2",
            "--metadata",
            "team=search",
            status=4,
        )
    assert told["written"] == {"output": "rows.output.jsonl", "error": "rows.errors.jsonl"}
    assert told["metadata"] == {"team": "search"}
    assert b"row-2" in (tmp_path / "rows.errors.jsonl").read_bytes()


def test_an_interrupted_wait_says_how_to_go_on_and_that_works(shell, account, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(rows(2, "a"))
    batches = len(account.batches()) + 1
    with account.changed(batch_delay_s=60.0):
        process = shell.start("batches", "run", "rows.jsonl", "--model", "a", "--wait")
        wait_until(lambda: len(account.batches()) == batches)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    found = re.search(r"manifold (batches wait \S+ --out \S+)", err)
    assert found, err
    with account.changed(batch_delay_s=0.0):
        shell.run(*found[1].split(), "--every", "0.2")
    assert (tmp_path / "rows.output.jsonl").exists()
    assert len(account.batches()) == batches
    batch_id = found[1].split()[2]
    assert shell.json("batches", "show", batch_id)["status"] == "completed"
    assert "cannot be cancelled" in shell.run("batches", "cancel", batch_id, status=1).stderr


def test_models_and_their_accounts(shell):
    assert shell.run("models").stdout.split() == ["a", "kept"]
    [first, _] = shell.json("models", "--deployments")
    assert (first["model"], first["provider"], first["upstream"]) == (
        "a",
        "openai",
        "openai/gpt-4o",
    )


def test_a_shell_completes_commands(tmp_path):
    env = {**plain_environment(), "PATH": f"{Path(MANIFOLD).parent}:{os.environ['PATH']}"}
    script = (
        'eval "$(manifold completion bash)"\n'
        "COMP_WORDS=(manifold files p); COMP_CWORD=2; _manifold_completion manifold\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["put"], done.stderr
    zsh = subprocess.run(
        [MANIFOLD, "completion", "zsh"], capture_output=True, text=True, check=True
    )
    assert "#compdef manifold" in zsh.stdout

"""What lies on the disk and in the database: nobody else's to read, and no secret in it."""

import stat
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Gateway, Upstream, model, wait_until
from tests.e2e.inside import rows, scratch_postgres

SECRET = b"the-content-of-a-file-"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def used(
    request: pytest.FixtureRequest, upstream: Upstream, start_gateway: StartGateway
) -> tuple[Gateway, list[str]]:
    """A gateway after everything that leaves something behind, and the secrets of that."""
    url = None
    if request.param == "postgresql":
        manager = scratch_postgres()
        url = manager.__enter__()
        request.addfinalizer(lambda: manager.__exit__(None, None, None))
    account = upstream.account(f"at-rest-{request.param}")
    config = {
        "model_list": [
            model("gpt", "openai/gpt-4o", account),
            {"model_name": "disk", "litellm_params": {"model": "local/disk"}},
        ]
    }
    gateway = start_gateway(config, workers=1, database_url=url, worker=True, new=True)
    key = gateway.new_user(user_id="alice")["key"]
    client = gateway.client(key)
    # What is small is never in the spool.
    for names, size in (("disk", 0), ("disk,gpt", 100_000)):
        client.files.create(
            file=("a.txt", (SECRET + names.encode()).ljust(size)),
            purpose="user_data",
            extra_body={"target_model_names": names},
        )
    begun = client.uploads.create(
        purpose="user_data", filename="b.txt", bytes=8, mime_type="text/plain",
        extra_body={"model": "disk"},
    )  # fmt: skip
    client.uploads.parts.create(begun.id, data=b"half")
    kept = gateway.api("POST", "/key/generate", key=key, json={"metadata": {"a": 1}}).json()["key"]
    renewed = gateway.api(
        "POST", "/key/regenerate", key=key, json={"key": kept, "grace_period": "1h"}
    ).json()["key"]
    gateway.api("GET", "/v1/files", key="sk-" + "w" * 40)
    wait_until((gateway.data_dir / "tasks.db").exists, timeout=20)
    return gateway, [key, kept, renewed, gateway.master_key, account.params["api_key"]]


def below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_everything_in_the_data_directory_is_its_owners_alone(used: tuple[Gateway, list[str]]):
    gateway, _ = used
    found = below(gateway.data_dir)
    names = {path.relative_to(gateway.data_dir).parts[0] for path in found}
    assert {"local", "spool", "uploads", "tasks.db"} <= names
    for path in found:
        # A journal of SQLite's comes and goes with its transaction.
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode & 0o077 == 0, (path, oct(mode))
    assert len([path for path in found if path.is_file()]) > 5


def test_no_secret_is_in_any_row_or_file(used: tuple[Gateway, list[str]]):
    gateway, secrets = used
    stored = repr(rows(gateway))
    everything = b""
    for path in below(gateway.data_dir):
        if path.is_file():
            with suppress(FileNotFoundError):
                everything += path.read_bytes()
    assert SECRET in everything, "the local store was looked at"
    assert len(set(secrets)) == 5
    for secret in secrets:
        assert secret not in stored
        assert secret.encode() not in everything


def test_what_is_kept_of_a_secret_is_its_hash(used: tuple[Gateway, list[str]]):
    gateway, secrets = used
    stored = repr(rows(gateway, "keys"))
    for secret in secrets[:3]:
        assert sha256(secret.encode()).hexdigest() in stored


def test_what_an_earlier_version_left_open_is_closed_at_the_next_start(start_gateway: StartGateway):
    disk = {"model_list": [{"model_name": "disk", "litellm_params": {"model": "local/disk"}}]}
    gateway = start_gateway(disk, workers=1, new=True)
    gateway.new_user(user_id="alice")
    gateway.stop()
    opened = [gateway.data_dir / name for name in ("manifold.db", "local", "spool")]
    for path in opened:
        if not path.exists():
            path.mkdir()
        path.chmod(0o755 if path.is_dir() else 0o644)
    other = gateway.data_dir / "of-the-operator.txt"
    other.write_text("")
    other.chmod(0o644)
    gateway.start()
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in opened] == [0, 0, 0]
    assert stat.S_IMODE(other.stat().st_mode) == 0o644

"""One master key follows another: nothing is lost, and the old one ends when it was said to."""

import subprocess
from pathlib import Path

import yaml

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MANIFOLD, Gateway, wait_until

DISK = {"model_list": [{"model_name": "disk", "litellm_params": {"model": "local/disk"}}]}
OLD, NEW = "sk-old-master-0123456789", "sk-new-master-0123456789"


def status(gateway: Gateway, key: str) -> int:
    return gateway.api("GET", "/user/list", key=key).status_code


def upload(gateway: Gateway, key: str) -> str:
    made = gateway.client(key).files.create(
        file=("a.txt", b"content"),
        purpose="user_data",
        extra_body={"target_model_names": "disk"},
    )
    return made.id


def test_a_configured_key_is_changed_without_losing_anything(start_gateway: StartGateway):
    gateway = start_gateway({**DISK, "general_settings": {"master_key": OLD}}, workers=1)
    alice = gateway.new_user(user_id="alice")["key"]
    hers, his = upload(gateway, alice), upload(gateway, OLD)
    gateway.stop()

    def change(**general: object) -> None:
        gateway.configure({**DISK, "general_settings": {"master_key": NEW, **general}})
        gateway.start()

    change(previous_master_keys=[OLD], master_key_overlap_hours=1)
    assert (status(gateway, NEW), status(gateway, OLD)) == (200, 200)
    for key in (NEW, OLD):
        assert gateway.api("GET", f"/v1/files/{his}/content", key=key).content == b"content"
    assert gateway.api("GET", f"/v1/files/{hers}/content", key=alice).content == b"content"
    listed = gateway.client(NEW).files.list().data
    assert [file.id for file in listed] == [his]
    gateway.stop()

    # The overlap began with the first start, not with this one.
    change(previous_master_keys=[OLD], master_key_overlap_hours=1e-9)
    assert (status(gateway, NEW), status(gateway, OLD)) == (200, 401)
    gateway.stop()

    change()
    assert (status(gateway, NEW), status(gateway, OLD)) == (200, 401)
    assert gateway.api("GET", f"/v1/files/{his}/content", key=NEW).content == b"content"


def rotate(config: Path, *options: str) -> str:
    ended = subprocess.run(
        [MANIFOLD, "master-key", "rotate", "--config", str(config), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout + ended.stderr


def without_key(gateway: Gateway) -> None:
    """Start with the key that the gateway makes itself."""
    gateway.stop()
    general = {"data_dir": str(gateway.data_dir)}
    gateway.config_path.write_text(yaml.safe_dump({**DISK, "general_settings": general}))
    gateway.start()


def test_a_generated_key_is_rotated_while_the_gateway_runs(start_gateway: StartGateway):
    gateway = start_gateway(DISK, workers=2)
    without_key(gateway)
    kept = gateway.data_dir / "master_key"
    first = kept.read_text().strip()
    file_id = upload(gateway, first)

    told = rotate(gateway.config_path, "--grace-hours", "1")
    second = kept.read_text().strip()

    assert second not in told and first not in told
    assert str(kept) in told
    assert (status(gateway, first), status(gateway, second)) == (200, 401)
    reload(gateway, second)
    assert (status(gateway, first), status(gateway, second)) == (200, 200)
    assert gateway.api("GET", f"/v1/files/{file_id}/content", key=second).content == b"content"

    rotate(gateway.config_path, "--grace-hours", "0.001")  # 3.6 seconds
    third = kept.read_text().strip()
    reload(gateway, third)
    wait_until(lambda: status(gateway, second) == 401, timeout=20)
    assert (status(gateway, first), status(gateway, third)) == (200, 200)


def reload(gateway: Gateway, key: str) -> None:
    """SIGHUP, until every process of the gateway that answers knows the key."""
    before = {process.pid for process in gateway.processes()}
    gateway.processes()[0].send_signal(1)
    wait_until(lambda: len({p.pid for p in gateway.processes()} & before) == 1, timeout=30)
    wait_until(lambda: all(status(gateway, key) == 200 for _ in range(10)), timeout=30)


def test_a_configured_key_is_not_for_the_command(tmp_path: Path):
    config = tmp_path / "config.yaml"
    general = {"master_key": OLD, "data_dir": str(tmp_path / "data")}
    config.write_text(yaml.safe_dump({**DISK, "general_settings": general}))
    ended = subprocess.run(
        [MANIFOLD, "master-key", "rotate", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "previous_master_keys" in ended.stderr
    assert OLD not in ended.stdout + ended.stderr

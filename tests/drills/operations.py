"""What is cut off: each operation prepares a world, and then does the one thing."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests
from sqlalchemy import update

from app.db.tables import File, now
from tests.drills.world import OWNER, World

Step = Callable[[Any, World], Any]
EVERYWHERE = "a, b, c"
ROW = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions"}
TRAINING = json.dumps({"messages": [{"role": "user", "content": "?"}]}).encode() + b"\n"

LARGE = bytes(range(256)) * 4096 * 3
"""Enough for a file to be sent on before it is complete."""


@dataclass(frozen=True)
class Operation:
    """`act` is cut off; `prepare` is not. What `act` returns was acknowledged.

    `is_worker`: it is the worker's pass that is cut off. `is_repeated`: once an upstream is well
    again it is done once more. `accounts` are asked by it. `general` are settings, `content` is
    what it uploads.
    """

    name: str
    act: Step
    prepare: Step | None = None
    is_worker: bool = False
    is_repeated: bool = False
    accounts: tuple[str, ...] = ("b",)
    general: tuple[tuple[str, Any], ...] = ()
    content: bytes = bytes(range(256)) * 64


def upload(client: Any, world: World, content: bytes | None = None, **fields: Any) -> Any:
    """A file's id, or None when the gateway refused."""
    fields.setdefault("purpose", "user_data")
    name = fields.pop("filename", "drill.bin")
    headers = {**OWNER, **fields.pop("headers", {})}
    data = {**fields, "file": (io.BytesIO(content or world.content), name)}
    answer = client.post("/v1/files", data=data, headers=headers)
    assert answer.status_code < 500 or answer.json["error"]["type"], answer.data
    return answer.json.get("id")


def _upload(**fields: Any) -> Step:
    return lambda client, world: upload(client, world, **fields)


def _prepared(**fields: Any) -> Step:
    def prepare(client: Any, world: World) -> None:
        world.notes["file"] = upload(client, world, **fields)

    return prepare


def _failing(account: str, step: Step, **action: Any) -> Step:
    """The step while an upstream fails once."""

    def prepare(client: Any, world: World) -> None:
        step(client, world)
        world.accounts[account].fail(times=1, **action)

    return prepare


def _nothing(_client: Any, _world: World) -> None:
    return


def _delete(client: Any, world: World) -> None:
    client.delete(f"/v1/files/{world.notes['file']}", headers=OWNER)


def _chat(client: Any, world: World) -> Any:
    part = {"type": "file", "file": {"file_id": world.notes["file"]}}
    body = {"model": "b", "messages": [{"role": "user", "content": [part]}]}
    return client.post("/v1/chat/completions", json=body, headers=OWNER).status_code


def _vanish(client: Any, world: World) -> None:
    world.notes["file"] = upload(client, world, target_model_names="b", filename="a.pdf")
    account = world.accounts["b"]
    for file in account.files():
        requests.delete(
            f"{account.api_base}/files/{file['id']}",
            headers={"Authorization": f"Bearer {account.key}"},
            timeout=5,
        ).raise_for_status()


def _batch_input(client: Any, world: World) -> None:
    row = json.dumps({**ROW, "body": {"model": "b", "messages": []}}).encode() + b"\n"
    world.notes["file"] = upload(
        client, world, row, purpose="batch", filename="in.jsonl", target_model_names="b"
    )


def _batch(client: Any, world: World) -> Any:
    body = {
        "input_file_id": world.notes["file"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    answer = client.post("/v1/batches", json=body, headers=OWNER)
    return answer.json["id"] if answer.status_code == 200 else None


def _batch_running(client: Any, world: World) -> None:
    _batch_input(client, world)
    assert _batch(client, world)


def _training_input(client: Any, world: World) -> None:
    world.notes["file"] = upload(
        client, world, TRAINING, purpose="fine-tune", filename="t.jsonl", target_model_names="b"
    )


def _tune(client: Any, world: World) -> Any:
    body = {"model": "b", "training_file": world.notes["file"]}
    answer = client.post("/v1/fine_tuning/jobs", json=body, headers=OWNER)
    return answer.json["id"] if answer.status_code == 200 else None


def _parts(client: Any, world: World) -> None:
    announced = {
        "filename": "parts.bin",
        "purpose": "user_data",
        "bytes": len(world.content),
        "mime_type": "application/octet-stream",
        "target_model_names": "a, b",
    }
    made = client.post("/v1/uploads", json=announced, headers=OWNER).json
    part = client.post(
        f"/v1/uploads/{made['id']}/parts",
        data={"data": (io.BytesIO(world.content), "part")},
        headers=OWNER,
    ).json
    world.notes["upload"], world.notes["part"] = made["id"], part["id"]


def _complete(client: Any, world: World) -> Any:
    path = f"/v1/uploads/{world.notes['upload']}/complete"
    answer = client.post(path, json={"part_ids": [world.notes["part"]]}, headers=OWNER)
    return answer.json["file"]["id"] if answer.status_code == 200 else None


def _incomplete(client: Any, world: World) -> None:
    world.accounts["a2"].fail(times=1, method="POST", status=503)
    upload(client, world, target_model_names=EVERYWHERE)


def _half_lost(client: Any, world: World) -> None:
    world.accounts["b"].fail(times=1, method="POST", status=500, handle=True)
    assert upload(client, world, target_model_names=EVERYWHERE) is None


def _expired(client: Any, world: World) -> None:
    upload(client, world, target_model_names="a, b, c")
    database = world.database()
    with database.write() as session:
        session.execute(update(File).values(expires_at=now()))
    database.engine.dispose()


OPERATIONS = (
    Operation("upload to four deployments", _upload(target_model_names=EVERYWHERE)),
    Operation(
        "upload that one account takes its time for",
        _upload(target_model_names=EVERYWHERE),
        _failing("b", _nothing, method="POST", delay_s=0.3),
        accounts=("a1",),
    ),
    Operation("upload sent on while it arrives", _upload(target_model_names="a, b"), content=LARGE),
    Operation("upload to one account", _upload(model="a"), accounts=("a1", "a2")),
    Operation(
        "upload by the provider way", _upload(custom_llm_provider="openai"), accounts=("a1",)
    ),
    Operation(
        "upload whose content is kept",
        _upload(target_model_names="a, b"),
        general=(("keep_content", True),),
    ),
    Operation(
        "upload with an idempotency key",
        _upload(target_model_names="a, b", headers={"Idempotency-Key": "drill"}),
        is_repeated=True,
    ),
    Operation(
        "upload that one model refuses",
        _upload(target_model_names=EVERYWHERE),
        _failing("b", _nothing, method="POST", status=400),
        accounts=("a1",),
    ),
    Operation(
        "upload while one region is down",
        _upload(target_model_names=EVERYWHERE),
        _failing("a2", _nothing, method="POST", status=503),
    ),
    Operation(
        "upload whose answer is lost",
        _upload(target_model_names=EVERYWHERE),
        _failing("b", _nothing, method="POST", status=500, handle=True),
    ),
    Operation(
        "upload of which one region's answer is lost",
        _upload(target_model_names=EVERYWHERE),
        _failing("a2", _nothing, method="POST", status=500, handle=True),
    ),
    Operation("delete", _delete, _prepared(target_model_names=EVERYWHERE)),
    Operation(
        "delete that one upstream refuses",
        _delete,
        _failing("a1", _prepared(target_model_names=EVERYWHERE), method="DELETE", status=400),
    ),
    Operation(
        "chat that renews a copy",
        _chat,
        _vanish,
        is_repeated=True,
        general=(("keep_content", True),),
    ),
    Operation("create a batch", _batch, _batch_input),
    Operation(
        "create a batch whose answer is lost",
        _batch,
        _failing("b", _batch_input, method="POST", path_regex="batches", status=500, handle=True),
    ),
    Operation("create a fine-tuning job", _tune, _training_input),
    Operation("complete an upload in parts", _complete, _parts),
    Operation("worker: adopt a batch's output", _nothing, _batch_running, is_worker=True),
    Operation(
        "worker: complete a copy",
        _nothing,
        _incomplete,
        is_worker=True,
        accounts=("a2",),
    ),
    Operation("worker: take back a lost copy", _nothing, _half_lost, is_worker=True),
    Operation("worker: remove an expired file", _nothing, _expired, is_worker=True),
)

"""LiteLLM's managed files, batches and fine-tuning jobs as ours, under the ids they were given."""

import uuid
from collections.abc import Mapping
from typing import Any

from app import ids
from app.db.tables import now
from app.ids import JobType
from app.litellm_import.deployments import Deployments
from app.litellm_import.people import Left, Taken, owner
from app.litellm_import.source import Row, as_json, epoch, moment
from app.objects import BATCH_FINAL, JOB_FINAL, LISTED_PURPOSES
from app.settings import Deployment

FILE_COLUMNS = [
    "id",
    "unified_file_id",
    "file_object",
    "model_mappings",
    "storage_backend",
    "created_by",
    "team_id",
    "created_at",
    "updated_at",
]
OBJECT_COLUMNS = [
    "id",
    "unified_object_id",
    "model_object_id",
    "file_object",
    "file_purpose",
    "status",
    "created_by",
    "team_id",
    "created_at",
    "updated_at",
]

_ROWS = uuid.UUID("2f1a7f64-0d0b-4e55-9d5e-6f6f6f1f0a02")
"""Namespace of row ids of what LiteLLM gave ids that hold none."""
_TIMES = [
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
]
_UNKNOWN_NAME = 255


def file(row: Row, deployments: Deployments) -> tuple[Taken, list[dict[str, Any]]]:
    """A row of LiteLLM_ManagedFileTable, and its copies. Raises Left."""
    public_id = row["unified_file_id"]
    meaning = ids.decode(public_id)
    if meaning is None or isinstance(meaning, ids.RawId):
        raise Left("its id is of a kind that only LiteLLM's pass-through routes use")
    told = as_json(row["file_object"])
    created = moment(row["created_at"]) or epoch(told.get("created_at")) or now()
    purpose = told.get("purpose")
    # What LiteLLM has no object of is what a batch has made.
    purpose = purpose if purpose in LISTED_PURPOSES else "batch_output"
    notes: list[str] = []
    names: tuple[str, ...]
    if isinstance(meaning, ids.UnifiedId):
        file_id, mime_type, names = meaning.file_uuid, meaning.mime_type, meaning.target_model_names
    else:
        file_id, mime_type = str(uuid.uuid5(_ROWS, public_id)), "application/octet-stream"
        names = (meaning.model,)
    ends = epoch(told.get("expires_at"))
    copies = _copies(row, meaning, deployments, notes)
    for copy in copies:
        copy |= {
            "id": str(uuid.uuid5(_ROWS, f"{public_id}\n{copy['deployment_id']}")),
            "file_id": file_id,
            "state": "ready",
            "attempts": 1,
            "expires_at": ends,
            "created_at": created,
            "updated_at": created,
        }
    size = told.get("bytes")
    if not isinstance(size, int) or size < 0:
        notes.append("LiteLLM does not know its size")
        size = 0
    reached = tuple(dict.fromkeys(c["model_name"] for c in copies if c["model_name"]))
    return Taken(
        {
            "id": file_id,
            "public_id": public_id,
            "kind": "unified" if isinstance(meaning, ids.UnifiedId) else "encoded",
            "owner": owner(row["created_by"], row["team_id"]),
            "filename": _filename(told.get("filename"), copies[0]["deployment_file_id"]),
            "mime_type": (mime_type or "application/octet-stream")[:255],
            "purpose": purpose,
            "bytes": size,
            "sha256": None,
            "target_model_names": list(reached or names),
            "state": "ready",
            "status": "processed",
            "status_details": None,
            "copies_expire_at": ends,
            "created_at": created,
            "updated_at": created,
        },
        notes,
    ), copies


def _copies(
    row: Row, meaning: ids.UnifiedId | ids.EncodedId, deployments: Deployments, notes: list[str]
) -> list[dict[str, Any]]:
    mappings = as_json(row["model_mappings"])
    if not mappings:
        where = row["storage_backend"]
        raise Left(
            f"its content is in LiteLLM's storage {where!r}, which Manifold does not read"
            if where
            else "it is at no deployment"
        )
    found: dict[str, dict[str, Any]] = {}
    lost: list[str] = []
    for model_id, raw in mappings.items():
        deployment = deployments.of(model_id) or _of_encoded(meaning, model_id, deployments)
        if deployment is None or not isinstance(raw, str) or not _is_id(raw):
            lost.append(model_id)
            continue
        found.setdefault(
            deployment.id,
            {
                "model_name": deployment.model_name,
                "deployment_id": deployment.id,
                "provider": deployment.provider,
                "deployment_file_id": raw,
                "upstream_model": deployment.upstream_model or None,
            },
        )
    if not found:
        raise unknown_deployment(lost[0], getattr(meaning, "target_model_names", ()))
    if lost:
        notes.append("it was at deployments, too, that the configuration does not have")
    return list(found.values())


def _of_encoded(meaning: ids.FileId, key: str, deployments: Deployments) -> Deployment | None:
    """An encoded id says the name of its model, and its mapping may say that again."""
    if not isinstance(meaning, ids.EncodedId) or key != meaning.model:
        return None
    behind = deployments.named(meaning.model)
    return behind[0] if len(behind) == 1 else None


def unknown_deployment(model_id: str, names: Any = ()) -> Left:
    """Why a row that is at this deployment of LiteLLM's cannot be taken."""
    at = f"; made for {', '.join(names)}" if names else ""
    return Left(
        "the configuration has no deployment of that model_id: give --litellm-config the file that "
        "LiteLLM ran with, or say --deployment MODEL_ID=NAME",
        f"model_id {model_id}{at}",
    )


# Batches and jobs


def job(row: Row, deployments: Deployments) -> Taken:
    """A row of LiteLLM_ManagedObjectTable. Raises Left."""
    purpose = row["file_purpose"]
    if purpose not in ("batch", "fine-tune"):
        raise Left(f"an object of the kind {purpose!r}, which Manifold does not keep")
    type: JobType = "batch" if purpose == "batch" else "fine_tuning"
    public_id = row["unified_object_id"]
    meaning = ids.decode_job(type, public_id)
    told = as_json(row["file_object"])
    deployment, raw, kind = _placed(meaning, public_id, deployments)
    created = epoch(told.get("created_at")) or moment(row["created_at"]) or now()
    status = str(told.get("status") or row["status"] or "unknown")[:32]
    snapshot, request = (_batch if type == "batch" else _tuning)(told, deployment, raw)
    made = [snapshot.get("output_file_id"), snapshot.get("error_file_id")]
    made += snapshot.get("result_files") or []
    ends = BATCH_FINAL if type == "batch" else JOB_FINAL
    # One that has made something is looked at once more, and its files get rows.
    is_final = status in ends and status not in ("completed", "succeeded") and not any(made)
    given = request.get("input_file_id") or request.get("training_file") or ""
    return Taken(
        {
            "id": str(uuid.uuid5(_ROWS, public_id)),
            "type": type,
            "kind": kind,
            "public_id": public_id,
            "owner": owner(row["created_by"], row["team_id"]),
            "model_name": deployment.model_name,
            "deployment_id": deployment.id,
            "provider": deployment.provider,
            "upstream_id": raw,
            "upstream_input_id": _raw_of(given) or "",
            "input_uuid": _uuid_of(given),
            "validation_uuid": _uuid_of(request.get("validation_file")),
            "request": request,
            "snapshot": snapshot,
            "status": status,
            "state": "final" if is_final else "active",
            "looks": 0,
            "next_look_at": now(),
            "created_at": created,
            "updated_at": moment(row["updated_at"]) or created,
        }
    )


def _placed(
    meaning: ids.JobId | None, public_id: str, deployments: Deployments
) -> tuple[Deployment, str, str]:
    """Where a job is, what it is called there, and the kind of its id."""
    if meaning is None:
        raise Left("its id is of a kind that only LiteLLM's own routes use")
    if isinstance(meaning, ids.UnifiedJobId):
        deployment = deployments.of(meaning.deployment)
        if deployment is None:
            raise unknown_deployment(meaning.deployment)
        return deployment, meaning.job, "unified"
    if isinstance(meaning, ids.EncodedId):
        behind = deployments.named(meaning.model)
        if len(behind) != 1:
            count = len(behind) or "no"
            raise Left(
                "its id names a model, and the configuration does not have one deployment for it",
                f"{meaning.model}: {count} deployments",
            )
        return behind[0], meaning.raw, "encoded"
    account = deployments.only_account()
    if account is None:
        raise Left(
            "it has a provider's own id, and files_settings does not have one account that it can "
            "only be at"
        )
    return account, public_id, "raw"


def _batch(
    told: Mapping[str, Any], deployment: Deployment, raw: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    counts = told.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    snapshot = {
        "id": raw,
        "object": "batch",
        "endpoint": told.get("endpoint") or "",
        "errors": told.get("errors"),
        "input_file_id": _raw_of(told.get("input_file_id")) or "",
        "completion_window": told.get("completion_window") or "24h",
        "status": told.get("status") or "unknown",
        "output_file_id": _raw_of(told.get("output_file_id")),
        "error_file_id": _raw_of(told.get("error_file_id")),
        "created_at": told.get("created_at") or 0,
        **{name: told.get(name) for name in _TIMES},
        "request_counts": {
            name: counts.get(name) or 0 for name in ("total", "completed", "failed")
        },
        "metadata": told.get("metadata"),
    }
    request = {
        "input_file_id": told.get("input_file_id") or "",
        "endpoint": snapshot["endpoint"],
        "completion_window": snapshot["completion_window"],
        "metadata": told.get("metadata"),
        "model": deployment.model_name,
    }
    return snapshot, request


def _tuning(
    told: Mapping[str, Any], deployment: Deployment, raw: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    results = [found for each in told.get("result_files") or [] if (found := _raw_of(each))]
    snapshot = {
        **{key: value for key, value in told.items() if not key.startswith("_")},
        "id": raw,
        "object": "fine_tuning.job",
        "training_file": _raw_of(told.get("training_file")) or "",
        "validation_file": _raw_of(told.get("validation_file")),
        "result_files": results,
    }
    request = {
        "model": deployment.model_name or told.get("model") or "",
        "training_file": told.get("training_file") or "",
    }
    if told.get("validation_file"):
        request["validation_file"] = told["validation_file"]
    if told.get("metadata"):
        request["metadata"] = told["metadata"]
    return snapshot, request


def _raw_of(file_id: Any) -> str | None:
    """A provider's id, of whatever kind of id; None where the id does not say it."""
    if not isinstance(file_id, str) or not file_id:
        return None
    meaning = ids.decode(file_id)
    return None if meaning is None else meaning.raw


def _uuid_of(file_id: Any) -> str | None:
    meaning = ids.decode(file_id) if isinstance(file_id, str) and file_id else None
    return meaning.file_uuid if isinstance(meaning, ids.UnifiedId) else None


def _is_id(raw: str) -> bool:
    return ids.is_raw(raw) or ids.is_address(raw)


def _filename(told: Any, raw: str) -> str:
    text = told if isinstance(told, str) else ""
    kept = "".join(char for char in text.replace("\\", "/") if char.isprintable())
    kept = kept.rpartition("/")[2].strip()
    return kept[:_UNKNOWN_NAME] or raw.rpartition("/")[2] or "file"

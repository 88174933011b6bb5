"""Unified and encoded ids: encode, decode. Pure; a decoded id proves nothing by itself.

A unified id is the base64 of `litellm_proxy:{mime};unified_id,{uuid};target_model_names,{n1,n2}`,
an encoded file id is `file-` and the base64 of `litellm:{provider file id};model,{model name}`.
Base64 is the URL-safe alphabet without padding. Decoding is strict: an id that would not be
encoded to exactly the same text again is not an id of ours.
"""

import base64
import binascii
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

MAX_ID_LENGTH = 4096
"""Characters; anything longer is nobody's id."""

_UNIFIED_MARK = "litellm_proxy:"
_CONTROL = re.compile(r"litellm(_proxy)?[:;].*[\x00-\x1f\x7f]", re.DOTALL)
_ENCODED = re.compile(r"litellm:(?P<raw>.+);model,(?P<model>[^;,]+)")
_UNIFIED = re.compile(
    r"litellm_proxy:(?P<mime>[^;]*);unified_id,(?P<uuid>[0-9a-f-]{36});"
    r"target_model_names,(?P<names>[^;]*)"
    r"(?:;llm_output_file_id,(?P<raw>[^;]*);llm_output_file_model_id,(?P<deployment>[^;]*))?"
)
_FILE_PREFIX = "file-"
_BATCH_PREFIX = "batch_"
_UNIFIED_JOB = re.compile(
    r"litellm_proxy;model_id:(?P<deployment>[^;]*);"
    r"(?P<key>llm_batch_id|generic_response_id):(?P<id>[^;]+)"
)
_MOST_ESCAPES = 4
_ESCAPED = re.compile(r"([!-$&-~]|%[0-7][0-9A-Fa-f])+")
_LIKE_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,15}(:|%)")
_ADDRESS = re.compile(
    r"(?!.*/\.\.?(/|$))[a-z][a-z0-9+.-]{1,15}://[A-Za-z0-9._-]+/[A-Za-z0-9._~!$&'()*+,;=:@/-]+"
)
_RAW = re.compile(r"(?!.*\.\.)[A-Za-z0-9_-][A-Za-z0-9_.:-]*")


@dataclass(frozen=True)
class UnifiedId:
    """What a unified file id says. `raw` and `deployment` stand only in LiteLLM's longer form."""

    file_uuid: str
    mime_type: str
    target_model_names: tuple[str, ...]
    raw: str | None = None
    deployment: str | None = None


@dataclass(frozen=True)
class EncodedId:
    """What an encoded file id says: a provider's file id and the model name of its account."""

    raw: str
    model: str


@dataclass(frozen=True)
class RawId:
    """An id that is not of our making: a provider's own, or nonsense."""

    raw: str


FileId = UnifiedId | EncodedId | RawId


def encode_unified(mime_type: str, file_uuid: str, target_model_names: Sequence[str]) -> str:
    """The unified id of a file for these model names."""
    names = ",".join(target_model_names)
    return _encode(f"litellm_proxy:{mime_type};unified_id,{file_uuid};target_model_names,{names}")


def encode_file(raw: str, model: str) -> str:
    """The encoded id of a provider's file in the account of a model name."""
    return _FILE_PREFIX + _encode(f"litellm:{raw};model,{model}")


@lru_cache(maxsize=256)
def decode(file_id: str) -> FileId | None:
    """What an id from a client says, or None for what nobody can have issued.

    None: empty, too long, or with a character that no id has (a raw id stands in an upstream's
    path, so it has no slash, no dot-dot, no query and no percent sign; the texts of ours have no
    control character, some of which a database refuses).
    """
    if (address := _address(file_id)) is not None:
        return RawId(address)
    if not is_raw(file_id):
        return None
    if file_id.startswith(_FILE_PREFIX):
        text = _decode(file_id.removeprefix(_FILE_PREFIX))
        if text is not None and _CONTROL.match(text):
            return None
        if text is not None and (found := _ENCODED.fullmatch(text)):
            return EncodedId(found["raw"], found["model"])
    text = _decode(file_id)
    if text is not None and text.startswith(_UNIFIED_MARK):
        return _unified(text)
    return RawId(file_id)


def is_raw(text: str) -> bool:
    """Whether this can be a provider's own file id, safe to stand in the path of a URL."""
    return len(text) <= MAX_ID_LENGTH and _RAW.fullmatch(text) is not None


def is_address(raw: str) -> bool:
    """Whether a provider's id is the address of an object, which only admins may name."""
    return len(raw) <= MAX_ID_LENGTH and _ADDRESS.fullmatch(raw) is not None


def _address(file_id: str) -> str | None:
    """An address that a client wrote as an id, whatever escaped it on its way; None for others."""
    if len(file_id) > MAX_ID_LENGTH or not _LIKE_ADDRESS.match(file_id):
        return None
    for _ in range(_MOST_ESCAPES):
        if is_address(file_id):
            return file_id
        if "%" not in file_id:
            return None
        file_id = unquote(file_id, errors="strict") if _ESCAPED.fullmatch(file_id) else ""
    return file_id if is_address(file_id) else None


@dataclass(frozen=True)
class UnifiedJobId:
    """What a unified batch or fine-tuning job id says. LiteLLM's own have a raw id inside."""

    deployment: str
    job: str


JobId = UnifiedJobId | EncodedId | RawId
JobType = Literal["batch", "fine_tuning"]
_JOB_KEYS: dict[JobType, str] = {"batch": "llm_batch_id", "fine_tuning": "generic_response_id"}


def encode_unified_job(type: JobType, deployment_id: str, job_uuid: str) -> str:
    """The unified id of a batch or a fine-tuning job."""
    return _encode(f"litellm_proxy;model_id:{deployment_id};{_JOB_KEYS[type]}:{job_uuid}")


def encode_batch(raw: str, model: str) -> str:
    """The encoded id of a provider's batch in the account of a model name."""
    return _BATCH_PREFIX + _encode(f"litellm:{raw};model,{model}")


def decode_job(type: JobType, job_id: str) -> JobId | None:
    """What a batch or job id from a client says, or None for what nobody can have issued."""
    if not is_raw(job_id):
        return None
    if type == "batch" and job_id.startswith(_BATCH_PREFIX):
        text = _decode(job_id.removeprefix(_BATCH_PREFIX))
        if text is not None and _CONTROL.match(text):
            return None
        if text is not None and (found := _ENCODED.fullmatch(text)):
            return EncodedId(found["raw"], found["model"])
    text = _decode(job_id)
    if text is not None and text.startswith("litellm_proxy;"):
        found = _UNIFIED_JOB.fullmatch(text)
        if found is None or found["key"] != _JOB_KEYS[type] or _CONTROL.match(text):
            return None
        return UnifiedJobId(found["deployment"], found["id"])
    return RawId(job_id)


def new_uuid() -> str:
    """A new random id for a row."""
    return str(uuid.uuid4())


def _unified(text: str) -> UnifiedId | None:
    found = _UNIFIED.fullmatch(text)
    if found is None or _CONTROL.match(text):
        return None
    names = tuple(name for name in found["names"].split(",") if name)
    return UnifiedId(found["uuid"], found["mime"], names, found["raw"], found["deployment"])


def _encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(encoded: str) -> str | None:
    padded = encoded + "=" * (-len(encoded) % 4)
    try:
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return text if _encode(text) == encoded else None

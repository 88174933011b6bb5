"""Thought signatures: how they travel through OpenAI's tool call ids, which have no place for them.

Gemini gives a signature with a function call and, from version 3 on, refuses the conversation when
it does not come back unchanged. Source: Gemini API, Thought signatures; read 2026-11. The mark is
LiteLLM's, so that a conversation begun there goes on here.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

MARK = "__thought__"
LOST = base64.b64encode(b"skip_thought_signature_validator").decode()
"""Stands for a signature that the client did not keep, or that another provider never gave."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
# OpenAI's form of an id, ours included: no id of Google's.
_MADE_UP = "call_"


def handed(google_id: Any, signature: Any, place: str) -> str:
    """The tool call id for a function call; `place` tells it from all others of the same answer."""
    if isinstance(google_id, str) and google_id:
        call_id = google_id
    else:
        call_id = _MADE_UP + hashlib.sha256(place.encode("utf-8", "replace")).hexdigest()[:24]
    return f"{call_id}{MARK}{signature}" if isinstance(signature, str) and signature else call_id


def google_id(call_id: str) -> str | None:
    """The id that Google gave the call, None when it gave none."""
    plain = _split(call_id)[0]
    return plain if plain and not plain.startswith(_MADE_UP) else None


def signature(call: Mapping[str, Any]) -> str | None:
    """The signature of a tool call that the client sends back, wherever it kept it.

    In the id, as we and LiteLLM write it; in `extra_content.google`, as Google's own layer for
    OpenAI's clients does; in LiteLLM's `provider_specific_fields`.
    """
    call_id = call.get("id")
    found = _split(call_id)[1] if isinstance(call_id, str) else None
    places = (
        (call.get("extra_content"), "google"),
        (call, "provider_specific_fields"),
        (call.get("function"), "provider_specific_fields"),
    )
    for holder, key in places:
        inner = holder.get(key) if isinstance(holder, Mapping) else None
        kept = inner.get("thought_signature") if isinstance(inner, Mapping) else None
        if found is None and isinstance(kept, str) and _BASE64.fullmatch(kept):
            found = kept
    return found


def _split(call_id: str) -> tuple[str, str | None]:
    plain, _, kept = call_id.partition(MARK)
    return (plain, kept) if _BASE64.fullmatch(kept) else (call_id, None)

"""What the stories ask a model, and what its fake upstream says that it was asked."""

import json
from collections.abc import Iterable
from typing import Any

from tests.e2e.gateway import Seen


def ask(*file_ids: str, text: str = "What is in this file?") -> Any:
    """Chat messages: a question about these files."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += ({"type": "file", "file": {"file_id": file_id}} for file_id in file_ids)
    return [{"role": "user", "content": parts}]


def ask_responses(*file_ids: str, text: str = "What is in this file?") -> Any:
    """The same as input of the Responses API."""
    parts: list[dict[str, Any]] = [{"type": "input_text", "text": text}]
    parts += ({"type": "input_file", "file_id": file_id} for file_id in file_ids)
    return [{"role": "user", "content": parts}]


def echo(completion: Any) -> dict[str, Any]:
    """What the fake upstream was asked: `account`, `model`, `deployment`, `file_ids`, ..."""
    told = json.loads(completion.choices[0].message.content)
    assert isinstance(told, dict)
    return told


def text_of(seen: Seen) -> str:
    """Everything that a request carried, file contents excepted."""
    return json.dumps(
        [seen.path, seen.query_string, seen.headers, seen.fields, seen.file, seen.text]
    )


def carriers(requests: Iterable[Seen], *ids: str) -> list[str]:
    """The requests that carry one of these ids, wherever."""
    found = [(seen, each) for seen in requests for each in ids if each in text_of(seen)]
    return [f"{seen.account} got {each} in {seen.method} {seen.path}" for seen, each in found]

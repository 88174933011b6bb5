"""What to type to use a file elsewhere: the openai client and curl; pure functions."""

import json
import shlex
from dataclasses import dataclass

_HEAD = """import os

from openai import OpenAI

client = OpenAI(base_url={base}, api_key=os.environ["MANIFOLD_API_KEY"])
file_id = {id}
"""
_CHAT = """
answer = client.chat.completions.create(
    model={model},
    messages=[
        {{
            "role": "user",
            "content": [
                {{"type": "text", "text": "What is in this file?"}},
                {{"type": "file", "file": {{"file_id": file_id}}}},
            ],
        }}
    ],
)
print(answer.choices[0].message.content)
"""
_BATCH = """
batch = client.batches.create(
    input_file_id=file_id,
    endpoint="/v1/chat/completions",
    completion_window="24h",
)
print(batch.id, batch.status)
"""
_TUNE = """
job = client.fine_tuning.jobs.create(model={model}, training_file=file_id)
print(job.id, job.status)
"""
_GET = """
client.files.content(file_id).write_to_file({name})
"""
_USES = {"batch": _BATCH, "fine-tune": _TUNE, "user_data": _CHAT, "vision": _CHAT}


@dataclass(frozen=True)
class Snippet:
    """Something to copy; `name` says what for."""

    key: str
    name: str
    text: str


def of_file(base: str, file_id: str, filename: str, purpose: str, model: str) -> list[Snippet]:
    """The snippets for one file. `base` is the gateway's address without /v1."""
    address = f"{base}/v1"
    named = {
        # JSON's texts are Python's.
        "base": json.dumps(address),
        "id": json.dumps(file_id),
        "model": json.dumps(model, ensure_ascii=False),
        "name": json.dumps(filename, ensure_ascii=False),
    }
    python = _HEAD.format(**named) + _USES.get(purpose, "").format(**named) + _GET.format(**named)
    url = shlex.quote(f"{address}/files/{file_id}/content")
    curl = (
        f"curl {url} \\\n"
        '  --header "Authorization: Bearer $MANIFOLD_API_KEY" \\\n'
        f"  --output {shlex.quote(filename)}\n"
    )
    return [Snippet("python", "Python, openai client", python), Snippet("curl", "curl", curl)]

"""Which object of a deployment's bucket a file's id means, and which stand beside it.

Source of LiteLLM's names: its page "Vertex Batch APIs"; read 2026-11.
"""

import re

from app.errors import NotFound

FOLDER = "manifold/"
"""Where the gateway's own objects lie in a bucket."""
OUTPUTS = f"{FOLDER}outputs/"
"""Where batches write their results."""
LITELLM = "litellm-vertex-files/"
"""Where LiteLLM has put a batch file's rows; it has stored nothing else."""
ROWS = ".rows"
"""Behind an object's name: the batch file as Vertex AI reads it."""
TUNING = ".tuning"
"""Behind an object's name: the training file as Vertex AI reads it."""

_KEY = re.compile("[0-9a-f]{32}")


def is_key(file_id: str) -> bool:
    """Whether an id is that of an object which a gateway has made."""
    return _KEY.fullmatch(file_id) is not None


def object_name(file_id: str, bucket: str) -> str:
    """The object of a file's id, or of an admin's `gs://` address.

    Raises NotFound for one outside of the gateway's own folder and of LiteLLM's.
    """
    if _KEY.fullmatch(file_id):
        return FOLDER + file_id
    name = within(file_id, bucket)
    if name is None or not name.startswith((FOLDER, LITELLM)) or ".." in name.split("/"):
        raise NotFound(f"No such File object: {file_id:.200}", param="id")
    return name


def rows_name(file_id: str, bucket: str) -> str:
    """The object with a batch file's rows in Vertex AI's form. Raises as `object_name`."""
    name = object_name(file_id, bucket)
    return name if name.startswith(LITELLM) or name.endswith(ROWS) else name + ROWS


def file_id_of(uri: object, bucket: str, ending: str) -> str | None:
    """The id of the file that a job reads as this object, None when it is not the gateway's."""
    name = within(uri, bucket)
    if name is None:
        return None
    key = name.removeprefix(FOLDER).removesuffix(ending)
    if name == f"{FOLDER}{key}{ending}" and _KEY.fullmatch(key):
        return key
    return str(uri) if name.startswith(LITELLM) else None


def within(uri: object, bucket: str) -> str | None:
    """The object that an address names, None when it is not one in this bucket."""
    begin = f"gs://{bucket}/"
    if not isinstance(uri, str) or not uri.startswith(begin) or uri == begin:
        return None
    return uri.removeprefix(begin)

"""An upload from the console: the form of POST /v1/files, read and stored in the same way."""

from collections.abc import Callable
from typing import Any

from app import ids
from app.api import target
from app.api.context import caller, note, services
from app.api.form import IN_MEMORY_BYTES, least_file_bytes, spooled_form
from app.api.schemas import UploadFields, expires_after, load
from app.errors import InvalidRequest

MB = 1024 * 1024


def stored(require_token: Callable[[str | None], object], token_field: str) -> str:
    """The row id of the file that the request's form has brought.

    `require_token` refuses a form that no page of ours has sent, before anything is stored.
    """
    settings = services().settings
    services().meter.require_room(caller(), least_file_bytes())
    limit = settings.max_file_size_mb * MB
    with spooled_form(
        services().spool.folder,
        file_field="file",
        max_file_bytes=limit,
        in_memory_bytes=IN_MEMORY_BYTES,
    ) as form:
        require_token(form.text(token_field))
        given: dict[str, Any] = {
            name: values
            for name, values in form.fields.items()
            if name == "target_model_names" and any(values)
        }
        way = services().router.way(target.hints(given).selector(), caller())
        fields = load(UploadFields, {"purpose": form.text("purpose") or ""})
        spooled = form.file
        if spooled is None or (spooled.size == 0 and spooled.filename == "upload"):
            raise InvalidRequest("choose a file first", param="file")
        if spooled.size == 0:
            raise InvalidRequest("the file is empty", param="file")
        seconds = form.text("expires_in")
        expiry = {"expires_after[anchor]": ["created_at"], "expires_after[seconds]": [seconds]}
        upload = spooled.upload(
            fields["purpose"],
            expires_after(expiry) if seconds else None,  # type: ignore[arg-type]  # text
        )
        note(bytes_in=spooled.size, deployment=",".join(r.deployment.id for r in way.routes))
        file_uuid = ids.new_uuid()
        services().files.create(caller(), upload, way, file_uuid)
        return file_uuid

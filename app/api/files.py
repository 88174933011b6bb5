"""/files: upload, list, retrieve, content, delete."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, request

from app.api import accel, body, context, hangup, once, target
from app.api.auth import Guard, guard
from app.api.context import caller, note, services
from app.api.form import IN_MEMORY_BYTES, Form, SpooledFile, least_file_bytes, spooled_form
from app.api.schemas import FileListQuery, UploadFields, expires_after, load, loaded_query
from app.errors import GatewayError, InvalidRequest, UpstreamError
from app.objects import FileDeleted, FileObject, Page
from app.services.files import Content
from app.services.head_start import HeadStart
from app.services.router import Hints, Way
from app.transfers import Arriving, Cancellation, Upload

blueprint = Blueprint("files", __name__)

MB = 1024 * 1024


@blueprint.post("/files")
@guard(Guard.WRITE)
def create(**_: str) -> FileObject:
    """The new file object, under the kind of id that the request's selector asks for."""
    settings = services().settings
    limit = settings.max_file_size_mb * MB
    # What cannot have room is not read.
    services().meter.require_room(caller(), least_file_bytes())
    begun = _Begun()
    with (
        begun.until_the_end(),
        spooled_form(
            services().spool.folder,
            file_field="file",
            max_file_bytes=limit,
            in_memory_bytes=IN_MEMORY_BYTES,
            announce=begun.begin,
        ) as form,
    ):
        upload, way = _asked(form, form.file)
        note(bytes_in=upload.size, deployment=",".join(r.deployment.id for r in way.routes))
        return _stored_once(upload, way, form.fields, begun.head_start)


def _asked(form: Form, spooled: SpooledFile | None) -> tuple[Upload, Way]:
    """What the form asks for: what is to be stored, and where."""
    way = services().router.way(target.hints(dict(form.fields)).selector(), caller())
    purpose = form.text("purpose")
    fields = load(UploadFields, {} if purpose is None else {"purpose": purpose})
    expiry = expires_after(form.fields)
    if spooled is None:
        raise InvalidRequest("the form has no part named 'file'", param="file")
    if spooled.size == 0:
        raise InvalidRequest("the file is empty", param="file")
    return spooled.upload(fields["purpose"], expiry), way


class _Begun:
    """The head start of this request's file, if it gets one."""

    head_start: HeadStart | None = None

    def begin(self, form: Form, spooled: SpooledFile) -> Arriving | None:
        """Send what arrives to where the fields so far say. What they lack is told at the end."""
        if _is_repeated():
            return None
        with suppress(GatewayError):
            upload, way = _asked(form, spooled)
            self.head_start = services().files.begin(upload, way)
        return self.head_start.arriving if self.head_start else None

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Whatever becomes of the request, nobody waits for the rest of a file that is no more."""
        try:
            yield
        finally:
            if self.head_start is not None:
                self.head_start.give_up()


def _is_repeated() -> bool:
    return request.headers.get("x-stainless-retry-count", "0") != "0"


def _stored_once(
    upload: Upload, way: Way, fields: Mapping[str, Any], head_start: HeadStart | None
) -> FileObject:
    """The file, or that of the same request when it was sent before."""
    files = services().files
    if _is_repeated() and once.HEADER not in request.headers:
        found = services().repeats.first(caller(), upload, way)
        if found is not None:
            return found

    def make(file_uuid: str) -> FileObject:
        return files.create(caller(), upload, way, file_uuid, head_start)

    def made(file_uuid: str) -> FileObject | None:
        return files.made(file_uuid)

    def asked() -> tuple[str, ...]:
        said = json.dumps(fields, sort_keys=True)
        return upload.sha256, upload.filename, upload.mime_type, said

    return once.once(asked, make, made)


@blueprint.get("/files")
@guard(Guard.ANY_KEY)
def list_(**_: str) -> Page:
    """A page of file objects."""
    selector = _hints().selector()
    query = loaded_query(FileListQuery)
    return services().file_lists.page(caller(), query, selector)


@blueprint.get("/files/<file_id>")
@guard(Guard.ANY_KEY)
def retrieve(file_id: str, **_: str) -> FileObject:
    """The file object; `?include=copies` adds where its copies are."""
    include = request.args.getlist("include") + request.args.getlist("include[]")
    unknown = [name for name in include if name != "copies"]
    if unknown:
        raise InvalidRequest(f"{unknown[0][:60]!r} is not one of: copies", param="include")
    return services().files.retrieve(
        caller(), file_id, _hints(), with_copies=bool(include), seen=context.seen()
    )


@blueprint.get("/files/<file_id>/content")
@guard(Guard.ANY_KEY)
def content(file_id: str, **_: str) -> Response:
    """The bytes, streamed from a copy."""
    byte_range = request.headers.get("Range")
    hints = _hints()
    cancellation = Cancellation()
    stop_watching = hangup.watch(request.environ.get("gunicorn.socket"), cancellation.cancel)
    try:
        found = services().files.content(
            caller(), file_id, hints, byte_range, cancellation, seen=context.seen()
        )
    except BaseException:
        stop_watching()
        raise
    note(deployment=found.deployment)
    response = _download(found, cancellation)
    # First the watch: a closed connection may go back to its pool and serve somebody else.
    response.call_on_close(stop_watching)
    response.call_on_close(found.download.close)
    return response


@blueprint.delete("/files/<file_id>")
@blueprint.post("/files/<file_id>/delete")
@guard(Guard.WRITE)
def delete(file_id: str, **_: str) -> FileDeleted:
    """Confirmation that no copy is left."""
    return services().files.delete(caller(), file_id, _hints())


def _hints() -> Hints:
    return target.hints(body.optional_object())


def _download(found: Content, cancellation: Cancellation) -> Response:
    download = found.download
    chunks, length = download.chunks, download.length
    if length is None and not download.content_range:
        length = found.size
    if length is not None:
        chunks = _exactly(length, chunks)
    settings = services().settings
    found_at = accel.address(download, settings.data_dir, settings.accel_redirect)
    if found_at is not None:
        response = accel.hand_over(found_at, length or 0)
        # nginx says it, once it has the file.
        length, part = None, None
    else:
        chunks = hangup.relayed(chunks, cancellation)
        part = download.content_range
        response = Response(chunks, status=206 if part else 200)
    headers = response.headers
    headers["Content-Type"] = found.mime_type
    headers["Content-Disposition"] = (
        f"attachment; filename*=UTF-8''{quote(found.filename, safe='')}"
    )
    headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    if found_at is None:
        headers["Accept-Ranges"] = "bytes"
    if length is not None:
        headers["Content-Length"] = str(length)
    if part:
        headers["Content-Range"] = part
    return response


def _exactly(length: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, which are `length` bytes together. Raises UpstreamError when they are not.

    The last of them waits for the end: a client does not see what comes behind the length that
    was announced, and would take the beginning of a longer file for the whole.
    """
    rest = length
    last = b""
    for chunk in filter(None, chunks):
        rest -= len(chunk)
        if rest < 0:
            raise UpstreamError(f"the upstream sent more than the {length} bytes of the file")
        if rest:
            yield chunk
        else:
            last = chunk
    if rest:
        raise UpstreamError(f"the upstream sent {rest} bytes less than the {length} of the file")
    if last:
        yield last

"""Files at one account: create, list, retrieve, content, delete."""

import os
from collections.abc import Mapping
from typing import Literal, Unpack

from app.errors import InvalidRequest
from app.providers.account_params import AccountParams
from app.sdk.accounts import Wanted, account
from app.sdk.objects import FileContent, FileDeleted, FileObject, Page, file_of
from app.sdk.threads import off_the_loop
from app.sdk.uploads import GivenFile, as_wanted, upload_of
from app.transfers import ExpiresAfter

_MOST = 10_000

Config = str | os.PathLike[str] | None


def create_file(
    file: GivenFile,
    purpose: str,
    *,
    expires_after: Mapping[str, str | int] | None = None,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> FileObject:
    """Upload a file and return it as the provider calls it.

    `expires_after` is OpenAI's `{"anchor": "created_at", "seconds": ...}`. With `model`, a batch
    file's rows are written for it. Raises GatewayError, ConfigError.
    """
    target = account(Wanted(custom_llm_provider, model, config, params))
    with (
        upload_of(file, purpose, expiry(expires_after)) as upload,
        as_wanted(upload, target) as sent,
    ):
        return file_of(target.provider.upload(sent), upload)


def file_list(
    *,
    purpose: str | None = None,
    limit: int = _MOST,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> Page[FileObject]:
    """The account's files in the order of (created_at, id), also where the provider has none.

    Raises InvalidRequest for an `after` that is no file of the list.
    """
    if not 1 <= limit <= _MOST:
        raise InvalidRequest(f"limit is {limit}; it must be 1 to {_MOST}", param="limit")
    target = account(Wanted(custom_llm_provider, model, config, params))
    found = [
        file_of(stored)
        for stored in target.provider.files(purpose)
        if purpose in (None, stored.purpose)
    ]
    found.sort(key=lambda file: (file.created_at, file.id), reverse=order == "desc")
    if after is not None:
        places = [place for place, file in enumerate(found) if file.id == after]
        if not places:
            raise InvalidRequest(f"after names no file of this list: {after!r:.200}", param="after")
        found = found[places[0] + 1 :]
    shown = found[:limit]
    return Page(
        shown,
        has_more=len(found) > limit,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
    )


def file_retrieve(
    file_id: str,
    *,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> FileObject:
    """The file as it is now. Raises NotFound."""
    target = account(Wanted(custom_llm_provider, model, config, params))
    return file_of(target.provider.retrieve(file_id))


def file_delete(
    file_id: str,
    *,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> FileDeleted:
    """Remove the file. One that is gone already is no error."""
    target = account(Wanted(custom_llm_provider, model, config, params))
    target.provider.delete(file_id)
    return FileDeleted(file_id)


def file_content(
    file_id: str,
    *,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> FileContent:
    """The file's bytes, all of them fetched. Raises NotFound, ContentNotAvailable."""
    target = account(Wanted(custom_llm_provider, model, config, params))
    return FileContent(target.provider.content(file_id))


def expiry(given: Mapping[str, str | int] | None) -> ExpiresAfter | None:
    """OpenAI's object as a value. Raises InvalidRequest."""
    if given is None:
        return None
    anchor, seconds = given.get("anchor"), given.get("seconds")
    if anchor != "created_at" or not isinstance(seconds, int):
        raise InvalidRequest(
            "expires_after must be {'anchor': 'created_at', 'seconds': <whole number>}",
            param="expires_after",
        )
    return ExpiresAfter(anchor, seconds)


list_files = file_list
retrieve_file = file_retrieve
delete_file = file_delete

acreate_file = off_the_loop(create_file)
afile_list = alist_files = off_the_loop(file_list)
afile_retrieve = aretrieve_file = off_the_loop(file_retrieve)
afile_delete = adelete_file = off_the_loop(file_delete)
afile_content = off_the_loop(file_content)

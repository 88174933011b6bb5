"""Batches at one account: create, list, retrieve, cancel."""

from collections.abc import Mapping
from typing import Unpack

from app.providers.account_params import AccountParams
from app.providers.protocol import BatchRequest
from app.providers.wire.jsonl import openai_url
from app.sdk.accounts import Wanted, account
from app.sdk.files import Config, expiry
from app.sdk.objects import Batch, Page, batch_of
from app.sdk.pages import page_of
from app.sdk.threads import off_the_loop


def create_batch(
    completion_window: str,
    endpoint: str,
    input_file_id: str,
    *,
    metadata: dict[str, str] | None = None,
    output_expires_after: Mapping[str, str | int] | None = None,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> Batch:
    """Start a batch over a file that is at the same account.

    `endpoint` is spelled as OpenAI does, `/v1/chat/completions`. Raises GatewayError.
    """
    target = account(Wanted(custom_llm_provider, model, config, params))
    request = BatchRequest(
        input_file_id=input_file_id,
        endpoint=target.provider.row_url(openai_url(endpoint)),
        completion_window=completion_window,
        metadata=metadata,
        output_expires_after=expiry(output_expires_after),
        model=target.upstream_model,
    )
    return batch_of(target.provider.create_batch(request))


def retrieve_batch(
    batch_id: str,
    *,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> Batch:
    """The batch as it is now. Raises NotFound."""
    target = account(Wanted(custom_llm_provider, model, config, params))
    return batch_of(target.provider.retrieve_batch(batch_id))


def list_batches(
    *,
    after: str | None = None,
    limit: int = 20,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> Page[Batch]:
    """The account's batches, newest first."""
    target = account(Wanted(custom_llm_provider, model, config, params))
    return page_of(map(batch_of, target.provider.batches()), after, limit)


def cancel_batch(
    batch_id: str,
    *,
    custom_llm_provider: str | None = None,
    model: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> Batch:
    """Ask for the end of a batch; the batch as it is then. Raises NotFound."""
    target = account(Wanted(custom_llm_provider, model, config, params))
    return batch_of(target.provider.cancel_batch(batch_id))


acreate_batch = off_the_loop(create_batch)
aretrieve_batch = off_the_loop(retrieve_batch)
alist_batches = off_the_loop(list_batches)
acancel_batch = off_the_loop(cancel_batch)

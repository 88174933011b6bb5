"""What a program may say about an account, all providers together."""

from collections.abc import Mapping
from typing import Any, TypedDict


class AccountParams(TypedDict, total=False):
    """Each provider takes those that it has (`Params`), and refuses the others by name.

    `base_url` is another name of `api_base`. `timeout` is in seconds: how long to wait for an
    answer's first byte and for each next one (600); `max_retries` counts what may be repeated (2).
    """

    timeout: float
    max_retries: int
    api_key: str
    api_base: str
    base_url: str
    api_version: str
    organization: str
    project: str
    azure_ad_token: str
    tenant_id: str
    client_id: str
    client_secret: str
    azure_authority_host: str
    azure_scope: str
    vertex_project: str
    vertex_location: str
    vertex_credentials: str | Mapping[str, Any]
    gcs_bucket_name: str
    bucket_name: str
    gcs_api_base: str
    openai_compatible: bool
    max_inline_file_size_mb: int
    inline_images: str

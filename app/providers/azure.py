"""Azure OpenAI: classic api-version addresses and the /openai/v1 ones, by key or Entra token."""

import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from marshmallow import RAISE, Schema, ValidationError, fields, validates_schema

from app import turns
from app.errors import InvalidRequest, UpstreamAuthFailed
from app.objects import FineTuningJob
from app.providers.openai_style import OpenAIStyle, check_expiry
from app.providers.params import is_address, is_header_text
from app.providers.protocol import Operation, Place, StoredFile
from app.providers.upstream import Upstream
from app.settings import Deployment
from app.transfers import Upload

DEFAULT_API_VERSION = "2024-10-21"
AUTHORITY = "https://login.microsoftonline.com"
SCOPE = "https://cognitiveservices.azure.com/.default"
TRAINING_TYPE = "globalstandard"
_DAY = 24 * 3600
_ENTRA_SECONDS = 10
_CLIENT = ("tenant_id", "client_id", "client_secret")
_CREDENTIALS = ("api_key", "azure_ad_token", *_CLIENT)
_IN_DEPLOYMENT = {Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS}


class AzureParams(Schema):
    class Meta:
        unknown = RAISE

    api_base = fields.String(
        required=True,
        validate=is_address,
        error_messages={"required": "missing: the resource's address"},
        metadata={
            "description": "the resource (`https://NAME.openai.azure.com`), or its `/openai/v1`"
        },
    )
    api_version = fields.String(
        load_default=None,
        metadata={
            "description": "of the classic addresses, else 2024-10-21; `/openai/v1` needs none"
        },
    )
    api_key = fields.String(
        load_default=None,
        validate=is_header_text,
        metadata={"description": "one of the resource's two keys"},
    )
    azure_ad_token = fields.String(
        load_default=None,
        validate=is_header_text,
        metadata={"description": "an Entra token instead of a key; it is not renewed"},
    )
    tenant_id = fields.String(
        load_default=None,
        metadata={"description": "an application, with the two below; its tokens are renewed"},
    )
    client_id = fields.String(load_default=None, metadata={"description": "the application"})
    client_secret = fields.String(load_default=None, metadata={"description": "its secret"})
    azure_authority_host = fields.String(
        load_default=AUTHORITY,
        validate=is_address,
        metadata={"description": "where Entra gives tokens, for other clouds than the public one"},
    )
    azure_scope = fields.String(
        load_default=SCOPE, metadata={"description": "what the token is for"}
    )

    @validates_schema
    def has_a_credential(self, data: dict[str, Any], **_: object) -> None:
        """One of the three credentials must be whole."""
        client = [data[name] for name in _CLIENT]
        if any(client) and not all(client):
            raise ValidationError("tenant_id, client_id and client_secret go together", "tenant_id")
        if not any((data["api_key"], data["azure_ad_token"], all(client))):
            raise ValidationError(
                "missing: give api_key, azure_ad_token, or tenant_id/client_id/client_secret",
                "api_key",
            )


class Azure(OpenAIStyle):
    """One Azure resource. The upstream model is the name of a deployment there.

    Source: Azure OpenAI REST API reference 2024-10-21 and v1; read 2026-11.
    """

    name = "azure"
    # It must be deployed through the management plane first, which is the operator's business.
    serves_tuned_models = False
    environment = {
        "api_base": ("AZURE_API_BASE", "AZURE_OPENAI_ENDPOINT"),
        "api_version": ("AZURE_API_VERSION", "OPENAI_API_VERSION"),
        "api_key": ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY"),
        "azure_ad_token": ("AZURE_AD_TOKEN", "AZURE_OPENAI_AD_TOKEN"),
        "tenant_id": ("AZURE_TENANT_ID",),
        "client_id": ("AZURE_CLIENT_ID",),
        "client_secret": ("AZURE_CLIENT_SECRET",),
    }
    Params = AzureParams

    @classmethod
    def with_environment(
        cls, given: Mapping[str, Any], environ: Mapping[str, str]
    ) -> dict[str, Any]:
        found = super().with_environment(given, environ)
        # A credential that is given is the one that is meant, and Azure's own tools set a part of
        # the last three on many machines.
        is_given = any(given.get(name) for name in _CREDENTIALS)
        is_part = not all(found.get(name) for name in _CLIENT)
        left_out = set(_CREDENTIALS if is_given else _CLIENT if is_part else ())
        return {k: v for k, v in found.items() if k in given or k not in left_out}

    def __init__(self, deployment: Deployment, place: Place) -> None:
        super().__init__(deployment, place)
        base = self.params["api_base"].rstrip("/")
        self._is_v1 = base.endswith("/openai/v1")
        if not self._is_v1:
            base = base.removesuffix("/openai") + "/openai"
        version = self.params["api_version"]
        # The v1 surface needs no version; it knows "v1", "preview" and "latest" only.
        if self._is_v1 and version not in ("v1", "preview", "latest"):
            version = None
        elif not self._is_v1:
            version = version or DEFAULT_API_VERSION
        self._query = f"?api-version={quote(version, safe='')}" if version else ""
        self._token = _ClientCredentials(self.params, deployment)
        self.upstream = Upstream(
            base, headers=self._credential, deployment=deployment, pool_size=place.pool_size
        )

    def upload(self, upload: Upload) -> StoredFile:
        check_expiry(upload, 14 * _DAY, 30 * _DAY, "Azure")
        return super().upload(upload)

    def row_url(self, url: str) -> str:
        # The v1 surface spells it as OpenAI does, the classic one without /v1.
        return url if self._is_v1 else url.removeprefix("/v1")

    def create_job(self, body: Mapping[str, Any]) -> FineTuningJob:
        # Without it Azure answers that the base model does not support fine-tuning.
        return super().create_job({"trainingType": TRAINING_TYPE, **body})

    def path(self, path: str) -> str:
        return path + self._query

    def inference_path(self, operation: Operation, upstream_model: str) -> str:
        if self._is_v1 or operation not in _IN_DEPLOYMENT:
            return self.path(f"/{operation.value}")
        if upstream_model in ("", ".", ".."):
            raise InvalidRequest(f"{upstream_model!r} is no deployment's name", param="model")
        return self.path(f"/deployments/{quote(upstream_model, safe='')}/{operation.value}")

    def _credential(self) -> dict[str, str]:
        if self.params["api_key"]:
            return {"api-key": self.params["api_key"]}
        token = self.params["azure_ad_token"] or self._token.get()
        return {"Authorization": f"Bearer {token}"}


class _ClientCredentials:
    """Entra access tokens for a client id and secret; the library keeps and renews them."""

    def __init__(self, params: dict[str, Any], deployment: Deployment) -> None:
        self._params = params
        self._deployment = deployment
        self._lock = threading.Lock()
        self._client: Any = None

    def get(self) -> str:
        """A token that is good now. Raises UpstreamAuthFailed when Entra refuses."""
        with self._lock:
            answer = self._acquire()
        if "access_token" not in answer:
            raise self._failed(str(answer.get("error", "no token")))
        return str(answer["access_token"])

    def _acquire(self) -> dict[str, Any]:
        # Imported here: most installations have no Entra credential, and it takes 10 MB.
        import msal  # noqa: PLC0415
        import requests  # noqa: PLC0415

        turns.leave()
        try:
            if self._client is None:
                host = self._params["azure_authority_host"].rstrip("/")
                self._client = msal.ConfidentialClientApplication(
                    self._params["client_id"],
                    client_credential=self._params["client_secret"],
                    authority=f"{host}/{self._params['tenant_id']}",
                    instance_discovery=False,
                    timeout=_ENTRA_SECONDS,
                )
            answer = self._client.acquire_token_for_client([self._params["azure_scope"]])
        except (
            msal.exceptions.MsalError,
            requests.RequestException,
            # The library's own, for an answer that is not Entra's.
            ValueError,
            AttributeError,
        ) as error:
            raise self._failed(type(error).__name__) from error
        return dict(answer or {})

    def _failed(self, reason: str) -> UpstreamAuthFailed:
        return UpstreamAuthFailed(
            f"Entra gave no token for azure: {reason}",
            provider="azure",
            deployment=self._deployment.id,
        )

"""OpenAI, and every server that speaks its API including files."""

from marshmallow import RAISE, Schema, ValidationError, fields, validates_schema

from app.errors import ConfigError
from app.providers.openai_style import OpenAIStyle
from app.providers.params import is_address, is_header_text
from app.providers.protocol import Place
from app.providers.upstream import Upstream
from app.settings import Deployment

OPENAI_API = "https://api.openai.com/v1"


class OpenAIParams(Schema):
    class Meta:
        unknown = RAISE

    api_key = fields.String(
        load_default=None,
        validate=is_header_text,
        metadata={"description": "the account's key; servers of your own may need none"},
    )
    api_base = fields.String(
        load_default=None,
        validate=is_address,
        metadata={
            "description": "the address, up to and with `/v1`; api.openai.com when it is left out"
        },
    )
    organization = fields.String(
        load_default=None,
        validate=is_header_text,
        metadata={"description": "sent as `OpenAI-Organization`"},
    )
    project = fields.String(
        load_default=None,
        validate=is_header_text,
        metadata={"description": "sent as `OpenAI-Project`"},
    )

    @validates_schema
    def has_a_destination(self, data: dict[str, str | None], **_: object) -> None:
        """A call without address and key would go to api.openai.com for nothing."""
        if data["api_base"] is None and data["api_key"] is None:
            raise ValidationError(
                "missing: api.openai.com needs a key, such as os.environ/OPENAI_API_KEY", "api_key"
            )


class OpenAI(OpenAIStyle):
    """OpenAI's own API. Source: OpenAI API reference; read 2026-11."""

    name = "openai"
    aliases = ("custom_openai", "openai_like", "litellm_proxy", "text-completion-openai")
    environment = {
        "api_key": ("OPENAI_API_KEY",),
        "api_base": ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
        "organization": ("OPENAI_ORG_ID", "OPENAI_ORGANIZATION"),
        "project": ("OPENAI_PROJECT_ID",),
    }
    Params = OpenAIParams

    def __init__(self, deployment: Deployment, place: Place) -> None:
        super().__init__(deployment, place)
        if deployment.provider != self.name and self.params["api_base"] is None:
            # Without this a payload meant for another server would go to OpenAI.
            raise ConfigError(
                [f"litellm_params.api_base: missing: provider {deployment.provider!r} needs it"]
            )
        self.upstream = Upstream(
            self.params["api_base"] or OPENAI_API,
            headers=self._credential,
            deployment=deployment,
            pool_size=place.pool_size,
        )

    def routing_fields(self) -> dict[str, str]:
        # A second gateway cannot know for which of its accounts a bare upload is.
        model = self.deployment.upstream_model
        is_known = self.deployment.provider == "litellm_proxy" and model and "*" not in model
        return {"target_model_names": model} if is_known else {}

    def _credential(self) -> dict[str, str]:
        named = {
            "Authorization": f"Bearer {self.params['api_key']}" if self.params["api_key"] else None,
            "OpenAI-Organization": self.params["organization"],
            "OpenAI-Project": self.params["project"],
        }
        return {name: value for name, value in named.items() if value}

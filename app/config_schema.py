"""What config.yaml may say: its sections, their keys and types."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import INCLUDE, RAISE, Schema, ValidationError, fields, validate

from app import litellm_keys


class Text(fields.String):
    """Text that is not empty."""

    default_error_messages = {
        "invalid": "must be text; put it in quotes",
        "required": "missing",
        "empty": "must not be empty",
    }

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, *args, **kwargs)
        if not text:
            raise self.make_error("empty")
        return text


class Identifier(Text):
    """Text that somebody may have written as a number."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return super()._deserialize(str(value) if is_number else value, *args, **kwargs)


class Whole(fields.Integer):
    """A whole number; 1.5 is a mistake, "3" from an environment variable is not."""

    default_error_messages = {"invalid": "must be a whole number"}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        if isinstance(value, float) and not value.is_integer():
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, *args, **kwargs)


class Number(fields.Float):
    default_error_messages = {"invalid": "must be a number", "special": "must be a finite number"}


class Flag(fields.Boolean):
    default_error_messages = {"invalid": "must be true or false"}


class Names(fields.Field[tuple[str, ...]]):
    """Names without repetition, from a list or from text with commas."""

    default_error_messages = {"invalid": "must be a list of names, or names with commas between"}

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.make_error("invalid")
        return tuple(dict.fromkeys(filter(None, (name.strip() for name in names))))


class Secrets(fields.Field[tuple[str, ...]]):
    """A list of secrets, kept as they are written."""

    default_error_messages = {"invalid": "must be a list of texts that are not empty"}

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise self.make_error("invalid")
        return tuple(dict.fromkeys(value))


def _at_least(minimum: int) -> validate.Range:
    return validate.Range(min=minimum, error="must be {min} or more")


def _between(minimum: float, maximum: float) -> validate.Range:
    return validate.Range(min=minimum, max=maximum, error="must be {min} to {max}")


def _one_of(*choices: str) -> validate.OneOf:
    return validate.OneOf(choices, error="must be one of: {choices}")


def _above_zero(value: float) -> None:
    if value <= 0:
        raise ValidationError("must be more than 0")


def _queue_url(value: str) -> None:
    if not value.startswith(("redis://", "rediss://", "postgresql://", "postgres://")):
        raise ValidationError("must begin with redis://, rediss:// or postgresql://")


def _long_enough(value: str) -> None:
    if len(value) < 16:
        raise ValidationError("must have 16 characters or more")


def _internal_address(value: str) -> None:
    if not re.fullmatch(r"(/[A-Za-z0-9_-]+)+/", value):
        raise ValidationError("must begin and end with '/', such as /_manifold/")


def _writable_in_an_id(value: str) -> None:
    """Ids are `...;key,value` texts, and clients send names with commas between."""
    if re.search(r"[;,\x00-\x1f\x7f]", value):
        raise ValidationError("must not contain ';', ',' or control characters")
    if value != value.strip():
        raise ValidationError("must not begin or end with a blank")


# As long as the columns these are stored in.
_NAME = (_writable_in_an_id, validate.Length(max=255, error="is longer than {max} characters"))
_PROVIDER = (_writable_in_an_id, validate.Length(max=64, error="is longer than {max} characters"))


class Section(Schema):
    """One mapping of the file.

    Raw fields are sections or lists of sections, read by themselves; `inner` names those whose
    keys are worth suggesting. Unknown keys are a mistake, or kept where somebody else checks them.
    """

    class Meta:
        unknown = RAISE

    ignored: ClassVar[frozenset[str]] = frozenset()
    inner: ClassVar[Mapping[str, type["Section"]]] = {}

    @classmethod
    def known(cls) -> Mapping[str, fields.Field[Any]]:
        """The keys of this section."""
        return cls._declared_fields

    @classmethod
    def containers(cls) -> frozenset[str]:
        """The keys whose values are sections of their own."""
        return frozenset(key for key, value in cls.known().items() if type(value) is fields.Raw)

    @classmethod
    def ignores(cls, key: str) -> bool:
        """Whether this is a key of LiteLLM's that Manifold has no use for."""
        return key in cls.ignored

    @classmethod
    def resembling(cls, key: str) -> str | None:
        """The key that somebody who wrote `key` here may have meant."""
        for name, section in cls.inner.items():
            if key in section.known():
                return f"{name}.{key}"
        known = sorted(cls.known()) + sorted(cls.ignored)
        return next(iter(difflib.get_close_matches(key, known, n=1)), None)


class DeploymentParams(Section):
    """`litellm_params`: how to reach one deployment. The provider checks the keys of its own."""

    class Meta:
        unknown = INCLUDE

    ignored = litellm_keys.DEPLOYMENT

    model = Text(required=True, validate=_NAME)
    custom_llm_provider = Text(validate=_PROVIDER)
    weight = Number(validate=_at_least(0))
    timeout = Number(validate=_above_zero)
    max_retries = Whole(validate=_at_least(0))

    @classmethod
    def ignores(cls, key: str) -> bool:
        # Prices have dozens of spellings: input_cost_per_token, cache_read_input_token_cost, ...
        return super().ignores(key) or "cost" in key.split("_")


class ModelInfo(Section):
    """`model_info`: what is known about a deployment; unknown keys are kept and shown."""

    class Meta:
        unknown = INCLUDE

    id = Identifier(validate=_NAME)
    mode = Text()
    supported_endpoints = Names()


class ModelEntry(Section):
    """One entry of `model_list`."""

    ignored = litellm_keys.MODEL_ENTRY
    inner = {"litellm_params": DeploymentParams, "model_info": ModelInfo}

    model_name = Text(required=True, validate=_NAME)
    litellm_params = fields.Raw()
    model_info = fields.Raw()


class AccountEntry(DeploymentParams):
    """One entry of `files_settings` or `finetune_settings`: a deployment without a model name."""

    inner = {"model_info": ModelInfo}

    model = Text(validate=_NAME)
    custom_llm_provider = Text(required=True, validate=_PROVIDER)
    default = Flag()
    model_info = fields.Raw()


class GeneralSettings(Section):
    """`general_settings`; sizes in MB of 1024 * 1024 bytes."""

    ignored = litellm_keys.GENERAL

    master_key = Text()
    previous_master_keys = Secrets()
    master_key_overlap_hours = Number(validate=validate.Range(0, 720, error="must be 0 to 720"))
    metrics_token = Text(validate=_long_enough)
    database_url = Text()
    data_dir = Text()
    default_target_model_names = Names()
    fan_out = Text(validate=_one_of("every_model", "every_deployment"))
    fan_out_threads = Whole(validate=_at_least(1))
    max_file_size_mb = Whole(validate=_at_least(1))
    max_batch_file_size_mb = Whole(validate=_at_least(1))
    max_batch_file_records = Whole(validate=_at_least(1))
    max_request_size_mb = Whole(validate=_at_least(1))
    max_batch_row_mb = Whole(validate=_at_least(1))
    validate_batch_files = Flag()
    max_inline_file_size_mb = Whole(validate=_at_least(0))
    allow_unrecorded_ids = Flag()
    hide_foreign_objects = Flag()
    migrate_on_start = Flag()
    file_wait_seconds = Number(validate=_between(0, 3600))
    lease_seconds = Number(validate=_between(1, 600))
    keep_content = Flag()
    renew_ahead_seconds = Number(validate=_between(0, 7 * 86_400))
    spool_max_mb = Whole(validate=_at_least(0))
    spool_max_hours = Number(validate=_between(0, 24 * 365))
    poll_seconds = Number(validate=(_above_zero, _between(0, 86_400)))
    poll_max_seconds = Number(validate=(_above_zero, _between(0, 86_400)))
    give_up_days = Number(validate=(_above_zero, _between(0, 3650)))
    auto_register_fine_tuned = Flag()
    task_queue_url = Text(validate=_queue_url)
    audit_retention_days = Number(validate=_at_least(1))
    database_pool_size = Whole(validate=_at_least(1))
    accel_redirect = Text(validate=_internal_address)


class RouterSettings(Section):
    """`router_settings`; `cooldown_time` in seconds."""

    ignored = litellm_keys.ROUTER

    routing_strategy = Text(
        validate=_one_of("simple-shuffle", "least-busy", *litellm_keys.STRATEGIES)
    )
    cooldown_time = Number(validate=_at_least(0))


class LitellmSettings(Section):
    """`litellm_settings`: all of it is about LiteLLM's own library."""

    ignored = litellm_keys.LITELLM


def _refuse_include(_value: Any) -> None:
    # A warning would start a gateway that lacks the models of the other files.
    raise ValidationError("Manifold reads one file; copy what the others say into it")


class TopLevel(Section):
    """config.yaml itself."""

    ignored = litellm_keys.TOP_LEVEL
    inner = {
        "general_settings": GeneralSettings,
        "router_settings": RouterSettings,
        "litellm_settings": LitellmSettings,
    }

    model_list = fields.Raw()
    files_settings = fields.Raw()
    finetune_settings = fields.Raw()
    general_settings = fields.Raw()
    router_settings = fields.Raw()
    litellm_settings = fields.Raw()
    environment_variables = fields.Raw()
    include = fields.Raw(validate=_refuse_include)

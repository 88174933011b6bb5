"""Every error a client can be shown, as one tree.

GatewayError
├── InvalidRequest            400  the request itself is wrong
│   ├── RoutingRequired            nothing says where it should go
│   ├── AmbiguousRouting           two selectors contradict each other
│   ├── UnknownModel               nobody configured that model name
│   ├── UnknownProvider            nobody configured that provider
│   ├── NotSupported               this provider has no such operation
│   ├── FileNotAvailable           no deployment of the model holds every file
│   ├── FileExpired                the upstream has let go of it, and nobody has its bytes
│   └── ContentNotAvailable        the holder does not give the bytes back
├── NotAuthenticated          401  no key, or a key that is not valid now
├── NotPermitted              403  the key is good, the thing is not its own
│   └── ModelAccessDenied          the key may not use that model
├── NotFound                  404
├── Conflict                  409
├── KeyReused                 422  one idempotency key for two different requests
├── TooLarge                  413  a size limit; the message names limit and size
│   └── StorageLimitExceeded       what somebody has and this file are more than he may have
├── RangeNotSatisfiable       416
├── RateLimited               429  with Retry-After
│   └── FileLimitExceeded          somebody has as many files as he may have
├── DatabaseUnavailable       503  with Retry-After
├── StorageFull               507  the spool or the local store has no room
└── UpstreamError             502  an upstream failed; carries provider and deployment
    ├── UpstreamRejected           it answered with an error; status and body are kept
    ├── UpstreamAuthFailed         it refused *our* credential
    ├── UpstreamTimeout       504  it did not answer in time
    └── DeleteIncomplete           copies remain; the delete goes on

ConfigError is a mistake in config.yaml: it stops the start and never reaches a client. Neither does
OperationRefused: a command that was not carried out.
Types and envelope: OpenAI API reference, "Error codes"; read 2026-11.
"""

import errno
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class ConfigError(Exception):
    """Mistakes in the configuration, all of them, each with its path."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class DatabaseAway(ConfigError):
    """The database does not answer at start: its address may be wrong, or its server away."""


class OperationRefused(Exception):
    """What an operator asked for was not done, and everything is as it was before."""


class GatewayError(Exception):
    """An error that a client is shown in OpenAI's envelope."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"
    own_headers: ClassVar[Mapping[str, str]] = {}
    """Response headers of every error of this class."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.headers: dict[str, str] = {**self.own_headers, **(headers or {})}

    def body(self) -> dict[str, Any]:
        """OpenAI's error envelope."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class RoutingRequired(InvalidRequest):
    code = "routing_required"


class AmbiguousRouting(InvalidRequest):
    code = "ambiguous_routing"


class UnknownModel(InvalidRequest):
    code = "model_not_found"


class UnknownProvider(InvalidRequest):
    code = "provider_not_found"


class NotSupported(InvalidRequest):
    code = "unsupported_operation"


class FileNotAvailable(InvalidRequest):
    code = "file_not_available"


class FileExpired(InvalidRequest):
    code = "file_expired"


class ContentNotAvailable(InvalidRequest):
    code = "content_not_available"


class NotAuthenticated(GatewayError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotPermitted(GatewayError):
    status = 403
    type = "permission_error"
    code = "permission_denied"


class ModelAccessDenied(NotPermitted):
    code = "model_access_denied"


class NotFound(GatewayError):
    status = 404
    type = "not_found_error"
    code = "not_found"


class Conflict(GatewayError):
    status = 409
    type = "conflict_error"
    code = "conflict"
    # The openai client repeats a 409 twice; a conflict of ours does not go away by repeating.
    own_headers = {"x-should-retry": "false"}


class KeyReused(GatewayError):
    status = 422
    type = "invalid_request_error"
    code = "idempotency_key_reused"


class TooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class StorageLimitExceeded(TooLarge):
    code = "storage_limit_exceeded"


class RateLimited(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class FileLimitExceeded(RateLimited):
    code = "file_limit_exceeded"
    # Nothing goes away by waiting: repeating would only cost the client its time.
    own_headers = {"Retry-After": "60", "x-should-retry": "false"}


class RangeNotSatisfiable(GatewayError):
    status = 416
    type = "invalid_request_error"
    code = "range_not_satisfiable"


class DatabaseUnavailable(GatewayError):
    status = 503
    code = "database_unavailable"
    own_headers = {"Retry-After": "2"}

    def __init__(self, message: str = "the database does not answer; try again shortly") -> None:
        super().__init__(message)


NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a file cannot grow: the disk, a quota or the process's own limit."""


class StorageFull(GatewayError):
    status = 507
    code = "storage_full"
    own_headers = {"x-should-retry": "false"}

    def __init__(self, message: str = "the gateway has no disk space left for this file") -> None:
        super().__init__(message)


class UpstreamError(GatewayError):
    """An upstream failed. `deployment` is its id, for the log; the client sees model names only."""

    status = 502
    type = "upstream_error"
    code: str | None = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        deployment: str = "",
        retryable: bool = False,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code, headers=headers)
        self.provider = provider
        self.deployment = deployment
        self.retryable = retryable


class UpstreamRejected(UpstreamError):
    """The upstream answered with an error: its status, message, type, param and code are kept."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str = "upstream_error",
        param: str | None = None,
        code: str | None = None,
        provider: str = "",
        deployment: str = "",
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            message,
            provider=provider,
            deployment=deployment,
            retryable=retryable,
            param=param,
            headers=headers,
        )
        self.status = status
        self.type = type
        self.code = code


class UpstreamAuthFailed(UpstreamError):
    code = "upstream_auth_failed"


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class DeleteIncomplete(UpstreamError):
    code = "delete_incomplete"

"""Every error code that a client can be shown: its status, what it means, and what helps.

`python -m app.api.error_codes > docs/errors.md` writes the page. A test holds this table against
the code. Errors that an upstream answers keep the upstream's own status, type and code, and are not
here.
"""

from dataclasses import dataclass

_OF_THE_REQUEST = "invalid_request_error"


@dataclass(frozen=True)
class ErrorCode:
    """One line of the table; `example` is a message as a client sees it."""

    code: str
    status: int
    type: str
    example: str
    cause: str
    cure: str
    param: str | None = None

    @property
    def name(self) -> str:
        """The code; with its status where an earlier line has the same code."""
        first = next(each for each in ERRORS if each.code == self.code)
        return self.code if first is self else f"{self.code}_{self.status}"

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The body of such an answer."""
        return {
            "error": {
                "message": self.example,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def _bad(  # noqa: PLR0917  # the columns of a line
    code: str, example: str, cause: str, cure: str, param: str | None = None, status: int = 400
) -> ErrorCode:
    return ErrorCode(code, status, _OF_THE_REQUEST, example, cause, cure, param)


ERRORS: tuple[ErrorCode, ...] = (
    # 400: the request itself
    _bad(
        "invalid_value",
        "purpose: 'user-data' is not one of: assistants, batch, fine-tune, vision, user_data, "
        "evals",
        "A field is missing, unknown, or holds what is not allowed.",
        "`param` names the field, the message what is allowed.",
        "purpose",
    ),
    _bad(
        "bad_request",
        "the request could not be understood",
        "The request is no proper HTTP, or ended before its body was complete.",
        "Send it again; if it comes back, look at what stands between client and gateway.",
    ),
    _bad(
        "invalid_json",
        "the request body is not valid JSON",
        "The body is no JSON object, is nested more than 100 levels deep, or holds a null byte "
        "or half a surrogate pair.",
        "Send a JSON object with `Content-Type: application/json`.",
    ),
    _bad(
        "invalid_form",
        "the multipart form is broken",
        "The form does not end, or a part begins inside another.",
        "Let an HTTP library write the form; with a hand-made one check boundary and line ends.",
    ),
    _bad(
        "invalid_type",
        "limit: 'ten' is not an integer from 1 to 10000",
        "A whole number was expected.",
        "Send digits only.",
        "limit",
    ),
    _bad(
        "integer_above_max_value",
        "limit: 10001 is above the maximum of 10000",
        "The number is larger than allowed.",
        "Ask for less, and page with `after`.",
        "limit",
    ),
    _bad(
        "integer_below_min_value",
        "limit: 0 is below the minimum of 1",
        "The number is smaller than allowed.",
        "Send at least 1.",
        "limit",
    ),
    _bad(
        "missing_required_parameter",
        "you must provide a model parameter",
        "Something that is needed was not named: a model, a field of a batch row.",
        "Add what `param` and message name.",
        "model",
    ),
    _bad(
        "forbidden_parameter",
        "'api_base' cannot be set by a request; it comes from the configuration",
        "The field would choose an address or a credential.",
        "Leave it out; an administrator puts it into config.yaml.",
        "api_base",
    ),
    _bad(
        "routing_required",
        "name where this should go: target_model_names or model (gpt-4o), or custom_llm_provider "
        "(openai)",
        "Nothing says where the file or job should go, and there is no default.",
        "Name `target_model_names`, `model` or `custom_llm_provider`, or set "
        "`default_target_model_names`.",
    ),
    _bad(
        "ambiguous_routing",
        "model is 'gpt-4o' in the query and 'llama' in the body",
        "Two selectors, or two places of one, disagree.",
        "Send one of them only.",
        "model",
    ),
    _bad(
        "model_not_found",
        "the model 'gpt-5' does not exist; GET /v1/models lists what this key may use",
        "No deployment has that model name.",
        "Look at `GET /v1/models`; an administrator adds it to `model_list`.",
        "model",
    ),
    _bad(
        "provider_not_found",
        "no provider 'cohere' in files_settings; configured: openai",
        "`files_settings` has no account of that provider.",
        "Name one that is configured, or let an administrator add it.",
        "custom_llm_provider",
    ),
    _bad(
        "unsupported_operation",
        "provider 'local' does not support batches",
        "The provider behind that model has no such operation.",
        "Choose a model of another provider.",
    ),
    _bad(
        "file_not_available",
        "the file file-abc123 is not available to the model 'llama'; it is at: gpt-4o",
        "No deployment of the model holds every file of the request.",
        "Use a model that the message names, or upload the file for this one.",
        "file_id",
    ),
    _bad(
        "file_expired",
        "the file file-abc123 has expired, and nobody has its content any more",
        "The provider let go of the file, and no other holder has its bytes.",
        "Upload it again; `keep_content: true` prevents it.",
        "file_id",
    ),
    _bad(
        "content_not_available",
        "the provider does not give back the content of files with this purpose",
        "The holder gives no bytes back, as OpenAI does for some purposes.",
        "Keep your own copy, or let the gateway keep one: `keep_content: true`.",
        "id",
    ),
    _bad(
        "file_too_large_to_inline",
        "file 'film.mp4' is too large to be put into a message: it has 31457280 bytes, 20971520 "
        "are allowed",
        "The model has no files API, so the file would be put into the message.",
        "Use a smaller file, or raise `max_inline_file_size_mb`.",
    ),
    _bad(
        "empty_file",
        "the batch file has no rows",
        "The batch file holds nothing but blank lines.",
        "Put one JSON object on each line.",
        "file",
    ),
    _bad(
        "invalid_json_line",
        "line 3: is not a JSON object",
        "A line of a batch or training file is blank or no JSON object.",
        "Correct the line that the message names.",
        "file",
    ),
    _bad(
        "duplicate_custom_id",
        "line 7: custom_id 'row-6' stands twice",
        "Two rows of a batch file have one `custom_id`.",
        "Number them anew; results are told apart by it.",
        "file",
    ),
    _bad(
        "url_mismatch",
        "line 2: url is '/v1/embeddings', the rows before say '/v1/chat/completions'",
        "The rows of a batch, or rows and `endpoint`, ask for different things.",
        "Make one batch for each url.",
        "file",
    ),
    _bad(
        "parts_lost",
        "of the parts of the upload upload_0f only 64 bytes are left on the gateway's disk; "
        "begin a new upload",
        "The parts were on the disk of a node that is gone, or were removed.",
        "Begin a new upload; send all parts of one to the same node.",
        "part_ids",
    ),
    _bad(
        "md5_mismatch",
        "the content's md5 is 9e107d9d372bb6826bd81d3542a419d6, not "
        "e4d909c290d0fb1ca068ffaddf22cbd0",
        "What arrived is not what `md5` says.",
        "Check the parts and their order, and send the damaged one again.",
        "md5",
    ),
    *(
        _bad(
            f"upload_{status}",
            f"the upload upload_0f {became}",
            f"The upload {became}, so nothing can be done with it.",
            cure,
            "upload_id",
        )
        for status, became, cure in (
            ("completed", "is completed", "Use the file that it became."),
            ("cancelled", "is cancelled", "Begin a new upload."),
            ("expired", "has expired", "Begin a new upload; it has an hour to be completed."),
        )
    ),
    # 401, 403, 404
    ErrorCode(
        "invalid_api_key",
        401,
        "authentication_error",
        "no API key: send it as 'Authorization: Bearer sk-...'",
        "No key, or one that is unknown, blocked or expired, or whose user is gone.",
        "Send a key that works; an administrator makes one with `/key/generate`.",
    ),
    ErrorCode(
        "permission_denied",
        403,
        "permission_error",
        "User lea does not have access to the file file-abc123",
        "The key is good, but the thing is somebody else's, or the role may not do this.",
        "Use the owner's key, or ask an administrator.",
    ),
    ErrorCode(
        "model_access_denied",
        403,
        "permission_error",
        "this key may not use the model 'gpt-4o'",
        "The model is not on the list of the key, or not on that of its user.",
        "Use another model, or let an administrator widen `models`.",
        "model",
    ),
    ErrorCode(
        "csrf",
        403,
        "permission_error",
        "another site has sent this",
        "The console was sent a form or a call that is not its own page's, or one of before "
        "the last sign-in.",
        "Load the page again.",
    ),
    ErrorCode(
        "not_found",
        404,
        "not_found_error",
        "No such File object: file-abc123",
        "There is no such object, or no such route. With `hide_foreign_objects` somebody else's "
        "object is not found either.",
        "Check id, path and gateway: ids of another gateway mean nothing here.",
        "id",
    ),
    ErrorCode(
        "model_not_found",
        404,
        "not_found_error",
        "The model 'gpt-5' does not exist or you do not have access to it",
        "`GET /v1/models/{model}` for a model that this key cannot use.",
        "Look at `GET /v1/models`.",
        "model",
    ),
    _bad(
        "method_not_allowed",
        "PUT is not allowed for /v1/files; allowed: GET, HEAD, POST",
        "The path exists, with other methods.",
        "Use one that the message and the `Allow` header name.",
        status=405,
    ),
    _bad(
        "request_timeout",
        "the request's line and headers took longer than 30 seconds",
        "The client is too slow, or sent nothing.",
        "Send the request again.",
        status=408,
    ),
    # 409, 413
    ErrorCode(
        "conflict",
        409,
        "conflict_error",
        "a user with the id 'lea' exists already",
        "What should be made exists, or what should be changed is in another state.",
        "Choose another name, or look at the object first. Repeating does not help.",
        "user_id",
    ),
    ErrorCode(
        "file_in_use",
        409,
        "conflict_error",
        "the file file-abc123 is the input of batch_abc123, which is in_progress",
        "A batch or a tuning still reads the file that should be deleted.",
        "Wait for its end, or cancel it.",
        "id",
    ),
    ErrorCode(
        "file_not_ready",
        409,
        "conflict_error",
        "the file file-abc123 is still being processed by openai; try again later",
        "The provider has not finished with the file within `file_wait_seconds`.",
        "Try again after `Retry-After` seconds.",
        "file_id",
    ),
    ErrorCode(
        "idempotency_in_progress",
        409,
        "conflict_error",
        "a request with this idempotency key is running",
        "The first request with this `Idempotency-Key` runs, or nobody knows yet what became of "
        "it.",
        "Try again after `Retry-After` seconds.",
    ),
    ErrorCode(
        "idempotency_key_used",
        409,
        "conflict_error",
        "the request was done, and its answer can be read with the key's old secret alone",
        "The key has got a new secret since the first request.",
        "It was done: look for what it made.",
    ),
    ErrorCode(
        "upload_completing",
        409,
        "conflict_error",
        "the upload upload_0f is being completed by another request",
        "Another request completes this upload at this moment.",
        "Wait, then complete it again: the answer is the same.",
        "upload_id",
    ),
    _bad(
        "request_too_large",
        "the request has 209715200 bytes, 134217728 bytes are allowed",
        "The body, or the form's fields, are larger than allowed.",
        "Send less, or let an administrator raise `max_request_size_mb`.",
        status=413,
    ),
    _bad(
        "file_too_large",
        "the file is too large: 1073741824 bytes were sent, 536870912 bytes are allowed",
        "The file is above `max_file_size_mb`, `max_batch_file_size_mb`, or 64 MB for a part.",
        "Send a smaller file, or let an administrator raise the limit.",
        "file",
        status=413,
    ),
    _bad(
        "too_many_rows",
        "the batch file has more than 50000 rows",
        "The batch file has more rows than `max_batch_file_records`.",
        "Make several batches of it.",
        "file",
        status=413,
    ),
    _bad(
        "storage_limit_exceeded",
        "User lea may store 10000000000 bytes; 9999999000 are stored and 4096 more were sent",
        "`max_bytes_stored` of the key or its user would be passed.",
        "Delete files, or let an administrator raise the limit.",
        status=413,
    ),
    # 414 and above
    _bad(
        "uri_too_long",
        "the request's first line is longer than 8190 bytes",
        "Path and query together are too long.",
        "Put what is long into the body.",
        status=414,
    ),
    _bad(
        "unsupported_media_type",
        "this content type is not understood here; send application/json or a form",
        "The body has a content type that this route does not read.",
        "Send `application/json`, or `multipart/form-data` for files.",
        status=415,
    ),
    _bad(
        "range_not_satisfiable",
        "the range bytes=900- lies outside of the file's 512 bytes",
        "The `Range` header asks for bytes that the file does not have.",
        "Ask for bytes within the file's `bytes`.",
        status=416,
    ),
    _bad(
        "expectation_failed",
        "only `Expect: 100-continue` is understood",
        "The `Expect` header asks for something unknown.",
        "Leave it out.",
        status=417,
    ),
    _bad(
        "idempotency_key_reused",
        "this idempotency key was sent with another request",
        "One `Idempotency-Key` stands on two different requests.",
        "Make a new key for each thing that you want.",
        status=422,
    ),
    ErrorCode(
        "rate_limit_exceeded",
        429,
        "rate_limit_error",
        "User lea may send 600 requests a minute",
        "The key or its user has sent as many requests, or has as many running, as allowed.",
        "Wait `Retry-After` seconds; an administrator sets the limits.",
    ),
    ErrorCode(
        "file_limit_exceeded",
        429,
        "rate_limit_error",
        "User lea may have 1000 files",
        "`max_files` of the key or its user is reached.",
        "Delete files, or let an administrator raise the limit. Waiting does not help.",
    ),
    _bad(
        "headers_too_large",
        "more than 100 headers, or one of more than 8190 bytes",
        "The request's headers are too many or too large.",
        "Send fewer; large cookies are the usual reason.",
        status=431,
    ),
    # 5xx
    ErrorCode(
        "internal_error",
        500,
        "server_error",
        "internal error",
        "A fault of the gateway's own.",
        "Look for the `x-request-id` in the log: `unexpected_error` has the traceback.",
    ),
    ErrorCode(
        "unsupported_transfer_coding",
        501,
        "server_error",
        "only the transfer coding `chunked` is understood",
        "The body comes in a transfer coding that HTTP/1.1 servers need not know.",
        "Send it plain or `chunked`.",
    ),
    ErrorCode(
        "upstream_error",
        502,
        "upstream_error",
        "openai could not be reached",
        "The provider could not be reached, broke the connection, or gave an answer that cannot "
        "be understood.",
        "Try again. `GET /health` shows administrators which deployments rest; `manifold doctor` "
        "asks each of them.",
    ),
    ErrorCode(
        "upstream_auth_failed",
        502,
        "upstream_error",
        "openai refused the gateway's own credential",
        "The provider answered 401 or 403 to the gateway's credential, not to yours.",
        "An administrator renews the deployment's key in config.yaml.",
    ),
    ErrorCode(
        "delete_incomplete",
        502,
        "upstream_error",
        "the file could not be deleted at: gpt-4o; it can no longer be used, and repeating the "
        "delete goes on with the rest",
        "A provider did not delete its copy. The file is unusable already.",
        "Repeat the delete, or leave it to the worker.",
        "id",
    ),
    ErrorCode(
        "database_unavailable",
        503,
        "server_error",
        "the database does not answer; try again shortly",
        "The database is away, overloaded, or locked by somebody.",
        "Try again after `Retry-After` seconds. The log line of the same name has the driver's "
        "words.",
    ),
    ErrorCode(
        "upstream_timeout",
        504,
        "upstream_error",
        "openai did not answer in time",
        "The provider did not answer within the deployment's `timeout`.",
        "Try again, or raise `timeout`. What was asked for may have been done.",
    ),
    ErrorCode(
        "storage_full",
        507,
        "server_error",
        "the gateway has no disk space left for this file",
        "The spool or the local store has no room.",
        "Make room in `data_dir`, or lower `spool_max_mb`.",
    ),
)

BY_NAME = {each.name: each for each in ERRORS}


def markdown() -> str:
    """The page docs/errors.md."""
    lines = [
        "# Errors by code",
        "",
        "<!-- Written by `python -m app.api.error_codes`; a test says when it is out of date. -->",
        "",
        "Every error comes in one envelope, from whichever part of the gateway:",
        "",
        "```text",
        '{"error": {"message": "...", "type": "...", "param": "..." or null, "code": "..."}}',
        "```",
        "",
        "`code` is a stable word to program against, `message` is for people and may change.",
        "Every answer has an `x-request-id`, which is in the log line of the request too. What an",
        "upstream refuses keeps its own status, message, type, param and code; then `llm-provider`",
        "names the provider. `x-should-retry: false` says that repeating does not help, or could",
        "make a second copy.",
        "",
        "| status | code | type | what happened | what helps |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.status} | `{each.code}` | `{each.type}` | {each.cause} | {each.cure} |"
        for each in sorted(ERRORS, key=lambda each: each.status)
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")

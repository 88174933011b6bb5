"""Batch input: each deployment's own copy, byte for byte, and mistakes found before anything."""

import codecs
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.e2e import inside
from tests.e2e.batching import (
    CHAT,
    QUICK,
    SHORT_CHAT,
    bytes_at,
    ended,
    posts,
    start,
    upload,
)
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, model
from tests.e2e.upstream_jobs import by_custom_id, custom_ids, rows

MB = 1024 * 1024
LIMITS = {"max_batch_file_records": 1200, "max_batch_row_mb": 1, "max_batch_file_size_mb": 3}


@dataclass(frozen=True)
class House:
    """A gateway in front of a classic Azure resource, one of Azure's v1 and an OpenAI account."""

    gateway: Gateway
    classic: Account
    v1: Account
    plain: Account
    key: str
    """Of a user who may use `m` and `plain`, not `secret`."""


def configuration(accounts: tuple[Account, Account, Account], general: Any) -> dict[str, Any]:
    classic, v1, plain = accounts
    on_v1 = {**v1.params, "api_base": f"{v1.api_base}/openai/v1"}
    return {
        "model_list": [
            model("m", "azure/dep-one", classic),
            {"model_name": "m", "litellm_params": {"model": "azure/dep-two", **on_v1}},
            model("plain", "openai/gpt-4o", plain),
            model("secret", "openai/gpt-dear", plain),
        ],
        "files_settings": [{"custom_llm_provider": "openai", **plain.params}],
        "general_settings": {**QUICK, **general},
    }


@pytest.fixture(scope="module")
def accounts(upstream: Upstream) -> tuple[Account, Account, Account]:
    return (
        upstream.account("classic", "azure", models=["dep-one"], batch_delay_s=0),
        upstream.account("v1", "azure", models=["dep-two"], batch_delay_s=0),
        upstream.account("plain", models=["gpt-4o", "gpt-dear"], batch_delay_s=0),
    )


def settle(gateway: Gateway, accounts: tuple[Account, Account, Account]) -> House:
    key = gateway.new_user(models=["m", "plain", "openai/gpt-4o"])["key"]
    return House(gateway, *accounts, key)


@pytest.fixture(scope="module")
def house(accounts: tuple[Account, Account, Account], start_gateway: StartGateway) -> House:
    config = configuration(accounts, LIMITS)
    return settle(start_gateway(config, workers=1), accounts)


@pytest.fixture
def client(house: House) -> Iterator[Any]:
    with closing(house.gateway.client(house.key)) as client:
        yield client


# -------------------------------------------------------------------- each deployment's own copy

SHAPES: dict[str, dict[str, Any]] = {
    "as usual": {},
    "without a last newline": {"last_newline": False},
    "with CRLF": {"newline": "\r\n"},
    "with CRLF but the last": {"newline": "\r\n", "last_newline": False},
}


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("url", [CHAT, SHORT_CHAT])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_each_deployment_gets_its_own_names_and_every_other_byte(house, client, shape, url, mark):
    options: dict[str, Any] = {"fail": {3, 8}, **SHAPES[shape]}
    content = mark + rows(9, "m", url=url, **options)
    file_id = upload(client, content, target_model_names="m")
    for account, name, spelling in (
        (house.classic, "dep-one", SHORT_CHAT),
        (house.v1, "dep-two", CHAT),
    ):
        raw = account.files()[-1]["id"]
        assert bytes_at(account, raw) == rows(9, name, url=spelling, **options)
        begun = start(client, raw, endpoint=url, extra_body={"model": "m"})
        [asked] = account.requests("/openai", "POST")[-1:]
        assert asked.json["endpoint"] == spelling
        done = ended(client, begun.id)
        assert (done.status, done.errors, done.endpoint) == ("completed", None, url)
        good = by_custom_id(client.files.content(done.output_file_id).read())
        bad = by_custom_id(client.files.content(done.error_file_id).read())
        assert set(good) == set(custom_ids(9)) - {"row-3", "row-8"}
        assert set(bad) == {"row-3", "row-8"}
        assert {line["response"]["body"]["model"] for line in good.values()} == {name}
    shown = client.files.retrieve(file_id)
    assert (shown.bytes, shown.filename, shown.purpose) == (len(content), "in.jsonl", "batch")


def test_a_batch_goes_to_the_deployment_that_holds_the_copy(house, client):
    content = rows(3, "m")
    file_id = upload(client, content, target_model_names="m")
    for _ in range(8):
        done = ended(client, start(client, file_id).id)
        assert (done.status, done.request_counts.completed) == ("completed", 3)
    [first], [second] = ([a.files()[0]["id"]] for a in (house.classic, house.v1))
    assert first != second


def test_the_model_way_rewrites_too_and_takes_the_upstream_s_own_name(house, client):
    for name in ("m", "dep-one", "dep-two"):
        before = {a.name: len(a.files()) for a in (house.classic, house.v1)}
        file_id = upload(client, rows(4, name), model="m")
        [account] = [a for a in (house.classic, house.v1) if len(a.files()) > before[a.name]]
        own = {"classic": ("dep-one", SHORT_CHAT), "v1": ("dep-two", CHAT)}[account.name]
        assert bytes_at(account, account.files()[-1]["id"]) == rows(4, own[0], url=own[1])
        assert ended(client, start(client, file_id).id).status == "completed"


def test_the_provider_way_leaves_every_row_as_it_is(house, client):
    content = codecs.BOM_UTF8 + rows(4, "gpt-4o", newline="\r\n", last_newline=False)
    file_id = upload(client, content, custom_llm_provider="openai")
    assert bytes_at(house.plain, house.plain.files()[-1]["id"]) == content
    assert ended(client, start(client, file_id).id).status == "completed"


def test_a_row_without_a_model_takes_the_target(house, client):
    line = '{"custom_id":"1","method":"POST","url":"%s","body":{"messages":[]}}\n'
    bare = '{"custom_id":"2","method":"POST","url":"%s","body": { } }\n'
    null = '{"custom_id":"3","method":"POST","url":"%s","body":{"model": null}}\n'
    content = (line % CHAT + bare % CHAT + null % CHAT).encode()
    upload(client, content, target_model_names="m")
    sent = bytes_at(house.classic, house.classic.files()[-1]["id"]).splitlines()
    bodies = [json.loads(each)["body"] for each in sent]
    assert bodies == [
        {"model": "dep-one", "messages": []},
        {"model": "dep-one"},
        {"model": "dep-one"},
    ]


def test_blank_last_lines_are_accepted(house, client):
    file_id = upload(client, rows(2, "m") + b"\n\r\n  \n", target_model_names="m")
    assert ended(client, start(client, file_id).id).request_counts.total == 2


def test_what_azure_processes_later_is_waited_for_within_a_bound(house, client):
    with house.classic.changed(polls_until_processed=3):
        upload(client, rows(2, "m"), target_model_names="m")
        raw = house.classic.files()[-1]["id"]
        assert ended(client, start(client, raw, extra_body={"model": "m"}).id).status == "completed"
    with house.classic.changed(polls_until_processed=10_000):
        upload(client, rows(2, "m"), target_model_names="m")
        raw = house.classic.files()[-1]["id"]
        before = posts(house.classic, "/batches")
        with pytest.raises(openai.ConflictError) as refused:
            start(client, raw, extra_body={"model": "m"})
        assert refused.value.code == "file_not_ready"
        assert posts(house.classic, "/batches") == before
    with house.classic.changed(final_status="error"):
        upload(client, rows(2, "m"), target_model_names="m")
        raw = house.classic.files()[-1]["id"]
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            start(client, raw, extra_body={"model": "m"})
        assert posts(house.classic, "/batches") == before


# -------------------------------------------------------------------- mistakes

AT = 7


def line(**changes: Any) -> str:
    """A good row, or one with other values; a value of ... leaves the key out."""
    row: dict[str, Any] = {
        "custom_id": "the-one",
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": []},
    }
    row = {key: value for key, value in {**row, **changes}.items() if value is not ...}
    return json.dumps(row)


def with_line(bad: str | bytes, at: int = AT, total: int = 12) -> bytes:
    """A good file but for one line."""
    bad = bad.encode() if isinstance(bad, str) else bad
    lines = rows(total, "m").splitlines()
    lines[at - 1] = bad
    return b"\n".join(lines) + b"\n"


NO_OBJECTS: dict[str, str | bytes] = {
    "a word": "nope",
    "a list": "[]",
    "a list around it": f"[{line()}]",
    "a string": '"text"',
    "a number": "1",
    "null": "null",
    "true": "true",
    "an open brace": "{",
    "a closed brace": "}",
    "two objects": line() + line(),
    "two objects and a blank": f"{line()} {line()}",
    "a comma behind": line() + ",",
    "a comma in the end": line()[:-1] + ",}",
    "no colon": '{"custom_id" "a"}',
    "no quotes": '{custom_id: "a"}',
    "single quotes": line().replace('"', "'"),
    "a comment": line() + " // comment",
    "NaN": line(body={"model": "m", "temperature": 1.5}).replace("1.5", "NaN"),
    "Infinity": line(body={"model": "m", "temperature": 1.5}).replace("1.5", "-Infinity"),
    "half a row": line()[:40],
    "a raw tab in a string": line().replace("the-one", "the\tone"),
    "a null byte": line().replace("the-one", "the\0one"),
    "a null byte behind": line() + "\0",
    "latin-1": line().replace("the-one", "caf\xe9").encode("latin-1"),
    "half a code point": line().encode().replace(b"the-one", b"\xf0\x9f\x98"),
    "an overlong slash": line().encode().replace(b"the-one", b"\xc0\xaf"),
    "a surrogate": line().encode().replace(b"the-one", b"\xed\xa0\x80"),
    "UTF-16": line().encode("utf-16"),
    "deep nesting": line(body=...)[:-1] + ', "body": ' + '{"a":' * 5000 + "1" + "}" * 5001,
    "deep lists": line()[:-1] + ', "x": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "custom_id twice": line()[:-1] + ', "custom_id": "b"}',
    "the model twice": line().replace('"model"', '"model": "secret", "model"'),
    "body twice": line()[:-1] + ', "body": {"model": "secret"}}',
    "an escaped model beside it": line().replace('"model"', '"\\u006dodel": "secret", "model"'),
    "nothing": "",
    "blanks": " \t ",
}
WRONG_VALUES: dict[str, list[Any]] = {
    "custom_id": [..., None, "", 0, 1, 1.5, True, [], ["a"], {}],
    "method": [..., None, "", "GET", "post", "PUT", 1, True, [], {}],
    "url": [
        *(
            ...,
            None,
            "",
            1,
            [],
            {},
            "/v1/",
            "/v1/chat",
            "/v1/chat/completions/",
            "chat/completions",
        ),
        *("/v2/chat/completions", "/v1/v1/chat/completions", "/v1/files", "/V1/chat/completions"),
        *(
            "http://127.0.0.1/v1/chat/completions",
            "/v1/chat/completions?x=1",
            "//evil/x",
            "/v1/../x",
        ),
    ],
    "body": [..., None, "", "{}", 1, True, [], [{"model": "m"}]],
}
WRONG_MODELS: list[Any] = ["", 1, 1.5, True, [], ["m"], {}, {"name": "m"}]
UNKNOWN_MODELS = ["nobody", "M", "m ", " m", "azure/m", "gpt-4o\0", "m,plain", "*", "m" * 5000, "é"]
"""Models that nobody has, or that are not what the file is for."""
UNKNOWN_MODELS += ["plain", "gpt-4o", "openai/gpt-4o"]


@dataclass(frozen=True)
class Bad:
    content: bytes
    words: tuple[str, ...]
    status: int = 400
    name: str = "in.jsonl"


def cases() -> Iterator[tuple[str, Bad]]:
    """By what is wrong with it: a file, and what the answer must name."""
    for name, text in NO_OBJECTS.items():
        yield f"no object: {name}", Bad(with_line(text), (f"line {AT}",))
    for at in (1, 12):
        yield f"no object in line {at}", Bad(with_line("{]", at), (f"line {at}:",))
    for key, values in WRONG_VALUES.items():
        for value in values:
            shown = "left out" if value is ... else repr(value)
            yield f"{key} {shown}", Bad(with_line(line(**{key: value})), (f"line {AT}:", key))
    for value in WRONG_MODELS:
        body = {"model": value, "messages": []}
        yield f"model {value!r}", Bad(with_line(line(body=body)), (f"line {AT}:", "body.model"))
    for value in UNKNOWN_MODELS:
        body = {"model": value, "messages": []}
        yield f"model {value[:9]!r}", Bad(with_line(line(body=body)), (f"line {AT}:", "model"))
    for key in ("custom_id", "method", "url", "body"):
        for at in (1, 12):
            content = with_line(line(**{key: ...}), at)
            yield f"{key} left out in line {at}", Bad(content, (f"line {at}:", key))
    twice = ("line 7:", "custom_id", "row-2")
    yield "custom_id twice", Bad(with_line(line(custom_id="row-2")), twice)
    escaped = line().replace("the-one", "\\u0072ow-2")
    yield "custom_id twice, once in escapes", Bad(with_line(escaped), twice)
    late = rows(1000, "m") + line(custom_id="row-1").encode()
    yield "custom_id twice, far apart", Bad(late, ("line 1001:", "custom_id", "row-1"))
    other = with_line(line(url="/v1/embeddings"))
    yield "another url", Bad(other, ("line 7:", "url", "/v1/embeddings"))
    yield "another url in line 2", Bad(with_line(line(url="/v1/responses"), 2), ("line 2:", "url"))
    yield "an empty line", Bad(rows(3, "m") + b"\n" + rows(3, "m", first=4), ("line 4",))
    yield "empty first lines", Bad(b"\n\n" + rows(3, "m"), ("line 1",))
    for mark, encoding in ((b"", "utf-16"), (b"", "utf-16-le"), (b"", "utf-32")):
        content = mark + rows(3, "m").decode().encode(encoding)
        yield f"all of it in {encoding}", Bad(content, ("line 1",))
    yield "carriage returns alone", Bad(rows(3, "m", newline="\r"), ("line 1",))
    yield "one JSON list", Bad(json.dumps([json.loads(line())]).encode(), ("line 1",))
    yield "an indented object", Bad(json.dumps(json.loads(line()), indent=1).encode(), ("line 1",))
    yield "CSV", Bad(b"custom_id,method\n1,POST\n", ("line 1",))
    yield "a PDF", Bad(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", ("line 1",))
    for content in (b"\n", b"\r\n\r\n", b"   ", codecs.BOM_UTF8, codecs.BOM_UTF8 + b"\n"):
        yield f"nothing but {content!r}", Bad(content, ("no rows",))
    yield "no bytes", Bad(b"", ("empty",))
    for name in ("in.json", "in.txt", "jsonl", "in.jsonl.gz", "in.csv"):
        yield f"the name {name}", Bad(rows(2, "m"), (".jsonl",), name=name)
    yield "1,201 rows", Bad(rows(1201, "m"), ("1200", "rows"), 413)
    yield "a row of more than 1 MB", Bad(with_line(line(x="x" * MB)), (f"line {AT}", str(MB)))
    yield "more than 3 MB", Bad(rows(4, "m") + b" " * (3 * MB), (str(3 * MB),), 413)


CASES = list(cases())


def test_there_are_at_least_a_hundred_ways_to_be_wrong():
    assert len({name for name, _ in CASES}) == len(CASES) >= 140


@pytest.mark.parametrize("bad", [bad for _, bad in CASES], ids=[name for name, _ in CASES])
def test_a_malformed_file_is_refused_by_line_and_key(house, client, upstream, bad):
    with pytest.raises(openai.APIStatusError) as refused:
        upload(client, bad.content, name=bad.name, target_model_names="m")
    error = refused.value.response.json()["error"]
    assert refused.value.status_code == bad.status, error
    assert all(word in error["message"] for word in bad.words), error
    assert len(error["message"]) < 600
    assert (error["param"], error["type"]) == ("file", "invalid_request_error")
    assert upstream.requests() == []
    assert nothing_left(house)


def nothing_left(house: House) -> bool:
    """No spool file, and no row of a file that is not one of those that were good."""
    assert inside.spooled(house.gateway) == []
    known = sum(len(account.files()) for account in (house.classic, house.v1, house.plain))
    assert len(inside.rows(house.gateway, "copies")["copies"]) <= known
    return True


def _kept(house) -> dict[str, list[Any]]:
    """All rows but those that note refusals too: the audit trail, and usage now and then."""
    noting = {"audit", "usage_hours", "key_uses"}
    return {name: rows for name, rows in inside.rows(house.gateway).items() if name not in noting}


@pytest.mark.parametrize("way", ["target_model_names", "model"])
@pytest.mark.parametrize("name", ["secret", "openai/gpt-dear"])
def test_a_forbidden_model_in_row_1000_is_refused_naming_both(house, client, upstream, name, way):
    before = _kept(house)
    content = rows(1001, "m", replace={1000: line(body={"model": name, "messages": []})})
    with pytest.raises(openai.PermissionDeniedError) as refused:
        upload(client, content, **{way: "m"})
    error = refused.value.response.json()["error"]
    assert "line 1000:" in error["message"]
    assert repr(name) in error["message"]
    assert (error["code"], error["param"]) == ("model_access_denied", "file")
    assert upstream.requests() == []
    assert _kept(house) == before
    assert inside.spooled(house.gateway) == []


def test_the_provider_way_refuses_a_forbidden_model_too(house, client, upstream):
    content = rows(1000, "gpt-4o", replace={1000: line(body={"model": "gpt-dear"})})
    with pytest.raises(openai.PermissionDeniedError, match=r"line 1000: .*'gpt-dear'"):
        upload(client, content, custom_llm_provider="openai")
    assert upstream.requests() == []


def test_unchecked_files_go_on_as_they_are_but_for_forbidden_models(
    accounts, start_gateway, upstream
):
    config = configuration(accounts, {"validate_batch_files": False})
    house = settle(start_gateway(config, workers=1), accounts)
    with closing(house.gateway.client(house.key)) as client:
        for nonsense in (
            *(b"nope\n", b"\n\n{]\n", b"\xff\xfe\x00", rows(2, "m") * 2),
            line(method="GET").encode(),
        ):
            upload(client, nonsense, target_model_names="plain", name="in.jsonl")
            sent = bytes_at(house.plain, house.plain.files()[-1]["id"])
            if b'"m"' not in nonsense:
                assert sent == nonsense
        upload(client, rows(2, "plain") + b"nope\n", target_model_names="plain")
        sent = bytes_at(house.plain, house.plain.files()[-1]["id"])
        assert sent == rows(2, "gpt-4o") + b"nope\n"
        upstream.forget_requests()
        forbidden = line(body={"model": "secret"})
        for bad in (
            forbidden,
            # Which of the two counts, and whether NaN is a number, is for the upstream to say.
            line(body={"model": "plain"})[:-1] + ', "body": {"model": "secret"}}',
            forbidden.replace('"model"', '"model": "plain", "model"'),
            forbidden.replace('"model"', '"temperature": NaN, "model"'),
        ):
            content = rows(3, "plain", replace={2: "nope"}) + bad.encode()
            with pytest.raises(openai.PermissionDeniedError, match=r"line 4: .*'secret'"):
                upload(client, content, target_model_names="plain")
        # What cannot be rewritten may not name an upstream's own model either.
        hidden = line(body={"model": "gpt-dear"}).replace('"model"', '"model": "plain", "model"')
        with pytest.raises(openai.BadRequestError, match=r"line 1: .*'gpt-dear'"):
            upload(client, hidden.encode(), target_model_names="plain")
        assert upstream.requests() == []


# -------------------------------------------------------------------- memory


def test_a_large_file_to_three_deployments_takes_little_memory(upstream, start_gateway):
    three = [upstream.account(f"large-{n}", models=[f"up-{n}"]) for n in range(3)]
    config = {"model_list": [model("big", f"openai/up-{n}", a) for n, a in enumerate(three)]}
    gateway = start_gateway(config, workers=1)
    body = {"model": "big", "messages": [{"role": "user", "content": "x" * 8000}]}
    lines = (line(custom_id=str(n), body=body) + "\n" for n in range(8000))
    content = "".join(lines).encode()
    assert len(content) > 60 * MB
    with closing(gateway.client()) as client:
        upload(client, rows(3, "big"), target_model_names="big")
        with gateway.peak_memory() as peak:
            upload(client, content, target_model_names="big")
    assert peak.growth < 32 * MB
    for n, account in enumerate(three):
        stored = account.files()[-1]
        assert stored["size"] == len(content) + 8000 * (len(f"up-{n}") - len("big"))

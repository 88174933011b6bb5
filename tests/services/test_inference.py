"""Inference without HTTP: ids there and back, only holders asked, the next one on failure."""

import json
import threading

import pytest
from sqlalchemy import update

from app import ids
from app.db.tables import Copy, File, now
from app.errors import (
    AmbiguousRouting,
    FileExpired,
    FileNotAvailable,
    InvalidRequest,
    ModelAccessDenied,
    NotFound,
    NotPermitted,
    NotSupported,
    UnknownModel,
    UnknownProvider,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamTimeout,
)
from app.providers.protocol import NO_FILES, Operation
from app.services.inference import FILE_ID_PATHS, Inference
from app.services.router import Hints
from app.transfers import Cancellation, Reply
from tests.builders import make_deployment
from tests.conftest import make_caller, make_gateway, raw_in
from tests.fakes import FakeProvider, json_reply, stream_reply

BROKEN = UpstreamError("openai broke the connection", retryable=True)
ANY = make_deployment("any", model_name="openai/*", upstream_model="*")


@pytest.fixture
def gateway(database):
    return make_gateway(database)


def ask(gateway, caller, body, *, operation=Operation.CHAT, said=(), cancellation=None):
    """The answer to a body, whose own selectors are hints as the API makes them."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    document = Inference.read(raw)
    found = [("body", "model", (document.value("model"),))] if document.value("model") else []
    for key in ("custom_llm_provider", "provider"):
        if isinstance(document.value(key), str):
            found.append(("body", "custom_llm_provider", (document.value(key),)))
    hints = Hints([*found, *said])
    return gateway.inference.run(caller, operation, document, hints, cancellation or Cancellation())


def text_of(answer):
    try:
        return b"".join(answer.reply.chunks)
    finally:
        answer.reply.close()


def sent(gateway, key):
    """The bodies and models that a fake was sent."""
    return [(body, model) for _, body, model in gateway.fakes[key].called("infer")]


def chat(model, *file_ids):
    parts = [{"type": "file", "file": {"file_id": file_id}} for file_id in file_ids]
    return {"model": model, "messages": [{"role": "user", "content": parts}]}


class Closed:
    """Replies that say how often they were closed."""

    def __init__(self):
        self.count = 0

    def reply(self, *chunks, status=200, headers=None, error=None, length=None):
        def body():
            yield from chunks
            if error is not None:
                raise error

        def close():
            self.count += 1

        shown = headers or {"Content-Type": "application/json"}
        return Reply(status, shown, body(), close, length)


# Translation


def body_with(path, file_id):
    """A body with the id at a path, and a neighbour of every kind beside it."""

    def build(rest):
        if not rest:
            return file_id
        head, *tail = rest
        inner = build(tail)
        return [inner, *([] if tail else [file_id])] if head == "*" else {"zz": 1.50, head: inner}

    return {"model": "b", "temperature": 1e-7, **build(list(path))}


def as_values(path):
    """The same path, where its second star is every key of an object."""
    return path == ("prompt", "variables", "*", "file_id")


@pytest.mark.parametrize("path", FILE_ID_PATHS, ids=".".join)
def test_an_id_is_translated_in_every_place_that_takes_one(gateway, alice, path):
    file_id = gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    if as_values(path):
        body = {"model": "b", "prompt": {"id": "p", "variables": {"pdf": {"file_id": file_id}}}}
    else:
        body = body_with(path, file_id)
    written = json.dumps(body, indent=1)
    text_of(ask(gateway, alice, written.encode()))
    [(received, model)] = sent(gateway, "b-1")
    assert model == "up-b"
    assert received.decode() == written.replace(file_id, raw).replace(
        '"model": "b"', '"model": "up-b"'
    )


def test_the_other_bytes_stay_as_they_came(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    body = (
        '{ "seed":12345678901234567890123, "top_p" : 1.0e-0,"u":"\\u00e9\\/é",\n\t'
        '"mod\\u0065l":"b"  ,"messages":[{"role":"user","content":[{"type":"file","file":'
        '{"file_id":"FILE"}},{"type":"text","text":"what is FILE?"}]},'
        '{"role":"user","content":"plain"}],"stream":false }'
    ).replace("FILE", file_id)
    text_of(ask(gateway, alice, body.encode()))
    [(received, _)] = sent(gateway, "b-1")
    raw = gateway.raw_id("b-1")
    expected = body.replace(f'"file_id":"{file_id}"', f'"file_id":"{raw}"')
    assert received.decode() == expected.replace('"mod\\u0065l":"b"', '"mod\\u0065l":"up-b"')


@pytest.mark.parametrize("kind", ["unified", "encoded", "raw", "of a copy", "other encoding"])
def test_every_kind_of_id_is_translated(gateway, alice, kind):
    unified = gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    if kind == "encoded":
        file_id = gateway.upload(alice, model="b")
        raw = raw_in(file_id)
    else:
        file_id = {
            "unified": unified,
            "raw": raw,
            "of a copy": ids.encode_file(raw, "b"),
            "other encoding": ids.encode_file(raw, "openai/up-b"),
        }[kind]
    text_of(ask(gateway, alice, chat("b", file_id)))
    [(received, _)] = sent(gateway, "b-1")
    assert json.loads(received) == chat("up-b", raw)


def test_each_deployment_gets_its_own_id(gateway, alice):
    file_id = gateway.upload(alice, names=("a",))
    for _ in range(20):
        text_of(ask(gateway, alice, chat("a", file_id, file_id)))
    for key in ("a-1", "a-2"):
        raw = gateway.raw_id(key)
        assert {body for body, _ in sent(gateway, key)} == {
            json.dumps(chat("up-a", raw, raw)).encode()
        }


@pytest.mark.parametrize(
    "body",
    [
        {"model": "b", "provider": "openai", "messages": []},
        {"custom_llm_provider": "openai", "model": "b"},
    ],
)
def test_our_own_keys_stay_with_us(gateway, alice, body):
    text_of(ask(gateway, alice, body))
    [(received, model)] = sent(gateway, "openai-account")
    kept = {
        key: value for key, value in body.items() if key not in ("provider", "custom_llm_provider")
    }
    assert (json.loads(received), model) == (kept, "b")


def test_a_provider_that_is_an_object_is_not_ours(gateway, alice):
    body = {"model": "b", "provider": {"order": ["x"]}}
    text_of(ask(gateway, alice, body))
    [(received, _)] = sent(gateway, "b-1")
    assert json.loads(received) == {"model": "up-b", "provider": {"order": ["x"]}}


@pytest.mark.parametrize(
    "body", [{}, {"n": 1}, {"provider": "openai"}, {"provider": "openai", "n": 1}]
)
def test_a_model_from_elsewhere_is_written_into_the_body(gateway, alice, body):
    text_of(ask(gateway, alice, body, said=[("path", "model", ("b",))]))
    key, model = ("openai-account", "b") if body.get("provider") else ("b-1", "up-b")
    [(received, _)] = sent(gateway, key)
    kept = {key: value for key, value in body.items() if key != "provider"}
    assert json.loads(received) == {"model": model, **kept}


def test_a_wildcards_model_is_named_as_its_provider_does(database, alice):
    gateway = make_gateway(database, [ANY])
    text_of(ask(gateway, alice, {"model": "openai/o3-ü"}))
    [(received, model)] = sent(gateway, "any")
    assert (json.loads(received), model) == ({"model": "o3-ü"}, "o3-ü")


# Refusals, before anything is sent


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, InvalidRequest),
        ({"model": 5}, InvalidRequest),
        ({"model": "no"}, UnknownModel),
        ({"model": "openai/\ud800"}, UnknownModel),
        ({"model": "b", "custom_llm_provider": "gemini"}, UnknownProvider),
        ({"model": "b", "custom_llm_provider": "azure"}, UnknownProvider),
        ({"model": "b", "provider": "azure", "custom_llm_provider": "openai"}, AmbiguousRouting),
        (chat("b", 5), InvalidRequest),
        (chat("b", ["file-1"]), InvalidRequest),
        (chat("b", {"x": 1}), InvalidRequest),
        (chat("b", ""), NotFound),
        (chat("b", "file-unknown"), NotFound),
        (chat("b", "../x"), NotFound),
        (chat("b", "\ud800"), NotFound),
        (chat("b", ids.encode_file("file-1\x00", "b")), NotFound),
        (chat("b", ids.encode_file("file-1", "b")), NotFound),
    ],
)
def test_bad_requests_are_refused_and_nothing_is_sent(gateway, alice, body, error):
    if isinstance(body.get("model"), int):
        body = json.dumps(body).encode()
        document = Inference.read(body)
        with pytest.raises(error):
            gateway.inference.run(alice, Operation.CHAT, document, Hints(), Cancellation())
    else:
        with pytest.raises(error) as refused:
            ask(gateway, alice, body)
        assert refused.value.status in (400, 404)
    assert gateway.calls() == 0
    assert gateway.in_flight() == {}


def test_an_id_that_is_null_is_none(gateway, alice):
    text_of(ask(gateway, alice, chat("b", None)))
    assert json.loads(sent(gateway, "b-1")[0][0]) == chat("up-b", None)


def test_a_model_with_half_a_surrogate_pair_is_sent_as_it_came(gateway, alice):
    text_of(ask(gateway, alice, {"model": "m\ud800", "custom_llm_provider": "openai"}))
    [(received, _)] = sent(gateway, "openai-account")
    assert json.loads(received) == {"model": "m\ud800"}


def test_two_spellings_of_one_key_are_refused(gateway, alice):
    with pytest.raises(InvalidRequest, match="twice"):
        ask(gateway, alice, b'{"model":"a","mod\\u0065l":"b"}')


@pytest.mark.parametrize("hide", [False, True])
def test_a_foreign_id_is_refused_wherever_it_stands(database, alice, bob, viewer, nobody, hide):
    gateway = make_gateway(database, hide_foreign_objects=hide)
    unified = gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    before = gateway.calls()
    for file_id in (unified, raw, ids.encode_file(raw, "b")):
        for caller in (bob, nobody):
            for path in FILE_ID_PATHS:
                body = (
                    {"model": "b", "prompt": {"variables": {"v": {"file_id": file_id}}}}
                    if as_values(path)
                    else body_with(path, file_id)
                )
                with pytest.raises(NotFound if hide else NotPermitted):
                    ask(gateway, caller, body)
    # A forged account does not help either.
    with pytest.raises(NotFound):
        ask(gateway, bob, chat("a", ids.encode_file(raw, "a")))
    assert gateway.calls() == before


def test_an_admin_uses_a_file_without_a_row(gateway, root):
    for file_id in ("file-elsewhere", ids.encode_file("file-elsewhere", "b")):
        gateway.fakes["b-1"].replies.append(json_reply({"file": "file-elsewhere"}))
        answer = text_of(ask(gateway, root, chat("b", file_id)))
        assert json.loads(answer) == {"file": file_id}
        assert json.loads(sent(gateway, "b-1")[-1][0]) == chat("up-b", "file-elsewhere")
    with pytest.raises(FileNotAvailable):
        ask(gateway, root, chat("b", ids.encode_file("file-elsewhere", "a")))


# Only holders


def test_only_holders_are_asked(gateway, alice):
    gateway.fakes["a-1"].fail_next(BROKEN, method="upload")
    file_id = gateway.upload(alice, names=("a",))
    for _ in range(10):
        text_of(ask(gateway, alice, chat("a", file_id)))
    assert sent(gateway, "a-1") == []
    assert len(sent(gateway, "a-2")) == 10


def test_no_detour_when_the_holder_fails(gateway, alice):
    gateway.fakes["a-1"].fail_next(BROKEN, method="upload")
    file_id = gateway.upload(alice, names=("a", "b"))
    error = {"error": {"message": "slow down", "type": "rate", "param": None, "code": "x"}}
    gateway.fakes["a-2"].replies.append(json_reply(error, 429))
    answer = ask(gateway, alice, chat("a", file_id))
    assert (answer.reply.status, json.loads(text_of(answer))) == (429, error)
    assert sent(gateway, "a-1") == sent(gateway, "b-1") == []


def test_a_request_with_two_files_goes_where_both_are(gateway, alice):
    files = []
    for missing in ("a-1", None):
        if missing:
            gateway.fakes[missing].fail_next(BROKEN, method="upload")
        files.append(gateway.upload(alice, names=("a",)))
    for _ in range(10):
        text_of(ask(gateway, alice, chat("a", *files)))
    assert sent(gateway, "a-1") == []


def test_two_files_that_are_nowhere_together_are_brought_together(gateway, alice):
    files = []
    for missing in ("a-1", "a-2"):
        gateway.fakes[missing].fail_next(BROKEN, method="upload")
        files.append(gateway.upload(alice, names=("a",)))
    text_of(ask(gateway, alice, chat("a", *files)))
    chosen = next(name for name in ("a-1", "a-2") if sent(gateway, name))
    assert len(gateway.fakes[chosen].stored) == 2
    assert len(sent(gateway, "a-1")) + len(sent(gateway, "a-2")) == 1


def test_two_files_of_two_models_are_nowhere_together(gateway, alice):
    files = [gateway.upload(alice, names=("a",)), gateway.upload(alice, names=("b",))]
    with pytest.raises(FileNotAvailable):
        ask(gateway, alice, chat("a", *files))
    assert sent(gateway, "a-1") == sent(gateway, "a-2") == []


@pytest.mark.parametrize("way", [{"names": ("a",)}, {"model": "a"}, {"provider": "openai"}])
def test_a_file_that_is_elsewhere_is_refused_with_where_it_is(gateway, alice, way):
    file_id = gateway.upload(alice, **way)
    with pytest.raises(FileNotAvailable) as refused:
        ask(gateway, alice, chat("b", file_id))
    shown = refused.value
    assert (shown.status, shown.code) == (400, "file_not_available")
    assert file_id in shown.message and "'b'" in shown.message
    assert shown.message.endswith("openai" if "provider" in way else "at: a")
    assert sent(gateway, "b-1") == []


@pytest.mark.parametrize("state", ["intended", "deleting"])
def test_a_copy_that_is_not_there_is_no_copy(gateway, alice, state):
    file_id = gateway.upload(alice, names=("b",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state=state))
    with pytest.raises(FileNotAvailable, match="no model"):
        ask(gateway, alice, chat("b", file_id))


@pytest.mark.parametrize(
    "changes", [{"state": "missing"}, {"expires_at": now()}], ids=["missing", "expired"]
)
def test_a_copy_of_which_nobody_has_the_bytes_is_said_to_have_expired(gateway, alice, changes):
    file_id = gateway.upload(alice, names=("b",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(**changes))
    with pytest.raises(FileExpired, match="upload it again") as refused:
        ask(gateway, alice, chat("b", file_id))
    assert (refused.value.status, refused.value.code) == (400, "file_expired")
    assert sent(gateway, "b-1") == []


def test_a_deleted_file_is_gone_for_everybody(gateway, alice, root):
    file_id = gateway.upload(alice, names=("b",))
    with gateway.database.write() as session:
        session.execute(update(File).values(state="deleting"))
    for caller in (alice, root):
        with pytest.raises(NotFound):
            ask(gateway, caller, chat("b", file_id))


def test_a_file_by_the_providers_way_stays_there(gateway, alice):
    file_id = gateway.upload(alice, provider="openai")
    body = {**chat("gpt-x", file_id), "custom_llm_provider": "openai"}
    text_of(ask(gateway, alice, body))
    [(received, model)] = sent(gateway, "openai-account")
    assert (json.loads(received), model) == (chat("gpt-x", file_id), "gpt-x")
    elsewhere = gateway.upload(alice, names=("b",))
    with pytest.raises(FileNotAvailable):
        ask(gateway, alice, {**chat("gpt-x", elsewhere), "custom_llm_provider": "openai"})


# A key's models


@pytest.mark.parametrize(
    ("models", "model", "provider", "may"),
    [
        ([], "gpt-x", "openai", True),
        (["*"], "gpt-x", "openai", True),
        (["gpt-x"], "gpt-x", "openai", True),
        (["openai/gpt-x"], "gpt-x", "openai", True),
        (["openai/*"], "gpt-x", "openai", True),
        (["a"], "gpt-x", "openai", False),
        (["a"], "up-a", "openai", False),
        (["a"], "b", "openai", False),
        # What another provider calls so, or the list's own model does, is no way round either.
        (["azure/*"], "gpt-x", "openai", False),
        (["azure/gpt-x"], "gpt-x", "openai", False),
        (["a"], "openai/up-a", "openai", False),
        (["b"], "openai/up-b", "openai", False),
        (["openai/up-b"], "b", "openai", False),
    ],
)
def test_a_keys_list_holds_for_a_providers_own_models(gateway, models, model, provider, may):
    body = {"model": model, "custom_llm_provider": provider}
    for caller in (
        make_caller("x", key_models=models),
        make_caller("x", user_models=models),
        make_caller("x", key_models=["*"], user_models=models),
    ):
        if may:
            text_of(ask(gateway, caller, body))
        else:
            with pytest.raises(ModelAccessDenied) as refused:
                ask(gateway, caller, body)
            assert model in refused.value.message
    assert gateway.calls() == (3 if may else 0)
    assert len(sent(gateway, "openai-account")) == gateway.calls()


def test_a_keys_list_holds_for_model_names(gateway):
    for name in ("b", "openai/up-b"):
        with pytest.raises(ModelAccessDenied):
            ask(gateway, make_caller("x", key_models=["a"]), {"model": name})
    assert gateway.calls() == 0


# The next deployment


def both_first(gateway, caller, replies):
    """Ask until each of the two deployments was first once; the answers."""
    firsts = {}
    for _ in range(60):
        for key in ("a-1", "a-2"):
            gateway.fakes[key].replies[:] = [replies(key)]
        before = {key: len(sent(gateway, key)) for key in ("a-1", "a-2")}
        answer = ask(gateway, caller, {"model": "a"})
        text = text_of(answer)
        gateway.clock.seconds += 1000
        tried = [key for key in ("a-1", "a-2") if len(sent(gateway, key)) > before[key]]
        firsts[answer.route.deployment.id] = (tried, answer.reply.status, text)
    return firsts


@pytest.mark.parametrize("status", [408, 429, 500, 501, 502, 503, 504, 520, 529])
def test_another_deployment_is_tried_and_the_failing_one_rests(gateway, alice, status):
    closed = Closed()
    found = both_first(
        gateway,
        alice,
        lambda key: closed.reply(b"{}", status=status) if key == "a-1" else json_reply({"k": key}),
    )
    assert list(found) == ["a-2"]
    assert found["a-2"][1:] == (200, b'{"k": "a-2"}')
    assert closed.count == len(sent(gateway, "a-1")) > 10
    assert len(sent(gateway, "a-2")) == 60
    assert gateway.in_flight() == {}


@pytest.mark.parametrize("status", [200, 400, 404, 409, 413, 422])
def test_an_answer_for_the_caller_is_the_answer(gateway, alice, status):
    error = json.dumps({"error": {"message": "yours", "type": "t", "param": "p", "code": "c"}})
    found = both_first(gateway, alice, lambda _key: Closed().reply(error.encode(), status=status))
    assert {key: tried for key, (tried, *_) in found.items()} == {"a-1": ["a-1"], "a-2": ["a-2"]}
    assert {text for *_, text in found.values()} == {error.encode()}
    assert gateway.router.resting() == []


@pytest.mark.parametrize("error", [BROKEN, UpstreamTimeout("late", retryable=True)])
def test_a_broken_connection_is_tried_elsewhere(gateway, alice, error):
    for key in ("a-1", "a-2"):
        gateway.fakes[key].fail_next(error, method="infer")
        for _ in range(5):
            text_of(ask(gateway, alice, {"model": "a"}))
            gateway.clock.seconds += 1000
        gateway.fakes[key]._failures.clear()
    assert gateway.in_flight() == {}


def test_a_stream_that_breaks_before_its_first_byte_is_tried_elsewhere(gateway, alice):
    closed = Closed()
    found = both_first(
        gateway,
        alice,
        lambda key: (
            closed.reply(error=UpstreamError("gone")) if key == "a-1" else stream_reply({"k": 1})
        ),
    )
    assert list(found) == ["a-2"]
    assert closed.count == len(sent(gateway, "a-1")) > 0
    assert gateway.in_flight() == {}


def test_a_stream_that_breaks_later_breaks_visibly(gateway, alice):
    closed = Closed()
    reply = closed.reply(b"data: 1\n\n", b"data: 2\n\n", error=UpstreamError("gone"))
    gateway.fakes["b-1"].replies.append(reply)
    answer = ask(gateway, alice, {"model": "b"})
    seen = []
    with pytest.raises(UpstreamError, match="gone"):
        for chunk in answer.reply.chunks:
            seen.append(chunk)
    assert seen == [b"data: 1\n\n", b"data: 2\n\n"]
    answer.reply.close()
    answer.reply.close()
    assert closed.count == 1
    assert gateway.in_flight() == {}


def test_the_last_answer_is_relayed_unchanged(gateway, alice):
    replies = {
        key: json.dumps({"error": {"message": f"{key} is ill", "x": [1.50]}}).encode()
        for key in ("a-1", "a-2")
    }
    headers = {"Content-Type": "application/json", "Retry-After": "7", "x-own": "1"}
    for key, text in replies.items():
        gateway.fakes[key].replies.append(Closed().reply(text, status=503, headers=headers))
    answer = ask(gateway, alice, {"model": "a"})
    assert answer.reply.status == 503
    assert answer.reply.headers == headers
    assert text_of(answer) == replies[answer.route.deployment.id]
    assert len(sent(gateway, "a-1")) == len(sent(gateway, "a-2")) == 1


def test_the_last_broken_connection_is_raised(gateway, alice):
    for key in ("a-1", "a-2"):
        gateway.fakes[key].fail_next(BROKEN, method="infer")
    with pytest.raises(UpstreamError, match="broke the connection"):
        ask(gateway, alice, {"model": "a"})
    assert len(sent(gateway, "a-1")) == len(sent(gateway, "a-2")) == 1
    assert gateway.router.resting() == ["a-1", "a-2"]
    assert gateway.in_flight() == {}


@pytest.mark.parametrize(
    ("said", "rests"), [("30", 30), ("0.5", 0.5), ("nan", 5), ("-1", 5), ("soon", 5), (None, 5)]
)
def test_an_upstream_says_how_long_it_rests(gateway, alice, said, rests):
    headers = {} if said is None else {"Retry-After": said}
    gateway.fakes["b-1"].replies.append(Reply(429, headers, iter(())))
    text_of(ask(gateway, alice, {"model": "b"}))
    gateway.clock.seconds += rests - 0.1
    assert gateway.router.resting() == ["b-1"]
    gateway.clock.seconds += 0.2
    assert gateway.router.resting() == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_ours_to_mend(gateway, alice, status):
    closed = Closed()
    secret = b'{"error": {"message": "Incorrect API key provided: sk-secret"}}'
    for key in ("a-1", "a-2"):
        gateway.fakes[key].replies.append(closed.reply(secret, status=status))
    with pytest.raises(UpstreamAuthFailed) as failure:
        ask(gateway, alice, {"model": "a"})
    assert (failure.value.status, failure.value.code) == (502, "upstream_auth_failed")
    assert "sk-secret" not in failure.value.message
    assert closed.count == 1
    assert gateway.in_flight() == {}


def test_a_provider_that_cannot_is_passed_over(database, alice):
    class SomeOnlyStore(FakeProvider):
        def __init__(self, deployment):
            super().__init__(deployment)
            if deployment.id != "a-2":
                only_files = frozenset({Operation.FILES})
                self.operations = only_files  # type: ignore[misc]  # as `local` does it

        def infer(self, operation, *arguments):
            if operation not in self.operations:
                raise self._unsupported(operation)
            return super().infer(operation, *arguments)

    gateway = make_gateway(database, fake=SomeOnlyStore)
    for _ in range(10):
        assert ask(gateway, alice, {"model": "a"}).route.deployment.id == "a-2"
    with pytest.raises(NotSupported):
        ask(gateway, alice, {"model": "b"})


def test_a_bug_in_a_provider_is_counted_out(database, alice):
    class Explodes(FakeProvider):
        def infer(self, operation, body, upstream_model, cancellation, files=NO_FILES):
            raise RuntimeError("a bug")

    gateway = make_gateway(database, fake=Explodes)
    with pytest.raises(RuntimeError):
        ask(gateway, alice, {"model": "a"})
    assert gateway.in_flight() == {}


# In flight, and the client's going away


def test_a_request_is_in_flight_until_its_answer_is_closed(gateway, alice):
    closed = Closed()
    gateway.fakes["b-1"].replies.append(closed.reply(b"1", b"2"))
    answer = ask(gateway, alice, {"model": "b"})
    assert gateway.in_flight() == {"b-1": 1}
    next(answer.reply.chunks)
    for _ in range(3):
        answer.reply.close()
        assert (gateway.in_flight(), closed.count) == ({}, 1)


def test_a_close_that_fails_is_counted_out_all_the_same(gateway, alice):
    def close():
        raise OSError("the socket is gone")

    gateway.fakes["b-1"].replies.append(Reply(200, {}, iter((b"1",)), close))
    answer = ask(gateway, alice, {"model": "b"})
    with pytest.raises(OSError, match="socket"):
        answer.reply.close()
    assert gateway.in_flight() == {}


class Waits(FakeProvider):
    """Waits until it is woken up, as a connection that is shut is."""

    def infer(self, operation, body, upstream_model, cancellation, files=NO_FILES):
        self._called("infer", operation, body, upstream_model)
        woken = threading.Event()
        cancellation.then(woken.set)
        assert woken.wait(5)
        raise UpstreamError("openai broke the connection", retryable=True)


def test_nobody_else_is_tried_once_the_client_has_gone(database, alice):
    gateway = make_gateway(database, fake=Waits)
    cancellation = Cancellation()
    threading.Timer(0.05, cancellation.cancel).start()
    with pytest.raises(UpstreamError):
        ask(gateway, alice, {"model": "a"}, cancellation=cancellation)
    assert gateway.calls() == 1
    assert gateway.in_flight() == {}
    # It was the client who went, not the upstream.
    assert gateway.router.resting() == []


def test_a_refusal_is_not_tried_elsewhere_once_the_client_has_gone(database, alice):
    cancellation = Cancellation()

    class Refuses(FakeProvider):
        def infer(self, operation, body, upstream_model, cancellation, files=NO_FILES):
            self._called("infer", operation, body, upstream_model)
            cancellation.cancel()
            return json_reply({}, 503)

    gateway = make_gateway(database, fake=Refuses)
    answer = ask(gateway, alice, {"model": "a"}, cancellation=cancellation)
    assert (answer.reply.status, gateway.calls()) == (503, 1)
    answer.reply.close()
    assert gateway.in_flight() == {}


# Ids in the reply


def replies_with(gateway, alice, make):
    """What the client sees of a reply that was made with the provider's id, and both ids."""
    file_id = gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    gateway.fakes["b-1"].replies.append(make(raw))
    answer = ask(gateway, alice, chat("b", file_id))
    return answer, raw, file_id


@pytest.mark.parametrize(
    ("said", "is_known"), [(77, True), (None, False), (64 * 1024, True), (64 * 1024 + 1, False)]
)
def test_the_providers_id_does_not_come_back(gateway, alice, said, is_known):
    """The length is that of what the caller gets: known where the answer is short and whole."""
    body = '{"a":[{"file_id":"%s"}], "text":"see %s.", "n":1.50}'
    answer, _, file_id = replies_with(
        gateway,
        alice,
        lambda raw: Closed().reply(*pieces((body % (raw, raw)).encode(), 20), length=said),
    )
    text = text_of(answer)
    assert text.decode() == body % (file_id, file_id)
    assert answer.reply.length == (len(text) if is_known else None)


def pieces(text, size):
    return [text[at : at + size] for at in range(0, len(text), size)]


def test_the_length_stays_where_nothing_is_put_in(gateway, alice):
    gateway.fakes["b-1"].replies.append(Closed().reply(b"{}", length=2))
    answer = ask(gateway, alice, chat("b"))
    assert (answer.reply.length, text_of(answer)) == (2, b"{}")


def test_a_short_answer_that_breaks_is_an_error_and_closed(gateway, alice):
    closed = Closed()
    broken = UpstreamError("openai broke the connection")
    with pytest.raises(UpstreamError, match="broke the connection"):
        replies_with(
            gateway, alice, lambda raw: closed.reply(raw.encode(), error=broken, length=500)
        )
    assert closed.count == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 39, 64])
@pytest.mark.parametrize("kind", ["events", "one line", "ends with the id"])
def test_an_id_across_chunks_is_found(gateway, alice, size, kind):
    written = {
        "events": 'data: {"id":"%s"}\n\ndata: {"t":"file-"}\r\n\r\ndata: "%s"\n\ndata: [DONE]\n\n',
        "one line": '{"a":"%s","b":"file-%s","c":"file-file-"}',
        "ends with the id": "%s or %s",
    }[kind]

    def make(raw):
        text = (written % (raw, raw)).encode()
        return Closed().reply(*pieces(text, size))

    answer, _, file_id = replies_with(gateway, alice, make)
    assert text_of(answer).decode() == written % (file_id, file_id)


@pytest.mark.parametrize("length", [None, 60])
def test_an_event_is_passed_on_as_soon_as_it_is_there(gateway, alice, length):
    held = []

    def make(raw):
        def chunks():
            for event in (f'data: "{raw}"\n\n', 'data: "x"\n\n', "data: [DONE]\n\n"):
                held.append(event)
                yield event.encode()

        return Reply(200, {"Content-Type": "text/event-stream"}, chunks(), length=length)

    answer, _, file_id = replies_with(gateway, alice, make)
    for number, expected in enumerate((f'data: "{file_id}"\n\n', 'data: "x"\n\n'), 1):
        assert next(answer.reply.chunks).decode() == expected
        assert len(held) == number
    answer.reply.close()


def test_a_long_answer_without_a_newline_is_not_held_back(gateway, alice):
    drawn = []

    def make(raw):
        def chunks():
            for number in range(100):
                drawn.append(number)
                yield b"x" * 100_000
            yield raw.encode()

        return Reply(200, {}, chunks())

    answer, _, file_id = replies_with(gateway, alice, make)
    assert len(next(answer.reply.chunks)) == 100_000
    assert len(drawn) == 1
    rest = text_of(answer)
    assert len(rest) == 99 * 100_000 + len(file_id)
    assert rest.endswith(file_id.encode())


def test_an_id_that_only_begins_alike_stays(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    for chunks in ((f'"{raw}2" "{raw}"',), (f'"{raw}', f'2" "{raw}', '"')):
        reply = Closed().reply(*(chunk.encode() for chunk in chunks))
        gateway.fakes["b-1"].replies.append(reply)
        answer = ask(gateway, alice, chat("b", file_id))
        assert text_of(answer).decode() == f'"{raw}2" "{file_id}"'


def test_two_files_come_back_each_as_its_own(gateway, alice):
    one = gateway.upload(alice, names=("b",))
    [raw_one] = gateway.fakes["b-1"].stored
    two = gateway.upload(alice, model="b")
    raw_two = raw_in(two)
    gateway.fakes["b-1"].replies.append(json_reply({"one": raw_one, "two": raw_two}))
    answer = ask(gateway, alice, chat("b", one, two))
    assert json.loads(text_of(answer)) == {"one": one, "two": two}


def test_an_errors_text_has_the_callers_id_too(gateway, alice):
    answer, _, file_id = replies_with(
        gateway, alice, lambda raw: json_reply({"error": {"message": f"no file {raw}"}}, 400)
    )
    assert json.loads(text_of(answer))["error"]["message"] == f"no file {file_id}"


def test_who_sends_a_raw_id_gets_the_bytes_as_they_are(gateway, alice):
    gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    reply = Closed().reply(raw.encode(), headers={"content-length": "9"})
    gateway.fakes["b-1"].replies.append(reply)
    answer = ask(gateway, alice, chat("b", raw))
    assert answer.reply.headers == {"content-length": "9"}
    assert text_of(answer) == raw.encode()

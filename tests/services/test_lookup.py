"""Whose file an id means: everybody's view of every kind of id, and what only looks like one."""

import datetime as dt

import pytest
from sqlalchemy import select, update

from app import ids
from app.db.tables import Copy, File, now
from app.errors import NotFound, NotPermitted, UnknownModel
from app.services.callers import MASTER_OWNER
from app.services.lookup import Held, Unrecorded
from app.services.router import Hints
from tests.conftest import NO_HINTS, make_caller, make_gateway, raw_in


@pytest.fixture
def gateway(database):
    return make_gateway(database)


@pytest.fixture
def people(alice, bob, root, viewer, nobody):
    return {
        "owner": alice,
        "stranger": bob,
        "key without user": nobody,
        "admin": root,
        "viewer": viewer,
        "user called like the admin": make_caller(MASTER_OWNER),
    }


def id_of_every_kind(gateway, owner):
    """Every way to name the owner's files, by what it is called here."""
    unified = gateway.upload(owner, names=("a", "b"))
    of_copy = gateway.raw_id("b-1")
    encoded = gateway.upload(owner, model="b")
    in_encoded = raw_in(encoded)
    raw = gateway.upload(owner, provider="openai")
    return {
        "unified": unified,
        "encoded": encoded,
        "raw": raw,
        "raw of a unified copy": of_copy,
        "encoded of a unified copy": ids.encode_file(of_copy, "b"),
        "raw of an encoded": in_encoded,
        "other encoding": ids.encode_file(in_encoded, "openai/up-b"),
        # There is no such file at that model's account, whatever the id says.
        "forged": ids.encode_file(raw, "a"),
        "forged with an unknown model": ids.encode_file(raw, "no-such-model"),
        "nested": ids.encode_file(encoded, "b"),
    }


def owner_of(gateway, caller, file_id, hints=NO_HINTS):
    found = gateway.lookup.resolve(caller, file_id, hints)
    assert isinstance(found, Held)
    return found.file.owner


def outcome(gateway, caller, file_id, hints=NO_HINTS, **more):
    try:
        found = gateway.lookup.resolve(caller, file_id, hints, **more)
    except (NotFound, NotPermitted) as error:
        return type(error)
    return type(found)


KINDS = (
    "unified",
    "encoded",
    "raw",
    "raw of a unified copy",
    "encoded of a unified copy",
    "raw of an encoded",
    "other encoding",
)
FORGED = ("forged", "forged with an unknown model", "nested")


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("deleting", [False, True])
def test_everybodys_view_of_every_kind_of_id(database, people, hide, deleting):
    gateway = make_gateway(database, hide_foreign_objects=hide)
    known = id_of_every_kind(gateway, people["owner"])
    before = gateway.calls()
    refusal = NotFound if hide else NotPermitted
    for who, caller in people.items():
        for kind in KINDS:
            may = who in ("owner", "admin") or (who == "viewer" and not deleting)
            seen = outcome(gateway, caller, known[kind], deleting=deleting)
            assert seen is (Held if may else refusal), (who, kind)
        for kind in FORGED:
            expected = Unrecorded if who == "admin" else NotFound
            assert outcome(gateway, caller, known[kind], deleting=deleting) is expected, (who, kind)
    assert gateway.calls() == before


def test_an_admin_needs_an_account_that_exists_for_what_has_no_row(gateway, alice, root):
    forged = id_of_every_kind(gateway, alice)["forged with an unknown model"]
    found = gateway.lookup.resolve(root, forged, NO_HINTS)
    with pytest.raises(UnknownModel):
        gateway.lookup.accounts(root, found, NO_HINTS)


def test_hints_beside_an_id_with_a_row_are_ignored(gateway, alice, bob):
    known = id_of_every_kind(gateway, alice)
    nonsense = Hints(
        [("query", "model", ("x", "y")), ("header", "custom_llm_provider", ("no-such-provider",))]
    )
    for kind in KINDS:
        assert outcome(gateway, alice, known[kind], nonsense) is Held
        assert outcome(gateway, bob, known[kind], nonsense) is NotPermitted


def test_the_refusal_has_the_words_of_the_contract(gateway, alice, bob, nobody):
    file_id = gateway.upload(alice)
    with pytest.raises(NotPermitted) as refused:
        gateway.lookup.resolve(bob, file_id, NO_HINTS)
    assert refused.value.message == f"User bob does not have access to the file {file_id}"
    with pytest.raises(NotPermitted, match=r"User key sk-\.\.\."):
        gateway.lookup.resolve(nobody, file_id, NO_HINTS)


def test_a_hidden_file_looks_like_none(database, alice, bob):
    gateway = make_gateway(database, hide_foreign_objects=True)
    foreign = gateway.upload(alice)
    unknown = ids.encode_unified("application/jsonl", ids.new_uuid(), ["a", "b"])
    said = []
    for file_id in (foreign, unknown):
        with pytest.raises(NotFound) as refused:
            gateway.lookup.resolve(bob, file_id, NO_HINTS)
        said.append((refused.value.message.replace(file_id, ""), refused.value.param))
    assert said[0] == said[1]


def test_two_keys_without_user_are_two_nobodies(gateway):
    one, other = make_caller(None), make_caller(None)
    file_id = gateway.upload(one)
    assert outcome(gateway, one, file_id) is Held
    assert outcome(gateway, other, file_id) is NotPermitted


@pytest.mark.parametrize("allow", [False, True])
def test_ids_without_a_row(database, alice, root, viewer, allow):
    gateway = make_gateway(database, allow_unrecorded_ids=allow)
    for file_id in ("file-elsewhere", ids.encode_file("file-elsewhere", "b")):
        assert outcome(gateway, root, file_id) is Unrecorded
        for caller in (alice, viewer):
            assert outcome(gateway, caller, file_id) is (Unrecorded if allow else NotFound)
    assert gateway.calls() == 0


def test_allowing_ids_without_a_row_opens_nobodys_files(database, alice, bob, nobody):
    # Several model names are often one account: under another name the raw id would work there.
    gateway = make_gateway(database, allow_unrecorded_ids=True)
    known = id_of_every_kind(gateway, alice)
    for caller in (bob, nobody):
        for kind in KINDS:
            assert outcome(gateway, caller, known[kind]) is NotPermitted, kind
        assert outcome(gateway, caller, known["forged"]) is NotFound
        assert outcome(gateway, caller, known["forged with an unknown model"]) is NotFound


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    "raw",
    ["gs://b/../key", "gs://b/k?x", "../files", "a/b", "a?b", "a%2fb", "a#b", "é", "a\x00b"],
)
def test_a_forged_id_cannot_carry_a_path(database, alice, root, raw, allow):
    gateway = make_gateway(database, allow_unrecorded_ids=allow)
    for caller in (alice, root):
        assert outcome(gateway, caller, ids.encode_file(raw, "b")) is NotFound
        assert outcome(gateway, caller, raw) is NotFound


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("raw", ["s3://bucket/key", "gs://bucket/key"])
def test_the_address_of_an_object_is_for_admins_only(database, alice, viewer, root, raw, allow):
    gateway = make_gateway(database, allow_unrecorded_ids=allow)
    for handed in (raw, ids.encode_file(raw, "b")):
        for caller in (alice, viewer):
            assert outcome(gateway, caller, handed) is NotFound
        assert outcome(gateway, root, handed) is Unrecorded
    assert gateway.calls() == 0


@pytest.mark.parametrize("text", ["", "\x00", "\ud800", "x" * 100_000, "é", "file-1'; DROP--"])
def test_nonsense_is_not_found(gateway, root, text):
    with pytest.raises(NotFound) as refused:
        gateway.lookup.resolve(root, text, NO_HINTS)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("caller", ["alice", "root"])
def test_no_flipped_character_finds_the_file(database, request, caller):
    gateway = make_gateway(database)
    owner = request.getfixturevalue("alice")
    caller = request.getfixturevalue(caller)
    known = id_of_every_kind(gateway, owner)
    for kind in ("unified", "encoded"):
        issued = known[kind]
        for at in range(0, len(issued), 3):
            new = "A" if issued[at] != "A" else "B"
            assert outcome(gateway, caller, issued[:at] + new + issued[at + 1 :]) is not Held


def test_a_unified_id_with_other_names_is_another_id(gateway, alice):
    issued = gateway.upload(alice, names=("a",))
    meaning = ids.decode(issued)
    assert isinstance(meaning, ids.UnifiedId)
    uuid = meaning.file_uuid
    for forged in (
        ids.encode_unified("application/jsonl", uuid, ["a", "b"]),
        ids.encode_unified("text/plain", uuid, ["a"]),
    ):
        assert outcome(gateway, alice, forged) is NotFound
    assert ids.encode_unified("application/jsonl", uuid, ["a"]) == issued


def test_an_id_outlives_its_model_name(database, alice, bob):
    encoded = make_gateway(database).upload(alice, model="b")
    later = make_gateway(database, deployments=[])
    assert outcome(later, alice, encoded) is Held
    assert outcome(later, bob, encoded) is NotPermitted


@pytest.mark.parametrize("state", ["uploading", "failed", "deleting", "deleted"])
def test_what_is_not_ready_is_not_found(gateway, alice, root, bob, state):
    known = id_of_every_kind(gateway, alice)
    with gateway.database.write() as session:
        session.execute(update(File).values(state=state))
    for kind in KINDS:
        for caller in (alice, root):
            assert outcome(gateway, caller, known[kind]) is NotFound
            seen = outcome(gateway, caller, known[kind], deleting=True)
            assert seen is (Held if state == "deleting" else NotFound)
        assert outcome(gateway, bob, known[kind]) is NotPermitted


def test_an_expired_file_can_only_be_deleted(gateway, alice):
    file_id = gateway.upload(alice)
    with gateway.database.write() as session:
        session.execute(update(File).values(expires_at=now() - dt.timedelta(seconds=1)))
    assert outcome(gateway, alice, file_id) is NotFound
    assert outcome(gateway, alice, file_id, deleting=True) is Held


def test_one_provider_id_of_two_accounts_is_everybodys_own(database, alice, bob, root):
    accounts = (
        make_gateway(database).settings.file_accounts[0],
        make_gateway(database).settings.deployments[1],
    )
    gateway = make_gateway(database, deployments=(), accounts=accounts)
    mine = gateway.upload(alice, provider="openai")
    other = gateway.upload(bob, provider="azure")
    with gateway.database.write() as session:
        [file] = session.scalars(select(File).where(File.owner == bob.owner))
        file.public_id = mine
        session.execute(
            update(Copy).where(Copy.deployment_file_id == other).values(deployment_file_id=mine)
        )
    for who in (alice, bob):
        assert owner_of(gateway, who, mine) == who.owner
    hints = Hints([("query", "custom_llm_provider", ("azure",))])
    assert owner_of(gateway, root, mine, hints) == bob.owner

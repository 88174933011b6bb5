"""Ids: the worked examples of the contract both ways, and what nobody can have issued."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import ids
from app.ids import EncodedId, RawId, UnifiedId

SEED = (
    "bGl0ZWxsbV9wcm94eTphcHBsaWNhdGlvbi9vY3RldC1zdHJlYW07dW5pZmllZF9pZCwyYTgzOWIyYS03YzI1LTRiNTUt"
    "YTUxYS1lZjdhODljNzZkMzU7dGFyZ2V0X21vZGVsX25hbWVzLGdwdC00by1iYXRjaA"
)
SEED_UUID = "2a839b2a-7c25-4b55-a51a-ef7a89c76d35"
ENCODED = "file-bGl0ZWxsbTpmaWxlLWFiYzEyMzttb2RlbCxncHQtNG8tbGl0ZWxsbQ"
# Two names, so that the base64 has all of `-`, `_` and an end that would be padded.
UNIFIED = ids.encode_unified("text/ÿ?>", SEED_UUID, ["gpt", "öäü?>~"])


def b64(text: str | bytes) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def test_the_seeds_unified_id_both_ways():
    found = ids.decode(SEED)
    assert found == UnifiedId(SEED_UUID, "application/octet-stream", ("gpt-4o-batch",))
    assert ids.encode_unified("application/octet-stream", SEED_UUID, ["gpt-4o-batch"]) == SEED


def test_the_contracts_encoded_id_both_ways():
    assert ids.decode(ENCODED) == EncodedId("file-abc123", "gpt-4o-litellm")
    assert ids.encode_file("file-abc123", "gpt-4o-litellm") == ENCODED


def test_litellms_longer_form_is_understood():
    text = base64.urlsafe_b64decode(SEED + "=" * (-len(SEED) % 4)).decode()
    longer = b64(f"{text};llm_output_file_id,file-9;llm_output_file_model_id,dep-1")
    found = ids.decode(longer)
    assert isinstance(found, UnifiedId)
    assert (found.raw, found.deployment) == ("file-9", "dep-1")


@pytest.mark.parametrize("raw", ["file-abc123", "a", "_x", "-x", "2026.1:x", "file-" + "a" * 4091])
def test_a_providers_own_id_is_raw(raw):
    assert ids.decode(raw) == RawId(raw)
    assert ids.is_raw(raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a..b",
        "../../etc/passwd",
        "file-1/content",
        "file-1%2f..",
        "file-1?x=1",
        "file-1#x",
        "file-1\n",
        "\x00",
        "file-\x00",
        "ﬁle-1",
        "file-\ud800",
        " file-1",
        "file-1 ",
        "a" * 4097,
    ],
)
def test_what_cannot_stand_in_a_path_is_no_id(text):
    assert ids.decode(text) is None
    assert not ids.is_raw(text)


@pytest.mark.parametrize("issued", [SEED, UNIFIED])
@pytest.mark.parametrize("padding", ["=", "==", "%3D"])
def test_padding_is_refused(issued, padding):
    assert ids.decode(issued + padding) is None


@pytest.mark.parametrize("issued", [UNIFIED, ids.encode_file("file->>>???", "ööö")])
def test_the_other_alphabet_is_refused(issued):
    prefix = "file-" if issued.startswith("file-") else ""
    other = issued.removeprefix(prefix).replace("-", "+").replace("_", "/")
    assert prefix + other != issued
    assert ids.decode(prefix + other) is None


@pytest.mark.parametrize("issued", [SEED, UNIFIED, ENCODED])
def test_no_flipped_character_means_the_same(issued):
    meant = ids.decode(issued)
    alphabet = string.ascii_letters + string.digits + "-_"
    for at, was in enumerate(issued):
        for new in {alphabet[(alphabet.index(was) + step) % 64] for step in (1, 2, 16, 32)}:
            assert ids.decode(issued[:at] + new + issued[at + 1 :]) != meant


def test_bits_that_base64_does_not_use_must_be_zero():
    # The last character of this one carries four bits of nothing.
    assert len(ids.encode_file("file-1", "m").removeprefix("file-")) % 4 == 2
    issued = ids.encode_file("file-1", "m")
    last = issued[-1]
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    sloppy = issued[:-1] + alphabet[alphabet.index(last) + 1]
    assert ids.decode(issued) == EncodedId("file-1", "m")
    assert ids.decode(sloppy) == RawId(sloppy)


def test_four_kilobytes_and_no_more():
    fitting = ids.encode_file("f" * (3 * (4096 - 5) // 4 - len("litellm:;model,m")), "m")
    assert 4090 < len(fitting) <= 4096
    assert isinstance(ids.decode(fitting), EncodedId)
    assert ids.decode(ids.encode_file("f" * 3100, "m")) is None
    assert ids.decode(ids.encode_unified("a/b", SEED_UUID, ["n" * 4000])) is None


def test_an_id_inside_an_id_is_opened_once():
    nested = ids.encode_file(ENCODED, "outer")
    assert ids.decode(nested) == EncodedId(ENCODED, "outer")
    assert ids.decode(ids.encode_file(SEED, "m")) == EncodedId(SEED, "m")
    assert ids.decode(b64(SEED)) == RawId(b64(SEED))
    assert ids.decode("file-" + SEED) == RawId("file-" + SEED)


@pytest.mark.parametrize(
    "text",
    [
        "litellm_proxy:a/b;unified_id,not-a-uuid;target_model_names,m",
        f"litellm_proxy:a/b;unified_id,{SEED_UUID.upper()};target_model_names,m",
        f"litellm_proxy:a/b;unified_id,{SEED_UUID}",
        f"litellm_proxy:a/b;unified_id,{SEED_UUID};target_model_names,m;more",
        f"litellm_proxy:a/b;c;unified_id,{SEED_UUID};target_model_names,m",
        f"litellm_proxy:a/b;unified_id,{SEED_UUID};target_model_names,m;llm_output_file_id,x",
    ],
)
def test_what_only_begins_like_a_unified_id_is_nobodys(text):
    assert ids.decode(b64(text)) is None


@pytest.mark.parametrize(
    "text",
    ["litellm:file-1", "litellm:;model,m", "litellm:x;model,", "litellm:x;model,a,b", "LITELLM:x"],
)
def test_what_only_begins_like_an_encoded_id_is_raw(text):
    assert ids.decode("file-" + b64(text)) == RawId("file-" + b64(text))


@pytest.mark.parametrize("control", ["\x00", "\n", "\x7f"])
def test_no_id_hides_a_control_character(control):
    # PostgreSQL refuses a null byte as a value: the forged id would look like an outage.
    assert ids.decode(ids.encode_file(f"file-1{control}", "m")) is None
    assert ids.decode(ids.encode_file("file-1", f"m{control}")) is None
    assert ids.decode(ids.encode_unified(f"a/b{control}", SEED_UUID, ["m"])) is None
    # A provider's own id may be anything, read as base64.
    assert ids.decode("file-" + b64(f"abc{control}")) == RawId("file-" + b64(f"abc{control}"))


def test_bytes_that_are_no_utf8_are_raw():
    text = "file-" + b64(b"litellm:\xff;model,m")
    assert ids.decode(text) == RawId(text)


def test_every_new_id_is_another():
    assert len({ids.new_uuid() for _ in range(100)}) == 100
    assert isinstance(ids.decode(ids.encode_unified("a/b", ids.new_uuid(), ["m"])), UnifiedId)


plain = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters=";,"), min_size=1, max_size=40
)


@given(raw=plain, model=plain)
def test_encoded_ids_come_back(raw, model):
    assert ids.decode(ids.encode_file(raw, model)) == EncodedId(raw, model)


@given(mime=plain, uuid=st.uuids(version=4), names=st.lists(plain, max_size=5))
def test_unified_ids_come_back(mime, uuid, names):
    issued = ids.encode_unified(mime, str(uuid), names)
    assert ids.decode(issued) == UnifiedId(str(uuid), mime, tuple(names))


@given(st.text(max_size=200))
def test_no_text_breaks_the_decoder(text):
    found = ids.decode(text)
    assert found is None or ids.is_raw(text)


# fmt: off
pieces = [
    "file-", "batch_", "gs://", "gs%3A%2F%2F", "%25", "%", "%2e", "..", "/", "://", "litellm:",
    "litellm_proxy:", "litellm_proxy;", ";model,", ";unified_id,", ";target_model_names,",
    ";llm_output_file_id,", "model_id:", ";llm_batch_id:",
]
# fmt: on
hostile = st.lists(
    st.sampled_from([*pieces, SEED_UUID, "\0", "\n", "\ud800", "é"]) | st.text(max_size=4),
    max_size=8,
).map("".join)


@given(hostile, st.sampled_from(["", "file-", "batch_"]), st.booleans())
def test_hostile_pieces_are_an_id_or_nobodys(text, prefix, is_packed):
    sent = prefix + (b64(text.encode("utf-8", "surrogatepass")) if is_packed else text)
    found = ids.decode(sent)
    if isinstance(found, RawId):
        assert ids.is_raw(found.raw) or ids.is_address(found.raw)
        assert ".." not in found.raw
    elif isinstance(found, EncodedId):
        assert ids.encode_file(found.raw, found.model) == sent
    for kind in ("batch", "fine_tuning"):
        job = ids.decode_job(kind, sent)
        assert job is None or not isinstance(job, RawId) or ids.is_raw(job.raw)


@given(st.binary(max_size=60))
def test_any_bytes_in_base64_are_an_id_or_nobodys(content):
    sent = "file-" + b64(content)
    found = ids.decode(sent)
    assert found is None or isinstance(found, EncodedId) or found == RawId(sent)


@given(st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=200))
def test_what_decodes_was_encoded_exactly_so(text):
    found = ids.decode(text)
    if isinstance(found, EncodedId):
        assert ids.encode_file(found.raw, found.model) == text
    elif isinstance(found, UnifiedId) and found.raw is None:
        names = found.target_model_names
        assert ids.encode_unified(found.mime_type, found.file_uuid, names) == text

"""Ids of batches and fine-tuning jobs: what is issued, what decodes, what nobody can have sent."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import ids
from app.ids import EncodedId, RawId, UnifiedJobId, decode_job

UUID = "2a839b2a-7c25-4b55-a51a-ef7a89c76d35"


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("batch", f"litellm_proxy;model_id:d-1;llm_batch_id:{UUID}"),
        ("fine_tuning", f"litellm_proxy;model_id:d-1;generic_response_id:{UUID}"),
    ],
)
def test_a_unified_id_is_the_contracts(kind, text):
    made = ids.encode_unified_job(kind, "d-1", UUID)
    assert made == encoded(text)
    assert decode_job(kind, made) == UnifiedJobId("d-1", UUID)


def test_an_encoded_batch_id_is_the_contracts():
    made = ids.encode_batch("batch_abc-123", "gpt-4o-litellm")
    assert made == "batch_" + encoded("litellm:batch_abc-123;model,gpt-4o-litellm")
    assert decode_job("batch", made) == EncodedId("batch_abc-123", "gpt-4o-litellm")


def test_litellms_own_ids_have_the_upstreams_id_inside():
    text = "litellm_proxy;model_id:d-1;llm_batch_id:batch_abc"
    assert decode_job("batch", encoded(text)) == UnifiedJobId("d-1", "batch_abc")


@pytest.mark.parametrize("raw", ["batch_abc-1", "ftjob-1", "7", "a.b:c_d-e", "batch_" + "f" * 300])
@pytest.mark.parametrize("kind", ["batch", "fine_tuning"])
def test_a_providers_own_id_is_raw(kind, raw):
    assert decode_job(kind, raw) == RawId(raw)


def test_an_id_of_one_type_is_not_one_of_the_other():
    batch = ids.encode_unified_job("batch", "d-1", UUID)
    job = ids.encode_unified_job("fine_tuning", "d-1", UUID)
    assert decode_job("fine_tuning", batch) is None
    assert decode_job("batch", job) is None
    # Fine-tuning jobs have no encoded ids.
    assert isinstance(decode_job("fine_tuning", ids.encode_batch("b-1", "m")), RawId)


@pytest.mark.parametrize(
    "sent",
    [
        "",
        ".",
        "..",
        "../files",
        "a/b",
        "a?b=c",
        "a#b",
        "a%2fb",
        "a b",
        "a\n",
        "\0",
        "ä",
        "a..b",
        ".a",
        "a" * 4097,
        encoded("litellm_proxy;model_id:d-1;llm_batch_id:"),
        encoded("litellm_proxy;model_id:d-1"),
        encoded("litellm_proxy;model_id:d;1;llm_batch_id:x"),
        encoded(f"litellm_proxy;model_id:d-1;llm_batch_id:{UUID};more"),
        encoded(f"litellm_proxy;model_id:d-1;other_id:{UUID}"),
        encoded("litellm_proxy;model_id:d-1;llm_batch_id:a\0b"),
        encoded("litellm_proxy;model_id:d\n1;llm_batch_id:ab"),
        "batch_" + encoded("litellm:a\0b;model,gpt"),
        "batch_" + encoded("litellm:ab;model,gpt\x7f"),
    ],
)
def test_nobody_can_have_issued_it(sent):
    assert decode_job("batch", sent) is None


def test_an_id_with_padding_or_another_alphabet_is_not_ours():
    made = ids.encode_unified_job("batch", "d?>", UUID)
    assert "-" in made or "_" in made or len(made) % 4
    assert decode_job("batch", made + "=") is None
    other = made.replace("-", "+").replace("_", "/")
    assert other == made or decode_job("batch", other) is None


def test_the_last_characters_spare_bits_make_no_second_id():
    made = ids.encode_unified_job("batch", "d-11", UUID)
    assert len(made) % 4, "this one has spare bits"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = made[:-1] + alphabet[alphabet.index(made[-1]) + 1]
    assert not isinstance(decode_job("batch", twin), UnifiedJobId)


names = st.text(min_size=1, max_size=40).filter(
    lambda text: all(c not in ";," and c >= " " and c != "\x7f" for c in text)
)


@given(raw=st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_:-]{0,60}", fullmatch=True), name=names)
def test_what_was_encoded_decodes(raw, name):
    name = name.encode("utf-8", "replace").decode()
    assert decode_job("batch", ids.encode_batch(raw, name)) == EncodedId(raw, name)
    assert decode_job("batch", ids.encode_unified_job("batch", name, raw)) == UnifiedJobId(
        name, raw
    )


@given(st.text(max_size=80))
def test_whatever_is_sent_there_is_an_answer(sent):
    for kind in ("batch", "fine_tuning"):
        found = decode_job(kind, sent)
        assert found is None or isinstance(found, RawId | EncodedId | UnifiedJobId)
        packed = decode_job(kind, "batch_" + encoded(sent.encode("utf-8", "replace").decode()))
        assert packed is None or isinstance(packed, RawId | EncodedId | UnifiedJobId)

"""Addresses as file ids: for admins, however often they were escaped, and for nobody else."""

import time
from urllib.parse import quote

import pytest

from app import ids
from app.api.uri_ids import escaping

ADDRESS = "gs://bucket-1/manifold/0123"


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_an_address_is_one_id_however_often_it_was_escaped(times):
    text = ADDRESS
    for _ in range(times):
        text = quote(text, safe="")
    assert ids.decode(text) == ids.RawId(ADDRESS)


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/../secret",
        "gs://bucket/a/..",
        "gs://bucket/./a",
        "gs://bucket",
        "gs://bucket/",
        "gs:///object",
        "gs://bucket/a?x=1",
        "gs://bucket/a#b",
        "gs://bucket/a\nb",
        "gs://bucket/a b",
        "gs%3A%2F%2Fbucket%2F..%2Fsecret",
        "gs%3A%2F%2Fbucket%2F%00",
        "gs%ZZbucket",
        "gs%",
        "a/b",
    ],
)
def test_what_is_no_address_is_nobodys_id(text):
    assert ids.decode(text) is None


def test_a_huge_id_is_refused_at_once():
    begun = time.perf_counter()
    assert ids.decode("gs%3A%2F%2F" + "%25" * 700_000) is None
    assert time.perf_counter() - begun < 0.05


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/v1/files/gs://b/o", "/v1/files/gs%3A%2F%2Fb%2Fo"),
        ("/v1/files/gs:/b/o", "/v1/files/gs%3A%2F%2Fb%2Fo"),
        ("/v1/files/gs://b/o/p/content", "/v1/files/gs%3A%2F%2Fb%2Fo%2Fp/content"),
        ("/v1/files/gs%3A%2F%2Fb%2Fo", "/v1/files/gs%3A%2F%2Fb%2Fo"),
        ("/v1/files/file-1/content", "/v1/files/file-1/content"),
        ("/v1/batches/gs://b/o", "/v1/batches/gs://b/o"),
    ],
)
def test_a_path_has_one_part_for_it(path, seen):
    found = []

    def app(environ, _start):
        found.append(environ["PATH_INFO"])
        return []

    escaping(app)({"PATH_INFO": path}, None)
    assert found == [seen]


@pytest.mark.parametrize(
    "path", ["gs%3A%2F%2Fbucket%2Fobject", "gs%253A%252F%252Fbucket%252Fobject"]
)
@pytest.mark.parametrize("rest", ["", "/content"])
def test_only_an_admin_may_name_an_address(gateway, alice, root, path, rest):
    where = f"/v1/files/{path}{rest}?custom_llm_provider=openai"
    before = gateway.calls()
    assert alice.get(where).status_code == 404
    assert gateway.calls() == before
    assert root.get(where).status_code == 404
    assert gateway.calls() > before, "the provider was asked, and has no such file"

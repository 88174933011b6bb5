"""Vertex AI: the provider contract against a storage emulator that others wrote, and addresses."""

import contextlib
import datetime as dt
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import responses
from marshmallow import ValidationError

from app.errors import InvalidRequest, NotFound, NotSupported
from app.providers.google.credentials import Credentials
from app.providers.protocol import Attempt, Operation
from app.providers.registry import open_all
from app.providers.vertex_ai import VertexAI, VertexParams
from app.transfers import Cancellation
from tests.builders import make_deployment, make_place, make_upload
from tests.google_fake.vertex import Vertex
from tests.providers.contract import EVERY_BYTE, FilesContract, read
from tests.providers.google.vertex_account import VertexAccount
from tests.providers.google_jobs_contract import GoogleJobsContract

BUCKET = "bucket-1"
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Iterator[str]:
    """The address of a storage emulator with one bucket, as a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("gcp-storage-emulator")),
        "start",
        "--host=127.0.0.1",
        f"--port={port}",
        "--in-memory",
        f"--default-bucket={BUCKET}",
    ]
    address = f"http://127.0.0.1:{port}"
    with (
        (tmp_path_factory.mktemp("emulator") / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + 60
            while True:
                with contextlib.suppress(requests.ConnectionError):
                    if requests.get(f"{address}/storage/v1/b/{BUCKET}", timeout=5).ok:
                        break
                is_up = process.poll() is None and time.monotonic() < end
                assert is_up, "the emulator did not start"
                time.sleep(0.05)
            yield address
        finally:
            # Nothing of it is kept, and asked to end it may wait for connections.
            process.kill()


@pytest.fixture(autouse=True)
def _no_google(monkeypatch):
    """No test asks Google for a token, and the machine's environment has no say."""
    monkeypatch.setattr(Credentials, "headers", lambda self: {"Authorization": "Bearer t"})
    for name in ("STORAGE_EMULATOR_HOST", "GCS_BUCKET_NAME", "GCS_BATCH_BUCKET_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("VERTEXAI_PROJECT", "VERTEXAI_LOCATION", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def make(**params) -> VertexAI:
    params = {"vertex_project": "p", "gcs_bucket_name": BUCKET, **params}
    upstream_model = params.pop("upstream_model", "gemini-2.5-flash")
    deployment = make_deployment(
        provider="vertex_ai", upstream_model=upstream_model, params=params, max_retries=1
    )
    return VertexAI(deployment, make_place())


def make_empty(emulator: str) -> VertexAI:
    """An account whose bucket is the emulator's, with nothing in it."""
    listed = requests.get(f"{emulator}/storage/v1/b/{BUCKET}/o", timeout=5).json()
    for item in listed.get("items", []):
        name = item["name"].replace("/", "%2F")
        requests.delete(f"{emulator}/storage/v1/b/{BUCKET}/o/{name}", timeout=5)
    return make(gcs_api_base=emulator)


class TestContract(FilesContract):
    """On the emulator, which has no ranges that count from the end and refuses none."""

    unknown_id = KEY

    @pytest.mark.parametrize(
        ("byte_range", "start", "end"),
        [("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=1200-", 1200, 1280)],
    )
    def test_a_part_can_be_read(self, provider, byte_range, start, end):
        super().test_a_part_can_be_read(provider, byte_range, start, end)

    def test_a_part_behind_the_end_is_refused(self, provider):
        stored = provider.upload(make_upload(b"12345"))
        assert read(provider.content(stored.id, "bytes=3-")) == b"45"

    @pytest.fixture
    def provider(self, emulator: str) -> VertexAI:
        return make_empty(emulator)


class TestJobs(GoogleJobsContract):
    """Files on the emulator, jobs in memory."""

    @pytest.fixture
    def provider(self, emulator: str) -> Iterator[VertexAI]:
        made = make_empty(emulator)
        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            mock.add_passthru(emulator)
            account = VertexAccount(mock)
            account.made_at = lambda _number: dt.datetime.now(dt.UTC).isoformat()
            yield made


class TestContractOnTheFake(FilesContract):
    """On a fake that is as strict as the real one's pages, with ranges, over `responses`."""

    unknown_id = KEY

    @pytest.fixture
    def provider(self) -> Iterator[VertexAI]:
        fake = Vertex("", "", project="p", bucket=BUCKET)
        fake.tokens["t"] = time.time() + 600

        def answer(request):
            where = urlsplit(request.url)
            body = request.body
            content = body if isinstance(body, bytes) else (body.read() if body else b"")
            headers = dict(request.headers)
            return fake.handle(request.method, where.path, where.query, headers, content)

        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            for method in ("GET", "POST", "PUT", "DELETE"):
                mock.add_callback(method, re.compile("http://storage/.*"), answer)
            yield make(gcs_api_base="http://storage")


class TestFiles:
    @pytest.fixture
    def provider(self, emulator: str) -> VertexAI:
        return make(gcs_api_base=emulator)

    def test_a_file_of_several_chunks_comes_back_byte_for_byte(self, provider):
        content = EVERY_BYTE * 15_000
        assert len(content) > 2 * 8 * 1024 * 1024
        stored = provider.upload(make_upload(content))
        assert read(provider.content(stored.id)) == content

    def test_what_an_attempt_has_stored_is_known_by_its_key(self, provider):
        upload = make_upload(b"content")
        assert list(provider.attempted(Attempt(KEY, "f", "user_data", 7, 0))) == []
        stored = provider.upload(upload.__class__(**{**vars(upload), "key": KEY}))
        assert stored.id == KEY
        assert list(provider.attempted(Attempt(KEY, "f", "user_data", 7, 0))) == [stored]

    def test_its_name_shows_that_a_gateway_made_it(self, provider):
        assert provider.is_ours(provider.upload(make_upload()).id)
        for other in ("123-output", "gs://bucket/litellm-vertex-files/x", "manifold/x", ""):
            assert not provider.is_ours(other)

    def test_a_batch_file_is_the_callers_own_with_its_rows_beside_it(self, provider, emulator):
        original = make_upload(b'{"custom_id": "1"}\n', purpose="batch")
        rows = make_upload(b'{"request": {}}\n', purpose="batch")
        sent = rows.__class__(
            **{**vars(rows), "original": original, "model": "gemini-2.5-flash", "key": "a" * 32}
        )
        stored = provider.upload(sent)
        assert read(provider.content(stored.id)) == b'{"custom_id": "1"}\n'
        assert stored.id in [file.id for file in provider.files("batch")]
        names = _names(emulator)
        assert {f"manifold/{stored.id}", f"manifold/{stored.id}.rows"} <= names
        provider.delete(stored.id)
        assert not {name for name in _names(emulator) if stored.id in name}

    def test_a_batch_file_that_was_cut_off_between_its_objects_is_not_whole(self, provider):
        original = make_upload(b"{}", purpose="batch")
        stored = provider.upload(original)
        told = provider.retrieve(stored.id)
        assert (told.status, told.status_details) == ("error", "its rows are missing")

    def test_an_admins_address_is_understood_inside_the_gateways_own_places(self, provider):
        stored = provider.upload(make_upload(b"content"))
        assert read(provider.content(f"gs://{BUCKET}/manifold/{stored.id}")) == b"content"
        for foreign in (
            f"gs://other/manifold/{stored.id}",
            f"gs://{BUCKET}/secret",
            f"gs://{BUCKET}/manifold/../secret",
            f"{stored.id}/../x",
        ):
            with pytest.raises(NotFound):
                provider.content(foreign)

    def test_strangers_objects_are_not_listed(self, provider, emulator):
        requests.post(
            f"{emulator}/upload/storage/v1/b/{BUCKET}/o",
            params={"uploadType": "media", "name": "manifold/not-ours.txt"},
            data=b"x",
            headers={"Content-Type": "text/plain"},
            timeout=5,
        ).raise_for_status()
        assert "not-ours.txt" not in [file.filename for file in provider.files()]


def _names(emulator: str) -> set[str]:
    listed = requests.get(f"{emulator}/storage/v1/b/{BUCKET}/o", timeout=5).json()
    return {item["name"] for item in listed.get("items", [])}


def test_deployments_of_one_bucket_see_the_same_files():
    first = make(vertex_location="europe-west4")
    assert first.account == make(vertex_location="us-east1").account
    assert first.account != make(gcs_bucket_name="another").account
    assert make(gcs_bucket_name=None).account != first.account


def test_without_a_bucket_files_are_refused_naming_the_setting():
    with pytest.raises(NotSupported, match="gcs_bucket_name") as refused:
        make(gcs_bucket_name=None).upload(make_upload())
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("params", "host", "path"),
    [
        ({}, "us-central1-aiplatform.googleapis.com", "/v1/projects/p/locations/us-central1"),
        (
            {"vertex_location": "europe-west4"},
            "europe-west4-aiplatform.googleapis.com",
            "/v1/projects/p/locations/europe-west4",
        ),
        (
            {"vertex_location": "global"},
            "aiplatform.googleapis.com",
            "/v1/projects/p/locations/global",
        ),
        (
            {"vertex_location": "eu"},
            "aiplatform.eu.rep.googleapis.com",
            "/v1/projects/p/locations/eu",
        ),
        (
            {"api_version": "v1beta1"},
            "us-central1-aiplatform.googleapis.com",
            "/v1beta1/projects/p/locations/us-central1",
        ),
        (
            {"api_base": "http://proxy:8080/vertex/"},
            "proxy:8080",
            "/vertex/v1/projects/p/locations/us-central1",
        ),
        (
            {"api_base": "http://proxy:8080/v1beta1", "vertex_location": "global"},
            "proxy:8080",
            "/v1beta1/projects/p/locations/global",
        ),
        (
            {
                "vertex_project": None,
                "api_base": "https://h/v1/projects/q/locations/l/publishers/google/models/m",
            },
            "h",
            "/v1/projects/q/locations/l",
        ),
    ],
)
def test_hosts_and_paths(params, host, path, responses_calls):
    """Source: upstream facts of Vertex AI, hosts and resource names; complaint V-01."""
    provider = make(**params)
    asked = responses_calls(lambda: provider.retrieve_batch("1"))
    assert asked == f"{'http' if 'proxy' in host else 'https'}://{host}{path}/batchPredictionJobs/1"


@pytest.mark.parametrize(
    ("model", "resource"),
    [
        ("gemini-2.5-flash", "publishers/google/models/gemini-2.5-flash"),
        ("gemini/gemini-2.5-flash", "publishers/google/models/gemini-2.5-flash"),
        ("1234567890", "endpoints/1234567890"),
        ("endpoints/1234567890", "endpoints/1234567890"),
        ("publishers/google/models/x@001", "publishers/google/models/x@001"),
    ],
)
def test_a_models_place(model, resource, responses_calls):
    provider = make(upstream_model=model)
    asked = responses_calls(lambda: _chat(provider, model))
    assert asked.endswith(f"/v1/projects/p/locations/us-central1/{resource}:generateContent")


def test_an_address_that_names_a_tuned_endpoint_is_where_the_model_is(responses_calls):
    base = "https://h/v1/projects/9/locations/l/endpoints/77"
    provider = make(api_base=base, upstream_model="mine")
    assert responses_calls(lambda: _chat(provider, "mine")) == f"{base}:generateContent"


@pytest.mark.parametrize("model", ["../x", "a b", "", "a?b", "a/../b", "a#b"])
def test_what_is_no_models_name_is_refused(model):
    with pytest.raises(InvalidRequest):
        _chat(make(upstream_model="*"), model)


def test_the_surface_for_openais_clients_is_used_where_it_is_wanted(responses_calls):
    provider = make(openai_compatible=True)
    asked = responses_calls(lambda: _chat(provider, "gemini-2.5-flash"))
    assert asked.endswith("/locations/us-central1/endpoints/openapi/chat/completions")


def _chat(provider: VertexAI, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    reply = provider.infer(Operation.CHAT, json.dumps(body).encode(), model, Cancellation())
    reply.close()


@pytest.fixture
def responses_calls(monkeypatch):
    """Do something, and say which address it asked first."""

    def run(act) -> str:
        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            for method in ("GET", "POST"):
                mock.add(
                    method,
                    re.compile(".*"),
                    json={"error": {"code": 404, "message": "no", "status": "NOT_FOUND"}},
                    status=404,
                )
            with contextlib.suppress(NotFound):
                act()
            return str(mock.calls[0].request.url)

    return run


def test_parameters_that_are_left_out_come_from_the_account_of_files_settings():
    account = make_deployment(
        "account",
        model_name=None,
        provider="vertex_ai",
        params={"vertex_project": "q", "gcs_bucket_name": "shared", "api_base": "http://no"},
    )
    deployment = make_deployment("d", provider="vertex_ai", params={"vertex_location": "global"})
    found = open_all((deployment,), (account,), make_place())["d"]
    assert found.params["gcs_bucket_name"] == "shared"
    assert found.params["vertex_project"] == "q"
    assert found.params["api_base"] is None, "an address is not shared"


@pytest.mark.parametrize(
    "params",
    [
        {"vertex_credentials": "{not json"},
        {"vertex_credentials": "{}"},
        {"vertex_credentials": 7},
        {"gcs_bucket_name": "../x"},
        {"vertex_location": "a/b"},
        {"api_base": "ftp://x"},
        {"api_version": "v3"},
        {"vertex_projekt": "p"},
    ],
)
def test_mistakes_in_parameters_are_found_at_the_start(params):
    with pytest.raises(ValidationError) as found:
        VertexParams().load(params)
    assert "not json" not in str(found.value)

"""Fine-tuning as people use it: the documentation's example, every field, every call, its model."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.e2e.asking import ask, echo
from tests.e2e.batching import JOBS, QUICK, bytes_at, job_ended, posts, raw_ids, upload
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Seeds, Upstream, model, seeds, wait_until
from tests.e2e.test_seeds import Way
from tests.e2e.upstream_jobs import training_rows

MASTER = "sk-1234"


@pytest.fixture(autouse=True)
def _nothing_strange(upstream: Upstream) -> Iterator[None]:
    yield
    assert not upstream.unexpected()


# -------------------------------------------------------------------- the documentation's example


@pytest.fixture(scope="module")
def accounts(upstream: Upstream) -> Seeds:
    return seeds(upstream, job_delay_s=0)


@pytest.fixture(scope="module")
def seeds_gateway(accounts: Seeds, start_gateway: StartGateway) -> Gateway:
    config = {
        **accounts.config,
        "model_list": [
            *accounts.config["model_list"],
            model("gpt-4.1-openai", "openai/gpt-4.1", accounts.mini),
        ],
        "finetune_settings": [{"custom_llm_provider": "openai", **accounts.litellm.params}],
        "general_settings": {"master_key": MASTER, **QUICK},
    }
    return start_gateway(config, workers=1)


@pytest.fixture(
    params=[(False, False), (False, True), (True, False), (True, True)],
    ids=["sync", "sync v1", "async", "async v1"],
)
def way(
    request: pytest.FixtureRequest,
    seeds_gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Way:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Path("fine_tuning.jsonl").write_bytes(training_rows(10))
    return Way(seeds_gateway, *request.param)


def test_the_documentation_s_example_goes_on_to_a_job(way, accounts):
    key = way.gateway.new_user(models=["gpt-4.1-openai"])["key"]
    names = way.run(
        """
        from openai import OpenAI

        client = OpenAI(
            base_url="http://0.0.0.0:4000",
            api_key="sk-...",  # Use the key you generated in step 3
            max_retries=0
        )

        # Upload file
        finetuning_input_file = client.files.create(
            file=open("./fine_tuning.jsonl", "rb"),
            purpose="fine-tune",
            extra_body={"target_model_names": "gpt-4.1-openai"} # Tells litellm where to write it
        )
        file = client.files.retrieve(
            file_id=finetuning_input_file.id
        )
        job = client.fine_tuning.jobs.create(
            model="gpt-4.1-openai",
            training_file=finetuning_input_file.id,
        )
        jobs = client.fine_tuning.jobs.list(limit=1)
        found = client.fine_tuning.jobs.retrieve(job.id)
        events = client.fine_tuning.jobs.list_events(fine_tuning_job_id=job.id, limit=2)
        """,
        key=key,
    )
    job, raw = names["job"], accounts.mini.files()[-1]["id"]
    assert names["file"].purpose == "fine-tune"
    assert (job.training_file, job.model) == (names["file"].id, "gpt-4.1-openai")
    made = accounts.mini.jobs()[-1]
    if not made["result_files"]:
        assert made["training_file"] == raw
    assert made["sent"]["model"] == "gpt-4.1"
    assert [each.id for each in names["jobs"].data] == [job.id]
    assert names["found"].id == job.id
    assert len(names["events"].data) == 2
    with closing(way.gateway.client(key)) as client:
        done = job_ended(client, job.id)
        assert (done.status, done.id, done.model) == ("succeeded", job.id, "gpt-4.1-openai")
        [result] = done.result_files
        assert client.files.content(result).read().startswith(b"step,train_loss")


@pytest.mark.parametrize("form", ["extra_headers", "extra_body", "extra_query"])
def test_the_provider_way(seeds_gateway, accounts, form):
    key = "custom-llm-provider" if form == "extra_headers" else "custom_llm_provider"
    more: dict[str, Any] = {form: {key: "openai"}}
    with closing(seeds_gateway.client(MASTER)) as typed:
        client: Any = typed
        made = client.files.create(
            file=("train.jsonl", training_rows(10)), purpose="fine-tune", **more
        )
        job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=made.id, **more)
        at_upstream = accounts.litellm.jobs()[-1]
        assert (job.id, job.training_file) == (at_upstream["id"], made.id)
        assert at_upstream["sent"] == {"model": "gpt-4o-mini", "training_file": made.id}
        done = job_ended(client, job.id, **more)
        assert (done.id, done.model, done.status) == (job.id, "gpt-4o-mini", "succeeded")
        assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
        assert job.id in [each.id for each in client.fine_tuning.jobs.list(**more)]
        # A result is the owner's, under an id of the gateway's.
        assert done.result_files != accounts.litellm.jobs()[-1]["result_files"]


# -------------------------------------------------------------------- one gateway for the rest


@pytest.fixture(scope="module")
def east(upstream: Upstream) -> Account:
    return upstream.account("east", job_delay_s=0)


@pytest.fixture(scope="module")
def west(upstream: Upstream) -> Account:
    return upstream.account("west", "azure", job_delay_s=0)


def configuration(east: Account, west: Account, **general: Any) -> dict[str, Any]:
    return {
        "model_list": [
            model("a", "openai/gpt-4o", east),
            model("b", "azure/dep", west),
        ],
        "files_settings": [{"custom_llm_provider": "azure", **west.params}],
        "general_settings": {**QUICK, **general},
    }


@pytest.fixture(scope="module")
def gateway(east: Account, west: Account, start_gateway: StartGateway) -> Gateway:
    config = configuration(east, west, auto_register_fine_tuned=True)
    return start_gateway(config, workers=2, worker=True)


@pytest.fixture(scope="module")
def people(gateway: Gateway) -> dict[str, Any]:
    names = ("alice", "bob")
    clients = {name: gateway.client(gateway.new_user(user_id=name)["key"]) for name in names}
    return {**clients, "root": gateway.client()}


@pytest.fixture
def alice(people: dict[str, Any]) -> Any:
    return people["alice"]


def training(client: Any, names: str = "a") -> str:
    return upload(client, training_rows(10), "fine-tune", target_model_names=names)


def tuned(client: Any, name: str = "a", **more: Any) -> Any:
    return client.fine_tuning.jobs.create(model=name, training_file=training(client, name), **more)


EVERYTHING: dict[str, Any] = {
    "suffix": "mine",
    "seed": 7,
    "method": {
        "type": "dpo",
        "dpo": {"hyperparameters": {"n_epochs": 3, "beta": 0.1, "of_tomorrow": "auto"}},
    },
    "hyperparameters": {"n_epochs": 3},
    "integrations": [{"type": "wandb", "wandb": {"project": "p", "tags": ["é"]}}],
    "metadata": {"k": "v", "é": "😀"},
}


@pytest.mark.parametrize("name", ["a", "b"])
def test_every_field_goes_upstream_and_comes_back(people, alice, east, west, name):
    account, upstream_model = {"a": (east, "gpt-4o"), "b": (west, "dep")}[name]
    first, second = training(alice, name), training(alice, name)
    raws = [file["id"] for file in account.files()[-2:]]
    job = alice.fine_tuning.jobs.create(
        model=name, training_file=first, validation_file=second, **EVERYTHING
    )
    sent = account.jobs()[-1]["sent"]
    extra = {"trainingType": "globalstandard"} if name == "b" else {}
    assert sent == {
        "model": upstream_model,
        "training_file": raws[0],
        "validation_file": raws[1],
        **EVERYTHING,
        **extra,
    }
    for shown in (job, job_ended(alice, job.id)):
        assert (shown.training_file, shown.validation_file) == (first, second)
        assert (shown.model, shown.object, shown.seed) == (name, "fine_tuning.job", 7)
        assert shown.metadata == EVERYTHING["metadata"]
    assert shown.status == "succeeded"
    assert shown.fine_tuned_model
    assert shown.trained_tokens


def test_only_what_was_set_goes_upstream(gateway, alice, east):
    tuned(alice)
    assert set(east.jobs()[-1]["sent"]) == {"model", "training_file"}
    body = {"model": "a", "training_file": training(alice)}
    nulls = ("validation_file", "suffix", "seed", "method", "hyperparameters", "integrations")
    answer = gateway.api("POST", JOBS, json={**body, **dict.fromkeys((*nulls, "metadata"))})
    assert answer.status_code == 200, answer.text
    assert set(east.jobs()[-1]["sent"]) == {"model", "training_file"}


def test_azure_s_training_type_is_the_caller_s_when_he_names_one(alice, west):
    tuned(alice, "b")
    assert west.jobs()[-1]["sent"]["trainingType"] == "globalstandard"
    tuned(alice, "b", extra_body={"trainingType": "developerTier"})
    assert west.jobs()[-1]["sent"]["trainingType"] == "developerTier"


def test_a_mistake_in_the_examples_is_shown(alice):
    bad = upload(alice, b'{"nothing": 1}\n', "fine-tune", target_model_names="a")
    job = alice.fine_tuning.jobs.create(model="a", training_file=bad)
    done = job_ended(alice, job.id)
    assert (done.status, done.error.code) == ("failed", "invalid_file_format")
    assert (done.fine_tuned_model, done.result_files) == (None, [])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model"),
    "an empty model": ({"model": ""}, "model"),
    "a number as model": ({"model": 1}, "model"),
    "no file": ({"training_file": None}, "training_file"),
    "a list as file": ({"training_file": []}, "training_file"),
    "a number as validation": ({"validation_file": 1}, "validation_file"),
    "a long suffix": ({"suffix": "x" * 65}, "suffix"),
    "an empty suffix": ({"suffix": ""}, "suffix"),
    "a negative seed": ({"seed": -1}, "seed"),
    "a large seed": ({"seed": 2**31}, "seed"),
    "a text as seed": ({"seed": "7"}, "seed"),
    "a text as method": ({"method": "dpo"}, "method"),
    "six integrations": ({"integrations": [{"type": "wandb"}] * 6}, "integrations"),
    "17 pairs": ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    "a number in metadata": ({"metadata": {"a": 1}}, "metadata"),
    "an unknown model": ({"model": "nobody"}, "model"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_wrong_request_is_refused_by_its_parameter(gateway, upstream, wrong):
    changes, param = WRONG[wrong]
    with closing(gateway.client()) as root:
        file_id = training(root)
    [raw] = raw_ids(gateway, file_id).values()
    upstream.forget_requests()
    body = {"model": "a", "training_file": file_id}
    response = gateway.api("POST", JOBS, json={**body, **changes})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].split(".")[0] == param
    # The worker may be looking at the jobs of other tests and at their files.
    assert [r for r in upstream.requests() if r.method != "GET" or raw in r.path] == []


def test_what_an_upstream_refuses_it_says_itself(alice, west):
    with pytest.raises(openai.BadRequestError) as refused:
        tuned(alice, "b", suffix="x" * 50)
    assert "1 to 40 characters" in refused.value.message
    assert posts(west, "/fine_tuning/jobs") == 1


def test_both_files_must_be_where_the_job_goes(alice, upstream):
    only_a, only_b, both = training(alice, "a"), training(alice, "b"), training(alice, "a, b")
    upstream.forget_requests()
    create = alice.fine_tuning.jobs.create
    for model_name, first, second in (("a", only_a, only_b), ("b", only_a, only_a)):
        with pytest.raises(openai.BadRequestError) as refused:
            create(model=model_name, training_file=first, validation_file=second)
        assert refused.value.code == "file_not_available"
    # The worker may look at the jobs of the tests before.
    assert [r for r in upstream.requests() if r.method != "GET"] == []
    assert create(model="b", training_file=both, validation_file=only_b).id
    assert create(model="a", training_file=only_a, validation_file=both).id


@pytest.mark.parametrize("name", ["a", "b"])
def test_pause_resume_and_cancel(alice, east, west, name):
    account = {"a": east, "b": west}[name]
    with account.changed(job_stay="running", job_delay_s=60):
        with account.changed(job_delay_s=0):
            job = tuned(alice, name)
            running = partial(is_in, alice, job.id, "running")
            wait_until(running)
        with account.changed(job_stay="paused"):
            assert alice.fine_tuning.jobs.pause(job.id).status == "paused"
            assert alice.fine_tuning.jobs.retrieve(job.id).status == "paused"
            with pytest.raises(openai.BadRequestError):
                alice.fine_tuning.jobs.pause(job.id)
        with account.changed(job_stay="queued"):
            assert alice.fine_tuning.jobs.resume(job.id).status == "queued"
        assert alice.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        before = posts(account, "/cancel")
        assert alice.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        assert posts(account, "/cancel") == before
    for action in (alice.fine_tuning.jobs.pause, alice.fine_tuning.jobs.resume):
        with pytest.raises(openai.ConflictError):
            action(job.id)
    assert alice.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def is_in(client: Any, job_id: str, status: str) -> bool:
    return bool(client.fine_tuning.jobs.retrieve(job_id).status == status)


def test_a_cancel_beside_another_changes_nothing(alice, east):
    with east.changed(job_stay="running"):
        job = tuned(alice)
        raw = east.jobs()[-1]["id"]
        headers = {"Authorization": f"Bearer {east.key}"}
        url = f"{east.api_base}/fine_tuning/jobs/{raw}/cancel"
        assert requests.post(url, headers=headers, timeout=5).ok
        assert alice.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_a_job_that_has_ended_is_not_cancelled(alice):
    job = job_ended(alice, tuned(alice).id)
    with pytest.raises(openai.ConflictError):
        alice.fine_tuning.jobs.cancel(job.id)


@pytest.mark.parametrize("name", ["a", "b"])
def test_events_and_checkpoints_page(alice, east, west, name):
    account = {"a": east, "b": west}[name]
    with account.changed(job_steps=13):
        job = job_ended(alice, tuned(alice, name).id)
        events = list(alice.fine_tuning.jobs.list_events(job.id, limit=4))
        assert len(events) == len({event.id for event in events}) > 13
        assert events[-1].message.startswith("Created fine-tuning job")
        page = alice.fine_tuning.jobs.list_events(job.id, limit=4)
        assert (len(page.data), page.has_more) == (4, True)
        assert alice.fine_tuning.jobs.list_events(job.id, after=events[3].id).data[0] == events[4]
        points = list(alice.fine_tuning.jobs.checkpoints.list(job.id, limit=5))
        assert [point.step_number for point in points] == list(range(13, 0, -1))
        assert {point.fine_tuning_job_id for point in points} == {job.id}
        assert len(alice.fine_tuning.jobs.checkpoints.list(job.id).data) == 10
        for use in (alice.fine_tuning.jobs.list_events, alice.fine_tuning.jobs.checkpoints.list):
            for limit in (0, 101):
                with pytest.raises(openai.BadRequestError) as refused:
                    use(job.id, limit=limit)
                assert refused.value.param == "limit"
            with pytest.raises(openai.BadRequestError):
                use(job.id, after="ftevent-nobody")


def test_results_are_the_owner_s_files(people, alice, east):
    bob, root = people["bob"], people["root"]
    job = tuned(alice)
    done = job_ended(root, job.id)
    [result] = done.result_files
    [raw] = east.jobs()[-1]["result_files"]
    assert alice.fine_tuning.jobs.retrieve(job.id).result_files == [result]
    assert raw not in result
    file = alice.files.retrieve(result)
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")
    assert file in list(alice.files.list(purpose="fine-tune-results"))
    assert result not in [each.id for each in root.files.list()]
    content = alice.files.content(result).read()
    assert content == bytes_at(east, raw)
    assert file.bytes == len(content)
    for use in (bob.files.retrieve, bob.files.content, bob.files.delete):
        with pytest.raises(openai.PermissionDeniedError):
            use(result)
    assert alice.files.delete(result).deleted


@pytest.mark.parametrize("which", ["training", "validation"])
def test_the_files_of_a_running_job_stay(alice, east, which):
    with east.changed(job_stay="running"):
        first, second = training(alice), training(alice)
        job = alice.fine_tuning.jobs.create(model="a", training_file=first, validation_file=second)
        file_id = first if which == "training" else second
        with pytest.raises(openai.ConflictError) as refused:
            alice.files.delete(file_id)
        assert job.id in refused.value.message
    job_ended(alice, job.id)
    assert alice.files.delete(file_id).deleted


# -------------------------------------------------------------------- lists


@pytest.fixture(scope="module")
def crowd(gateway: Gateway) -> dict[str, list[str]]:
    """25 jobs of Anna's between 25 of Ben's; their ids, newest first."""
    names = ("anna", "ben")
    clients = {name: gateway.client(gateway.new_user(user_id=name)["key"]) for name in names}
    files = {name: training(client, "a, b") for name, client in clients.items()}
    made: dict[str, list[str]] = {"anna": [], "ben": []}
    for number in range(25):
        for name, client in clients.items():
            job = client.fine_tuning.jobs.create(model="ab"[number % 2], training_file=files[name])
            made[name].insert(0, job.id)
    return made


def key_of(gateway: Gateway, user_id: str) -> str:
    return str(gateway.api("POST", "/key/generate", json={"user_id": user_id}).json()["key"])


@pytest.mark.parametrize("limit", [1, 6, 25, 100])
def test_a_list_pages_to_exactly_the_caller_s_own(gateway, crowd, limit):
    for name in ("anna", "ben"):
        with closing(gateway.client(key_of(gateway, name))) as client:
            assert [job.id for job in client.fine_tuning.jobs.list(limit=limit)] == crowd[name]
            page = client.fine_tuning.jobs.list(limit=limit)
            assert [job.id for job in page.data] == crowd[name][:limit]
            assert page.has_more == (limit < 25)
            assert len(client.fine_tuning.jobs.list().data) == 20


async def _all(gateway: Gateway, key: str) -> list[str]:
    async with gateway.async_client(key) as client:
        return [job.id async for job in client.fine_tuning.jobs.list(limit=7)]


def test_an_asynchronous_client_pages_too(gateway, crowd):
    assert asyncio.run(_all(gateway, key_of(gateway, "anna"))) == crowd["anna"]


def test_lists_are_narrowed_by_model_and_provider(gateway, crowd):
    key = key_of(gateway, "anna")
    to_a = crowd["anna"][::2]
    to_b = crowd["anna"][1::2]
    for parameters, expected in (
        ({"target_model_names": "a"}, to_a),
        ({"model": "b"}, to_b),
        ({"target_model_names": "a,b"}, crowd["anna"]),
        ({"custom_llm_provider": "azure"}, []),
    ):
        response = gateway.api("GET", JOBS, key=key, params={"limit": "100", **parameters})
        assert [job["id"] for job in response.json()["data"]] == expected, parameters


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"after": "ftjob-nobody"}, "after"),
        ({"after": "\0"}, "after"),
        ({"model": "nobody"}, "model"),
        ({"provider": "nobody"}, "custom_llm_provider"),
    ],
)
def test_bad_parameters_of_a_list_are_named(gateway, crowd, parameters, param):
    response = gateway.api("GET", JOBS, params=parameters)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_another_s_cursor_is_no_cursor(gateway, crowd):
    response = gateway.api("GET", f"{JOBS}?after={crowd['ben'][3]}", key=key_of(gateway, "anna"))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "after")


# -------------------------------------------------------------------- the tuned model


def names_of(client: Any) -> list[str]:
    return [each.id for each in client.models.list()]


def test_the_tuned_model_is_its_owner_s_alone_and_survives_a_restart(gateway, people, east):
    alice, bob, root = people["alice"], people["bob"], people["root"]
    job = tuned(alice, suffix="hers")
    raw = east.jobs()[-1]["id"]

    def registered() -> str:
        # Nobody looks at the job: the worker does.
        return next((name for name in names_of(alice) if ":hers:" in name), "")

    name = wait_until(registered)
    [known] = [each for each in east.jobs() if each["id"] == raw]
    assert name == known["fine_tuned_model"]
    assert alice.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == name
    assert names_of(alice).count(name) == 1
    answer = echo(alice.chat.completions.create(model=name, messages=ask()))
    assert (answer["account"], answer["model"]) == ("east", name)
    file_id = upload(alice, b"text", "assistants", "a.pdf", target_model_names="a")
    for other in (bob, root):
        assert name not in names_of(other)
        with pytest.raises(openai.BadRequestError) as refused:
            other.chat.completions.create(model=name, messages=ask())
        assert refused.value.code == "model_not_found"
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            other.models.retrieve(name)
    assert alice.models.retrieve(name).id == name
    own = echo(alice.chat.completions.create(model=name, messages=ask(file_id)))
    assert own["model"] == name

    key = key_of(gateway, "alice")
    gateway.kill()
    gateway.start()
    with closing(gateway.client(key)) as again:
        assert name in names_of(again)
        assert echo(again.chat.completions.create(model=name, messages=ask()))["model"] == name


def test_a_narrower_key_of_the_owner_s_may_not_use_it(gateway, east):
    key = gateway.new_user(user_id="carla")["key"]
    with closing(gateway.client(key)) as carla:
        name = job_ended(carla, tuned(carla).id).fine_tuned_model
        assert name in names_of(carla)
    narrow = gateway.api("POST", "/key/generate", json={"user_id": "carla", "models": ["b"]})
    with closing(gateway.client(narrow.json()["key"])) as client:
        assert name not in names_of(client)
        with pytest.raises((openai.BadRequestError, openai.PermissionDeniedError)):
            client.chat.completions.create(model=name, messages=ask())


def test_nothing_is_registered_where_nobody_asked_for_it(east, west, start_gateway):
    gateway = start_gateway(configuration(east, west), workers=1)
    with closing(gateway.client(gateway.new_user()["key"])) as client:
        done = job_ended(client, tuned(client).id)
        assert done.fine_tuned_model
        assert names_of(client) == ["a", "b"]
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=done.fine_tuned_model, messages=ask())


def test_azure_s_tuned_models_need_their_operator(gateway):
    with closing(gateway.client(gateway.new_user()["key"])) as client:
        done = job_ended(client, tuned(client, "b").id)
        assert done.fine_tuned_model
        assert names_of(client) == ["a", "b"]

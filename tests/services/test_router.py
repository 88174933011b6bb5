"""Which deployments a name means, who may use it, and which one is asked first."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import (
    AmbiguousRouting,
    InvalidRequest,
    ModelAccessDenied,
    RoutingRequired,
    UnknownModel,
    UnknownProvider,
)
from app.services.router import Hints, Router, Selector
from app.settings import Settings
from tests.builders import make_deployment
from tests.conftest import Clock, make_caller
from tests.fakes import FakeProvider

GPT_1 = make_deployment("gpt-1", model_name="gpt", upstream_model="gpt-4o")
GPT_2 = make_deployment("gpt-2", model_name="gpt", provider="azure", upstream_model="my-gpt")
CHEAP = make_deployment("cheap-1", model_name="cheap", upstream_model="gpt-4o-mini")
ANY = make_deployment("any", model_name="openai/*", upstream_model="*")
OPENAI = make_deployment("f-openai", model_name=None, upstream_model="")
AZURE = make_deployment("f-azure", model_name=None, provider="azure", upstream_model="")


def make_router(*deployments, accounts=(), clock=None, seed=1, left_out=(), **settings):
    made = Settings(deployments=deployments, file_accounts=tuple(accounts), **settings)
    providers = {d.id: FakeProvider(d) for d in (*deployments, *accounts) if d.id not in left_out}
    return Router(made, providers, clock=clock or Clock(), rng=random.Random(seed))


def ids_of(routes):
    return [route.deployment.id for route in routes]


def allowed(*models):
    return make_caller("alice", key_models=models)


# Names


def test_a_model_name_means_all_of_its_deployments(alice):
    routes = make_router(GPT_1, GPT_2, CHEAP).routes("gpt", alice)
    assert [(r.deployment.id, r.model_name, r.upstream_model) for r in routes] == [
        ("gpt-1", "gpt", "gpt-4o"),
        ("gpt-2", "gpt", "my-gpt"),
    ]


def test_provider_and_upstream_model_are_another_name(alice):
    [route] = make_router(GPT_1, GPT_2, CHEAP).routes("azure/my-gpt", alice)
    assert (route.deployment.id, route.model_name) == ("gpt-2", "gpt")


def test_a_public_name_comes_before_another_deployments_other_name(alice):
    named = make_deployment("named", model_name="openai/gpt-4o", upstream_model="other")
    assert ids_of(make_router(GPT_1, named).routes("openai/gpt-4o", alice)) == ["named"]


@pytest.mark.parametrize(
    "name",
    ["", " ", "GPT", "gpt ", "gpt-4o", "openai/", "openai", "*", "g*", "openai/*", "gpt,cheap",
     "[g]pt", "x" * 1_000_000, "gp\x00t", "\ud800"],
    ids=range(15),
)  # fmt: skip
def test_an_unknown_name_is_refused_by_everybodys_key(name, alice, root):
    router = make_router(GPT_1, GPT_2, CHEAP)
    for caller in (alice, root):
        with pytest.raises(UnknownModel) as refused:
            router.routes(name, caller)
        assert refused.value.status == 400
        assert len(refused.value.message) < 1000
        refused.value.message.encode()


def test_an_unknown_name_is_named(alice):
    with pytest.raises(UnknownModel, match="'gtp'"):
        make_router(GPT_1).routes("gtp", alice)


def test_a_name_that_the_key_may_not_use_is_forbidden():
    with pytest.raises(ModelAccessDenied, match="'cheap'") as refused:
        make_router(GPT_1, CHEAP).routes("cheap", allowed("gpt"))
    assert refused.value.status == 403


def test_key_and_user_must_both_allow():
    router = make_router(GPT_1, CHEAP)
    caller = make_caller("alice", key_models=["gpt"], user_models=["cheap"])
    for name in ("gpt", "cheap"):
        with pytest.raises(ModelAccessDenied):
            router.routes(name, caller)
    assert router.model_names(caller) == []


def test_the_other_name_opens_no_forbidden_model():
    router = make_router(GPT_1, CHEAP)
    with pytest.raises(ModelAccessDenied):
        router.routes("openai/gpt-4o-mini", allowed("gpt"))
    assert router.routes("openai/gpt-4o", allowed("gpt"))


def test_a_list_of_one_provider_does_not_open_a_name_with_another_behind_it():
    router = make_router(GPT_1, GPT_2, CHEAP)
    with pytest.raises(ModelAccessDenied):
        router.routes("gpt", allowed("openai/*"))
    assert router.routes("cheap", allowed("openai/*"))


def test_a_deployment_that_this_version_does_not_serve_is_not_there(alice):
    router = make_router(GPT_1, GPT_2, CHEAP, left_out=("gpt-2", "cheap-1"))
    assert ids_of(router.routes("gpt", alice)) == ["gpt-1"]
    with pytest.raises(UnknownModel):
        router.routes("cheap", alice)
    assert router.by_id("gpt-2") is None


# Wildcards


def test_a_wildcard_serves_every_name_under_it(alice):
    [route] = make_router(ANY).routes("openai/o3", alice)
    assert (route.deployment.id, route.model_name, route.upstream_model) == (
        "any",
        "openai/o3",
        "o3",
    )


def test_an_exact_name_comes_before_a_wildcard(alice):
    exact = make_deployment("exact", model_name="openai/o3", upstream_model="o3-mine")
    assert ids_of(make_router(ANY, exact).routes("openai/o3", alice)) == ["exact"]


def test_the_longest_wildcard_wins(alice):
    everything = make_deployment("everything", model_name="*", upstream_model="*")
    ft = make_deployment("ft", model_name="openai/ft-*", upstream_model="ft:*")
    router = make_router(everything, ANY, ft)
    for name, id, upstream in (
        ("openai/ft-1", "ft", "ft:1"),
        ("openai/o3", "any", "o3"),
        ("o3", "everything", "o3"),
    ):
        [route] = router.routes(name, alice)
        assert (route.deployment.id, route.upstream_model) == (id, upstream)


@pytest.mark.parametrize(
    "name", ["openai/", "openai/*", "openai/a*", "openai/a,b", "openai/a;b", "openai/a\x00",
             "openai/\ud800", "openai/" + "a" * 300],
    ids=range(8),
)  # fmt: skip
def test_a_wildcard_covers_no_name_that_an_id_or_a_row_cannot_hold(name, alice):
    with pytest.raises(UnknownModel):
        make_router(ANY).routes(name, alice)


def test_only_the_star_of_a_wildcard_is_one(alice):
    odd = make_deployment("odd", model_name="[x]?/*", upstream_model="*")
    router = make_router(odd)
    assert ids_of(router.routes("[x]?/m", alice)) == ["odd"]
    with pytest.raises(UnknownModel):
        router.routes("xy/m", alice)


def test_a_wildcard_does_not_widen_a_key():
    router = make_router(ANY)
    assert router.routes("openai/o3", allowed("openai/o3"))
    assert router.routes("openai/o3", allowed("openai/*"))
    with pytest.raises(ModelAccessDenied):
        router.routes("openai/o4", allowed("openai/o3"))


# What a key may use


@pytest.mark.parametrize(
    "caller",
    [
        make_caller("a"),
        allowed("gpt"),
        allowed("*"),
        allowed("all-proxy-models"),
        allowed("openai/*"),
        allowed("openai/o3", "gpt", "nonsense", "openai/a,b", "openai/"),
        allowed("azure/*"),
        allowed("openai/gpt-4o"),
        allowed("openai/gpt-4o", "azure/my-gpt"),
        make_caller("a", user_models=["openai/o3"], key_models=["openai/*"]),
        make_caller("a", user_models=["openai/o3"], key_models=["cheap"]),
    ],
    ids=range(11),
)
def test_what_is_listed_is_what_may_be_used(caller):
    router = make_router(GPT_1, GPT_2, CHEAP, ANY)
    listed = router.model_names(caller)
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert router.routes(name, caller)
    names = {"gpt", "cheap", "openai/o3", *caller.key_models, *caller.user_models}
    for name in names - set(listed):
        try:
            router.routes(name, caller)
        except (UnknownModel, ModelAccessDenied):
            continue
        is_other_name = name in ("openai/gpt-4o", "azure/my-gpt")
        covered = "openai/*" in (*caller.key_models, *caller.user_models) or not caller.key_models
        assert is_other_name or covered or caller.key_models[0] in ("*", "all-proxy-models"), name
    shown = {d.model_name for d in router.deployments(caller)}
    assert {name for name in listed if name in ("gpt", "cheap")} == shown - {"openai/*"}


def test_the_order_of_names_is_the_files(alice):
    assert make_router(CHEAP, GPT_1, ANY, GPT_2).model_names(alice) == ["cheap", "gpt"]


# Ways


def test_target_model_names_go_everywhere_once(alice):
    way = make_router(GPT_1, GPT_2, CHEAP).way(
        Selector(target_model_names=("cheap", "gpt", "cheap")), alice
    )
    assert (way.kind, way.names) == ("unified", ("cheap", "gpt"))
    assert ids_of(way.routes) == ["cheap-1", "gpt-1", "gpt-2"]


def test_two_names_of_one_deployment_are_one_copy(alice):
    way = make_router(GPT_1).way(Selector(target_model_names=("gpt", "openai/gpt-4o")), alice)
    assert way.names == ("gpt", "openai/gpt-4o")
    assert ids_of(way.routes) == ["gpt-1"]


def test_one_bad_target_refuses_all():
    router = make_router(GPT_1, CHEAP)
    with pytest.raises(UnknownModel, match="'no'"):
        router.way(Selector(target_model_names=("gpt", "no")), allowed("gpt"))
    with pytest.raises(ModelAccessDenied, match="'cheap'"):
        router.way(Selector(target_model_names=("gpt", "cheap")), allowed("gpt"))


def test_a_name_with_a_comma_is_none(alice):
    with pytest.raises(InvalidRequest, match="a,b"):
        make_router(ANY).way(Selector(target_model_names=("openai/a,b",)), alice)


def test_a_model_is_one_account(alice):
    way = make_router(GPT_1, GPT_2).way(Selector(model="gpt"), alice)
    assert (way.kind, way.names, ids_of(way.routes)) == ("encoded", ("gpt",), ["gpt-1", "gpt-2"])


def test_a_provider_is_its_account_in_files_settings(alice):
    router = make_router(GPT_1, accounts=(OPENAI, AZURE))
    way = router.way(Selector(provider="azure"), alice)
    assert (way.kind, way.names, ids_of(way.routes)) == ("raw", (), ["f-azure"])


def test_a_providers_default_account_comes_first(alice):
    second = make_deployment("second", model_name=None, upstream_model="", is_default=True)
    router = make_router(accounts=(OPENAI, AZURE, second))
    assert ids_of(router.way(Selector(provider="openai"), alice).routes) == ["second"]


def test_an_unknown_provider_is_answered_with_those_there_are(alice):
    router = make_router(GPT_1, accounts=(OPENAI, AZURE))
    with pytest.raises(UnknownProvider, match=r"'gemini'.*azure, openai"):
        router.way(Selector(provider="gemini"), alice)
    with pytest.raises(UnknownProvider, match="none"):
        make_router(GPT_1).way(Selector(provider="openai"), alice)


@pytest.mark.parametrize(
    ("accounts", "chosen"),
    [
        ([AZURE], "f-azure"),
        ([AZURE, OPENAI], "f-openai"),
        ([OPENAI, AZURE], "f-openai"),
        (
            [
                OPENAI,
                make_deployment("d", model_name=None, provider="azure", is_default=True),
            ],
            "d",
        ),
    ],
)
def test_without_a_selector_the_default_account_is_taken(accounts, chosen, alice):
    way = make_router(GPT_1, accounts=accounts).way(Selector(), alice)
    assert (way.kind, ids_of(way.routes)) == ("raw", [chosen])


def test_without_any_default_the_message_lists_what_can_be_named():
    others = [
        make_deployment("f-1", model_name=None, provider="azure"),
        make_deployment("f-2", model_name=None, provider="local"),
    ]
    router = make_router(GPT_1, CHEAP, accounts=others)
    with pytest.raises(RoutingRequired) as refused:
        router.way(Selector(), allowed("gpt"))
    assert refused.value.code == "routing_required"
    for word in ("gpt", "azure", "local"):
        assert word in refused.value.message
    assert "cheap" not in refused.value.message


def test_default_names_are_those_that_the_key_may_use():
    router = make_router(
        GPT_1, CHEAP, accounts=[OPENAI], default_target_model_names=("gpt", "cheap")
    )
    way = router.way(Selector(), allowed("cheap"))
    assert (way.kind, way.names) == ("unified", ("cheap",))
    with pytest.raises(ModelAccessDenied, match="'gpt'"):
        router.way(Selector(), allowed("other"))


def test_an_account_is_found_by_its_id():
    router = make_router(GPT_1, accounts=[AZURE])
    for id in ("gpt-1", "f-azure"):
        route = router.by_id(id)
        assert route is not None and route.deployment.id == id
    assert router.by_id("gone") is None


# Hints


def hints(*found):
    return Hints([(place, kind, tuple(values)) for place, kind, values in found])


def test_the_same_said_twice_is_said_once():
    said = hints(
        ("query", "target_model_names", ["a", "b"]), ("body", "target_model_names", ["b", "a"])
    )
    assert said.selector() == Selector(target_model_names=("a", "b"))


@pytest.mark.parametrize(
    "said",
    [
        hints(("query", "model", ["a"]), ("body", "model", ["b"])),
        hints(("query", "model", ["a", "b"])),
        hints(("query", "custom_llm_provider", ["a", "b"])),
        hints(("query", "custom_llm_provider", ["a"]), ("query", "custom_llm_provider", ["b"])),
        hints(("query", "target_model_names", ["a"]), ("body", "target_model_names", ["a", "b"])),
        hints(("query", "model", ["a"]), ("body", "target_model_names", ["a"])),
        hints(("query", "custom_llm_provider", ["a"]), ("body", "target_model_names", ["a"])),
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_what_contradicts_itself_is_refused(said, inference):
    with pytest.raises(AmbiguousRouting) as refused:
        said.selector(inference=inference)
    assert refused.value.status == 400
    assert refused.value.code == "ambiguous_routing"
    assert "'a'" in refused.value.message or "'a, b'" in refused.value.message


def test_both_places_are_named():
    said = hints(("header x-litellm-model", "model", ["a"]), ("body", "model", ["b"]))
    with pytest.raises(AmbiguousRouting, match=r"header x-litellm-model.*body"):
        said.selector()


def test_only_inference_has_a_model_beside_a_provider():
    said = hints(("body", "model", ["m"]), ("header", "custom_llm_provider", ["p"]))
    assert said.selector(inference=True) == Selector(model="m", provider="p")
    with pytest.raises(AmbiguousRouting):
        said.selector()


# Which one first


def first_choices(router, candidates, rounds=2000):
    return Counter(router.order(candidates, str)[0] for _ in range(rounds))


def test_weights_are_kept_on_the_average():
    heavy = make_deployment("heavy", weight=3.0)
    light = make_deployment("light", weight=1.0)
    counts = first_choices(make_router(heavy, light), ["heavy", "light"])
    assert 0.70 < counts["heavy"] / 2000 < 0.80


def test_weight_nought_is_the_last_resort():
    spare = make_deployment("spare", weight=0.0)
    router = make_router(spare, GPT_1, GPT_2)
    orders = [router.order(["spare", "gpt-1", "gpt-2"], str) for _ in range(100)]
    assert {order[-1] for order in orders} == {"spare"}
    assert {order[0] for order in orders} == {"gpt-1", "gpt-2"}


def test_who_rests_comes_last_and_comes_back():
    clock = Clock()
    router = make_router(GPT_1, GPT_2, clock=clock, cooldown_seconds=5.0)
    router.rest("gpt-1")
    assert router.resting() == ["gpt-1"]
    assert first_choices(router, ["gpt-1", "gpt-2"], 50) == {"gpt-2": 50}
    clock.seconds += 5.1
    assert router.resting() == []
    assert set(first_choices(router, ["gpt-1", "gpt-2"], 50)) == {"gpt-1", "gpt-2"}


def test_an_upstreams_wish_is_heeded_within_bounds():
    clock = Clock()
    router = make_router(GPT_1, clock=clock)
    for wish, long_enough in ((30.0, 30.1), (1e9, 301.0), (float("inf"), 301.0), (-5.0, 0.1)):
        router.rest("gpt-1", wish)
        clock.seconds += long_enough
        assert router.resting() == []


def test_all_of_them_resting_are_still_candidates():
    router = make_router(GPT_1, GPT_2)
    router.rest("gpt-1")
    router.rest("gpt-2")
    assert sorted(router.order(["gpt-1", "gpt-2"], str)) == ["gpt-1", "gpt-2"]


def test_the_least_busy_comes_first():
    router = make_router(GPT_1, GPT_2, routing_strategy="least-busy")
    with router.counted("gpt-1"):
        assert first_choices(router, ["gpt-1", "gpt-2"], 50) == {"gpt-2": 50}
        with router.counted("gpt-2"), router.counted("gpt-2"):
            assert first_choices(router, ["gpt-1", "gpt-2"], 50) == {"gpt-1": 50}
    assert set(first_choices(router, ["gpt-1", "gpt-2"], 50)) == {"gpt-1", "gpt-2"}


def test_shuffling_does_not_look_at_who_is_busy():
    router = make_router(GPT_1, GPT_2)
    with router.counted("gpt-1"):
        assert set(first_choices(router, ["gpt-1", "gpt-2"], 50)) == {"gpt-1", "gpt-2"}


def test_the_count_survives_an_error_and_many_threads():
    router = make_router(GPT_1, GPT_2, routing_strategy="least-busy")

    def use(number):
        try:
            with router.counted("gpt-1"):
                if number % 3 == 0:
                    raise RuntimeError
        except RuntimeError:
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(2000)))
    assert router._in_flight["gpt-1"] == 0

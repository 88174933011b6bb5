"""config.yaml -> Settings: what loads, what is refused and in which words."""

import re
import textwrap
from dataclasses import fields, replace
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.providers import registry
from app.settings import Deployment, Settings, load

SHIPPED = Path(__file__).parent.parent / "config.yaml"
KEYS = {
    "OPENAI_API_KEY": "sk-openai",
    "OPENAI_KEY": "sk-openai-account-1",
    "OPENAI_LITELLM_API_KEY": "sk-openai-litellm",
    "OPENAI_FREE_API_KEY": "sk-openai-free",
}


@pytest.fixture
def loaded(tmp_path):
    """Loads a text as config.yaml."""

    def load_text(text, environ=None, check=lambda _deployment: ()):
        path = tmp_path / "config.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return load(path, environ or {}, check)

    return load_text


@pytest.fixture
def refused(loaded):
    """The mistakes of a text that must not load."""

    def mistakes_of(text, environ=None, check=lambda _deployment: ()):
        with pytest.raises(ConfigError) as refusal:
            loaded(text, environ, check)
        return list(refusal.value.mistakes)

    return mistakes_of


def model(*lines, name="gpt", upstream="openai/gpt-4o"):
    """A model_list of one entry, with `lines` in its litellm_params."""
    params = "".join(f"\n      {line}" for line in lines)
    return f"""
model_list:
  - model_name: {name}
    litellm_params:
      model: {upstream}{params}
"""


def entry(name, upstream, *lines, info=""):
    """One more entry for the text that `model` begins."""
    params = "".join(f"\n      {line}" for line in lines)
    text = f"  - model_name: {name}\n    litellm_params:\n      model: {upstream}{params}\n"
    return text + (f"    model_info: {info}\n" if info else "")


# The configurations of the pages that LiteLLM's users know.

FILES_SETTINGS = """
# for /files endpoints
files_settings:
  - custom_llm_provider: azure
    api_base: https://exampleopenaiendpoint-production.up.railway.app
    api_key: fake-key
    api_version: "2023-03-15-preview"
  - custom_llm_provider: openai
    api_key: os.environ/OPENAI_API_KEY
"""
MANAGED_FILES = """
model_list:
    - model_name: "gemini-2.0-flash"
      litellm_params:
        model: vertex_ai/gemini-2.0-flash
        vertex_project: my-project-id
        vertex_location: us-central1
    - model_name: "gpt-4o-mini-openai"
      litellm_params:
        model: gpt-4o-mini
        api_key: os.environ/OPENAI_API_KEY
"""
GENERAL = """
general_settings:
    master_key: sk-1234 # alternatively use the env var - LITELLM_MASTER_KEY
    database_url: "postgresql://<user>:<password>@<host>:<port>/<dbname>" # alternatively ...
"""
ONE_MODEL = """
model_list:
  - model_name: "gpt-4o-mini-openai"
    litellm_params:
      model: gpt-4o-mini
      api_key: os.environ/OPENAI_API_KEY
"""
TWO_ACCOUNTS = """
model_list:
  # litellm OpenAI Account
  - model_name: "gpt-4o-litellm"
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_LITELLM_API_KEY

  # Free OpenAI Account
  - model_name: "gpt-4o-free"
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_FREE_API_KEY
"""
OLD_APPROACH = """
files_settings:
  - custom_llm_provider: openai
    api_key: os.environ/OPENAI_KEY
"""
NEW_APPROACH = """
model_list:
  - model_name: "gpt-4o-account1"
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_KEY
"""


@pytest.mark.parametrize(
    ("text", "models", "accounts"),
    [
        pytest.param(FILES_SETTINGS, [], ["azure", "openai"], id="files-settings"),
        pytest.param(
            MANAGED_FILES,
            [
                ("gemini-2.0-flash", "vertex_ai", "gemini-2.0-flash"),
                ("gpt-4o-mini-openai", "openai", "gpt-4o-mini"),
            ],
            [],
            id="managed-files",
        ),
        pytest.param(
            MANAGED_FILES + GENERAL,
            [
                ("gemini-2.0-flash", "vertex_ai", "gemini-2.0-flash"),
                ("gpt-4o-mini-openai", "openai", "gpt-4o-mini"),
            ],
            [],
            id="managed-files-with-database",
        ),
        pytest.param(
            ONE_MODEL + GENERAL,
            [("gpt-4o-mini-openai", "openai", "gpt-4o-mini")],
            [],
            id="permissions",
        ),
        pytest.param(
            TWO_ACCOUNTS,
            [("gpt-4o-litellm", "openai", "gpt-4o"), ("gpt-4o-free", "openai", "gpt-4o")],
            [],
            id="two-accounts",
        ),
        pytest.param(OLD_APPROACH, [], ["openai"], id="migration-old"),
        pytest.param(
            NEW_APPROACH, [("gpt-4o-account1", "openai", "gpt-4o")], [], id="migration-new"
        ),
    ],
)
def test_the_configurations_of_litellms_pages_load(loaded, text, models, accounts):
    settings = loaded(text, KEYS, registry.mistakes)
    found = [(each.model_name, each.provider, each.upstream_model) for each in settings.deployments]
    assert found == models
    assert [account.provider for account in settings.file_accounts] == accounts


def test_a_placeholder_of_a_database_url_is_kept_as_text(loaded):
    settings = loaded(ONE_MODEL + GENERAL, KEYS)
    assert settings.database_url == "postgresql://<user>:<password>@<host>:<port>/<dbname>"
    assert settings.master_key == "sk-1234"
    assert [text for text in settings.warnings if "sk-1234 stands in every" in text]


def test_lost_indentation_is_explained(refused):
    mistakes = refused(
        """
        model_list:
        - model_name: "gpt-4o-litellm"
          litellm_params:
          model: openai/gpt-4o
        """
    )
    assert "model_list.0.model: unknown key; did you mean 'litellm_params.model'?" in mistakes


# What a right file says.


@pytest.mark.parametrize("text", ["", "# nothing\n", "model_list:\nlitellm_settings:\n", "{}"])
def test_nothing_written_means_the_defaults(loaded, text):
    assert loaded(text) == Settings()


def test_everything_written_arrives(loaded):
    settings = loaded(
        """
        model_list:
          - model_name: gpt
            litellm_params:
              model: azure/my-deployment
              api_base: https://example.openai.azure.com
              api_version: 2024-10-21
              api_key: os.environ/AZURE_KEY
              weight: 2
              timeout: os.environ/TIMEOUT
              max_retries: 5
            model_info:
              id: main
              mode: chat
              supported_endpoints: [/v1/chat/completions]
              max_tokens: 4096
        files_settings:
          - {custom_llm_provider: openai, api_key: a}
          - {custom_llm_provider: azure, api_key: b, model: azure/gpt, default: true}
        finetune_settings:
          - {custom_llm_provider: openai, api_key: c, timeout: 30}
        general_settings:
          master_key: sk-a-long-master-key
          database_url: postgresql://db/manifold
          data_dir: /var/lib/manifold
          default_target_model_names: gpt, azure/my-deployment, gpt
          fan_out: every_deployment
          fan_out_threads: 8
          max_file_size_mb: 1
          max_batch_file_size_mb: 2
          max_batch_file_records: 3
          max_request_size_mb: 4
          max_inline_file_size_mb: 0
          allow_unrecorded_ids: true
          hide_foreign_objects: yes
          migrate_on_start: false
        router_settings:
          routing_strategy: least-busy
          cooldown_time: 1.5
        """,
        {"AZURE_KEY": "azure-secret", "TIMEOUT": "12.5"},
    )
    (deployment,) = settings.deployments
    assert deployment == Deployment(
        id="main",
        model_name="gpt",
        provider="azure",
        upstream_model="my-deployment",
        params={
            "api_base": "https://example.openai.azure.com",
            "api_version": "2024-10-21",
            "api_key": "azure-secret",
        },
        weight=2.0,
        timeout_seconds=12.5,
        max_retries=5,
        mode="chat",
        model_info={
            "id": "main",
            "mode": "chat",
            "supported_endpoints": ("/v1/chat/completions",),
            "max_tokens": 4096,
        },
    )
    first, second = settings.file_accounts
    assert (first.provider, first.upstream_model, first.params) == ("openai", "", {"api_key": "a"})
    assert (second.provider, second.upstream_model) == ("azure", "gpt")
    assert (first.is_default, second.is_default) == (False, True)
    (account,) = settings.finetune_accounts
    assert (account.provider, account.timeout_seconds) == ("openai", 30.0)
    assert all(each.model_name is None for each in (first, second, account))
    rest = replace(settings, deployments=(), file_accounts=(), finetune_accounts=())
    assert rest == Settings(
        master_key="sk-a-long-master-key",
        database_url="postgresql://db/manifold",
        data_dir=Path("/var/lib/manifold"),
        default_target_model_names=("gpt", "azure/my-deployment"),
        fan_out="every_deployment",
        fan_out_threads=8,
        max_file_size_mb=1,
        max_batch_file_size_mb=2,
        max_batch_file_records=3,
        max_request_size_mb=4,
        max_inline_file_size_mb=0,
        allow_unrecorded_ids=True,
        hide_foreign_objects=True,
        migrate_on_start=False,
        routing_strategy="least-busy",
        cooldown_seconds=1.5,
    )


@pytest.mark.parametrize(
    ("lines", "provider", "upstream"),
    [
        pytest.param(["model: gpt-4o"], "openai", "gpt-4o", id="bare-is-openai"),
        pytest.param(["model: ft:gpt-4o:org::id"], "openai", "ft:gpt-4o:org::id", id="fine-tuned"),
        pytest.param(["model: azure/gpt"], "azure", "gpt", id="prefix"),
        pytest.param(["model: azure/openai/gpt"], "azure", "openai/gpt", id="first-slash"),
        pytest.param(
            ["model: meta/llama", "custom_llm_provider: openai"],
            "openai",
            "meta/llama",
            id="provider-wins",
        ),
        pytest.param(
            ["model: azure/gpt", "custom_llm_provider: azure"], "azure", "gpt", id="said-twice"
        ),
        pytest.param(["model: azure/*"], "azure", "*", id="wildcard"),
    ],
)
def test_the_provider_is_read_from_the_model(loaded, lines, provider, upstream):
    name = "any/*" if upstream == "*" else "any"
    text = f"model_list:\n- model_name: {name}\n  litellm_params:\n"
    (deployment,) = loaded(text + "".join(f"    {line}\n" for line in lines)).deployments
    assert (deployment.provider, deployment.upstream_model) == (provider, upstream)
    assert not deployment.params


def test_base_url_is_the_other_name_of_api_base(loaded):
    (deployment,) = loaded(model("base_url: http://127.0.0.1:1/v1")).deployments
    assert deployment.params == {"api_base": "http://127.0.0.1:1/v1"}


def test_a_key_without_a_value_counts_as_not_written(loaded):
    (deployment,) = loaded(model("api_key:", "timeout:", "organization: null")).deployments
    assert not deployment.params
    assert deployment.timeout_seconds == Deployment("", "", "", "").timeout_seconds


def test_anchors_and_merges_work(loaded):
    settings = loaded(
        """
        model_list:
          - model_name: a
            litellm_params: &account
              model: openai/gpt-4o
              organization: org
          - model_name: b
            litellm_params:
              <<: *account
              model: openai/o3
        """
    )
    assert [each.upstream_model for each in settings.deployments] == ["gpt-4o", "o3"]
    assert [each.params for each in settings.deployments] == [{"organization": "org"}] * 2


def test_a_byte_order_mark_is_no_mistake(loaded):
    assert loaded("\ufeffmodel_list: []\n") == Settings()


# Environment.


def test_references_are_resolved_at_any_depth(loaded):
    text = model(
        "vertex_credentials:", "  private_key: os.environ/PEM", "  scopes: [os.environ/SCOPE]"
    )
    (deployment,) = loaded(text, {"PEM": "secret", "SCOPE": "all"}).deployments
    assert deployment.params == {"vertex_credentials": {"private_key": "secret", "scopes": ["all"]}}


def test_the_files_own_variables_help_where_the_environment_is_silent(loaded):
    text = (
        model("api_key: os.environ/KEY", "organization: os.environ/ORG", "project: os.environ/NR")
        + "environment_variables: {KEY: file, ORG: os.environ/REAL, NR: 7}"
    )
    (deployment,) = loaded(text, {"KEY": "real", "REAL": "org"}).deployments
    assert deployment.params == {"api_key": "real", "organization": "org", "project": "7"}


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        pytest.param({}, "sk-of-the-file-itself", id="file"),
        pytest.param(
            {"LITELLM_MASTER_KEY": "sk-litellm-variable"}, "sk-litellm-variable", id="its"
        ),
        pytest.param(
            {"LITELLM_MASTER_KEY": "sk-other", "MANIFOLD_MASTER_KEY": "sk-manifold-variable"},
            "sk-manifold-variable",
            id="ours-first",
        ),
        pytest.param({"MANIFOLD_MASTER_KEY": ""}, "sk-of-the-file-itself", id="empty-is-unset"),
    ],
)
def test_the_master_key_of_the_environment_wins(loaded, environ, key):
    settings = loaded("general_settings: {master_key: sk-of-the-file-itself}", environ)
    assert settings.master_key == key
    assert not settings.warnings


def test_the_database_of_the_environment_wins(loaded):
    text = "general_settings: {database_url: sqlite:///file.db}"
    assert loaded(text).database_url == "sqlite:///file.db"
    assert loaded(text, {"DATABASE_URL": "sqlite:///env.db"}).database_url == "sqlite:///env.db"


def test_a_reference_that_the_environment_overrules_need_not_be_set(loaded):
    text = "general_settings: {master_key: os.environ/SOMETHING_UNSET}"
    environ = {"MANIFOLD_MASTER_KEY": "sk-manifold-variable"}
    assert loaded(text, environ).master_key == "sk-manifold-variable"


def test_the_files_own_variables_come_last_for_the_master_key(loaded):
    variables = "environment_variables: {LITELLM_MASTER_KEY: sk-from-the-variables}\n"
    assert loaded(variables).master_key == "sk-from-the-variables"
    both = variables + "general_settings: {master_key: sk-of-the-file-itself}"
    assert loaded(both).master_key == "sk-of-the-file-itself"


@pytest.mark.parametrize(
    ("key", "warning"),
    [
        pytest.param("sk-1234", "sk-1234 stands in every tutorial", id="tutorial"),
        pytest.param("sk-123456789012", "shorter than 16 characters", id="short"),
        pytest.param("sk-1234567890123", None, id="long-enough"),
    ],
)
@pytest.mark.parametrize("source", ["general_settings.master_key", "LITELLM_MASTER_KEY"])
def test_a_weak_master_key_is_warned_about(loaded, source, key, warning):
    if source == "LITELLM_MASTER_KEY":
        settings = loaded("", {source: key})
    else:
        settings = loaded(f"general_settings: {{master_key: {key}}}")
    assert settings.master_key == key
    assert [text.startswith(f"{source}: ") and warning in text for text in settings.warnings] == (
        [True] if warning else []
    )


# LiteLLM's other settings.


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("litellm_settings: {drop_params: true}", "litellm_settings.drop_params"),
        ("litellm_settings: {success_callback: [x]}", "litellm_settings.success_callback"),
        ("litellm_settings: {set_verbose: true}", "litellm_settings.set_verbose"),
        ("litellm_settings: {num_retries: 3}", "litellm_settings.num_retries"),
        ("litellm_settings: {request_timeout: 3}", "litellm_settings.request_timeout"),
        (
            "litellm_settings: {cache: true, cache_params: {password: os.environ/UNSET}}",
            "litellm_settings.cache_params",
        ),
        ("general_settings: {alerting: [slack]}", "general_settings.alerting"),
        ("general_settings: {store_model_in_db: true}", "general_settings.store_model_in_db"),
        ("general_settings: {proxy_batch_write_at: 60}", "general_settings.proxy_batch_write_at"),
        (
            "general_settings: {database_connection_pool_limit: 10}",
            "general_settings.database_connection_pool_limit",
        ),
        ("router_settings: {num_retries: 2}", "router_settings.num_retries"),
        ("router_settings: {fallbacks: []}", "router_settings.fallbacks"),
        ("router_settings: {model_group_alias: {a: b}}", "router_settings.model_group_alias"),
        ("guardrails: []", "guardrails"),
        ("mcp_servers: {}", "mcp_servers"),
        ("credential_list: []", "credential_list"),
        (model("rpm: 5"), "model_list.0.litellm_params.rpm"),
        (model("tpm: 5"), "model_list.0.litellm_params.tpm"),
        (model("stream_timeout: 5"), "model_list.0.litellm_params.stream_timeout"),
        (model("input_cost_per_token: 5"), "model_list.0.litellm_params.input_cost_per_token"),
        (
            model("cache_read_input_token_cost: 5"),
            "model_list.0.litellm_params.cache_read_input_token_cost",
        ),
        (model() + "    rpm: 5\n", "model_list.0.rpm"),
        (
            "files_settings: [{custom_llm_provider: openai, rpm: 1}]",
            "files_settings.0.rpm",
        ),
    ],
)
def test_what_only_litellm_needs_is_warned_about(loaded, text, path):
    settings = loaded(text)
    assert f"{path}: LiteLLM's setting; Manifold has no use for it" in settings.warnings
    assert not [deployment for deployment in settings.deployments if deployment.params]


def test_a_setting_that_every_model_has_is_warned_about_once(loaded):
    text = model("rpm: 1") + "".join(entry(f"m{n}", "gpt-4o", "rpm: 1") for n in range(20))
    settings = loaded(text)
    assert len(settings.deployments) == 21
    assert len(settings.warnings) == 1


def test_a_strategy_we_do_not_have_becomes_the_usual_one(loaded):
    settings = loaded("router_settings: {routing_strategy: latency-based-routing}")
    assert settings.routing_strategy == "simple-shuffle"
    assert settings.warnings == (
        "router_settings.routing_strategy: Manifold has no latency-based-routing; "
        "it uses simple-shuffle instead",
    )


# Mistakes.


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        # unknown keys
        ("modle_list: []", "modle_list: unknown key; did you mean 'model_list'?"),
        ("master_key: x", "master_key: unknown key; did you mean 'general_settings.master_key'?"),
        ("zzz: 1", "zzz: unknown key"),
        ("7: 1", "7: unknown key"),
        (
            "general_settings: {master_kye: x}",
            "general_settings.master_kye: unknown key; did you mean 'master_key'?",
        ),
        (
            "litellm_settings: {drop_parms: x}",
            "litellm_settings.drop_parms: unknown key; did you mean 'drop_params'?",
        ),
        (
            "router_settings: {routing_stategy: x}",
            "router_settings.routing_stategy: unknown key; did you mean 'routing_strategy'?",
        ),
        (
            model() + "    model_inof: {}",
            "model_list.0.model_inof: unknown key; did you mean 'model_info'?",
        ),
        ("include: [a.yaml]", "include: Manifold reads one file; copy what the others say into it"),
        # shapes
        ("general_settings: [1]", "general_settings: must be a mapping"),
        ("environment_variables: [1]", "environment_variables: must be a mapping"),
        ("environment_variables: {A: [1]}", "environment_variables.A: must be text"),
        ("model_list: {}", "model_list: must be a list; begin each entry with '- '"),
        ("files_settings: {}", "files_settings: must be a list; begin each entry with '- '"),
        ("model_list: [1]", "model_list.0: must be a mapping"),
        ("model_list: [{model_name: a}]", "model_list.0.litellm_params.model: missing"),
        (
            "model_list: [{model_name: a, litellm_params: x}]",
            "model_list.0.litellm_params: must be a mapping",
        ),
        ("model_list: [{litellm_params: {model: x}}]", "model_list.0.model_name: missing"),
        ("files_settings: [{api_key: x}]", "files_settings.0.custom_llm_provider: missing"),
        ("finetune_settings: [{api_key: x}]", "finetune_settings.0.custom_llm_provider: missing"),
        # types and ranges
        (
            "general_settings: {master_key: 1234}",
            "general_settings.master_key: must be text; put it in quotes",
        ),
        ("general_settings: {master_key: ''}", "general_settings.master_key: must not be empty"),
        (
            "general_settings: {master_key: 'sk-schlüssel'}",
            "general_settings.master_key: must be printable ASCII without blanks at its ends",
        ),
        (
            'general_settings: {master_key: "sk-key\\n"}',
            "general_settings.master_key: must be printable ASCII without blanks at its ends",
        ),
        ("general_settings: {data_dir: ''}", "general_settings.data_dir: must not be empty"),
        (
            "general_settings: {max_file_size_mb: -1}",
            "general_settings.max_file_size_mb: must be 1 or more",
        ),
        (
            "general_settings: {max_file_size_mb: 1.5}",
            "general_settings.max_file_size_mb: must be a whole number",
        ),
        (
            "general_settings: {max_request_size_mb: many}",
            "general_settings.max_request_size_mb: must be a whole number",
        ),
        (
            "general_settings: {fan_out_threads: true}",
            "general_settings.fan_out_threads: must be a whole number",
        ),
        (
            "general_settings: {fan_out: all}",
            "general_settings.fan_out: must be one of: every_model, every_deployment",
        ),
        (
            "general_settings: {migrate_on_start: maybe}",
            "general_settings.migrate_on_start: must be true or false",
        ),
        (
            "general_settings: {default_target_model_names: 7}",
            "general_settings.default_target_model_names: must be a list of names, "
            "or names with commas between",
        ),
        (
            "router_settings: {cooldown_time: -1}",
            "router_settings.cooldown_time: must be 0 or more",
        ),
        (
            "router_settings: {cooldown_time: .inf}",
            "router_settings.cooldown_time: must be a finite number",
        ),
        (model("timeout: 0"), "model_list.0.litellm_params.timeout: must be more than 0"),
        (model("timeout: soon"), "model_list.0.litellm_params.timeout: must be a number"),
        (model("weight: -1"), "model_list.0.litellm_params.weight: must be 0 or more"),
        (model("max_retries: -1"), "model_list.0.litellm_params.max_retries: must be 0 or more"),
        (
            model(upstream="5"),
            "model_list.0.litellm_params.model: must be text; put it in quotes",
        ),
        # names
        (
            model(name="'a;b'"),
            "model_list.0.model_name: must not contain ';', ',' or control characters",
        ),
        (
            model(name="'a,b'"),
            "model_list.0.model_name: must not contain ';', ',' or control characters",
        ),
        (
            model(name='"a\\tb"'),
            "model_list.0.model_name: must not contain ';', ',' or control characters",
        ),
        (model(name="' a'"), "model_list.0.model_name: must not begin or end with a blank"),
        (model(name="''"), "model_list.0.model_name: must not be empty"),
        (model(name="a" * 256), "model_list.0.model_name: is longer than 255 characters"),
        (
            model(upstream="openai/"),
            "model_list.0.litellm_params.model: must be '<provider>/<model>', "
            "or the bare name of OpenAI's model",
        ),
        (
            model(upstream="/gpt"),
            "model_list.0.litellm_params.model: must be '<provider>/<model>', "
            "or the bare name of OpenAI's model",
        ),
        (
            model(name="'*'", upstream="'*'"),
            "model_list.0.litellm_params.model: must be '<provider>/<model>', "
            "or the bare name of OpenAI's model",
        ),
        (
            model(name="openai/*"),
            "model_list.0: model_name and model must both end in '*', or neither",
        ),
        (
            model(upstream="openai/*"),
            "model_list.0: model_name and model must both end in '*', or neither",
        ),
        (
            model(name="a*b", upstream="openai/*"),
            "model_list.0: '*' may stand only at the end of model_name and model",
        ),
        (
            model() + "    model_info: {id: 'a;b'}",
            "model_list.0.model_info.id: must not contain ';', ',' or control characters",
        ),
        # what does not go together
        (
            model() + "    model_info: {id: x}\n" + entry("b", "gpt-4o", info="{id: x}"),
            "model_list.1.model_info.id: model_list.0 has this id already",
        ),
        (
            "files_settings:\n- {custom_llm_provider: a, default: true}\n"
            "- {custom_llm_provider: b, default: true}",
            "files_settings.1.default: files_settings.0 is the default already",
        ),
        (
            model() + "general_settings: {default_target_model_names: [gtp]}",
            "general_settings.default_target_model_names: 'gtp' is no model name; "
            "did you mean 'gpt'?",
        ),
        (
            model(name="openai/*", upstream="openai/*")
            + "general_settings: {default_target_model_names: ['openai/*']}",
            "general_settings.default_target_model_names: 'openai/*' is no model name",
        ),
        # variables
        (
            model("api_key: os.environ/UNSET"),
            "model_list.0.litellm_params.api_key: environment variable UNSET is not set",
        ),
        (
            model("timeout: os.environ/UNSET"),
            "model_list.0.litellm_params.timeout: environment variable UNSET is not set",
        ),
        (
            model("a: [{b: os.environ/UNSET}]"),
            "model_list.0.litellm_params.a.0.b: environment variable UNSET is not set",
        ),
        (
            "environment_variables: {A: os.environ/UNSET}",
            "environment_variables.A: environment variable UNSET is not set",
        ),
        # keys written twice
        (
            "general_settings:\n  data_dir: a\n  fan_out: every_model\n  data_dir: b",
            "general_settings.data_dir: written twice, in lines 2 and 4",
        ),
    ],
)
def test_a_mistake_names_its_place_and_what_is_wrong(refused, text, mistake):
    mistakes = refused(text)
    assert mistake in mistakes
    if not mistake.startswith("model_list.0"):
        assert mistakes == [mistake]


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        pytest.param(b"a: [1", r"line 1: expected ',' or '\]', but got '<stream end>'", id="open"),
        pytest.param(b"a: 1\nb: c: d\n", "line 2: mapping values are not allowed", id="colons"),
        pytest.param(b"a:\n\tb: 1\n", "line 2: found character ... that cannot", id="tab"),
        pytest.param(b"a: 1\n---\nb: 2\n", "line 2: but found another document", id="documents"),
        pytest.param(b"a: !!python/object:os.system x", "line 1: could not determine", id="tag"),
        pytest.param(b"a: &x [*x]\n", "line 1: an anchor refers to itself", id="endless"),
        pytest.param(b"- 1\n", "must be a mapping", id="list"),
        pytest.param(b"text", "must be a mapping", id="text"),
        pytest.param(b"a: 0b_\n", "holds a value that is not valid YAML", id="number"),
        pytest.param(b"a: \xff\n", "is not UTF-8 text", id="latin-1"),
        pytest.param(b"a: \x00\n", "holds a character that YAML does not allow", id="nul"),
    ],
)
def test_what_is_not_yaml_is_a_mistake_with_its_line(tmp_path, content, mistake):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        load(path, {})
    (text,) = refusal.value.mistakes
    assert re.match(rf"{re.escape(str(path))}: {mistake}", text)


def test_a_missing_file_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: No such file"):
        load(tmp_path / "nowhere.yaml", {})


def test_all_mistakes_are_reported_at_once(refused):
    text = """
        model_list:
          - model_name: gpt
            litellm_params: {model: opnai/gpt, api_key: os.environ/UNSET}
          - model_name: "a;b"
            litellm_params: {timeout: -1}
        files_settings:
          - {api_base: x}
        general_settings:
          master_kye: x
          fan_out_threads: none
        router_settings: 5
        surprise: 1
    """
    mistakes = refused(text, check=lambda _deployment: ["litellm_params.model: unknown provider"])
    assert {mistake.partition(":")[0] for mistake in mistakes} == {
        "surprise",
        "general_settings.fan_out_threads",
        "general_settings.master_kye",
        "router_settings",
        "model_list.0.litellm_params.api_key",
        "model_list.1.model_name",
        "model_list.1.litellm_params.timeout",
        "model_list.1.litellm_params.model",
        "model_list.0.litellm_params.model",
        "files_settings.0.custom_llm_provider",
    }
    assert len(mistakes) == 10


# What the providers say.


def test_the_check_sees_whole_deployments_and_its_texts_get_their_path(refused):
    seen: list[Deployment] = []

    def check(deployment):
        seen.append(deployment)
        return ["litellm_params.api_base: missing", "warning: litellm_params.model: old"]

    text = model("api_key: k") + "files_settings: [{custom_llm_provider: azure}]"
    assert refused(text, check=check) == [
        "model_list.0.litellm_params.api_base: missing",
        "files_settings.0.api_base: missing",
    ]
    assert [(each.provider, bool(each.id)) for each in seen] == [("openai", True), ("azure", True)]


def test_the_checks_warnings_only_warn(loaded):
    text = model() + "finetune_settings: [{custom_llm_provider: openai}]"
    settings = loaded(text, check=lambda _deployment: ["warning: litellm_params.model: is old"])
    assert settings.warnings == (
        "model_list.0.litellm_params.model: is old",
        "finetune_settings.0.model: is old",
    )


def test_a_missing_variable_is_not_also_a_wrong_value(refused):
    mistakes = refused(
        model("api_base: os.environ/UNSET"),
        check=lambda _deployment: ["litellm_params.api_base: not a valid URL"],
    )
    assert mistakes == [
        "model_list.0.litellm_params.api_base: environment variable UNSET is not set"
    ]


def test_a_deployment_without_a_model_is_not_checked(refused):
    assert refused("model_list: [{model_name: a, litellm_params: {}}]", check=pytest.fail) == [
        "model_list.0.litellm_params.model: missing"
    ]


# Default targets.


@pytest.mark.parametrize(
    "name", ["gpt", "openai/gpt-4o", "azure/anything"], ids=["public", "qualified", "wildcard"]
)
def test_a_default_target_may_be_any_name_that_clients_may_use(loaded, name):
    text = model() + entry("azure/*", "azure/*")
    settings = loaded(text + f"general_settings: {{default_target_model_names: [{name}]}}")
    assert settings.default_target_model_names == (name,)


# Ids.


def id_of(settings):
    (deployment,) = settings.deployments
    return deployment.id


BASE = ("api_key: one", "api_base: https://a.example/v1", "organization: o", "project: p")


def test_an_id_is_a_hash_that_never_changes_between_versions(loaded):
    # Every copy in the database refers to it.
    assert id_of(loaded(model())) == "68188c00bd0e09a0b352cf64797d8963"
    (account,) = loaded("files_settings: [{custom_llm_provider: openai}]").file_accounts
    assert account.id == "files:8745caf43b8e49906757d49de1b2f441"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["api_key: two", *BASE[1:]], id="key-rotated"),
        pytest.param(BASE[1:], id="key-gone"),
        pytest.param([*BASE, "api_version: '2024-10-21'"], id="api-version"),
        pytest.param([*BASE, "azure_ad_token: t", "client_secret: s"], id="other-credentials"),
        pytest.param([*BASE, "timeout: 5", "weight: 3", "max_retries: 0"], id="tuning"),
        pytest.param([BASE[0], "api_base: https://a.example/v1/", *BASE[2:]], id="slash"),
        pytest.param([*reversed(BASE)], id="order-of-keys"),
    ],
)
def test_an_id_outlives(loaded, lines):
    assert id_of(loaded(model(*lines))) == id_of(loaded(model(*BASE)))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(model(*BASE, name="other"), id="model-name"),
        pytest.param(model(*BASE, upstream="azure/gpt-4o"), id="provider"),
        pytest.param(model(*BASE, upstream="openai/o3"), id="upstream-model"),
        pytest.param(model(BASE[0], "api_base: https://b.example/v1", *BASE[2:]), id="address"),
        pytest.param(model(*BASE[:2], "organization: q", BASE[3]), id="organization"),
        pytest.param(model(*BASE[:3], "project: q"), id="project"),
        pytest.param(model(*BASE, "vertex_project: v"), id="vertex-project"),
        pytest.param(model(*BASE, "vertex_location: v"), id="vertex-location"),
    ],
)
def test_an_id_tells_apart(loaded, text):
    assert id_of(loaded(text)) != id_of(loaded(model(*BASE)))


def test_entries_that_differ_in_credentials_only_are_numbered_with_a_warning(loaded):
    text = model("api_key: one")
    first = id_of(loaded(text))
    settings = loaded(
        text + entry("gpt", "openai/gpt-4o", "api_key: two") + entry("gpt", "gpt-4o", "api_key: 3")
    )
    assert [each.id for each in settings.deployments] == [first, f"{first}-2", f"{first}-3"]
    assert [text.partition(":")[0] for text in settings.warnings] == [
        "model_list.1.model_info.id",
        "model_list.2.model_info.id",
    ]
    assert "set an id" in settings.warnings[0]


def test_an_id_of_ones_own_is_kept(loaded):
    settings = loaded(
        model()
        + "    model_info: {id: 17}\n"
        + entry("gpt", "openai/gpt-4o")
        + "files_settings: [{custom_llm_provider: openai, model_info: {id: files-main}}]"
    )
    assert settings.deployments[0].id == "17"
    assert settings.file_accounts[0].id == "files-main"
    assert not settings.warnings


def test_files_and_fine_tuning_accounts_have_ids_of_their_own(loaded):
    settings = loaded(
        """
        files_settings: [{custom_llm_provider: openai}, {custom_llm_provider: azure}]
        finetune_settings: [{custom_llm_provider: openai}]
        """
    )
    ids = [each.id for each in settings.file_accounts + settings.finetune_accounts]
    assert [each.partition(":")[0] for each in ids] == ["files", "files", "finetune"]
    assert len(set(ids)) == 3


# Secrets.

SECRETS = """
model_list:
  - model_name: gpt
    litellm_params:
      model: openai/gpt-4o
      api_key: SECRET-1
      organization: {nested: [SECRET-2]}
    model_info: {id: main, token: SECRET-3}
files_settings:
  - {custom_llm_provider: azure, client_secret: SECRET-4}
finetune_settings:
  - {custom_llm_provider: azure, client_secret: os.environ/SECRET_NAME}
general_settings:
  master_key: SECRET-6
  database_url: postgresql://u:SECRET-7@h/db
environment_variables: {SECRET_NAME: SECRET-5}
"""


def test_no_secret_is_in_what_gets_logged(loaded):
    settings = loaded(SECRETS)
    assert settings.master_key == "SECRET-6"
    assert "SECRET" not in repr(settings)
    assert "SECRET" not in str(settings.warnings)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(SECRETS + "surprise: SECRET-8\n", id="unknown-key"),
        pytest.param(SECRETS + "router_settings: SECRET-8\n", id="wrong-shape"),
        pytest.param(SECRETS.replace("master_key: SECRET-6", "master_key: [SECRET-6]"), id="type"),
        pytest.param(SECRETS.replace("SECRET-6", '"SECRET-6\\n"'), id="unusable-key"),
        pytest.param(SECRETS + "  - SECRET-8: x: y\n", id="syntax"),
        pytest.param("general_settings: {master_key: *SECRET-8}", id="alias"),
        pytest.param("general_settings: {master_key: !SECRET-8 x}", id="tag"),
        pytest.param("general_settings: {master_key: 'SECRET-8}", id="quote"),
        pytest.param("general_settings: {fan_out: SECRET, fan_out_threads: SECRET}", id="values"),
    ],
)
def test_no_secret_is_in_a_mistake(refused, text):
    assert "SECRET" not in "\n".join(refused(text))


# The file that is shipped.


def uncommented(text):
    return "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("##") else line
        for line in text.splitlines()
    )


def test_the_shipped_file_works_as_it_stands():
    settings = load(SHIPPED, {}, registry.mistakes)
    assert [each.qualified_model for each in settings.deployments] == [
        "local/documents",
        "local/archive",
    ]
    assert settings.default_target_model_names == ("documents", "archive")
    assert not settings.warnings


def test_the_examples_in_the_shipped_file_work(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(uncommented(SHIPPED.read_text()))
    variables = re.findall(r"os\.environ/([A-Z_]+)$", path.read_text(), re.MULTILINE)
    settings = load(path, {name: f"value-of-{name}" for name in variables}, registry.mistakes)
    assert [each.provider for each in settings.deployments] == [
        *("local", "local", "openai", "azure", "azure", "local")
    ]
    assert [each.provider for each in settings.file_accounts] == ["openai", "azure"]
    assert settings.database_url == "value-of-DATABASE_URL"
    assert not settings.warnings


def test_every_field_of_settings_can_be_written_down():
    from app.config_schema import GeneralSettings, RouterSettings, TopLevel

    elsewhere = {
        "deployments": "model_list",
        "file_accounts": "files_settings",
        "finetune_accounts": "finetune_settings",
        "cooldown_seconds": "cooldown_time",
    }
    known = {*GeneralSettings.known(), *RouterSettings.known(), *TopLevel.known()}
    names = {field.name for field in fields(Settings)} - {"warnings", "retiring_master_keys"}
    assert {elsewhere.get(name, name) for name in names} <= known

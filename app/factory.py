"""create_app(settings): builds every collaborator once and hands it on."""

from collections.abc import Mapping, Sequence

from flask import Blueprint, Flask

from app.api import (
    access_log,
    auth,
    batches,
    context,
    errors,
    files,
    fine_tuning,
    health,
    inference,
    keys,
    models,
    uploads,
    users,
)
from app.db.engine import Database, connect
from app.providers.protocol import Place, Provider
from app.providers.registry import open_provider, serves
from app.services.access import Access
from app.services.batches import Batches
from app.services.fan_out import FanOut
from app.services.file_lists import FileLists
from app.services.files import Files
from app.services.fine_tuning import FineTuning
from app.services.inference import Inference
from app.services.jobs import Jobs
from app.services.lookup import Lookup
from app.services.router import Router
from app.services.tuned_models import TunedModels
from app.services.upkeep import Upkeep
from app.services.uploads import Uploads
from app.settings import Deployment, Settings

MB = 1024 * 1024

_BARE = ("", "/v1", "/openai")
"""Where OpenAI's routes are: a base URL with and without /v1, and what Azure's client writes."""


def create_app(
    settings: Settings,
    database: Database | None = None,
    providers: Mapping[str, Provider] | None = None,
) -> Flask:
    """The WSGI application. Raises ConfigError when a deployment cannot be opened.

    Database and providers (by deployment id) are those of the settings unless they are given.
    """
    app = Flask("app", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.json.sort_keys = False  # type: ignore[attr-defined]  # Flask's default provider has it
    app.json.ensure_ascii = False  # type: ignore[attr-defined]  # likewise
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.extensions["manifold"] = build(settings, database, providers)
    errors.install(app)
    access_log.install(app)
    auth.install(app)
    for blueprint in (
        files.blueprint,
        batches.blueprint,
        uploads.blueprint,
        inference.blueprint,
        models.blueprint,
    ):
        _register(app, blueprint, _BARE)
    _register(app, fine_tuning.blueprint, _BARE)
    for blueprint in (files.blueprint, batches.blueprint):
        _register(app, blueprint, ("/<provider>/v1",))
    # Azure's newer base URL; files and batches are there already, by the provider way.
    for blueprint in (inference.blueprint, models.blueprint, fine_tuning.blueprint):
        _register(app, blueprint, ("/openai/v1",))
    _register(app, inference.azure_clients, ("/openai",))
    for blueprint in (models.info, users.blueprint, keys.blueprint, health.blueprint):
        app.register_blueprint(blueprint)
    return app


def build(
    settings: Settings,
    database: Database | None = None,
    providers: Mapping[str, Provider] | None = None,
) -> context.Services:
    """Every collaborator, for the app and for the worker."""
    database = database or connect(settings.resolved_database_url)
    place = Place(
        data_dir=settings.data_dir, max_inline_bytes=settings.max_inline_file_size_mb * MB
    )
    if providers is None:
        accounts = (*settings.deployments, *settings.file_accounts, *settings.finetune_accounts)
        providers = _providers(accounts, place)
    tuned_models = TunedModels(database)
    router = Router(settings, providers, tuned_models=tuned_models)
    lookup = Lookup(settings, database, router)
    file_service = Files(settings, database, router, lookup, FanOut(settings.fan_out_threads))
    jobs = Jobs(settings, database, router, lookup)
    batch_service = Batches(database, router, jobs)
    tuning_service = FineTuning(settings, database, router, jobs, tuned_models)
    return context.Services(
        settings=settings,
        database=database,
        access=Access(database, settings.master_key, on_files_deleted=file_service.finish_deletes),
        router=router,
        files=file_service,
        file_lists=FileLists(database, router),
        uploads=Uploads(settings, database, router, file_service),
        inference=Inference(router, lookup),
        batches=batch_service,
        fine_tuning=tuning_service,
        upkeep=Upkeep(settings, database, jobs, batch_service, tuning_service),
    )


def _providers(deployments: Sequence[Deployment], place: Place) -> dict[str, Provider]:
    return {d.id: open_provider(d, place) for d in deployments if serves(d)}


def _register(app: Flask, blueprint: Blueprint, prefixes: Sequence[str]) -> None:
    for prefix in prefixes:
        name = blueprint.name + prefix.replace("/", "_").replace("<", "").replace(">", "")
        at = prefix + (blueprint.url_prefix or "")
        app.register_blueprint(blueprint, url_prefix=at or None, name=name)

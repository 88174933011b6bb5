"""create_app(settings): builds every collaborator once and hands it on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flask import Blueprint, Flask

from app.api import (
    access_log,
    audit,
    auth,
    batches,
    context,
    errors,
    files,
    fine_tuning,
    health,
    inference,
    keys,
    metering,
    models,
    security_headers,
    uploads,
    uri_ids,
    usage,
    users,
)
from app.api import metrics as scraping
from app.api.application import Application
from app.api.reference import page
from app.console import room, signing_in
from app.db.engine import Database, connect
from app.metrics import Metrics
from app.providers.protocol import Place, Provider
from app.providers.registry import open_all
from app.services.access import Access
from app.services.account_check import AccountCheck
from app.services.audit import Trail
from app.services.batch_files import BatchFiles
from app.services.batches import Batches
from app.services.browse import Browse
from app.services.census import Census
from app.services.copies import Copies
from app.services.fan_out import FanOut
from app.services.file_lists import FileLists
from app.services.files import Files
from app.services.fine_tuning import FineTuning
from app.services.fsck import Fsck
from app.services.head_start import HeadStarts
from app.services.inference import Inference
from app.services.jobs import Jobs
from app.services.kept import Kept
from app.services.leases import Leases
from app.services.lookup import Lookup
from app.services.mending import Mending
from app.services.metering import Meter
from app.services.once import Once
from app.services.reconciler import Reconciler
from app.services.renewal import Renewal
from app.services.repeats import Repeats
from app.services.router import Router
from app.services.row_check import RowCheck
from app.services.sessions import Sessions
from app.services.store_check import StoreCheck
from app.services.storing import Storing
from app.services.sweeper import Sweeper
from app.services.tuned_models import TunedModels
from app.services.upkeep import Upkeep
from app.services.uploads import Uploads
from app.services.usage import FLUSH_SECONDS, Usage
from app.settings import Settings
from app.spool import Spool

MB = 1024 * 1024

_BARE = ("", "/v1", "/openai")
"""Where OpenAI's routes are: a base URL with and without /v1, and what Azure's client writes."""


def create_app(
    settings: Settings,
    database: Database | None = None,
    providers: Mapping[str, Provider] | None = None,
    metrics: Metrics | None = None,
) -> Flask:
    """The WSGI application. Raises ConfigError when a deployment cannot be opened.

    Database and providers (by deployment id) are those of the settings unless they are given.
    `metrics` are this process's, None when it counts nothing.
    """
    app = Application("app")
    app.extensions["manifold"] = services = build(settings, database, providers, metrics)
    errors.install(app)
    security_headers.install(app)
    access_log.install(app, usage.Counting(services.usage))
    auth.install(app, room.count, signing_in.signed_in)
    metering.install(app)
    audit.install(app, room.ACTIONS)
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
    app.wsgi_app = uri_ids.escaping(app.wsgi_app)  # type: ignore[assignment, method-assign]  # Flask's own way
    for blueprint in (
        models.info,
        users.blueprint,
        keys.blueprint,
        health.blueprint,
        page.blueprint,
        scraping.blueprint,
    ):
        app.register_blueprint(blueprint)
    app.register_blueprint(room.blueprint)
    return app


def build(
    settings: Settings,
    database: Database | None = None,
    providers: Mapping[str, Provider] | None = None,
    metrics: Metrics | None = None,
) -> context.Services:
    """Every collaborator, for the app and for the worker."""
    # A database that is given is a test's, and may have one connection for all threads.
    is_given = database is not None
    journal = None if is_given else settings.data_dir / "audit"
    database = database or connect(
        settings.resolved_database_url, pool_size=settings.database_pool_size
    )
    if metrics is not None:
        metrics.meters.watch_pool(settings.database_pool_size, database.when)
    place = Place(
        data_dir=settings.data_dir, max_inline_bytes=settings.max_inline_file_size_mb * MB
    )
    if providers is None:
        accounts = (*settings.deployments, *settings.file_accounts, *settings.finetune_accounts)
        providers = open_all(accounts, settings.file_accounts, place)
    tuned_models = TunedModels(database)
    router = Router(settings, providers, tuned_models=tuned_models)
    spool = Spool(settings.data_dir / "spool")
    files = file_services(settings, database, router, spool)
    lookup, renewal = files.lookup, files.renewal
    jobs = Jobs(settings, database, router, lookup, renewal)
    batch_service = Batches(database, router, jobs)
    tuning_service = FineTuning(settings, database, router, jobs, tuned_models)
    uploads = Uploads(settings, database, router, files.files, files.meter)
    once = Once(database, settings.lease_seconds)
    access = Access(
        database,
        settings.master_key,
        on_files_deleted=files.files.finish_deletes,
        retiring_master_keys=settings.retiring_master_keys,
    )
    sessions = Sessions(database, access)
    counted = Usage(database, router.model_of, None if is_given else FLUSH_SECONDS)
    return context.Services(
        settings=settings,
        database=database,
        spool=spool,
        access=access,
        sessions=sessions,
        usage=counted,
        browse=Browse(database),
        meter=files.meter,
        once=once,
        repeats=Repeats(database),
        trail=Trail(database, settings.audit_retention_days, journal),
        router=router,
        files=files.files,
        file_lists=FileLists(database, router),
        uploads=uploads,
        inference=Inference(settings, database, router, lookup, renewal),
        batches=batch_service,
        fine_tuning=tuning_service,
        upkeep=Upkeep(settings, database, jobs, batch_service, tuning_service),
        reconciler=files.reconciler,
        sweeper=Sweeper(
            database,
            tuple(providers.values()),
            copies=files.copies,
            uploads=uploads,
            kept=files.kept,
            spool=spool,
            meter=files.meter,
            once=once,
            also=(sessions.sweep, counted.sweep),
        ),
        fsck=check(settings, database, router, providers, files, uploads, spool),
        census=Census(settings, database),
        metrics=metrics,
    )


def check(  # noqa: PLR0917  # everything there is to check
    settings: Settings,
    database: Database,
    router: Router,
    providers: Mapping[str, Provider],
    files: "FileServices",
    uploads: Uploads,
    spool: Spool,
) -> Fsck:
    """The check of rows, disk and accounts."""
    mending = Mending(
        database, copies=files.copies, renewal=files.renewal, reconciler=files.reconciler
    )
    return Fsck(
        database,
        files.reconciler,
        row_check=RowCheck(database, router, renewal=files.renewal, mending=mending),
        store_check=StoreCheck(
            settings,
            database,
            providers,
            kept=files.kept,
            uploads=uploads,
            spool=spool,
            mending=mending,
        ),
        account_check=AccountCheck(settings, database, providers, mending),
    )


@dataclass(frozen=True)
class FileServices:
    """What everything about files is made of."""

    lookup: Lookup
    kept: Kept
    leases: Leases
    meter: Meter
    copies: Copies
    renewal: Renewal
    reconciler: Reconciler
    files: Files


def file_services(
    settings: Settings,
    database: Database,
    router: Router,
    spool: Spool | None = None,
    leases: Leases | None = None,
    *,
    fan_out: FanOut | None = None,
) -> FileServices:
    """The collaborators that store files, over a router."""
    spool = spool or Spool(settings.data_dir / "spool")
    lookup = Lookup(settings, database, router)
    fan_out = fan_out or FanOut(settings.fan_out_threads)
    kept = Kept(settings.data_dir)
    leases = leases or Leases(database, settings.lease_seconds)
    meter = Meter(database, settings.lease_seconds)
    batch_files = BatchFiles(settings, router)
    copies = Copies(database, router, fan_out, kept)
    renewal = Renewal(
        settings,
        database,
        router,
        copies=copies,
        batch_files=batch_files,
        kept=kept,
        leases=leases,
        spool=spool,
    )
    storing = Storing(
        settings,
        database,
        router,
        fan_out=fan_out,
        copies=copies,
        renewal=renewal,
        batch_files=batch_files,
        kept=kept,
        leases=leases,
        meter=meter,
        spool=spool,
    )
    files = Files(
        database,
        router,
        lookup,
        head_starts=HeadStarts(router, settings.fan_out_threads),
        storing=storing,
        copies=copies,
        kept=kept,
    )
    reconciler = Reconciler(
        settings, database, copies=copies, renewal=renewal, kept=kept, leases=leases
    )
    return FileServices(lookup, kept, leases, meter, copies, renewal, reconciler, files)


def _register(app: Flask, blueprint: Blueprint, prefixes: Sequence[str]) -> None:
    for prefix in prefixes:
        name = blueprint.name + prefix.replace("/", "_").replace("<", "").replace(">", "")
        at = prefix + (blueprint.url_prefix or "")
        app.register_blueprint(blueprint, url_prefix=at or None, name=name)

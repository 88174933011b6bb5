"""Fine-tuning jobs at one account: create, list, retrieve, cancel."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from app.providers.account_params import AccountParams
from app.sdk.accounts import Wanted, account
from app.sdk.files import Config
from app.sdk.objects import FineTuningJob, Page, job_of
from app.sdk.pages import page_of
from app.sdk.threads import off_the_loop


def create_fine_tuning_job(
    model: str,
    training_file: str,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    suffix: str | None = None,
    validation_file: str | None = None,
    integrations: Sequence[Mapping[str, Any]] | None = None,
    seed: int | None = None,
    method: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    custom_llm_provider: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> FineTuningJob:
    """Start a job over files that are at the same account; `model` is the provider's own name.

    What is None is not sent. Raises GatewayError.
    """
    target = account(Wanted(custom_llm_provider, None, config, params), tuning=True)
    body = {
        "model": model,
        "training_file": training_file,
        "hyperparameters": hyperparameters,
        "suffix": suffix,
        "validation_file": validation_file,
        "integrations": integrations,
        "seed": seed,
        "method": method,
        "metadata": metadata,
    }
    given = {key: value for key, value in body.items() if value is not None}
    return job_of(target.provider.create_job(given))


def retrieve_fine_tuning_job(
    fine_tuning_job_id: str,
    *,
    custom_llm_provider: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> FineTuningJob:
    """The job as it is now. Raises NotFound."""
    target = account(Wanted(custom_llm_provider, None, config, params), tuning=True)
    return job_of(target.provider.retrieve_job(fine_tuning_job_id))


def list_fine_tuning_jobs(
    *,
    after: str | None = None,
    limit: int = 20,
    custom_llm_provider: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> Page[FineTuningJob]:
    """The account's jobs, newest first."""
    target = account(Wanted(custom_llm_provider, None, config, params), tuning=True)
    return page_of(map(job_of, target.provider.jobs()), after, limit)


def cancel_fine_tuning_job(
    fine_tuning_job_id: str,
    *,
    custom_llm_provider: str | None = None,
    config: Config = None,
    **params: Unpack[AccountParams],
) -> FineTuningJob:
    """Ask for the end of a job; the job as it is then. Raises NotFound."""
    target = account(Wanted(custom_llm_provider, None, config, params), tuning=True)
    return job_of(target.provider.steer_job(fine_tuning_job_id, "cancel"))


acreate_fine_tuning_job = off_the_loop(create_fine_tuning_job)
aretrieve_fine_tuning_job = off_the_loop(retrieve_fine_tuning_job)
alist_fine_tuning_jobs = off_the_loop(list_fine_tuning_jobs)
acancel_fine_tuning_job = off_the_loop(cancel_fine_tuning_job)

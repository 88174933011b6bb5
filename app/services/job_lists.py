"""One page of the caller's own batches or fine-tuning jobs."""

from dataclasses import dataclass

from app import ids
from app.db import jobs as rows
from app.db.engine import Database
from app.db.tables import Job
from app.errors import InvalidRequest, NotPermitted
from app.ids import JobType
from app.services.callers import MASTER_OWNER, MASTER_USER_ID, Caller
from app.services.router import Router, Selector


@dataclass(frozen=True)
class JobQuery:
    """What a list asks for. `after` is an id as it was handed out; `user_id` is for admins."""

    limit: int = 20
    after: str | None = None
    user_id: str | None = None


def list_jobs(  # noqa: PLR0917  # two collaborators and four facts of the request
    database: Database,
    router: Router,
    caller: Caller,
    type: JobType,
    query: JobQuery,
    selector: Selector,
) -> tuple[list[Job], bool]:
    """The jobs of the page, newest first, and whether there are more.

    A selector narrows the list to its accounts. Raises InvalidRequest for an unknown cursor.
    """
    if query.user_id is not None and not caller.sees_everything:
        raise NotPermitted("only an admin may list another user's jobs")
    owner = caller.owner if query.user_id is None else _owner_of(query.user_id)
    deployment_ids: tuple[str, ...] = ()
    if selector != Selector():
        if type == "fine_tuning" and selector.provider is not None:
            routes = router.tuning_accounts(selector.provider)
        else:
            routes = router.way(selector, caller).routes
        deployment_ids = tuple(route.deployment.id for route in routes)
    with database.read() as session:
        after = None
        if query.after is not None:
            meaning = ids.decode_job(type, query.after)
            found = rows.meant_by(session, type, meaning, query.after) if meaning else []
            own = [j for j in found if j.owner == owner and j.public_id == query.after]
            if not own:
                raise InvalidRequest(
                    f"after names nothing of this list: {query.after[:200]!r}", param="after"
                )
            after = (own[0].created_at, own[0].id)
        filters = rows.JobFilters(owner, type, deployment_ids=deployment_ids)
        jobs = rows.page(session, filters, after=after, limit=query.limit + 1)
    return jobs[: query.limit], len(jobs) > query.limit


def _owner_of(user_id: str) -> str:
    return MASTER_OWNER if user_id == MASTER_USER_ID else f"user:{user_id}"

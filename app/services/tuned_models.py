"""Models that fine-tuning jobs made, as deployments of their jobs' owners alone."""

from contextlib import suppress

from sqlalchemy.exc import IntegrityError

from app import ids
from app.db import jobs as rows
from app.db.engine import Database
from app.db.tables import Job, TunedModel, now


class TunedModels:
    """Which owner may call which tuned model, and at which account; from the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, job: Job, model_name: str) -> None:
        """Let the job's owner call the model; once, whoever sees the job's end."""
        model = TunedModel(
            id=ids.new_uuid(),
            owner=job.owner,
            model_name=model_name,
            deployment_id=job.deployment_id,
            job_id=job.id,
            created_at=now(),
        )
        # On PostgreSQL two may see the end at once; the other one's row is as good.
        with suppress(IntegrityError), self._database.write() as session:
            # The job's owner at this moment: he may have been deleted since it was read.
            model.owner = rows.owner_of(session, job.id) or job.owner
            if rows.tuned_model(session, model.owner, model_name) is None:
                session.add(model)

    def deployment_of(self, owner: str, model_name: str) -> str | None:
        """The id of the account that has the owner's model of this name."""
        if not model_name.isprintable():
            # No model's name, and with half a surrogate pair no text for a database.
            return None
        with self._database.read() as session:
            found = rows.tuned_model(session, owner, model_name)
        return found.deployment_id if found else None

    def names(self, owner: str) -> list[tuple[str, str]]:
        """The owner's models with the ids of their accounts, oldest first."""
        with self._database.read() as session:
            return [(m.model_name, m.deployment_id) for m in rows.tuned_models(session, owner)]

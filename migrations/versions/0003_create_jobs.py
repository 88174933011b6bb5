"""Create jobs and tuned models."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=True),
        sa.Column("owner", sa.String(length=300), nullable=False),
        sa.Column("model_name", sa.String(length=255), nullable=True),
        sa.Column("deployment_id", sa.String(length=255), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("upstream_id", sa.String(length=512), nullable=True),
        sa.Column("upstream_input_id", sa.Text(), nullable=False),
        sa.Column("input_uuid", sa.String(length=36), nullable=True),
        sa.Column("validation_uuid", sa.String(length=36), nullable=True),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("snapshot", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("looks", sa.Integer(), nullable=False),
        sa.Column("next_look_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint(
            "deployment_id",
            "type",
            "upstream_id",
            name=op.f("uq_jobs_deployment_id_type_upstream_id"),
        ),
    )
    op.create_index("ix_jobs_due", "jobs", ["state", "next_look_at"], unique=False)
    op.create_index("ix_jobs_input", "jobs", ["input_uuid", "state"], unique=False)
    op.create_index(
        "ix_jobs_owner_created", "jobs", ["owner", "type", "created_at", "id"], unique=False
    )
    op.create_index("ix_jobs_upstream_id", "jobs", ["upstream_id"], unique=False)
    op.create_index("ix_jobs_validation", "jobs", ["validation_uuid", "state"], unique=False)
    op.create_table(
        "tuned_models",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=300), nullable=False),
        sa.Column("model_name", sa.String(length=255), nullable=False),
        sa.Column("deployment_id", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_tuned_models_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tuned_models")),
        sa.UniqueConstraint("owner", "model_name", name=op.f("uq_tuned_models_owner_model_name")),
    )


def downgrade() -> None:
    op.drop_table("tuned_models")
    op.drop_index("ix_jobs_validation", table_name="jobs")
    op.drop_index("ix_jobs_upstream_id", table_name="jobs")
    op.drop_index("ix_jobs_owner_created", table_name="jobs")
    op.drop_index("ix_jobs_input", table_name="jobs")
    op.drop_index("ix_jobs_due", table_name="jobs")
    op.drop_table("jobs")

"""Limits of users and keys, what is counted for them, and requests that are done once."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_LIMITS = ("rpm_limit", "upload_rpm_limit", "max_parallel_requests", "max_files")


def upgrade() -> None:
    for table in ("users", "keys"):
        for name in _LIMITS:
            op.add_column(table, sa.Column(name, sa.Integer(), nullable=True))
        op.add_column(table, sa.Column("max_bytes_stored", sa.BigInteger(), nullable=True))
    op.add_column("files", sa.Column("key_id", sa.String(length=36), nullable=True))
    op.create_index("ix_files_key_id", "files", ["key_id"])
    op.add_column("uploads", sa.Column("key_id", sa.String(length=36), nullable=True))
    op.create_index("ix_uploads_owner", "uploads", ["owner", "status"])
    op.create_index("ix_uploads_key_id", "uploads", ["key_id"])
    op.create_table(
        "request_counts",
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "kind", name="pk_request_counts"),
    )
    op.create_index("ix_request_counts_began_at", "request_counts", ["began_at"])
    op.create_table(
        "running_requests",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", "subject", name="pk_running_requests"),
    )
    op.create_index("ix_running_requests_subject", "running_requests", ["subject", "lease_until"])
    op.create_index("ix_running_requests_lease_until", "running_requests", ["lease_until"])
    op.create_table(
        "single_requests",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("object_uuid", sa.String(length=36), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_single_requests"),
    )
    op.create_index("ix_single_requests_expires_at", "single_requests", ["expires_at"])


def downgrade() -> None:
    op.drop_table("single_requests")
    op.drop_table("running_requests")
    op.drop_table("request_counts")
    op.drop_index("ix_uploads_key_id", table_name="uploads")
    op.drop_index("ix_uploads_owner", table_name="uploads")
    op.drop_column("uploads", "key_id")
    op.drop_index("ix_files_key_id", table_name="files")
    op.drop_column("files", "key_id")
    for table in ("users", "keys"):
        for name in ("max_bytes_stored", *reversed(_LIMITS)):
            op.drop_column(table, name)

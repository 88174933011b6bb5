"""What copies need to be renewed: their attempt's key, their next look, what they were called."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "files",
        sa.Column("is_kept", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column("files", sa.Column("copies_expire_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("copies", sa.Column("upstream_model", sa.String(length=255), nullable=True))
    op.add_column("copies", sa.Column("upload_key", sa.String(length=32), nullable=True))
    op.add_column("copies", sa.Column("first_file_id", sa.Text(), nullable=True))
    op.add_column("copies", sa.Column("next_look_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("copies", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_files_expires_at", "files", ["expires_at"])
    op.create_index("ix_copies_first_file_id", "copies", ["first_file_id"])
    op.create_index("ix_copies_next_look_at", "copies", ["next_look_at"])


def downgrade() -> None:
    op.drop_index("ix_copies_next_look_at", table_name="copies")
    op.drop_index("ix_copies_first_file_id", table_name="copies")
    op.drop_index("ix_files_expires_at", table_name="files")
    for name in ("lease_until", "next_look_at", "first_file_id", "upload_key", "upstream_model"):
        op.drop_column("copies", name)
    for name in ("copies_expire_at", "is_kept"):
        op.drop_column("files", name)

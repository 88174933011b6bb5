"""Create users, keys, files and their copies."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=300), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.String(length=255), nullable=False),
        sa.Column("purpose", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("target_model_names", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("status_details", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index("ix_files_created", "files", ["created_at", "id"], unique=False)
    op.create_index("ix_files_owner_created", "files", ["owner", "created_at", "id"], unique=False)
    op.create_index("ix_files_state_updated", "files", ["state", "updated_at"], unique=False)
    op.create_table(
        "users",
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("id_folded", sa.String(length=765), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=True),
        sa.Column("email_folded", sa.String(length=960), nullable=True),
        sa.Column("alias", sa.String(length=255), nullable=True),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("blocked", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_users")),
        sa.UniqueConstraint("email_folded", name=op.f("uq_users_email_folded")),
        sa.UniqueConstraint("id_folded", name=op.f("uq_users_id_folded")),
    )
    op.create_index("ix_users_created", "users", ["created_at", "user_id"], unique=False)
    op.create_table(
        "copies",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("file_id", sa.String(length=36), nullable=False),
        sa.Column("model_name", sa.String(length=255), nullable=True),
        sa.Column("deployment_id", sa.String(length=255), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("deployment_file_id", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"], ["files.id"], name=op.f("fk_copies_file_id_files"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_copies")),
        sa.UniqueConstraint(
            "file_id", "deployment_id", name=op.f("uq_copies_file_id_deployment_id")
        ),
    )
    op.create_index("ix_copies_deployment_file_id", "copies", ["deployment_file_id"], unique=False)
    op.create_index("ix_copies_model_name", "copies", ["model_name", "file_id"], unique=False)
    op.create_index("ix_copies_state", "copies", ["state"], unique=False)
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("previous_token", sa.String(length=64), nullable=True),
        sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("key_name", sa.String(length=32), nullable=False),
        sa.Column("alias", sa.String(length=255), nullable=True),
        sa.Column("alias_scope", sa.String(length=255), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=True),
        sa.Column("owner", sa.String(length=300), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("blocked", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=300), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("fk_keys_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
        sa.UniqueConstraint("alias", "alias_scope", name=op.f("uq_keys_alias_alias_scope")),
        sa.UniqueConstraint("token", name=op.f("uq_keys_token")),
    )
    op.create_index("ix_keys_created", "keys", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_keys_previous_token"), "keys", ["previous_token"], unique=False)
    op.create_index("ix_keys_user_created", "keys", ["user_id", "created_at", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_keys_user_created", table_name="keys")
    op.drop_index(op.f("ix_keys_previous_token"), table_name="keys")
    op.drop_index("ix_keys_created", table_name="keys")
    op.drop_table("keys")
    op.drop_index("ix_copies_state", table_name="copies")
    op.drop_index("ix_copies_model_name", table_name="copies")
    op.drop_index("ix_copies_deployment_file_id", table_name="copies")
    op.drop_table("copies")
    op.drop_index("ix_users_created", table_name="users")
    op.drop_table("users")
    op.drop_index("ix_files_state_updated", table_name="files")
    op.drop_index("ix_files_owner_created", table_name="files")
    op.drop_index("ix_files_created", table_name="files")
    op.drop_table("files")

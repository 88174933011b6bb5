"""How many bytes a copy's upstream was sent: by them a lost copy is found among its files."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("copies", sa.Column("sent_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("copies", "sent_bytes")

"""datasets count their privacy units"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # None is right for all datasets there are: none of them has the column unit_id.
    op.add_column("dataset", sa.Column("units", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("dataset", "units")

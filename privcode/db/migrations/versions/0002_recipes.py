"""jobs without a plan, jobs without prompts"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("job", "plan", nullable=True)
    op.alter_column("job", "prompts_id", nullable=True)


def downgrade() -> None:
    op.alter_column("job", "prompts_id", nullable=False)
    op.alter_column("job", "plan", nullable=False)

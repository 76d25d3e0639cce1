"Who signs in, from where, and with which keys."

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def keys(table: str, *columns: sa.Column, unique: tuple[str, ...] = ()):
    op.create_table(
        table,
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        *columns,
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name=op.f(f"fk_{table}_user_id_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint("token_hash", name=op.f(f"uq_{table}_token_hash")),
        *([sa.UniqueConstraint(*unique, name=op.f(f"uq_{table}_{'_'.join(unique)}"))] if unique else []),
        sqlite_autoincrement=True,
    )


def upgrade():
    op.add_column("user", sa.Column("language", sa.String(length=2), nullable=True))
    keys("user_session", sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False))
    op.create_index("ix_user_session_user_id", "user_session", ["user_id"])
    name = sa.Column("name", sa.String(length=100), nullable=False)
    used = sa.Column("used_at", sa.DateTime(timezone=True), nullable=True)
    keys("api_token", name, used, unique=("user_id", "name"))
    op.create_table(
        "sign_in_failure",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("username", sa.String(length=100), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_in_failure")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sign_in_failure_address_created_at", "sign_in_failure", ["address", "created_at"])


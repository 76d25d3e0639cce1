"Near-duplicates, folds, golden pictures, and indexes in the order of pages."

import sqlalchemy as sa
from alembic import op

from classification_mlops.db.tallies import create_tallies

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ALIVE, GROUPED, CLUSTERED = "deleted_at IS NULL", "group_key IS NOT NULL", "cluster_id IS NOT NULL"
GOLDEN, DELETED = "golden = true", "deleted_at IS NOT NULL"


def index_pictures(where: str, *columns: str):
    name = "ix_train_data_" + "_".join(columns)
    condition = sa.text(where)
    op.create_index(name, "train_data", columns, sqlite_where=condition, postgresql_where=condition)


def upgrade():
    op.add_column("train_data", sa.Column("cluster_id", sa.Integer(), nullable=True))
    op.add_column("train_data", sa.Column("fold", sa.SmallInteger(), nullable=True))
    op.add_column(
        "train_data", sa.Column("golden", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("split_batch", sa.Column("details", sa.JSON(), nullable=True))
    op.add_column("train_data", sa.Column("label_act_id", sa.Integer(), nullable=True))
    for columns in ("id", "label_id_id", "split_id", "deleted_at_label_id_split", "group_key"):
        op.drop_index(f"ix_train_data_theme_id_{columns}", "train_data")
    index_pictures(ALIVE, "theme_id", "id")
    index_pictures(ALIVE, "theme_id", "label_id", "split", "id")
    index_pictures(ALIVE, "theme_id", "split", "id")
    index_pictures("labeled_by IS NOT NULL", "theme_id", "labeled_by", "id")
    index_pictures(ALIVE, "theme_id", "labeled_by", "label_id", "id")
    index_pictures(GROUPED, "theme_id", "group_key", "split", "id")
    index_pictures(CLUSTERED, "theme_id", "cluster_id", "id")
    index_pictures(GOLDEN, "theme_id", "golden", "id")
    index_pictures(DELETED, "theme_id", "deleted_at")
    op.create_index(
        "ix_review_item_theme_id_status_reason_train_data_id",
        "review_item",
        ["theme_id", "status", "reason", "train_data_id"],
    )
    op.create_table(
        "duplicate_pair",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("first_id", sa.Integer(), nullable=False),
        sa.Column("second_id", sa.Integer(), nullable=False),
        sa.Column("distance", sa.SmallInteger(), nullable=False),
        sa.Column("similarity", sa.Double(), nullable=False),
        sa.Column("status", sa.String(length=10), server_default="found", nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('found', 'reported', 'confirmed', 'rejected')", name=op.f("ck_duplicate_pair_status")
        ),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_duplicate_pair_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["first_id"],
            ["train_data.id"],
            name=op.f("fk_duplicate_pair_first_id_train_data"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["second_id"],
            ["train_data.id"],
            name=op.f("fk_duplicate_pair_second_id_train_data"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_duplicate_pair")),
        sa.UniqueConstraint("first_id", "second_id", name=op.f("uq_duplicate_pair_first_id_second_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_duplicate_pair_theme_id_status_id", "duplicate_pair", ["theme_id", "status", "id"])
    op.create_index("ix_duplicate_pair_second_id", "duplicate_pair", ["second_id"])
    fingerprints()
    label_acts()
    counts_and_text()


def label_acts():
    for column in ("act_id", "old_labeled_by", "old_act_id"):
        kind = sa.Text() if column == "old_labeled_by" else sa.Integer()
        op.add_column("label_event", sa.Column(column, kind, nullable=True))
    acted = sa.text("act_id IS NOT NULL")
    op.create_index(
        "ix_label_event_act_id_train_data_id",
        "label_event",
        ["act_id", "train_data_id"],
        sqlite_where=acted,
        postgresql_where=acted,
    )
    op.create_table(
        "label_act",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=10), nullable=False),
        sa.Column("pictures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("undoes", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('label', 'merge', 'rename', 'drop', 'delete', 'undo', 'redo')",
            name=op.f("ck_label_act_kind"),
        ),
        sa.CheckConstraint(
            "source IN ('human', 'model', 'import', 'api')", name=op.f("ck_label_act_source")
        ),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_label_act_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label_act")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_label_act_theme_id_id", "label_act", ["theme_id", "id"])
    op.create_index("ix_label_act_theme_id_actor_id", "label_act", ["theme_id", "actor", "id"])


def counts_and_text():
    op.create_table(
        "picture_count",
        sa.Column("theme_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("label_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("split", sa.String(length=5), nullable=False),
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pictures", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("theme_id", "label_id", "split", "shard", name=op.f("pk_picture_count")),
        sqlite_with_rowid=False,
    )
    create_tallies(op.get_bind())


def fingerprints():
    op.create_table(
        "fingerprint",
        sa.Column("train_data_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("searched", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("sketch", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["train_data_id"],
            ["train_data.id"],
            name=op.f("fk_fingerprint_train_data_id_train_data"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_fingerprint_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("train_data_id", name=op.f("pk_fingerprint")),
    )
    op.create_index("ix_fingerprint_theme_id_train_data_id", "fingerprint", ["theme_id", "train_data_id"])

"All tables of the first release."

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    op.create_table(
        "theme",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_theme")),
        sa.UniqueConstraint("name", name=op.f("uq_theme_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "user",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("username", sa.String(length=100), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("disabled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("role IN ('admin', 'annotator', 'viewer')", name=op.f("ck_user_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user")),
        sa.UniqueConstraint("username", name=op.f("uq_user_username")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "job",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=True),
        sa.Column("status", sa.String(length=12), server_default="queued", nullable=False),
        sa.Column("control", sa.String(length=10), nullable=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("heartbeat", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("control IN ('pause', 'resume', 'cancel')", name=op.f("ck_job_control")),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'paused', 'finished', 'failed', 'cancelled', 'interrupted')",
            name=op.f("ck_job_status"),
        ),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_job_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_job_mlflow_run_id"), "job", ["mlflow_run_id"])
    op.create_index(op.f("ix_job_status_id"), "job", ["status", "id"])
    op.create_index(op.f("ix_job_theme_id_id"), "job", ["theme_id", "id"])
    op.create_table(
        "label",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("label_name", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("position", sa.Integer(), server_default="0", nullable=False),
        sa.Column("color", sa.String(length=7), server_default="#0072B2", nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_label_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label")),
        sa.UniqueConstraint("id", "theme_id", name=op.f("uq_label_id_theme_id")),
        sa.UniqueConstraint("theme_id", "label_name", name=op.f("uq_label_theme_id_label_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_model_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint("mlflow_run_id", name=op.f("uq_model_mlflow_run_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_model_theme_id"), "model", ["theme_id"])
    op.create_table(
        "split_batch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("ratios", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.String(length=20), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_split_batch_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_split_batch")),
        sa.UniqueConstraint("id", "theme_id", name=op.f("uq_split_batch_id_theme_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_split_batch_theme_id"), "split_batch", ["theme_id"])
    op.create_table(
        "train_data",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("image_path", sa.Text(), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("label_id", sa.Integer(), nullable=True),
        sa.Column("split", sa.String(length=5), nullable=True),
        sa.Column("labeled_by", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("perceptual_hash", sa.BigInteger(), nullable=True),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("original_name", sa.Text(), nullable=True),
        sa.Column("group_key", sa.String(length=200), nullable=True),
        sa.Column("split_batch_id", sa.Integer(), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("split IN ('train', 'valid', 'test')", name=op.f("ck_train_data_split")),
        sa.ForeignKeyConstraint(
            ["label_id", "theme_id"],
            ["label.id", "label.theme_id"],
            name=op.f("fk_train_data_label_id_label"),
        ),
        sa.ForeignKeyConstraint(
            ["split_batch_id", "theme_id"],
            ["split_batch.id", "split_batch.theme_id"],
            name=op.f("fk_train_data_split_batch_id_split_batch"),
        ),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_train_data_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_train_data")),
        sa.UniqueConstraint("theme_id", "sha256", name=op.f("uq_train_data_theme_id_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_train_data_theme_id_deleted_at_label_id_split"),
        "train_data",
        ["theme_id", "deleted_at", "label_id", "split"],
    )
    op.create_index(op.f("ix_train_data_theme_id_group_key"), "train_data", ["theme_id", "group_key"])
    op.create_index(op.f("ix_train_data_theme_id_id"), "train_data", ["theme_id", "id"])
    op.create_index(op.f("ix_train_data_theme_id_label_id_id"), "train_data", ["theme_id", "label_id", "id"])
    op.create_index(op.f("ix_train_data_theme_id_split_id"), "train_data", ["theme_id", "split", "id"])
    op.create_table(
        "label_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("train_data_id", sa.Integer(), nullable=False),
        sa.Column("old_label_id", sa.Integer(), nullable=True),
        sa.Column("new_label_id", sa.Integer(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=10), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "source IN ('human', 'model', 'import', 'api')", name=op.f("ck_label_event_source")
        ),
        sa.ForeignKeyConstraint(
            ["new_label_id", "theme_id"],
            ["label.id", "label.theme_id"],
            name=op.f("fk_label_event_new_label_id_label"),
        ),
        sa.ForeignKeyConstraint(
            ["old_label_id", "theme_id"],
            ["label.id", "label.theme_id"],
            name=op.f("fk_label_event_old_label_id_label"),
        ),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_label_event_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["train_data_id"],
            ["train_data.id"],
            name=op.f("fk_label_event_train_data_id_train_data"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label_event")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_label_event_theme_id_id"), "label_event", ["theme_id", "id"])
    op.create_index(op.f("ix_label_event_train_data_id"), "label_event", ["train_data_id"])
    op.create_table(
        "model_train_data",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("train_data_id", sa.Integer(), nullable=False),
        sa.Column("label_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=5), nullable=False),
        sa.CheckConstraint("split IN ('train', 'valid', 'test')", name=op.f("ck_model_train_data_split")),
        sa.ForeignKeyConstraint(["label_id"], ["label.id"], name=op.f("fk_model_train_data_label_id_label")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_model_train_data_model_id_model"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["train_data_id"], ["train_data.id"], name=op.f("fk_model_train_data_train_data_id_train_data")
        ),
        sa.PrimaryKeyConstraint("model_id", "train_data_id", name=op.f("pk_model_train_data")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_model_train_data_label_id"), "model_train_data", ["label_id"])
    op.create_index(op.f("ix_model_train_data_train_data_id"), "model_train_data", ["train_data_id"])
    op.create_table(
        "review_item",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("theme_id", sa.Integer(), nullable=False),
        sa.Column("train_data_id", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=50), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("status", sa.String(length=10), server_default="open", nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('open', 'decided', 'dismissed')", name=op.f("ck_review_item_status")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_review_item_model_id_model"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["theme_id"], ["theme.id"], name=op.f("fk_review_item_theme_id_theme"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["train_data_id"],
            ["train_data.id"],
            name=op.f("fk_review_item_train_data_id_train_data"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review_item")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_review_item_model_id"), "review_item", ["model_id"])
    op.create_index(
        op.f("ix_review_item_theme_id_status_score"), "review_item", ["theme_id", "status", "score"]
    )
    op.create_index(op.f("ix_review_item_train_data_id"), "review_item", ["train_data_id"])

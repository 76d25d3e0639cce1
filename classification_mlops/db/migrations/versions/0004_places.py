"On PostgreSQL no index of the pictures knows the split: what has which label and split is noted beside them."

import sqlalchemy as sa
from alembic import op

from classification_mlops.db.tallies import POSTGRES_PLACES

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade():
    if op.get_bind().dialect.name != "postgresql":
        return
    for old in ("label_id_split", "split", "group_key_split"):
        op.drop_index(f"ix_train_data_theme_id_{old}_id", "train_data")
    for column, where in (("label_id", "deleted_at IS NULL"), ("group_key", "group_key IS NOT NULL")):
        name, columns = f"ix_train_data_theme_id_{column}_id", ["theme_id", column, "id"]
        op.create_index(name, "train_data", columns, postgresql_where=sa.text(where))
    op.drop_constraint("fk_train_data_split_batch_id_split_batch", "train_data", type_="foreignkey")
    for statement in POSTGRES_PLACES:
        op.get_bind().exec_driver_sql(statement)
    op.execute("DROP FUNCTION IF EXISTS picture_counts()")

"What a database has against what the program declares."

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from classification_mlops.db.schema import Base

TALLIES = (  # Made by SQL that SQLAlchemy does not speak
    "picture_text",
    "picture_mark",
    "picture_place",
    "ix_train_data_name_pieces",
    "ix_picture_place",
)


def differences(engine: Engine) -> list:
    "What alembic would change, but for the tallies."

    def meant(thing, name, kind, reflected, other) -> bool:
        "Whether it is declared for this database at all."
        only = getattr(thing, "_ddl_if", None)
        return only is None or only.dialect == engine.dialect.name

    with engine.connect() as connection:
        options = dict(
            version_table="schema_version",
            compare_type=True,
            compare_server_default=True,
            include_name=lambda name, kind, parents: not (name or "").startswith(TALLIES),
            include_object=meant,
        )
        return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)

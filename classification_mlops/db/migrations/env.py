"How Alembic runs here: on the connection and in the transaction that `db.session.migrate` hands over."

from alembic import context

from classification_mlops.db.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table="schema_version",
    render_as_batch=True,  # SQLite changes a table by copying it
    transactional_ddl=True,  # SQLite can, once Python does not interfere: a killed upgrade changes nothing
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()

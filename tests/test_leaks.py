"The leak score, against a count that looks at every pair; on SQLite and on PostgreSQL."

import json
from collections import defaultdict
from hashlib import sha256

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from classification_mlops.config import SplitRatios
from classification_mlops.db.labels import add_label
from classification_mlops.db.leaks import EXAMINED, KINDS, leak_score
from classification_mlops.db.schema import DuplicatePair, TrainData, utc_now
from classification_mlops.db.session import open_engine, upgrade_database, writing
from classification_mlops.db.split import split_theme
from classification_mlops.db.themes import create_theme

PICTURES = st.lists(
    st.tuples(
        st.sampled_from(["train", "train", "valid", "test", None]),
        st.sampled_from([None, None, "", "lot 1", "lot 2", "視察"]),
        st.sampled_from([None, None, 1, 2, 3]),
        st.sampled_from([True, True, True, False]),  # Labeled
        st.sampled_from([False, False, False, True]),  # Deleted
    ),
    max_size=30,
)
PAIRS = st.lists(
    st.tuples(
        st.integers(0, 29),
        st.integers(0, 29),
        st.sampled_from(["found", "reported", "confirmed", "rejected"]),
    ),
    max_size=10,
)


def register(session, theme, label, pictures) -> list[int]:
    rows = [
        TrainData(
            theme_id=theme.id,
            image_path=f"{number}.png",
            original_name=f"{number}.png",
            sha256=sha256(str(number).encode()).hexdigest(),
            label_id=label.id if labeled else None,
            split=split,
            group_key=group,
            cluster_id=cluster,
            deleted_at=utc_now() if deleted else None,
        )
        for number, (split, group, cluster, labeled, deleted) in enumerate(pictures)
    ]
    session.add_all(rows)
    session.flush()
    return [row.id for row in rows]


def expected_leaks(pictures, pairs) -> dict[str, set[tuple[int, int]]]:
    "Pairs of positions (picture, train picture), by kind."
    used = [
        n for n, (split, _, _, labeled, deleted) in enumerate(pictures) if split and labeled and not deleted
    ]
    train = [n for n in used if pictures[n][0] == "train"]
    found = defaultdict(set)
    for one in (n for n in used if pictures[n][0] in EXAMINED):
        for mate in train:
            same = [bool(a) and a == b for a, b in zip(pictures[one][1:3], pictures[mate][1:3], strict=True)]
            found["group"] |= {(one, mate)} if same[0] else set()
            found["near_duplicate"] |= {(one, mate)} if same[1] else set()
            pair = {
                (a, b, status) for a, b, status in pairs if {a, b} == {one, mate} and status != "rejected"
            }
            found["suspected"] |= {(one, mate)} if pair and not same[1] else set()
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pictures=PICTURES, pairs=PAIRS)
def test_every_leak_is_counted_and_named(engine, pictures, pairs):
    pairs = {(a, b): status for a, b, status in pairs if a < b < len(pictures)}
    pairs = [(a, b, status) for (a, b), status in pairs.items()]
    with writing(engine) as session:
        theme = create_theme(session, f"theme {utc_now().timestamp()}")
        ids = register(session, theme, add_label(session, theme, "good"), pictures)
        for a, b, status in pairs:
            facts = dict(first_id=ids[a], second_id=ids[b], distance=9, similarity=0.9, status=status)
            session.add(DuplicatePair(theme_id=theme.id, **facts))
        session.flush()
        score = leak_score(session, theme)
        leaks = list(score.leaks)
    expected, position = expected_leaks(pictures, pairs), {number: n for n, number in enumerate(ids)}
    for kind in KINDS:
        named = {
            (position[leak.train_data_id], position[leak.mate_id]) for leak in leaks if leak.kind == kind
        }
        assert named <= expected[kind] and {one for one, _ in named} == {one for one, _ in expected[kind]}
        for split in EXAMINED:
            pictures_of_kind = {one for one, _ in expected[kind] if pictures[one][0] == split}
            assert getattr(score, kind)[split] == len(pictures_of_kind)
    for split in EXAMINED:
        certain = {one for kind in KINDS[:2] for one, _ in expected[kind] if pictures[one][0] == split}
        assert score.leaking[split] == len(certain)
    assert all(leak.name == f"{position[leak.train_data_id]}.png" for leak in leaks)
    assert json.loads(json.dumps(score.as_dict()))["leaks"] == []  # They were read already


def test_our_own_split_leaks_nothing(engine):
    with writing(engine) as session:
        theme = create_theme(session, "screws")
        label = add_label(session, theme, "good")
        facts = [(None, f"lot {n // 7}", n // 5 if n % 3 else None, True, False) for n in range(300)]
        register(session, theme, label, facts)
        split_theme(session, theme, SplitRatios(), 42, "ann")
        score = leak_score(session, theme)
        assert score.leaking == {"test": 0, "valid": 0} and list(score.leaks) == []


def test_other_themes_give_nothing_away(engine):
    with writing(engine) as session:
        for name in ("screws", "nuts"):
            theme = create_theme(session, name)
            label = add_label(session, theme, "good")
            pictures = [("train", "lot 1", None, True, False)] + [("test", "lot 1", None, True, False)] * 9
            register(session, theme, label, pictures if name == "screws" else pictures[1:])
        assert leak_score(session, theme).leaking["test"] == 0


def test_no_picture_is_searched_for_among_all_others(tmp_path):
    "A lot of thousands, all in test, must not be walked once for each of its pictures."
    engine = open_engine(f"sqlite:///{tmp_path}/database.db")
    upgrade_database(engine)
    statements = []
    with writing(engine) as session:
        theme = create_theme(session, "screws")
        event.listen(engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
        list(leak_score(session, theme).leaks)
        plans = [
            row[3]
            for statement, parameters in list(statements)
            for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    assert len(statements) > 4 and not [plan for plan in plans if "CORRELATED" in plan]


def test_mates_are_counted_without_comparing_each_with_each(postgres_engine):
    "PostgreSQL does not hash a list that is larger than its memory for one step: it must be a join."
    engine, asked = postgres_engine, []
    with writing(engine) as session:
        theme = create_theme(session, "parts")
        label = add_label(session, theme, "good")
        register(
            session,
            theme,
            label,
            [("train" if n % 3 else "test", f"lot {n}", n, True, False) for n in range(3000)],
        )
    with writing(engine) as session:
        session.execute(text("ANALYZE train_data"))
        session.execute(text("SET LOCAL work_mem = '64kB'"))
        event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2:4]))
        leak_score(session, theme)
        for statement, values in list(asked):
            plan = session.connection().exec_driver_sql(f"EXPLAIN {statement}", values).scalars()
            assert "SubPlan" not in "\n".join(plan), statement
    assert len(asked) > 4

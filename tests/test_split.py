"Properties of the split, first as a pure function, then in the database."

import os
import signal
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import count as count_from

import pytest
from forked import in_a_child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select

from classification_mlops.config import SplitRatios
from classification_mlops.db.balance import Placement, deal, unit_key
from classification_mlops.db.folds import assign_folds, fold_counts, folds_of
from classification_mlops.db.golden import (
    first_of_each,
    golden_counts,
    lock_golden,
    refuse_golden,
    unlock_golden,
)
from classification_mlops.db.groups import group_by_name, set_group
from classification_mlops.db.labels import add_label, list_labels
from classification_mlops.db.schema import SPLITS, ReviewItem, SplitBatch, TrainData, utc_now
from classification_mlops.db.session import open_engine, reading, writing
from classification_mlops.db.split import (
    plan_split,
    resplit_theme,
    shares_of,
    split_conflicts,
    split_counts,
    split_history,
    split_theme,
)
from classification_mlops.db.tallies import kept_counts, scanned_counts
from classification_mlops.db.themes import create_theme, get_theme
from classification_mlops.text import UsageError, UserError

USUAL = SplitRatios()
PATIENT = settings(deadline=None)  # A shared machine pauses
LABELS = st.sampled_from("abcd")
GROUPS = st.one_of(st.none(), st.none(), st.sampled_from(["lot 1", "lot 2", "lot 3", "視察"]))
FACTS = st.lists(st.tuples(LABELS, GROUPS), max_size=60)
SINGLES = st.lists(LABELS, max_size=80)
SEEDS = st.integers(0, 2**31)
RATIOS = st.sampled_from(
    [USUAL, SplitRatios(train=0.5, valid=0.25, test=0.25), SplitRatios(train=0.8, valid=0.2, test=0)]
)


def content(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def pictures(facts, start=0) -> list[tuple]:
    "Pictures without split from (label, group)."
    return [(content(start + number), label, group, None) for number, (label, group) in enumerate(facts)]


def split_by(items, ratios, seed) -> list[tuple]:
    "The same pictures after a split."
    plan = plan_split(items, ratios, seed)
    return [(key, label, group, split or plan.get(key)) for key, label, group, split in items]


def counts_of(items) -> dict[str, Counter]:
    counts = defaultdict(Counter)
    for _, label, _, split in items:
        counts[label][split] += 1
    return counts


@PATIENT
@given(FACTS, FACTS, RATIOS, SEEDS)
def test_growth_moves_nobody(first, second, ratios, seed):
    old = split_by(pictures(first), ratios, seed)
    grown = old + pictures(second, start=len(old))
    plan = plan_split(grown, ratios, seed)
    assert not plan.keys() & {key for key, *_ in old}
    assert split_by(grown, ratios, seed)[: len(old)] == old
    assert all(split for *_, split in split_by(grown, ratios, seed))


@PATIENT
@given(FACTS, FACTS, RATIOS, SEEDS, st.randoms())
def test_row_order_does_not_matter(first, second, ratios, seed, random):
    items = split_by(pictures(first), ratios, seed) + pictures(second, start=len(first))
    shuffled = random.sample(items, len(items))
    assert plan_split(items, ratios, seed) == plan_split(shuffled, ratios, seed)


@PATIENT
@given(SINGLES, SINGLES, SEEDS)
def test_ratios_are_met_within_one_picture(first, second, seed):
    items = split_by(pictures([(label, None) for label in first]), USUAL, seed)
    items = split_by(items + pictures([(label, None) for label in second], start=len(items)), USUAL, seed)
    for counts in counts_of(items).values():
        total = sum(counts.values())
        for split in SPLITS:
            assert total < 4 or abs(counts[split] - getattr(USUAL, split) * total) <= 1


@PATIENT
@given(FACTS, FACTS, FACTS, RATIOS, SEEDS)
def test_groups_never_straddle(first, second, third, ratios, seed):
    items = []
    for facts in (first, second, third):
        items = split_by(items + pictures(facts, start=len(items)), ratios, seed)
    homes = defaultdict(set)
    for _, _, group, split in items:
        homes[group].add(split)
    homes.pop(None, None)
    assert all(len(splits) == 1 for splits in homes.values())


@PATIENT
@given(st.integers(1, 3), SEEDS)
def test_rare_labels_reach_train_first(count, seed):
    items = split_by(pictures([("rare", None)] * count), USUAL, seed)
    assert {split for *_, split in items} == set(SPLITS[:count])
    one_by_one = []
    for number in range(count):
        one_by_one = split_by(one_by_one + pictures([("rare", None)], start=number), USUAL, seed)
    assert [split for *_, split in one_by_one] == list(SPLITS[:count])


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_batches_of_one_end_like_one_of_a_thousand(seed):
    together = split_by(pictures([("a", None)] * 1000), USUAL, seed)
    items = []
    for number in range(1000):
        items = split_by(items + pictures([("a", None)], start=number), USUAL, seed)
    assert counts_of(items)["a"] == counts_of(together)["a"] == {"train": 700, "valid": 150, "test": 150}


@PATIENT
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), SEEDS)
def test_groups_of_one_label_come_close(sizes, seed):
    "No split is further off than the largest group."
    facts = [("a", f"lot {number}") for number, size in enumerate(sizes) for _ in range(size)]
    counts, total = counts_of(split_by(pictures(facts), USUAL, seed))["a"], sum(sizes)
    if len(sizes) > 6:
        assert all(abs(counts[split] - getattr(USUAL, split) * total) <= max(sizes) for split in SPLITS)


@PATIENT
@given(FACTS, SEEDS)
def test_a_share_of_zero_stays_empty(facts, seed):
    items = split_by(pictures(facts), SplitRatios(train=0.8, valid=0.2, test=0), seed)
    assert "test" not in {split for *_, split in items}


def test_unlabeled_pictures_wait():
    items = [
        (content(0), None, None, None),
        (content(1), None, "lot 1", None),
        (content(2), "a", "lot 1", None),
    ]
    assert plan_split(items, USUAL, 42) == {content(2): "train"}


def test_new_member_follows_a_group_of_another_label():
    items = [(content(0), "a", "lot 1", "test"), *pictures([("b", "lot 1")] * 5, start=1)]
    assert set(plan_split(items, USUAL, 42).values()) == {"test"}


def test_seed_decides_who_not_how_many():
    first, second = (split_by(pictures([("a", None)] * 100), USUAL, seed) for seed in (1, 2))
    assert first != second and counts_of(first) == counts_of(second)


def test_plan_is_the_same_for_ever():
    "A change here would move the pictures that existing workspaces add next."
    plan = plan_split(pictures([("a", None)] * 30 + [("b", "lot 1")] * 3 + [("b", None)] * 7), USUAL, 42)
    text = "".join(plan[content(number)][1] for number in range(40))
    assert text == "rrrrarrrrrrrarrrerrerrraerarearrrrrraaer"


# In the database


def register(session, theme, labels, facts, start=0, **values):
    "Store (label, group) facts as pictures of a theme."
    for number, (label, group) in enumerate(facts):
        row = dict(image_path=f"{start + number}.png", sha256=content(start + number), group_key=group)
        session.add(TrainData(theme_id=theme.id, label_id=label and labels[label].id, **row | values))
    session.flush()


def theme_of(session, name="screws"):
    theme = create_theme(session, name)
    return theme, {label: add_label(session, theme, label) for label in "abcd"}


def splits_of(session, theme) -> dict[str, str | None]:
    return dict(
        session.execute(select(TrainData.sha256, TrainData.split).where(TrainData.theme_id == theme.id)).all()
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=FACTS, second=FACTS, ratios=RATIOS, seed=st.integers(0, 2**31))
def test_database_splits_as_planned(engine, first, second, ratios, seed):
    with writing(engine) as session:
        theme, labels = theme_of(session, f"theme {utc_now().timestamp()}")
        register(session, theme, labels, first)
        split_theme(session, theme, ratios, seed, "ann")
        expected = split_by(pictures(first), ratios, seed)
        register(session, theme, labels, second, start=len(first))
        split_theme(session, theme, ratios, seed, "ann")
        expected = split_by(expected + pictures(second, start=len(first)), ratios, seed)
        assert splits_of(session, theme) == {key: split for key, _, _, split in expected}
        assert split_theme(session, theme, ratios, seed, "ann") is None


def test_bridged_group_waits_and_is_reported(engine):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("a", "lot 1")], split="train")
        register(session, theme, labels, [("a", "lot 1")], start=1, split="valid")
        register(session, theme, labels, [("a", "lot 1"), ("a", None)], start=2)
        batch = split_theme(session, theme, USUAL, 42, "ann")
        assert sum(batch.counts.values()) == 1
        assert splits_of(session, theme)[content(2)] is None
        assert split_conflicts(session, theme) == ["lot 1"]


def test_deleted_pictures_keep_the_home_of_their_group(engine):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("a", "lot 1")], split="test", deleted_at=utc_now())
        register(session, theme, labels, [("a", "lot 1")], start=1)
        split_theme(session, theme, USUAL, 42, "ann")
        assert splits_of(session, theme)[content(1)] == "test"


def test_other_themes_are_left_alone(engine):
    with writing(engine) as session:
        (theme, labels), (other, others) = theme_of(session), theme_of(session, "nuts")
        register(session, theme, labels, [("a", None)] * 10)
        register(session, other, others, [("a", None)] * 10)
        split_theme(session, theme, USUAL, 42, "ann")
        assert set(splits_of(session, other).values()) == {None}


def test_resplit_is_a_split_from_nothing(engine):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        for start in range(0, 40, 10):
            register(session, theme, labels, [("a", None)] * 10, start=start)
            split_theme(session, theme, USUAL, start, "ann")
        resplit_theme(session, theme, USUAL, 7, "ann", confirm=True)
        assert splits_of(session, theme) == plan_split(pictures([("a", None)] * 40), USUAL, 7)


# Units: what hangs together by groups and clusters

TIED = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.sampled_from([None, None, None, "lot 1", "lot 2", "lot 3"]),
        st.sampled_from([None, None, None, 1, 2, 3]),
    ),
    max_size=40,
)


def tied(facts, start=0) -> list[tuple]:
    "Pictures without split from (label, group, cluster)."
    return [
        (content(start + n), label, group, None, cluster) for n, (label, group, cluster) in enumerate(facts)
    ]


def split_tied(items, ratios, seed) -> list[tuple]:
    plan = plan_split(items, ratios, seed)
    return [
        (key, label, group, split or plan.get(key), cluster) for key, label, group, split, cluster in items
    ]


def units(items) -> list[list[tuple]]:
    "Connected components, found the slow way."
    found = []
    for item in items:
        names = {("group", item[2]), ("cluster", item[4])} - {("group", None), ("cluster", None)}
        near = [unit for unit in found if unit[0] & names]
        found = [unit for unit in found if not unit[0] & names]
        found.append(
            (names.union(*(unit[0] for unit in near)), [item, *(one for unit in near for one in unit[1])])
        )
    return [members for _, members in found]


def slow_plan(items, ratios, seed) -> dict[str, str]:
    "The rule, one unit after the other and without arrays."
    counts, waiting, settled = Counter(), [], {}
    for _, label, _, split, _ in items:
        if label and split:
            counts[label, SPLITS.index(split)] += 1
    placement = Placement(shares_of(ratios), counts)
    for unit in units(items):
        homes, new = {item[3] for item in unit} - {None}, [item for item in unit if item[1] and not item[3]]
        if len(homes) > 1 or not new:
            continue
        placement.totals.update(item[1] for item in new)
        for item in new if homes else ():
            settled[item[0]] = next(iter(homes))
            placement.counts[item[1]][SPLITS.index(settled[item[0]])] += 1
        if not homes:
            groups = sorted(item[2] for item in unit if item[2])
            name = f"group {groups[0]}" if groups else min(item[0] for item in new)
            parts = tuple(Counter(item[1] for item in new).items())
            waiting.append((-len(new), unit_key(seed, name), parts, new))
    placement.waiting.update(label for unit in waiting for label, _ in unit[2])
    for _, _, parts, new in sorted(waiting, key=lambda unit: unit[:2]):
        place = placement.put(parts)
        settled |= {item[0]: SPLITS[place] for item in new}
    return settled


@PATIENT
@given(TIED, TIED, RATIOS, SEEDS)
def test_the_quick_way_is_the_rule(first, second, ratios, seed):
    items = split_tied(tied(first), ratios, seed)
    assert plan_split(tied(first), ratios, seed) == slow_plan(tied(first), ratios, seed)
    items += tied(second, start=len(first))
    assert plan_split(items, ratios, seed) == slow_plan(items, ratios, seed)


@PATIENT
@given(TIED, TIED, RATIOS, SEEDS, st.randoms())
def test_neither_order_nor_numbers_of_clusters_matter(first, second, ratios, seed, random):
    items = split_tied(tied(first), ratios, seed) + tied(second, start=len(first))
    other = {None: None, 1: 30, 2: 10, 3: 20}
    renamed = [(*item[:4], other[item[4]]) for item in random.sample(items, len(items))]
    assert plan_split(items, ratios, seed) == plan_split(renamed, ratios, seed)


@PATIENT
@given(TIED, TIED, TIED, RATIOS, SEEDS)
def test_units_never_straddle(first, second, third, ratios, seed):
    "A unit that was whole stays whole; one that would bridge gets nothing new."
    items = []
    for facts in (first, second, third):
        grown = items + tied(facts, start=len(items))
        plan = plan_split(grown, ratios, seed)
        for unit in units(grown):
            homes, new = {item[3] for item in unit} - {None}, {plan.get(item[0]) for item in unit} - {None}
            assert not new if len(homes) > 1 else len(homes | new) <= 1
        items = split_tied(grown, ratios, seed)


@PATIENT
@given(st.lists(st.integers(0, 60), min_size=3, max_size=3), st.integers(0, 300), RATIOS)
def test_a_deal_is_many_placements(counts, number, ratios):
    slow, quick = (
        Placement(shares_of(ratios), {("a", place): count for place, count in enumerate(counts)})
        for _ in range(2)
    )
    for placement in (slow, quick):
        placement.totals["a"] += number
        placement.waiting["a"] = number
    assert deal(quick, "a", number).tolist() == [slow.put((("a", 1),)) for _ in range(number)]
    assert quick.counts == slow.counts and quick.waiting["a"] == 0


@PATIENT
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), SEEDS, st.randoms())
def test_any_batching_keeps_the_ratios(sizes, seed, random):
    items, start = [], 0
    for size in sizes:
        items = split_by(
            items + pictures([(random.choice("ab"), None) for _ in range(size)], start), USUAL, seed
        )
        start += size
    for counts in counts_of(items).values():
        total = sum(counts.values())
        assert total < 4 or all(abs(counts[s] - getattr(USUAL, s) * total) <= 1 for s in SPLITS)


# Units in the database


def register_tied(session, theme, labels, items):
    for key, label, group, split, cluster in items:
        row = dict(image_path=f"{key}.png", sha256=key, group_key=group, cluster_id=cluster, split=split)
        session.add(TrainData(theme_id=theme.id, label_id=label and labels[label].id, **row))
    session.flush()


def bridges_of(session, theme) -> set[str]:
    asked = select(TrainData.sha256).join(ReviewItem, ReviewItem.train_data_id == TrainData.id)
    opened = (ReviewItem.theme_id == theme.id, ReviewItem.reason == "bridge", ReviewItem.status == "open")
    found = session.scalars(asked.where(*opened)).all()
    assert len(found) == len(set(found))
    return set(found)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=TIED, second=TIED, ratios=RATIOS, seed=st.integers(0, 2**31), random=st.randoms())
def test_database_ties_as_planned(engine, first, second, ratios, seed, random):
    "Batches, order of rows and numbers are those of the database; the result is that of the plan."
    with writing(engine) as session:
        theme, labels = theme_of(session, f"theme {utc_now().timestamp()}")
        register_tied(session, theme, labels, random.sample(tied(first), len(first)))
        split_theme(session, theme, ratios, seed, "ann")
        expected = split_tied(tied(first), ratios, seed)
        new = tied(second, start=len(first))
        register_tied(session, theme, labels, random.sample(new, len(new)))
        batch = split_theme(session, theme, ratios, seed, "ann")
        expected = split_tied(expected + new, ratios, seed)
        assert splits_of(session, theme) == {key: split for key, _, _, split, _ in expected}
        waiting = {key for key, label, _, split, _ in expected if label and not split}
        assert bridges_of(session, theme) == waiting
        assert not waiting or batch.details["quarantined"] == len(waiting)
        assert split_theme(session, theme, ratios, seed, "ann") is None


def test_a_settled_conflict_is_split_next(engine):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register_tied(
            session, theme, labels, [(content(0), "a", None, "train", 7), (content(1), "a", None, "test", 8)]
        )
        register_tied(
            session, theme, labels, [(content(2), "a", "lot 1", None, 7), (content(3), "a", "lot 1", None, 8)]
        )
        batch = split_theme(session, theme, USUAL, 42, "ann")
        assert sum(batch.counts.values()) == 0 and batch.details["quarantined"] == 2
        assert bridges_of(session, theme) == {content(2), content(3)}
        set_group(session, theme, "lot 2", TrainData.sha256 == content(3))
        batch = split_theme(session, theme, USUAL, 42, "ben")
        assert batch.details["followers"] == 2 and bridges_of(session, theme) == set()
        found = splits_of(session, theme)
        assert (found[content(2)], found[content(3)]) == ("train", "test")
        decided = session.execute(select(ReviewItem.status, ReviewItem.decided_by).distinct()).all()
        assert decided == [("decided", "ben")]


def test_an_unlabeled_picture_ties_already(engine):
    "It may get its label tomorrow; then it must not find its two sides apart."
    with writing(engine) as session:
        theme, labels = theme_of(session)
        items = [
            (content(n), "a", "lot 1" if n < 20 else None, None, 5 if n >= 20 else None) for n in range(40)
        ]
        register_tied(session, theme, labels, [*items, (content(99), None, "lot 1", None, 5)])
        split_theme(session, theme, USUAL, 42, "ann")
        assert len(set(splits_of(session, theme).values()) - {None}) == 1


def test_the_ledger_tells_everything(engine):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("a", None)] * 20 + [("b", "lot 1")] * 3)
        split_theme(session, theme, USUAL, 42, "ann")
        register(session, theme, labels, [("b", "lot 1")] * 2, start=50)
        split_theme(session, theme, USUAL, 7, "ben")
        lock_golden(session, theme, "cho", first_of_each(theme, 1))
        resplit_theme(session, theme, SplitRatios(train=0.5, valid=0.25, test=0.25), 1, "ann", confirm=True)
        acts = split_history(session, theme)
    assert [(act["policy"], act["actor"], act["seed"]) for act in acts[:2]] == [
        ("stratified", "ann", 42),
        ("stratified", "ben", 7),
    ]
    assert sum(acts[0]["details"]["labels"]["a"].values()) == 20
    assert acts[1]["details"]["followers"] == 2 and sum(acts[1]["counts"].values()) == 2
    assert acts[2]["policy"] == "golden" and acts[3]["policy"] == "anew"
    assert acts[3]["ratios"]["train"] == 0.5 and acts[3]["details"]["models"] == []
    assert acts[3]["details"]["kept"] == sum(acts[2]["details"]["labels"].values())


def test_a_hundred_new_ones_do_not_read_the_old_ones(tmp_path):
    "Every statement on pictures goes through an index."
    from classification_mlops.db.session import upgrade_database

    engine = open_engine(f"sqlite:///{tmp_path}/database.db")
    upgrade_database(engine)
    statements = []
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register_tied(
            session, theme, labels, [(content(n), "a", f"lot {n % 9}", None, n % 7) for n in range(60)]
        )
        event.listen(engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
        split_theme(session, theme, USUAL, 42, "ann")
        plans = [
            (row[3], statement)
            for statement, parameters in list(statements)
            if statement.startswith(("SELECT", "UPDATE")) and "train_data" in statement
            for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    assert len(plans) > 5
    assert [plan for plan in plans if plan[0].startswith("SCAN train_data")] == []


# Golden pictures


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(facts=TIED, seeds=st.lists(SEEDS, min_size=1, max_size=3))
def test_golden_pictures_never_move(engine, facts, seeds):
    with writing(engine) as session:
        theme, labels = theme_of(session, f"theme {utc_now().timestamp()}")
        register_tied(session, theme, labels, tied(facts))
        split_theme(session, theme, USUAL, 42, "ann")
        lock_golden(session, theme, "ann", first_of_each(theme, 2))
        golden = set(
            session.scalars(select(TrainData.sha256).where(TrainData.theme_id == theme.id, TrainData.golden))
        )
        for seed in seeds:
            resplit_theme(session, theme, USUAL, seed, "ann", confirm=True)
            found = splits_of(session, theme)
            for unit in units(tied(facts)):
                if golden & {item[0] for item in unit}:
                    assert {found[item[0]] for item in unit if item[1]} == {"test"}


def test_golden_pictures_are_chosen_by_content(engine):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("a", None), ("b", None)] * 15, split="test")
        register(session, theme, labels, [("a", None)] * 5, start=100, split="train")
        assert lock_golden(session, theme, "ann", first_of_each(theme, 4)) == {"a": 4, "b": 4}
        golden = session.scalars(select(TrainData.sha256).where(TrainData.golden)).all()
        expected = [sorted(content(n) for n in range(start, 30, 2))[:4] for start in (0, 1)]
        assert set(golden) == {*expected[0], *expected[1]}
        with pytest.raises(UserError, match="not in the test split"):
            lock_golden(session, theme, "ann", TrainData.split == "train")
        with pytest.raises(UserError, match="unlock"):
            refuse_golden(session, TrainData.sha256 == golden[0])
        assert unlock_golden(session, theme, "ben") == {"a": 4, "b": 4}
        refuse_golden(session)
        assert golden_counts(session, theme) == {}
        with pytest.raises(UsageError):
            first_of_each(theme, 0)


# Folds


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=TIED, second=TIED, folds=st.integers(2, 6))
def test_folds_stay_and_keep_units_whole(engine, first, second, folds):
    with writing(engine) as session:
        theme, labels = theme_of(session, f"theme {utc_now().timestamp()}")
        register_tied(session, theme, labels, tied(first))
        split_theme(session, theme, USUAL, 42, "ann")
        assign_folds(session, theme, folds, 42, "ann")
        fold = select(TrainData.sha256, TrainData.fold).where(TrainData.theme_id == theme.id)
        before = dict(session.execute(fold).all())
        register_tied(session, theme, labels, tied(second, start=len(first)))
        split_theme(session, theme, USUAL, 42, "ann")
        assign_folds(session, theme, folds, 42, "ann")
        after, splits = dict(session.execute(fold).all()), splits_of(session, theme)
        assert {key: after[key] for key, old in before.items() if old is not None} == {
            key: old for key, old in before.items() if old is not None
        }
        assert all(splits[key] in ("train", "valid") for key, one in after.items() if one is not None)
        for unit in units(tied(first)):
            assert len({before[item[0]] for item in unit} - {None}) <= 1
        assert assign_folds(session, theme, folds, 42, "ann") is None


def test_folds_are_stratified_and_another_number_is_confirmed(engine):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("a", None)] * 53 + [("b", None)] * 11)
        split_theme(session, theme, SplitRatios(train=0.8, valid=0.2, test=0), 42, "ann")
        assign_folds(session, theme, 5, 42, "ann")
        counts = fold_counts(session, theme)
        assert {label: sum(row) for label, row in counts.items()} == {"a": 53, "b": 11}
        assert all(max(row) - min(row) <= 1 for row in counts.values())
        with pytest.raises(UserError, match="has 5 folds"):
            assign_folds(session, theme, 4, 42, "ann")
        assert folds_of(session, theme) == 5
        assign_folds(session, theme, 4, 42, "ann", confirm=True)
        assert folds_of(session, theme) == 4
        with pytest.raises(UsageError):
            assign_folds(session, theme, 1, 42, "ann")


# Groups


def test_late_groups_do_not_bridge(engine):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("a", None)], split="train", original_name="lot1 x.png")
        register(session, theme, labels, [("a", None)], start=1, split="test", original_name="lot1 y.png")
        register(session, theme, labels, [("a", None)], start=2, original_name="lot2 z.png", cluster_id=5)
        register(session, theme, labels, [("a", None)], start=3, split="valid", cluster_id=5)
        with pytest.raises(UserError, match="lot1"):
            group_by_name(session, theme, r"^lot\d+")
        assert set(session.scalars(select(TrainData.group_key))) == {None}
        assert (
            set_group(session, theme, " lot 9 ", TrainData.sha256.in_([content(0), content(0)])).changed == 1
        )
        with pytest.raises(UserError, match="lot 9"):  # Its near-duplicate is in valid
            set_group(session, theme, "lot 9", TrainData.sha256 == content(2))
        assert set_group(session, theme, "lot 8", TrainData.sha256 == content(2)).bridges == []
        assert group_by_name(session, theme, r"^lot(\d+)", force=True) == (3, ["1"])
        split_theme(session, theme, USUAL, 42, "ann")
        assert splits_of(session, theme)[content(2)] == "valid"
        for wrong in ("", "x" * 201):
            with pytest.raises(UsageError):
                set_group(session, theme, wrong)
        assert set_group(session, theme, None).changed == 3


# Faults


def state_of(engine) -> tuple:
    with reading(engine) as session:
        theme = get_theme(session, "screws")
        rows = session.execute(
            select(TrainData.sha256, TrainData.split, TrainData.split_batch_id, TrainData.fold)
        )
        counts = [session.scalar(select(func.count()).select_from(t)) for t in (SplitBatch, ReviewItem)]
        return sorted(map(tuple, rows)), counts, split_counts(session, theme)


def killed(url: str, act, moment: int) -> bool:
    "Run `act` in a child that kills itself before its statement of that number; whether it came so far."

    def work():
        engine, statements = open_engine(url), count_from(1)

        def strike(*_):
            if next(statements) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in ("before_cursor_execute", "commit"):
            event.listen(engine, name, strike)
        with writing(engine) as session:
            act(session, get_theme(session, "screws"))

    return in_a_child(work) == -signal.SIGKILL


ACTS = {
    "split": lambda session, theme: split_theme(session, theme, USUAL, 42, "ben"),
    "anew": lambda session, theme: resplit_theme(session, theme, USUAL, 7, "ben", confirm=True),
    "folds": lambda session, theme: assign_folds(session, theme, 3, 42, "ben"),
    "group": lambda session, theme: group_by_name(session, theme, r"^\d", force=True),
}


@pytest.mark.parametrize("act", ACTS)
def test_killed_at_any_statement_it_is_as_before(engine, database_url, act):
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("a", None)] * 20 + [("b", "lot 1")] * 5, original_name="1.png")
        split_theme(session, theme, USUAL, 42, "ann")
        bridge = [
            (content(200 + n), "a", "lot 2", split, None) for n, split in enumerate(["train", "test", None])
        ]
        register_tied(session, theme, labels, [*tied([("a", None, 3)] * 9, start=100), *bridge])
    before, moment = state_of(engine), 1
    engine.dispose()
    while killed(database_url, ACTS[act], moment):
        assert state_of(engine) == before
        moment += 1
    assert moment > 5  # So many faults have fired
    assert act == "group" or state_of(engine) != before
    done = state_of(engine)
    if act == "split":
        assert done[2]["unsplit"] == 1 and done[1] == [2, 1]
        assert not killed(database_url, ACTS[act], 10_000) and state_of(engine) == done


def test_all_acts_at_once_leave_one_truth(engine, database_url):
    "Splits, new splits, folds and groups of one theme take turns."
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("a", None), ("b", None), ("c", "lot 1")] * 20)

    def work(number: int):
        own = open_engine(database_url)
        for turn in range(3):
            with writing(own) as session:
                theme = get_theme(session, "screws")
                labels = {label.label_name: label for label in list_labels(session, theme)}
                register(session, theme, labels, [("a", None)] * 4, start=1000 * number + 10 * turn + 500)
            with writing(own) as session:
                act = list(ACTS.values())[(number + turn) % 3]
                act(session, get_theme(session, "screws"))
        own.dispose()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with writing(engine) as session:
        theme = get_theme(session, "screws")
        split_theme(session, theme, USUAL, 42, "ann")
        assert split_counts(session, theme)["unsplit"] == 0 and split_conflicts(session, theme) == []
        in_test = (TrainData.split == "test", TrainData.fold.is_not(None))
        assert session.scalar(select(func.count()).where(*in_test)) == 0
        marked = select(TrainData.split_batch_id, func.count()).group_by(TrainData.split_batch_id)
        for batch, count in session.execute(marked):
            counts = session.get(SplitBatch, batch).counts
            assert count <= sum(counts.values())  # A later act may have taken them all over
        for counts in counts_of(
            (sha, label, None, split)
            for sha, label, split in session.execute(
                select(TrainData.sha256, TrainData.label_id, TrainData.split)
            )
        ).values():
            total = sum(counts.values())
            assert all(abs(counts[split] - getattr(USUAL, split) * total) <= 20 for split in SPLITS)


def test_a_large_split_leaves_the_counts_right(engine, monkeypatch):
    monkeypatch.setattr("classification_mlops.db.split.MANY", 10)
    with writing(engine) as session:
        theme, labels = theme_of(session)
        register(session, theme, labels, [("abcd"[n % 4], None) for n in range(600)])
    with writing(engine) as session:
        split_theme(session, get_theme(session, "screws"), SplitRatios(), 1, "ann")
        assert kept_counts(session.connection()) == scanned_counts(session.connection())
    with writing(engine) as session:
        assert kept_counts(session.connection()) == scanned_counts(session.connection())
        resplit_theme(session, get_theme(session, "screws"), SplitRatios(), 2, "ann", confirm=True)
    with reading(engine) as session:
        theme = get_theme(session, "screws")
        assert kept_counts(session.connection()) == scanned_counts(session.connection())
        assert sum(split_counts(session, theme).values()) == 600

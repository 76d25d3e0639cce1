"Properties of the split, first as a pure function, then in the database."

from collections import Counter, defaultdict
from hashlib import sha256

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from classification_mlops.config import SplitRatios
from classification_mlops.db.labels import add_label
from classification_mlops.db.schema import SPLITS, TrainData, utc_now
from classification_mlops.db.session import writing
from classification_mlops.db.split import plan_split, resplit_theme, split_conflicts, split_theme
from classification_mlops.db.themes import create_theme

USUAL = SplitRatios()
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


@given(FACTS, FACTS, RATIOS, SEEDS)
def test_growth_moves_nobody(first, second, ratios, seed):
    old = split_by(pictures(first), ratios, seed)
    grown = old + pictures(second, start=len(old))
    plan = plan_split(grown, ratios, seed)
    assert not plan.keys() & {key for key, *_ in old}
    assert split_by(grown, ratios, seed)[: len(old)] == old
    assert all(split for *_, split in split_by(grown, ratios, seed))


@given(FACTS, FACTS, RATIOS, SEEDS, st.randoms())
def test_row_order_does_not_matter(first, second, ratios, seed, random):
    items = split_by(pictures(first), ratios, seed) + pictures(second, start=len(first))
    shuffled = random.sample(items, len(items))
    assert plan_split(items, ratios, seed) == plan_split(shuffled, ratios, seed)


@given(SINGLES, SINGLES, SEEDS)
def test_ratios_are_met_within_one_picture(first, second, seed):
    items = split_by(pictures([(label, None) for label in first]), USUAL, seed)
    items = split_by(items + pictures([(label, None) for label in second], start=len(items)), USUAL, seed)
    for counts in counts_of(items).values():
        total = sum(counts.values())
        for split in SPLITS:
            assert total < 4 or abs(counts[split] - getattr(USUAL, split) * total) <= 1


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


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), SEEDS)
def test_groups_of_one_label_come_close(sizes, seed):
    "No split is further off than the largest group."
    facts = [("a", f"lot {number}") for number, size in enumerate(sizes) for _ in range(size)]
    counts, total = counts_of(split_by(pictures(facts), USUAL, seed))["a"], sum(sizes)
    if len(sizes) > 6:
        assert all(abs(counts[split] - getattr(USUAL, split) * total) <= max(sizes) for split in SPLITS)


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

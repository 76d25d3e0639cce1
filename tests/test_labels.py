"Labels: acts, their history, undo and redo, merges, deletions, agreement; on both databases."

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from classification_mlops.commands.output import numbers_of
from classification_mlops.db.agreement import agreement, disagreed
from classification_mlops.db.labels import (
    add_label,
    color_label,
    delete_label,
    get_label,
    label_usage,
    list_labels,
    merge_labels,
    move_label,
    rename_label,
    set_label,
)
from classification_mlops.db.schema import Label, LabelEvent, TrainData
from classification_mlops.db.selection import Filter, delete_pictures, label_selected
from classification_mlops.db.session import open_engine, reading, upgrade_database, writing
from classification_mlops.db.themes import create_theme
from classification_mlops.db.undo import acts, history, redo, undo
from classification_mlops.text import UsageError, UserError

NAMES = ("good", "bent", "worn")


def start(engine, pictures: int = 12):
    "A theme of unlabeled pictures; returns it."
    with writing(engine) as session:
        theme = create_theme(session, "screws")
        for name in NAMES:
            add_label(session, theme, name)
        rows = [
            dict(image_path=f"{n}.png", sha256=f"{n:064x}", original_name=f"{n}.png") for n in range(pictures)
        ]
        session.add_all([TrainData(theme_id=theme.id, **row) for row in rows])
    return theme


def present(session) -> dict[int, tuple]:
    "Label, labeler and deletion of each picture."
    columns = TrainData.id, TrainData.label_id, TrainData.labeled_by, TrainData.deleted_at.is_not(None)
    return {number: tuple(rest) for number, *rest in session.execute(select(*columns))}


def test_a_bulk_act_of_thousands_is_one_undo(engine):
    theme = start(engine, 5000)
    with writing(engine) as session:
        bent = get_label(session, theme, "bent")
        set_label(session, [7], bent, "zoe")
        before = present(session)
        assert label_selected(session, theme, Filter(text=".png"), "good", "ann").pictures == 5000
        set_label(session, [1, 2, 3], bent, "ben")
    with writing(engine) as session:
        done = undo(session, theme, "ann")
        assert (done.restored, done.changed_since) == (4997, 3)
        after = present(session)
        assert after == before | dict.fromkeys((1, 2, 3), (bent.id, "ben", False))
        assert after[7] == (bent.id, "zoe", False)
        [act] = acts(session, theme, "ann")[1:]
        assert act.undone_at and act.pictures == 5000
    with writing(engine) as session:
        assert redo(session, theme, "ann").restored == 4997
        with pytest.raises(UserError, match="nothing to redo"):
            redo(session, theme, "ann")


def test_a_label_given_again_by_somebody_else_stays(engine):
    "The same label, but another act: it is not the first one's any more."
    theme = start(engine)
    with writing(engine) as session:
        good, bent, _ = list_labels(session, theme)
        set_label(session, [1], good, "ann")
        first = acts(session, theme)[0].id
        set_label(session, [1], bent, "ben")
        set_label(session, [1], good, "ann")
        done = undo(session, theme, "ben", first)
        assert (done.restored, done.changed_since) == (0, 1)
        assert present(session)[1] == (good.id, "ann", False)


class Model:
    "What a person expects of undo and redo: two stacks."

    def __init__(self, state):
        self.state, self.undos, self.redos = dict(state), [], []

    def do(self, change: dict):
        after = self.state | change
        if after != self.state:
            self.undos.append((self.state, after))
            self.redos, self.state = [], after

    def undo(self) -> bool:
        if self.undos:
            self.redos.append(self.undos.pop())
            self.state = self.redos[-1][0]
            return True
        return False

    def redo(self) -> bool:
        if self.redos:
            self.undos.append(self.redos.pop())
            self.state = self.undos[-1][1]
            return True
        return False


STEPS = st.one_of(
    st.tuples(st.just("set"), st.sets(st.integers(1, 5), min_size=1), st.sampled_from([*NAMES, None])),
    st.tuples(st.just("bulk"), st.sampled_from([*NAMES, None]), st.sampled_from([*NAMES, None])),
    st.tuples(st.just("delete"), st.sets(st.integers(1, 5), min_size=1)),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
)


def step(session, theme, model: Model, kind: str, *rest):
    "One act of ann on the database and on the model."
    alive = {n for n, (_, gone) in model.state.items() if not gone}
    if kind == "set" and (chosen := rest[0] & alive):
        set_label(session, chosen, rest[1] and get_label(session, theme, rest[1]), "ann")
        model.do(dict.fromkeys(chosen, (rest[1], False)))
    elif kind == "bulk":
        chosen = Filter(label=rest[0], unlabeled=rest[0] is None)
        label_selected(session, theme, chosen, rest[1], "ann")
        model.do({n: (rest[1], False) for n in alive if model.state[n][0] == rest[0]})
    elif kind == "delete" and (chosen := rest[0] & alive):
        delete_pictures(session, theme, chosen, "ann")
        model.do({n: (model.state[n][0], True) for n in chosen})
    elif kind in ("undo", "redo"):
        act = {"undo": undo, "redo": redo}[kind]
        if getattr(model, kind)():
            assert act(session, theme, "ann").changed_since == 0
        else:
            with pytest.raises(UserError, match="nothing to"):
                act(session, theme, "ann")


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, max_size=14))
def test_undo_and_redo_are_two_stacks(steps):
    engine = open_engine("sqlite://")
    upgrade_database(engine)
    theme, model = start(engine, 5), Model(dict.fromkeys(range(1, 6), (None, False)))
    with writing(engine) as session:
        names = {label.id: label.label_name for label in list_labels(session, theme)} | {None: None}
        for each in steps:
            step(session, theme, model, *each)
            found = {n: (names[label], gone) for n, (label, _, gone) in present(session).items()}
            assert found == model.state
        chains = {}
        for event in session.scalars(select(LabelEvent).order_by(LabelEvent.id)):
            assert event.old_label_id == chains.get(event.train_data_id)  # The history has no gap
            chains[event.train_data_id] = event.new_label_id
    engine.dispose()


def test_merge_rename_and_deletion_come_back(engine):
    theme = start(engine)
    with writing(engine) as session:
        _, bent, worn = list_labels(session, theme)
        set_label(session, [1, 2, 3], bent, "ann")
        set_label(session, [4], worn, "ann")
        before = present(session)
        merge_labels(session, theme, "bent", "worn", "ann")
        rename_label(session, theme, "worn", "used", "ann")
        assert delete_label(session, theme, "used", "ann", unlabel=True) == 4
        assert [label.label_name for label in list_labels(session, theme)] == ["good"]
    for _ in range(3):
        with writing(engine) as session:
            undo(session, theme, "ann")
    with writing(engine) as session:
        assert present(session) == before
        assert [label.label_name for label in list_labels(session, theme)] == list(NAMES)
        redo(session, theme, "ann")
        set_label(session, [5], worn, "ben")
        assert [label.label_name for label in list_labels(session, theme)] == ["good", "worn"]


def test_a_label_that_is_gone_does_not_come_back_on_pictures(engine):
    theme = start(engine)
    with writing(engine) as session:
        good, bent, _ = list_labels(session, theme)
        set_label(session, [1], good, "ann")
        set_label(session, [1], bent, "ann")
        delete_label(session, theme, "good", "ben")
    with pytest.raises(UserError, match="good was deleted since"), writing(engine) as session:
        undo(session, theme, "ann")
    with writing(engine) as session:
        assert present(session)[1][0] == bent.id
        with pytest.raises(UsageError, match="was deleted"):
            set_label(session, [2], session.get(Label, good.id), "ann")


def test_golden_pictures_stay(engine):
    theme = start(engine)
    with writing(engine) as session:
        good, bent, _ = list_labels(session, theme)
        set_label(session, [1, 2], good, "ann")
        session.execute(update(TrainData).where(TrainData.id == 1).values(golden=True, split="test"))
    before = None
    for act in (
        lambda session: set_label(session, [1], bent, "ann"),
        lambda session: set_label(session, [1, 2], bent, "ann"),
        lambda session: label_selected(session, theme, Filter(label="good"), "bent", "ann"),
        lambda session: merge_labels(session, theme, "good", "bent", "ann"),
        lambda session: delete_label(session, theme, "good", "ann", unlabel=True),
        lambda session: delete_pictures(session, theme, [1], "ann"),
        lambda session: delete_pictures(session, theme, Filter(split="test"), "ann"),
        lambda session: undo(session, theme, "ann"),
    ):
        with pytest.raises(UserError, match=r"picture 1 .*golden"), writing(engine) as session:
            before = before or present(session)
            act(session)
        with reading(engine) as session:
            assert present(session) == before
    with writing(engine) as session:
        assert set_label(session, [1], good, "ben") == 0  # Agreeing changes nothing
        assert label_usage(session, theme, "good") == {"pictures": 2, "golden": 1, "models": 0}


def test_history_is_paged_and_says_all(engine):
    theme = start(engine)
    with writing(engine) as session:
        good, bent, _ = list_labels(session, theme)
        for turn in range(10):
            set_label(
                session, [1, 2], (good, bent)[turn % 2], f"person {turn}", "api" if turn == 3 else "human"
            )
    with reading(engine) as session:
        whole, parts, before = history(session, theme, limit=1000), [], None
        while part := history(session, theme, before=before, limit=7):
            parts, before = parts + part, part[-1]["id"]
        of_one = history(session, theme, picture=2)
        with pytest.raises(UsageError):
            history(session, theme, limit=10**9)
    assert parts == whole and len(whole) == 20 and len(of_one) == 10
    told = [(line["actor"], line["from"], line["to"], line["source"], line["kind"]) for line in of_one]
    assert told[0] == ("person 9", "good", "bent", "human", "label")
    assert told[6:] == [
        ("person 3", "good", "bent", "api", "label"),
        ("person 2", "bent", "good", "human", "label"),
        ("person 1", "good", "bent", "human", "label"),
        ("person 0", None, "good", "human", "label"),
    ]


@pytest.mark.parametrize("color", ["red", "#12345", "#1234567", "#GGGGGG", "#123456; x", "", "#１２３４５６"])
def test_only_colors_are_colors(engine, color):
    theme = start(engine)
    with pytest.raises(UsageError, match="#RRGGBB"), writing(engine) as session:
        color_label(session, theme, "good", color)


def test_order_has_no_gaps(engine):
    theme = start(engine)
    with writing(engine) as session:
        for name, place in (("good", 2), ("worn", 0), ("bent", 99), ("bent", 0)):
            moved = move_label(session, theme, name, place)
            assert [label.position for label in moved] == [0, 1, 2]
        assert [label.label_name for label in list_labels(session, theme)] == ["bent", "worn", "good"]
        with pytest.raises(UsageError):
            move_label(session, theme, "bent", -1)


def test_agreement_counts_the_last_opinion(engine):
    theme = start(engine, 6)
    with writing(engine) as session:
        good, bent, worn = list_labels(session, theme)
        set_label(session, range(1, 7), worn, "ann")
        set_label(session, range(1, 7), good, "ann")
        set_label(session, range(1, 6), good, "ben")  # Agrees, although nothing changes
        set_label(session, [5], bent, "ben")
        set_label(session, [6], bent, "robot", "model")
        [pair] = agreement(session, theme)
        assert pair[:4] == ("ann", "ben", 5, 4)
        assert [row["id"] for row in disagreed(session, theme, "ann", "ben")] == [5]
        assert not disagreed(session, theme, "ann", "robot")
        undo(session, theme, "ben")
        assert agreement(session, theme)[0][:4] == ("ann", "ben", 5, 5)
        assert agreement(session, theme)[0].kappa is None


def test_deleting_twice_and_importing_again(engine):
    theme = start(engine)
    with writing(engine) as session:
        first = delete_pictures(session, theme, [1, 2], "ann").id
        with pytest.raises(UsageError, match="picture 1 is not"):
            delete_pictures(session, theme, [1], "ann")
        session.execute(
            update(TrainData).where(TrainData.id == 1).values(deleted_at=None)
        )  # As an import does
        delete_pictures(session, theme, [1], "ben")
        done = undo(session, theme, "ann", first)
        assert (done.restored, done.changed_since) == (1, 1)
        assert [n for n, (*_, gone) in present(session).items() if gone] == [1]


def test_acts_that_do_not_exist(engine):
    theme = start(engine)
    with writing(engine) as session:
        for act in (undo, redo):
            with pytest.raises(UserError, match="nothing to"):
                act(session, theme, "ann")
            with pytest.raises(UsageError, match="act 99"):
                act(session, theme, "ann", 99)


def test_a_filter_refuses_nonsense():
    for wrong in (dict(split="tset"), dict(label="a", unlabeled=True), dict(text="")):
        with pytest.raises(UsageError):
            Filter(**wrong)
    assert replace(Filter(label="a"), golden=False).given == {"label", "golden"}
    assert numbers_of("1-3,7") == [1, 2, 3, 7]
    for wrong in ("", "1;2", "a", "3-", "-1", "1-99999999"):
        with pytest.raises(UsageError):
            numbers_of(wrong)

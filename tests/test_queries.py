"Pages, selections and kept counts against what a plain look at all rows says; on both databases."

import random
from itertools import product

import pytest
from sqlalchemy import case, insert, inspect, select, text, update

from classification_mlops.config import SplitRatios
from classification_mlops.db.labels import add_label, delete_label, list_labels, merge_labels, set_label
from classification_mlops.db.queries import count_of, page_of_images, statistics, theme_counts
from classification_mlops.db.schema import LabelAct, PictureCount, ReviewItem, TrainData, utc_now
from classification_mlops.db.selection import Filter, conditions_of, delete_pictures, label_selected
from classification_mlops.db.session import reading, writing
from classification_mlops.db.split import resplit_theme, split_theme
from classification_mlops.db.tallies import (
    forget_counts,
    kept_counts,
    misplaced,
    repair_counts,
    scanned_counts,
)
from classification_mlops.db.themes import create_theme, delete_theme, get_theme
from classification_mlops.db.undo import undo
from classification_mlops.text import UserError

NAMES = (
    "IMG_{n:04}.png",
    "ねじ/ホ\u309aルト_{n:04}.png",
    "100%_{n}.png",
    'a"b\\c_{n}.jpg',
    "Straße É {n}.tif",
    "{n}",
)


def register(session, theme, numbers, chance, labels):
    "Pictures of every kind."
    for n in numbers:
        label = chance.choice([*labels, None])
        facts = dict(
            image_path=f"{n}.png",
            sha256=f"{n:064x}",
            original_name=chance.choice([*NAMES, None, NAMES[0]]) or None,
            label_id=label and label.id,
            labeled_by=label and chance.choice(["ann", "ben"]),
            split=label and chance.choice(["train", "valid", "test", None]),
            group_key=chance.choice(["lot 1", "lot 2", None]),
            cluster_id=chance.choice([1, 2, None, None]),
        )
        name = facts["original_name"]
        facts["original_name"] = name and name.format(n=n)
        facts["golden"] = facts["split"] == "test" and chance.random() < 0.3
        session.add(TrainData(theme_id=theme.id, **facts))
    session.flush()


def start(engine, pictures: int = 900):
    "Two themes; the pictures of the first one are partly in the index of names and partly behind it."
    chance = random.Random(3)
    with writing(engine) as session:
        theme, other = create_theme(session, "screws"), create_theme(session, "nuts")
        labels = [add_label(session, theme, name) for name in ("good", "bent", "worn")]
        foreign = [add_label(session, other, name) for name in ("good", "bent")]
        register(session, other, range(300), chance, foreign)
        register(session, theme, range(pictures - 200), chance, labels)
    with writing(engine) as session:
        register(session, theme, range(pictures - 200, pictures), chance, labels)
        rows = session.scalars(select(TrainData.id).where(TrainData.theme_id == theme.id)).all()
        for number, reason in [(n, "disagrees") for n in rows[::7]] + [(n, "unsure") for n in rows[::70]] * 2:
            item = dict(theme_id=theme.id, train_data_id=number, reason=reason, score=0.5)
            session.add(ReviewItem(**item, status="open" if number % 2 else "decided"))
        gone = chance.sample(rows, 50)
        session.execute(update(TrainData).where(TrainData.id.in_(gone)).values(deleted_at=theme.created_at))
    return theme


ONE = [
    {},
    *({"label": name} for name in ("good", "worn")),
    {"unlabeled": True},
    *({"split": name} for name in ("test", "unsplit")),
    *({"group": name} for name in ("lot 1", "nowhere")),
    *({"labeled_by": name} for name in ("ann", "zoe")),
    *({"reason": name} for name in ("disagrees", "unsure", "none")),
    *({"golden": wanted} for wanted in (True, False)),
    {"cluster": 2},
]
TEXTS = [
    "img_0",
    "IMG_00",
    "g_",
    "5",
    "ポルト",
    "ねじ/ホ",
    "%",
    "100%_",
    'a"b\\c',
    "b\\",
    "straße",
    "É",
    "é 1",
    "' OR 1=1 --",
    "\x1f",
]


def fits(row: TrainData, chosen: dict, names: dict, waiting: set) -> bool:
    "What the filter means, in plain words."
    split = chosen.get("split")
    tests = {
        "label": lambda value: names.get(row.label_id) == value,
        "unlabeled": lambda value: row.label_id is None,
        "split": lambda value: row.split == (None if split == "unsplit" else split),
        "group": lambda value: row.group_key == value,
        "labeled_by": lambda value: row.labeled_by == value,
        "reason": lambda value: (row.id, value) in waiting,
        "golden": lambda value: row.golden == value,
        "cluster": lambda value: row.cluster_id == value,
        "text": lambda value: contains(row.original_name, value),
    }
    return row.deleted_at is None and all(tests[name](value) for name, value in chosen.items())


def contains(name: str | None, words: str) -> bool:
    "Letters A-Z in either case, and both spellings of Unicode."
    import unicodedata

    low = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
    forms = [unicodedata.normalize(form, words).translate(low) for form in ("NFC", "NFD")]
    return name is not None and any(form in name.translate(low) for form in forms)


def every_page(session, theme, chosen: dict, limit: int) -> tuple[list, list]:
    "All numbers, forwards and backwards."
    ahead, back = [], []
    while page := page_of_images(session, theme, ahead[-1] if ahead else None, limit, **chosen):
        assert len(page) <= limit
        ahead += [row["id"] for row in page]
    page = page_of_images(session, theme, limit=limit, last=True, **chosen)
    while page:
        back = [row["id"] for row in page] + back
        page = page_of_images(session, theme, before_id=back[0], limit=limit, **chosen)
    return ahead, back


def test_pages_are_what_a_plain_look_says(engine):
    theme = start(engine)
    pairs = [one | two for one, two in product(ONE, ONE) if not one.keys() & two.keys()]
    pairs = [pair for pair in pairs if not {"label", "unlabeled"} <= pair.keys()][::3]
    texts = [{"text": text} | one for text in TEXTS for one in ({}, {"label": "good"}, {"split": "unsplit"})]
    with reading(engine) as session:
        names = {label.id: label.label_name for label in list_labels(session, theme)}
        mine = select(TrainData).where(TrainData.theme_id == theme.id).order_by(TrainData.id)
        rows = session.scalars(mine).all()
        items = session.scalars(select(ReviewItem).where(ReviewItem.status == "open")).all()
        waiting = {(item.train_data_id, item.reason) for item in items}
        for chosen in [*ONE, *pairs, *texts]:
            right = [row.id for row in rows if fits(row, chosen, names, waiting)]
            assert every_page(session, theme, chosen, 150) == (right, right), chosen
            assert count_of(session, theme, Filter(**chosen)) == len(right), chosen
            found = select(TrainData.id).where(*conditions_of(session, theme, Filter(**chosen)))
            assert sorted(session.scalars(found)) == right, chosen


def test_a_page_between_two_others(engine):
    theme = start(engine, 400)
    with reading(engine) as session:
        numbers = [row["id"] for row in page_of_images(session, theme, limit=1000)]
        some = page_of_images(session, theme, numbers[10], 1000, before_id=numbers[20])
        assert [row["id"] for row in some] == numbers[11:20]
        assert page_of_images(session, theme, numbers[-1]) == []
        assert page_of_images(session, theme, before_id=numbers[0]) == []
        row = page_of_images(session, theme, limit=1)[0]
        assert {"id", "sha256", "label", "split", "golden", "cluster_id", "group_key"} <= row.keys()


def act(session, theme, chance: random.Random, turn: int):
    "One of the many things that change counts."
    labels = list_labels(session, theme)
    ids = session.scalars(
        select(TrainData.id).where(TrainData.theme_id == theme.id, TrainData.deleted_at.is_(None))
    )
    ids = chance.sample(list(ids), 30)
    match chance.randrange(9):
        case 0:
            register(session, theme, range(10_000 + turn * 700, 10_000 + turn * 700 + 600), chance, labels)
            session.execute(update(TrainData).values(golden=False))
        case 1:
            set_label(session, ids, chance.choice(labels), "ann")
        case 2:
            label_selected(session, theme, Filter(unlabeled=True), labels[0].label_name, "ann")
        case 3 if len(labels) > 2:
            merge_labels(session, theme, labels[-1].label_name, labels[0].label_name, "ann")
        case 4:
            split_theme(session, theme, SplitRatios(), 42, "ann")
        case 5:
            delete_pictures(session, theme, ids, "ann")
        case 6 if session.scalar(select(LabelAct.id).where(LabelAct.undone_at.is_(None)).limit(1)):
            try:
                undo(session, theme, "ann")
            except UserError:
                return
        case 7:
            forget_counts(session.connection())
            resplit_theme(session, theme, SplitRatios(), turn, "ann", confirm=True)
        case 8 if len(labels) > 2:
            delete_label(session, theme, labels[-1].label_name, "ann", unlabel=True)
            add_label(session, theme, f"new {turn}")


@pytest.mark.parametrize("seed", [1, 2])
def test_counts_never_drift(engine, seed):
    theme, chance = start(engine, 400), random.Random(seed)
    with writing(engine) as session:
        session.execute(update(TrainData).values(golden=False))
    for turn in range(20):
        try:
            with writing(engine) as session:
                act(session, theme, chance, turn)
                assert kept_counts(session.connection()) == scanned_counts(session.connection())
                assert misplaced(session.connection()) == 0
                if chance.random() < 0.2:
                    raise ZeroDivisionError  # Takes all of it back
        except ZeroDivisionError:
            pass
        with reading(engine) as session:
            right = scanned_counts(session.connection())
            assert kept_counts(session.connection()) == right
            assert misplaced(session.connection()) == 0
            assert statistics(session, theme)["pictures"] == sum(
                n for (t, *_), n in right.items() if t == theme.id
            )
    with writing(engine) as session:
        delete_theme(session, "screws")
    with writing(engine) as session:
        assert kept_counts(session.connection()) == scanned_counts(session.connection())
        assert misplaced(session.connection()) == 0
        assert theme_counts(session) == {"nuts": sum(scanned_counts(session.connection()).values())}
        assert not repair_counts(session.connection())
        session.execute(update(PictureCount).values(pictures=1))
        assert repair_counts(session.connection())
        assert kept_counts(session.connection()) == scanned_counts(session.connection())
        assert get_theme(session, "nuts")


PLACE_TABLE = "SELECT count(*) FROM picture_place"


def test_places_are_kept_and_repaired(postgres_engine):
    "Only PostgreSQL has them: SQLite's indexes know the split."
    theme = start(postgres_engine, 400)
    with writing(postgres_engine) as session:
        connection, labels = session.connection(), list_labels(session, theme)
        mine = select(TrainData.id).where(TrainData.theme_id == theme.id, TrainData.split == "train")
        one, two = (session.scalar(mine.where(TrainData.label_id == label.id)) for label in labels[:2])
        exchanged = case({one: labels[1].id, two: labels[0].id}, value=TrainData.id)
        counts = kept_counts(connection)
        session.execute(update(TrainData).where(TrainData.id.in_([one, two])).values(label_id=exchanged))
        assert kept_counts(connection) == counts and misplaced(connection) == 0
        session.execute(update(TrainData).where(TrainData.id == one).values(deleted_at=utc_now()))
        session.execute(update(TrainData).values(updated_at=utc_now()))
        assert misplaced(connection) == 0
        session.execute(update(TrainData).where(TrainData.id == one).values(deleted_at=None))
        assert misplaced(connection, theme.id) == 0 and not repair_counts(connection)
        whole = session.scalar(text(PLACE_TABLE))
        session.execute(
            text("UPDATE picture_place SET label_id = 77 WHERE train_data_id = :one"), {"one": one}
        )
        session.execute(text("DELETE FROM picture_place WHERE train_data_id = :two"), {"two": two})
        assert (misplaced(connection, theme.id), misplaced(connection, theme.id + 1)) == (2, 0)
        assert repair_counts(connection) and not repair_counts(connection)
        assert misplaced(connection) == 0 and session.scalar(text(PLACE_TABLE)) == whole


def test_no_index_hears_of_a_split(postgres_engine):
    "PostgreSQL would write an entry into every index for each picture."
    with writing(postgres_engine) as session:
        theme = create_theme(session, "screws")
        label = add_label(session, theme, "good")
        facts = dict(
            theme_id=theme.id, label_id=label.id, image_path="x.png", group_key="lot", labeled_by="ann"
        )
        session.execute(insert(TrainData), [facts | {"sha256": f"{n:064x}"} for n in range(3000)])
    with writing(postgres_engine) as session:
        split_theme(session, theme, SplitRatios(), 42, "ann")
        written = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'train_data'"
        assert session.execute(text(written)).one() == (3000, 3000)
    indexes = inspect(postgres_engine).get_indexes("train_data")
    assert not [index["name"] for index in indexes if "split" in str(index)]

"""Pages of 100 with every filter, first and last, and the statistics of a theme of a million pictures.

python benchmarks/queries.py [COUNT] [postgresql://…/empty_database]
"""

import sqlite3
import sys
from statistics import median, quantiles
from time import perf_counter, process_time

from labeled import million
from sqlalchemy import text
from workspace import report

from classification_mlops.db.queries import class_counts, page_of_images, statistics
from classification_mlops.db.session import is_sqlite, reading
from classification_mlops.db.themes import get_theme

FILTERS = [
    {},
    {"label": "label 3"},
    {"label": "label 19"},  # Only at the far end
    {"unlabeled": True},
    {"split": "test"},
    {"split": "unsplit"},
    {"group": "lot 7"},
    {"labeled_by": "ben"},
    {"labeled_by": "zoe"},
    {"labeled_by": "nobody"},
    {"reason": "disagrees"},
    {"reason": "rare"},
    {"text": "img"},
    {"text": "needle"},
    {"text": "nothing like it"},
    {"text": "_0123"},
    {"golden": True},
    {"cluster": 3001},
    {"label": "label 3", "split": "valid"},
    {"label": "label 3", "split": "unsplit"},
    {"label": "label 3", "labeled_by": "ben"},
    {"label": "label 3", "labeled_by": "zoe"},
    {"label": "label 3", "text": "img"},
    {"label": "label 3", "text": "needle"},
    {"label": "label 19", "text": "lot199"},
    {"split": "train", "group": "lot 100"},
    {"split": "unsplit", "group": "lot 3"},
    {"split": "test", "labeled_by": "zoe"},
    {"unlabeled": True, "text": "needle"},
    {"reason": "disagrees", "label": "label 3"},
]
BARE = "SELECT * FROM train_data WHERE theme_id = 1 AND deleted_at IS NULL AND id > ? ORDER BY id LIMIT 100"
SCAN = (
    "SELECT label_id, split, count(*) FROM train_data WHERE theme_id = 1 AND deleted_at IS NULL GROUP BY 1, 2"
)


def seconds(function, times: int = 15) -> list[float]:
    "Each of several runs, after one that does not count."
    function()
    runs = []
    for _ in range(times):
        began = perf_counter()
        function()
        runs.append(perf_counter() - began)
    return runs


def p95(runs: list[float]) -> float:
    return round(quantiles(runs, n=20)[-1] * 1000, 2)


def pages_of(engine, theme, chosen: dict) -> dict[str, list[float]]:
    "Seconds of the first page, the last one, and the one before it."
    found = {}
    with reading(engine) as session:

        def page(**place):
            return page_of_images(session, theme, **place, **chosen)

        found["first"] = seconds(page)
        found["last"] = seconds(lambda: page(last=True))
        if end := page(last=True):
            found["before the last"] = seconds(lambda: page(before_id=end[0]["id"]))
    return found


def bare(engine, count: int) -> dict:
    "The same questions without us."
    if not is_sqlite(engine):
        with engine.connect() as connection:
            return {
                "scan_ms": round(median(seconds(lambda: connection.execute(text(SCAN)).all(), 3)) * 1000, 1)
            }
    with sqlite3.connect(engine.url.database) as connection:
        page = seconds(lambda: connection.execute(BARE, (count // 2,)).fetchall())
        scan = seconds(lambda: connection.execute(SCAN).fetchall(), 3)
    return {"page_p95_ms": p95(page), "scan_ms": round(median(scan) * 1000, 1)}


def main(arguments: list[str]) -> int:
    with million(arguments) as (engine, count):
        with reading(engine) as session:
            theme = get_theme(session, "screws")
        slow, runs, busy = {}, [], process_time()
        for chosen in FILTERS:
            for place, times in pages_of(engine, theme, chosen).items():
                runs += times
                slow[f"{chosen} {place}"] = p95(times)
        busy = (process_time() - busy) / len(runs) * 1000
        with reading(engine) as session:
            figures = seconds(lambda: (statistics(session, theme), class_counts(session, theme)))
        worst = dict(sorted(slow.items(), key=lambda item: -item[1])[:5])
        result = {
            "database": engine.dialect.name,
            "pictures": count,
            "page_p95_ms": p95(runs),
            "page_cpu_ms": round(busy, 2),  # Of this process, on average: what a quiet machine would show
            "worst_p95_ms": worst,
            "statistics_p95_ms": p95(figures),
            "bare": bare(engine, count),
            "to_reach": {"page_p95_ms": 20, "statistics_p95_ms": 100},
        }
        report("queries", result)
    return int(result["page_p95_ms"] > 20 or result["statistics_p95_ms"] > 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

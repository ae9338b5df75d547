"""The golden journals of the enrichment. `python -m tests.domains.enrichment_goldens` writes those that are missing; they are never edited."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from domains.enrichment.values import EnrichBatch, Patience
from domains.enrichment.workflows import enrich_batch, enrich_part, enrichment_complete
from flowdsl.testing import Fake
from flowdsl.testing.golden import Recorded, definitions_of, recorded_by, written
from tests.domains.enrichment_books import ALL, Books, results

FOLDER = Path(__file__).parents[1] / "golden" / "enrichment"
definitions = definitions_of(enrich_batch, enrich_part)


def made() -> Iterator[tuple[str, Recorded]]:
    """Each run by its name; the same each time."""
    for name, fake in _played():
        run = fake.run(enrich_batch, EnrichBatch("hand", "golden", patience=Patience(poll=timedelta(hours=6))))
        for number, one in enumerate(recorded_by(run)):
            yield name if one.execution.id == run.id else f"{name}-child-{number}", one


def _played() -> Iterator[tuple[str, Fake]]:
    partial = results(ALL, "IN_PROGRESS", first=4)
    yield "called-back", Books().play(Fake()).signal(enrichment_complete, partial, at="1m").signal(enrichment_complete, results(ALL), at="2m")
    yield "answer-lost", Books().play(Fake()).crash(before="submit-to-fullenrich").signal(enrichment_complete, results(ALL), at="3h")
    yield "expired", Books().play(Fake())
    halves = Books(finished=True)
    halves.rows[4].email = "bad@gmail.com"
    yield "in-halves", halves.play(Fake())


if __name__ == "__main__":
    for name, one in made():
        file = FOLDER / f"{name}.json"
        if not file.exists():
            FOLDER.mkdir(exist_ok=True)
            written(FOLDER, [one])[0].rename(file)

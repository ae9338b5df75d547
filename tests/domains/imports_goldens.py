"""The golden journals of the import. `python -m tests.domains.imports_goldens` writes those that are missing; none is ever edited."""

from __future__ import annotations

from pathlib import Path

from domains.imports.workflows import process_meal_shorts_csv
from flowdsl.testing import Fake
from flowdsl.testing.golden import recorded_by, written
from tests.domains.imports_kitchen import ORDER, Kitchen, csv_of

FOLDER = Path(__file__).parents[1] / "golden" / "imports"


def write() -> None:
    kitchen = Kitchen(csv_of("1,A", "1,B", "2,A", "1,A", "3"), bounces={"1,B"})
    fake = kitchen.play(Fake())
    for name in ("first", "again"):
        run = fake.run(process_meal_shorts_csv, ORDER)
        for number, one in enumerate(recorded_by(run)):
            file = FOLDER / f"{name}-{number}.json"
            if not file.exists():
                (made,) = written(FOLDER, [one])
                made.rename(file)
        kitchen.bounces = set()


if __name__ == "__main__":
    write()

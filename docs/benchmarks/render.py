"""Write the tables of ../benchmarks.md anew, from what this folder holds: ``python docs/benchmarks/render.py``.

With ``--check`` nothing is written, and the exit code is 1 if the page is out of date.
"""

import json
import sys
from pathlib import Path

from neuralsanitizer.benchmark.remedies import read_remedies
from neuralsanitizer.benchmark.remedy_tables import remedy_sections
from neuralsanitizer.benchmark.run import read_scores
from neuralsanitizer.benchmark.speed import read_speed, speed_markdown
from neuralsanitizer.benchmark.tables import markdown_table, sections

FOLDER = Path(__file__).parent
PAGE = FOLDER.with_suffix(".md")


def rendered(page: str) -> str:
    """The page with every table between its two marks replaced."""
    scores = [score for score in read_scores(FOLDER) if score.split in {"reported", "attacks"}]
    others = {
        "speed": "\n\n".join(speed_markdown(score) for score in read_speed(FOLDER).values()),
        "formats": formats(),
        "screen": screen(),
    }
    for name, table in {**sections(scores), **remedy_sections(read_remedies(FOLDER)), **others}.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        if not rest or not after:
            raise SystemExit(f"{PAGE.name} has no place for the table {name!r}: put {start.strip()} and {end} there")
        page = f"{before}{start}{table}\n{end}{after}"
    return page


def formats() -> str:
    """What a scan says of each format, as ``benchmarks/formats.py`` found it."""
    told = json.loads((FOLDER / "formats.json").read_text(encoding="utf-8"))
    rows = [
        (row["format"], str(told["planted"]), row["verdict"], ", ".join(map(str, row["infected"])) or "-")
        for row in told["rows"]
    ]
    return markdown_table(("format", "planted", "verdict", "infected labels"), rows)


def screen() -> str:
    """Where the short look puts the planted label of each model, as ``benchmarks/screen.py`` found it."""
    rows = [
        (
            row["case"],
            str(row["target"]),
            str(row["labels"]),
            str(row["place"]),
            str(row["long looks"]),
            ", ".join(map(str, row["infected"])) or "-",
            f"{row['timings']['total']:.0f}",
        )
        for row in json.loads((FOLDER / "screen.json").read_text(encoding="utf-8"))
    ]
    head = ("model", "planted label", "labels", "its place", "long looks", "infected labels", "seconds, one core")
    return markdown_table(head, rows)


def main() -> None:
    """Write or check the page."""
    before = PAGE.read_text(encoding="utf-8")
    after = rendered(before)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(after, encoding="utf-8")
    elif after != before:
        raise SystemExit(f"{PAGE.name} is out of date: python docs/benchmarks/render.py")


if __name__ == "__main__":
    main()

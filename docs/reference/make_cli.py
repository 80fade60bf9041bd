"""Write ``cli.md``: the help of every verb, as the program prints it.

The verbs and their options are read from the program itself, so the page cannot say otherwise than ``--help`` does::

    .venv/bin/python docs/reference/make_cli.py           # writes docs/reference/cli.md
    .venv/bin/python docs/reference/make_cli.py --check   # exits with 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from typer import Typer
from typer.testing import CliRunner

from neuralsanitizer.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
PROGRAM = "neuralsanitizer"
WIDTH = 100  # columns of the help texts, whatever the terminal's
HEAD = """# The command line

Made from the program's own help by `docs/reference/make_cli.py`; do not edit it by hand.

What all verbs have in common:

- **stdout** gets the result: a table, or one JSON object with `--format json`. Notes, progress and paths go to stderr.
- **Exit codes** are the same everywhere:

  | code | meaning |
  |---|---|
  | 0 | nothing found (`scan`), repaired (`repair`), proven (`verify`), done (all others) |
  | 1 | a backdoor is found (`scan`), is still found (`repair`, `verify`); a claim of the `demo` did not come true |
  | 2 | usage: options that are wrong or make no sense together, or nothing to repair |
  | 3 | a file cannot be read, is refused, or cannot be written |
  | 4 | inconclusive: the scan could not judge, and says why |
  | 5 | internal error; `NEURALSANITIZER_DEBUG=1` in the environment shows the traceback |
  | 130 | interrupted |

- **`--data`** takes what [A clean set](../howto/clean-set.md) describes.
- **`--seed`**: all randomness derives from it. Same seed, same machine, same verdict.
- **`--device`**: `auto` takes a GPU if there is one.
"""


def render() -> str:
    """The page."""
    names = [" ".join(words) for words in verbs(app)]
    links = [f"- [`{PROGRAM} {name}`](#{'-'.join([PROGRAM, *name.split()])})" for name in names]
    parts = [HEAD, "\n".join(links), section(())]
    parts += [section(tuple(name.split())) for name in names]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def verbs(typer: Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every verb: first those of the program itself, then those of its groups."""
    for command in typer.registered_commands:
        yield (*before, str(command.name))
    for group in typer.registered_groups:
        assert group.typer_instance is not None  # noqa: S101 - a group without verbs is a mistake in the program
        yield from verbs(group.typer_instance, (*before, str(group.name)))


def section(words: tuple[str, ...]) -> str:
    """Heading and help of one verb."""
    result = CliRunner().invoke(
        app, [*words, "--help"], prog_name=PROGRAM, terminal_width=WIDTH, max_content_width=WIDTH
    )
    if result.exit_code:
        raise SystemExit(f"{PROGRAM} {' '.join(words)} --help failed: {result.output}")
    text = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
    return f"## {' '.join([PROGRAM, *words])}\n\n```text\n{text}\n```"


if __name__ == "__main__":
    page = render()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
            raise SystemExit(f"{PAGE.name} is out of date: run {Path(__file__).name}")
    else:
        PAGE.write_text(page, encoding="utf-8")

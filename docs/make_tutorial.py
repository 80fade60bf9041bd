"""Run the commands of the tutorial and put what they print beneath them.

Each ``sh`` block of ``docs/tutorial.md`` runs in one new folder, in order, with the programs of this interpreter's
environment; a ``text`` block that follows is replaced by what came on stdout, and the exit code, where it is not 0.
Takes some minutes::

    python docs/make_tutorial.py
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "tutorial.md"
_PAIR = re.compile(r"```sh\n(?P<command>.*?)```(?P<between>\n\n```text\n.*?```)?", re.DOTALL)


def main() -> None:
    """Make the page anew."""
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(DOCS.parent / "examples", Path(place) / "examples")
        made = _PAIR.sub(lambda match: pasted(match, Path(place)), text)
    PAGE.write_text(made, encoding="utf-8")


def pasted(match: re.Match[str], place: Path) -> str:
    """A command with its output."""
    command = match["command"]
    if command.startswith("pip "):
        return match[0]  # what runs this has it
    print(command, file=sys.stderr)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(  # noqa: S603 - the page's own commands
        ["bash", "-c", command],  # noqa: S607
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in {0, 1, 4}:
        sys.exit(f"exit code {done.returncode}")
    if match["between"] is None:
        return match[0]
    ended = f"(exit code {done.returncode})\n" if done.returncode else ""
    lines = "".join(f"{line.rstrip()}\n" for line in done.stdout.strip().splitlines())
    return f"```sh\n{command}```\n\n```text\n{lines}{ended}```"


if __name__ == "__main__":
    main()

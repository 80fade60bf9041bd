"""The formats that a run is written in, for people and for programs that read other tools' findings too."""

from __future__ import annotations

import json
from enum import StrEnum

from neuralsanitizer.report.bom import cyclonedx_bom
from neuralsanitizer.report.html import render_html
from neuralsanitizer.report.junit import junit_xml
from neuralsanitizer.report.sarif import sarif_log
from neuralsanitizer.storage import SavedRun

__all__ = ["FILE_NAMES", "FileFormat", "rendered"]


class FileFormat(StrEnum):
    """What a run can be written as."""

    HTML = "html"
    SARIF = "sarif"
    JUNIT = "junit"
    CYCLONEDX = "cyclonedx"


FILE_NAMES = {
    FileFormat.HTML: "report.html",
    FileFormat.SARIF: "report.sarif",
    FileFormat.JUNIT: "report.junit.xml",
    FileFormat.CYCLONEDX: "report.cdx.json",
}
"""What the files are called in a run folder; each tool finds its own by these endings."""


def rendered(saved: SavedRun, format_: FileFormat) -> str:
    """A run in a format, as text; to be written in UTF-8."""
    if format_ is FileFormat.HTML:
        return render_html(saved)
    if format_ is FileFormat.JUNIT:
        return junit_xml(saved)
    made = sarif_log(saved) if format_ is FileFormat.SARIF else cyclonedx_bom(saved)
    return json.dumps(made, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

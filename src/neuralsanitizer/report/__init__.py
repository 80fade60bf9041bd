"""Reports of a run: JSON, a terminal table, and one HTML page. They read a saved run, never a model."""

from neuralsanitizer.report.html import render_html, render_index
from neuralsanitizer.report.machine import filter_json, repair_json, run_json, verification_json
from neuralsanitizer.report.terminal import (
    print_filter,
    print_index,
    print_parted,
    print_repair,
    print_run,
    print_verification,
)

__all__ = [
    "filter_json",
    "print_filter",
    "print_index",
    "print_parted",
    "print_repair",
    "print_run",
    "print_verification",
    "render_html",
    "render_index",
    "repair_json",
    "run_json",
    "verification_json",
]

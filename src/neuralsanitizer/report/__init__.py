"""Reports of a run: JSON, a terminal table, one HTML page, and what other tools read. They read a saved run alone."""

from neuralsanitizer.report.bom import cyclonedx_bom
from neuralsanitizer.report.bundle import bundle_of, check_bundle
from neuralsanitizer.report.files import FILE_NAMES, FileFormat, rendered
from neuralsanitizer.report.html import render_html, render_index
from neuralsanitizer.report.junit import junit_xml
from neuralsanitizer.report.machine import filter_json, repair_json, run_json, verification_json
from neuralsanitizer.report.sarif import sarif_log
from neuralsanitizer.report.terminal import (
    print_filter,
    print_index,
    print_parted,
    print_repair,
    print_run,
    print_verification,
)

__all__ = [
    "FILE_NAMES",
    "FileFormat",
    "bundle_of",
    "check_bundle",
    "cyclonedx_bom",
    "filter_json",
    "junit_xml",
    "print_filter",
    "print_index",
    "print_parted",
    "print_repair",
    "print_run",
    "print_verification",
    "render_html",
    "render_index",
    "rendered",
    "repair_json",
    "run_json",
    "sarif_log",
    "verification_json",
]

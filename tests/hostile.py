"""Texts that try to get out of where they are shown."""

import unicodedata
from dataclasses import replace

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "' onload='alert(1)",
    '"><svg/onload=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&#60;i&#62;",
    "]]><!-- -->",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "[red]markup[/red]",
    "safe\u202egnp.exe\u2066\u200f",
    "zero\u200bwidth\ufeff\u00ad",
    "a\x00b\rc\nd\u2028e\u0085f",
    "\ud800",
    "x" * 5000,
    "",
    "漢字🦆",
]


def hidden_in(text):
    """Characters that are not seen but do something: controls, escapes, marks that reorder or hide text."""
    kinds = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return [c for c in text if unicodedata.category(c) in kinds and c != "\n"]


def poisoned(saved, text):
    """The run, with ``text`` wherever text comes from outside: names, files, a run folder made by somebody else."""
    run = saved.run
    labels = tuple(replace(f, name=text, reason=text, metrics={text: 1.0}) for f in run.verdict.labels)
    references = tuple(replace(r, name=text, kind=text, role=text, reason=text, usable=False) for r in run.references)
    model = replace(
        run.model, name=text or "model", sha256=text, architecture=text, output=text, notes=(text,),
        label_names=(text,) * 10,
    )  # fmt: skip
    environment = replace(run.environment, neuralsanitizer=text, python=text, torch=text, numpy=text, platform=text,
                          device=text, dtype=text)  # fmt: skip
    verdict = replace(run.verdict, reason=text, assumptions=(text,), labels=labels)
    hostile = replace(
        run, created=text, method=text, preset=text, model=model, environment=environment, verdict=verdict,
        data=replace(run.data, name=text, sha256=text, format=text, notes=(text,)),
        self_check=replace(run.self_check, note=text or "note"), settings={text: text}, references=references,
        timings={text: 1.0, "total": 2.0}, schema_version=text,
    )  # fmt: skip
    repair = replace(saved.repair, method=text, output=text, repaired_sha256=text)
    proof = replace(saved.verification, reason=text, scan=hostile)
    return replace(saved, run=hostile, repair=repair, verification=proof)

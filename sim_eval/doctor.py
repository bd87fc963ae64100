"""Examine a set-up before it is scored: ``python -m sim_eval.doctor --policy deep_llama --data data/lift``.

Machine, cameras, demonstrations, policy and speed; each finding comes with its remedy. The exit code is 1 when there is
a fault, 0 when there is none (warnings or not), and 2 for input that cannot be read.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

from sim_eval.configs import DoctorConfig
from sim_eval.console import run
from sim_eval.core.errors import SimEvalError

PROGRAM = "python -m sim_eval.doctor"


def main(config: DoctorConfig) -> int:
    """Runs the command; returns the exit code."""
    if config.json and not os.access(config.json.parent, os.W_OK):
        raise SimEvalError(f"--json {config.json} cannot be written: choose a file in an existing folder")
    from sim_eval.core.files import write_json
    from sim_eval.diagnosis.examination import Subject, examination
    from sim_eval.diagnosis.findings import group_text, summary

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    groups = {}
    for title, findings in examination(Subject.of(config)):
        groups[title] = findings
        print(group_text(title, findings, colour), end="\n\n", flush=True)
    findings = [finding for group in groups.values() for finding in group]
    healthy = all(finding.level != "fault" for finding in findings)
    if config.json:
        tables = {title: [asdict(finding) for finding in group] for title, group in groups.items()}
        write_json(config.json, {"healthy": healthy, "groups": tables})
    print(summary(findings))
    return 0 if healthy else 1


if __name__ == "__main__":
    run(main, DoctorConfig, PROGRAM)

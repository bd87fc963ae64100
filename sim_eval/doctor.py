"""Examine a set-up before it is scored: ``python -m sim_eval.doctor --policy deep_llama --data data/lift``.

Machine, cameras, demonstrations, policy and speed; each finding comes with its remedy. The exit code is 1 when there is
a fault, 0 when there is none (warnings or not), and 2 for input that cannot be read.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

from sim_eval.configs import DoctorConfig
from sim_eval.console import make_folder, run
from sim_eval.core.decoding import encode
from sim_eval.core.programs import command

PROGRAM = command("doctor")


def main(config: DoctorConfig) -> int:
    """Runs the command; returns the exit code."""
    if config.out is not None:
        make_folder(config.out.parent)
    from sim_eval.core.files import write_json
    from sim_eval.diagnosis.examination import Subject, examination
    from sim_eval.diagnosis.findings import group_text, summary
    from sim_eval.reporting.records import print_records

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    as_text = not (config.json or config.csv)
    groups = {}
    for title, findings in examination(Subject.of(config)):
        groups[title] = findings
        if as_text:
            print(group_text(title, findings, colour), end="\n\n", flush=True)
    findings = [finding for group in groups.values() for finding in group]
    healthy = all(finding.level != "fault" for finding in findings)
    report = {"healthy": healthy, "groups": groups}
    if not print_records(
        config, lambda: report, lambda: [{"group": title, **asdict(each)} for title in groups for each in groups[title]]
    ):
        print(summary(findings))
    if config.out is not None:
        write_json(config.out, encode(report))
    return 0 if healthy else 1


if __name__ == "__main__":
    run(main, DoctorConfig, PROGRAM)

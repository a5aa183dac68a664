"""`tide-cache doctor`: what is installed, what the machine can do, and what is missing."""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from .console import chatter_to_stderr, complain, print_json, print_table
from .options import Json

BROKEN = 1


Teachers = Annotated[bool, typer.Option("--teachers", help="Show which checkpoint families can be loaded, and how.")]


def doctor(teachers: Teachers = False, json: Json = False) -> None:
    """Show versions, devices and optional extras, and how to install what is missing; exit 1 if the core is broken."""
    if teachers:
        _show_teachers(json)
        return
    with chatter_to_stderr():
        from .machine import examine

        findings = examine(Path.cwd())
    faults = [finding for finding in findings if finding.is_fault]
    if json:
        print_json({"ok": not faults, "findings": [asdict(finding) for finding in findings]})
    else:
        for section, members in groupby(findings, key=lambda finding: finding.section.partition(":")[0]):
            rows = [
                (finding.section.partition(": ")[2] or finding.state, finding.name, finding.found, finding.way_out)
                for finding in members
            ]
            first = "extra" if section == "extra" else "state"
            print_table(section.capitalize(), [first, "name", "found", "way out"], rows, text_columns=range(4))
    if faults:
        for fault in faults:
            complain(f"error: {fault.name}: {fault.found} ({fault.state}); {fault.way_out}")
        raise typer.Exit(BROKEN)


def _show_teachers(json: bool) -> None:
    from tide_cache.families import FAMILIES
    from tide_cache.reporting.family_table import COLUMNS, family_rows

    if json:
        print_json([asdict(family) | {"is_student": family.is_student} for family in FAMILIES.values()])
        return
    rows = [[cell.replace("`", "") for cell in row] for row in family_rows()]
    print_table("Families of checkpoints", COLUMNS, rows, text_columns=range(len(COLUMNS)))

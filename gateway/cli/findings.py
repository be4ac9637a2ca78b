"""What preflight has found, for people: each finding with its remedy."""

from collections.abc import Iterable

import click

from gateway.cli import output, words
from landbridge.v1.types_pb2 import SEVERITY_ERROR, SEVERITY_WARNING, Finding, Severity

_STYLES = {SEVERITY_ERROR: "red", SEVERITY_WARNING: "yellow"}
_MARGIN = 9  # as wide as "warning", and the gap


def show(findings: Iterable[Finding]) -> None:
    """Print them, the worst first; on a terminal in lines that fit."""
    console = output.terminal()
    for finding in sorted(findings, key=lambda finding: -finding.severity):
        word = words.word(Severity.DESCRIPTOR, finding.severity)
        # click drops the colour where the output is not a terminal.
        head = click.style(f"{word:<{_MARGIN}}", fg=_STYLES.get(finding.severity))
        click.echo(f"{head}{words.safe(finding.code)}")
        texts = [words.safe(finding.message)]
        if finding.remedy:
            texts.append(f"Remedy: {words.safe(finding.remedy)}")
        for text in texts:
            for line in output.wrapped(text, _MARGIN, console):
                click.echo(" " * _MARGIN + line)

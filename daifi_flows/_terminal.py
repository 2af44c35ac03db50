"""What a person at the terminal sees: preparation, each step's progress, the results."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from daifi_flows._step import StepEvent, StepState, dai
from daifi_flows.cnft import Basis, ComputeNFT
from daifi_flows.verify import Report, Status

if TYPE_CHECKING:
    from daifi_flows.ray_mesh.calibrate import CalibrationReport

__all__ = [
    "Progress",
    "paid_wei",
    "print_calibration",
    "print_results",
    "print_verification",
    "short_path",
]

_DONE = {StepState.SETTLED, StepState.EFFECT}
_BAD = {StepState.REJECTED, StepState.LOST, StepState.REFUNDED}


class Progress:
    """Live progress on stderr; plain lines when stderr is no terminal.

    Call it with a text while things are prepared, and with each :class:`StepEvent`.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self.started = time.monotonic()
        self.live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            spinner = Spinner("dots", Text("working…", style="dim"))
            self.live = Live(spinner, console=self.console, transient=True)
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def prepare(self, what: str) -> None:
        """Say what is being prepared."""
        self._line("cyan", what)

    def __call__(self, event: StepEvent) -> None:
        """Show one step event."""
        style = "green" if event.state in _DONE else "red" if event.state in _BAD else "default"
        self._line(style, f"{event.step:<9} {event.state.value:<10} {event.message}")

    def _line(self, style: str, text: str) -> None:
        elapsed = time.monotonic() - self.started
        line = Text.assemble((f"{elapsed:6.1f}s ", "dim"), (text, style))
        self.console.print(line, highlight=False, soft_wrap=True)


def print_results(console: Console, answer: str, action: Any, steps: Sequence[ComputeNFT]) -> None:
    """The answer, the action taken, and a table of the cNFTs."""
    console.print(Panel(escape(answer), title="Answer", border_style="green"))
    console.print(Panel(escape(str(action)), title="Action", border_style="blue"))
    table = Table(title="Compute NFTs", title_justify="left")
    for column in ("step", "proof", "signers", "confidence", "paid", "block"):
        table.add_column(column, no_wrap=True)
    for step in steps:
        table.add_row(
            step.name,
            f"{step.spec.scheme}, {step.proof_bytes:,} B",
            str(step.attestation.signers.bit_count()),
            "not drawn"
            if step.attestation.basis is Basis.WAIVED
            else f"{step.attestation.confidence_ppm / 1e6:.4f}",
            dai(paid_wei(step)),
            str(step.receipt.header.height),
        )
    console.print(table)
    failed = [(step.name, attempt) for step in steps for attempt in step.attempts]
    if failed:
        table = Table(title="Rejected and lost executions", title_justify="left")
        for column in ("step", "node", "what happened", "slashed"):
            table.add_column(column, no_wrap=True)
        table.add_column("why", overflow="fold")
        for name, attempt in failed:
            table.add_row(
                name,
                str(attempt["node"]),
                str(attempt["state"]),
                dai(attempt["slashed_wei"]),
                escape(str(attempt["reason"])),
            )
        console.print(table)


def short_path(path: Path) -> str:
    """Relative to where the user is, when that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def paid_wei(step: ComputeNFT) -> int:
    """What the buyer paid for a step, fees included, in wei."""
    return sum(
        payment.amount_wei for payment in step.receipt.leaf.payments if payment.reason != "refund"
    )


_MARKS = {
    Status.PASSED: "[green]✓[/]",
    Status.FAILED: "[red]✗[/]",
    Status.NOT_MADE: "[yellow]–[/]",
}


def print_verification(console: Console, report: Report) -> None:
    """One line per check of a bundle."""
    console.print(f"[bold]{escape(report.path)}[/]", highlight=False, soft_wrap=True)
    for check in report.checks:
        detail = escape(check.detail)
        if check.status is Status.NOT_MADE:
            detail = f"not checked: {detail}"
        console.print(
            f"  {_MARKS[check.status]} {check.name:<20} {detail}", highlight=False, soft_wrap=True
        )
    if not report.ok:
        console.print("  [red bold]FAILED[/]")
    elif any(check.status is Status.NOT_MADE for check in report.checks):
        console.print("  [yellow]verified, except what was not checked[/]")
    else:
        console.print("  [green bold]verified[/]")


def print_calibration(console: Console, report: CalibrationReport, path: Path) -> None:
    """What was measured, as a table, and where the calibration is."""
    found = report.calibration
    table = Table(
        title=f"{escape(found.model)}: nodes claim {found.precision}, the verifier computes in "
        f"{found.verifier_precision}",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("the node ran")
    for name in ("answers", "tokens", "margin", "largest", "evidence"):
        table.add_column(name, justify="right")
    table.add_column("token-difr")
    table.add_column("toploc")
    for run in report.runs:
        late = run.tokens_to_catch
        after = "" if run.honest else f"; by {late} tokens" if late else "; never"
        table.add_row(
            escape(run.name),
            str(run.answers),
            str(run.tokens),
            f"{run.mean_margin:.4f}",
            f"{run.largest_margin:.2f}",
            f"10^{run.max_log_evidence / math.log(10):.1f}",
            _outcomes(run.answers, run.accepted, run.rejected) + after,
            _outcomes(run.answers, run.toploc_accepted, run.toploc_rejected),
            style=None if run.honest else "yellow",
        )
    console.print(table)
    console.print(
        f"written to {short_path(path)}: {found.generations} honest answers, {found.tokens} tokens",
        highlight=False,
        soft_wrap=True,
    )


def _outcomes(answers: int, accepted: int | None, rejected: int | None) -> str:
    if accepted is None or rejected is None:
        return "–"
    if answers in (accepted, rejected):
        return "all valid" if accepted else "all invalid"
    return f"{accepted} valid, {rejected} invalid"

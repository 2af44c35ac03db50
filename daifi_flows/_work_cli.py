"""``daifi work``: look after work that was paid without a review."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from daifi_flows.fabric import Fabric

__all__ = ["app"]

app = typer.Typer(
    name="work", help="Audit work that was paid unseen, and send canaries.", no_args_is_help=True
)

Home = Annotated[Path | None, typer.Option(help="Ledgers, keys and caches (or DAIFI_HOME).")]
Config = Annotated[Path | None, typer.Option(help="Settings file (YAML).")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to use.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and library logs.")]


def _open(config: Path | None, home: Path | None, address: str | None, debug: bool) -> Fabric:
    from daifi_flows.fabric import Fabric
    from daifi_flows.settings import Settings

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not debug:
        logging.getLogger("ray").setLevel(logging.ERROR)
    settings = Settings.load(config, home=home, address=address)
    if settings.address is not None:
        return Fabric.connect(settings.address, settings)
    return Fabric.local(settings)


@app.command()
def audit(
    config: Config = None,
    home: Home = None,
    address: Address = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    """Draw settled work that was not reviewed, have all seats review what is drawn, and dispute
    what they find wrong. Disputes of others get the seats' answer too."""
    with _open(config, home, address, debug) as fabric:
        audits = asyncio.run(fabric.audit_work())
    if json_output:
        found = [
            {"task": a.task_id.hex(), "outcome": a.outcome.value, "slashed_wei": a.slashed_wei}
            for a in audits
        ]
        print(json.dumps({"audits": found}, indent=2))
        return
    for each in audits:
        lost = f", node slashed {each.slashed_wei} wei" if each.slashed_wei else ""
        print(f"{each.task_id.hex()[:16]}  {each.outcome.value}{lost}")
    print(f"{len(audits)} output(s) looked at")


@app.command()
def canary(
    count: Annotated[int, typer.Option(min=1, max=1_000, help="How many to send.")] = 1,
    config: Config = None,
    home: Home = None,
    address: Address = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    """Ask earlier, reviewed tasks again in another name, and compare the answers."""
    with _open(config, home, address, debug) as fabric:
        reports = asyncio.run(fabric.send_canaries(count))
    if json_output:
        found = [
            {"task": r.task_id.hex(), "outcome": r.outcome.value, "node": r.node} for r in reports
        ]
        print(json.dumps({"canaries": found}, indent=2))
        return
    for each in reports:
        print(f"{each.task_id.hex()[:16]}  {each.outcome.value}  {each.node or ''}")

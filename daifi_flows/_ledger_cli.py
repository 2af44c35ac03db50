"""``daifi ledger``: copies of a ledger file, while it is in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from daifi_flows.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(name="ledger", help="Back up, export and import ledgers.", no_args_is_help=True)

Source = Annotated[
    Path | None, typer.Option("--ledger", help="Ledger file (default: the one under home).")
]
Home = Annotated[Path | None, typer.Option(help="Ledgers, keys and caches (or DAIFI_HOME).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _ledger(given: Path | None, home: Path | None) -> Path:
    """The file given, or the only one under home.

    Raises:
        ConfigError: there is none, or more than one to choose from.
    """
    from daifi_flows.settings import Settings

    if given is not None:
        return given
    base = Settings.load(None, home=home).home_path
    found = sorted(base.glob("*/ledger.sqlite"))
    if not found:
        raise ConfigError(f"there is no ledger under {base}: run `daifi demo`, or name a file")
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise ConfigError(f"there are several ledgers under {base}: give --ledger, one of {names}")
    return found[0]


def _tell(text: str, value: dict[str, Any], json_output: bool) -> None:
    print(json.dumps(value, indent=2) if json_output else text)


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="File to write; it must not be there yet.")],
    ledger: Source = None,
    json_output: Json = False,
    home: Home = None,
    debug: Debug = False,  # noqa: ARG001 (main looks for it)
) -> None:
    """Copy a ledger file as it is at one instant; the ledger may be running."""
    from daifi_flows.ledger import backup_ledger

    source = _ledger(ledger, home)
    backup_ledger(source, target)
    _tell(f"{source} → {target}", {"ledger": str(source), "backup": str(target)}, json_output)


@app.command("export")
def export_(
    target: Annotated[Path, typer.Argument(help="File to write; it must not be there yet.")],
    ledger: Source = None,
    json_output: Json = False,
    home: Home = None,
    debug: Debug = False,  # noqa: ARG001 (main looks for it)
) -> None:
    """Write every final block as newline-delimited JSON; the ledger may be running."""
    from daifi_flows.ledger import export_ledger

    done = export_ledger(_ledger(ledger, home), target)
    _tell(
        f"{done.path}: {done.height} blocks, head 0x{done.head.hex()[:16]}…",
        {"path": str(done.path), "height": done.height, "head": "0x" + done.head.hex()},
        json_output,
    )


@app.command()
def committees(
    folder: Annotated[Path, typer.Argument(help="Where committee.json and handovers.json go.")],
    ledger: Source = None,
    json_output: Json = False,
    home: Home = None,
    debug: Debug = False,  # noqa: ARG001 (main looks for it)
) -> None:
    """Write the first committee's keys, and how each later one was put in office: with both,
    `daifi verify` checks what any of them signed. The ledger may be running."""
    from daifi_flows._home import write_committee, write_handovers
    from daifi_flows.ledger import committees_in

    first, chain = committees_in(_ledger(ledger, home))
    folder.mkdir(parents=True, exist_ok=True)
    write_committee(folder / "committee.json", first)
    write_handovers(folder / "handovers.json", chain)
    last = chain.handovers[-1].committee if chain.handovers else first
    _tell(
        f"{folder}: committees of epochs {first.epoch} to {last.epoch}, the first of them "
        f"0x{first.digest.hex()}",
        {
            "folder": str(folder),
            "first": {"epoch": first.epoch, "digest": "0x" + first.digest.hex()},
            "last": {"epoch": last.epoch, "digest": "0x" + last.digest.hex()},
        },
        json_output,
    )


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="Newline-delimited JSON of `daifi ledger export`.")
    ],
    target: Annotated[Path, typer.Argument(help="Ledger file to make; it must not be there yet.")],
    ledger_id: Annotated[
        str | None, typer.Option(help="Id (0x…) the ledger must have (default: any).")
    ] = None,
    json_output: Json = False,
    debug: Debug = False,  # noqa: ARG001 (main looks for it)
) -> None:
    """Make a ledger file of an export, executing and verifying every block."""
    from daifi_flows.ledger import import_ledger

    try:
        wanted = None if ledger_id is None else bytes.fromhex(ledger_id.removeprefix("0x"))
    except ValueError as error:
        raise ConfigError(f"{ledger_id!r} is not a ledger's id: give 0x and 64 digits") from error
    done = import_ledger(source, target, wanted)
    _tell(
        f"{done.path}: {done.height} blocks verified, head 0x{done.head.hex()[:16]}…, ledger "
        f"0x{done.ledger_id.hex()}",
        {
            "path": str(done.path),
            "ledger_id": "0x" + done.ledger_id.hex(),
            "height": done.height,
            "head": "0x" + done.head.hex(),
        },
        json_output,
    )

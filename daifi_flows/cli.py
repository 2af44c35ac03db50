"""The ``daifi`` command: run the demo, verify bundles, audit the ledger."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from daifi_flows._judges_cli import app as judges_app
from daifi_flows._ledger_cli import app as ledger_app
from daifi_flows._work_cli import app as work_app
from daifi_flows.errors import ConfigError, DaifiError

if TYPE_CHECKING:
    from daifi_flows.cnft import Materials
    from daifi_flows.proofs import Reference
    from daifi_flows.settings import Settings
    from daifi_flows.verify import Report

__all__ = ["app", "main"]

DEFAULT_QUESTION = "How do the seats vote?"

app = typer.Typer(
    name="daifi",
    help="Verified compute for agentic pipelines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(ledger_app)
app.add_typer(judges_app)
app.add_typer(work_app)

Home = Annotated[Path | None, typer.Option(help="Ledgers, keys and caches (or DAIFI_HOME).")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and library logs.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def main() -> None:
    """Entry point: errors on purpose are one sentence and exit code 1."""
    debug = "--debug" in sys.argv
    try:
        app()
    except DaifiError as error:
        if debug:
            traceback.print_exc()
        print(f"daifi: {error.message}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("daifi: interrupted; unfinished escrows are refunded", file=sys.stderr)
        raise SystemExit(130) from None


def _quiet(debug: bool) -> None:
    """Keep library chatter off the terminal (a Prefect server still gets its logs)."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout may be JSON
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see _bringup: spinning starves engines
    if debug:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        return
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.ERROR)
    # Prefect logs every failed run with its traceback; here the failure is told in a sentence.
    console.addFilter(lambda record: not record.name.startswith("prefect"))
    logging.getLogger().addHandler(console)
    logging.getLogger("ray").setLevel(logging.ERROR)


@app.command()
def demo(
    question: Annotated[str, typer.Argument(help="What to research.")] = DEFAULT_QUESTION,
    corpus: Annotated[
        Path | None, typer.Option(help="Folder of Markdown and text files (default: our docs).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where bundles and reports go.")] = Path("runs/demo"),
    json_output: Json = False,
    engine: Annotated[str | None, typer.Option(help="transformers or vllm.")] = None,
    model: Annotated[str | None, typer.Option(help="LLM: a name, folder, GGUF or hub id.")] = None,
    model_digest: Annotated[
        str | None, typer.Option(help="Digest (0x…) the model's files must have.")
    ] = None,
    dishonest: Annotated[
        list[str] | None,
        typer.Option(
            help="Add a cheating node: quantized, wrong-model, tampered-output, replayed-proof. "
            "May be repeated."
        ),
    ] = None,
    encrypt: Annotated[bool, typer.Option(help="Seal outputs to the buyer's key.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (YAML).")] = None,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Retrieve, reason, act: three verified, settled compute NFTs from one question."""
    _quiet(debug)
    from daifi_flows.settings import Settings

    settings = Settings.load(
        config, home=home, engine=engine, model=model, model_digest=model_digest, address=address
    )
    from daifi_flows._demo import DemoOptions, run_demo

    options = DemoOptions(
        question=question,
        corpus=corpus,
        out=out,
        dishonest=tuple(dict.fromkeys(dishonest or ())),
        encrypt=encrypt,
    )
    result = run_demo(settings, options, quiet=json_output)
    if json_output:
        print(json.dumps(result, indent=2))


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(help="Bundle folders or .car files.")],
    committee: Annotated[
        Path | None,
        typer.Option(help="Trusted committee keys (default: those of your own ledgers)."),
    ] = None,
    handovers: Annotated[
        Path | None,
        typer.Option(help="Handovers to later committees (default: handovers.json beside them)."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Corpus for a retrieval whose corpus is not in the bundle.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Key file of the account a sealed output is for.")
    ] = None,
    no_models: Annotated[
        bool, typer.Option("--no-models", help="Skip every check that loads a model.")
    ] = False,
    json_output: Json = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Check bundles offline; exit 1 if any check fails."""
    _quiet(debug)
    from daifi_flows._anchor import find_anchor
    from daifi_flows._terminal import print_verification
    from daifi_flows.judges import check_committee
    from daifi_flows.keys import Account
    from daifi_flows.settings import Settings
    from daifi_flows.verify import check_lineage, verify_bundle

    settings = Settings.load(None, home=home)
    if key is not None and not key.is_file():
        raise ConfigError(f"key file {key} is not there")
    reader = Account.load(key) if key is not None else None
    reference = None if no_models else _reference(settings)
    materials = _corpus_materials(corpus)
    reports: list[Report] = []
    for path in paths:
        anchor = find_anchor(path, committee, handovers, settings.home_path)
        check_committee(anchor.committee)
        report = verify_bundle(
            path,
            committee=anchor.committee,
            handovers=anchor.chain.handovers,
            reference=reference,
            materials=materials,
            reader=reader,
            workdir=settings.home_path / "cache" / "auditor",
        )
        reports.append(replace(report, checks=(anchor.check, *report.checks)))
    orphans = check_lineage(reports)
    if json_output:
        print(json.dumps([_report_json(report, orphans) for report in reports], indent=2))
    else:
        console = Console()
        for report in reports:
            print_verification(console, report)
            for parent in orphans.get(report.token_id or b"", []):
                console.print(f"  [yellow]–[/] parent 0x{parent.hex()[:16]}… was not given")
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def _reference(settings: Settings) -> Reference:
    from daifi_flows.ray_mesh import EngineReference

    return EngineReference(settings, settings.home_path / "cache" / "auditor", fetch=False)


def _corpus_materials(corpus: Path | None) -> Materials | None:
    from daifi_flows.cnft import Materials

    if corpus is None:
        return None
    from daifi_flows.corpus import Corpus

    loaded = Corpus.from_folder(corpus)
    return Materials(blobs={loaded.cid: loaded.blob()})


def _report_json(report: Any, orphans: dict[bytes, list[bytes]]) -> dict[str, Any]:
    token = report.token_id
    return {
        "path": report.path,
        "ok": report.ok,
        "name": report.name,
        "token_id": None if token is None else "0x" + token.hex(),
        "parents": ["0x" + parent.hex() for parent in report.parents],
        "parents_not_given": ["0x" + parent.hex() for parent in orphans.get(token or b"", [])],
        "checks": [
            {"name": check.name, "status": check.status.value, "detail": check.detail}
            for check in report.checks
        ],
    }


@app.command()
def audit(
    ledger: Annotated[
        Path | None, typer.Argument(help="Ledger file (default: every ledger under home).")
    ] = None,
    from_height: Annotated[
        int,
        typer.Option(
            "--from", min=1, help="First block to execute, if a snapshot before it is there."
        ),
    ] = 1,
    json_output: Json = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Replay ledgers: every signature, root, certificate, receipt and balance."""
    _quiet(debug)
    from daifi_flows._process import collect_rarely
    from daifi_flows.ledger import audit as audit_ledger
    from daifi_flows.settings import Settings

    base = Settings.load(None, home=home).home_path
    paths = [ledger] if ledger is not None else sorted(base.glob("*/ledger.sqlite"))
    if not paths:
        raise ConfigError(f"there is no ledger under {base}: run `daifi demo`, or name a file")
    reports: list[dict[str, Any]] = []
    collect_rarely()
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"ledger file {path} is not there")
        report = audit_ledger(path, from_height)
        reports.append({"path": str(path), **report.jsonable()})
        if not json_output:
            conserved = "supply conserved" if report.supply.conserved else "SUPPLY NOT CONSERVED"
            print(
                f"{path}: clean: blocks {report.first} to {report.height}, "
                f"{report.transactions} transactions, "
                f"{report.tokens} tokens, {conserved}, head 0x{report.head.hex()[:16]}…"
            )
    if json_output:
        print(json.dumps(reports, indent=2))


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="LLM: a name, folder, GGUF or hub id.")],
    engine: Annotated[
        str, typer.Option(help="transformers; vllm adds answers made by vLLM.")
    ] = "transformers",
    precision: Annotated[str, typer.Option(help="What nodes claim: bf16, fp16 or fp32.")] = "bf16",
    verifier_precision: Annotated[
        str | None, typer.Option(help="What the verifier computes in (default: the same).")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts: a line each, or a .json list (default: built in).")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 96,
    out: Annotated[
        Path | None, typer.Option(help="File to write (default: under home, where it is used).")
    ] = None,
    json_output: Json = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Measure how far honest engines differ on a model, so that cheats on it can be convicted.

    Verifiers use the file under home; without one, answers of a model are never rejected for how
    likely their tokens are.
    """
    _quiet(debug)
    from daifi_flows._terminal import Progress, print_calibration
    from daifi_flows.proofs.calibration import write_calibration
    from daifi_flows.ray_mesh.calibrate import calibrate as measure
    from daifi_flows.ray_mesh.calibrate import read_prompts
    from daifi_flows.settings import Settings

    base = Settings.load(None, home=home).home_path
    with Progress() as progress:
        report = measure(
            model,
            base / "cache" / "calibrate",
            engine=engine,
            precision=precision,
            verifier_precision=verifier_precision,
            prompts=read_prompts(prompts),
            tokens=tokens,
            note=progress.prepare,
        )
    path = out or base / "calibrations" / report.calibration.file_name
    write_calibration(report.calibration, path)
    if json_output:
        print(json.dumps({"path": str(path), **report.jsonable()}, indent=2))
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=140)  # a file or a pipe takes the whole table
        print_calibration(console, report, path)


if __name__ == "__main__":
    main()

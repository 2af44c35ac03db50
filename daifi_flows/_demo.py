"""`daifi demo`: run the research agent on a fabric and show what happened."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from daifi_flows._home import write_committee
from daifi_flows._terminal import Progress, paid_wei, print_results, short_path
from daifi_flows.cnft import Committee, ComputeNFT
from daifi_flows.corpus import Corpus
from daifi_flows.errors import ConfigError
from daifi_flows.fabric import Fabric
from daifi_flows.ray_mesh import Dishonesty, resolve_llm
from daifi_flows.settings import Settings
from daifi_flows.tasks import load_flow, start_prefect
from daifi_flows.tasks._shipped import shipped

__all__ = ["DISHONEST", "DemoOptions", "run_demo"]

DISHONEST: Final = tuple(kind.value for kind in Dishonesty)


@dataclass(frozen=True)
class DemoOptions:
    """What the demo was asked."""

    question: str
    corpus: Path | None
    out: Path
    dishonest: tuple[str, ...] = ()
    encrypt: bool = False


def _check(settings: Settings, options: DemoOptions) -> None:
    """Refuse bad input before anything is started or paid."""
    if not options.question.strip():
        raise ConfigError("the question is empty: ask something, such as `daifi demo 'Who pays?'`")
    for kind in options.dishonest:
        if kind not in DISHONEST:
            raise ConfigError(f"--dishonest {kind!r} is unknown: use one of {', '.join(DISHONEST)}")
    Corpus.from_folder(options.corpus if options.corpus is not None else shipped("docs"))
    ref = resolve_llm(settings, None, None)
    if ref.engine == "vllm" and settings.address is None and find_spec("vllm") is None:
        raise ConfigError("vLLM is not in this environment: run `make vllm`, or use transformers")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output folder {options.out} cannot be used ({error.strerror}): give another --out"
        ) from error


def run_demo(settings: Settings, options: DemoOptions, *, quiet: bool = False) -> dict[str, Any]:
    """Run the flow; returns the JSON object of ``daifi demo --json``.

    Args:
        quiet: print no results on stdout (progress still goes to stderr).
    """
    settings = settings.model_copy(
        update={
            "bundles": options.out / "bundles",
            "encrypt_outputs": options.encrypt or settings.encrypt_outputs,
        }
    )
    _check(settings, options)
    with Progress() as progress:
        progress.prepare("starting Prefect and Ray…")
        prefect = start_prefect()
        with _started(prefect), _open(settings, options, progress) as fabric:
            prefect.result()
            progress.prepare(fabric.describe())
            run_id, steps = asyncio.run(_flow(options))
            result = _result(fabric, run_id, steps)
            write_committee(options.out / "bundles" / "committee.json", fabric.committee_keys)
            progress.prepare("closing the fabric…")
    if not quiet:
        print_results(Console(), result["answer"], steps[-1].effect, steps)
        paths = " ".join(short_path(step.bundle) for step in steps)
        print(f"\nCheck them yourself:  daifi verify {paths}")
    return result


@contextlib.contextmanager
def _started(prefect: Future[str]) -> Generator[None]:
    """Whatever goes wrong, let Prefect's server finish its start: its own exit handler stops it,
    but one that is only half started when this process ends would outlive it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            prefect.result(timeout=120)
        raise


def _open(settings: Settings, options: DemoOptions, progress: Progress) -> Fabric:
    if settings.address is None:
        start = Fabric.local
    else:
        start = functools.partial(Fabric.connect, settings.address)
    return start(settings, dishonest=options.dishonest, observer=progress, prepare=progress.prepare)


async def _flow(options: DemoOptions) -> tuple[str, list[ComputeNFT]]:
    research_agent = load_flow("research_agent")
    state = await research_agent(
        options.question,
        None if options.corpus is None else str(options.corpus),
        str(options.out),
        return_state=True,
    )
    steps = await state.aresult()
    return str(state.state_details.flow_run_id), steps


def _result(fabric: Fabric, run_id: str, steps: list[ComputeNFT]) -> dict[str, Any]:
    header, supply = fabric.ledger_summary()
    _, answer, acted = steps
    committee = fabric.committee_keys
    return {
        "flow_run_id": run_id,
        "answer": str(answer.output),
        "action": {"tool": str(acted.output), "result": acted.effect},
        "steps": [step_json(step, committee) for step in steps],
        "ledger": {
            "height": header.height,
            "head": "0x" + header.digest.hex(),
            "supply_conserved": supply.conserved,
        },
    }


def step_json(step: ComputeNFT, committee: Committee) -> dict[str, Any]:
    """One entry of ``steps``."""
    return {
        "name": step.name,
        "kind": step.spec.kind,
        "token_id": "0x" + step.token_id.hex(),
        "task_id": "0x" + step.task_id.hex(),
        "parents": ["0x" + parent.hex() for parent in step.parents],
        "proof": {"scheme": step.spec.scheme, "bytes": step.proof_bytes},
        "attestation": {
            "decision": step.attestation.decision.value,
            "confidence_ppm": step.attestation.confidence_ppm,
            "signers": step.attestation.signers.bit_count(),
            "quorum": committee.quorum,
            "committee": len(committee.seats),
        },
        "settlement": {"block": step.receipt.header.height, "paid_wei": paid_wei(step)},
        "bundle": str(step.bundle),
        "timings_ms": dict(step.timings_ms),
        "attempts": [dict(attempt) for attempt in step.attempts],
    }

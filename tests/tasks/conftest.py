"""A temporary Prefect server, and a fabric in this process that settles real nouns at once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daifi_flows._step import StepEvent, StepRequest, StepState
from daifi_flows.cnft import (
    Attestation,
    BlockHeader,
    ComputeNFT,
    Decision,
    ModelRef,
    Payment,
    QuorumCertificate,
    Receipt,
    Review,
    TaskSpec,
    TxReceipt,
    token_id_of,
)
from daifi_flows.encoding import cid_of
from daifi_flows.keys import Account
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines.function import FunctionEngine
from daifi_flows.settings import Settings

BUYER = Account.from_seed(b"buyer")
NODE = Account.from_seed(b"node")
PASSAGES = [
    {"id": "a.md#1", "source": "a.md", "text": "A seat is one of 21.", "score_ppm": 900_000},
    {"id": "b.md#1", "source": "b.md", "text": "Cheats lose stake.", "score_ppm": 500_000},
]


def settle(
    request: StepRequest, output: Any, *, effect: Any = None, attempts: tuple[Any, ...] = ()
) -> ComputeNFT:
    """The cNFT a fabric would return, without its signatures."""
    spec = TaskSpec(
        kind=request.kind,
        model=request.model,
        input_cid=request.input.cid,
        sampling=request.sampling,
        parents=request.parents,
        scheme=request.scheme,
        review=request.review or Review(),
        max_price_wei=10**17 if request.max_price_wei is None else request.max_price_wei,
        deadline_ms=request.deadline_ms or 1,
        buyer=BUYER.address,
        nonce=request.salt_key,
    )
    token = token_id_of(spec.task_id)
    header = BlockHeader(
        ledger_id=bytes(32),
        height=7,
        parent=bytes(32),
        tx_root=bytes(32),
        receipt_root=bytes(32),
        state_root=bytes(32),
        timestamp_ms=1,
        proposer=NODE.address,
        builder=NODE.address,
        beacon=bytes(32),
        round=0,
        epoch=0,
        committee=bytes(32),
        history_root=bytes(32),
        history_size=1,
    )
    leaf = TxReceipt(
        tx=bytes(32),
        kind="settle",
        sender=BUYER.address,
        payments=(
            Payment(to=NODE.address, amount_wei=10**16, reason="node"),
            Payment(to=BUYER.address, amount_wei=4 * 10**16, reason="refund"),
        ),
    )
    return ComputeNFT(
        token_id=token,
        task_id=spec.task_id,
        name=request.name,
        owner=BUYER.address,
        parents=request.parents,
        spec=spec,
        output=output,
        attestation=Attestation(
            ledger_id=bytes(32),
            epoch=0,
            task_id=spec.task_id,
            attempt=1,
            node=NODE.address,
            output_cid=cid_of(b"output"),
            proof_cid=cid_of(b"proof"),
            decision=Decision.ACCEPTED,
            confidence_ppm=999_000,
            signers=0b10_1111_1111_1111_1111,
            signature=bytes(96),
        ),
        receipt=Receipt(
            header=header,
            certificate=QuorumCertificate(signers=1, signature=bytes(96)),
            leaf=leaf,
            index=0,
            size=1,
            path=(),
        ),
        bundle=Path("bundles") / token.hex()[:12],
        bundle_cid=cid_of(token),
        proof_bytes=1234,
        effect=effect,
        timings_ms={"execute": 12},
        attempts=attempts,
    )


@dataclass
class InProcessFabric:
    """Computes each step here and settles it without a committee.

    ``before`` runs first in every step (to fail, or to wait); ``llm`` answers for ``reason``.
    """

    settings: Settings = field(default_factory=Settings)
    buyer: Account = BUYER
    requests: list[StepRequest] = field(default_factory=list[StepRequest])
    cancelled: list[str] = field(default_factory=list[str])
    attempts: tuple[Any, ...] = ()
    before: Callable[[StepRequest], Any] = lambda _request: None
    llm: dict[str, Any] = field(
        default_factory=lambda: {"text": "Cheats lose stake [b.md#1].", "prompt_tokens": 40}
    )
    picked: int = 0
    observers: list[Callable[[StepEvent], None]] = field(default_factory=list)

    def add_observer(self, observer: Callable[[StepEvent], None]) -> None:
        self.observers.append(observer)

    def remove_observer(self, observer: Callable[[StepEvent], None]) -> None:
        self.observers.remove(observer)

    def resolve_llm(self, model: str | None = None, engine: str | None = None) -> ModelRef:
        return ModelRef(
            name=model or self.settings.model,
            digest=bytes(32),
            engine=engine or self.settings.engine,
            precision="bf16",
        )

    def embedding_model(self) -> ModelRef:
        return ModelRef(name="minilm", digest=bytes(32), engine="retrieval", precision="fp32")

    async def build_policy(self, tools: Any) -> bytes:
        return repr(tools).encode()

    async def run(self, request: StepRequest) -> ComputeNFT:
        self.requests.append(request)
        try:
            waiting = self.before(request)
            if inspect.isawaitable(waiting):
                await waiting
            value = await self._compute(request)
        except asyncio.CancelledError:
            self.cancelled.append(request.name)
            raise
        output = request.decode(value)
        nft = settle(request, output, attempts=self.attempts)
        for observer in list(self.observers):
            observer(
                StepEvent(
                    request.name, request.kind, StepState.SETTLED, nft.task_id, f"paid {value!r}"
                )
            )
        if request.effect is not None:
            effect = request.effect(output)
            effect = await effect if inspect.isawaitable(effect) else effect
            nft = settle(request, output, effect=effect, attempts=self.attempts)
        return nft

    async def _compute(self, request: StepRequest) -> Any:
        given = request.input.value()
        if request.kind == "retrieve":
            return {"passages": PASSAGES[: given["k"]], "index_version": 1}
        if request.kind == "reason":
            return self.llm
        if request.kind == "act":
            names = [tool["name"] for tool in given["tools"]]
            return {"tool": names[self.picked], "index": self.picked, "scores_ppm": [600_000] * 2}
        spec = settle(request, None).spec
        done = await asyncio.to_thread(
            FunctionEngine().run, spec, request.input, request.materials, Control()
        )
        return done.output.value()


@pytest.fixture
def prefect_server(prefect_api: None) -> None:
    """The session's Prefect server."""


@pytest.fixture
def fabric(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> InProcessFabric:
    """The fabric that steps of this test use."""
    fabric = InProcessFabric()
    monkeypatch.setattr("daifi_flows.tasks._run._fabric", lambda: fabric)
    return fabric

"""The interface every proof scheme implements, and what a verifier needs from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from daifi_flows.cnft import Content, Execution, Materials, Proof, Sampling, Statement, TaskSpec
from daifi_flows.proofs._spans import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from daifi_flows.proofs.calibration import Calibration

__all__ = [
    "Claim",
    "Outcome",
    "Prefill",
    "Reference",
    "Scheme",
    "Scores",
    "Verdict",
    "cannot_tell",
    "invalid",
]


@dataclass(frozen=True)
class Claim:
    """What a proof is about, as far as one side may see it.

    Attributes:
        input, output: absent when they are private and this side has no key.
        materials: what came with the step (corpus, ONNX file, a user's function).
    """

    spec: TaskSpec
    input: Content | None
    output: Content | None
    materials: Materials = field(default_factory=Materials)


class Outcome(StrEnum):
    """What a verifier found. ``CANNOT_TELL`` is not an accusation."""

    VALID = "valid"
    INVALID = "invalid"
    CANNOT_TELL = "cannot-tell"


@dataclass(frozen=True)
class Scores:
    """Natural log-probabilities under the verifier's model at temperature 1, one a position: of
    the tokens the node claims, and of the verifier's own choices given the claimed ones before."""

    claimed: tuple[float, ...]
    own: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """Outcome of one verification.

    Attributes:
        confidence_ppm: how sure the scheme is that the claim is right, 0 to 1,000,000.
        reason: one sentence for a person.
        reexecuted: what the verifier computed itself, for the judges; absent when the scheme
            recomputes nothing comparable.
        claimed: what that answers to, for the judges: the node's output, or the part of it that
            was checked. Absent where ``reexecuted`` is.
        scores: how likely the tokens of those two are, where they are tokens and differ.
    """

    outcome: Outcome
    confidence_ppm: int
    reason: str
    reexecuted: Content | None = None
    claimed: Content | None = None
    scores: Scores | None = None


def invalid(reason: str) -> Verdict:
    """The node is accused."""
    return Verdict(Outcome.INVALID, 0, reason)


def cannot_tell(reason: str) -> Verdict:
    """Nobody is accused."""
    return Verdict(Outcome.CANNOT_TELL, 0, reason)


@dataclass(frozen=True)
class Prefill:
    """One pass of a verifier's model over prompt and output.

    Attributes:
        logits: raw, float32 ``[output, vocab]``: row t scores output token t given all before.
        hidden: last hidden states after the final norm, what the output layer multiplies, float32
            ``[output, width]``: row t gave ``logits[t]``. Absent where the engine shows none.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32] | None = None


@runtime_checkable
class Reference(Protocol):
    """A verifier's own copy of the models. Implemented by ``ray_mesh.reference``.

    Every method may raise :class:`~daifi_flows.errors.ModelError` when the model is not at hand;
    :meth:`missing` says so beforehand. Inputs have passed the generic checks (CIDs match the spec)
    but are otherwise a stranger's: methods bound sizes themselves.
    """

    def missing(self, spec: TaskSpec, materials: Materials) -> str | None:
        """Why this spec cannot be re-executed here (model, corpus or function not at hand)."""
        ...

    def reexecute(self, spec: TaskSpec, input: Content, materials: Materials) -> Content:
        """Run the step again, exactly as a node does (functions and retrieval)."""
        ...

    def prompt_tokens(self, spec: TaskSpec, input: Content) -> list[int]:
        """Chat template, trimming and tokenisation of an LLM step's input."""
        ...

    def render_output(
        self, spec: TaskSpec, input: Content, output_tokens: Sequence[int], salt: bytes
    ) -> Content:
        """The output content an honest engine builds from these output tokens (end included).

        Raises:
            EncodingError: a token is not in the model's vocabulary (so does :meth:`prefill`).
        """
        ...

    def end_tokens(self, spec: TaskSpec) -> frozenset[int]:
        """Tokens that end a generation of this model."""
        ...

    def prefill(self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        """Score ``output`` given ``prompt`` in one pass.

        For a later part of an answer, ``prompt`` ends with the output tokens before it.
        """
        ...

    def prefill_again(
        self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]
    ) -> Prefill | None:
        """The pass of :meth:`prefill` computed in another order (by another attention kernel), to
        see how far rounding alone moves this answer; ``None`` where there is no other."""
        ...

    def output_rows(self, spec: TaskSpec, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Rows of the model's output layer, ``[len(tokens), width]``, without a forward pass.

        Raises:
            EncodingError: a token is not in the model's vocabulary.
        """
        ...

    def calibration(self, spec: TaskSpec) -> Calibration | None:
        """How far honest engines differ on this model and precision; ``None``: not measured."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-norm sentence embeddings, ``[len(texts), 384]``."""
        ...

    @property
    def chat(self) -> Callable[[str, str], str] | None:
        """``(instructions, data)`` to the answer of a language model that judges; ``None`` where
        none is configured."""
        ...


class Scheme(Protocol):
    """One way to prove and verify a step. The docstring of each says what it proves, against
    whom, at what cost, and what it does not prove.

    The envelope (:mod:`daifi_flows.proofs._envelope`) binds payload, task, input, output, model
    and node together; a scheme answers for its payload alone.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    """Keys of ``execution.evidence`` without which :meth:`prove` refuses. A step whose engine does
    not give them is refused before any money moves."""

    def refuses(self, sampling: Sampling | None) -> str | None:
        """Why no step with this sampler can be proven, whatever the evidence; ``None`` when it can.

        Asked before any money moves, and by the envelope before :meth:`prove` and :meth:`verify`.
        """
        ...

    def spans(self, statement: Statement) -> tuple[Span, ...]:
        """The parts of the output that can be checked one by one; ``(WHOLE,)`` where it is checked
        as a whole.

        At most :data:`~daifi_flows.proofs.MAX_SPANS`, the same on every verifier, and quickly:
        for any statement whatsoever, before anything of its proof was seen.
        """
        ...

    def prove(self, claim: Claim, execution: Execution, workdir: Path) -> bytes:
        """The payload.

        Args:
            claim: the task with its input; ``claim.output`` is ``execution.output``.
            workdir: a directory for caches (circuits, keys), shared by concurrent provers.

        Raises:
            ProofError: this execution lacks the evidence the scheme needs, or proving failed.
        """
        ...

    def verify(
        self,
        claim: Claim,
        proof: Proof,
        reference: Reference | None,
        workdir: Path,
        span: Span | None = None,
    ) -> Verdict:
        """Check the payload. The generic checks of :func:`proofs.verify_proof` have passed.

        ``reference`` is absent when no model is at hand. Never raises for bad bytes: they are
        ``INVALID``; what cannot be checked is ``CANNOT_TELL``.

        Args:
            span: one of several :meth:`spans`; the verdict is then about that part, and about what
                is cheap to see of the rest. ``None``: the whole output.
        """
        ...

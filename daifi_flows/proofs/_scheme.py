"""The interface every proof scheme implements, and what a verifier needs from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from daifi_flows.cnft import Content, Execution, Materials, Proof, TaskSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Outcome", "Reference", "Scheme", "Verdict"]


class Outcome(StrEnum):
    """What a verifier found. ``CANNOT_TELL`` is not an accusation."""

    VALID = "valid"
    INVALID = "invalid"
    CANNOT_TELL = "cannot-tell"


@dataclass(frozen=True)
class Verdict:
    """Outcome of one verification.

    Attributes:
        confidence_ppm: how sure the scheme is that the claim is right, 0 to 1,000,000.
        reason: one sentence for a person.
        reexecuted: what the verifier computed itself, for the judges; absent when the scheme
            recomputes nothing comparable.
    """

    outcome: Outcome
    confidence_ppm: int
    reason: str
    reexecuted: Content | None = None


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

    def prefill(
        self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]
    ) -> NDArray[np.float32]:
        """Raw logits, ``[len(output), vocab]``: row t scores output token t given all before."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-norm sentence embeddings, ``[len(texts), 384]``."""
        ...


class Scheme(Protocol):
    """One way to prove and verify a step. The docstring of each says what it proves, against
    whom, at what cost, and what it does not prove."""

    name: ClassVar[str]

    def prove(
        self,
        spec: TaskSpec,
        input: Content,
        execution: Execution,
        materials: Materials,
        workdir: Path,
    ) -> tuple[bytes, bytes]:
        """Transcript commitment (32 bytes) and payload.

        Args:
            workdir: a directory for caches (circuits, keys), shared by concurrent provers.

        Raises:
            ProofError: this execution lacks the evidence the scheme needs, or proving failed.
        """
        ...

    def verify(
        self,
        spec: TaskSpec,
        input: Content | None,
        output: Content | None,
        proof: Proof,
        materials: Materials,
        reference: Reference | None,
        workdir: Path,
    ) -> Verdict:
        """Check the payload. The generic checks of :func:`proofs.verify_proof` have passed.

        ``input`` and ``output`` are absent when they are private and the verifier has no key;
        ``reference`` is absent when no model is at hand. Never raises for bad bytes: they are
        ``INVALID``; what cannot be checked is ``CANNOT_TELL``.
        """
        ...

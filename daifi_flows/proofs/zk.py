"""``zk``: a SNARK that the committed ONNX model, on this input, gives this output."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

from daifi_flows.cnft import Execution, Proof, Sampling, Statement, TaskSpec
from daifi_flows.proofs._scheme import Claim, Reference, Verdict
from daifi_flows.proofs._spans import WHOLE, Span
from daifi_flows.proofs._zk_onnx import prove_onnx, verify_onnx
from daifi_flows.proofs._zk_policy import prove_policy, verify_policy

__all__ = ["POLICY_ENGINE", "ZkScheme"]

POLICY_ENGINE: Final = "onnx-policy"


class ZkScheme:
    """A zk-SNARK by ezkl (Halo2 with KZG commitments on BN254) of an ONNX model.

    Proves: over integers (weights and inputs in fixed point), the circuit of the model whose digest
    the spec names gives the proven outputs on an input that is public, or has the Poseidon hash the
    task names (``hashed``), or exists (``private``). Weights are part of the circuit, or hidden
    behind a Poseidon hash that the model's digest commits to. The verifier compiles the circuit
    itself, from the model and the settings that the task's input names, and checks beside the
    SNARK that the reported floating-point outputs are the proven ones within the task's bound.

    For an ``act`` step (engine ``onnx-policy``) it proves ``scores = input @ weights`` of a linear
    policy on a public vector, and the verifier also checks that the pick is the best proven score
    (near ties within 1,000 ppm), that reported scores are the proven ones within 2,000 ppm, and,
    with an embedder at hand, that the vector is the embedding of the input's text within 0.01 (L2)
    and each column that of its tool.

    Against whom: any node. The SNARK's soundness rests on the SRS: whoever made it and kept its
    secret could forge (:mod:`daifi_flows.proofs.circuits._srs`).

    Cost (two cores; ``python -m benchmarks proofs`` measures it): the node alone pays for compiling
    and proving. The demo's policy of four tools: set-up once 0.2 s, proving 0.12 s in 34 MB,
    verifying 5 ms once the verifier's process runs, payload 3.0 kB. A model takes about 0.1 ms of
    processor time a multiplication, and a ReLU value as much as 25 of them; a batch in one proof
    takes less for each inference.

    Does not prove: that the quantised model is good, only that its outputs lie within the bound of
    those reported; that an input is true, or (``private``) is the one the task means; for ``act``,
    that the node computed the embedding itself, or anything about a tool's effects. Hashes are not
    salted: an input that can be guessed can be confirmed.
    """

    name: ClassVar[str] = "zk"
    needs: ClassVar[frozenset[str]] = frozenset({"onnx"})

    def refuses(self, sampling: Sampling | None) -> str | None:
        """Nothing: no sampler takes part."""
        del sampling

    def spans(self, statement: Statement) -> tuple[Span, ...]:
        """One: the output is checked as a whole."""
        del statement
        return (WHOLE,)

    def prove(self, claim: Claim, execution: Execution, workdir: Path) -> bytes:
        """Prove ``execution.evidence``: ``onnx`` (bytes), with ``input`` (float32 ``[1, 384]``) for
        a policy and ``inputs`` (float32 arrays by name) for any other model.

        Raises:
            ProofError: the evidence is missing, is not the spec's model, or contradicts the output;
                or ezkl fails.
        """
        if _is_policy(claim.spec):
            return prove_policy(claim, execution, workdir)
        return prove_onnx(claim, execution, workdir)

    def verify(
        self,
        claim: Claim,
        proof: Proof,
        reference: Reference | None,
        workdir: Path,
        span: Span | None = None,
    ) -> Verdict:
        """Bytes and numbers first, the SNARK last. The model is looked for among
        ``materials.blobs`` by the spec's model digest."""
        del span
        if _is_policy(claim.spec):
            return verify_policy(claim, proof, reference, workdir)
        return verify_onnx(claim, proof, workdir)


def _is_policy(spec: TaskSpec) -> bool:
    return spec.model.engine == POLICY_ENGINE

"""``zk-slice``: a SNARK that one drawn token of an answer is the best of a few, given its hidden
state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import numpy as np
from numpy.typing import NDArray

from daifi_flows.cnft import Execution, Proof, Sampling, Statement, TaskSpec
from daifi_flows.encoding import canonical, decode_canonical, tagged_hash
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs._scheme import Claim, Outcome, Reference, Verdict, cannot_tell, invalid
from daifi_flows.proofs._slice import (
    MAX_CANDIDATES,
    MAX_WIDTH,
    ROW_UNIT,
    SCORE_UNIT,
    Slice,
    commit,
    draw,
    prove_slice,
    quantise_rows,
    srs_digest,
    verify_slice,
)
from daifi_flows.proofs._spans import Span, token_spans
from daifi_flows.proofs._tokens import (
    Reading,
    Tokens,
    parse_tokens,
    read_tokens,
    refuses,
    tokens_of,
)
from daifi_flows.proofs.sampling import gumbel
from daifi_flows.proofs.token_difr import token_verdict

__all__ = ["OutputLayer", "ZkSliceScheme"]

CANDIDATES: Final = 8
"""Tokens whose scores are proven: the sampled one and the runners-up."""
ROW_ERROR: Final = 0.003
"""How far a row may lie from the verifier's own, relative to its length: a rounding to bf16 (0.002)
and quantisation. Rounding to int8 is three times off."""
SCORE_LOGITS: Final = 3.0
"""How far a proven score may lie from the verifier's own logit: ten times what engines differ by.
Vectors of another prompt or position are off by tens."""
UNTIED_PPM: Final = 900_000
"""Confidence when the slice holds but no prefill checked the tokens: not enough for a committee."""

_CHUNK: Final = 4_096
"""Rows of the output layer that the node converts at a time when it looks for the candidates."""
_MAX_PAYLOAD: Final = 1 << 20
_KEYS: Final = frozenset(
    {"prompt_tokens", "output_tokens", "srs", "root", "path", "candidates", "rows", "scores"}
    | {"proof"}
)


@dataclass(frozen=True)
class OutputLayer:
    """What an engine gives as evidence ``output_layer``: the model's last matrix, row by row.

    Attributes:
        vocabulary: number of rows.
        rows: float32 rows ``[len(tokens), width]`` of given tokens.
    """

    vocabulary: int
    rows: Callable[[Sequence[int]], NDArray[np.float32]]


class ZkSliceScheme:
    """A verifiable slice of an LLM step (:mod:`daifi_flows.proofs._slice`), beside every check of
    ``token-difr`` where the verifier can prefill.

    Proves: the node committed to one vector for each output token; for one of them, drawn after
    that, a SNARK shows that the emitted token is the best of 8 candidates, by the rows of the
    spec's output layer on the committed vector, with the public Gumbel noise of the seed added at
    temperature above 0. Near ties are let pass: 1/128 of the best score (two roundings to bf16) and
    0.05 logits; 0.05 alone in fp32. The rows must be the spec's within 0.3%, which can shift a
    score by 0.4 logits at most where vectors and rows are as long as SmolLM2's. A verifier needs
    the output layer's rows for all that, not the model. With the model it also runs every check of
    ``token-difr`` on the same proof, and the proven scores must lie within 3 logits of its own.

    Against whom: as ``token-difr`` where the verifier prefills. Where it does not, a node that
    changes tokens after it computed their vectors, in the share of its tokens that is drawn.

    Cost, in processor time (SmolLM2, width 576): committing takes the node 7 ms an output token,
    the proof 1.4 s; checking it takes 0.7 s, most of it to compile the circuit of these rows. Width
    4,096: 38 ms, 7.4 s, 3.8 s. Payload 24 kB and the tokens: 5 kB of proof, 18 kB of rows. Widths
    above 4,024 need an SRS file that does not ship.

    Does not prove: that the vector came from the model, without a prefill: a node may commit to any
    vector that makes its token the best. That no other row is better: the node names the
    candidates. Anything about the positions that were not drawn. The draw is by Fiat–Shamir over
    the task, the tokens and the commitment until committees give a beacon, so a node can try salts
    until the position suits it: alone, the slice then binds one token of the node's choice.
    Samplers with top-k or top-p are refused. Models that scale, cap or shift their logits after the
    output layer are not for it: they cannot be proven or told. As for ``zk``, soundness rests on
    the SRS.

    Private: the vectors, but for 8 products with public rows. The payload shows prompt and output
    tokens to whoever holds the proof.
    """

    name: ClassVar[str] = "zk-slice"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"prompt_tokens", "output_tokens", "activations", "output_layer"}
    )

    def refuses(self, sampling: Sampling | None) -> str | None:
        """Steps without sampling parameters, and those with top-k or top-p."""
        if sampling is not None and (sampling.top_k, sampling.top_p_ppm) != (None, None):
            return "top-k and top-p hang on more tokens than a slice shows"
        return refuses(sampling)

    def spans(self, statement: Statement) -> tuple[Span, ...]:
        """One for every 256 output tokens begun."""
        return token_spans(statement.usage.output_tokens)

    def prove(self, claim: Claim, execution: Execution, workdir: Path) -> bytes:
        """Commit to ``execution.evidence["activations"]`` ``[output, width]``, then prove the
        position that is drawn, with rows of ``["output_layer"]`` (:class:`OutputLayer`).

        Raises:
            ProofError: the evidence is missing, misshapen or not finite; the token drawn is not the
                best one; or ezkl fails.
        """
        spec = claim.spec
        tokens = tokens_of(claim, execution, self.name)
        layer = execution.evidence.get("output_layer")
        if not isinstance(layer, OutputLayer):
            raise ProofError("zk-slice needs the engine's output_layer as evidence")
        try:
            hidden = np.asarray(execution.evidence.get("activations"), np.float32)
            if hidden.ndim != 2 or len(hidden) != len(tokens.output):
                raise EncodingError(f"shape {hidden.shape} is not one row for each output token")
            made = commit(hidden, workdir)
            position = draw(made.root, _beacon(spec, tokens), len(tokens.output))
            candidates = _candidates(spec, tokens, position, hidden[position], layer)
            rows = quantise_rows(layer.rows(candidates))
            if rows.shape[1] != hidden.shape[1]:
                raise EncodingError("rows of the output layer and activations differ in width")
        except (EncodingError, TypeError, ValueError) as error:
            raise ProofError(f"zk-slice cannot prove these activations: {error}") from error
        shown = prove_slice(made, position, rows, workdir)
        if fault := _best_fault(spec, tokens, position, candidates, shown.scores):
            raise ProofError(f"zk-slice cannot prove this execution: {fault}")
        return canonical(
            {
                **tokens.fields(),
                "srs": srs_digest(hidden.shape[1], workdir),
                "root": made.root,
                "path": list(shown.path),
                "candidates": candidates,
                "rows": shown.rows.astype("<i4").tobytes(),
                "scores": list(shown.scores),
                "proof": shown.proof,
            }
        )

    def verify(
        self,
        claim: Claim,
        proof: Proof,
        reference: Reference | None,
        workdir: Path,
        span: Span | None = None,
    ) -> Verdict:
        """Bounds, rows, ranking, SNARK; then the tokens, where ``reference`` can prefill.

        Of a part: its tokens, and the slice where the token drawn lies in it.
        """
        try:
            payload = _parse(proof.payload)
        except EncodingError as error:
            return invalid(f"the payload is malformed: {error}")
        early = read_tokens(claim, proof.statement, payload.tokens, None)
        if isinstance(early, Verdict) and early.outcome is Outcome.INVALID:
            return early
        if reference is None:
            return cannot_tell("no output layer is at hand to compare the proven rows with")
        if missing := reference.missing(claim.spec, claim.materials):
            return cannot_tell(f"the rows cannot be compared here: {missing}")
        beacon = _beacon(claim.spec, payload.tokens)
        position = draw(payload.root, beacon, len(payload.tokens.output))
        if span is not None and position not in span:
            reading = read_tokens(claim, proof.statement, payload.tokens, reference, span)
            return (
                reading
                if isinstance(reading, Verdict)
                else token_verdict(claim, reading, reference)
            )
        sliced = _slice_verdict(claim.spec, payload, position, reference, workdir)
        if sliced.outcome is not Outcome.VALID:
            return sliced
        reading = read_tokens(claim, proof.statement, payload.tokens, reference, span)
        if isinstance(reading, Verdict):
            if reading.outcome is Outcome.INVALID:
                return reading
            said = f"{sliced.reason}; the model did not check the tokens: {reading.reason}"
            return Verdict(sliced.outcome, sliced.confidence_ppm, said)
        if fault := _score_fault(claim, payload, position, reading, reference):
            return fault
        chosen = token_verdict(claim, reading, reference)
        said = f"{chosen.reason}; {sliced.reason}"
        return replace(chosen, reason=said)


@dataclass(frozen=True)
class _Payload:
    tokens: Tokens
    srs: bytes
    root: bytes
    candidates: list[int]
    shown: Slice


def _slice_verdict(
    spec: TaskSpec, payload: _Payload, position: int, reference: Reference, workdir: Path
) -> Verdict:
    """What holds without a prefill."""
    shown, candidates = payload.shown, payload.candidates
    if fault := _best_fault(spec, payload.tokens, position, candidates, shown.scores):
        return invalid(fault)
    try:
        own = np.asarray(reference.output_rows(spec, candidates), np.float64)
    except EncodingError as error:
        return invalid(f"the model does not have these tokens: {error}")
    except ModelError as error:
        return cannot_tell(f"the rows cannot be compared here: {error}")
    if own.ndim != 2 or len(own) != len(candidates) or not np.isfinite(own).all():
        return cannot_tell("the model here gave no usable rows of its output layer")
    if own.shape != shown.rows.shape:
        return invalid(f"the rows have {shown.rows.shape[1]} values, the model's {own.shape[1]}")
    off = np.linalg.norm(own - shown.rows * ROW_UNIT, axis=1)
    if (off > ROW_ERROR * np.linalg.norm(own, axis=1) + ROW_UNIT * own.shape[1] ** 0.5).any():
        return invalid("a row is not that of the model's output layer")
    if payload.srs != srs_digest(own.shape[1], workdir):
        return cannot_tell("the proof was made under another SRS than the one at hand")
    if fault := verify_slice(payload.root, position, len(payload.tokens.output), shown, workdir):
        return invalid(fault)
    return Verdict(
        Outcome.VALID,
        UNTIED_PPM,
        f"token {position} is proven the best of {len(candidates)} under the vector that the node "
        "committed to",
    )


def _beacon(spec: TaskSpec, tokens: Tokens) -> bytes:
    """What the draw hangs on beside the commitment: Fiat–Shamir, as committees give no beacon."""
    return tagged_hash("daifi/slice-tokens/1", {"task_id": spec.task_id, **tokens.fields()})


def _noised(
    spec: TaskSpec, scores: NDArray[np.float64], tokens: Sequence[int], position: int
) -> NDArray[np.float64]:
    """Scores with the position's noise, in logits; see :mod:`~daifi_flows.proofs.sampling`."""
    sampling = spec.sampling
    assert sampling is not None  # the envelope refused the rest
    if sampling.temperature_ppm == 0:
        return scores
    noise = gumbel(sampling.seed, position, max(tokens) + 1)[list(tokens)]
    return scores + noise.astype(np.float64) * (sampling.temperature_ppm * 1e-6)


def _candidates(
    spec: TaskSpec,
    tokens: Tokens,
    position: int,
    hidden: NDArray[np.float32],
    layer: OutputLayer,
) -> list[int]:
    """The emitted token and the best others, ascending."""
    scores = np.empty(layer.vocabulary, np.float64)
    for start in range(0, layer.vocabulary, _CHUNK):
        chunk = range(start, min(start + _CHUNK, layer.vocabulary))
        scores[chunk.start : chunk.stop] = layer.rows(chunk) @ hidden
    scores = _noised(spec, scores, range(layer.vocabulary), position)
    emitted = tokens.output[position]
    if not emitted < layer.vocabulary:
        raise EncodingError(f"token {emitted} is not in the vocabulary")
    scores[emitted] = np.inf
    best = np.argsort(-scores, kind="stable")[:CANDIDATES]
    return sorted(int(token) for token in best)


def _best_fault(
    spec: TaskSpec,
    tokens: Tokens,
    position: int,
    candidates: Sequence[int],
    scores: Sequence[int],
) -> str | None:
    """Why the emitted token is not the best of the candidates; ``None`` when it is."""
    emitted = tokens.output[position]
    if emitted not in candidates:
        return f"token {position} is not among the candidates that the node names"
    proven = np.array([score * SCORE_UNIT for score in scores])
    found = _noised(spec, proven, candidates, position)
    behind = float(found.max() - found[list(candidates).index(emitted)])
    tie = 0.05 if spec.model.precision == "fp32" else 0.05 + float(np.abs(proven).max()) / 128
    if behind > tie:
        return f"token {position} lies {behind:.2f} logits under the best candidate"
    return None


def _score_fault(
    claim: Claim, payload: _Payload, position: int, reading: Reading, reference: Reference
) -> Verdict | None:
    """Why the committed vector is not the model's; ``None`` where it may be."""
    place = position - reading.span.start
    row = reading.prefill.logits[place]
    own = row[[token for token in payload.candidates if token < len(row)]]
    if own.shape != (len(payload.candidates),) or not np.isfinite(own).all():
        return None  # a model that gives such logits is this side's trouble: token_verdict says so
    off = float(np.abs(own - np.array(payload.shown.scores) * SCORE_UNIT).max())
    if off <= SCORE_LOGITS:
        return None
    hidden = reading.prefill.hidden
    if hidden is not None:
        rows = reference.output_rows(claim.spec, payload.candidates)
        if np.abs(rows @ hidden[place] - own).max() <= SCORE_LOGITS / 6:
            return invalid(f"a proven score is {off:.1f} logits away from the model's")
    return cannot_tell(
        "the model makes other logits of its output layer's products (it scales, caps or shifts "
        "them), or does not show its hidden states here: proven scores cannot be compared"
    )


def _parse(payload: bytes) -> _Payload:
    """Fields of a payload with exact sizes.

    Raises:
        EncodingError: not canonical, or a field is missing, misshapen or out of range.
    """
    value = decode_canonical(payload, max_bytes=_MAX_PAYLOAD)
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise EncodingError(f"it does not hold exactly {', '.join(sorted(_KEYS))}")
    fields = cast("dict[str, Any]", value)
    tokens = parse_tokens(fields)
    if not tokens.output:
        raise EncodingError("it has no output tokens")
    for name in ("srs", "root"):
        if not isinstance(fields[name], bytes) or len(fields[name]) != 32:
            raise EncodingError(f"{name} is not 32 bytes")
    Slice.check(fields["path"], fields["scores"], fields["proof"])
    candidates, packed = fields["candidates"], fields["rows"]
    if not isinstance(candidates, list) or not 1 <= len(candidates) <= MAX_CANDIDATES:
        raise EncodingError(f"candidates are not 1 to {MAX_CANDIDATES}")
    if any(type(token) is not int or not 0 <= token < 1 << 20 for token in candidates):
        raise EncodingError("candidates are not token ids")
    if any(one >= next_ for one, next_ in pairwise(candidates)):
        raise EncodingError("candidates do not ascend")
    if len(candidates) != len(fields["scores"]):
        raise EncodingError("there is not one score a candidate")
    if not isinstance(packed, bytes) or not packed or len(packed) % (4 * len(candidates)):
        raise EncodingError("rows are not 32-bit integers, as many for each candidate")
    if len(packed) > 4 * MAX_WIDTH * len(candidates):
        raise EncodingError(f"rows are wider than {MAX_WIDTH}")
    rows = np.frombuffer(packed, "<i4").astype(np.int32).reshape(len(candidates), -1)
    shown = Slice(tuple(fields["path"]), rows, tuple(fields["scores"]), fields["proof"])
    return _Payload(tokens, fields["srs"], fields["root"], candidates, shown)

"""How often a node's executions are reviewed, so that cheating does not pay; and the draws.

**What a cheat weighs.** For one task let

- ``C`` be what the node saves by cheating, in wei: at most all that honest work would cost it;
- ``R`` what it is paid for the task. The pay is locked while the output can be challenged, so a
  node that is found out loses it;
- ``S`` what it loses besides when it is found out: the slashed part of what it has at stake;
- ``r`` the chance that a review passes a wrong output all the same (the *miss rate* of the proof
  schemes and judges, not a reputation);
- ``p`` the chance that the execution is reviewed before it is paid (the *review rate*), and ``a``
  that one which was not is drawn for an audit while its pay is still locked.

It is found out with probability ``d = (1 − r)·(p + (1 − p)·a)``. Against honest work, cheating
brings ``C`` and costs ``d·(R + S)``, so it does not pay exactly when

    p + (1 − p)·a  >  C / ((1 − r)·(R + S))                                                   (1)

which for a = 0 has the form that *Proof of Sampling* derives (arXiv 2405.00295), with the miss
rate where that paper has the chance that the checker belongs to the cheat: here all of a review's
chunks go to at least f + 1 seats, so at most f colluding ones cannot hide a reject.

**The rate.** ``C`` is taken as a part ``saving_ppm`` of ``R``, by default all of it: then (1) also
says that a cheat without any costs loses money on the task, and not only less than honest work
makes. ``R`` is taken as the whole price, which only raises the bound. With
``q = saving·price / ((1 − r)·(price + S))``, rounded up,

    p = max(floor, (margin·q − a) / (1 − a)),   at most 1.

- **Reputation moves the margin only**, from ``newcomer_margin_ppm`` at none to ``margin_ppm`` at
  the highest. It never takes p under q: else a node would earn trust in order to spend it.
- **Audits are not relied on.** Nobody can be made to audit. The bounds of :class:`ReviewTerms`
  ask for ``a ≤ floor·(margin − 1)``; then p ≥ q even where no audit ever happens, because either
  q ≤ floor ≤ p, or p ≥ margin·q − a > q + (margin − 1)·floor − a ≥ q.
- **Stake vouches once.** A node with other work in flight spreads the same stake over all of it:
  S is the price's share, by value, of what one slash takes, counting what was in flight at the
  commit. A node that cheats on all of it loses by every further slash a part of what the earlier
  ones left; the margin covers that (``tests/test_review_rate.py`` searches for a portfolio that
  gains). Splitting a stake over several identities leaves price/S as it is, and gains nothing.
- **No rate is enough** where q is over 1: at the default miss rate, where S is under 43 % of the
  price. Such work is always reviewed, and who gives it away should ask for more stake.
- **Always reviewed** are a node that has few reviewed executions behind it, one of little
  reputation, one whose output is under challenge, large payments, and a node with nothing that a
  slash could reach.

Whether an execution *is* reviewed, nobody knows before the node is bound to its output: see
:func:`drawn_for_review`.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from daifi_flows._noun import PPM, Noun, Ppm, Wei
from daifi_flows.encoding import keccak256

__all__ = [
    "ReviewTerms",
    "audit_rate_ppm",
    "drawn_for_audit",
    "drawn_for_review",
    "least_rate_ppm",
    "review_ppm",
]

_TIMES: Final = 100 * PPM
"""Highest margin: a hundredfold."""


class ReviewTerms(Noun):
    """The parameters of the review rate; each field's type is its hard bound.

    Attributes:
        saving_ppm: C, what a cheat saves, as a part of what the node is paid.
        miss_ppm: r, the chance that a review passes a wrong output. The default is above the worst
            figure of the proof schemes for a substitution that saves work (docs/proofs.md: a
            prompt cut in half, by tokens alone, 27.5 %).
        margin_ppm: by what the bound is multiplied for a node of the highest reputation.
        newcomer_margin_ppm: the same at reputation 0; in between linear.
        floor_ppm: lowest rate, whatever stake and reputation.
        audit_ppm: a, which part of the executions that were not reviewed is drawn for an audit
            before their pay is free.
        probation: a node with fewer reviewed executions behind it is always reviewed.
        trust_ppm: a node of less reputation is always reviewed.
        always_over_wei: an execution of a higher price is always reviewed.
    """

    saving_ppm: Annotated[int, Field(ge=PPM // 10, le=PPM, strict=True)] = PPM
    miss_ppm: Annotated[int, Field(ge=0, le=9 * PPM // 10, strict=True)] = 300_000
    margin_ppm: Annotated[int, Field(ge=PPM, le=_TIMES, strict=True)] = 2 * PPM
    newcomer_margin_ppm: Annotated[int, Field(ge=PPM, le=_TIMES, strict=True)] = 4 * PPM
    floor_ppm: Annotated[int, Field(ge=1_000, le=PPM, strict=True)] = 20_000
    audit_ppm: Annotated[int, Field(ge=0, le=PPM // 2, strict=True)] = 10_000
    probation: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 32
    trust_ppm: Ppm = 600_000
    always_over_wei: Annotated[Wei, Field(le=10**36)] = 10 * 10**18

    @model_validator(mode="after")
    def _check_margins(self) -> Self:
        if self.newcomer_margin_ppm < self.margin_ppm:
            raise ValueError("a newcomer's margin is under that of a node with a reputation")
        if self.audit_ppm * PPM > self.floor_ppm * (self.margin_ppm - PPM):
            raise ValueError(
                "audits are relied on: audit_ppm may be at most floor_ppm times what margin_ppm "
                "is over one"
            )
        return self


def least_rate_ppm(*, price_wei: int, reach_wei: int, slash_ppm: int, terms: ReviewTerms) -> int:
    """q: the review rate at which cheating on one task stops paying, in ppm; over a million when
    no rate is enough. Rounded up.

    Args:
        price_wei: what the task pays, in wei.
        reach_wei: what a slash for this task can count on of the node's stake, in wei.
        slash_ppm: the part of it that a slash takes.
    """
    if price_wei == 0:
        return 0
    loss = (PPM - terms.miss_ppm) * (price_wei * PPM + reach_wei * slash_ppm)
    return -(-terms.saving_ppm * price_wei * PPM * PPM // loss)


def review_ppm(
    *,
    price_wei: int,
    reach_wei: int,
    slash_ppm: int,
    reputation_ppm: int,
    reviewed: int,
    terms: ReviewTerms,
    exposed_wei: int = 0,
    challenged: bool = False,
) -> int:
    """The review rate of one execution, in ppm: 1,000,000 is always.

    Args:
        price_wei: the task's price, in wei.
        reach_wei: all that a slash can reach of the node's, unbonding included, in wei.
        slash_ppm: the part of it that a rejected execution costs.
        reputation_ppm: the node's, the mean of its Beta posterior.
        reviewed: how many executions of the node the committee has reviewed and found good
            (evidence that has faded does not count).
        exposed_wei: prices of the node's other tasks that are assigned or committed, in wei.
        challenged: an output of the node is under dispute.

    >>> terms = ReviewTerms()
    >>> node = {"slash_ppm": 250_000, "reputation_ppm": 990_000, "terms": terms}
    >>> review_ppm(price_wei=10**16, reach_wei=10**20, reviewed=100, **node)  # the floor
    20000
    >>> review_ppm(price_wei=10**16, reach_wei=10**18, reviewed=100, **node)
    102012
    >>> review_ppm(price_wei=10**16, reach_wei=10**18, reviewed=0, **node)  # a newcomer
    1000000
    """
    always = (
        challenged
        or reviewed < terms.probation
        or reputation_ppm < terms.trust_ppm
        or price_wei > terms.always_over_wei
        or reach_wei <= 0
    )
    if always:
        return PPM
    if price_wei > 0:
        reach_wei = reach_wei * price_wei // (price_wei + exposed_wei)
    least = least_rate_ppm(
        price_wei=price_wei, reach_wei=reach_wei, slash_ppm=slash_ppm, terms=terms
    )
    spread = terms.newcomer_margin_ppm - terms.margin_ppm
    margin = terms.newcomer_margin_ppm - spread * min(reputation_ppm, PPM) // PPM
    wanted = -(-least * margin // PPM)
    without_audits = -((terms.audit_ppm - wanted) * PPM // (PPM - terms.audit_ppm))
    return min(PPM, max(terms.floor_ppm, without_audits))


def audit_rate_ppm(*, review_ppm: int, terms: ReviewTerms) -> int:
    """Which part of all executions of a review rate ends in a full review, sooner or later: p +
    (1 − p)·a, rounded down."""
    return review_ppm + (PPM - review_ppm) * terms.audit_ppm // PPM


def drawn_for_review(seed: bytes, ppm: int) -> bool:
    """Whether the lottery draws an execution for review: with probability ``ppm`` in a million.

    ``seed`` must come from a value that is unique and unknown to the node when it commits to its
    output: the committee's threshold signature over what is reviewed. Uniform to within 2^-236.
    """
    return _draw(b"daifi/review-lottery/1", seed) < ppm


def drawn_for_audit(beacon: bytes, task_id: bytes, ppm: int) -> bool:
    """Whether an execution that was not reviewed is audited, by the beacon of a block that came
    after its settlement: with probability ``ppm`` in a million, each task by itself."""
    return _draw(b"daifi/audit-lottery/1", beacon + task_id) < ppm


def _draw(tag: bytes, seed: bytes) -> int:
    """A number under a million, from a hash of 256 bits by multiplication (Lemire, 2019)."""
    return int.from_bytes(keccak256(tag + seed), "big") * PPM >> 256

"""Canaries: tasks whose answer is known, which nobody can tell from real ones.

A canary is an earlier task that the committee reviewed and accepted, asked again by somebody else:
same model, input, sampling, scheme and terms; another salt, nonce, buyer and deadline. To a node
all of these are as random as in any task, so it cannot treat canaries better than the rest. The
outcome is compared with the known answer; one that is equal needs no review, and one that is not is
reviewed in full, because honest nodes of other hardware may differ in a token.

What gives a canary away: the text of its input, to a node that has seen it before (so repeat each
only once, and prefer nodes that did not answer it the first time), and the money of its buyer, to
whoever follows transfers (so fund such accounts long before they are used).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daifi_flows.cnft import Content, TaskSpec
from daifi_flows.encoding import keccak256
from daifi_flows.errors import CommitteeError

__all__ = ["Canary", "Known", "agrees", "can_be_repeated", "make_canary", "pick"]


@dataclass(frozen=True)
class Known:
    """A task whose answer was reviewed by the committee and accepted."""

    spec: TaskSpec
    input: Content
    output: Content


@dataclass(frozen=True)
class Canary:
    """A task to run like any other, and what should come back."""

    spec: TaskSpec
    input: Content
    expected: Content


def can_be_repeated(spec: TaskSpec) -> bool:
    """Whether a canary made of this task looks like any other task: parents would give it away, and
    a review that is always done needs no canary."""
    return not spec.parents and not spec.review.always


def make_canary(known: Known, *, buyer: str, nonce: bytes, salt: bytes, deadline_ms: int) -> Canary:
    """The same task under another name.

    Args:
        buyer: an account that has nothing else to do with the known task.
        nonce, salt: 32 fresh random bytes each.

    Raises:
        CommitteeError: the task cannot be repeated unnoticed, or a field is the known task's.
    """
    if not can_be_repeated(known.spec):
        raise CommitteeError("a task with parents, or one that is always reviewed, is no canary")
    if buyer == known.spec.buyer or nonce == known.spec.nonce or salt == known.input.salt:
        raise CommitteeError("a canary needs another buyer, nonce and salt than the known task")
    asked = Content(media_type=known.input.media_type, data=known.input.data, salt=salt)
    values = known.spec.plain() | {
        "input_cid": asked.cid,
        "buyer": buyer,
        "nonce": nonce,
        "deadline_ms": deadline_ms,
    }
    return Canary(TaskSpec.from_plain(values), asked, known.output)


def agrees(canary: Canary, output: Content) -> bool:
    """Whether a node answered what is known to be right; salts may differ."""
    expected = canary.expected
    return (output.media_type, output.data) == (expected.media_type, expected.data)


def pick(known: Sequence[Known], secret: bytes, number: int) -> Known | None:
    """The task to repeat as canary ``number``: unpredictable without the 32 secret bytes."""
    able = [item for item in known if can_be_repeated(item.spec)]
    if not able:
        return None
    drawn = keccak256(b"daifi/canary/1" + secret + number.to_bytes(8, "big"))
    return able[int.from_bytes(drawn, "big") * len(able) >> 256]

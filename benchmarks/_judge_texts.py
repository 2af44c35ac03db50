"""``python -m benchmarks._judge_texts``: write the answers of real models that judges learn from.

SmolLM2 answers each prompt greedily in bfloat16, in float32, to a prompt like it, and with a
quarter of its layers left out. Every answer is scored under the bfloat16 model, as a committee
scores it, with the committee's own choice at every position. One answer more is the best lie in
one token: the cheapest other choice that changes a number, a name or a denial. It takes half an
hour on two cores; the result is part of the package.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._generations import MODEL, folder_of
from benchmarks._judge_prompts import prompts
from daifi_flows.cnft import Sampling
from daifi_flows.judges.panel._negation import polarity
from daifi_flows.judges.panel._numbers import quantities
from daifi_flows.proofs.calibration import find_calibration
from daifi_flows.proofs.evidence import judge
from daifi_flows.ray_mesh._adversary import drop_layers
from daifi_flows.ray_mesh._models import resolve
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._llm import CausalLm

TARGET = Path(__file__).parent.parent / "daifi_flows/judges/panel/data/answers.json.gz"
PER_SPLIT = 150
_GREEDY = Sampling(temperature_ppm=0, seed=0, max_tokens=48)
_BATCH = 30
_CHOICES = 6
_THREADS = 1


def _generate(llm: CausalLm, asked: Sequence[list[int]], what: str) -> list[list[int]]:
    found: list[list[int]] = []
    began = time.perf_counter()
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        answers = llm.generate_batch(part, [_GREEDY] * len(part), Control())
        found += [answer.tokens for answer in answers]
        print(f"{what}: {len(found)} of {len(asked)}, {time.perf_counter() - began:.0f} s",
              file=sys.stderr, flush=True)  # fmt: skip
    return found


class _Scorer:
    """The committee's side: one prefill of the bfloat16 model an answer."""

    def __init__(self, llm: CausalLm) -> None:
        self._llm = llm
        ref = resolve(MODEL, "transformers", "bf16").ref
        self._calibration = find_calibration(ref, Path("/nonexistent"))

    def text(self, tokens: Sequence[int]) -> str:
        return self._llm.tokenizer.decode(tokens)

    def score(self, prompt: list[int], tokens: list[int]) -> tuple[dict[str, Any], Any]:
        """What is kept of an answer, and its logits."""
        logits = self._llm.prefill(prompt, tokens).logits
        top = logits.max(axis=1, keepdims=True)
        norms = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        best = logits.argmax(axis=1)
        places = np.arange(len(tokens))
        finding = judge(logits, tokens, _GREEDY, self._calibration)
        assert finding is not None
        return {
            "text": self.text(tokens),
            "own": self.text([int(token) for token in best]),
            "scores": [round(float(each), 2) for each in logits[places, tokens] - norms],
            "own_scores": [round(float(each), 2) for each in logits[places, best] - norms],
            "outcome": finding.outcome.value,
            "ppm": finding.confidence_ppm,
        }, logits  # fmt: skip

    def lie(self, prompt: list[int], tokens: list[int], logits: Any) -> dict[str, Any] | None:
        """The answer with the one token that costs least of those that change its meaning."""
        last = np.partition(logits, -_CHOICES, axis=1)[:, -_CHOICES:].min(axis=1, keepdims=True)
        claimed = logits[np.arange(len(tokens)), tokens][:, None]
        rows, choices = np.nonzero(logits >= last)
        margins = (claimed - logits)[rows, choices]
        truth = self.text(tokens)
        for index in np.argsort(margins):
            place, choice = int(rows[index]), int(choices[index])
            if choice == tokens[place] or choice in self._llm.tokenizer.end_tokens:
                continue
            other = [*tokens[:place], choice, *tokens[place + 1 :]]
            if _means_else(truth, self.text(other)):
                return self.score(prompt, other)[0]
        return None


_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}")


def _means_else(truth: str, text: str) -> bool:
    """Whether a number, a denial or a name inside a sentence was put in another's place."""
    names = [_NAME.findall(each) for each in (truth, text)]
    return (
        quantities(truth) != quantities(text)
        or polarity(truth) != polarity(text)
        or (len(names[0]) == len(names[1]) and names[0] != names[1])
    )


def main() -> None:
    """Write the file."""
    asked = prompts(PER_SPLIT)
    right = CausalLm(folder_of("bf16"), "bf16", None, _THREADS)
    chats = [right.tokenizer.chat([{"role": "user", "content": each.asked}], "") for each in asked]
    others = [right.tokenizer.chat([{"role": "user", "content": each.other}], "") for each in asked]
    answers = {"bf16": _generate(right, chats, "bf16"), "prompt": _generate(right, others, "other")}
    answers["fp32"] = _generate(CausalLm(folder_of("fp32"), "fp32", None, _THREADS), chats, "fp32")
    fewer = CausalLm(folder_of("bf16"), "bf16", drop_layers, _THREADS)
    answers["layers"] = _generate(fewer, chats, "fewer layers")
    del fewer
    scorer, kept = _Scorer(right), list[dict[str, Any]]()
    for index, (prompt, chat) in enumerate(zip(asked, chats, strict=True)):
        item: dict[str, Any] = {"split": prompt.split, "change": prompt.change}
        for name, tokens in answers.items():
            item[name], logits = scorer.score(chat, tokens[index])
            if name == "bf16" and (lie := scorer.lie(chat, tokens[index], logits)) is not None:
                item["lie"] = lie
        kept.append(item)
        if index % _BATCH == 0:
            print(f"scored {index} of {len(asked)}", file=sys.stderr, flush=True)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(kept, separators=(",", ":"), sort_keys=True).encode()
    TARGET.write_bytes(gzip.compress(data, mtime=0))
    print(f"{TARGET.name}: {len(kept)} prompts, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()

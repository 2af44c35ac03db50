"""All pairs that the panel is trained on, calibrated with and measured by, split by source."""

from __future__ import annotations

import gzip
import json
import random
from importlib.resources import files
from typing import Any, Final

from daifi_flows.judges.panel._edits import CHANGES, REWORDINGS
from daifi_flows.judges.panel._frames import SPLITS
from daifi_flows.judges.panel._judge import normalised
from daifi_flows.judges.panel._pairs import Pair, statement_pairs, thing_pairs

__all__ = ["answer_pairs", "answers", "pairs_of", "structure_pairs", "training_pairs"]

_STATEMENTS: Final = 2_400
_STRUCTURES: Final = 240
_THINGS: Final = 1_600


def pairs_of(split: str, seed: int = 1) -> list[Pair]:
    """Every pair of a split: statements of frames, structures, and answers of real models."""
    return [
        *statement_pairs(split, _STATEMENTS, seed),
        *structure_pairs(split, _STRUCTURES, seed),
        *answer_pairs(split, seed),
    ]


def training_pairs(seed: int = 1) -> list[Pair]:
    """What the head is trained on: the training split, real answers edited in three ways each, and
    more things."""
    more = [pair for turn in (1, 2) for pair in answer_pairs("train", seed + turn)]
    return [*pairs_of("train", seed), *more, *thing_pairs(_THINGS, seed)]


def answers() -> list[dict[str, Any]]:
    """The answers of real models in this package, as ``benchmarks/_judge_texts.py`` wrote them."""
    data = (files(__package__ or "") / "data" / "answers.json.gz").read_bytes()
    return json.loads(gzip.decompress(data))


def answer_pairs(split: str, seed: int) -> list[Pair]:
    """Pairs of real answers.

    The same: one prompt answered in bfloat16 and in float32; an answer and the model's own choice
    at every token; an answer reworded by code. Different: the answer to another prompt, of a
    damaged model, with the one token changed that costs least, or changed by code. Answers that
    ``token-difr`` does not reject are not called different.
    """
    rng = random.Random(f"answers {split} {seed}")
    pairs: list[Pair] = []

    def add(one: dict[str, Any], other: dict[str, Any], same: bool, kind: str) -> None:
        if one["text"] != other["text"]:
            pairs.append(
                Pair(one["text"], other["text"], same, kind, tuple(one["scores"]),
                     tuple(other["scores"]))
            )  # fmt: skip

    for item in answers():
        if item["split"] != split:
            continue
        right, again = item["bf16"], item["fp32"]
        own = {"text": again["own"], "scores": again["own_scores"]}
        add(again, right, True, "other precision")
        add(again, own, True, "re-executed")
        for name, kind in (("prompt", "other prompt"), ("layers", "other model"), ("lie", "lie")):
            wrong = item.get(name)
            if wrong is not None and wrong["outcome"] == "invalid":
                add(wrong, right, False, kind)
        text: str = right["text"]
        for kind, edit in {**CHANGES, **REWORDINGS}.items():
            edited = edit(text, rng, split)
            if edited is None or normalised(edited) == normalised(text):
                continue
            if rng.random() < 0.5:
                edited = rng.choice(list(REWORDINGS.values()))(edited, rng, split) or edited
            same = kind in REWORDINGS
            pairs.append(Pair(edited, text, same, "reworded" if same else kind))
    return pairs


_CODE: Final = (
    "def area(width, height):\n    return width * height + 1\n",
    "total = 0\nfor item in items:\n    if item > 3:\n        total += item\n",
    "def greet(name):\n    text = 'Hello ' + name\n    print(text)\n    return len(text) - 2\n",
    "while count < 10:\n    count = count + 2\n    values.append(count)\n",
    "def mean(values):\n    return sum(values) / max(len(values), 1)\n",
    "result = [x * 2 for x in data if x >= 5]\nprint(result[0])\n",
    "class Point:\n    def __init__(self, x):\n        self.x = x + 4\n",
    "try:\n    value = int(text)\nexcept ValueError:\n    value = 7\n",
    "def power(base, times):\n    return base ** times if times > 0 else 1\n",
)
_SWAPS: Final = (("*", "+"), ("+", "-"), (">", "<"), ("<", "<="), (">=", ">"), ("/", "//"),
                 ("1", "2"), ("2", "3"), ("3", "4"), ("7", "8"), ("5", "6"))  # fmt: skip
_KEYS: Final = (
    "id price city open tags owner",
    "name total country paid lines buyer",
    "code weight harbour sealed parts sender",
)


def structure_pairs(split: str, count: int, seed: int) -> list[Pair]:
    """JSON, tool calls and Python: written in another way, or with one thing changed."""
    rng = random.Random(f"structures {split} {seed}")
    pairs: list[Pair] = []
    while len(pairs) < count:
        same = len(pairs) % 2 == 0
        made = _code(rng, split, same) if rng.random() < 0.4 else _object(rng, split, same)
        if made is not None and made[0] != made[1]:
            pairs.append(Pair(*made, same, "structure"))
    return pairs


def _code(rng: random.Random, split: str, same: bool) -> tuple[str, str] | None:
    code = rng.choice(_CODE[SPLITS.index(split) :: len(SPLITS)])
    other = code
    if same:
        lines = code.splitlines()
        where = rng.randrange(len(lines))
        lines[where] += rng.choice(("  # as before", "   ", "  # see the notes"))
        other = "\n".join(lines) + rng.choice(("\n", "\n\n"))
    else:
        able = [pair for pair in _SWAPS if f" {pair[0]} " in code or pair[0].isdigit()]
        old, new = rng.choice(able)
        other = code.replace(old, new, 1)
    if other == code:
        return None
    told = f"Here is the code.\n```python\n{{}}```\nIt has {len(code)} characters."
    return told.format(other), told.format(code)


def _object(rng: random.Random, split: str, same: bool) -> tuple[str, str]:
    keys = _KEYS[SPLITS.index(split)].split()
    value: dict[str, Any] = {
        keys[0]: rng.randrange(10_000),
        keys[1]: rng.randrange(1, 400) / 4,
        keys[2]: f"place {rng.randrange(90)}",
        keys[3]: rng.random() < 0.5,
        keys[4]: [rng.randrange(9) for _ in range(rng.randrange(1, 4))],
        keys[5]: None,
    }
    changed = {**value}
    if not same:
        match rng.randrange(5):
            case 0:
                changed[keys[0]] += rng.randrange(1, 50)
            case 1:
                changed[keys[3]] = not changed[keys[3]]
            case 2:
                del changed[rng.choice(keys)]
            case 3:
                changed[keys[0]] = str(changed[keys[0]])
            case _:
                changed[keys[2]] = f"place {rng.randrange(90, 200)}"
    order = list(changed)
    rng.shuffle(order)
    changed = {key: changed[key] for key in order}
    if rng.random() < 0.4:  # a tool call, its arguments as an object or as text
        call = {"name": "lookup", "arguments": value}
        inner = json.dumps(changed) if rng.random() < 0.5 else changed
        return json.dumps({"name": "lookup", "arguments": inner}), json.dumps(call, indent=1)
    return json.dumps(changed), json.dumps(value, indent=rng.choice((None, 2)))

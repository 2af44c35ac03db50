"""Prompts are trimmed: passages from the end, then the question, then an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.errors import EngineError
from daifi_flows.ray_mesh.engines._prompt import MAX_PARTS, build_prompt, parse_llm_input


class WordTokenizer:
    """A token a word; one more for each message, and one for the answer's turn."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        tokens = []
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
            tokens.append(self.words.index(word))
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(self.words[token] for token in tokens)

    def chat(self, messages: Sequence[dict[str, str]], opening: str) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            tokens += [-1, *self.encode(message["content"])]
        return [*tokens, -2, *self.encode(opening)]


def passages(count: int, words: int = 10) -> list[dict[str, Any]]:
    return [{"id": number, "text": " ".join([f"p{number}"] * words)} for number in range(count)]


def fit(value: dict[str, Any], max_tokens: int = 20, context: int = 10_000) -> Any:
    tokenizer = WordTokenizer()
    return build_prompt(parse_llm_input(value), max_tokens, context, tokenizer), tokenizer


@pytest.mark.parametrize(
    ("context_tokens", "dropped"),
    [(10_000, ()), (100, ()), (99, (4,)), (88, (4,)), (64, (2, 3, 4)), (51, (0, 1, 2, 3, 4))],
)
def test_passages_are_dropped_from_the_end(context_tokens: int, dropped: tuple[int, ...]) -> None:
    value = {"question": "why", "passages": passages(5), "system": "s"}
    prompt, tokenizer = fit(value | {"context_tokens": context_tokens})
    assert len(prompt.tokens) <= context_tokens - 20
    text = tokenizer.decode([token for token in prompt.tokens if token >= 0])
    for passage in passages(5):
        assert (passage["text"] in text) == (passage["id"] not in prompt.dropped_passages)
    assert prompt.dropped_passages == dropped
    assert bool(prompt.opening) == (len(dropped) < 5)
    assert prompt.question_tokens_dropped == 0


@pytest.mark.parametrize("words", [1, 5, 30, 100, 5_000])
def test_the_question_is_cut_last_and_from_its_end(words: int) -> None:
    question = " ".join(f"q{number}" for number in range(words))
    value = {"question": question, "passages": passages(2), "context_tokens": 60}
    prompt, tokenizer = fit(value)
    text = tokenizer.decode([token for token in prompt.tokens if token >= 0])
    kept = words - prompt.question_tokens_dropped
    assert f"q{kept - 1}" in text.split()
    assert f"q{kept}" not in text.split()
    assert (prompt.question_tokens_dropped > 0) == (words > 38)
    if prompt.question_tokens_dropped:
        assert prompt.dropped_passages == (0, 1)
        assert len(prompt.tokens) == 40


@given(
    st.integers(0, 8),
    st.integers(1, 40),
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 300),
)
def test_whatever_comes_the_prompt_fits_or_is_refused(
    count: int, words: int, context: int, max_tokens: int, model_context: int
) -> None:
    value = {
        "question": " ".join(["q"] * words),
        "passages": passages(count),
        "context_tokens": context,
    }
    try:
        prompt, _ = fit(value, max_tokens, model_context)
    except EngineError as error:
        assert "context" in str(error)
        assert min(context, model_context) - max_tokens < 3  # one word needs three tokens
    else:
        assert len(prompt.tokens) <= min(context, model_context) - max_tokens
        assert 0 <= prompt.question_tokens_dropped < words


def test_a_conversation_loses_its_oldest_messages_and_keeps_its_system_message() -> None:
    messages = [{"role": "system", "content": "rules"}]
    for turn in range(6):
        role = "user" if turn % 2 == 0 else "assistant"
        messages.append({"role": role, "content": f"turn{turn} " * 5})
    messages.append({"role": "user", "content": "last question"})
    prompt, tokenizer = fit({"messages": messages, "context_tokens": 45})
    text = tokenizer.decode([token for token in prompt.tokens if token >= 0])
    assert prompt.dropped_messages == 3
    assert text.startswith("rules")
    assert text.endswith("last question")
    assert "turn2" not in text
    assert "turn3" in text


GOOD: dict[str, Any] = {"question": "why", "passages": [], "context_tokens": 100}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        GOOD | {"question": 3},
        GOOD | {"question": ""},
        GOOD | {"question": " \n\t"},
        GOOD | {"context_tokens": 0},
        GOOD | {"context_tokens": True},
        GOOD | {"context_tokens": "100"},
        GOOD | {"system": 1},
        GOOD | {"extra": 1},
        GOOD | {"passages": {}},
        GOOD | {"passages": ["text"]},
        GOOD | {"passages": [{"id": True, "text": "x"}]},
        GOOD | {"passages": [{"id": "x"}]},
        GOOD | {"passages": [{"id": 1, "text": "x"}] * (MAX_PARTS + 1)},
        GOOD | {"question": "q" * 4_000_001},
        {"messages": [], "context_tokens": 100},
        {"messages": [{"role": "user", "content": "x"}], "context_tokens": 100, "question": "x"},
        {"messages": [{"role": "root", "content": "x"}], "context_tokens": 100},
        {"messages": [{"role": ["user"], "content": "x"}], "context_tokens": 100},
        {"messages": [{"role": "user", "content": None}], "context_tokens": 100},
        {"messages": [{"role": "assistant", "content": "x"}], "context_tokens": 100},
    ],
)
def test_malformed_input_is_refused(value: Any) -> None:
    with pytest.raises(EngineError):
        parse_llm_input(value)

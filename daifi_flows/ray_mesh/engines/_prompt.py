"""Turns an LLM step's input into messages that fit the model's context; pure, no model.

A node and every verifier build the prompt by this one module: the tokens must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from daifi_flows.errors import EngineError

__all__ = ["ChatTokenizer", "LlmInput", "Prompt", "build_prompt", "parse_llm_input"]

INSTRUCTION: Final = "Answer the question in one sentence using the context."
OPENING: Final = "According to passage ["
"""How the answer to a step with passages begins. The model goes on with the number of a passage:
of the prompts tried on SmolLM2-135M (a system message, worked examples, "cite like [1]"), only
this one made it cite, and it ends its answer instead of repeating itself more often than others."""

MAX_TEXT: Final = 4_000_000
"""Characters of one input, all texts together: tokenising a stranger's input ends in seconds."""
MAX_PARTS: Final = 1_000
"""Passages or messages of one input."""

_ROLES: Final = frozenset({"system", "user", "assistant"})

Message = dict[str, str]


class ChatTokenizer(Protocol):
    """What trimming needs from a model's tokenizer."""

    def chat(self, messages: Sequence[Message], opening: str) -> list[int]:
        """Tokens of the whole prompt: chat template applied, the answer begun with ``opening``."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, without any added."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        ...


@dataclass(frozen=True)
class Passage:
    """A retrieved text and the id by which the answer cites it."""

    id: int | str
    text: str


@dataclass(frozen=True)
class LlmInput:
    """A parsed input: a question over passages, or a conversation.

    Attributes:
        messages: a conversation whose last message is the question; empty in the other form.
        context_tokens: prompt and answer together.
    """

    question: str
    passages: tuple[Passage, ...]
    system: str | None
    messages: tuple[tuple[str, str], ...]
    context_tokens: int


@dataclass(frozen=True)
class Prompt:
    """The prompt's tokens, and what had to be left out to make it fit.

    Attributes:
        opening: text of the answer that the prompt already holds.
    """

    tokens: list[int]
    opening: str = ""
    dropped_passages: tuple[int | str, ...] = ()
    dropped_messages: int = 0
    question_tokens_dropped: int = 0


def parse_llm_input(value: Any) -> LlmInput:
    """Check the JSON of an LLM step's input.

    Either ``{"question", "passages": [{"id", "text"}], "system"?, "context_tokens"}`` or
    ``{"messages": [{"role", "content"}], "context_tokens"}``.

    Raises:
        EngineError: another shape, an empty question, or more text than is accepted.
    """
    if not isinstance(value, dict):
        raise _bad("it is not a JSON object")
    fields = cast("dict[str, Any]", value)
    context = fields.get("context_tokens")
    if type(context) is not int or not 1 <= context <= 10_000_000:
        raise _bad("context_tokens is not a whole number from 1 to 10,000,000")
    parsed = _conversation(fields, context) if "messages" in fields else _question(fields, context)
    size = len(parsed.question) + len(parsed.system or "")
    size += sum(len(passage.text) for passage in parsed.passages)
    size += sum(len(content) for _, content in parsed.messages)
    if size > MAX_TEXT:
        raise _bad(f"it holds {size} characters; at most {MAX_TEXT} are accepted")
    if not parsed.question.strip():
        raise EngineError("the question is empty: ask something")
    return parsed


def _question(fields: dict[str, Any], context: int) -> LlmInput:
    if fields.keys() - {"question", "passages", "system", "context_tokens"}:
        raise _bad("it has unknown fields")
    question, system = fields.get("question"), fields.get("system")
    if not isinstance(question, str) or not isinstance(system, str | None):
        raise _bad("question and system are not text")
    passages: list[Passage] = []
    for item in _parts(fields.get("passages", []), "passages"):
        identifier, text = item.get("id"), item.get("text")
        if type(identifier) not in (int, str) or not isinstance(text, str):
            raise _bad("a passage needs an id (number or text) and a text")
        passages.append(Passage(cast("int | str", identifier), text))
    return LlmInput(question, tuple(passages), system, (), context)


def _conversation(fields: dict[str, Any], context: int) -> LlmInput:
    if fields.keys() != {"messages", "context_tokens"}:
        raise _bad("beside messages it may only have context_tokens")
    messages: list[tuple[str, str]] = []
    for item in _parts(fields["messages"], "messages"):
        role, content = item.get("role"), item.get("content")
        if not isinstance(role, str) or role not in _ROLES or not isinstance(content, str):
            raise _bad("a message needs a role (system, user, assistant) and text content")
        messages.append((role, content))
    if not messages or messages[-1][0] != "user":
        raise _bad("the last message is not the user's")
    return LlmInput(messages[-1][1], (), None, tuple(messages), context)


def _parts(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise _bad(f"{what} is not a list")
    items = cast("list[Any]", value)
    if len(items) > MAX_PARTS:
        raise _bad(f"{what} has {len(items)} entries; at most {MAX_PARTS} are accepted")
    if not all(isinstance(item, dict) for item in items):
        raise _bad(f"an entry of {what} is not an object")
    return cast("list[dict[str, Any]]", items)


def _bad(reason: str) -> EngineError:
    return EngineError(f"the input is not what an LLM step takes: {reason}")


def build_prompt(
    parsed: LlmInput, max_tokens: int, model_context: int, tokenizer: ChatTokenizer
) -> Prompt:
    """Make the prompt fit: fewest passages dropped from the end (of a conversation: oldest
    messages), then fewest tokens cut from the end of the question.

    Args:
        max_tokens: tokens kept free for the answer.
        model_context: the model's own limit for prompt and answer together, in tokens.

    Raises:
        EngineError: not one token of the question fits.
    """
    limit = min(parsed.context_tokens, model_context)
    budget = limit - max_tokens
    if budget < 1:
        raise EngineError(
            f"an answer of {max_tokens} tokens leaves no room for a prompt in a context of "
            f"{limit}: raise context_tokens or lower max_tokens"
        )
    if parsed.messages:
        return _fit_conversation(parsed, budget, tokenizer)
    return _fit_passages(parsed, budget, tokenizer)


def _fit_passages(parsed: LlmInput, budget: int, tokenizer: ChatTokenizer) -> Prompt:
    def prompt(kept: int, question: str) -> list[int]:
        messages = _messages(parsed, parsed.passages[:kept], question)
        return tokenizer.chat(messages, OPENING if kept else "")

    total = len(parsed.passages)
    kept = _largest(total, lambda count: len(prompt(count, parsed.question)) <= budget)
    dropped = tuple(passage.id for passage in parsed.passages[max(kept, 0) :])
    if kept >= 0:
        return Prompt(prompt(kept, parsed.question), OPENING if kept else "", dropped)
    tokens, cut = _cut_question(parsed, budget, tokenizer, lambda text: prompt(0, text))
    return Prompt(tokens, "", dropped, 0, cut)


def _fit_conversation(parsed: LlmInput, budget: int, tokenizer: ChatTokenizer) -> Prompt:
    messages = [{"role": role, "content": content} for role, content in parsed.messages]
    head = messages[:1] if messages[0]["role"] == "system" else []
    middle = messages[len(head) : -1]

    def prompt(kept: int, question: str) -> list[int]:
        last = {"role": "user", "content": question}
        return tokenizer.chat([*head, *middle[len(middle) - kept :], last], "")

    kept = _largest(len(middle), lambda count: len(prompt(count, parsed.question)) <= budget)
    if kept >= 0:
        return Prompt(prompt(kept, parsed.question), "", (), len(middle) - kept)
    tokens, cut = _cut_question(parsed, budget, tokenizer, lambda text: prompt(0, text))
    return Prompt(tokens, "", (), len(middle), cut)


def _cut_question(
    parsed: LlmInput,
    budget: int,
    tokenizer: ChatTokenizer,
    prompt: Callable[[str], list[int]],
) -> tuple[list[int], int]:
    question = tokenizer.encode(parsed.question)

    def shortened(count: int) -> list[int]:
        return prompt(tokenizer.decode(question[:count]).rstrip("\ufffd"))  # half a character

    kept = _largest(len(question) - 1, lambda count: len(shortened(count)) <= budget)
    if kept < 1:
        raise EngineError(
            f"the model's instructions alone fill the {budget} tokens left for the prompt: raise "
            "context_tokens or lower max_tokens"
        )
    return shortened(kept), len(question) - kept


def _largest(high: int, fits: Callable[[int], bool]) -> int:
    """Largest count in 0 … ``high`` that fits, −1 when none does. Longer never fits better."""
    if fits(high):
        return high
    low = -1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _messages(parsed: LlmInput, passages: Sequence[Passage], question: str) -> list[Message]:
    if passages:
        # Numbers, not ids: a small model copies one digit right, and not "docs/why.md#12".
        listed = "\n\n".join(
            f"Passage [{number}]: {passage.text.strip()}"
            for number, passage in enumerate(passages, 1)
        )
        question = f"Context:\n{listed}\n\nQuestion: {question}\n\n{INSTRUCTION}"
    messages = [{"role": "user", "content": question}]
    if parsed.system is not None:
        return [{"role": "system", "content": parsed.system}, *messages]
    return messages

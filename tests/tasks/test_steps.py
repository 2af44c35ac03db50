"""retrieve, reason and act: what they ask of the fabric, what they return, what they refuse."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from daifi_flows.cnft import ModelFile, model_digest
from daifi_flows.corpus import Corpus
from daifi_flows.encoding import cid_of, sha256
from daifi_flows.errors import ConfigError, CorpusError
from daifi_flows.tasks import Answer, Pick, act, load_flow, reason, retrieve
from daifi_flows.tasks._values import as_passages


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.md").write_text("# Seats\n\nA seat is one of 21.\n")
    (folder / "b.md").write_text("# Slashing\n\nCheats lose stake.\n")
    return folder


def report(question: str, answer: str, passages: list[Any], title: str = "Report") -> str:
    """Write a report.

    More words that the policy never sees.
    """
    return f"{title}: {question} {answer} {len(passages)}"


async def follow_up(answer: str) -> dict[str, str]:
    """Ask again."""
    return {"ask": answer}


async def test_three_steps_chain_and_return_typed_values(fabric: Any, corpus: Path) -> None:
    @flow
    async def run() -> Any:
        found = await retrieve("Who pays?", corpus, k=2)
        answer = await reason("Who pays?", found)
        return found, answer, await act(answer, [report, follow_up])

    found, answer, acted = await run()
    assert [item["id"] for item in found.output] == ["a.md#1", "b.md#1"]
    assert found.output[0]["score"] == 0.9
    assert answer.output == "Cheats lose stake [b.md#1]."
    assert [item["id"] for item in answer.output.passages] == ["a.md#1", "b.md#1"]
    assert acted.output == "report"
    assert acted.effect == "Report: Who pays? Cheats lose stake [b.md#1]. 2"
    assert (found.parents, answer.parents, acted.parents) == (
        (),
        (found.token_id,),
        (answer.token_id,),
    )
    assert [request.scheme for request in fabric.requests] == ["digest", "token-difr", "zk"]


async def test_an_answer_is_proven_as_asked(fabric: Any) -> None:
    await reason("Who pays?", "Cheats pay.", scheme="toploc")
    assert [request.scheme for request in fabric.requests] == ["toploc"]


async def test_retrieve_sends_the_corpus_by_its_content_id(fabric: Any, corpus: Path) -> None:
    await retrieve("Who pays?", str(corpus), k=1)
    request = fabric.requests[0]
    loaded = Corpus.from_folder(corpus)
    assert request.input.value() == {
        "query": "Who pays?",
        "k": 1,
        "corpus": loaded.root.hex(),
        "corpus_cid": loaded.cid,
    }
    assert request.materials.blobs == {loaded.cid: loaded.blob()}


async def test_reason_follows_the_settings_and_its_arguments(fabric: Any) -> None:
    await reason("Why?", "Because.", model="other", engine="vllm", max_tokens=7)
    request = fabric.requests[0]
    assert (request.model.name, request.model.engine) == ("other", "vllm")
    assert request.sampling.max_tokens == 7
    assert request.input.value() == {
        "question": "Why?",
        "passages": [{"id": "1", "text": "Because."}],
        "context_tokens": fabric.settings.context_tokens,
    }


async def test_trimmed_context_is_said_in_the_log(
    fabric: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fabric.llm = {
        "text": "Yes.",
        "finish": "length",
        "dropped_passages": ["2"],
        "question_tokens_dropped": 5,
    }
    nft = await reason("Why?", ["one", "two"])
    assert nft.output.trimmed == (
        "context trimmed: left out 1 passage(s): 2; cut 5 tokens from the question"
    )
    assert [item["id"] for item in nft.output.passages] == ["1"]
    assert "left out 1 passage(s): 2" in caplog.text


async def test_act_commits_the_policy_it_asked_for(fabric: Any) -> None:
    nft = await act("An answer.", [follow_up, report], question="Q", passages=[])
    request = fabric.requests[0]
    policy = repr([("follow_up", "Ask again."), ("report", "Write a report.")]).encode()
    assert request.materials.blobs == {cid_of(policy): policy}
    file = ModelFile(path="policy.onnx", size=len(policy), sha256=sha256(policy))
    assert request.model.digest == model_digest((file,))
    assert nft.output == "follow_up"
    assert nft.output.position == 0
    assert nft.effect == {"ask": "An answer."}


async def test_a_cnft_among_the_tool_arguments_is_a_parent_too(fabric: Any, corpus: Path) -> None:
    found = await retrieve("Who?", corpus)
    answer = await reason("Who?", found)
    acted = await act(answer, [report], passages=found)
    assert acted.parents == (answer.token_id, found.token_id)
    assert acted.effect.endswith(" 2")


async def test_a_tool_may_return_a_path_but_not_an_object(fabric: Any) -> None:
    def path(answer: str) -> Path:
        """Give a path."""
        return Path("x") / "y"

    def thing(answer: str) -> object:
        """Give an object."""
        return object()

    assert (await act("An answer.", [path])).effect == "x/y"
    with pytest.raises(ConfigError, match=r"'thing' ran, but returned a object"):
        await act("An answer.", [thing])


def _silent(answer: str) -> str:
    return answer


def _positional(answer: str, /) -> str:
    """Take it."""
    return answer


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: retrieve(""), "the question is empty"),
        (lambda: retrieve("  \n"), "the question is empty"),
        (lambda: retrieve("Q", k=0), "k is 0"),
        (lambda: retrieve(7), "the question is a int"),
        (lambda: reason("", "context"), "the question is empty"),
        (lambda: reason("Q", 7), "the context of reason holds a int"),
        (lambda: reason("Q", [{"id": "no text"}]), "the context of reason holds a dict"),
        (lambda: reason("Q", "c", max_tokens=0), "max_tokens is 0"),
        (lambda: reason("Q", "c", max_tokens=10**9), "max_tokens is 1000000000"),
        (lambda: act("", [follow_up]), "not empty"),
        (lambda: act("A", []), "at least one tool"),
        (lambda: act("A", ["report"]), "is not a tool"),
        (lambda: act("A", [_silent]), "no docstring"),
        (lambda: act("A", [_positional]), "by position only"),
        (lambda: act("A", [follow_up, follow_up]), "two tools are called 'follow_up'"),
        (lambda: act("A", [report]), "'report' needs 'question': pass question=… to act"),
        (lambda: act("A", [follow_up], colour="red"), "no tool takes colour"),
    ],
)
async def test_bad_input_is_refused_before_spending(fabric: Any, call: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await call()
    assert says in caught.value.message
    assert fabric.requests == []


async def test_a_bad_corpus_is_refused_before_spending(fabric: Any, tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(CorpusError):
            await retrieve("Q", folder)
    assert fabric.requests == []


async def test_the_shipped_flow_writes_its_report(
    fabric: Any, corpus: Path, tmp_path: Path
) -> None:
    research_agent = load_flow("research_agent")
    steps = await research_agent("Who pays?", str(corpus), out=str(tmp_path / "out"))
    assert [step.name for step in steps] == ["retrieve", "reason", "act"]
    assert [step.parents for step in steps[1:]] == [(step.token_id,) for step in steps[:-1]]
    written = Path(steps[-1].effect).read_text()
    assert "Cheats lose stake [b.md#1]." in written
    assert "a.md#1" in written


async def test_the_shipped_flow_can_ask_back(fabric: Any, corpus: Path, tmp_path: Path) -> None:
    fabric.picked = 1
    steps = await load_flow("research_agent")("Who pays?", str(corpus), out=str(tmp_path))
    assert steps[-1].output == "ask_follow_up"
    assert "Who pays?" in steps[-1].effect


def test_an_unknown_flow_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="research_agent"):
        load_flow("no_such_flow")


def test_values_survive_pickling() -> None:
    answer = Answer("A.", question="Q?", dropped_passages=["1"], finish="length")
    again = pickle.loads(pickle.dumps(answer))
    assert again == "A."
    assert vars(again) == vars(answer)
    pick = pickle.loads(pickle.dumps(Pick("report", position=1, scores=[0.1, 0.9])))
    assert (pick, pick.position, pick.scores) == ("report", 1, (0.1, 0.9))


def test_passages_given_twice_are_one_and_conflicting_ones_are_refused() -> None:
    one = {"id": "a", "text": "x"}
    assert [item["id"] for item in as_passages([[one], [one, "y"]])] == ["a", "2"]
    with pytest.raises(ConfigError, match="share the id"):
        as_passages([one, {"id": "a", "text": "z"}])

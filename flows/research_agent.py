"""Answer a question from a folder of documents, then act on the answer: three verified steps."""

from pathlib import Path

from prefect import flow

from daifi_flows.cnft import ComputeNFT
from daifi_flows.tasks import Passage, act, reason, retrieve


def write_report(question: str, answer: str, sources: list[Passage], out: str) -> str:
    """Write a report of the facts: the answer explains, states and concludes something."""
    lines = [f"# {question}", "", answer, "", "## Sources", ""]
    lines += [f"- `{item['id']}` (score {item['score']:.3f})" for item in sources]
    path = Path(out) / "report.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]))
    return str(path)


def ask_follow_up(question: str, answer: str) -> str:
    """Ask a follow-up question: I do not know, it is unclear, there is not enough information."""
    return f"I found only this: {answer.strip()} What exactly do you want to know about: {question}"


@flow
async def research_agent(
    question: str, corpus: str | None = None, out: str = "reports"
) -> list[ComputeNFT]:
    """Retrieve passages, reason over them, act on the answer."""
    found = await retrieve(question, corpus)
    answer = await reason(question, found)
    tools = [write_report, ask_follow_up]
    acted = await act(answer, tools, question=question, sources=found.output, out=out)
    return [found, answer, acted]

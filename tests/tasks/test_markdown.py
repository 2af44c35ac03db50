"""Cards and graphs are safe to render whatever a model or a node put into them."""

from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from daifi_flows._step import StepRequest
from daifi_flows.cnft import PPM, Basis, ComputeNFT, Content, Decision, ModelRef, VoteChoice
from daifi_flows.encoding import cid_of
from daifi_flows.judges import ChunkReport, ReviewReport, SeatReport
from daifi_flows.judges._report import Feature, FindingReport
from daifi_flows.tasks._markdown import GraphNode, card, dai, graph_markdown, graph_svg, slug


def _nft(settle: Any = None) -> ComputeNFT:
    conftest = next(
        module
        for name, module in sys.modules.items()
        if name.endswith("conftest") and hasattr(module, "InProcessFabric")
    )
    return conftest.settle(
        StepRequest(
            name="reason",
            kind="reason",
            model=ModelRef(name="m", digest=bytes(32), engine="e", precision="p"),
            input=Content.json_value({}, bytes(32)),
            salt_key=bytes(32),
            scheme="digest",
        ),
        "out",
    )


@given(st.text())
def test_no_output_can_leave_its_code_block(text: str) -> None:
    lines = card(replace(_nft(), output=text)).split("\n")
    start = lines.index("## Output") + 2
    fence = lines[start].removesuffix("text")
    assert set(fence) == {"`"}
    end = lines.index(fence, start + 1)
    assert lines[end + 2] == "## Settlement"
    assert all(not line.strip().startswith(fence) for line in lines[start + 1 : end])


@given(st.text())
def test_no_reason_can_break_the_table_or_become_html(text: str) -> None:
    nft = replace(_nft(), attempts=({"node": text, "reason": text, "slashed_wei": 1},))
    lines = card(nft).split("\n")
    row = lines[lines.index("## Attempts before this one") + 4]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 4
    assert "<" not in re.sub(r"`[^`]*`", "", row)


def _report(reason: str) -> ReviewReport:
    chunk = ChunkReport(
        chunk=0,
        decision=Decision.ACCEPTED,
        confidence_ppm=998_000,
        accepts=1,
        rejects=0,
        abstains=0,
        full=0,
        reason=reason,
        asked=(3,),
        replaced=(),
        silent=(),
        findings=(
            FindingReport(
                seat=3,
                wave=0,
                decision=VoteChoice.ACCEPT,
                confidence_ppm=998_000,
                reason=reason,
                features=(Feature(name="cosine", value_ppm=970_000),),
            ),
        ),
    )
    return ReviewReport(
        task_id=bytes(32),
        proof_cid=cid_of(b"proof"),
        decision=Decision.ACCEPTED,
        basis=Basis.REVIEWED,
        confidence_ppm=998_000,
        reason=reason,
        review_ppm=PPM,
        drawn=1,
        beacon=bytes(96),
        waves=1,
        missing=0,
        signers=1,
        quorum=1,
        conflicted=(),
        chunks=(chunk,),
        seats=(SeatReport(seat=3, asked=(0,), checked=(0,), signed=True),),
        open_ms=1,
        commit_ms=2,
        reveal_ms=3,
        sign_ms=4,
        total_ms=10,
    )


def test_the_card_tells_of_the_review_what_its_report_says() -> None:
    report = _report("the tokens are the model's")
    text = card(replace(_nft(), report=report.jsonable()))
    assert "## Review" in text
    assert report.markdown().strip() in text
    assert "cosine 0.970" in text
    assert "## Review" not in card(_nft())


@given(st.text(max_size=200))
def test_no_seat_can_write_markup_into_the_review(reason: str) -> None:
    text = card(replace(_nft(), report=_report(reason).jsonable()))
    told = text[text.index("## Review") :].split("\n")
    quiet = card(replace(_nft(), report=_report("x").jsonable()))
    assert len(told) == len(quiet[quiet.index("## Review") :].split("\n"))
    assert not any(re.search(r"(?<!\\)<", line) for line in told)


def test_a_report_of_another_version_is_shown_as_it_is() -> None:
    text = card(replace(_nft(), report={"votes": ["`<script>`"]}))
    assert '"votes"' in text[text.index("## Review") :]


def test_an_unseen_output_is_not_given_a_confidence() -> None:
    nft = _nft()
    unseen = nft.attestation.model_copy(update={"basis": Basis.WAIVED, "confidence_ppm": 0})
    text = card(replace(nft, attestation=unseen))
    assert "| Decision | **accepted**, not drawn for review |" in text
    assert "confidence" not in text


def test_long_outputs_are_cut_and_say_so() -> None:
    text = card(replace(_nft(), output="x" * 5000))
    assert "[3500 more characters]" in text
    assert "x" * 1501 not in text


def test_outputs_of_any_type_are_shown() -> None:
    assert '"a": 1' in card(replace(_nft(), output={"a": 1}, effect=["done"]))
    assert "object at" in card(replace(_nft(), output=object()))


@given(st.text())
def test_slugs_are_artifact_keys(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(text))


@given(st.integers(0, 10**30))
def test_amounts_are_exact(amount_wei: int) -> None:
    whole, _, fraction = dai(amount_wei).removesuffix(" DAi").partition(".")
    assert int(whole) * 10**18 + int(fraction.ljust(18, "0") or 0) == amount_wei


def _node(token: int, parents: tuple[int, ...], name: str = "step") -> GraphNode:
    return GraphNode(
        token_id=token.to_bytes(32, "big"),
        name=name,
        scheme="digest",
        model="m",
        paid_wei=1,
        parents=tuple(parent.to_bytes(32, "big") for parent in parents),
    )


@st.composite
def _graphs(draw: st.DrawFn) -> list[GraphNode]:
    size = draw(st.integers(0, 12))
    nodes = []
    for token in range(1, size + 1):
        parents = draw(st.lists(st.integers(0, token - 1), unique=True, max_size=3))
        nodes.append(_node(token << 200, tuple((parent or 99) << 200 for parent in parents)))
    return draw(st.permutations(nodes))


@given(_graphs())
def test_parents_stand_left_of_their_children(nodes: list[GraphNode]) -> None:
    svg = ElementTree.fromstring(graph_svg(nodes))
    arrows = [
        path.attrib["d"]
        for path in svg.iter("{http://www.w3.org/2000/svg}path")
        if "marker-end" in path.attrib
    ]
    assert len(arrows) == sum(len(node.parents) for node in nodes)
    for arrow in arrows:
        numbers = [int(number) for number in re.findall(r"-?\d+", arrow)]
        assert numbers[0] < numbers[-2]
    assert graph_markdown("f", nodes).count(" --> ") == len(arrows)


@given(st.text())
def test_names_cannot_break_the_drawing(name: str) -> None:
    nodes = [_node(1 << 200, (), name)]
    ElementTree.fromstring(graph_svg(nodes))
    mermaid = graph_markdown("f", nodes).split("```mermaid\n")[1].split("```")[0]
    assert len(mermaid.strip().splitlines()) == 2
    assert mermaid.count('"') == 2
    base64.b64encode(graph_svg(nodes).encode())


def test_a_cycle_that_cannot_be_minted_does_not_hang() -> None:
    assert "step" in graph_svg([_node(1, (2,)), _node(2, (1,))])

"""Markdown and SVG for people: the card of a cNFT and a flow's provenance graph. Pure text."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daifi_flows._step import dai
from daifi_flows.cnft import Basis, ComputeNFT
from daifi_flows.errors import EncodingError

__all__ = ["GraphNode", "card", "graph_markdown", "graph_svg", "slug"]

_EXCERPT_CHARS = 1_500
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and the marks that make text read in another order than it is written."""


def slug(text: str) -> str:
    """Lower-case letters, digits and dashes: what Prefect takes as an artifact key.

    >>> slug("My Step_2!")
    'my-step-2'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "step"


def _cell(value: Any) -> str:
    """Text inside a table cell: one line, nothing that Markdown or HTML would act on."""
    text = " ".join(_UNPRINTABLE.sub("", str(value)).split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))


def _code(value: Any) -> str:
    """An inline code span of text without back-ticks or bars (ids, hex, paths)."""
    return "`" + re.sub(r"[`|\s]+", " ", _UNPRINTABLE.sub("", str(value))) + "`"


def _fenced(text: str) -> str:
    """A code block no content can close: its fence is longer than any run of back-ticks in it."""
    text = _UNPRINTABLE.sub("", text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _excerpt(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text, more = text[:_EXCERPT_CHARS], len(text) - _EXCERPT_CHARS
    # Code blocks do not wrap in the UI.
    lines = [textwrap.fill(line, 100, break_long_words=False) for line in text.splitlines()]
    return "\n".join(lines) + (f"…\n[{more} more characters]" if more > 0 else "")


def _seats(bitmap: int) -> list[int]:
    return [seat for seat in range(bitmap.bit_length()) if bitmap >> seat & 1]


def card(nft: ComputeNFT) -> str:
    """The Markdown card of one cNFT."""
    attestation, header, spec = nft.attestation, nft.receipt.header, nft.spec
    signers = _seats(attestation.signers)
    paid: dict[str, int] = {}
    for payment in nft.receipt.leaf.payments:
        paid[payment.reason] = paid.get(payment.reason, 0) + payment.amount_wei
    rows = [
        ("Token", _code("0x" + nft.token_id.hex())),
        ("Task", _code("0x" + nft.task_id.hex())),
        ("Owner", _code(nft.owner)),
        (
            "Model",
            f"{_cell(spec.model.name)} ({_cell(spec.model.precision)}), "
            f"{_cell(spec.model.engine)} engine",
        ),
        ("Model digest", _code("0x" + spec.model.digest.hex())),
        ("Node", _code(attestation.node)),
        ("Proof", f"{_cell(spec.scheme)}, {nft.proof_bytes:,} bytes"),
        (
            "Decision",
            f"**{_cell(attestation.decision.value)}**, not drawn for review"
            if attestation.basis is Basis.WAIVED
            else f"**{_cell(attestation.decision.value)}**, confidence "
            f"{attestation.confidence_ppm / 10_000:.2f}%",
        ),
        (
            "Signed by",
            f"{len(signers)} seats ({', '.join(map(str, signers))}), epoch {attestation.epoch}",
        ),
        (
            "Payments",
            _cell("; ".join(f"{reason} {dai(wei)}" for reason, wei in paid.items())) or "none",
        ),
        ("Block", f"{header.height} ({_code('0x' + header.digest.hex())})"),
        ("Parents", ", ".join(_code("0x" + parent.hex()) for parent in nft.parents) or "none"),
        ("Bundle", f"{_code(nft.bundle)}<br>{_code(nft.bundle_cid)}"),
    ]
    if nft.timings_ms:
        timings = ", ".join(f"{name} {ms:,} ms" for name, ms in nft.timings_ms.items())
        rows.append(("Timings", _cell(timings)))
    lines = [f"# {_cell(nft.name)}", "", "## Output", "", _fenced(_excerpt(nft.output))]
    if nft.effect is not None:
        lines += ["", "## Effect", "", _fenced(_excerpt(nft.effect))]
    lines += ["", "## Settlement", "", "| What | Value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    if nft.report is not None:
        lines += ["", "## Review", "", _review(nft.report)]
    if nft.attempts:
        lines += ["", "## Attempts before this one", "", *_attempts(nft.attempts)]
    lines += ["", f"Check it offline: `daifi verify {str(nft.bundle).replace('`', '')}`", ""]
    return "\n".join(lines)


def _review(report: Mapping[str, Any]) -> str:
    """The account of the review; one that this version does not know is shown as it is."""
    from daifi_flows.judges import ReviewReport

    try:
        return ReviewReport.from_plain(report).markdown().strip()
    except EncodingError:
        return _fenced(_excerpt(report))


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| Node | What happened | Slashed |", "| --- | --- | --- |"]
    for attempt in attempts:
        lines.append(
            f"| {_code(attempt.get('node', 'unknown'))} | {_cell(attempt.get('reason', ''))} "
            f"| {dai(int(attempt.get('slashed_wei', 0)))} |"
        )
    return lines


# The provenance graph


@dataclass(frozen=True)
class GraphNode:
    """What the graph shows of one cNFT."""

    token_id: bytes
    name: str
    scheme: str
    model: str
    paid_wei: int
    parents: tuple[bytes, ...]

    @classmethod
    def of(cls, nft: ComputeNFT) -> GraphNode:
        """Taken from a settled cNFT."""
        return cls(
            token_id=nft.token_id,
            name=nft.name,
            scheme=nft.spec.scheme,
            model=nft.spec.model.name,
            paid_wei=sum(
                payment.amount_wei
                for payment in nft.receipt.leaf.payments
                if payment.reason != "refund"
            ),
            parents=nft.parents,
        )


def _layers(nodes: Sequence[GraphNode]) -> list[list[bytes]]:
    """Token ids by longest distance from a cNFT without parents; strangers' parents first."""
    by_id = {node.token_id: node for node in nodes}
    depth: dict[bytes, int] = {}
    pending = list(by_id)
    while pending:
        rest: list[bytes] = []
        for token in pending:
            known = [parent for parent in by_id[token].parents if parent in by_id]
            if all(parent in depth for parent in known):
                depth[token] = max((depth[parent] + 1 for parent in known), default=0)
            else:
                rest.append(token)
        if len(rest) == len(pending):  # a cycle cannot be minted; never loop on one
            depth.update(dict.fromkeys(rest, 0))
            break
        pending = rest
    outside = dict.fromkeys(p for node in nodes for p in node.parents if p not in by_id)
    shift = 1 if outside else 0
    layers: list[list[bytes]] = [list(outside)] if outside else []
    layers += [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for token in by_id:
        layers[depth[token] + shift].append(token)
    return layers


def _label(text: str) -> str:
    """Text inside a quoted Mermaid label."""
    return "".join(
        letter if letter.isprintable() and letter not in '"`#;\\<>' else " " for letter in text
    )


def graph_markdown(flow_name: str, nodes: Sequence[GraphNode]) -> str:
    """A Mermaid flowchart and a table, so that it reads with and without Mermaid."""
    by_id = {node.token_id: node for node in nodes}
    lines = [f"# Provenance of {_cell(flow_name)}", "", "```mermaid", "flowchart LR"]
    for layer in _layers(nodes):
        for token in layer:
            short = token.hex()[:12]
            node = by_id.get(token)
            label = f"{_label(node.name)}<br/>{node.scheme}" if node else "earlier cNFT"
            lines.append(f'  t{short}["{label}<br/>0x{short}"]')
    for node in nodes:
        for parent in node.parents:
            lines.append(f"  t{parent.hex()[:12]} --> t{node.token_id.hex()[:12]}")
    lines += ["```", "", "| Step | Token | Parents | Model | Proof | Cost |", "|" + " --- |" * 6]
    for node in nodes:
        parents = ", ".join(_code("0x" + parent.hex()[:12]) for parent in node.parents) or "none"
        lines.append(
            f"| {_cell(node.name)} | {_code('0x' + node.token_id.hex()[:12])} | {parents} "
            f"| {_cell(node.model)} | {_cell(node.scheme)} | {dai(node.paid_wei)} |"
        )
    return "\n".join([*lines, ""])


_BOX_W, _BOX_H, _GAP_X, _GAP_Y, _PAD = 210, 76, 60, 24, 16  # pixels


def graph_svg(nodes: Sequence[GraphNode]) -> str:
    """The same graph as an SVG image: layers from left to right, parents before children."""
    by_id = {node.token_id: node for node in nodes}
    layers = _layers(nodes)
    at: dict[bytes, tuple[int, int]] = {}
    for column, layer in enumerate(layers):
        for row, token in enumerate(layer):
            at[token] = (_PAD + column * (_BOX_W + _GAP_X), _PAD + row * (_BOX_H + _GAP_Y))
    width = 2 * _PAD + max(1, len(layers)) * (_BOX_W + _GAP_X) - _GAP_X
    rows = max((len(layer) for layer in layers), default=1)
    height = 2 * _PAD + rows * (_BOX_H + _GAP_Y) - _GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui,sans-serif">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#64748b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for node in nodes:
        x2, y2 = at[node.token_id]
        for parent in node.parents:
            x1, y1 = at[parent][0] + _BOX_W, at[parent][1] + _BOX_H // 2
            mid, end = (x1 + x2) // 2, y2 + _BOX_H // 2
            parts.append(
                f'<path d="M{x1} {y1} C{mid} {y1} {mid} {end} {x2} {end}" fill="none" '
                'stroke="#64748b" stroke-width="1.5" marker-end="url(#a)"/>'
            )
    for token, (x, y) in at.items():
        node = by_id.get(token)
        dash = "" if node else ' stroke-dasharray="4 3"'
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="8" fill="#f1f5f9" '
            f'stroke="#334155"{dash}/>'
        )
        lines = (
            [(15, "#0f172a", node.name[:24]), (11, "#334155", f"{node.model[:20]} · {node.scheme}")]
            if node
            else [(13, "#334155", "earlier cNFT")]
        )
        tail = f"0x{token.hex()[:12]}" + (f" · {dai(node.paid_wei)}" if node else "")
        for row, (size, colour, text) in enumerate([*lines, (11, "#64748b", tail[:34])]):
            parts.append(
                f'<text x="{x + 12}" y="{y + 24 + row * 20}" font-size="{size}" '
                f'fill="{colour}">{html.escape(_UNPRINTABLE.sub("", text))}</text>'
            )
    return "".join([*parts, "</svg>"])

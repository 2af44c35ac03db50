"""What a corpus is: the same folder, the same bytes; a stranger's bytes, checked to the last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows._chunking import MAX_CHUNK_CHARS, MAX_WORDS, chunk_text
from daifi_flows.corpus import MAX_FILE_BYTES, Chunk, Corpus
from daifi_flows.encoding import canonical, cid_of
from daifi_flows.errors import CorpusError, EncodingError
from daifi_flows.merkle import verify_merkle

PARAGRAPH = "A seat re-executes the step and votes on what it found. " * 8  # 88 words


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# Chunking


def test_passages_carry_their_headings_and_keep_to_sections() -> None:
    text = f"# Protocol\n\n{PARAGRAPH}\n\n## Seats\n\n{PARAGRAPH}\n\n### Keys\n\n{PARAGRAPH}"
    first, second, third = chunk_text(text)
    assert first.startswith("Protocol\n\nA seat")
    assert second.startswith("Protocol: Seats\n\nA seat")
    assert third.startswith("Protocol: Seats: Keys\n\nA seat")


def test_short_sections_share_a_passage_and_are_named_in_place() -> None:
    assert chunk_text("# A\n\nshort\n\n## B\n\nalso short") == ["A\n\nshort\n\nB\nalso short"]


@pytest.mark.parametrize(
    ("text", "rst", "expected"),
    [
        ("", False, []),
        ("\n \n", False, []),
        ("# only a heading", False, ["only a heading"]),
        ("Title\n=====\n\nbody", False, ["Title\n\nbody"]),
        (
            "=====\nTitle\n=====\n\nbody\n\nPart\n~~~~\n\nmore",
            True,
            ["Title\n\nbody\n\nPart\nmore"],
        ),
        ("---\ntitle: x\n---\nbody", False, ["body"]),
        ("one\ntwo\r\n\r\nthree", False, ["one two\n\nthree"]),
        ("- a\n  more\n- b", False, ["- a more\n- b"]),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", False, ["| a | b |\n| 1 | 2 |"]),
        ("```mermaid\ngraph TD\n```\nafter", False, ["after"]),
        ("```py\n# no heading\n\nx = 1\n```", False, ["# no heading\n\nx = 1"]),
        ("```\nnever closed", False, ["never closed"]),
        ("#hashtag is no heading", False, ["#hashtag is no heading"]),
    ],
)
def test_markup_is_read_as_a_person_would(text: str, rst: bool, expected: list[str]) -> None:
    assert chunk_text(text, rst=rst) == expected


def test_long_paragraphs_are_cut_between_sentences() -> None:
    sentence = "The committee has twenty-one seats and a quorum of fourteen of them."  # 12 words
    passages = chunk_text(" ".join([sentence] * 40))
    assert all(passage.endswith("of them.") for passage in passages)
    assert all(80 <= len(passage.split()) <= MAX_WORDS for passage in passages[:-1])
    assert sum(passage.count(sentence) for passage in passages) == 40


@pytest.mark.parametrize("text", ["x" * 5_000, "木" * 3_000, "word " * 1_000, "a" * 1_199 + " bb"])
def test_text_without_sentences_is_still_bounded_and_complete(text: str) -> None:
    passages = chunk_text(text)
    assert all(len(passage) <= MAX_CHUNK_CHARS for passage in passages)
    assert "".join("".join(passages).split()) == "".join(text.split())


DOCUMENT = st.lists(
    st.one_of(
        st.sampled_from(["", "# H", "## I", "---", "===", "```", "```dot", "~~~", "- a", "| x |"]),
        st.text(max_size=200),
        st.text(alphabet="ab .", min_size=500, max_size=3_000),
    ),
    max_size=20,
).map("\n".join)


@given(DOCUMENT, st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_text_gives_bounded_passages(text: str, rst: bool) -> None:
    for number, passage in enumerate(chunk_text(text, rst=rst), 1):
        assert passage.strip()
        Chunk(id=f"a.md#{number}", source="a.md", text=passage)


# Folders


def test_the_same_files_give_the_same_corpus_in_any_folder(tmp_path: Path) -> None:
    files = {"b_md": PARAGRAPH, "a_txt": PARAGRAPH, "sub__c_rst": PARAGRAPH, "z_markdown": "z"}
    one = Corpus.from_folder(write(tmp_path / "one", **files))
    two = Corpus.from_folder(write(tmp_path / "two", **dict(reversed(files.items()))))
    assert (one.blob(), one.root, one.cid) == (two.blob(), two.root, two.cid)
    assert [chunk.id for chunk in one.chunks] == [
        "a.txt#1",
        "b.md#1",
        "sub/c.rst#1",
        "z.markdown#1",
    ]
    assert one.cid == cid_of(one.blob())


def test_every_chunk_has_a_proof_under_the_root(tmp_path: Path) -> None:
    corpus = Corpus.from_folder(write(tmp_path, a_md=PARAGRAPH * 10, b_md="end"))
    size = len(corpus.chunks)
    assert size > 3
    for index, leaf in enumerate(corpus.leaves):
        assert verify_merkle(corpus.root, leaf, index, size, corpus.proof(index))
        assert not verify_merkle(corpus.root, leaf + b"x", index, size, corpus.proof(index))


def test_what_is_not_text_is_counted_and_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", ok_md="fine", _hidden__x_md="no", empty_md=" ", x_png="no")
    (folder / ".git").mkdir()
    (folder / ".git" / "y.md").write_text("no")
    (folder / "binary.md").write_bytes(b"\0\xff\xfe\0")
    (folder / "nul.txt").write_bytes(b"a\0b")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "huge.txt").write_bytes(b"a" * (MAX_FILE_BYTES + 1))
    (folder / "wide.txt").write_bytes("sixteen".encode("utf-16"))
    os.mkfifo(folder / "pipe.md")
    (folder / "new\nline.md").write_text("no")
    (folder / "gone.md").symlink_to(folder / "nowhere.md")
    corpus = Corpus.from_folder(folder)
    assert {chunk.text for chunk in corpus.chunks} == {"fine", "sixteen"}
    assert corpus.skipped == {
        "other type": 1,
        "empty": 1,
        "binary": 2,
        "not UTF-8": 1,
        "too large": 1,
        "unreadable": 2,
        "unusable name": 1,
    }


def test_links_are_followed_only_inside_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a_md="inside")
    secret = write(tmp_path / "out", secret_md="outside") / "secret.md"
    (folder / "leak.md").symlink_to(secret)
    (folder / "leaks").symlink_to(secret.parent)
    (folder / "loop").symlink_to(folder)
    (folder / "again.md").symlink_to(folder / "a.md")
    corpus = Corpus.from_folder(folder)
    assert [chunk.id for chunk in corpus.chunks] == ["a.md#1", "again.md#1"]
    assert corpus.skipped == {"link out of the folder": 1}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "does not exist"),
        ({}, "is empty"),
        (
            {"a_png": "x"},
            "no readable text in .md, .markdown, .txt, .rst files (found: 1 other type)",
        ),
        ({"a_md": " \n"}, "1 empty"),
    ],
)
def test_a_folder_without_text_is_one_clear_sentence(
    tmp_path: Path, files: dict[str, str] | None, says: str
) -> None:
    folder = tmp_path / "corpus"
    if files is not None:
        folder.mkdir()
        write(folder, **files)
    with pytest.raises(CorpusError, match="corpus folder") as caught:
        Corpus.from_folder(folder)
    assert says in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not a folder"):
        Corpus.from_folder(write(tmp_path, a_md="x") / "a.md")


def test_a_corpus_over_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daifi_flows.corpus.MAX_CHUNKS", 2)
    write(tmp_path, a_md="a", b_md="b", c_md="c")
    with pytest.raises(CorpusError, match="choose a smaller folder"):
        Corpus.from_folder(tmp_path)


# A stranger's bytes


def plain(*chunks: tuple[object, object, object]) -> list[dict[str, object]]:
    return [{"id": i, "source": s, "text": t} for i, s, t in chunks]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "text",
        [1],
        plain(("a#1", "a", "")),
        plain(("a#2", "a", "x")),
        plain(("b#1", "a", "x")),
        plain(("a#01", "a", "x")),
        plain(("a#1", "a", "x"), ("a#1", "a", "y")),
        plain(("a#2", "a", "x"), ("a#1", "a", "y")),
        plain(("b#1", "b", "x"), ("a#1", "a", "y")),
        plain(("a#1", "a", "x"), ("b#1", "b", "y"), ("a#2", "a", "z")),
        plain(("a#1", "a", b"bytes")),
        plain(("a#1", "a", "x" * 10_000)),
        plain(("s" * 300 + "#1", "s" * 300, "x")),
        [{"id": "a#1", "source": "a", "text": "x", "more": 1}],
        [{"id": "a#1", "source": "a"}],
    ],
)
def test_malformed_blobs_are_refused(value: object) -> None:
    with pytest.raises(EncodingError):
        Corpus.from_blob(canonical(value))


CORPUS = Corpus(
    tuple(
        Chunk(id=f"{source}#{number}", source=source, text=f"{source} says {number}")
        for source in ("a.md", "b.md")
        for number in (1, 2)
    )
)


def test_a_blob_comes_back_the_same() -> None:
    assert Corpus.from_blob(CORPUS.blob()) == CORPUS


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        corpus = Corpus.from_blob(data)
    except EncodingError:
        return
    assert corpus.blob() == data


@given(st.integers(0, len(CORPUS.blob()) - 1), st.integers(1, 255))
def test_a_changed_byte_is_another_corpus_or_none(position: int, flip: int) -> None:
    data = bytearray(CORPUS.blob())
    data[position] ^= flip
    try:
        corpus = Corpus.from_blob(bytes(data))
    except EncodingError:
        return
    assert corpus.root != CORPUS.root and corpus.cid != CORPUS.cid


def test_reading_a_corpus_imports_nothing_heavy() -> None:
    code = (
        "import sys, daifi_flows.corpus\n"
        "heavy = {'torch', 'ray', 'lancedb', 'transformers', 'prefect', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

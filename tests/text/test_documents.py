"""What is read as a text, and how it is cut into segments."""

import io
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from msrnn_jax.evaluation.segments import cut_documents
from msrnn_jax.text.documents import Document, default_text, read_documents
from msrnn_jax.text.tokenizer import Tokenizer


def characters(special: bool = False) -> Tokenizer:
    """One token a character of the low planes, with marks around the text if asked for."""
    alphabet = [chr(code) for code in range(0x20, 0x200)] + ["日", "本", "😀", "\n"]
    vocabulary = {token: number for number, token in enumerate(["?", "<s>", "</s>", *alphabet])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["<s>", "</s>"])
    if special:
        around = [("<s>", 1), ("</s>", 2)]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    return Tokenizer(backend, bos=None, stop=[], template=None)


def test_files_folders_rows_and_stdin_are_documents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books" / "deep").mkdir(parents=True)
    (tmp_path / "books" / "b.txt").write_bytes(b"two\r\nlines")
    (tmp_path / "books" / "a.jsonl").write_text('{"text": "row\\u2028one", "body": 3}\n\n{"text": "row three"}\n')
    (tmp_path / "books" / "deep" / "c.txt").write_text("")  # nothing in it: skipped later, when it has no tokens
    (tmp_path / "books" / "notes.md").write_text("not a text")
    (tmp_path / "alone.md").write_text("any suffix, where it is named")
    stdin = SimpleNamespace(buffer=io.BytesIO("from sé".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert read_documents(["alone.md", "books", "-"]) == [
        Document("alone.md", "any suffix, where it is named"),
        Document("books/a.jsonl:1", "row\u2028one"),
        Document("books/a.jsonl:3", "row three"),
        Document("books/b.txt", "two\nlines"),
        Document("books/deep/c.txt", ""),
        Document("-", "from sé"),
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "here"}) + "\n")
    assert read_documents(["rows.jsonl"], "body") == [Document("rows.jsonl:1", "here")]
    assert read_documents([]) == [Document("pydoc_data.topics", default_text())]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"text": \n', "text file 'rows.jsonl', line 2 is not JSON: Expecting value"),
        (
            "rows.jsonl",
            b'\n["text"]\n',
            "'rows.jsonl', line 2 is an array of 1; it must be an object",
        ),
        ("rows.jsonl", b'{"body": "a", "id": 1}', "line 1 has no field 'text'; its fields are 'body', 'id'"),
        ("rows.jsonl", b'{"text": 7}', "line 1: field 'text' is 7; it must be text"),
        ("rows.jsonl", b'{"text": "a \\ud83d"}', "line 1 holds '\\ud83d', half of a surrogate pair"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "line 2 is not UTF-8: invalid start byte at byte 10"),
        ("rows.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("rows.jsonl", b"\n \n", "text file 'rows.jsonl' is empty"),
        ("text.txt", b" \n", "text file 'text.txt' is empty"),
        ("folder/text.md", b"a", "text folder 'folder' has no .txt or .jsonl file in it"),
    ],
)
def test_what_is_no_text_is_refused(name, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_documents([name.split("/")[0]])
    assert message in str(caught.value)


def test_standard_input_is_read_once(monkeypatch):
    with pytest.raises(ValueError, match="text '-' is given twice"):
        read_documents(["-", "-"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b" ")))
    with pytest.raises(ValueError, match="standard input is empty"):
        read_documents(["-"])


def test_segments_stay_in_their_document_and_short_ones_are_counted():
    documents = [Document("a", "abcdefghi"), Document("b", "x"), Document("c", "uvw"), Document("d", "")]
    cut = cut_documents(characters(), documents, 4)
    place = [(source.document, source.copy, source.segment_index, source.tokens) for source in cut.sources]
    assert place == [("a", 0, 0, 3), ("a", 0, 1, 3), ("c", 0, 0, 2)]  # a's last token alone has nothing to predict
    twice = cut_documents(characters(), [*documents, documents[2]], 4)
    assert (twice.sources[-1].copy, twice.documents) == (1, 3) and twice.sources[-1][:2] == twice.sources[-2][:2]
    assert cut.tokens.shape == (3, 4) and cut.lengths.tolist() == [4, 4, 3] and not cut.tokens[2, 3]
    assert (cut.skipped, cut.documents, cut.predicted) == (2, 2, 8)
    assert len({source.tokens_sha256 for source in cut.sources}) == 3
    assert cut_documents(characters(), documents[2:], 4096).tokens.shape == (1, 3)  # no wider than the longest
    first = cut_documents(characters(), documents, 4, most=1)
    np.testing.assert_array_equal(first.tokens, cut.tokens[:1])
    assert first.sources == cut.sources[:1] and first.skipped == 0  # nothing after it was looked at
    with pytest.raises(ValueError, match="every document has fewer than 2 tokens; there is nothing to predict"):
        cut_documents(characters(), [documents[1], documents[3]], 4)


@pytest.mark.parametrize("special", [False, True])
def test_bytes_are_those_of_the_predicted_tokens(special):
    """From the end of a segment's first token to that of its last; marks around the text stand for no byte."""
    text = "añ日😀bc本éd"
    cut = cut_documents(characters(special), [Document("x", text)], 3)
    tokens = ["", *text, ""] if special else list(text)
    expected = [
        sum(len(token.encode()) for token in tokens[start + 1 : start + 3]) for start in range(0, len(tokens), 3)
    ]
    assert [source.bytes for source in cut.sources] == expected and expected[-1] == (0 if special else 3)


def test_bos_before_every_segment_takes_no_token_from_it_and_never_stands_twice():
    documents = [Document("x", "abcde"), Document("y", ""), Document("z", "é")]
    for special, end in ((False, []), (True, [2])):
        tokenizer = characters(special)
        tokenizer.bos = 1
        cut = cut_documents(tokenizer, documents, 4, bos_every_segment=True)
        texts = [tokenizer.encode(document.text, special=False) for document in documents]
        expected = [[1, *texts[0][:4]], [1, texts[0][4], *end], *([[1, *end]] if special else []), [1, *texts[2], *end]]
        assert [row[:length].tolist() for row, length in zip(cut.tokens, cut.lengths, strict=True)] == expected
        assert [source.tokens for source in cut.sources] == [len(row) - 1 for row in expected]
        assert [source.bytes for source in cut.sources] == [4, 1, *([0] if special else []), 2]
        assert (cut.bos, cut.skipped) == (1, 0 if special else 1)
        assert cut_documents(tokenizer, documents, 4).bos is None
    tokenizer = characters()
    tokenizer.bos = 1
    with pytest.raises(ValueError, match="every document has fewer than 1 token; there is nothing to predict"):
        cut_documents(tokenizer, documents[1:2], 1, bos_every_segment=True)
    with pytest.raises(ValueError, match="bos_every_segment is given, but the tokenizer has no BOS token"):
        cut_documents(characters(), documents, 4, bos_every_segment=True)


def test_of_many_documents_those_that_cannot_be_read_are_told_and_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("one")
    (tmp_path / "books" / "b.txt").write_bytes(b"\xff")
    (tmp_path / "books" / "c.jsonl").write_bytes(b'{"text": "two"}\n{"body": 1}\n{"text": "three"}\n')
    told = []
    found = read_documents(["books"], unreadable=told.append)
    assert [document.text for document in found] == ["one", "two", "three"]
    assert [document.name for document in found] == ["books/a.txt", "books/c.jsonl:1", "books/c.jsonl:3"]
    assert "books/b.txt' is not UTF-8" in told[0] and "books/c.jsonl', line 2 has no field 'text'" in told[1]
    assert len(told) == 2
    with pytest.raises(ValueError, match="b.txt' is not UTF-8"):
        read_documents(["books"])
    with pytest.raises(ValueError, match="b.txt' is not UTF-8"):  # what is named itself is meant
        read_documents(["books/b.txt"], unreadable=told.append)
    (tmp_path / "books" / "d.txt").symlink_to(tmp_path / "none")
    (tmp_path / "books" / "e.txt").symlink_to("a.txt")
    os.mkfifo(tmp_path / "books" / "f.txt")
    (tmp_path / "books" / "g.jsonl").write_text(" \n")
    (tmp_path / "books" / "h.txt").mkdir()
    more = []
    assert read_documents(["books"], unreadable=more.append) == found
    assert [problem.replace("text file ", "") for problem in more if problem not in told] == [
        "'books/d.txt' does not exist",
        "'books/e.txt' is read already, as 'books/a.txt'; it counts once",
        "'books/f.txt' is not a file",
        "'books/g.jsonl' is empty",
    ]
    for twice in (["books/a.txt", "books/a.txt"], ["books", "books/../books/a.txt"], ["books/e.txt", "books/a.txt"]):
        with pytest.raises(ValueError, match="a.txt' is read already, as 'books/[ae].txt'; it counts once"):
            read_documents(twice, unreadable=told.append)
    (tmp_path / "rows.jsonl").write_text("1\n2\n")
    with pytest.raises(ValueError, match="there is nothing to read: text file 'rows.jsonl', line 1"):
        read_documents(["rows.jsonl"], unreadable=told.append)

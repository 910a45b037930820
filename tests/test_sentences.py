"""No code reads meaning out of a sentence: what a sentence says is a value, such as ``EndReason``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What holds a sentence, by its name; a plural holds several.
NAMES = {"reason", "note", "warning", "problem", "remark", "why", "error", "detail"}
READERS = {"startswith", "endswith", "partition", "rpartition", "removeprefix", "removesuffix"}
PATTERNS = {"match", "search", "fullmatch", "findall", "finditer"}
# Sentences of this house that are still taken apart, by what takes them apart; none is added.
LEFT = {
    "raybone/storage.py": "what S3's client says, which has no other form",
    "raybone/study/files.py": "problems that pydantic carries as one text",
}


def name_of(node: ast.expr) -> str:
    """The last name of an expression: ``a.b["reason"]``, ``c.reason`` and ``str(reason)`` are
    reasons.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
        return name_of(node.args[0]) if node.args else ""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def read_sentences(source: str) -> list[int]:
    """Lines where a sentence is compared with words, searched or taken apart."""
    tree, lines = ast.parse(source), []
    loops = [n for n in ast.walk(tree) if isinstance(n, ast.For | ast.comprehension)]
    items = {name_of(n.target) for n in loops if name_of(n.iter) in {f"{n}s" for n in NAMES}}
    sentences = (NAMES | items) - {""}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            within = isinstance(node.ops[0], ast.In | ast.NotIn)
            asked = sides[1:] if within else sides
            words = within or any(isinstance(s, ast.Constant) and s.value for s in sides)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked, method = [node.func.value], node.func.attr
            words = method in READERS or (method == "split" and bool(node.args))
            if method in PATTERNS:
                asked, words = node.args, True
        else:
            continue
        if words and any(name_of(side) in sentences for side in asked):
            lines.append(node.lineno)
    return lines


def test_what_a_sentence_says_is_never_read_from_it() -> None:
    files = [*ROOT.glob("raybone/**/*.py"), *ROOT.glob("jobs/**/*.py")]
    readers = {str(p.relative_to(ROOT)) for p in files if read_sentences(p.read_text())}
    assert readers == LEFT.keys()


@pytest.mark.parametrize(
    "source",
    [
        "if reason.startswith(ENDS): end()",
        'failed = end.reason == "complete"',
        'without = sum("Error" in note for frame in frames for note in frame.notes)',
        'kept = [w for w in meta["warnings"] if UNKNOWN not in w]',
        'gone = "No space left" in str(error)',
        're.fullmatch("[0-9]+ x .*", warning)',
        'scan = event["reason"].split(": ")[0]',
    ],
)
def test_a_sentence_that_is_read_is_seen(source: str) -> None:
    assert read_sentences(source) == [1]


@pytest.mark.parametrize(
    "source",
    [
        'if reason.kind == "complete": end()',
        'told = " ".join(reason.split())',
        "new = [w for w in warnings if w not in known]",
        'raise RunFailed(f"{reason}; start again") if reason else error',
    ],
)
def test_a_sentence_that_is_shown_is_none_of_them(source: str) -> None:
    assert read_sentences(source) == []

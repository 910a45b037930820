"""Rules over hyper-parameters: expressions such as ``imgsz > 800 and batch >= 32``, checked before
they are used.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from simpleeval import DEFAULT_OPERATORS, InvalidExpression, SimpleEval

from raybone.errors import WrongInput

LENGTH = 200  # characters: what is longer nests deeper than an evaluator can follow
COMBINATIONS = 10_000  # of types of parameters, each of which is tried
_LOGIC = (ast.BoolOp, ast.And, ast.Or, ast.Not, ast.UnaryOp, ast.USub)
_LEAVES = (
    ast.Compare,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.In,
    ast.NotIn,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.Name,
    ast.Load,
    ast.Constant,
)
# On text, % would format it, to any length.
_OPERATORS = {**DEFAULT_OPERATORS, ast.Mod: lambda a, b: divmod(a, b)[1]}
_WRONG = (InvalidExpression, TypeError, ArithmeticError)


def problem_of(rule: str, values: Mapping[str, Sequence[Any]]) -> str:
    """What is wrong with a rule over parameters that take such values, or nothing.

    Args:
        values: some values of every parameter that the rule may name, one of each type at the
            least.
    """
    if len(rule) > LENGTH:
        return f"must have at most {LENGTH} characters, got {len(rule)}; make two rules of it"
    try:
        tree = _tree(rule)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        return f"must be an expression such as 'imgsz > 800 and batch >= 32', but: {why}; mend it"
    for node in ast.walk(tree):
        if not isinstance(node, _LOGIC + _LEAVES):
            got = ast.unparse(node) or type(node).__name__
            return (
                f"may compare parameters with and, or, not, + - * / // % and in, got {got!r}; "
                "write it so"
            )
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod)
            and not (isinstance(node.right, ast.Constant) and node.right.value)
        ):
            return (
                f"may divide by a constant alone, got {ast.unparse(node)!r}; multiply the other "
                "side"
            )
        if isinstance(node, ast.Name) and node.id not in values:
            near = difflib.get_close_matches(node.id, values, n=1)
            known = (
                f"did you mean {near[0]!r}?"
                if near
                else f"known here: {', '.join(values) or 'none'}"
            )
            return f"{node.id!r} is neither searched nor fixed; {known}"
    return _problem_of_types(tree, values)


def names_of(rule: str) -> set[str]:
    """The parameters that a rule names."""
    return {node.id for node in ast.walk(_tree(rule)) if isinstance(node, ast.Name)}


def holds(rule: str, values: Mapping[str, Any]) -> bool:
    """Whether a rule is true of these values; false when a parameter that it names is off.

    Raises:
        WrongInput: it has no value here, such as a product that is too large.

    >>> holds("imgsz > 800 and batch >= 32", {"imgsz": 1024, "batch": 32})
    True
    """
    if not names_of(rule) <= values.keys():
        return False
    try:
        return bool(_value(_tree(rule), values))
    except _WRONG as error:
        raise WrongInput(
            f"search.reject: {rule!r} has no value for {dict(values)}: {error}; change it"
        ) from None


def _problem_of_types(tree: ast.expr, values: Mapping[str, Sequence[Any]]) -> str:
    """Every part that ``and``, ``or`` and ``not`` join must be true or false, whatever the types of
    its parameters.
    """
    if isinstance(tree, ast.BoolOp):
        return next(filter(None, (_problem_of_types(part, values) for part in tree.values)), "")
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not):
        return _problem_of_types(tree.operand, values)
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    by_type = [{type(v): v for v in values[name]}.values() for name in names]
    if math.prod(map(len, by_type)) > COMBINATIONS:
        return (
            f"compares {len(names)} parameters of several types at once; make several rules of it"
        )
    for combination in itertools.product(*by_type):
        given = dict(zip(names, combination))
        try:
            value = _value(tree, given)
        except (*_WRONG, RecursionError) as error:
            return f"has no value for {given}: {error}; change it"
        if not isinstance(value, bool):
            return (
                f"must be true or false, but {ast.unparse(tree)!r} is {value!r} for {given}; "
                "compare it"
            )
    return ""


def _value(tree: ast.expr, values: Mapping[str, Any]) -> Any:
    return SimpleEval(_OPERATORS, {}, dict(values)).eval("", previously_parsed=tree)


@lru_cache(maxsize=256)
def _tree(rule: str) -> ast.expr:
    return ast.parse(rule.strip(), mode="eval").body

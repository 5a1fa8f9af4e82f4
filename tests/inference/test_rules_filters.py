"""The language of conditions and scores: what it means, and that nothing written in it can do harm."""

import os
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrec.core.expressions import MAX_TEXT, parse, parse_list
from polyrec.core.score import Score
from polyrec.inference.rules.filters import TableRows, matching

ROWS = 40
WORDS = ["Horror", "Drama", "it's", "a b"]


def rows(missing):
    """Random rows as dicts; some values are missing."""
    random = np.random.default_rng(7)

    def some(value):
        return None if missing and random.random() < 0.25 else value

    return [
        {
            "price": some(float(random.integers(0, 8)) / 2),
            "year": some(int(random.integers(1990, 2000))),
            "genre": some(str(random.choice(WORDS))),
            "in stock": some(bool(random.integers(2))),
            "tags": some([str(tag) for tag in random.choice(WORDS, random.integers(0, 3))]),
        }
        for _ in range(ROWS)
    ]


TYPES = {"price": pa.float64(), "year": pa.int64(), "genre": pa.string(), "in stock": pa.bool_()}
SCHEMA = pa.schema(TYPES | {"tags": pa.list_(pa.string())})
WITH_MISSING, COMPLETE = rows(True), rows(False)

# ------------------------------------------------- an independent reference: a condition as text and as a function
OPS = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def unless_missing(function, *values):
    return None if any(value is None for value in values) else function(*values)


def both(parts):
    return False if False in parts else None if None in parts else True


def either(parts):
    return True if True in parts else None if None in parts else False


columns = st.sampled_from(["price", "year"]).map(lambda n: (n, lambda row: row[n]))
numbers = columns | st.integers(-3, 2000).map(lambda n: (str(n), lambda row: n))


def computed(parts):
    (left, f), sign, (right, g) = parts
    by = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}[sign]
    return f"({left} {sign} {right})", lambda row: unless_missing(by, f(row), g(row))


values = st.recursive(
    numbers, lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(computed), max_leaves=3
)


def compared(parts):
    (left, f), op, (right, g) = parts
    return f"{left} {op} {right}", lambda row: unless_missing(OPS[op], f(row), g(row))


def word(text):
    return '"' + text + '"' if "'" in text else f"'{text}'"


def among(parts):
    wanted, negated = parts
    text = f"genre {'not ' * negated}in ({', '.join(map(word, wanted))},)"
    return text, lambda row: unless_missing(lambda v: (v in wanted) != negated, row["genre"])


leaves = st.one_of(
    st.tuples(columns, st.sampled_from(list(OPS)), values).map(compared),
    st.tuples(st.sampled_from(list(OPS)), st.sampled_from(WORDS)).map(
        lambda p: (f"genre {p[0]} {word(p[1])}", lambda row: unless_missing(OPS[p[0]], row["genre"], p[1]))
    ),
    st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), st.booleans()).map(among),
)
# What pandas knows no word for, or computes differently (constants).
more = st.one_of(
    st.tuples(values, st.sampled_from(list(OPS)), values).map(compared),
    st.tuples(st.sampled_from(["price", "genre", "tags"]), st.booleans()).map(
        lambda p: (f"{p[0]} is {'not ' * p[1]}null", lambda row: (row[p[0]] is None) != p[1])
    ),
    st.sampled_from(WORDS).map(
        lambda w: (f"{word(w)} in tags", lambda row: unless_missing(lambda v: w in v, row["tags"]))
    ),
    st.just(("`in stock`", lambda row: row["in stock"])),
)


def negated(part):
    return f"not ({part[0]})", lambda row: unless_missing(lambda v: not v, part[1](row))


def joined(parts):
    name, inner = parts
    by = {"and": both, "or": either}[name]
    return f" {name} ".join(f"({text})" for text, _ in inner), lambda row: by([f(row) for _, f in inner])


def trees(leaf):
    return st.recursive(
        leaf,
        lambda inner: (
            inner.map(negated)
            | st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)).map(joined)
        ),
        max_leaves=5,
    )


@settings(max_examples=100, deadline=None)
@given(trees(leaves | more))
def test_conditions_mean_what_plain_python_computes(tree):
    """Prevents a row with a missing value from slipping through `not` or `!=`, and wrong precedence."""
    text, function = tree
    found = matching(text, TableRows(pa.Table.from_pylist(WITH_MISSING, SCHEMA)))
    assert found.tolist() == [function(row) is True for row in WITH_MISSING], text


@settings(max_examples=40, deadline=None)
@given(trees(leaves))
def test_conditions_mean_what_pandas_computes(tree):
    """Prevents a language of its own from meaning something else than the one users know."""
    text, _ = tree
    frame = pd.DataFrame(COMPLETE)
    expected = frame.eval(text, engine="python")
    found = matching(text, TableRows(pa.Table.from_pylist(COMPLETE, SCHEMA)))
    assert found.tolist() == np.broadcast_to(expected, ROWS).tolist(), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 < x < 3", [False, True, False, False]),
        ("x = 2 OR x <> 2", [True, True, True, False]),
        ("-x^2 == -4 and x**2 = 4", [False, True, False, False]),
        ("1 - x - 1 == -x and 8 / x / 2 >= 2", [True, True, False, False]),
        ("x / (x - 1) >= 0", [False, True, True, False]),  # divided by 0: not known
        ("x is null", [False, False, False, True]),
        ("big == 9007199254740993", [False, True, False, False]),  # beyond what fractions tell apart
        ("big in (9007199254740993, 1)", [False, True, False, False]),
        ("day >= '1970-01-02'", [False, True, True, False]),
        ("seen > '1970-01-01T00:00:00.5+00:00'", [False, True, True, False]),
        ("'b' in name", [True, True, False, False]),  # part of a text
        ("name == 'it''s'", [False, False, True, False]),
        ("`the size` == 0.5", [True, False, False, False]),
        ("true and not false", [True] * 4),
        ("flag == false", [False, True, False, False]),
    ],
)
def test_conditions(text, expected):
    """Prevents one reading of a rare form from turning into another."""
    table = pa.table(
        {
            "x": [1, 2, 3, None],
            "big": [9007199254740992, 9007199254740993, 3, None],
            "day": pa.array([0, 1, 2, None], pa.date32()),
            "seen": pa.array([0, 1, 2, None], pa.timestamp("s")),
            "name": pa.array(["ab", "b", "it's", None]).dictionary_encode(),
            "the size": pa.array([0.5, float("nan"), 2, None]),
            "flag": [True, False, True, None],
        }
    )
    assert matching(text, TableRows(table)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prise <= 20", r"no column 'prise'; did you mean 'price'\?"),
        ("price <= '20'", r"price \(number\) cannot be compared with '20' \(text\)"),
        ("genre == 3", "texts stand in quotes"),
        ("tags == 'Horror'", "tags holds lists: write 'Horror' in tags"),
        ("tags in ('Horror', 'a')", "tags holds lists: write 'Horror' in tags"),
        ("price", r"price is no condition: compare it, e.g. price == 0"),
        ("price == null", "write price is null"),
        ("genre + 1 > 2", "genre is text; only numbers"),
        ("price > 1 & year > 2", "'&' at character 11: write and"),
        ("price > 1, year > 2", "comma outside of brackets"),
        ("price >", "a value is missing at its end"),
        ("price > 1 year", "'year' at character 11 is not expected"),
        ("price > 'x", "close the quote"),
        ("price in ()", "at least one"),
        ("price in (1, year)", "a list must hold numbers or texts"),
        ("price is 3", "must be null or not null"),
        ("(" * 100 + "1" + ")" * 100, "nested more than 40 deep"),
        ("price > 1e999", "too large"),
        ("1 in price", "holds no lists"),
        ("`in stock` > true", "compare it by == or !="),
        ("x" * (MAX_TEXT + 1), "4,001 characters"),
    ],
)
def test_mistakes_name_the_column_and_the_fix(text, message):
    """Prevents a mistyped condition from matching nothing, or everything, without a word."""
    with pytest.raises(ValueError, match=message):
        matching(text, TableRows(pa.Table.from_pylist(COMPLETE, SCHEMA)))


HARMFUL = [
    "__import__('os').system('touch harm')",
    "().__class__.__bases__[0].__subclasses__()",
    "price.__class__ == 1",
    "(lambda: 1)()",
    "[x for x in (1,)] == 1",
    "open('harm', 'w')",
    "price if 1 else 2",
    "f'{price}' == ''",
    "9**9**9**9 > price",
    "@price > 1",
    "price := 3",
    "exec('1')",
    "price; drop",
    "\x00",
    "-" * 3000 + "1 > 0",
    "not " * 900 + "true",
    " and ".join(["true"] * 400),
    "+".join(["1"] * 1900) + ">0",
    "1" * 3000 + " > 0",
]
PIECES = [
    "price",
    "genre",
    "tags",
    "`in stock`",
    "and",
    "or",
    "not",
    "in",
    "is",
    "null",
    "true",
    "(",
    ")",
    "[",
    "]",
    ",",
]
PIECES += [
    "<",
    "==",
    "!=",
    "=",
    "+",
    "-",
    "*",
    "/",
    "^",
    "**",
    "1",
    "0.5",
    "1e9",
    "'a'",
    '"b"',
    "__import__",
    ".",
    "\\",
]
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))


@settings(max_examples=300, deadline=None)
@given(texts)
def test_fuzzed_expressions_raise_nothing_but_value_errors(text):
    """Prevents a stranger's condition from ending a server, or from running anything."""
    check_harmless(text)


@pytest.mark.parametrize("text", HARMFUL)
def test_expressions_execute_nothing(text, tmp_path, monkeypatch):
    """Prevents code from being evaluated, and texts that exhaust the parser from raising what nobody catches."""
    monkeypatch.chdir(tmp_path)
    check_harmless(text)
    assert os.listdir() == []


def check_harmless(text):
    """Whatever is read of a text, or a ValueError of one line."""
    table = TableRows(pa.Table.from_pylist(WITH_MISSING, SCHEMA))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (lambda: matching(text, table), lambda: parse_list(text), lambda: Score.parse(text)):
            message = message_of(read)
            assert len(message) < 600
            assert "\n" not in message


def message_of(read):
    """What a ValueError says; other errors are raised."""
    try:
        read()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "weights", "product", "conditions"),
    [
        ("like", {"like": 1}, False, 0),
        ("0.3*next_item + 2*like", {"next_item": 0.3, "like": 2}, False, 0),
        ("-(like - rating / 2) + like*3", {"like": 2, "rating": 0.5}, False, 0),
        ("like^2 * watch_time", {"like": 2, "watch_time": 1}, True, 0),
        ("(like * watch)^0.5 / price^2", {"like": 0.5, "watch": 0.5, "price": -2}, True, 0),
        ("like >= 0.2", {}, False, 1),
        ("next_item, like >= 0.2 and rating > 3, not watch < 1", {"next_item": 1}, False, 2),
    ],
)
def test_scores(text, weights, product, conditions):
    """Prevents a weight from being lost, or a product from being read as a sum."""
    found = Score.parse(text)
    assert (found.weights, found.product, len(found.conditions)) == (weights, product, conditions)


@pytest.mark.parametrize(
    "text",
    ["", "3", "like, rating", "like * rating + watch", "like + 1", "like^rating", "-1 * like * watch", "like / 0"],
)
def test_scores_that_rank_nothing_are_refused(text):
    """Prevents a score from being ranked by something else than what is written."""
    with pytest.raises(ValueError, match="cannot read"):
        Score.parse(text)


def test_trees_are_kept():
    """Prevents a condition from being parsed anew for each request."""
    assert parse("price <= 20") is parse("price <= 20")

"""What `fuzz.py` throws: each case is a function to call and a line that says what it is.

A case raises `Silent` where polyrec accepts an input and answers as if it were another one.
"""

from __future__ import annotations

import contextlib
import copy
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.cli.main import main as polyrec
from polyrec.runs.prepare import prepare
from polyrec.runs.recipe import load_recipe
from polyrec.runs.train import build_trainer

Case = tuple[Callable[[], None], str]
TASKS = [
    {"name": "next_item", "head": "retrieval"},
    {"name": "like", "head": "binary", "label": "rating >= 4"},
    {"name": "stars", "head": "regression", "label": "rating"},
]
ODD: list[Any] = [
    None, True, False, -1, 0, 1.5, 10**9, 10**30, float("nan"), float("inf"), "", "no", "yes", "1e-3", "nan",
    "nope", " x ", "a" * 5000, [], {}, [1], ["nope"], [None], {"a": 1}, {"nope": None}, [[1, 2], [3]],
    "../../x", "\x1b[31m", "é\u202e",
]  # fmt: skip
COMMANDS = (
    "train",
    "evaluate",
    "recommend",
    "explain",
    "card",
    "report",
    "compare",
    "tune",
    "update",
    "score",
    "quantize",
)

SETTINGS = (
    "training.learning_rate", "training.lr", "model.hidden_size", "split.by", "processor.statistics", "model.auto_map",
    "tasks.like.weight", "columns.context", "output", "slices", "x",
)  # fmt: skip


class Silent(Exception):
    """An input was accepted as something that it does not say."""


class Refused(Exception):
    """A command said what is wrong and ended with status 2."""


class World:
    """Tables, a recipe, and a trained run with its answers, made once.

    Args:
        folder: an empty one, for all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = pd.DataFrame(
            [
                (f"u{user}", f"i{(user * 7 + n * (1 + user % 3)) % 20:02}", 1_600_000_000 + 86_400 * n + 60 * user,
                 1 + (user + n * n) % 5, ("home", "search")[n % 2])
                for user in range(24) for n in range(8)
            ],
            columns=["user_id", "item_id", "timestamp", "rating", "surface"],
        )  # fmt: skip
        self.items = pd.DataFrame(
            {
                "item_id": [f"i{n:02}" for n in range(20)],
                "title": [f"Film {n}" for n in range(20)],
                "genre": [("Drama", "Comedy", "Crime")[n % 3] for n in range(20)],
                "price": [n / 2 for n in range(20)],
            }
        )
        self.users = pd.DataFrame({"user_id": [f"u{n}" for n in range(24)], "age": [20.0 + n for n in range(24)]})
        for name in ("log", "items", "users"):
            getattr(self, name).to_parquet(folder / f"{name}.parquet")
        self.recipe: dict[str, Any] = {
            "interactions": str(folder / "log.parquet"),
            "items": str(folder / "items.parquet"),
            "users": str(folder / "users.parquet"),
            "tasks": TASKS,
            "columns": {
                "context": ["surface"], "item_features": {"genre": "categorical", "price": "numeric"}, "title": "title",
            },
            "split": {"by": "time", "fractions": [0.8, 0.1, 0.1], "shuffle_ties": True, "max_delay": 0.0},
            "processor": {"max_history": 8, "ties": "strict", "statistics": True},
            "model": {
                "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                "candidate_attention_heads": 2,
                "experts": "mmoe", "expert_options": {}, "weighting": "uncertainty", "dropout": 0.1,
                "item_id_dropout": 0.1,
            },
            "training": {
                "max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 0.003, "weight_decay": 0.0,
                "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "dataloader_num_workers": 0,
                "warmup_steps": 0, "seed": 0,
            },
            "slices": ["genre"],
            "card": {"license": "mit"},
            "early_stopping_patience": 0,
            "output": str(folder / "run"),
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(yaml.safe_dump(self.recipe), encoding="utf-8")
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if polyrec(["train", str(folder / "recipe.yaml")]) != 0:
                raise RuntimeError(f"the tiny run cannot be trained: {said.getvalue()[-500:]}")
        self.run = folder / "run"
        self.processor = PolyRecProcessor.from_pretrained(self.run)
        self.model = PolyRecForRecommendation.from_pretrained(self.run)
        self.answers = answers(self.run)


def answers(run: Path) -> list[Any]:
    """What a run recommends to a few users."""
    processor, model = PolyRecProcessor.from_pretrained(run), PolyRecForRecommendation.from_pretrained(run)
    asked = [None, ["i01"], [{"item_id": "i03", "rating": 5.0, "surface": "home"}, {"item_id": "i07", "rating": 1.0}]]
    return [model.recommend(processor, history, k=20, user={"age": 30.0}) for history in asked]


def of(kind: int, number: int) -> np.random.Generator:
    """The chances of one case."""
    return np.random.default_rng([kind, number])


def pick(random: np.random.Generator, values: Any) -> Any:
    """One of some values, of their own types."""
    return values[int(random.integers(len(values)))]


# ---------------------------------------------------------------- tables
def _csv(**options: Any) -> Callable[[pd.DataFrame, Path], Any]:
    def write(table: pd.DataFrame, folder: Path) -> Any:
        table.to_csv(folder / "t.csv", index=False, **options)
        return folder / "t.csv"

    return write


def _parts(table: pd.DataFrame, folder: Path) -> Any:
    shutil.rmtree(folder / "parts", ignore_errors=True)
    (folder / "parts").mkdir(parents=True)
    for n in range(3):
        table.iloc[n::3].to_parquet(folder / "parts" / f"part-{n}.parquet")
    return folder / "parts"


def _reader(table: pd.DataFrame, folder: Path) -> Any:
    return pa.Table.from_pandas(table, preserve_index=False).to_reader()


FORMS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": _csv(),
    "csv ;": _csv(sep=";"),
    "csv tab": _csv(sep="\t"),
    "csv latin-1": _csv(encoding="latin-1"),
    "csv bom": _csv(encoding="utf-8-sig"),
    "csv quoted": _csv(quoting=1),
    "csv crlf": _csv(lineterminator="\r\n"),
    "pandas": lambda table, folder: table,
    "pandas categories": lambda table, folder: table.astype({"user_id": "category", "item_id": "category"}),
    "pandas shuffled": lambda table, folder: table.sample(frac=1.0, random_state=1),
    "arrow": lambda table, folder: pa.Table.from_pandas(table),
    "arrow reader": _reader,
    "parquet parts": _parts,
    "dict of arrays": lambda table, folder: {name: table[name].to_numpy() for name in table},
    "dict of lists": lambda table, folder: {name: table[name].tolist() for name in table},
}
TIMES: dict[str, Callable[[pd.Series], Any]] = {
    "seconds": lambda seconds: seconds,
    "floats": lambda seconds: seconds.astype(float),
    "timestamps": lambda seconds: pd.to_datetime(seconds, unit="s"),
    "with a zone": lambda seconds: pd.to_datetime(seconds, unit="s", utc=True).dt.tz_convert("Asia/Tokyo"),
    "iso": lambda seconds: pd.to_datetime(seconds, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%S"),
    "iso blank": lambda seconds: pd.to_datetime(seconds, unit="s").astype(str),
}
IDS: dict[str, Callable[[pd.Series], Any]] = {
    "text": lambda ids: ids,
    "zeros": lambda ids: "00" + ids.str[1:],
    "umlauts": lambda ids: "ü" + ids,
    "isbn": lambda ids: "0" + ids.str[1:] + "X",
    "twins": lambda ids: ids.str[1:].astype(int).map(lambda n: "0" * (n % 3) + str(n // 3 + 1)),  # 1, 01, 001, 2 ...
    "line break": lambda ids: ids + "\nx",
    "separators": lambda ids: ids + ',;"\t',
}


def table_case(world: World, number: int) -> Case:
    """An event log in another form, which must be read as the same events; or a damaged one."""
    random = of(1, number)
    log, items, users = world.log.copy(), world.items.copy(), world.users.copy()
    form, clock, naming = (pick(random, list(choices)) for choices in (FORMS, TIMES, IDS))
    log["timestamp"] = TIMES[clock](log["timestamp"])
    for key, attributes in (("item_id", items), ("user_id", users)):
        log[key], attributes[key] = IDS[naming](log[key]), IDS[naming](attributes[key])
    damage = _damage(random, log) if number % 2 else None
    about = f"{form}, times {clock}, ids {naming}" + (f", {damage[1]}" if damage else "")

    def check() -> None:
        table = log if damage is None else damage[0]
        folder = world.folder / "tables"
        folder.mkdir(exist_ok=True)
        try:
            given = FORMS[form](table, folder)
        except Exception:  # pandas or Arrow cannot even write this one
            return
        processor = PolyRecProcessor.fit(
            given, items, users, tasks=TASKS, columns={"context": ["surface"]} if "surface" in table else {}
        )
        given = FORMS[form](table, folder)  # a reader is read once
        events = processor.encode_events(given)
        by = pick(random, ["time", "leave_one_out"])
        parts = processor.split(FORMS[form](table, folder), by=by)
        for part in parts:
            if len(part):
                part[0]
        _same_events(processor, events, world, log, damaged=damage is not None, rows=len(table))

    return check, about


def _same_events(
    processor: PolyRecProcessor, events: Any, world: World, log: pd.DataFrame, damaged: bool, rows: int
) -> None:
    if len(events) != rows:
        raise Silent(f"{len(events)} events of {rows} rows")
    if not np.isfinite(events.time).all():
        raise Silent("times that are not finite")
    if damaged:
        return
    ids = np.array([None, None, *processor.items.ids.to_pylist()], dtype=object)
    found = pd.DataFrame(
        {
            "user": np.array(events.user_ids.to_pylist(), dtype=object)[events.user],
            "item": ids[events.item],
            "time": events.time,
            "like": events.labels[:, 1],
            "age": events.user_features["age"][events.user],
        }
    )
    right = pd.DataFrame(
        {"user": log["user_id"], "item": log["item_id"], "time": world.log["timestamp"].astype(float)}
    ).assign(like=(world.log["rating"] >= 4).astype("float32"))
    order = ["time", "user"]
    found, right = (events.sort_values(order).reset_index(drop=True) for events in (found, right))
    if found["age"].isna().any():
        raise Silent("users of the log are not found in their table")
    if not found[list(right)].equals(right):
        raise Silent("other events than the table holds")


LISTS: dict[str, Callable[[list[str]], Any]] = {
    "lists": list,
    "arrays": lambda ids: np.array(ids, dtype=object),
    "blanks": " ".join,
    "commas": ",".join,
    "bars": "|".join,
    "as Python writes them": str,
}


def list_case(world: World, number: int) -> Case:
    """Rows that each list what was before them, in some writing, which must be read as these lists; or damaged ones."""
    random = of(6, number)
    writing = pick(random, list(LISTS))
    before = [
        world.log["item_id"][begin:row].tolist()
        for begin, end in ((n, n + 8) for n in range(0, len(world.log), 8))
        for row in range(begin, end)
    ]
    rows = world.log.drop(columns=["timestamp", "surface"]).assign(before=[LISTS[writing](ids) for ids in before])
    damage = _damage(random, rows) if number % 2 else None
    about = writing + (f", {damage[1]}" if damage else "")

    def check() -> None:
        table = rows if damage is None else damage[0]
        columns = {"history": "before", "time": None, **({} if number % 4 < 2 else {"user": "__row__"})}
        processor = PolyRecProcessor.fit(table, tasks=TASKS, columns=columns)
        parts = processor.split(table)
        for part in parts:
            if len(part):
                part[0]
        if damage is not None:
            return
        ids = np.array([None, None, *processor.items.ids.to_pylist()], dtype=object)
        log = parts.train.log
        events = np.split(ids[log.item], log.offsets[1:-1])
        found = {int(log.row[begin]): each.tolist() for begin, each in zip(log.offsets, events, strict=False)}
        right = {row: [*listed, item] for row, (listed, item) in enumerate(zip(before, rows["item_id"], strict=True))}
        if found != right:
            raise Silent("other lists than the table holds")

    return check, about


def _damage(random: np.random.Generator, log: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A log with something odd in it."""
    name = pick(random, list(log))
    rows = random.choice(len(log), size=int(random.integers(1, 6)), replace=False)
    what = pick(
        random, ["cells", "column", "dropped", "renamed", "constant", "few rows", "doubled", "empty", "bytes", "nested"]
    )
    if what == "cells":
        value = pick(random, [*ODD, 20230131, "20230131", b"x", "007", "3.0", "NA", "<NA>", "2023-13-45", -5.0, 2**63])
        values = log[name].astype(object)
        for row in rows:
            values.iloc[row] = copy.deepcopy(value)
        return log.assign(**{name: values}), f"{name} {value!r:.40} in rows {rows.tolist()}"
    value = pick(random, ODD)
    changed = {
        "column": lambda: log.assign(**{name: [copy.deepcopy(value)] * len(log)}),
        "dropped": lambda: log.drop(columns=name),
        "renamed": lambda: log.rename(columns={name: f" {name.upper()}"}),
        "constant": lambda: log.assign(**{name: [log[name].iloc[0]] * len(log)}),
        "few rows": lambda: log.head(int(random.integers(0, 4))),
        "doubled": lambda: pd.concat([log, log]),
        "empty": lambda: log.assign(**{name: pd.Series([None] * len(log), dtype=object)}),
        "bytes": lambda: log.assign(**{name: log[name].astype(str).str.encode("utf-8")}),
        "nested": lambda: log.assign(**{name: [[v] for v in log[name]]}),
    }[what]()
    return changed, f"{name} {what} {value!r:.40}" if what == "column" else f"{name} {what}"


# --------------------------------------------------------------- recipes
def recipe_case(world: World, number: int) -> Case:
    """A recipe with one key changed, removed or misspelt."""
    random = of(2, number)
    values = copy.deepcopy(world.recipe) | {"output": str(world.folder / f"out-{number}")}
    own_names = values["columns"]["item_features"]
    place, key = pick(random, [*_places(values)])
    what = pick(random, ["odd", "odd", "odd", "misspelt", "removed"])
    value = pick(random, ODD)
    if what == "odd":
        place[key] = value
    elif what == "removed":
        place.pop(key)
    elif isinstance(place, dict):
        place[f"{key}x"] = place.pop(key)

    free = place is own_names or what != "misspelt" or isinstance(place, list)

    def check() -> None:
        path = world.folder / "fuzzed.yaml"
        path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        with contextlib.chdir(_own(world.folder)):  # a folder that is not the project's, for an output of any name
            recipe = load_recipe(str(path), {})
            recipe.check()
            processor, parts = prepare(recipe)
            trainer = build_trainer(recipe, processor, parts.train, parts.valid, quiet=True)
            if trainer.args.max_steps == 1:
                trainer.train()
        if not free:
            raise Silent(f"the unknown key {key}x is ignored")

    return check, f"{key} {what}" + (f" {value!r:.60}" if what == "odd" else "")


def _places(values: Any) -> Any:
    """Every entry of nested lists and mappings, as (container, key)."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield values, key
        if isinstance(value, dict | list):
            yield from _places(value)


# -------------------------------------------------------------- requests
def request_case(world: World, number: int) -> Case:
    """A request with something odd in it."""
    random = of(3, number)
    event: dict[str, Any] = {"item_id": "i03", "rating": 4.0, "timestamp": 1_600_900_000, "surface": "home"}
    request: dict[str, Any] = {
        "history": ["i01", "i02"] if number % 3 else [event, {**event, "item_id": "i05", "timestamp": 1_600_900_001}],
        "k": 5,
        "user": {"age": 30.0},
        "context": {"surface": "home"},
    }
    value, unknown = pick(random, ODD), False
    what = pick(random, ["argument", "entry", "event value", "unknown"])
    if what == "argument":
        key = pick(random, ["history", "k", "user", "context", "time", "task", "exclude_seen"])
        request[key] = value
    elif what == "entry":
        key = "history"
        request["history"] = [*request["history"], value]
    elif what == "event value":
        key = pick(random, list(event))
        request["history"] = [{**event, key: value}]
    else:
        unknown, value = True, 5.0
        key = pick(random, ["user", "context", "history"])
        request[key] = [{"item_id": "i03", "ratng": value}] if key == "history" else {"ratng": value}

    def check() -> None:
        found = world.model.recommend(world.processor, **request)
        if unknown:
            raise Silent(f"the unknown entry 'ratng' of {key} is ignored")
        if len(found) > max(int(request["k"]), 0) or not all(np.isfinite(row["score"]) for row in found):
            raise Silent(f"{len(found)} rows for k = {request['k']}, or scores that are no numbers")

    return check, f"{what} {key} {value!r:.60}"


# ----------------------------------------------------------------- flags
def flag_case(world: World, number: int) -> Case:
    """A command line with something odd in it."""
    random = of(4, number)
    odd = str(pick(random, ODD)).replace("\0", "")
    run, recipe = str(world.run), str(world.folder / "recipe.yaml")
    command = pick(random, COMMANDS)
    setting = pick(random, SETTINGS)
    lines: list[list[str]] = [
        [command, odd],
        ["recommend", run, "--history", odd],
        ["recommend", run, "-k", odd],
        ["recommend", run, "--user", f"age={odd}"],
        ["recommend", run, "--user", odd],
        ["explain", run, "--history", odd],
        ["evaluate", run, "--output", odd or "x"],
        ["card", odd],
        ["train", recipe, "--set", f"{setting}={odd}", "--set", f"output={world.folder / 'flagged'}"],
        ["train", recipe, "--output", str(world.folder / "log.parquet")],
        ["train", recipe, "--task", odd],
        ["train", odd, "--interactions", odd],
        ["update", run, "--new", odd],
        [command, run, f"--{odd}"],
    ]
    line = pick(random, lines)

    def check() -> None:
        output, errors = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            contextlib.chdir(_own(world.folder)),
        ):
            try:
                code = polyrec(line)
            except SystemExit as stop:  # argparse
                code = stop.code if isinstance(stop.code, int) else 1
        said = errors.getvalue()
        if "Traceback" in said:
            raise RuntimeError(said[-300:])
        if code not in (0, 2):
            raise RuntimeError(f"exit status {code}: {said[-300:]}")
        if code == 2:
            raise Refused(said[-300:])

    return check, " ".join(line)[:200]


def _own(folder: Path) -> Path:
    place = folder / "here"
    place.mkdir(exist_ok=True)
    return place


# --------------------------------------------------------------- folders
def folder_case(world: World, number: int) -> Case:
    """A run folder with one file damaged."""
    random = of(5, number)
    files = sorted(p.relative_to(world.run) for p in world.run.rglob("*") if p.is_file() and "checkpoint" not in str(p))
    file = pick(random, files)
    what = pick(random, ["byte", "byte", "byte", "cut", "zeros", "deleted", "other", "empty"])
    data = bytearray((world.run / file).read_bytes())
    at = int(random.integers(max(len(data), 1)))
    if what == "byte" and data:
        data[at] ^= 1 << int(random.integers(8))
    elif what == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    other = (world.run / pick(random, files)).read_bytes()
    new = {"cut": bytes(data[:at]), "other": other, "empty": b""}.get(what, bytes(data))

    def check() -> None:
        place = world.folder / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(world.run, place, ignore=shutil.ignore_patterns("checkpoint-*"))
        if what == "deleted":
            (place / file).unlink()
        else:
            (place / file).write_bytes(new)
        if answers(place) != world.answers:
            raise Silent("other answers than the intact run")

    return check, f"{file} {what} at {at}"


CASES: dict[str, Callable[[World, int], Case]] = {
    "table": table_case,
    "list": list_case,
    "recipe": recipe_case,
    "request": request_case,
    "flag": flag_case,
    "folder": folder_case,
}

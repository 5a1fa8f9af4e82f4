"""The command line. Only what a command needs is imported, so `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from polyrec.cli.recipe import Recipe, load_recipe, parse_override, parse_task
from polyrec.extras import check_extra


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="polyrec", description="One multi-task recommender model from an event log.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_compare(commands)
    _add_tune(commands)
    _add_distill(commands)
    _add_finetune(commands)
    _add_update(commands)
    _add_evaluate(commands)
    _add_recommend(commands)
    _add_explain(commands)
    _add_demo(commands)
    _add_score(commands)
    _add_factorize(commands)
    _add_quantize(commands)
    _add_card(commands)
    _add_report(commands)
    _add_push(commands)
    _add_encode_images(commands)
    return parser


_Commands = Any  # argparse does not name the type of add_subparsers


def _add_recipe(parser: argparse.ArgumentParser, output: str) -> None:
    """What every command has that reads a recipe."""
    parser.add_argument(
        "recipe",
        nargs="?",
        help="YAML file; its keys are the flags below plus columns, split, processor, model, training, tune",
    )
    parser.add_argument("--interactions", metavar="PATH", help="event log, .parquet or .csv")
    parser.add_argument("--items", metavar="PATH", help="item attributes")
    parser.add_argument("--users", metavar="PATH", help="attributes of people")
    parser.add_argument("--past", metavar="PATH", help="what people did before the log, lists of item ids")
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME=HEAD[:LABEL]",
        help="e.g. next_item=retrieval, 'like=binary:rating >= 4'; repeat",
    )
    parser.add_argument("--output", metavar="DIR", help=output)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="e.g. training.num_train_epochs=3 or tasks.like.weight=0.5; repeat",
    )


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The flags among some that were given; the others keep the defaults of what reads them."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _read_recipe(options: argparse.Namespace, suffix: str = "") -> Recipe:
    """The recipe of a command; without --output its own output, `suffix` added."""
    overrides: dict[str, Any] = {}
    if options.task:
        overrides["tasks"] = [parse_task(text) for text in options.task]
    overrides |= _given(options, ("interactions", "items", "users", "past", "output"))
    overrides |= dict(parse_override(text) for text in options.set)
    recipe = load_recipe(options.recipe, overrides)
    if options.output is None:
        recipe.output += suffix
    recipe.check()
    return recipe


def _add_train(commands: _Commands) -> None:
    train = commands.add_parser("train", help="train a model from a YAML recipe, from flags, or from both (flags win)")
    _add_recipe(train, "folder of the run (default: runs/latest)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    recipe = _read_recipe(options)
    from polyrec.cli.train import train

    train(recipe, resume=options.resume)


def _add_compare(commands: _Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="does learning the tasks together help? multi-task against single-task and leave-one-task-out models",
        description="Trains the multi-task model of a recipe, one model per task alone, and one without each task, on "
        "the same split, inputs, budget and seeds, and writes comparison.json, .md and .html: tables with paired "
        "intervals over people, a task-affinity matrix and the training cost. Run it again to go on where it stopped, "
        "or with more seeds.",
    )
    _add_recipe(compare, "folder of the comparison (default: the recipe's output + '-comparison')")
    compare.add_argument("--seeds", type=int, default=3, help="trainings of each variant (default: 3)")
    compare.add_argument(
        "--variants",
        default="multi,single,leave-one-out",
        metavar="LIST",
        help="which models to train, 'multi' among them (default: multi,single,leave-one-out)",
    )
    compare.add_argument("--resamples", type=int, default=1000, help="of the bootstrap over people (default: 1000)")
    compare.add_argument("--no-html", action="store_true", help="no page and no plots, which need matplotlib")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    recipe = _read_recipe(options, "-comparison")
    from polyrec.cli.compare import compare_recipe

    kinds = [kind.strip() for kind in options.variants.split(",")]
    compare_recipe(recipe, options.seeds, kinds, options.resamples, html=not options.no_html)


def _add_tune(commands: _Commands) -> None:
    tune = commands.add_parser(
        "tune",
        help="search task weights, experts, sizes and learning rate on the validation part",
        description="Optuna search over the `tune:` section of a recipe (or sensible defaults), judged by "
        "mean_improvement of the validation part alone; bad trials stop early. Writes best.yaml (for `polyrec train`), "
        "trials.json and trials.md. Run it again to go on where it stopped, or with more trials.",
    )
    _add_recipe(tune, "folder of the search (default: the recipe's output + '-tuning')")
    tune.add_argument("--trials", type=int, default=30, help="trials in all, earlier ones counted (default: 30)")
    tune.set_defaults(run=_tune)


def _tune(options: argparse.Namespace) -> None:
    recipe = _read_recipe(options, "-tuning")
    check_extra("optuna", "tune", "searches")
    from polyrec.cli.tune import tune_recipe

    tune_recipe(recipe, options.trials)


def _add_distill(commands: _Commands) -> None:
    distill = commands.add_parser(
        "distill",
        help="train a small student of one or several teachers, and say what they were good for",
        description="Trains the recipe's model as a student of trained runs, classical recommenders or stored answers, "
        "and once without a teacher, on the same split, budget and seed. Writes the student as a run like any other, "
        "with distill.json and .md: teacher, student alone and student per task with paired intervals over people, "
        "size, speed and cost. Teachers are believed as far as the validation part says. Run it again to go on where "
        "it stopped.",
    )
    _add_recipe(distill, "folder of the student (default: the recipe's output + '-student')")
    distill.add_argument(
        "--teacher", action="append", default=[], metavar="RUN", help="folder of a trained run; repeat for an ensemble"
    )
    distill.add_argument(
        "--classical",
        action="append",
        default=[],
        metavar="NAME",
        help="ease, item_knn, als, bpr, popularity, lightgbm (of pair tasks); repeat",
    )
    distill.add_argument("--logits", metavar="FOLDER", help="answers to the training part, written by `polyrec score`")
    distill.add_argument("--target-parameters", type=int, metavar="N", help="widest student with at most N parameters")
    distill.add_argument(
        "--target-latency", type=float, metavar="MS", help="widest student that answers one person in MS milliseconds"
    )
    distill.add_argument("--temperature", type=float, help="of tasks that have one (default: of the plan, else 1)")
    distill.add_argument("--alpha", type=float, help="weight of the soft losses (default: of the plan, else 0.5)")
    distill.add_argument(
        "--start", choices=["random", "teacher"], help="of the student's weights (default: random); the first --teacher"
    )
    distill.add_argument("--no-alone", action="store_true", help="no student without a teacher to compare with")
    distill.add_argument("--ablations", action="store_true", help="also train without each soft loss in turn")
    distill.add_argument("--resamples", type=int, help="of the bootstrap over people (default: 1000)")
    distill.add_argument("--trust-teacher", action="store_true", help="that does not say which rows it has learnt")
    distill.set_defaults(run=_distill)


def _distill(options: argparse.Namespace) -> None:
    from polyrec.cli.distill_settings import DistillSettings

    names = ("logits", "target_parameters", "target_latency", "temperature", "alpha", "start", "resamples")
    settings = DistillSettings(
        teachers=tuple(options.teacher),
        classical=tuple(options.classical),
        alone=not options.no_alone,
        ablations=options.ablations,
        trust=options.trust_teacher,
        **_given(options, names),
    )
    recipe = _read_recipe(options, "-student")
    from polyrec.cli.distill import distill_recipe

    distill_recipe(recipe, settings)


def _add_finetune(commands: _Commands) -> None:
    finetune = commands.add_parser(
        "finetune",
        help="train one task of a run further, the others staying as they are",
        description="Trains the head of one task and a low-rank adapter before it; everything that other tasks read "
        "stays, and their answers before and after are compared bit by bit. Adapters of several tasks live in one "
        "folder: run it once for each. With --scope all every weight follows this task, and the report says what "
        "became of the others.",
    )
    finetune.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`")
    finetune.add_argument("--task", required=True, metavar="NAME", help="of the task")
    finetune.add_argument("--scope", choices=["task", "all"], help="what is trained (default: task)")
    finetune.add_argument("--rank", type=int, help="of the adapter, 0 = none (default: 8)")
    finetune.add_argument("--epochs", type=int, help="of which the best is kept (default: 3)")
    finetune.add_argument("--learning-rate", type=float, help="its highest value (default: 0.001)")
    finetune.add_argument("--seed", type=int, help="(default: 0)")
    finetune.add_argument("--output", metavar="DIR", help="(default: RUN; with --scope all RUN-NAME)")
    finetune.set_defaults(run=_finetune)


def _finetune(options: argparse.Namespace) -> None:
    from polyrec.cli.finetune import finetune_run
    from polyrec.training.finetune import FinetuneSettings

    names = ("task", "scope", "rank", "epochs", "learning_rate", "seed")
    given = _given(options, names)
    finetune_run(options.run_folder, FinetuneSettings(**given), options.output)


def _add_update(commands: _Commands) -> None:
    update = commands.add_parser(
        "update",
        help="let a trained run learn newer events, and say what it forgot",
        description="Continues the training of a run on events that came later and on a share of the old ones, and "
        "judges it before and after on held-out new events and on the old test part. The run is replaced unless a "
        "metric falls by more than --max-drop; then the updated model goes to RUN-refused. People need not be known; "
        "items that are not in the catalog are added with --items.",
    )
    update.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train` or by an update")
    update.add_argument("--new", required=True, metavar="PATH", help="events that came later, .parquet or .csv")
    update.add_argument("--items", metavar="PATH", help="attributes of new items")
    update.add_argument("--users", metavar="PATH", help="attributes of new people")
    update.add_argument("--output", metavar="DIR", help="folder of the updated run (default: RUN itself)")
    update.add_argument("--epochs", type=int, help="over new and replayed events (default: 1)")
    update.add_argument("--learning-rate", type=float, help="its highest value (default: 0.3 of the run's)")
    update.add_argument("--replay", type=float, metavar="SHARE", help="of old windows learnt again (default: 0.2)")
    update.add_argument("--members", type=int, help="short trainings whose weights are averaged (default: 3)")
    update.add_argument(
        "--holdout", type=float, metavar="SHARE", help="latest of the new events, only evaluated (default: 0.1)"
    )
    update.add_argument(
        "--max-drop", type=float, metavar="SHARE", help="by which a metric may fall on any slice (default: 0.05)"
    )
    update.add_argument("--seed", type=int, help="(default: 0)")
    update.set_defaults(run=_update)


def _update(options: argparse.Namespace) -> None:
    from polyrec.cli.update import update_run
    from polyrec.training.update import UpdateSettings

    names = ("epochs", "learning_rate", "replay", "members", "holdout", "max_drop", "seed")
    given = _given(options, names)
    settings = UpdateSettings(**given)
    update_run(options.run_folder, options.new, options.items, options.users, options.output, settings)


def _add_evaluate(commands: _Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="metrics of a trained run beside simple baselines")
    evaluate.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`")
    evaluate.add_argument(
        "--part", choices=["valid", "test"], default="test", help="which part of the split (default: test)"
    )
    evaluate.add_argument("--output", metavar="FILE", help="also write the metrics as JSON")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from polyrec.cli.evaluate import evaluate_run

    evaluate_run(options.run_folder, options.part, options.output)


def _add_recommend(commands: _Commands) -> None:
    recommend = commands.add_parser("recommend", help="recommend items to one person")
    recommend.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    recommend.add_argument(
        "--history",
        default="",
        metavar="IDS",
        help="item ids, oldest first, separated by commas; or a .parquet/.csv file of events",
    )
    recommend.add_argument(
        "--user", action="append", default=[], metavar="COLUMN=VALUE", help="an attribute of the person; repeat"
    )
    recommend.add_argument("-k", type=int, default=10, help="number of recommendations (default: 10)")
    recommend.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    recommend.set_defaults(run=_recommend)


def _recommend(options: argparse.Namespace) -> None:
    from polyrec.cli.recommend import recommend

    recommend(options.run_folder, options.history, options.user, options.k, options.json)


def _add_explain(commands: _Commands) -> None:
    explain = commands.add_parser(
        "explain",
        help="why are these items recommended to one person?",
        description="Says for each recommendation (or each --item) which past events, attributes and words of the item "
        "made the answer: what the answer would be had the event not happened, exactly.",
    )
    explain.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    explain.add_argument(
        "--history",
        default="",
        metavar="IDS",
        help="item ids, oldest first, separated by commas; or a .parquet/.csv file of events",
    )
    explain.add_argument(
        "--user", action="append", default=[], metavar="COLUMN=VALUE", help="an attribute of the person; repeat"
    )
    explain.add_argument("--item", metavar="IDS", help="items to explain, separated by commas (default: recommended)")
    explain.add_argument("--task", metavar="NAME", help="whose answer is explained (default: the one that ranks)")
    explain.add_argument("-k", type=int, default=10, help="number of recommendations (default: 10)")
    explain.add_argument("--events", type=int, default=3, help="past events named per item (default: 3)")
    explain.add_argument("--neighbours", metavar="ID", help="instead: the items most like this one")
    explain.add_argument("--picture", metavar="FILE", help="instead: draw the items' space as .png, .svg or .pdf")
    explain.add_argument("--words", action="store_true", help="also judge the words of the items' texts")
    explain.add_argument("--json", action="store_true", help="print JSON lines instead of text")
    explain.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> None:
    from polyrec.cli.explain import explain_items, explain_run

    if options.neighbours is not None or options.picture is not None:
        explain_items(options.run_folder, options.neighbours, options.picture, options.k, options.json)
        return
    given = {name: getattr(options, name) for name in ("task", "k", "events", "words")}
    explain_run(options.run_folder, options.history, options.user, options.item, options.json, **given)


def _add_demo(commands: _Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="a page in the browser that shows what a run recommends, and why",
        description="Serves a page on this machine: choose a person or build a history by searching titles, see every "
        "task's prediction, recommendations and reasons, change one event and watch them change.",
    )
    demo.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    demo.add_argument("--host", default="127.0.0.1", help="who may ask: 127.0.0.1 (the default) is this machine alone")
    demo.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    demo.add_argument("-k", type=int, default=10, help="number of recommendations (default: 10)")
    demo.add_argument("--open", action="store_true", help="open a browser")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    check_extra("gradio", "web", "web demos")
    from polyrec.cli.demo import demo

    demo(options.run_folder, options.host, options.port, options.k, options.open)


def _add_score(commands: _Commands) -> None:
    score = commands.add_parser(
        "score",
        help="store a teacher's answers, for students to learn from",
        description="Asks a teacher about a part of a recipe's data and writes its answers: logits of all candidates "
        "of the pair tasks and the best items of each list, of half precision, in shards. Run it again to go on where "
        "it stopped. A teacher that has learnt what the recipe validates or tests by is refused.",
    )
    score.add_argument(
        "teacher",
        metavar="TEACHER",
        help="folder of a trained run, or ease, item_knn, popularity, als, bpr, lightgbm (fitted on the training "
        "part); several, separated by commas, are an ensemble",
    )
    _add_recipe(score, "folder of the answers")
    score.add_argument(
        "--part", choices=["train", "valid", "test"], default="train", help="of the split (default: train)"
    )
    score.add_argument("-k", "--top-k", type=int, help="items per list (default: of the recipe's plan, else 100)")
    score.add_argument(
        "--temperature", type=float, help="that the student's plan has (default: of the recipe's plan, else 1)"
    )
    score.add_argument("--shard-rows", type=int, help="candidates per file (default: 100000)")
    score.add_argument("--batch-size", type=int, help="windows asked about at a time (default: 64)")
    score.add_argument(
        "--unlabelled",
        type=int,
        metavar="N",
        help="items drawn beside each candidate that pair tasks are asked about, too, for students that learn from "
        "such (distillation.unlabelled; default: none)",
    )
    score.add_argument(
        "--trust-teacher", action="store_true", help="take a teacher that does not say which rows it has learnt"
    )
    score.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    if options.output is None:
        raise ValueError("say where the answers go: --output DIR")
    if options.recipe is None and options.interactions is None:
        options.recipe = f"{options.teacher.split(',')[0].strip()}/recipe.yaml"  # the data that it was trained on
    recipe = _read_recipe(options)
    from polyrec.cli.score import ScoreSettings, score

    names = ("part", "top_k", "temperature", "shard_rows", "batch_size", "unlabelled")
    given = _given(options, names)
    score(options.teacher, recipe, options.output, ScoreSettings(trust=options.trust_teacher, **given))


def _add_quantize(commands: _Commands) -> None:
    quantize = commands.add_parser(
        "quantize",
        help="turn a run's weights into whole numbers of 8 bits, and measure what that changes",
        description="Writes a run whose matrices and tables are int8 numbers with a scale per row: about a quarter of "
        "the size. It answers and is not trained further. quantize.json and .md hold size, speed and all metrics "
        "before and after.",
    )
    quantize.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`, distill or update")
    quantize.add_argument("--output", metavar="DIR", help="folder of the result (default: RUN-int8)")
    quantize.set_defaults(run=_quantize)


def _quantize(options: argparse.Namespace) -> None:
    from polyrec.cli.quantize import quantize_run

    quantize_run(options.run_folder, options.output)


def _add_factorize(commands: _Commands) -> None:
    factorize = commands.add_parser(
        "factorize",
        help="cut a run's id vectors to a lower rank, and measure what that changes",
        description="Writes a run whose table of id vectors is the product of two small matrices, the nearest of that "
        "rank. It can be trained further, and quantized. factorize.json and .md hold size, speed and all metrics "
        "before and after.",
    )
    factorize.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`, distill or update")
    factorize.add_argument("--rank", type=int, required=True, metavar="R", help="numbers per item, below hidden_size")
    factorize.add_argument("--output", metavar="DIR", help="folder of the result (default: RUN-rankR)")
    factorize.set_defaults(run=_factorize)


def _factorize(options: argparse.Namespace) -> None:
    from polyrec.cli.factorize import factorize_run

    factorize_run(options.run_folder, options.rank, options.output)


def _add_card(commands: _Commands) -> None:
    card = commands.add_parser(
        "card",
        help="write the model card of a run, in the Hub's format",
        description="Writes README.md into a run folder, from what is in it: figures with intervals beside baselines, "
        "data, training curves, limits, and how to load and reproduce the model. What no file knows (licence, data "
        "sets, intended use) comes from the recipe's `card:` section or from the flags.",
    )
    card.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train` or distill")
    card.add_argument("--output", metavar="FILE", help="(default: README.md in RUN)")
    card.add_argument("--name", help="of the model (default: that of the folder)")
    card.add_argument("--license", metavar="ID", help="e.g. apache-2.0")
    card.add_argument("--dataset", action="append", dest="datasets", metavar="NAME", help="trained on; repeat")
    card.add_argument("--repository", metavar="USER/MODEL", help="where it will be found on the Hub")
    card.set_defaults(run=_card)


def _card(options: argparse.Namespace) -> None:
    check_extra("matplotlib", "report", "training curves")
    from polyrec.cli.card import card_run

    given = _given(options, ("name", "license", "datasets", "repository"))
    card_run(options.run_folder, options.output, given)


def _add_report(commands: _Commands) -> None:
    report = commands.add_parser(
        "report",
        help="one HTML page about one or several runs, side by side",
        description="Curves, figures with intervals beside baselines, calibration, groups of rows in which the models "
        "err, task affinities, and recommendations of example people with reasons, in one page that needs no network.",
    )
    report.add_argument("run_folders", nargs="+", metavar="RUN", help="folder written by `polyrec train` or distill")
    report.add_argument("--output", metavar="FILE", help="(default: report.html in the first RUN)")
    report.add_argument("--people", type=int, metavar="N", help="examples of each run, 0 = none (default: 3)")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    check_extra("matplotlib", "report", "plots")
    from polyrec.cli.report import report_runs

    report_runs(options.run_folders, **_given(options, ("output", "people")))


def _add_push(commands: _Commands) -> None:
    push = commands.add_parser(
        "push",
        help="share a run on the Hugging Face Hub",
        description="Lists what leaves and what stays, refuses columns that look like e-mail addresses or phone "
        "numbers, and pushes model, processor and card in one commit. Data, checkpoints and hashes of training rows "
        "stay. Run it again if it was interrupted: what was uploaded is not sent twice.",
    )
    push.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`, distill or update")
    push.add_argument("repository", metavar="USER/NAME", help="on the Hub; it is made if it is not there")
    push.add_argument("--private", action="store_true", default=None, help="make the repository a private one")
    push.add_argument("--revision", metavar="BRANCH", help="to push to (default: main)")
    push.add_argument("--create-pr", action="store_true", help="propose the commit instead of making it")
    push.add_argument("--message", metavar="TEXT", dest="commit_message", help="of the commit")
    push.add_argument("--tag", action="append", default=[], dest="tags", metavar="TAG", help="of the card; repeat")
    push.add_argument("--include-users", action="store_true", help="let rows about people leave, too (users.parquet)")
    push.add_argument(
        "--allow-column",
        action="append",
        default=[],
        dest="allow_columns",
        metavar="NAME",
        help="a column that may leave although it looks like a way to reach a person; repeat",
    )
    push.add_argument("--dry-run", action="store_true", help="only list what would leave")
    push.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    from polyrec.cli.push import push_run

    names = ("private", "revision", "create_pr", "commit_message", "tags", "include_users", "allow_columns", "dry_run")
    push_run(options.run_folder, options.repository, **_given(options, names))


def _add_encode_images(commands: _Commands) -> None:
    images = commands.add_parser(
        "encode-images",
        help="vectors of the images of an items table",
        description="Encodes a column of image paths with a vision model and writes one vector per row, to be declared "
        "in a recipe as item_features: {image: 'embedding:FILE'}. Images that were encoded before are not read again.",
    )
    images.add_argument("items", metavar="ITEMS", help="items table, .parquet or .csv")
    images.add_argument("--column", required=True, help="of image paths, or of bytes; null where there is no image")
    images.add_argument("--model", required=True, help="vision model: a name on the Hub or a folder")
    images.add_argument("--revision", help="of the model on the Hub")
    images.add_argument("--pooling", choices=["mean", "cls"], default="mean", help="of the patches (default: mean)")
    images.add_argument("--folder", default=".", metavar="DIR", help="that paths are relative to (default: here)")
    images.add_argument("--output", required=True, metavar="FILE", help=".safetensors to write")
    images.set_defaults(run=_encode_images)


def _encode_images(options: argparse.Namespace) -> None:
    check_extra("PIL", "images", "images")
    from polyrec.cli.images import encode_images

    own = options.column, options.model, options.revision, options.pooling, options.folder, options.output
    encode_images(options.items, *own)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line, not a traceback."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        print(f"polyrec {options.command}: {error}", file=sys.stderr)
        return 2
    return 0

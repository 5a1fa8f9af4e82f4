"""Commands about a trained run: its metrics, its predictions, and sharing it."""

from __future__ import annotations

import argparse
from functools import partial

from polyrec.cli.flags import Commands, add_fields, chosen_flags, cutoffs
from polyrec.cli.rule_flags import add_rules, read_rules
from polyrec.core.extras import check_extra
from polyrec.runs.card_section import About


def add_evaluate(commands: Commands) -> None:
    """`polyrec evaluate`."""
    evaluate = commands.add_parser("evaluate", help="evaluate a trained run beside simple baselines")
    evaluate.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`")
    evaluate.add_argument(
        "--split", choices=["valid", "test"], default="test", help="which split to evaluate on (default: test)"
    )
    evaluate.add_argument(
        "-k",
        "--k",
        type=cutoffs,
        metavar="K,K,...",
        help="list cut-offs, e.g. 3,5,10; the first is the main one (default: the recipe's rank_k)",
    )
    evaluate.add_argument("--output", metavar="FILE", help="also write the metrics as JSON")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from polyrec.runs.evaluate import evaluate_run

    evaluate_run(options.run_folder, options.split, options.output, options.k)


def add_recommend(commands: Commands) -> None:
    """`polyrec recommend`."""
    recommend = commands.add_parser("recommend", help="recommend items to one user")
    recommend.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    recommend.add_argument(
        "--history",
        default="",
        metavar="IDS",
        help="item ids, oldest first, separated by commas; or a .parquet or .csv file of events",
    )
    recommend.add_argument(
        "--user", action="append", default=[], metavar="COLUMN=VALUE", help="an attribute of the user; repeat"
    )
    recommend.add_argument(
        "--user-id",
        metavar="ID",
        help="a user of the log, whose stored events come first; --history adds later events",
    )
    recommend.add_argument("-k", "--k", type=int, default=10, help="number of recommendations (default: 10)")
    recommend.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    add_rules(recommend)
    recommend.set_defaults(run=_recommend)


def _recommend(options: argparse.Namespace) -> None:
    from polyrec.cli.recommend import recommend

    rules = partial(read_rules, options)
    recommend(options.run_folder, options.history, options.user, options.k, options.json, options.user_id, rules)


def add_explain(commands: Commands) -> None:
    """`polyrec explain`."""
    explain = commands.add_parser(
        "explain",
        help="explain why items are recommended to one user",
        description="Explains each recommendation (or each --item) by past events, attributes and words of the item. "
        "The effect of an event is exact: the score minus the score without the event.",
    )
    explain.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    explain.add_argument(
        "--history",
        default="",
        metavar="IDS",
        help="item ids, oldest first, separated by commas; or a .parquet or .csv file of events",
    )
    explain.add_argument(
        "--user", action="append", default=[], metavar="COLUMN=VALUE", help="an attribute of the user; repeat"
    )
    explain.add_argument("--item", metavar="IDS", help="items to explain, separated by commas (default: recommended)")
    explain.add_argument("--task", metavar="NAME", help="task to explain (default: the one that ranks)")
    explain.add_argument("-k", "--k", type=int, default=10, help="number of recommendations (default: 10)")
    explain.add_argument("--events", type=int, default=3, help="past events per item (default: 3)")
    explain.add_argument("--neighbours", metavar="ID", help="instead: the items most similar to this one")
    explain.add_argument("--plot", metavar="FILE", help="instead: plot all item embeddings as .png, .svg or .pdf")
    explain.add_argument(
        "--token-attribution", action="store_true", help="also attribute scores to words of the item text"
    )
    explain.add_argument("--json", action="store_true", help="print JSON lines instead of text")
    explain.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> None:
    from polyrec.cli.explain import explain_items, explain_run

    if options.neighbours is not None or options.plot is not None:
        explain_items(options.run_folder, options.neighbours, options.plot, options.k, options.json)
        return
    given = {name: getattr(options, name) for name in ("task", "k", "events")} | {"words": options.token_attribution}
    explain_run(options.run_folder, options.history, options.user, options.item, options.json, **given)


def add_demo(commands: Commands) -> None:
    """`polyrec demo`."""
    demo = commands.add_parser(
        "demo",
        help="a web page that shows what a run recommends, and why",
        description="Serves a page on this machine: build a history by searching titles (or choose a user, with "
        "--users), see every task's prediction, recommendations and reasons, change one event and watch them change.",
    )
    demo.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    demo.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 127.0.0.1 (default) is this machine only"
    )
    demo.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    demo.add_argument("-k", "--k", type=int, default=10, help="number of recommendations (default: 10)")
    demo.add_argument(
        "--users", action="store_true", help="let visitors choose users of the log by their ids and see their events"
    )
    demo.add_argument(
        "--covers",
        action="store_true",
        help="show the pictures whose web addresses are in a column of the items (cover, image, poster ...); visitors' "
        "browsers load them from there. Pictures that the table itself holds are always shown",
    )
    demo.add_argument("--open", action="store_true", help="open a browser")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    check_extra("gradio", "web", "web demos")
    from polyrec.web.serve import demo

    demo(options.run_folder, options.host, options.port, options.k, options.open, options.users, options.covers)


def add_card(commands: Commands) -> None:
    """`polyrec card`."""
    card = commands.add_parser(
        "card",
        help="write the model card of a run, in the Hub's format",
        description="Writes README.md into a run folder, from its files: metrics with intervals beside baselines, "
        "data, training curves, limits, and how to load and reproduce the model. What no file contains (licence, data "
        "sets, intended use) comes from the recipe's `card:` section or from options.",
    )
    card.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train` or distill")
    card.add_argument("--output", metavar="FILE", help="(default: README.md in RUN)")
    flags = {"license": "ID", "datasets": "--dataset NAME", "repository": "USER/MODEL"}
    add_fields(card, About, flags, others=("name",))
    card.set_defaults(run=_card)


def _card(options: argparse.Namespace) -> None:
    check_extra("matplotlib", "report", "training curves")
    from polyrec.cards.runs import card_run

    card_run(options.run_folder, options.output, chosen_flags(options, ("name", "license", "datasets", "repository")))


def add_report(commands: Commands) -> None:
    """`polyrec report`."""
    report = commands.add_parser(
        "report",
        help="one HTML page about one or several runs, side by side",
        description="Training curves, metrics with intervals beside baselines, calibration, slices, task affinities, "
        "and recommendations for example users with reasons, in one page that works offline.",
    )
    report.add_argument("run_folders", nargs="+", metavar="RUN", help="folder written by `polyrec train` or distill")
    report.add_argument("--output", metavar="FILE", help="(default: report.html in the first RUN)")
    report.add_argument("--num-users", type=int, metavar="N", help="example users of each run, 0 = none (default: 3)")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    check_extra("matplotlib", "report", "plots")
    from polyrec.reporting.runs import report_runs

    report_runs(options.run_folders, **chosen_flags(options, ("output", "num_users")))


def add_push(commands: Commands) -> None:
    """`polyrec push`."""
    push = commands.add_parser(
        "push",
        help="share a run on the Hugging Face Hub",
        description="Lists what is uploaded and what is not, refuses columns that look like e-mail addresses or phone "
        "numbers, and pushes model, processor and card in one commit. Data, checkpoints and hashes of training rows "
        "are never uploaded. Run it again if it was interrupted: uploaded files are not sent twice.",
    )
    push.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`, distill or update")
    push.add_argument("repository", metavar="USER/NAME", help="repository on the Hub; created if it does not exist")
    push.add_argument("--private", action="store_true", default=None, help="create a private repository")
    push.add_argument("--revision", metavar="BRANCH", help="branch to push to (default: main)")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    push.add_argument("--message", metavar="TEXT", dest="commit_message", help="commit message")
    push.add_argument(
        "--tag", action="append", default=[], dest="tags", metavar="TAG", help="tag of the model card; repeat"
    )
    push.add_argument("--include-users", action="store_true", help="also upload user rows (users.parquet)")
    push.add_argument(
        "--allow-column",
        action="append",
        default=[],
        dest="allow_columns",
        metavar="NAME",
        help="upload this column although it looks like contact data; repeat",
    )
    push.add_argument("--dry-run", action="store_true", help="only list what would be uploaded")
    push.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    from polyrec.cli.push import push_run

    names = ("private", "revision", "create_pr", "commit_message", "tags", "include_users", "allow_columns", "dry_run")
    push_run(options.run_folder, options.repository, **chosen_flags(options, names))


def add_encode_images(commands: Commands) -> None:
    """`polyrec encode-images`."""
    images = commands.add_parser(
        "encode-images",
        help="compute embeddings of the images of an items table",
        description="Encodes a column of image paths with a vision model and writes one embedding per row, for "
        "item_features: {image: 'embedding:FILE'} in a recipe. Images that were encoded before are not read again.",
    )
    images.add_argument("items", metavar="ITEMS", help="items table, .parquet or .csv")
    images.add_argument("--column", required=True, help="column of image paths, or of bytes; null = no image")
    images.add_argument("--model", required=True, help="vision model: a name on the Hub or a folder")
    images.add_argument("--revision", help="revision of the model on the Hub")
    images.add_argument(
        "--pooling", choices=["mean", "cls"], default="mean", help="pooling of the patches (default: mean)"
    )
    images.add_argument(
        "--folder", default=".", metavar="DIR", help="folder that paths are relative to (default: current folder)"
    )
    images.add_argument("--output", required=True, metavar="FILE", help=".safetensors to write")
    images.set_defaults(run=_encode_images)


def _encode_images(options: argparse.Namespace) -> None:
    check_extra("PIL", "images", "images")
    from polyrec.cli.images import encode_images

    own = options.column, options.model, options.revision, options.pooling, options.folder, options.output
    encode_images(options.items, *own)

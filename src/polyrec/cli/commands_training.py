"""Commands that train: from a recipe, compared, tuned, one task further, with new events."""

from __future__ import annotations

import argparse
import json

from polyrec.cli.flags import (
    COLUMN_FLAGS,
    Commands,
    add_fields,
    add_recipe,
    chosen_flags,
    read_fields,
    read_recipe,
)
from polyrec.core.extras import check_extra
from polyrec.core.schema import Columns
from polyrec.training.settings import FinetuneSettings, UpdateSettings


def add_init(commands: Commands) -> None:
    """`polyrec init`."""
    init = commands.add_parser(
        "init",
        help="write a recipe for an event log: finds the columns and proposes tasks",
        description="Reads a sample of a table of events, finds user, item and time by names and values, proposes "
        "tasks from the feedback columns, prints each choice with its reason and writes a commented recipe for "
        "`polyrec train`. If two columns fit equally well, it asks in a terminal, or names the option that decides.",
    )
    init.add_argument("table", metavar="EVENTS", help="event log, .parquet or .csv")
    init.add_argument("items", nargs="?", metavar="ITEMS", help="item attributes; same as --items")
    init.add_argument("--items", dest="items_flag", metavar="PATH", help="item attributes")
    init.add_argument("--users", metavar="PATH", help="attributes of users")
    add_fields(init, Columns, COLUMN_FLAGS, others=())
    init.add_argument("--output", default="recipe.yaml", metavar="FILE", help="a new file (default: recipe.yaml)")
    init.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> None:
    from polyrec.runs.init import init

    given = chosen_flags(options, COLUMN_FLAGS)
    init(options.table, options.items_flag or options.items, options.users, given, options.output)


def add_schema(commands: Commands) -> None:
    """`polyrec schema`."""
    schema = commands.add_parser(
        "schema",
        help="print the JSON schema of recipes, for editors",
        description="Prints the JSON schema of recipes. Write it to a file and begin a recipe with "
        "`# yaml-language-server: $schema=FILE`: editors then complete keys, show what they mean and mark mistakes.",
    )
    schema.set_defaults(run=_schema)


def _schema(options: argparse.Namespace) -> None:
    from polyrec.runs.recipe_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


def add_prepare(commands: Commands) -> None:
    """`polyrec prepare`."""
    prepare = commands.add_parser(
        "prepare",
        help="read, count and cut the event log of a recipe once, into files that later commands map",
        description="Encodes the event log of a recipe, counts its running statistics and cuts it, block by block, "
        "into files of a cache; memory holds a few columns at a time. `train`, `tune`, `compare`, `distill` and "
        "`evaluate` find them again, as long as tables, columns, tasks and split are the same.",
    )
    add_recipe(prepare, "not used by this command")
    prepare.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="what counts running statistics: this process, or those of a Ray cluster that see the cache (default: "
        "local)",
    )
    prepare.add_argument("--workers", type=int, metavar="N", help="processes of Ray (default: the cluster's CPUs)")
    prepare.add_argument(
        "--address",
        help="of a Ray cluster (default: the one that Ray finds, or one on this machine for this command)",
    )
    prepare.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> None:
    recipe = read_recipe(options)
    from polyrec.runs.prepare import prepare_recipe

    if options.engine == "local":
        if (options.workers, options.address) != (None, None):
            raise ValueError("--workers and --address are of a Ray cluster: add --engine ray")
        prepare_recipe(recipe)
        return
    from polyrec.runs.ray_prepare import ray_engine

    with ray_engine(options.workers, options.address) as engine:
        prepare_recipe(recipe, engine)


def add_train(commands: Commands) -> None:
    """`polyrec train`."""
    train = commands.add_parser(
        "train", help="train a model from a YAML recipe, an event log or options (options override the recipe)"
    )
    add_recipe(train, "folder of the run (default: runs/latest)")
    train.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the output folder")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    recipe = read_recipe(options)
    from polyrec.runs.train import train

    train(recipe, resume=options.resume)


def add_profile(commands: Commands) -> None:
    """`polyrec profile`."""
    profile = commands.add_parser(
        "profile",
        help="where the time and the memory of a recipe go",
        description="Does all that `polyrec train` does, with a few steps of training, and prints what each phase "
        "takes: wall and CPU seconds and the peak of the process's own memory. Of a step it shows data, forward, "
        "backward and optimizer. Saves no model.",
    )
    add_recipe(profile, "also write the figures as JSON", metavar="FILE")
    profile.add_argument("--steps", type=int, default=20, help="steps of training that are measured (default: 20)")
    profile.add_argument(
        "--operators",
        type=int,
        nargs="?",
        const=20,
        metavar="N",
        help="also show the N operators of torch that take most time (without N: 20), of five further steps",
    )
    profile.set_defaults(run=_profile)


def _profile(options: argparse.Namespace) -> None:
    output, options.output = options.output, None  # of the figures; a recipe's output is a folder
    recipe = read_recipe(options)
    from polyrec.runs.profile import profile

    profile(recipe, options.steps, options.operators, output)


def add_compare(commands: Commands) -> None:
    """`polyrec compare`."""
    compare = commands.add_parser(
        "compare",
        help="does multi-task training help? compare with single-task and leave-one-task-out models",
        description="Trains the multi-task model of a recipe, one model per task alone, and one without each task, on "
        "the same split, inputs, budget and seeds, and writes comparison.json, .md and .html: tables with paired "
        "intervals over users, a task-affinity matrix and the training cost. Run it again to continue, or with more "
        "seeds.",
    )
    add_recipe(compare, "folder of the comparison (default: the recipe's output + '-comparison')")
    compare.add_argument("--seeds", type=int, default=3, help="trainings of each variant (default: 3)")
    compare.add_argument(
        "--variants",
        default="multi,single,leave-one-out",
        metavar="LIST",
        help="which models to train, 'multi' among them (default: multi,single,leave-one-out)",
    )
    compare.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples over users (default: 1000)")
    compare.add_argument("--no-html", action="store_true", help="no page and no plots, which need matplotlib")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    recipe = read_recipe(options, "-comparison")
    from polyrec.runs.compare import compare_recipe

    kinds = [kind.strip() for kind in options.variants.split(",")]
    compare_recipe(recipe, options.seeds, kinds, options.resamples, html=not options.no_html)


def add_tune(commands: Commands) -> None:
    """`polyrec tune`."""
    tune = commands.add_parser(
        "tune",
        help="search task weights, experts, sizes and learning rate on the validation set",
        description="Optuna search over the `tune:` section of a recipe (or sensible defaults), by "
        "mean_improvement on the validation set; bad trials stop early. Writes best.yaml (for `polyrec train`), "
        "trials.json and trials.md. Run it again to continue, or with more trials.",
    )
    add_recipe(tune, "folder of the search (default: the recipe's output + '-tuning')")
    tune.add_argument(
        "--trials", type=int, default=30, help="total number of trials, including earlier ones (default: 30)"
    )
    tune.set_defaults(run=_tune)


def _tune(options: argparse.Namespace) -> None:
    recipe = read_recipe(options, "-tuning")
    check_extra("optuna", "tune", "searches")
    from polyrec.runs.tune import tune_recipe

    tune_recipe(recipe, options.trials)


def add_finetune(commands: Commands) -> None:
    """`polyrec finetune`."""
    finetune = commands.add_parser(
        "finetune",
        help="train one task of a run further; all other tasks stay the same",
        description="Trains the head of one task and a low-rank adapter before it. Everything that other tasks use is "
        "frozen, and their predictions are checked to be bit-identical. One folder can have adapters of several tasks: "
        "run the command once for each. With --scope all every weight is trained for this task, and the report "
        "measures the effect on the others.",
    )
    finetune.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`")
    add_fields(finetune, FinetuneSettings, {"task": "NAME"})
    finetune.add_argument("--output", metavar="DIR", help="(default: RUN; with --scope all RUN-NAME)")
    finetune.add_argument("--again", action="store_true", help="train again with the same settings")
    finetune.set_defaults(run=_finetune)


def _finetune(options: argparse.Namespace) -> None:
    from polyrec.runs.finetune import finetune_run

    finetune_run(options.run_folder, read_fields(options, FinetuneSettings), options.output, options.again)


def add_update(commands: Commands) -> None:
    """`polyrec update`."""
    update = commands.add_parser(
        "update",
        help="train a run on newer events, and measure forgetting",
        description="Continues the training of a run on newer events and on a share of the old ones, and "
        "evaluates it before and after on held-out new events and on the old test set. The run is replaced unless a "
        "metric falls by more than --max-regression; then the updated model goes to RUN-refused. Users may be new; new "
        "items are added with --items.",
    )
    update.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train` or by an update")
    update.add_argument("--new", required=True, metavar="PATH", help="newer events, .parquet or .csv")
    update.add_argument("--items", metavar="PATH", help="attributes of new items")
    update.add_argument("--users", metavar="PATH", help="attributes of new users")
    update.add_argument("--output", metavar="DIR", help="folder of the updated run (default: RUN itself)")
    shares = dict.fromkeys(("replay", "holdout", "max_regression"), "SHARE")
    add_fields(update, UpdateSettings, shares, others=("epochs", "learning_rate", "members", "confidence", "seed"))
    update.add_argument(
        "--again", action="store_true", help="train again on events that the run was already trained on"
    )
    update.set_defaults(run=_update)


def _update(options: argparse.Namespace) -> None:
    from polyrec.runs.update import update_run

    settings = read_fields(options, UpdateSettings)
    update_run(options.run_folder, options.new, options.items, options.users, options.output, settings, options.again)

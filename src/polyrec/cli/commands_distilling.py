"""Commands that make small models of large ones."""

from __future__ import annotations

import argparse

from polyrec.cli.flags import Commands, add_recipe, chosen_flags, read_recipe


def add_distill(commands: Commands) -> None:
    """`polyrec distill`."""
    distill = commands.add_parser(
        "distill",
        help="train a small student from one or several teachers, and measure what they contribute",
        description="Trains the recipe's model as a student of trained runs, classical recommenders or stored outputs, "
        "and once without a teacher, on the same split, budget and seed. Writes the student as a run like any other, "
        "with distill.json and .md: teacher, student without teacher and student, with paired intervals over users, "
        "size, speed and cost. The weight of each soft loss is chosen on the validation set. Run it again to "
        "continue.",
    )
    add_recipe(distill, "folder of the student (default: the recipe's output + '-student')")
    distill.add_argument(
        "--teacher", action="append", default=[], metavar="RUN", help="folder of a trained run; repeat for an ensemble"
    )
    distill.add_argument(
        "--classical",
        action="append",
        default=[],
        metavar="NAME",
        help="ease, item_knn, als, bpr, popularity, lightgbm (pair tasks only); repeat",
    )
    distill.add_argument(
        "--teacher-outputs", metavar="FOLDER", help="outputs on the training split, stored by `polyrec score`"
    )
    distill.add_argument("--target-parameters", type=int, metavar="N", help="widest student with at most N parameters")
    distill.add_argument(
        "--target-latency", type=float, metavar="MS", help="widest student that serves one user within MS milliseconds"
    )
    distill.add_argument("--temperature", type=float, help="of the soft losses (default: from the recipe, else 1)")
    distill.add_argument("--alpha", type=float, help="weight of the soft losses (default: from the recipe, else 0.5)")
    distill.add_argument(
        "--init-from",
        choices=["random", "teacher"],
        help="initial weights of the student: random (default), or those of the first --teacher",
    )
    distill.add_argument(
        "--no-baseline", action="store_true", help="do not train a student without a teacher to compare with"
    )
    distill.add_argument("--ablations", action="store_true", help="also train without each soft loss in turn")
    distill.add_argument("--resamples", type=int, help="bootstrap resamples over users (default: 1000)")
    distill.add_argument(
        "--skip-overlap-check",
        action="store_true",
        help="accept a teacher whose training rows are unknown: it may have seen the validation or test split",
    )
    distill.set_defaults(run=_distill)


def _distill(options: argparse.Namespace) -> None:
    from polyrec.runs.distill_settings import DistillSettings

    names = ("teacher_outputs", "target_parameters", "target_latency", "temperature", "alpha", "init_from", "resamples")
    settings = DistillSettings(
        teachers=tuple(options.teacher),
        classical=tuple(options.classical),
        baseline=not options.no_baseline,
        ablations=options.ablations,
        skip_overlap_check=options.skip_overlap_check,
        **chosen_flags(options, names),
    )
    recipe = read_recipe(options, "-student")
    from polyrec.runs.distill import distill_recipe

    distill_recipe(recipe, settings)


def add_score(commands: Commands) -> None:
    """`polyrec score`."""
    score = commands.add_parser(
        "score",
        help="store a teacher's outputs, to train students on",
        description="Scores a split of a recipe's data with a teacher and stores its outputs: logits of all candidates "
        "of the pair tasks and the top items of each list, in half precision, in shards. Run it again to continue. A "
        "teacher that was trained on the recipe's validation or test set is refused.",
    )
    score.add_argument(
        "teacher",
        metavar="TEACHER",
        help="folder of a trained run, or ease, item_knn, popularity, als, bpr, lightgbm (fitted on the training "
        "set); several, separated by commas, are an ensemble",
    )
    add_recipe(score, "folder of the outputs")
    score.add_argument(
        "--split", choices=["train", "valid", "test"], default="train", help="which split to score (default: train)"
    )
    score.add_argument("-k", "--top-k", type=int, help="items per list (default: from the recipe, else 100)")
    score.add_argument(
        "--temperature", type=float, help="temperature of the student's soft losses (default: from the recipe, else 1)"
    )
    score.add_argument("--shard-rows", type=int, help="candidates per file (default: 100000)")
    score.add_argument("--batch-size", type=int, help="windows per batch (default: 64)")
    score.add_argument(
        "--unlabelled",
        type=int,
        metavar="N",
        help="also score N sampled items per candidate for pair tasks, for distillation.unlabelled (default: none)",
    )
    score.add_argument(
        "--skip-overlap-check",
        action="store_true",
        help="accept a teacher whose training rows are unknown: it may have seen the validation or test split",
    )
    score.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    if options.output is None:
        raise ValueError("name the folder of the outputs: --output DIR")
    of_run = options.recipe is None and options.interactions is None
    if of_run:
        options.recipe = f"{options.teacher.split(',')[0].strip()}/recipe.yaml"  # the data that it was trained on
    recipe = read_recipe(options, imports=not of_run)  # a run may be another's: --import says what to trust
    from polyrec.runs.score import ScoreSettings, score

    names = ("split", "top_k", "temperature", "shard_rows", "batch_size", "unlabelled")
    given = chosen_flags(options, names)
    score(
        options.teacher, recipe, options.output, ScoreSettings(skip_overlap_check=options.skip_overlap_check, **given)
    )


def add_factorize(commands: Commands) -> None:
    """`polyrec factorize`."""
    factorize = commands.add_parser(
        "factorize",
        help="give a run low-rank id embeddings, and measure the effect",
        description="Writes a run whose id embedding table is the product of two small matrices, the best "
        "approximation of that rank. It can be trained further and quantized. factorize.json and .md have size, speed "
        "and all metrics before and after.",
    )
    factorize.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`, distill or update")
    factorize.add_argument("--rank", type=int, required=True, metavar="R", help="rank, below hidden_size")
    factorize.add_argument("--output", metavar="DIR", help="folder of the result (default: RUN-rankR)")
    factorize.set_defaults(run=_factorize)


def _factorize(options: argparse.Namespace) -> None:
    from polyrec.runs.factorize import factorize_run

    factorize_run(options.run_folder, options.rank, options.output)


def add_quantize(commands: Commands) -> None:
    """`polyrec quantize`."""
    quantize = commands.add_parser(
        "quantize",
        help="quantize a run's weights to int8, and measure the effect",
        description="Writes a run whose matrices and tables are int8 with one scale per row: about a quarter of "
        "the size. It is for inference only. quantize.json and .md have size, speed and all metrics "
        "before and after.",
    )
    quantize.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`, distill or update")
    quantize.add_argument("--output", metavar="DIR", help="folder of the result (default: RUN-int8)")
    quantize.set_defaults(run=_quantize)


def _quantize(options: argparse.Namespace) -> None:
    from polyrec.runs.quantize import quantize_run

    quantize_run(options.run_folder, options.output)

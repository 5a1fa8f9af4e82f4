"""Commands that make small models of large ones."""

from __future__ import annotations

import argparse

from polyrec.cli.flags import Commands, add_fields, add_recipe, read_fields, read_recipe
from polyrec.runs.distill_settings import DistillSettings, ScoreSettings


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
    flags = {"teachers": "--teacher RUN", "classical": "NAME", "teacher_outputs": "FOLDER"}
    add_fields(distill, DistillSettings, flags | {"target_parameters": "N", "target_latency": "MS"})
    distill.set_defaults(run=_distill)


def _distill(options: argparse.Namespace) -> None:
    settings = read_fields(options, DistillSettings)
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
    add_fields(score, ScoreSettings, {"top_k": "-k", "unlabelled": "N"})
    score.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    if options.output is None:
        raise ValueError("name the folder of the outputs: --output DIR")
    of_run = options.recipe is None and options.interactions is None
    if of_run:
        options.recipe = f"{options.teacher.split(',')[0].strip()}/recipe.yaml"  # the data that it was trained on
    recipe = read_recipe(options, imports=not of_run)  # a run may be another's: --import says what to trust
    settings = read_fields(options, ScoreSettings)
    from polyrec.runs.score import score

    score(options.teacher, recipe, options.output, settings)


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

"""Commands about all users or items at once, whose output is files for other systems."""

from __future__ import annotations

import argparse
from typing import Any

from polyrec.cli.flags import Commands, add_index
from polyrec.cli.rule_flags import add_rules, read_rules


def add_recommend_all(commands: Commands) -> None:
    """`polyrec recommend-all`."""
    job = commands.add_parser(
        "recommend-all",
        help="write every user's recommendations to parquet files",
        description="Histories, running statistics and trends stand at the end of the log. A job that was stopped goes "
        "on with the same command; under `accelerate launch -m polyrec recommend-all ...` processes share the work.",
    )
    _add_run(job)
    job.add_argument("--output", "-o", required=True, metavar="DIR", help="folder of the files")
    job.add_argument("-k", "--k", type=int, default=10, help="recommendations per user (default: 10)")
    job.add_argument("--users", metavar="PATH", help="table with the ids of some users (default: all of the log)")
    job.add_argument("--task", metavar="NAME", help="task that ranks (default: the first retrieval task)")
    seen = job.add_mutually_exclusive_group()
    seen.add_argument("--exclude-seen", action="store_true", default=None, help="leave out items of the history")
    seen.add_argument("--include-seen", dest="exclude_seen", action="store_false", help="do not leave them out")
    add_index(job)
    job.add_argument("--users-per-file", type=int, default=4096, metavar="N", help="about (default: 4096)")
    job.add_argument("--overwrite", action="store_true", help="replace the files of another job")
    job.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="share the work on a Ray cluster (default: the one that Ray finds, or one on this machine)",
    )
    job.add_argument("--workers", type=int, metavar="N", help="processes of --ray (default: the cluster's CPUs)")
    add_rules(job)
    job.set_defaults(run=_recommend_all)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="folder written by `polyrec train`")
    parser.add_argument(
        "--events", metavar="PATH", help="the whole log up to now (default: the tables that the run was trained on)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="users read at a time (default: 64)")


def _recommend_all(options: argparse.Namespace) -> None:
    from polyrec.cli.recommend import read_items, warnings_told
    from polyrec.runs.whole_log import recommender_of_run

    names = ("k", "task", "exclude_seen", "users_per_file", "overwrite")
    how = {name: getattr(options, name) for name in names}
    recommender, users = recommender_of_run(options.run_folder, options.events, options.batch_size, options.index)
    users = users if options.users is None else _users_of(options.users, recommender.processor.columns.user)
    rules = read_rules(options, lambda ids, flag: read_items(ids, recommender.processor, flag))
    with warnings_told():
        if options.ray is None:
            recommender.recommend_all(users, options.output, rules=rules, **how)
        else:
            from polyrec.runs.ray_job import recommend_all_on_ray

            how |= {
                "batch_size": options.batch_size,
                "index": options.index,
                "workers": options.workers,
                "address": options.ray or None,
            }
            recommend_all_on_ray(options.run_folder, options.output, options.events, users, rules=rules, **how)
    print(f"{len(users):,} users: {options.output}")


def _users_of(path: str, column: str) -> list[Any]:
    from polyrec.data.tables import read_table
    from polyrec.runs.whole_log import distinct

    table = read_table(path, "users")
    if column not in table.column_names:
        raise ValueError(f"{path} has no column {column!r} of user ids; its columns are {table.column_names}")
    return distinct(table, column)


def add_similar_items(commands: Commands) -> None:
    """`polyrec similar-items`."""
    similar = commands.add_parser("similar-items", help="write the items most like each item to a parquet file")
    similar.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    similar.add_argument("--output", "-o", required=True, metavar="FILE", help="parquet file to write")
    similar.add_argument("-k", "--k", type=int, default=10, help="items per item (default: 10)")
    similar.set_defaults(run=_similar_items)


def _similar_items(options: argparse.Namespace) -> None:
    from polyrec.inference.embeddings import similar_items
    from polyrec.inference.recommender import Recommender

    _write(similar_items(Recommender.from_pretrained(options.run_folder), options.k), options.output)


def add_embeddings(commands: Commands) -> None:
    """`polyrec embeddings`."""
    embeddings = commands.add_parser(
        "embeddings",
        help="write embeddings of items and users to parquet files",
        description="The dot product of a user's and an item's embedding is what the network adds to the score of the "
        "task; what stands beside the network (repeats, neighbours, trends) is not in it.",
    )
    _add_run(embeddings)
    embeddings.add_argument("--items", metavar="FILE", help="parquet file of items to write")
    embeddings.add_argument("--users", metavar="FILE", help="parquet file of users to write")
    embeddings.add_argument("--task", metavar="NAME", help="retrieval task (default: the one that ranks)")
    embeddings.set_defaults(run=_embeddings)


def _embeddings(options: argparse.Namespace) -> None:
    from polyrec.inference.embeddings import item_embeddings, user_embeddings
    from polyrec.runs.whole_log import recommender_of_run

    if options.items is None and options.users is None:
        raise ValueError("nothing to write: give --items FILE, --users FILE, or both")
    recommender, users = recommender_of_run(options.run_folder, options.events, options.batch_size)
    if options.items is not None:
        _write(item_embeddings(recommender, options.task), options.items)
    if options.users is not None:
        _write(user_embeddings(recommender, users, options.task, options.batch_size), options.users)


def _write(table: Any, path: str) -> None:
    import pyarrow.parquet as pq

    from polyrec.core.files import replacing

    with replacing(path) as draft:
        pq.write_table(table, draft)
    print(f"{table.num_rows:,} rows: {path}")

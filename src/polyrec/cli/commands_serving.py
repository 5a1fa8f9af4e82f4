"""Commands about a server: run it, make keys for it, and take its events out."""

from __future__ import annotations

import argparse
import os
import sys

from polyrec.cli.flags import Commands, add_fields, add_index, read_fields
from polyrec.core.extras import check_extra
from polyrec.training.settings import UpdateSettings

REFUSED = 3  # exit code of `polyrec retrain`
_KEY = "POLYREC_KEY"


def add_serve(commands: Commands) -> None:
    """`polyrec serve`."""
    serve = commands.add_parser(
        "serve",
        help="serve a run over HTTP, and keep the events it is sent",
        description="Offers recommend, score, search, similar and explain; stores events before it acknowledges them; "
        "exchanges models without an interruption (POST /admin/model, or SIGHUP for the same folder). The interface is "
        "described at /docs. Events and state lie in a folder beside the run.",
    )
    serve.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 127.0.0.1 (default) is this machine only"
    )
    serve.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    serve.add_argument("--state", metavar="FOLDER", help="where events and snapshots lie (default: RUN-state)")
    serve.add_argument(
        "--database", metavar="URL", help="keep events in PostgreSQL (postgresql://...) instead of a file in FOLDER"
    )
    serve.add_argument(
        "--keys", metavar="FILE", help="who may do what, see `polyrec serve-key`; needed beyond loopback"
    )
    serve.add_argument(
        "--deadline", type=float, default=5.0, metavar="S", help="longest wait of a request (default: 5)"
    )
    serve.add_argument(
        "--watermark",
        type=float,
        default=2.0,
        metavar="S",
        help="seconds after which an event counts for other users, too (default: 2)",
    )
    serve.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=RUN:SHARE",
        help="a further model for a share of the users, e.g. new=runs/b:0.2; repeat",
    )
    serve.add_argument(
        "--shadow", metavar="RUN", help="a model that nobody sees; its lists are compared with those that are served"
    )
    serve.add_argument(
        "--salt", metavar="TEXT", help="of the hash that assigns users to variants (default: one of the events' store)"
    )
    serve.add_argument(
        "--http-processes",
        type=int,
        metavar="N",
        help="processes that speak HTTP beside the one of the model; 0: one process does both (default: 1 if there are "
        "two cores)",
    )
    add_index(serve)
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> None:
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        check_extra(module, "serve", "servers")
    if options.database is not None:
        check_extra("psycopg", "postgres", "databases")
    from polyrec.serving.assignment import VariantOptions
    from polyrec.serving.run import ServeOptions, serve

    names = (
        "host",
        "port",
        "state",
        "database",
        "keys",
        "deadline",
        "watermark",
        "shadow",
        "salt",
        "index",
        "http_processes",
    )
    variants = tuple(VariantOptions.parse(text) for text in options.variant)
    serve(options.run_folder, ServeOptions(variants=variants, **{name: getattr(options, name) for name in names}))


def add_serve_key(commands: Commands) -> None:
    """`polyrec serve-key`."""
    key = commands.add_parser(
        "serve-key",
        help="make a key for `polyrec serve --keys`",
        description="Prints a new key, once, and adds its hash to FILE. Delete the line to revoke it.",
    )
    key.add_argument("--keys", required=True, metavar="FILE", help="file of hashes; created if it does not exist")
    key.add_argument(
        "--scopes",
        default="read,events",
        metavar="LIST",
        help="of read, events (store them) and admin (items, deleting users, models); default: read,events",
    )
    key.add_argument("--note", default="", help="a comment in the file")
    key.set_defaults(run=_serve_key)


def _serve_key(options: argparse.Namespace) -> None:
    from polyrec.serving.keys import new_key

    print(new_key(options.keys, options.scopes, options.note))


def add_export_events(commands: Commands) -> None:
    """`polyrec export-events`."""
    export = commands.add_parser(
        "export-events",
        help="write the events that a server has collected as a table for `polyrec update`",
        description="Writes all events with the columns of the run's log. A model that was trained or updated on the "
        "table knows which events it holds: a server that loads it counts none of them twice.",
    )
    export.add_argument("run_folder", metavar="RUN", help="the run that is served")
    export.add_argument("--output", "-o", required=True, metavar="FILE", help="parquet file to write")
    export.add_argument("--state", metavar="FOLDER", help="state of the server (default: RUN-state)")
    export.add_argument("--database", metavar="URL", help="of the server, if it keeps its events in PostgreSQL")
    export.set_defaults(run=_export_events)


def _export_events(options: argparse.Namespace) -> None:
    from polyrec.serving.export import export_events

    export_events(options.run_folder, options.output, options.state, options.database)


def add_retrain(commands: Commands) -> None:
    """`polyrec retrain`."""
    retrain = commands.add_parser(
        "retrain",
        help="train a run on what its server has collected, and exchange the model if it is not worse",
        description="export-events, update and the exchange of the model in one command, for a timer: trains RUN on "
        "what the server has collected, compares the models before and after on the latest of these events and on the "
        "old test set, replaces RUN unless a metric fell by more than --max-regression, and lets the server load it. "
        f"The run before stays in RUN-previous. Exit codes: 0 done or nothing new, {REFUSED} the new model is worse, 2 "
        "anything else.",
    )
    retrain.add_argument("run_folder", metavar="RUN", help="the run that is served")
    retrain.add_argument("--state", metavar="FOLDER", help="state of the server (default: RUN-state)")
    retrain.add_argument("--database", metavar="URL", help="of the server, if it keeps its events in PostgreSQL")
    retrain.add_argument("--server", metavar="URL", help="that exchanges its model, e.g. http://127.0.0.1:8000")
    retrain.add_argument("--key", help=f"of the server, with the scope admin (default: ${_KEY})")
    retrain.add_argument(
        "--min-events", type=int, default=100, metavar="N", help="train on no fewer new events (default: 100)"
    )
    shares = dict.fromkeys(("replay", "holdout", "max_regression"), "SHARE")
    add_fields(retrain, UpdateSettings, shares, others=("epochs", "learning_rate", "members", "seed"))
    retrain.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="LEVEL",
        help="count only falls whose paired interval over users holds no gain, or is unknown (default: 0.95)",
    )
    retrain.set_defaults(run=_retrain)


def _retrain(options: argparse.Namespace) -> int:
    from polyrec.runs.update import UpdateRefused
    from polyrec.serving.retrain import RetrainOptions, retrain

    names = ("state", "database", "server", "min_events")
    key = options.key or os.environ.get(_KEY)
    chosen = RetrainOptions(key=key, **{name: getattr(options, name) for name in names})
    try:
        retrain(options.run_folder, read_fields(options, UpdateSettings), chosen)
    except UpdateRefused as error:
        print(f"polyrec retrain: {error}", file=sys.stderr)
        return REFUSED
    return 0

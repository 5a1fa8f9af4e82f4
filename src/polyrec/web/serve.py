"""`polyrec demo`: a page on this machine that shows what a run recommends, and why."""

from __future__ import annotations

from pathlib import Path

from polyrec.core.escapes import printable
from polyrec.core.hosts import is_local
from polyrec.data.tables import read_table
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor
from polyrec.runs.prepare import joined_table, read_run
from polyrec.tracking.run_files import RECIPE_NAME
from polyrec.web.page import build_page, launch_options
from polyrec.web.session import DemoSession


def open_session(run: str, k: int = 10, users: bool = False, covers: bool = False) -> DemoSession:
    """The model of a run, and the users of the tables that its recipe names, if they are asked for.

    Without them, or without the data, histories are built by hand.

    Args:
        users: let visitors see ids of users and load their events.
        covers: show pictures that the catalog names by an address.
    """
    processor = PolyRecProcessor.from_pretrained(run)
    model = PolyRecForRecommendation.from_pretrained(run)
    tables = {}
    if users and (Path(run) / RECIPE_NAME).exists():
        try:
            recipe = read_run(run)
        except ValueError as error:
            print(f"no users to choose from: {error}")
        else:
            found = {name: joined_table(recipe, name) for name in ("interactions", "users")}
            tables = {name: read_table(table, name) for name, table in found.items() if table is not None}
    return DemoSession(model, processor, tables.get("interactions"), tables.get("users"), k, covers)


def demo(run: str, host: str, port: int, k: int, browser: bool, users: bool = False, covers: bool = False) -> None:
    """Serve the page until it is interrupted; it makes no internet requests without `covers`."""
    session = open_session(run, k, users, covers)
    page = build_page(session)
    if hosts := printable(", ".join(session.covers.hosts)):
        loads = f"the browsers of visitors load pictures (column {session.covers.column}) from {hosts}"
        print(loads if covers else f"with --covers, {loads}")
    print(f"serving http://{host}:{port}, Ctrl-C stops it")
    if not is_local(host):
        seen = "choose users by their ids and see their events" if users else "use the model and see the catalog"
        print(f"{host} is no loopback address: whoever reaches this machine can {seen}; there is no password")
    try:
        page.launch(server_name=host, server_port=port, inbrowser=browser, **launch_options(host))
    except OSError as error:
        raise ValueError(f"cannot serve at {host}:{port} ({error}): choose another --port or --host") from error

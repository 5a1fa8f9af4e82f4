"""The page of the web demo: controls and lists around a `DemoSession`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from polyrec.web.cards import STYLE, item_html, list_html
from polyrec.web.guard import guarded
from polyrec.web.results import Snapshot
from polyrec.web.session import DemoSession, Event

# Fonts of the reader's own machine: the page makes no internet requests.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
_WHAT = "Build a history, then change one of its events: the list marks what changed, and says why each item is in it."
_WHERE = {True: "Choose a user, or search for titles and add them.", False: "Search for titles and add them."}
_EMPTY = "<p class='polyrec-note polyrec-subdued'>The history has no events yet: this is what a new user sees.</p>"


def launch_options(host: str) -> dict[str, Any]:
    """Arguments of gradio's `launch`: how the page looks, and that other sites are refused.

    Args:
        host: where the page listens.
    """
    return {"theme": THEME, "css": STYLE, "footer_links": [], "share": False, "quiet": True, **guarded(host)}


def build_page(session: DemoSession) -> gr.Blocks:
    """The page, ready to be launched."""
    with gr.Blocks(title="polyrec", analytics_enabled=False) as page:
        history, user = gr.State([]), gr.State({})
        first, seen = session.recommendations([], {}, {})
        snapshot, predicted = gr.State(seen), gr.State({})
        users = session.user_ids()
        gr.Markdown(f"# polyrec\n{_WHAT} {_WHERE[bool(users)]}")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                user_id = gr.Dropdown(users, value=None, label="User", visible=bool(users), allow_custom_value=True)
                new = gr.Button("New user")
                text = gr.Textbox(label="Search titles", placeholder="a word of a title, then Enter")
                item = gr.Dropdown([], label="Item", value=None)
                values = [_control(session, n) for n in range(len(session.feedback))]
                with gr.Row():
                    add = gr.Button("Add to history", variant="primary", min_width=120)
                    score = gr.Button("Score this item", min_width=120)
                empty = gr.HTML(_EMPTY)
                event = gr.Radio([], label="Event of the history (0)", elem_classes="polyrec-history", visible=False)
                with gr.Row(visible=False) as edit:
                    change = gr.Button("Change feedback", min_width=120, interactive=bool(values))
                    remove = gr.Button("Remove it", min_width=120)
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("## Recommendations")
                recommended = gr.HTML(list_html(first, [], session.covers.shown))
                gr.Markdown("## Predictions for the item")
                item_scores = gr.HTML(item_html("", []))
        shown = [history, user, snapshot, predicted, empty, event, edit, recommended, item_scores]
        states = [history, user, snapshot, predicted, item]
        names = [feedback.name for feedback in session.feedback]

        def about(events: list[Event], known: dict, of_item: Any, said: dict) -> tuple[str, dict]:
            if of_item is None:
                return item_html("", []), {}
            found, now = session.predictions(events, known, of_item, said)
            return item_html(session.titles[of_item], found), now

        def show(
            events: list[Event], known: dict, old: Snapshot, said: dict, of_item: Any, position: int | None = None
        ) -> tuple:
            found, now = session.recommendations(events, known, old)
            of_one, predictions = about(events, known, of_item, said)
            labels, some = session.labels(events), bool(events)
            chosen = position if position is not None else next((n for _, n in labels), None)
            listed = gr.Radio(choices=labels, value=chosen, label=f"Event of the history ({len(events)})", visible=some)
            html = list_html(found, session.gone(old, now), session.covers.shown)
            return (
                *(events, known, now, predictions),
                *("" if some else _EMPTY, listed, gr.Row(visible=some), html, of_one),
            )

        def load(who: Any, of_item: Any) -> tuple:
            events = session.history_of(who)
            if who not in (None, "") and not events:
                raise ValueError(f"the log has no events of user {who}")
            return show(events, session.attributes_of(who), {}, {}, of_item)

        def forget(of_item: Any) -> tuple:
            return (None, *show([], {}, {}, {}, of_item))

        def append(events: list[Event], known: dict, old: Snapshot, said: dict, of_item: Any, *given: Any) -> tuple:
            return show(session.added(events, of_item, dict(zip(names, given, strict=True))), known, old, said, of_item)

        def alter(
            events: list[Event], known: dict, old: Snapshot, said: dict, of_item: Any, position: Any, *given: Any
        ) -> tuple:
            changed = session.changed(events, position, dict(zip(names, given, strict=True)))
            return show(changed, known, old, said, of_item, position)

        def drop(events: list[Event], known: dict, old: Snapshot, said: dict, of_item: Any, position: Any) -> tuple:
            return show(session.removed(events, position), known, old, said, of_item)

        def score_item(events: list[Event], known: dict, of_item: Any) -> tuple:
            return about(events, known, session.known(of_item), {})

        user_id.input(_with_errors(load), [user_id, item], shown, api_name="load_user")
        new.click(_with_errors(forget), [item], [user_id, *shown], api_name="new_user")
        text.submit(_with_errors(partial(_find, session)), [text], [item], api_name="find")
        add.click(_with_errors(append), [*states, *values], shown, api_name="add_event")
        change.click(_with_errors(alter), [*states, event, *values], shown, api_name="change_event")
        remove.click(_with_errors(drop), [*states, event], shown, api_name="remove_event")
        score.click(_with_errors(score_item), [history, user, item], [item_scores, predicted], api_name="score_item")
    return page


def _find(session: DemoSession, words: str) -> Any:
    """The choice of items whose titles have these words."""
    found = session.find(words)
    if not found:
        raise ValueError(f"no title has {'all the words of ' if ' ' in words.strip() else ''}“{words.strip()}”")
    return gr.Dropdown(choices=found, value=found[0][1])


def _control(session: DemoSession, n: int) -> Any:
    feedback = session.feedback[n]
    if feedback.choices:
        return gr.Dropdown(list(feedback.choices), value=feedback.choices[-1], label=feedback.name)
    return gr.Number(value=None, label=feedback.name) if feedback.number else gr.Textbox(label=feedback.name)


def _with_errors(act: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; an error that a visitor can mend is shown as a message on the page."""

    def acted(*arguments: Any) -> Any:
        try:
            return act(*arguments)
        except ValueError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error

    return acted

"""The page of the web demo: controls and tables around a `DemoSession`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from polyrec.web.session import DemoSession, Event

# Fonts of the reader's own machine: the page makes no internet requests.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
_WHAT = """Choose a user, or build a history by searching titles. Then change one event: the lists show what changed."""


def build_page(session: DemoSession) -> gr.Blocks:
    """The page, ready to be launched."""
    with gr.Blocks(title="polyrec", analytics_enabled=False) as page:
        history, user = gr.State([]), gr.State({})
        rows_of_somebody_new, their_ranks = session.recommendations([], {}, {})
        ranks, predicted = gr.State(their_ranks), gr.State({})
        gr.Markdown(f"# polyrec\n{_WHAT}")
        with gr.Row():
            with gr.Column(scale=1):
                users = session.user_ids()
                user_id = gr.Dropdown(users, value=None, label="User", visible=bool(users), allow_custom_value=True)
                new = gr.Button("New user")
                text = gr.Textbox(label="Search titles", placeholder="a word of a title, then Enter")
                item = gr.Dropdown([], label="Item", value=None)
                values = [_control(session, n) for n in range(len(session.feedback))]
                with gr.Row():
                    add, ask = gr.Button("Add to the history", variant="primary"), gr.Button("Score this item")
                event = gr.Dropdown([], label="Event of the history (0)", value=None)
                with gr.Row():
                    change, remove = gr.Button("Change its feedback"), gr.Button("Remove it")
            with gr.Column(scale=2):
                recommended = gr.Dataframe(
                    rows_of_somebody_new,
                    headers=session.headers,
                    label="Recommendations",
                    interactive=False,
                    wrap=True,
                    type="array",
                )
                item_scores = gr.Dataframe(
                    headers=["task", "prediction", "change"],
                    label="Predictions for the item",
                    interactive=False,
                    type="array",
                )
        shown = [history, user, ranks, predicted, event, recommended, item_scores]
        states = [history, user, ranks, predicted, item]
        names = [feedback.name for feedback in session.feedback]

        def show(
            events: list[Event], known: dict, old: dict, said: dict, of_item: Any, position: int | None = None
        ) -> tuple:
            rows, new_ranks = session.recommendations(events, known, old)
            about, now = session.predictions(events, known, of_item, said) if of_item is not None else ([], {})
            labels = session.labels(events)
            chosen = position if position is not None else next((n for _, n in labels), None)
            listed = gr.Dropdown(choices=labels, value=chosen, label=f"Event of the history ({len(events)})")
            return events, known, new_ranks, now, listed, rows, about

        def load(who: Any, of_item: Any) -> tuple:
            return show(session.history_of(who), session.attributes_of(who), {}, {}, of_item)

        def forget(of_item: Any) -> tuple:
            return (None, *show([], {}, {}, {}, of_item))

        def find(words: str) -> Any:
            found = session.find(words)
            return gr.Dropdown(choices=found, value=found[0][1] if found else None)

        def append(events: list[Event], known: dict, old: dict, said: dict, of_item: Any, *given: Any) -> tuple:
            return show(session.added(events, of_item, dict(zip(names, given, strict=True))), known, old, said, of_item)

        def alter(
            events: list[Event], known: dict, old: dict, said: dict, of_item: Any, position: Any, *given: Any
        ) -> tuple:
            changed = session.changed(events, position, dict(zip(names, given, strict=True)))
            return show(changed, known, old, said, of_item, position)

        def drop(events: list[Event], known: dict, old: dict, said: dict, of_item: Any, position: Any) -> tuple:
            return show(session.removed(events, position), known, old, said, of_item)

        def score_item(events: list[Event], known: dict, of_item: Any) -> tuple:
            return session.predictions(events, known, of_item, {})

        user_id.input(_with_errors(load), [user_id, item], shown, api_name="load_user")
        new.click(_with_errors(forget), [item], [user_id, *shown], api_name="somebody_new")
        text.submit(_with_errors(find), [text], [item], api_name="find")
        add.click(_with_errors(append), [*states, *values], shown, api_name="add_event")
        change.click(_with_errors(alter), [*states, event, *values], shown, api_name="change_event")
        remove.click(_with_errors(drop), [*states, event], shown, api_name="remove_event")
        ask.click(_with_errors(score_item), [history, user, item], [item_scores, predicted], api_name="ask")
    return page


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
            raise gr.Error(str(error), print_exception=False) from error

    return acted

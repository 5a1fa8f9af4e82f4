"""Recommendations and predictions as HTML; every text of a catalog is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from polyrec.web.results import Prediction, Recommendation

# Colours are those of gradio's theme, which has a dark side; two columns become one on narrow screens.
STYLE = """
.gradio-container { --polyrec-subdued: color-mix(in srgb, var(--body-text-color) 70%, transparent) }
.gradio-container .html-container { padding: 0 !important }
.gradio-container .wrap:has(> .error) { display: none !important } /* the message is enough; the list stays readable */
.polyrec-list { list-style: none; margin: 0; padding: 0 }
.polyrec-card { display: flex; flex-wrap: wrap; gap: .4rem 1rem; padding: .7rem 0 .7rem .6rem;
  border-bottom: 1px solid var(--border-color-primary); border-left: 4px solid transparent; overflow-wrap: anywhere }
.polyrec-card.up, .polyrec-card.new { border-left-color: #2e9e5b }
.polyrec-card.down { border-left-color: #d98324 }
.polyrec-cover { flex: none; position: relative; width: 3.6rem; height: 5.2rem; border-radius: 4px; overflow: hidden;
  background: var(--background-fill-secondary); color: var(--polyrec-subdued);
  display: flex; align-items: center; justify-content: center; font-size: 1.4rem }
.polyrec-cover img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: cover; margin: 0 }
.polyrec-words { flex: 1 1 14rem; min-width: 0 }
.polyrec-words p { margin: .15rem 0 0; font-size: .9rem; line-height: 1.4 }
.polyrec-title { font-weight: 600 }
.polyrec-subdued { color: var(--polyrec-subdued); font-weight: 400 }
.polyrec-moved { font-size: .8rem; font-weight: 600; padding: 0 .45rem; border-radius: 1rem; white-space: nowrap;
  background: var(--background-fill-secondary) }
.polyrec-moved.up, .polyrec-moved.new { background: #2e9e5b; color: #fff }
.polyrec-moved.down { background: #f2c38b; color: #3d2200 }
.polyrec-bars { flex: 0 1 19rem; min-width: min(100%, 15rem); margin: 0; font-size: .85rem; align-self: center }
.polyrec-bars.wide { max-width: 34rem }
.polyrec-bars div { display: grid; grid-template-columns: minmax(4.6rem, 6rem) 1fr 3.2rem 4rem; gap: .5rem;
  align-items: center; margin: .15rem 0 }
.polyrec-bars dt { color: var(--polyrec-subdued) }
.polyrec-bars dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.polyrec-bar { height: .55rem; border-radius: 3px; background: var(--border-color-primary); overflow: hidden }
.polyrec-bar.none { background: none }
.polyrec-bar i { display: block; height: 100%; background: var(--color-accent) }
.polyrec-change { font-weight: 600; border-radius: 3px; padding: 0 .2rem }
.polyrec-change.up { color: #14713c; background: #d9f2e3 }
.polyrec-change.down { color: #8a4b08; background: #fbe6cf }
.polyrec-note { margin: .3rem 0; font-size: .9rem }
.polyrec-history { max-height: 20rem; overflow-y: auto }
.polyrec-history label { width: 100% }
.polyrec-history label > span { white-space: normal; overflow-wrap: anywhere }
@media (max-width: 640px) { .polyrec-bars { flex: 1 1 100% } }
"""
_LEGEND = (
    "<p class='polyrec-note polyrec-subdued'>Bars: a probability; a number as a share of the largest label; the score "
    "of a retrieval task as how probable the item is beside the first.</p>"
)
_CLASSES = {"↑": "up", "↓": "down", "n": "new"}


def list_html(found: Sequence[Recommendation], gone: Sequence[str], covers: bool = False) -> str:
    """The list, with what changed since the one before on top.

    Args:
        gone: titles that have left the list.
        covers: leave space for pictures.
    """
    if not found:
        return "<p class='polyrec-note'>Nothing is left to recommend: the history holds the whole catalog.</p>"
    cards = "".join(_card(one, covers) for one in found)
    return f"{_changes(found, gone)}<ol class='polyrec-list' aria-label='Recommendations'>{cards}</ol>{_LEGEND}"


def item_html(title: str, predictions: Sequence[Prediction]) -> str:
    """What every task predicts for one item."""
    if not predictions:
        return "<p class='polyrec-note polyrec-subdued'>Search for a title, then score it or add it to the history.</p>"
    return f"<p class='polyrec-note polyrec-title'>{escape(title)}</p>{_bars(predictions, wide=True)}"


def _changes(found: Sequence[Recommendation], gone: Sequence[str]) -> str:
    if not found[0].moved:
        return ""
    new, moved = (sum(_CLASSES.get(r.moved[0]) in kinds for r in found) for kinds in (("new",), ("up", "down")))
    said = f"{new} new, {moved} moved" if new or moved else "The same items in the same order"
    left = f"; gone: {escape(', '.join(gone))}" if gone else ""
    return f"<p class='polyrec-note' role='status'>{said}{left}.</p>"


def _card(one: Recommendation, covers: bool) -> str:
    kind = _CLASSES.get(one.moved[:1], "")
    moved = f" <span class='polyrec-moved {kind}'>{escape(one.moved)}</span>" if kind else ""
    about = f"<p class='polyrec-subdued'>{escape(one.about)}</p>" if one.about else ""
    return (
        f"<li class='polyrec-card {kind}'>{_cover(one) if covers else ''}<div class='polyrec-words'>"
        f"<div class='polyrec-title'><span class='polyrec-subdued'>{one.rank}</span> {escape(one.title)}{moved}</div>"
        f"{about}<p>{escape(one.reason)}</p></div>{_bars(one.predictions)}</li>"
    )


def _cover(one: Recommendation) -> str:
    """The picture over the first letter of the title, which shows where it cannot be loaded."""
    image = ""
    if one.cover is not None:
        image = f'<img src="{escape(one.cover)}" alt="" loading="lazy" referrerpolicy="no-referrer">'
    return f"<div class='polyrec-cover' aria-hidden='true'>{escape(one.title[:1])}{image}</div>"


def _bars(predictions: Sequence[Prediction], wide: bool = False) -> str:
    rows = "".join(
        f"<div><dt>{escape(one.task)}</dt>{_bar(one.share)}<dd>{one.value:.3f}</dd><dd>{_change(one.change)}</dd></div>"
        for one in predictions
    )
    return f"<dl class='polyrec-bars{' wide' * wide}'>{rows}</dl>"


def _bar(share: float | None) -> str:
    if share is None:
        return "<span class='polyrec-bar none'></span>"
    return f"<span class='polyrec-bar' aria-hidden='true'><i style='width:{100 * share:.1f}%'></i></span>"


def _change(change: float | None) -> str:
    if change is None or abs(change) < 0.0005:
        return ""
    return f"<span class='polyrec-change {'up' if change > 0 else 'down'}'>{change:+.3f}</span>"

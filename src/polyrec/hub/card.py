"""The least that a card says: what the model is and how to load it. `polyrec card` writes one with figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from polyrec.core.escapes import sentence

LIBRARY = "polyrec"
TAGS = ("polyrec", "recommendation")

_CROSS_ENCODER = """\
from polyrec import PolyRecCrossEncoder, PolyRecCrossEncoderProcessor

model = PolyRecCrossEncoder.from_pretrained("{repo}")
processor = PolyRecCrossEncoderProcessor.from_pretrained("{repo}")
"""
_RECOMMENDER = """\
from polyrec import PolyRecForRecommendation, PolyRecProcessor

model = PolyRecForRecommendation.from_pretrained("{repo}")
processor = PolyRecProcessor.from_pretrained("{repo}")
print(model.recommend(processor, history=[...], k=10))
"""


def minimal_card(folder: Path, repo_id: str, tags: Sequence[str] = ()) -> str:
    """A README.md for a folder that has none: metadata for the Hub, tasks, and five lines that load the model."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tasks = config.get("tasks") or []
    reranks = "cross_encoder" in str(config.get("model_type", ""))
    metadata = {
        "library_name": LIBRARY,
        "tags": list(dict.fromkeys([*TAGS, *(["cross-encoder"] if reranks else []), *tags])),
    }
    lines = ["---", yaml.safe_dump(metadata, sort_keys=False).strip(), "---", "", f"# {repo_id.split('/')[-1]}", ""]
    lines += ["A [polyrec](https://pypi.org/project/polyrec) model.", ""]
    if tasks:
        lines += ["| task | head | label |", "|---|---|---|"]
        lines += [f"| {_cell(t['name'])} | {_cell(t['head'])} | {_cell(t.get('label') or '')} |" for t in tasks] + [""]
    code = (_CROSS_ENCODER if reranks else _RECOMMENDER).format(repo=repo_id)
    lines += ["```bash", "pip install polyrec", "```", "", "```python", code.rstrip(), "```", ""]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return sentence(str(value)).replace("|", "\\|")


def tagged(card: str, tags: Sequence[str]) -> str:
    """A card with `library_name: polyrec` and the tags in its metadata; what it says stays.

    Example:
        >>> print(tagged("# My model", ["shop"]).splitlines()[:3])
        ['---', 'library_name: polyrec', 'tags:']
    """
    metadata: dict[str, Any] = {}
    text = card
    if card.startswith("---\n") and "\n---" in card[4:]:
        head, _, text = card[4:].partition("\n---")
        metadata = yaml.safe_load(head) or {}
        text = text.partition("\n")[2]
    held = metadata.get("tags") or []
    wanted = {
        **metadata,
        "library_name": LIBRARY,
        "tags": list(dict.fromkeys([*([held] if isinstance(held, str) else held), *TAGS, *tags])),
    }
    if wanted == metadata:
        return card
    return f"---\n{yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)}---\n{text}"

"""A model card from a run: what it is for, what it was measured to do, and where it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from polyrec.cards.limits import limits, slice_sections
from polyrec.cards.metadata import base_models, card_data, teacher_names
from polyrec.core.escapes import sentence
from polyrec.core.files import write_atomically
from polyrec.core.schema import from_dict
from polyrec.core.secrets import hide_secrets, without_secrets
from polyrec.evaluation.metric_names import day
from polyrec.evaluation.page import Section, Table, markdown
from polyrec.evaluation.plotting import to_png
from polyrec.runs.card_section import About
from polyrec.tracking.curves import task_curves
from polyrec.tracking.run_files import RunFiles
from polyrec.tracking.tables import baseline_points, figure_table

CARD_NAME, CURVES_NAME = "README.md", "training_curves.png"
_PATHS = ("interactions", "items", "users", "prior_history")


def make_card(run: RunFiles, about: About | None = None, curves: str | None = None) -> ModelCard:
    """The card of a run; all its figures come from the run's files.

    Args:
        about: what the files do not know. Default: the recipe's `card` section.
        curves: file name of the picture of the training, see [`write_card`]; None: without it.
    """
    about = from_dict(About, run.recipe.get("card", {})) if about is None else about
    found = [
        _what(run, about),
        _use(about),
        _load(run, about),
        *_figures(run),
        _tasks(run),
        _data(run, about),
        _training(run, curves),
        limits(run, about),
        *slice_sections(run),
        _again(run),
    ]
    text = hide_secrets(markdown(about.name or sentence(run.name), found, pictures=True))  # runs of before hold tokens
    return ModelCard(f"---\n{card_data(run, about).to_yaml()}\n---\n\n{text}")


def write_card(run: RunFiles, output: Path | None = None, about: About | None = None) -> Path:
    """Write the card and, where the trainer's log is there and matplotlib installed, its picture beside it.

    Args:
        output: the file; default: README.md in the run's folder, where the Hub looks for it. The picture beside another
            file has that file's name in front.
    """
    path = run.folder / CARD_NAME if output is None else output
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = None
    if run.history:
        picture = CURVES_NAME if path.name == CARD_NAME else f"{path.stem}_{CURVES_NAME}"
        figure = task_curves({"": run.history}, {task: run.primary(task) for task in run.tasks})
        write_atomically(path.parent / picture, to_png(figure))
    write_atomically(path, str(make_card(run, about, picture)))
    return path


def _what(run: RunFiles, about: About) -> Section:
    names = ", ".join(f"`{name}`" for name in run.tasks)
    points = [sentence(about.description)] if about.description else []
    points.append(
        f"One model with {len(run.tasks)} task{'s' * (len(run.tasks) > 1)} about a user's next step: {names}."
    )
    if inside := base_models(run):
        points.append(f"Pretrained inside: {', '.join(map(_code, inside))}.")
    if teachers := teacher_names(run):
        points.append(f"Distilled from {', '.join(map(_code, teachers))}.")
    return Section("What it is", points)


def _code(text: str) -> str:
    """A name as code, in a cell of a table or in a sentence."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "\\|").split()) + "`"


def _use(about: About) -> Section:
    return Section(
        "Intended use",
        [
            *map(sentence, about.intended_use),
            "Ranking a catalog, or predicting feedback, for users whose events are of the kind it was trained on; for "
            "the items of its catalog, and others that `processor.extend` adds.",
            "Not for decisions about users that are not recommendations (credit, employment, health), nor for users "
            "or catalogs of another kind without a new evaluation.",
            *map(sentence, about.out_of_scope),
        ],
    )


def _load(run: RunFiles, about: About) -> Section:
    source = json.dumps(about.repository or run.name)
    code = (
        "from polyrec import PolyRecForRecommendation, PolyRecProcessor\n\n"
        f"model = PolyRecForRecommendation.from_pretrained({source})\n"
        f"processor = PolyRecProcessor.from_pretrained({source})\n"
        "item = processor.items.ids[0].as_py()  # or ids, or dicts, of what the user did\n"
        "print(model.recommend(processor, history=[item], k=10))\n"
    )
    return Section("How to use it", ["`pip install polyrec`, then:"], code=("python", code))


def _figures(run: RunFiles) -> list[Section]:
    found: list[Section] = []
    for task in run.tasks:
        metric = run.primary(task)
        points = [f"Test set; [95% interval] over users; `{metric}` decides; best in bold."] if not found else []
        points += baseline_points(run.metrics[task])
        found.append(Section(f"Figures: `{task}`", points, figure_table(run.metrics[task])))
    return found


def _tasks(run: RunFiles) -> Section:
    configured = {task["name"]: task for task in run.config.get("tasks", [])}
    rows = []
    for name, task in run.tasks.items():
        parent = "" if task.parent is None else f"`{task.parent}` ({task.coupling})"
        weight = configured.get(name, {}).get("weight", task.weight)
        label = _code(task.label) if task.label else ""
        rows.append([f"`{name}`", task.head, label, f"{weight:g}", parent])
    points = [
        f"Loss weighting: `{run.config.get('weighting', 'fixed')}`; experts: `{run.config.get('experts', 'none')}`. "
        "A task's loss is that of its head."
    ]
    return Section("Tasks", points, Table(["task", "head and loss", "label", "weight", "parent"], rows))


def _data(run: RunFiles, about: About) -> Section:
    points = [sentence(text) for text in about.data]
    if about.datasets:
        points.append(f"Data: {sentence(', '.join(about.datasets))}.")
    split = run.recipe.get("split", {})
    points.append("Split: " + sentence(", ".join(f"{name} {value}" for name, value in split.items())) + ".")
    data = run.training.get("data")
    if data is None:
        return Section("Data", points)
    points.append(f"{data['events']:,} events of {data['people']:,} users and {data['items']:,} items.")
    points.append(f"Fingerprints: data `{data['fingerprints']['data']}`, inputs `{data['fingerprints']['processor']}`.")
    rows = [
        [
            name,
            f"{part['rows']:,}",
            f"{part['people']:,}",
            f"{day(part['first'])} to {day(part['last'])}" if part["first"] is not None else "",
            *(f"{part['labels'].get(task, 0):,}" for task in run.tasks),
        ]
        for name, part in data["parts"].items()
    ]
    return Section("Data", points, Table(["split", "rows", "users", "time", *(f"`{t}`" for t in run.tasks)], rows))


def _training(run: RunFiles, curves: str | None) -> Section:
    points, training = [], run.training
    if cost := training.get("cost"):
        points.append(
            f"{cost['epochs']:g} epochs in {cost['wall_seconds']:.1f} seconds ({cost['cpu_seconds']:.1f} of processor "
            f"time) on {training['device']}, {training['processes']} process(es) of {training['threads']} thread(s); "
            f"{cost['parameters']:,.0f} parameters."
        )
        best = training["best"]
        if best["metric"] is not None:
            points.append(f"Kept: the weights of step {best['step']}, by `{best['by']}` of the validation set.")
    if run.emissions:
        points.append(f"Measured emissions: {1000 * float(run.emissions['emissions']):.3g} g of CO2 (codecarbon).")
    if updates := run.recipe.get("updates"):
        points.append(f"Updated {len(updates)} time(s) since; figures and curves are those from before.")
    return Section("Training", points, plot=curves)


def _again(run: RunFiles) -> Section:
    """The command, with the recipe; of paths only the last part, as others have no use for folders of one machine."""
    recipe: dict[str, Any] = {
        name: Path(value).name if name in (*_PATHS, "output") and value else value
        for name, value in run.recipe.items()
        if name not in ("card", "tune", "updates", "cache_dir") and value not in (None, {}, [])
    }
    points = ["`polyrec train recipe.yaml`, with this recipe and the tables named in it:"]
    if found := run.training.get("versions"):
        points.insert(0, "Versions: " + ", ".join(f"{name} {value}" for name, value in found.items()) + ".")
    return Section("Reproduce it", points, code=("yaml", yaml.safe_dump(without_secrets(recipe), sort_keys=False)))

"""Exported graphs say what the model says, at every size, without torch."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from export_fixtures import ITEMS, Traced, check, every_pair_task, every_term, made_batch, model_of

from polyrec import PolyRecForRecommendation
from polyrec.core.registry import COUPLINGS, HEADS, RETRIEVAL_TERMS
from polyrec.data.batch import Batch
from polyrec.inference.scorer import TorchScorer
from polyrec.serving.export_graphs import Exported, load_export
from polyrec.serving.graph_scorer import GraphScorer
from polyrec.serving.parity import _Compared, as_arrays
from polyrec.serving.runtime import flat

SIZES = [*itertools.product([1, 2, 7, 32], [0, 1, 2, 63, 64], [1, 2, 50, 500])]


@pytest.fixture(scope="module")
def model() -> PolyRecForRecommendation:
    return model_of([*every_term(), *every_pair_task()], task_item_embeddings=True, experts="mmoe")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("export") / "onnx"
    Exported(model, [*range(ITEMS - 2)]).write(place, "onnx")
    return place


def test_every_part_is_in_it(model):
    """Prevents a part that is registered and never compared with its graph."""
    heads = {head.task.head for head in model.heads.values()}
    assert heads | {"search"} == set(HEADS.names())  # searches: test_export_forms.py
    couplings = {COUPLINGS.get(name) for name in COUPLINGS.names()}
    assert {type(own) for own in model.couplings.values()} == couplings
    terms = {type(t) for n in model.state_tasks for t in model.heads[n].named_terms.values()}
    assert terms == {RETRIEVAL_TERMS.get(name) for name in RETRIEVAL_TERMS.names()}
    assert all(model.heads[f"a_{kind}"].trees.speaks for kind in ("binary", "regression"))


def test_onnx_says_what_the_model_says_at_every_size(model, folder):
    """Prevents graphs that were specialised to the sizes of their example, or lost a part on the way."""
    check(load_export(folder), model, SIZES)


def test_sizes_are_symbols(folder):
    """Prevents a size that the exporter has silently fixed: in files, not in what it returned."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for own in manifest["graphs"].values():
        graph = onnx.load(folder / own["file"], load_external_data=False).graph
        found = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
        wanted = {name: [str(d).replace("+", " + ") if isinstance(d, str) else d for d in one["shape"]]
                  for name, one in own["inputs"].items()}  # fmt: skip
        assert found == wanted
        assert [o.name for o in graph.output] == own["outputs"]
        letters = {d for shape in wanted.values() for d in shape if isinstance(d, str)}
        sizes = [d.dim_param for o in graph.output for d in o.type.tensor_type.shape.dim if d.dim_param]
        assert set(sizes) <= letters | {"L + 1"}
        assert sizes  # the batch at least


def test_nothing_of_this_machine_is_in_a_file(folder):
    """Prevents pushing the paths of this machine, which torch notes at every node."""
    for path in folder.glob("*.onnx"):
        assert b"/polyrec/" not in path.read_bytes()


def test_more_items_need_no_new_graphs(model, folder):
    """Prevents graphs that hold the number of items: `extend` changes items.safetensors alone."""
    runtime, batch = load_export(folder), as_arrays(made_batch(model, 3, 5, 2, last=True))
    before, pairs = runtime.scores(batch), runtime.predictions(batch)
    runtime.items = {name: np.concatenate([rows, rows[2:]]) for name, rows in runtime.items.items()}
    after = runtime.scores(batch)
    for task, scores in before.items():
        assert after[task].shape == (3, 2 * ITEMS - 2)
        np.testing.assert_allclose(after[task][:, :ITEMS], scores, atol=1e-5)
    for task, found in runtime.predictions(batch).items():
        np.testing.assert_allclose(found, pairs[task], atol=1e-5)


def test_a_scorer_knows_what_has_changed_in_the_model(model, folder):
    """Prevents graphs that score with the times at which items appeared, or with the catalog, of before a change."""
    scorer, batch = GraphScorer(load_export(folder), model), Batch.inputs(made_batch(model, 3, 5, 1, last=True))
    [term] = [own for own in model.heads["ages"].named_terms.values() if own.option == "item_age"]
    released, before = term.released, scorer.catalog("ages", batch, scorer.read(batch))
    try:
        term.released = released.flip(0).clone()
        after = scorer.catalog("ages", batch, scorer.read(batch))
        with torch.no_grad():
            torch_scorer = TorchScorer(model, model.item_encoder.table())
            expected = torch_scorer.catalog("ages", batch, torch_scorer.read(batch))
        np.testing.assert_allclose(after, expected, atol=1e-5, rtol=1e-5)
        assert not np.allclose(after, before, atol=1e-3)
    finally:
        term.released = released


def test_alone_as_in_a_batch(model, folder):
    """Prevents answers that depend on who else asks."""
    runtime, batch = load_export(folder), as_arrays(made_batch(model, 7, 12, 9, last=True))
    together = runtime.predictions(batch) | {f"scores of {n}": s for n, s in runtime.scores(batch).items()}
    one = {n: v if n.startswith("trending") else v[3:4] for n, v in batch.items()}
    alone = runtime.predictions(one) | {f"scores of {n}": s for n, s in runtime.scores(one).items()}
    for name, values in together.items():
        np.testing.assert_allclose(alone[name][0], values[3], atol=1e-5, rtol=1e-5)


def test_it_runs_without_polyrec_and_torch(model, folder, tmp_path):
    """Prevents a runner that needs more than numpy and onnxruntime."""
    batch = as_arrays(made_batch(model, 3, 6, 4, last=True))
    np.savez(tmp_path / "batch.npz", **batch)
    code = (
        "import sys, runpy\n"
        "class No:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('torch', 'polyrec', 'transformers', 'pyarrow', 'safetensors'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "sys.argv[1:] = sys.argv[2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = f"import sys; sys.argv = {[str(folder / 'runtime.py'), '', str(tmp_path / 'batch.npz'), '5']!r}\n" + code
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    output, context = model(Batch.of(_nested(batch))), model.request_context(Batch.of(_nested(batch)))
    with torch.no_grad():
        scores = model.score_items(output.states[:, 0], "terms", context=context.at((slice(None), 0))).numpy()
    likes, real_BC = output.logits["a_binary"].sigmoid().tolist(), batch["candidate_ids"] > 0
    for line, row, like, real in zip(lines, scores, likes, real_BC, strict=True):
        best = np.argsort(-row, kind="stable")[:5]
        assert [own["row"] for own in line["best"]] == best.tolist()
        assert [own["item"] for own in line["best"]] == [int(n) - 2 for n in best]
        assert np.array(line["a_binary"])[real] == pytest.approx(np.array(like)[real], abs=1e-5)


def _nested(arrays):
    found = {}
    for name, values in arrays.items():
        *groups, last = name.split(".")
        at = found
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = torch.from_numpy(values)
    return found


def test_a_part_that_cannot_be_exported_is_named(model):
    """Prevents a graph that silently leaves out what it could not express."""
    model = model_of([{"name": "next", "head": "retrieval", "options": {"repeats": True}}])
    term = model.heads["next"].repeats
    term.of_catalog = lambda of_groups, context, num_items: of_groups[: int(of_groups.sum())]
    with pytest.raises(ValueError, match="graph 'catalog' cannot be exported"):
        Traced(model)


def test_arrays_of_a_batch(model):
    """Prevents labels in what is given to other machines."""
    batch = made_batch(model, 2, 3, 4) | {"labels": {"click": torch.zeros(2, 4)}}
    arrays = as_arrays(batch)
    assert not any(name.startswith("labels") for name in arrays)
    assert set(arrays) == set(flat({n: v for n, v in batch.items() if n != "labels"}))


def test_single_precision_is_no_difference():
    """Prevents a run whose scores are large from having no graphs, since their last digits differ."""
    compared = _Compared()
    ours = np.linspace(-30, 30, 40, dtype=np.float32).reshape(2, 20)
    compared.add(ours, ours + np.float32(1.5e-5))
    assert compared.greatest == 30
    assert compared.largest <= 1e-5 * compared.greatest
    assert not compared.lists

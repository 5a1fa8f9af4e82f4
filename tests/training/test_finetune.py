"""One task is trained further; the others must not notice."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from model_fixtures import TASKS, fit, synthetic_log, tiny_model

from polyrec import PolyRecForRecommendation, PolyRecProcessor
from polyrec.cli.main import main
from polyrec.data.neighbours import FOLDS
from polyrec.evaluation import evaluator
from polyrec.evaluation.tree_weight import choose_tree_weights
from polyrec.models.polyrec.fingerprint import fingerprint
from polyrec.modules.encoders.request_context import LATEST, RequestContext
from polyrec.runs import finetune as cli_finetune
from polyrec.training.finetune import finetune
from polyrec.training.settings import FinetuneSettings

OPTIONS = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def world():
    return fit()


def trained(world, **options):
    """A model with the catalog, and every kind of part that a task may own."""
    return tiny_model(world[0], **options)


@pytest.mark.parametrize("experts", ["shared_bottom", "mmoe", "ple"])
@pytest.mark.parametrize("task", ["next_item", "like", "rating"])
def test_only_the_task_itself_changes(world, task, experts):
    """Prevents a gate, a skip or a loss weight that tasks share from moving with one of them."""
    # What neighbours say of this log is hard to improve.
    plain = [{"name": "next_item", "head": "retrieval", "options": {"neighbours": 0}}, *TASKS[1:]]
    tasks = plain if task == "next_item" else TASKS
    model = trained(world, tasks=tasks, experts=experts, weighting="uncertainty", dropout=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = FinetuneSettings(task, epochs=3, learning_rate=0.02, rank=2)
    report = finetune(model, world[0], world[1], settings, OPTIONS)
    assert report["others"] == {name: True for name in model.heads if name != task}
    assert report["best_epoch"] > 0
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value.nan_to_num(), after[name].nan_to_num())}
    assert changed
    assert all(f".{task}." in name for name in changed), changed
    assert all(p.requires_grad for p in model.heads.parameters())  # free again for whatever comes next
    metric = {"next_item": "next_item_ndcg@10", "like": "like_logloss", "rating": "rating_rmse"}[task]
    gain = report["after"][metric] - report["before"][metric]
    assert gain > 0 if task == "next_item" else gain < 0


def test_validation_weighs_the_task_that_learnt_at_its_best_epoch():
    """Prevents trees of other tasks from being weighed anew, which changes their answers, and those of the task from
    being weighed beside the last epoch's network, which is not the one that is kept."""
    processor, parts = fit(synthetic_log(users=200))
    model = tiny_model(processor)
    report = finetune(model, processor, parts, FinetuneSettings("like", epochs=1, learning_rate=50.0), OPTIONS)
    assert report["best_epoch"] == 0
    assert report["others"] == {"next_item": True, "rating": True}
    assert model.heads["rating"].trees.weight == 0
    assert model.heads["like"].trees.weight > 0
    served = model.heads["like"].trees.weight.clone()
    found = choose_tree_weights(model, processor, parts.valid, tasks=["like"])
    assert found["like"][1].weight == pytest.approx(served.item())
    assert report["after"]["like_logloss"] == pytest.approx(found["like"][1].value, rel=1e-4)


def test_a_task_named_like_a_part_is_trained_alone():
    """Prevents a task "output" from training the output layers of all the others, which then answer differently."""
    tasks = [{"name": "output", "head": "binary", "label": "rating >= 4"}, {"name": "rating", "head": "regression"}]
    named, options = fit(tasks=tasks), OPTIONS | {"weight_decay": 0.5}
    report = finetune(trained(named), *named, FinetuneSettings("output", epochs=1, learning_rate=0.02), options)
    assert report["others"] == {"rating": True}


def test_adapters_of_several_tasks_are_saved_in_one_folder(world, tmp_path):
    """Prevents the second adapter from replacing the first, and an adapter from being lost with the training."""
    model = trained(world)
    for task in ("like", "next_item"):
        finetune(model, world[0], world[1], FinetuneSettings(task, epochs=2, learning_rate=0.02, rank=2), OPTIONS)
    model.save_pretrained(tmp_path)
    loaded = PolyRecForRecommendation.from_pretrained(tmp_path)
    assert loaded.config.task_adapters == {"like": 2, "next_item": 2}
    one, other = (evaluator.predict(m, world[1].test) for m in (model, loaded))
    assert np.array_equal(one.values["like"], other.values["like"])
    assert np.array_equal(one.rankings["next_item"].top_ids, other.rankings["next_item"].top_ids)


def test_a_training_that_only_hurts_keeps_the_start(world):
    """Prevents fine-tuning from making a task worse: the start is one of the epochs to choose from."""
    model = trained(world)
    before = evaluator.predict(model, world[1].valid)
    settings = FinetuneSettings("like", epochs=1, learning_rate=50.0, rank=0)
    report = finetune(model, world[0], world[1], settings, OPTIONS)
    assert report["best_epoch"] == 0
    assert np.array_equal(before.values["like"], evaluator.predict(model, world[1].valid).values["like"])


def test_a_parent_is_refused_alone_and_reported_with_all(world):
    """Prevents a child from changing behind the back of whoever tuned its parent."""
    processor, parts = fit(
        tasks=[
            {"name": "rated", "head": "binary", "label": "rating >= 2"},
            {"name": "like", "head": "binary", "label": "rating >= 4", "parent": "rated", "coupling": "esmm"},
        ]
    )
    model = tiny_model(processor)
    with pytest.raises(ValueError, match="'rated' is the parent of 'like', which would change with it"):
        finetune(model, processor, parts, FinetuneSettings("rated"), OPTIONS)
    report = finetune(model, processor, parts, FinetuneSettings("rated", scope="all", epochs=1), OPTIONS)
    assert report["others"] == {"like": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "likes"}, "unknown task 'likes'; did you mean 'like'"),
        ({"task": "like", "scope": "tasks"}, "scope is 'tasks'; it must be 'task' or 'all'.*did you mean 'task'"),
        ({"task": "like", "rank": -1}, "rank is -1; it must be a whole number in"),
    ],
)
def test_impossible_settings_are_refused(world, options, message):
    """Prevents a typing error from training something else."""
    with pytest.raises(ValueError, match=message):
        finetune(trained(world), *world, FinetuneSettings(**options), OPTIONS)


def test_the_command_keeps_other_tasks_of_a_run(tmp_path, capsys, monkeypatch):
    """Prevents a command that replaces a run by one that answers other tasks differently, or that says nothing."""
    tables = synthetic_log()
    for name, table in tables.items():
        pd.DataFrame(table).to_parquet(tmp_path / f"{name}.parquet")
    recipe = {name: str(tmp_path / f"{name}.parquet") for name in tables} | {
        "tasks": [{"name": "next_item", "head": "retrieval"}, {"name": "rating", "head": "regression"}],
        "processor": {"max_history": 8},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "candidate_attention_heads": 2},
        "training": {**OPTIONS, "num_train_epochs": 1},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    old = PolyRecForRecommendation.from_pretrained(tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.json").read_text())
    run, trained, saved = str(tmp_path / "run"), [], PolyRecProcessor.from_pretrained(tmp_path / "run")
    monkeypatch.setattr(
        cli_finetune, "finetune", lambda model, *given: trained.append(model) or finetune(model, *given)
    )
    assert main(["finetune", run, "--task", "rating", "--learning-rate", "0.02", "--epochs", "2"]) == 0
    # Evidence was read without each user's fold: the rows that are learnt are counted in the table of all.
    evidence = trained[0].heads["next_item"].neighbours
    assert len(evidence.fold_items) == (1 + FOLDS) * len(evidence.items)
    assert fingerprint(PolyRecProcessor.from_pretrained(run)) == fingerprint(saved)
    assert "bit-equal predictions before and after: next_item" in capsys.readouterr().out
    new = PolyRecForRecommendation.from_pretrained(tmp_path / "run")
    assert new.config.task_adapters == {"rating": 8}
    states = torch.randn(3, 8)
    context = RequestContext(latest={"next_item": torch.arange(2, 5).repeat(3, LATEST)[:, :LATEST]})
    one, other = (model.eval().score_items(states, "next_item", context=context) for model in (old, new))
    assert torch.equal(one, other)
    assert len(json.loads((tmp_path / "run" / "finetune.json").read_text())) == 1
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert told["next_item"]["polyrec"]["ndcg@10"] == first["next_item"]["polyrec"]["ndcg@10"]
    assert told["rating"]["polyrec"]["rmse"] != first["rating"]["polyrec"]["rmse"]  # not what the model was before
    assert main(["finetune", run, "--task", "ratings"]) == 2
    capsys.readouterr()

    def reached(*_):
        raise ValueError("it trains")

    monkeypatch.setattr("polyrec.runs.finetune.finetune", reached)
    same = ["finetune", run, "--task", "rating", "--learning-rate", "0.02", "--epochs"]
    for options, said in (
        (["2"], "already been fine-tuned just so"),
        (["2", "--again"], "it trains"),
        (["2", "--output", str(tmp_path / "other")], "it trains"),
        (["3"], "it trains"),
    ):
        assert main([*same, *options]) == 2
        assert said in capsys.readouterr().err

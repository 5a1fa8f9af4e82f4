"""What is logged beside the tasks, and that it reaches trackers."""

import numpy as np
import pytest
import torch
from model_fixtures import arguments, fit, synthetic_log, tiny_model

from polyrec import PolyRecTrainer
from polyrec.tracking.facts import data_facts, fingerprints
from polyrec.tracking.step_log import StepLog


@pytest.fixture(scope="module")
def world():
    return fit(synthetic_log(users=30))


def trained(world, folder, compare=False, **options):
    processor, parts = world
    weighting = {"weighting": "aggregation", "weighting_options": {"method": "pcgrad"}} if compare else {}
    model = tiny_model(processor, experts="mmoe", **weighting)
    args = arguments(folder, num_train_epochs=2, logging_steps=1, per_device_train_batch_size=16, **options)
    trainer = PolyRecTrainer(model, args, parts.train, parts.valid, processing_class=processor)
    trainer.train()
    return trainer


def test_gates_are_means_over_real_candidates():
    """Prevents padding from being counted as a candidate that takes nothing of any expert."""
    random = np.random.default_rng(0)
    log, seen = StepLog({"b": ["x", "y"], "a": ["x", "y", "z"]}), {"a": [], "b": []}
    for _ in range(3):
        ids = random.integers(0, 3, (4, 5))
        gates = {t: random.random((4, 5, n)).astype(np.float32) for t, n in (("a", 3), ("b", 2))}
        log.add(
            {"item_ids": torch.from_numpy(ids), "candidate_ids": torch.from_numpy(ids)},
            {t: torch.from_numpy(g) for t, g in gates.items()},
        )
        for task, gate in gates.items():
            seen[task].append(gate[ids > 0])
    line = log.line(steps=3)
    for task, names in (("a", "xyz"), ("b", "xy")):
        expected = np.concatenate(seen[task]).mean(axis=0)
        assert [line[f"gate_{task}_{name}"] for name in names] == pytest.approx(expected.tolist(), rel=1e-5)


def test_evaluation_is_not_counted_as_training(world, tmp_path):
    """Prevents throughput from falling because somebody evaluates more often."""
    log = StepLog({})
    log.begin()
    log.add({"item_ids": torch.ones(2, 2), "candidate_ids": torch.ones(2, 2)}, None)
    log.began -= 100.0
    log.skip(99.0)
    log.begin()  # of a further step, which is not the start
    line = log.line(steps=1)
    assert line["steps_per_second"] == pytest.approx(1.0, rel=0.05)
    assert line["events_per_second"] == pytest.approx(4.0, rel=0.05)


def test_the_trainer_logs_all_of_it(world, tmp_path):
    """Prevents gates, throughput and memory from being measured and never logged."""
    trainer = trained(world, tmp_path, embedding_learning_rate=5e-5)
    lines = [row for row in trainer.state.log_history if "loss_like" in row]
    assert len(lines) == trainer.state.global_step
    sources = trainer.model.gate_sources
    for line in lines:
        for task, names in sources.items():
            found = [value for key, value in line.items() if key.startswith(f"gate_{task}_")]
            assert len(found) == len(names)
            assert sum(found) == pytest.approx(1, abs=1e-4)
        assert line["events_per_second"] > 0
        assert line["learning_rate_1"] == pytest.approx(20 * line["learning_rate_2"])
        assert line["learning_rate"] in (line["learning_rate_1"], line["learning_rate_2"])  # of the same step
    assert {"weight_like", "candidates_per_second", "steps_per_second"} <= set(lines[0])


def test_fingerprints_follow_the_data(world):
    """Prevents two data sets from looking the same in a tracker, and one from looking like two."""
    processor, parts = world
    log = synthetic_log(users=30)
    again, same = fit(log)
    assert fingerprints(again, same.train) == fingerprints(processor, parts.train)
    log["interactions"]["item_id"][3] += 1
    other, changed = fit(log)
    assert fingerprints(other, changed.train)["data"] != fingerprints(processor, parts.train)["data"]
    facts = data_facts(processor, parts)
    assert facts["events"] == len(log["interactions"]["item_id"])
    assert sum(part["rows"] for part in facts["parts"].values()) == facts["events"]
    assert facts["parts"]["train"]["last"] <= facts["parts"]["valid"]["first"]


def test_tensorboard_gets_it(world, tmp_path, monkeypatch):
    """Prevents what is logged from stopping before the event file, or runs from having no hyper-parameters there."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = trained(world, tmp_path, report_to=["tensorboard"], compare=True)
    trainer.evaluate()
    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    scalars = set(events.Tags()["scalars"])
    expected = {"loss_like", "weight_rating", "gate_like_expert_1", "events_per_second", "learning_rate"}
    assert {f"train/{name}" for name in expected} <= scalars
    assert "train/cosine_like_rating" in scalars
    assert {"eval/like_auc", "eval/next_item_ndcg@10"} <= scalars
    logged = [row["loss_like"] for row in trainer.state.log_history if "loss_like" in row]
    assert [e.value for e in events.Scalars("train/loss_like")] == pytest.approx(logged)
    told = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    assert trainer.args.fingerprints["data"] in told


def test_wandb_gets_it_offline(world, tmp_path, monkeypatch):
    """Prevents a run without network from losing its log or its hyper-parameters."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = trained(world, tmp_path, report_to=["wandb"])
    run = wandb.run
    summary, config = dict(run.summary), dict(run.config)
    run.finish()
    lines = [row for row in trainer.state.log_history if "loss_like" in row]
    assert summary["train/loss_like"] == pytest.approx(lines[-1]["loss_like"])
    assert "train/gate_like_expert_1" in summary
    assert config["fingerprints"] == trainer.args.fingerprints
    assert config["hidden_size"] == 8
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))

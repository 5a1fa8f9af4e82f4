"""An update of a model in memory: what is cut, learnt, counted and judged."""

import copy

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_fixtures import fit, synthetic_log, tiny_model

from polyrec import PolyRecProcessor, PolyRecTrainer
from polyrec.data.splits import LeakageError
from polyrec.training.arguments import PolyRecTrainingArguments
from polyrec.training.forgetting import fall, falls_beyond, forgetting, metrics_of, predict
from polyrec.training.paired_changes import paired_changes
from polyrec.training.settings import UpdateSettings
from polyrec.training.update import NEW, parts_of, train_update, update_data

QUIET = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 8}


def later_log(shift=2e6, users=40):
    later = synthetic_log(users=users, seed=1)["interactions"]
    return {**later, "timestamp": later["timestamp"] + shift}


def joined(*tables):
    return pa.concat_tables([pa.table(t) for t in tables])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, and its processor as it is saved and loaded."""
    folder = tmp_path_factory.mktemp("update")
    processor, data = fit()
    processor.save_pretrained(folder)
    return folder, processor, data


def loaded(world):
    processor = PolyRecProcessor.from_pretrained(world[0])
    processor.extend(users=synthetic_log()["users"])
    return processor


def test_resumed_statistics_are_those_of_the_whole_log(world):
    """Prevents features of new rows from depending on where the log was cut, or on what was counted before saving."""
    _, _, data = world
    again = loaded(world)
    log, statistics = again.resume(synthetic_log()["interactions"])
    np.testing.assert_allclose(statistics, data.valid.statistics, rtol=1e-6, atol=1e-6)
    for name, values in data.train.log.event_features.items():
        np.testing.assert_allclose(log.event_features[name], values, rtol=1e-5, atol=1e-6)
    for name, values in data.train.log.user_features.items():
        np.testing.assert_array_equal(log.user_features[name], values)
    # the state is that of a processor which was fed the rest row by row
    rest = np.sort(np.setdiff1d(np.arange(len(log)), data.train.log.row[data.train.candidates.event]))
    fed, _ = fit()
    fed.update(pa.table(synthetic_log()["interactions"]).take(rest))
    items = np.arange(2, 26)
    one, two = (p.request([3], items)["candidate_features"]["statistics"] for p in (fed, again))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", [{"by": "time"}, {"by": "leave_one_out"}, {"fractions": (0.9, 0.1, 0.0)}])
def test_parts_are_disjoint_and_held_out_events_are_never_learnt(world, split):
    """Prevents forgetting from being measured on events that are replayed."""
    processor = loaded(world)
    first = synthetic_log()["interactions"]
    tables = [first, later_log(), later_log(4e6)]
    rows = [len(t["item_id"]) for t in tables]
    log = processor.encode_events(joined(*tables))
    parts = parts_of(log, rows, [0.1, 0.25], split)
    masks = [parts.trained, parts.new, *parts.held.values()]
    assert (np.sum(masks, axis=0) == 1).all()
    by_row = {name: log.row[mask] for name, mask in parts.held.items()}
    assert set(by_row) == {"valid" if "fractions" in split else "test", "update 1", NEW}
    train, valid, test = processor_parts(split)
    np.testing.assert_array_equal(
        np.sort(by_row.get("test", by_row.get("valid"))), np.sort(test if len(test) else valid)
    )
    assert set(train) <= set(log.row[parts.trained])
    for name, start, share in ((NEW, sum(rows[:2]), 0.25), ("update 1", rows[0], 0.1)):
        own = (log.row >= start) & (log.row < start + 400)
        assert len(by_row[name]) == round(share * 400)
        assert log.time[parts.held[name]].min() >= log.time[own & ~parts.held[name]].max()


def processor_parts(split):
    """Rows of the table in each part, as `split` of a fresh processor cuts it."""
    processor, _ = fit()
    data = processor.split(synthetic_log()["interactions"], **split)
    return [part.log.row[part.candidates.event] for part in data]


def test_events_of_the_past_are_refused(world):
    """Prevents a log that is given whole again from being learnt twice."""
    processor = loaded(world)
    first = synthetic_log()["interactions"]
    log = processor.encode_events(joined(first, first))
    with pytest.raises(ValueError, match=r"the new events: row 0 has time .* as \d+ rows do"):
        parts_of(log, [400, 400], [0.1])
    latest = {name: values[np.argsort(first["timestamp"])[-1:]] for name, values in first.items()}
    log = processor.encode_events(joined(first, latest))
    with pytest.raises(ValueError, match=r"the new events: row 0 has time 1008273, the time of the latest event known"):
        parts_of(log, [400, 1], [0.5])


def update(world, settings, new=None):
    processor, model = loaded(world), tiny_model(world[1])
    first, later = synthetic_log()["interactions"], new or later_log()
    log, statistics = processor.resume(joined(first, later))
    parts = parts_of(log, [400, len(later["item_id"])], [settings.holdout])
    data = update_data(processor, log, statistics, parts, settings)
    arguments = PolyRecTrainingArguments("unused", use_cpu=True)
    before = metrics_of(model, data.held, predict(model, data.held, arguments), arguments)
    cost = train_update(model, processor, data, settings, QUIET)
    after = metrics_of(model, data.held, predict(model, data.held, arguments), arguments)
    return processor, model, data, before, after, cost


def test_an_update_learns_the_new_events(world):
    """Prevents an update that trains nothing, or only on old events."""
    settings = UpdateSettings(epochs=8, learning_rate=0.02, replay=0.2, members=1)
    processor, model, data, before, after, cost = update(world, settings)
    assert after[NEW]["rating"]["rmse"] < before[NEW]["rating"]["rmse"]
    # Evidence of the training rows finds what can be found of so few items; that more is learnt shows in the weights.
    assert after[NEW]["next_item"]["ndcg@10"] >= before[NEW]["next_item"]["ndcg@10"] - 1e-9
    first = tiny_model(world[1]).heads["next_item"]
    for name in ("project", "bias"):
        moved = model.heads["next_item"].get_submodule(name).weight - first.get_submodule(name).weight
        assert moved.abs().mean() > 0.01
    assert cost["cpu_seconds"] > 0
    trained = np.bincount(data.draws[0].log.item[data.parts.new], minlength=processor.num_items)
    np.testing.assert_array_equal(processor.item_counts, world[1].item_counts + trained)
    np.testing.assert_array_equal(model.item_encoder.counts.numpy(), processor.item_counts)
    assert not model.training
    # What it learnt is told to whoever it may teach; what was held out may still judge.
    rows, log = processor.training_rows, data.draws[0].log
    assert world[1].training_rows.number + data.parts.new.sum() <= rows.number <= data.parts.new.sum() + 400
    rows.check(log, data.parts.held[NEW], processor.items.ids)
    with pytest.raises(LeakageError, match=f"trained on {data.parts.new.sum()} of"):
        rows.check(log, data.parts.new, processor.items.ids)


def test_only_certain_falls_count_if_that_is_asked_for(world):
    """Prevents a good update from being refused for a fall that is chance, and a worse one from being let through."""
    processor, model, data, *_ = update(world, UpdateSettings(members=1))
    arguments = PolyRecTrainingArguments("unused", use_cpu=True)
    good = predict(model, data.held, arguments)
    one, bad = copy.deepcopy(good), copy.deepcopy(good)
    one[NEW].values["rating"][0] += 50.0  # one bad prediction, which many resamples do not draw
    bad[NEW].values["rating"][:] += 5.0
    found = {}
    for name, worse in {"same": good, "one": one, "bad": bad}.items():
        paired = paired_changes(processor.tasks, data.held, good, worse, 10, 0.95)
        after = metrics_of(model, data.held, worse, arguments)
        base = metrics_of(model, data.held, good, arguments)
        effect = paired[NEW]["rating"]["rmse"]
        assert effect["gain"] == pytest.approx(base[NEW]["rating"]["rmse"] - after[NEW]["rating"]["rmse"])
        found[name] = [{(f["slice"], f["metric"]) for f in falls_beyond(base, after, 0.05, p)} for p in (None, paired)]
    assert found["same"] == [set(), set()]
    assert (NEW, "rmse") in found["one"][0]
    assert (NEW, "rmse") not in found["one"][1]
    assert (NEW, "rmse") in found["bad"][1]


def test_replay_forgets_less(world):
    """Prevents replay from being without effect: the new events contradict the old ratings here."""
    new = later_log()
    new["rating"] = 6 - new["rating"]
    lost = {}
    for share in (0.0, 1.0):
        settings = UpdateSettings(epochs=10, learning_rate=0.02, replay=share, members=1)
        _, model, _, before, after, _ = update(world, settings, new)
        lost[share] = fall("rmse", before["test"]["rating"]["rmse"], after["test"]["rating"]["rmse"])
        found = forgetting(model, before, after)
        assert found["rating"]["slice"] == "test"
        assert found["rating"]["fall"] == pytest.approx(lost[share])
    assert lost[1.0] < lost[0.0]


def test_an_update_is_the_mean_of_its_members(world):
    """Prevents a member from going on where the last one ended, and members from being the same one."""
    weights = {}
    for seed, members in ((0, 2), (0, 1), (1, 1)):  # an update of two has the members 0 and 1
        _, model, *_ = update(world, UpdateSettings(learning_rate=0.02, members=members, seed=seed))
        weights[seed, members] = {name: p.detach() for name, p in model.named_parameters()}
    assert not torch.allclose(*(weights[seed, 1]["heads.next_item.project.weight"] for seed in (0, 1)))
    for name, mean in weights[0, 2].items():
        torch.testing.assert_close(mean, (weights[0, 1][name] + weights[1, 1][name]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_only_the_skip_stays_and_only_if_it_is_asked_to(world, frozen):
    """Prevents a few people's events from changing what statistics mean, and weights from staying frozen for good."""
    _, model, *_ = update(world, UpdateSettings(learning_rate=0.02, members=1, freeze_skip=frozen))
    first = dict(tiny_model(world[1]).named_parameters())
    same = {
        name for name, p in model.named_parameters() if p.shape == first[name].shape and torch.equal(p, first[name])
    }
    skip = {name for name in first if name.startswith("skip.")}
    assert skip
    assert skip <= same if frozen else not skip & same
    assert "heads.next_item.project.weight" not in same
    assert all(p.requires_grad == first[name].requires_grad for name, p in model.named_parameters())


def test_falls_are_those_beyond_the_limit():
    """Prevents a fall from being taken for a gain where less is better, and coverage from being guarded."""
    before = {"test": {"like": {"auc": 0.8, "logloss": 0.5}, "next": {"ndcg@10": 0.2, "coverage@10": 0.9}}}
    after = {"test": {"like": {"auc": 0.79, "logloss": 0.6}, "next": {"ndcg@10": 0.1, "coverage@10": 0.1}}}
    found = falls_beyond(before, after, 0.05)
    assert [(row["task"], row["metric"]) for row in found] == [("next", "ndcg@10"), ("like", "logloss")]
    assert found[0]["fall"] == pytest.approx(0.5)
    assert found[1]["fall"] == pytest.approx(0.2)
    assert not falls_beyond(before, before, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 0.0}, r"in \(0, 1\)"),
        ({"replay": 1.2}, "replay is 1.2"),
        ({"members": 0}, "members is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"max_regression": -1}, "max_regression is -1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    """Prevents hours of training towards a report that cannot be made."""
    with pytest.raises(ValueError, match=message):
        UpdateSettings(**options)


def test_an_update_goes_at_a_share_of_the_runs_rate(world, monkeypatch):
    """Prevents the rate of a whole training, at which a few events undo what many have taught."""
    processor, rates = loaded(world), []
    log, statistics = processor.resume(joined(synthetic_log()["interactions"], later_log()))
    data = update_data(processor, log, statistics, parts_of(log, [400, 400], [0.1]), UpdateSettings(members=1))
    monkeypatch.setattr(PolyRecTrainer, "train", lambda trainer: rates.append(trainer.args.learning_rate))
    for given in ({}, {"rate_share": 0.5}, {"learning_rate": 0.5}):
        train_update(
            tiny_model(world[1]), processor, data, UpdateSettings(members=1, **given), QUIET | {"learning_rate": 0.02}
        )
    assert rates == pytest.approx([0.006, 0.01, 0.5])


def test_training_of_a_whole_run_is_not_asked_for(world):
    """Prevents a recipe's averaging, stopping or best-model choice from failing, or undoing, a short update."""
    processor, model = loaded(world), tiny_model(world[1])
    log, statistics = processor.resume(joined(synthetic_log()["interactions"], later_log()))
    settings = UpdateSettings(epochs=1)
    data = update_data(processor, log, statistics, parts_of(log, [400, 400], [0.1]), settings)
    weights = model.heads["next_item"].project.weight.detach().clone()
    recipe = {"eval_strategy": "epoch", "load_best_model_at_end": True, "save_strategy": "epoch", "task_patience": 1,
              "ema_decay": 0.999, "max_steps": 500, "warmup_steps": 20, "metric_for_best_model": "rating_rmse"}  # fmt: skip
    train_update(model, processor, data, settings, QUIET | recipe)
    assert not torch.equal(weights, model.heads["next_item"].project.weight)

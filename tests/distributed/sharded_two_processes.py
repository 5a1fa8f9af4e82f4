"""What `test_sharded.py` runs: one process of two, on CPU, with parameters in shards."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model_fixtures import fit, model_inputs, synthetic_log, tiny_model
from reduction_fixtures import difference
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from polyrec import PolyRecCollator, PolyRecForRecommendation, PolyRecProcessor
from polyrec.data.sequences import SequenceDataset
from polyrec.evaluation import evaluator
from polyrec.models.training_pass import LossStep
from polyrec.training.sharded import whole_copy

WEIGHTINGS = {
    "fixed": {"weighting": "fixed"},
    "uncertainty": {"weighting": "uncertainty"},
    "mgda": {"weighting": "aggregation", "weighting_options": {"method": "mgda"}},
}
RANKS, USERS = 2, 16


def shard(model: PolyRecForRecommendation) -> PolyRecForRecommendation:
    """Shard a model as `scripts/accelerate/fsdp.yaml` says: each layer of the backbone, and all the rest."""
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model.model.history_encoder.backbone.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gradient_difference(processor: PolyRecProcessor, train: SequenceDataset, rank: int, options: dict) -> float:
    """How far the gradient of shards is from that of one process; reduced as the trainer does it."""
    windows = [train[i] for i in range(USERS)]
    plain, model = tiny_model(processor, **options).train(), shard(tiny_model(processor, **options).train())
    # Weightings add their Gramians up over ranks, so that each rank brings its share here, too.
    mine = model_inputs(PolyRecCollator()(windows[rank::RANKS]))
    everybody = model_inputs(PolyRecCollator()(windows))
    counts = plain.eval()(**everybody).counts
    plain.train()(**mine, step=LossStep(counts, 1 / RANKS)).loss.backward()
    for parameter in plain.parameters():
        torch.distributed.all_reduce(parameter.grad)
    loss = model(**mine, step=LossStep(counts, 1 / RANKS)).loss * RANKS  # shards hold the mean over ranks
    loss.backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    return difference(gradients, {name: p.grad for name, p in plain.named_parameters()})


def main(folder: Path) -> None:
    """Compare gradients and evaluations with those of a whole model."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    processor, splits = fit(synthetic_log(keep=0.5))
    gradients = {name: gradient_difference(processor, splits.train, rank, o) for name, o in WEIGHTINGS.items()}
    plain = tiny_model(processor)
    whole = whole_copy(shard(tiny_model(processor)))
    answers = evaluator.gather(evaluator.predict(whole, splits.valid, shard=(rank, RANKS)))
    expected = evaluator.predict(plain, splits.valid)
    findings = {
        "gradients": gradients,
        "same_weights": all(torch.equal(p, plain.get_parameter(name)) for name, p in whole.named_parameters()),
        "metrics": evaluator.evaluate(whole, splits.valid, answers),
        "expected": evaluator.evaluate(plain, splits.valid, expected),
    }
    (folder / f"findings{rank}.json").write_text(json.dumps(findings))
    torch.distributed.destroy_process_group()

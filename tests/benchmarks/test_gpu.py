"""The check of a GPU, on a CPU: all its parts pass, and one that fails is named without ending the others."""

from __future__ import annotations

import json

import gpu
import pytest
import torch


def test_all_parts_pass_on_a_cpu_and_a_wrong_one_is_named(tmp_path, capsys, monkeypatch):
    """Prevents a check that cannot run where there is a GPU at last, that cannot fail, or that ends at its first."""

    def wrong(world, on):
        found = world.copy(on.device)
        found.heads["like"].output.bias.data += 0.1
        answers = found.recommend(world.processor, [1], k=1), world.model.eval().recommend(world.processor, [1], k=1)
        raise ArithmeticError(f"like differs by {answers[0][0]['like'] - answers[1][0]['like']:.2g}")

    monkeypatch.setattr(gpu, "recommended", wrong)
    output = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--output", str(output)]) == 1
    report, shown = json.loads(output.read_text()), capsys.readouterr().out
    assert report["failed"] == ["demo: recommend", "terms: recommend", "sets: recommend"]
    assert "failed: demo: recommend" in shown
    rows = {row["part"]: row for row in report["parts"]}
    assert rows["demo: recommend"]["error"].startswith("ArithmeticError: like differs by 0.0")
    assert {name for name, row in rows.items() if row["ok"]} >= {
        *(f"demo: {what}, {kind}" for what in ("equal to CPU", "training") for kind in ("fp32", "bf16")),
        *(
            f"{name}: {what}"
            for name in gpu.QUICK.models
            for what in ("data and model", "Trainer", "evaluation", "resume")
        ),
    }
    assert 0 < rows["demo: equal to CPU, bf16"]["gradient"] < gpu.TOLERANCES["bf16"]["gradient"]
    assert rows["demo: training, fp32"]["positions_per_second"] > 0


def test_a_wrong_gradient_is_seen(monkeypatch):
    """Prevents tolerances so wide that a wrong kernel passes."""
    world, plain = gpu.World("demo", gpu.QUICK), gpu.learnt

    def off(world, device, around):
        losses, gradient, answers = plain(world, device, around)
        return losses, gradient * (1 + 0.002 * next(calls)), answers

    calls = iter(range(10))
    monkeypatch.setattr(gpu, "learnt", off)
    with pytest.raises(ArithmeticError, match="gradient"):
        gpu.equality(world, gpu.Device("cpu"), "fp32")


def test_devices_are_compared_with_the_same_negatives():
    """Prevents two draws of negatives from being told as a wrong device."""
    weights = torch.rand(50)
    with gpu.cpu_draws():
        first = torch.multinomial(weights, 20, replacement=True)
    torch.rand(3)
    with gpu.cpu_draws():
        second = torch.multinomial(weights, 20, replacement=True)
    assert first.tolist() == second.tolist()
    assert torch.multinomial(weights, 20, replacement=True).tolist() != first.tolist()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_helps(capsys, monkeypatch):
    """Prevents a traceback of torch, and a GPU that is hidden from torch from being taken for none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.main([]) == 2
    assert "no GPU" in (said := capsys.readouterr().err)
    assert "--device cpu --quick" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert gpu.only_gpu("cuda:1") == "cuda"
    assert gpu.os.environ["CUDA_VISIBLE_DEVICES"] == "6"

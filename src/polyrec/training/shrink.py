"""A student that starts where its teacher stands, and a model whose table of items is cut to a lower rank.

Letters: N items, D width of the student, E width of the teacher.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polyrec.core.modules import in_double
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.modules.encoders.item import PADDING_ITEM
from polyrec.modules.encoders.item_table import item_table

_LAYER = re.compile(r"(model\.history_encoder\.backbone\.\w+)\.(\d+)\.(.+)")
_IDS = "model.item_encoder.id_embedding."
# Parts whose matrices are cut into attention heads: of as many heads, or they mean something else.
_CUT = {
    "model.history_encoder.backbone.": "num_attention_heads",
    "pair_encoder.attention.": "candidate_attention_heads",
}


@dataclass
class StudentStart:
    """What a student took over.

    Args:
        parameters: numbers that were copied or projected.
        layers: of the teacher's history encoder that became the student's, from the first on.
        items_kept: share of the squared length of the teacher's id embeddings that the student's hold; None = not
            copied.
        copied, fresh: names of parameters that were copied, and of those that start as in any training.
    """

    parameters: int = 0
    layers: list[int] = field(default_factory=list)
    items_kept: float | None = None
    copied: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


@torch.no_grad()
def start_from_teacher(
    student: PolyRecForRecommendation, processor: Any, teacher: PolyRecForRecommendation, teacher_processor: Any
) -> StudentStart:
    r"""Let a student start from a teacher's weights, in place.

    *Of the same width*: all of its parameters that the teacher has by the same name and shape (embeddings, experts,
    heads), and of a deeper history encoder every k-th layer, layer i of n being the teacher's floor(i m / n) of m (Sanh
    et al., 2019, "DistilBERT, a distilled version of BERT"). With all layers and the same modules it predicts as the
    teacher does.

    *Of another width*: the id embeddings alone, V -> V B with B [E, D] the first D right singular vectors of the
        teacher's
    table V: no other D numbers per item say more of their inner products (Eckart and Young, 1936). A wider student's
    further numbers are 0. Heads are not copied, as they read another space.

    Low-rank id embeddings take the nearest of their rank. Buffers (catalog, counts) are the student's own.

    Args:
        student: holds its catalog already, which would replace what is put there now.
        processor, teacher_processor: of both; their items must be the same, and so must the encoders of features, which
            [`~polyrec.distillation.live.LiveTeacher`] checks.
    """
    teacher.refuse_int8("student that starts from them")
    student.refuse_int8("start from a teacher")
    if not teacher_processor.items.ids.equals(processor.items.ids):
        raise ValueError(
            "a student starts from a teacher of the same catalog: train the teacher on these data, or start at random"
        )
    start, own = StudentStart(), dict(student.named_parameters())
    if student.config.hidden_size == teacher.config.hidden_size:
        _copy_all(student, teacher, own, start)
    _take_items(student, teacher, start)
    shared_ids = start.items_kept is not None
    start.copied += [name for name in own if name.startswith(_IDS) and shared_ids]
    start.fresh = [name for name in own if name not in start.copied]
    start.parameters = sum(own[name].numel() for name in start.copied)
    return start


@torch.no_grad()
def factorise_items(model: PolyRecForRecommendation, rank: int) -> float:
    r"""Cut a model's id embeddings to a lower rank, in place: V [N, D] -> A B, A [N, R], B [R, D].

    B are the first R right singular vectors of V and A = V B^T, so that no other A B of this rank is nearer to V
    (Eckart and Young, 1936, "The approximation of one matrix by another of lower rank"; of embeddings: Lan et al.,
    2020, "ALBERT"). N D numbers become N R + R D. The layers that read the embeddings stay as they are: a little
    further training makes good for much of what is lost.

    Args:
        rank: R, below the rank that the vectors have.

    Returns:
        the share of the squared length of the id embeddings that is kept.
    """
    model.refuse_int8("other factors")
    config, table = model.config, model.item_encoder.id_embedding
    if table is None:
        raise ValueError("the model has no id embeddings (item_ids=False): there is nothing to cut to a lower rank")
    largest = (config.item_embedding_rank or config.hidden_size + 1) - 1
    if not 1 <= rank <= largest:
        raise ValueError(f"rank is {rank}; the id embeddings can be cut to a rank of 1 to {largest}")
    vectors_ND = table.whole()
    low = item_table(config.num_items, config.hidden_size, rank, config.initializer_range, PADDING_ITEM).to(vectors_ND)
    low.set_rows(torch.arange(len(vectors_ND), device=vectors_ND.device) != PADDING_ITEM, vectors_ND)
    model.item_encoder.id_embedding = low
    model.item_encoder.freeze()
    config.item_embedding_rank = rank
    length = vectors_ND.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return float(low.whole().square().sum() / length)


def _copy_all(
    student: PolyRecForRecommendation,
    teacher: PolyRecForRecommendation,
    own: dict[str, torch.nn.Parameter],
    start: StudentStart,
) -> None:
    theirs = dict(teacher.named_parameters())
    layers, of_teacher = _layers(own), _layers(theirs)
    if layers > of_teacher:
        raise ValueError(
            f"the student's history encoder has {layers} layers and the teacher's {of_teacher}: a student that starts "
            "from its teacher has as many or fewer"
        )
    start.layers = [i * of_teacher // layers for i in range(layers)]
    cut = tuple(p for p, key in _CUT.items() if student.config.to_dict()[key] != teacher.config.to_dict()[key])
    for name, parameter in own.items():
        layer = _LAYER.fullmatch(name)
        source = name if layer is None else f"{layer[1]}.{start.layers[int(layer[2])]}.{layer[3]}"
        found = theirs.get(source)
        if name.startswith((_IDS, *cut)) or found is None or found.shape != parameter.shape:
            continue
        parameter.copy_(found)
        start.copied.append(name)


def _layers(parameters: dict[str, torch.nn.Parameter]) -> int:
    return max((int(found[2]) + 1 for name in parameters if (found := _LAYER.fullmatch(name))), default=0)


def _take_items(student: PolyRecForRecommendation, teacher: PolyRecForRecommendation, start: StudentStart) -> None:
    own, theirs = student.item_encoder.id_embedding, teacher.item_encoder.id_embedding
    if own is None or theirs is None:
        return
    vectors_NE = theirs.whole().to(own.weight.device)
    width = student.config.hidden_size
    wanted_ND = vectors_NE if vectors_NE.shape[1] == width else _principal(vectors_NE, width)
    real_N = torch.arange(len(wanted_ND), device=wanted_ND.device) != PADDING_ITEM
    own.set_rows(real_N, wanted_ND)
    length = vectors_NE.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    start.items_kept = float(own.whole().square().sum() / length)


def _principal(vectors_NE: Tensor, width: int) -> Tensor:
    """Coordinates of rows in their first principal directions, [N, width], the largest first."""
    double_NE = in_double(vectors_NE)
    _, axes_EE = torch.linalg.eigh(double_NE.T @ double_NE)  # ascending
    found_ND = double_NE @ axes_EE.flip(1)[:, :width]
    return torch.nn.functional.pad(found_ND, (0, width - found_ND.shape[1])).to(vectors_NE)

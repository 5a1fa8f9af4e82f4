"""`PolyRecCrossEncoder` reads history and candidate in one prompt and scores the pair for every task.

Letters: B users, C candidates, K items of a list, M pairs that are no padding, N prompts, P width, T tokens, W width
of the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers import initialization as init

from polyrec.core.modules import KeepsPrecision
from polyrec.core.offers import offered
from polyrec.core.registry import HEADS
from polyrec.data.texts import TokenTable
from polyrec.models.cross_encoder.configuration_cross_encoder import PolyRecCrossEncoderConfig
from polyrec.models.cross_encoder.processing_cross_encoder import PolyRecCrossEncoderProcessor
from polyrec.models.cross_encoder.rerank_head import RerankHead
from polyrec.models.multitask import MultiTaskModel
from polyrec.models.multitask_loss import MultiTaskLoss
from polyrec.models.pretrained import PolyRecOutput
from polyrec.models.training_pass import ONE_BATCH, LossStep, PairOutput, TrainingPass
from polyrec.modules.encoders.features import FeatureEncoder
from polyrec.modules.encoders.item import PADDING_ITEM
from polyrec.modules.encoders.shared import PackedPairs
from polyrec.modules.encoders.text import TextEncoder


@dataclass
class PolyRecCrossEncoderOutput(PolyRecOutput):
    """Outputs of all tasks.

    Args:
        list_logits: {retrieval task: [B, C, K]}, scores of `list_items`, -inf where there is none.
    """

    list_logits: dict[str, Tensor] | None = None


@dataclass(kw_only=True)
class ListPass(TrainingPass):
    """A forward pass of a model that scores given items.

    Args:
        lists: {retrieval task: [B, C, K]}, logits of the other items of a candidate's list.
    """

    lists: dict[str, Tensor]


class ListwiseLoss(MultiTaskLoss):
    """A `MultiTaskLoss` whose retrieval tasks compare an item with those of its list."""

    def state_loss(self, name: str, found: ListPass) -> tuple[Tensor, Tensor]:
        """Cross entropy of the positives among their lists."""
        positive_BC = self.heads[name].known(found.labels[name], found.candidate_ids)
        weight_M = found.sample_weight[name][positive_BC] if name in found.sample_weight else None
        return self.heads[name].list_loss(found.logits[name][positive_BC], found.lists[name][positive_BC], weight_M)


class ItemCounts(KeepsPrecision):
    """Training events of each item, which texts do not tell.

    Args:
        num_items: N.
    """

    counts: Tensor

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_items, dtype=torch.float32))

    def initialise(self) -> None:
        """Nothing is known at first."""
        init.zeros_(self.counts)

    def forward(self, ids: Tensor) -> Tensor:
        """Counts of items, [...] -> [...]."""
        return self.counts[ids]


class PolyRecCrossEncoder(MultiTaskModel):
    r"""One prompt per pair, many tasks: h = gelu(W norm(backbone(prompt)) + features), then experts and heads.

    What the prompt cannot say enters beside it: context and running statistics of the candidate and attributes of the
    user are features of the pair, and the candidate's numbers reach each task's logit also through a linear skip, as
    in [`PolyRecForRecommendation`]. Retrieval tasks score given items, see [`RerankHead`]; they read h
    without the features, which are not known of an item that was not shown.

    Each pair costs a pass through the backbone: take this model to rerank what another one has found, or as a teacher.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel
        >>> folder, sizes = tempfile.mkdtemp(), {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> BertModel(BertConfig(vocab_size=30, num_hidden_layers=1, **sizes)).save_pretrained(folder)
        >>> config = PolyRecCrossEncoderConfig(
        ...     tasks=[{"name": "next_item", "head": "retrieval"}, {"name": "like", "head": "binary"}],
        ...     num_items=12, hidden_size=8, text={"model": folder, "tuning": "full"})
        >>> model = PolyRecCrossEncoder(config).eval()
        >>> output = model(candidate_ids=torch.tensor([[5, 6]]), prompt_lengths=torch.tensor([3, 2]),
        ...                prompt_tokens=torch.tensor([7, 8, 9, 10, 11]))
        >>> {task: tuple(logits.shape) for task, logits in output.logits.items()}
        {'next_item': (1, 2), 'like': (1, 2)}
    """

    config_class = PolyRecCrossEncoderConfig
    loss_class = ListwiseLoss

    def __init__(self, config: PolyRecCrossEncoderConfig) -> None:
        super().__init__(config)
        assert config.text is not None  # the configuration sees to it
        self.encoder = TextEncoder(config.text)
        self.norm = nn.LayerNorm(self.encoder.width)
        self.mix = nn.Linear(self.encoder.width, config.pair_width)
        features = config.feature_configs
        self.build_tasks(
            config,
            {t.name: (RerankHead if t.ranks_catalog else HEADS.get(t.head))(t, config) for t in config.task_configs},
        )
        if self.pair_tasks:
            self.features = FeatureEncoder(config, [f for f in features if f.source == "candidate"])
            self.person = FeatureEncoder(config, [f for f in features if f.source == "user"])
            self.dropout = nn.Dropout(config.dropout)
        self.items = ItemCounts(config.num_items)
        self.objectives = nn.ModuleDict()
        self.post_init()
        self._ignore_base_weights()

    @property
    def item_counts(self) -> Tensor:
        """Training events of each item, [N]."""
        return self.items.counts

    def forward(
        self,
        candidate_ids: Tensor,
        prompt_tokens: Tensor,
        prompt_lengths: Tensor,
        candidate_features: dict[str, Tensor] | None = None,
        user_features: dict[str, Tensor] | None = None,
        labels: dict[str, Tensor] | None = None,
        sample_weight: dict[str, Tensor] | None = None,
        list_items: Tensor | None = None,
        step: LossStep = ONE_BATCH,
        item_ids: Tensor | None = None,
        candidate_rows: Tensor | None = None,
    ) -> PolyRecCrossEncoderOutput:
        """Score the candidates of a batch, as [`CrossEncoderCollator`] makes it.

        Args:
            candidate_ids: [B, C] int64, candidate items, 0 = padding.
            prompt_tokens: int32 [T], all prompts, one after the other: those of the M candidates, then those of the
                items in `list_items`, row by row.
            prompt_lengths: int64 [N], tokens of each.
            candidate_features: {name: [B, C(, K)]}.
            user_features: {name: [B(, K)]}.
            labels: {task: [B, C]} float, NaN = unknown. Without labels there is no loss.
            sample_weight: {task: [B, C]}.
            list_items: [B, C, K] int64, 0 = none: what the item of a candidate is compared to.
            step: see [`PolyRecForRecommendation`].
            item_ids, candidate_rows: [B, L] and [B, C], what else the collator makes; neither is read again.
        """
        pairs, real = PackedPairs(candidate_ids), candidate_ids != PADDING_ITEM
        mixed_NP = self.mix(self.norm(self._read(prompt_tokens, prompt_lengths)))
        count, pair_output = len(pairs.index_M), PairOutput()
        if self.pair_tasks:
            features = {name: pairs.pack(values) for name, values in (candidate_features or {}).items()}
            pair_1MP = mixed_NP[:count].unsqueeze(0)
            for encoded in (self.features(features), self._pair_users(user_features or {}, real)):
                pair_1MP = pair_1MP if encoded is None else pair_1MP + encoded
            real_1M = torch.ones(pair_1MP.shape[:2], dtype=torch.bool, device=pair_1MP.device)
            pair_output = self.score_pairs(self.dropout(F.gelu(pair_1MP)), real_1M, features)
        logits = {n: pairs.unpack(self.heads[n].mean_over_members(z)) for n, z in pair_output.logits.items()}
        listed = torch.zeros_like(real).unsqueeze(-1) if list_items is None else list_items != PADDING_ITEM
        ids = torch.cat([candidate_ids[real], candidate_ids[:0, 0] if list_items is None else list_items[listed]])
        hidden_NP, counts_N = F.gelu(mixed_NP), self.items(ids)
        lists = {}
        for name in self.state_tasks:
            scores_N = self.heads[name](hidden_NP, counts_N)
            logits[name] = pairs.unpack(scores_N[:count].unsqueeze(0))
            empty_BCK = scores_N.new_full(listed.shape, float("-inf"))
            lists[name] = empty_BCK.masked_scatter(listed, scores_N[count:])
        output = PolyRecCrossEncoderOutput(
            logits={name: logits[name] for name in self.heads},
            gates={name: pairs.unpack(gate) for name, gate in pair_output.experts.gates.items()},
            list_logits=lists,
        )
        if (loss := self.loss_of(labels, {})) is not None:
            found = ListPass(
                labels=labels or {},
                sample_weight=sample_weight or {},
                candidate_ids=candidate_ids,
                logits=logits,
                pairs=pairs,
                pair_output=pair_output,
                meeting=[mixed_NP],
                lists=lists,
            )
            loss(output, found, step)
        return output

    def _read(self, tokens_T: Tensor, lengths_N: Tensor) -> Tensor:
        """Vectors of prompts, [N, W]; those of like lengths go through the backbone together."""
        offsets = np.concatenate([[0], np.cumsum(lengths_N.cpu().numpy())])
        vectors_NW = self.encoder(TokenTable(tokens_T.cpu().numpy(), offsets), device=self.device)
        if len(vectors_NW) or not self.training:
            return vectors_NW
        # There is no prompt: the backbone still gets gradients, of 0, for which other ranks wait.
        trained = [p.sum() for p in self.encoder.parameters() if p.requires_grad]
        return vectors_NW + 0.0 * torch.stack(trained).sum() if trained else vectors_NW

    def _pair_users(self, user_features: dict[str, Tensor], real_BC: Tensor) -> Tensor | None:
        """What is known of each pair's user, [1, M, P]."""
        user_BP = self.person(user_features)
        return None if user_BP is None else user_BP[real_BC.nonzero()[:, 0]].unsqueeze(0)

    @torch.no_grad()
    def load_processor(self, processor: PolyRecCrossEncoderProcessor) -> None:
        """Take the training counts of the items."""
        if processor.num_items != len(self.items.counts):
            raise ValueError(
                f"the processor has {processor.num_items} rows of items but the model has num_items="
                f"{len(self.items.counts)}: build the model from this processor (processor.model_config())"
            )
        self.items.counts.copy_(torch.from_numpy(processor.item_counts))

    @torch.no_grad()
    def extend(self, processor: PolyRecCrossEncoderProcessor) -> None:
        """Know the items that `processor.extend(...)` added, by their texts; give both before saving.

        Scores of the others stay as they are, bit by bit.
        """
        new = processor.num_items - len(self.items.counts)
        if new < 0:
            raise ValueError(
                f"the processor has {processor.num_items} rows of items but the model has {len(self.items.counts)}: "
                "extend the processor that was saved with the model"
            )
        self.items.counts = F.pad(self.items.counts, (0, new))
        self.config.num_items = processor.num_items

    def rerank(
        self, processor: PolyRecCrossEncoderProcessor, history: Any, candidates: Any, **request: Any
    ) -> list[dict[str, Any]]:
        """Order given items for one user; see `polyrec.inference.reranking.rerank`."""
        return offered("rerank")(self, processor, history, candidates, **request)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ItemCounts):
            module.initialise()
        else:
            super()._init_weights(module)


AutoModel.register(PolyRecCrossEncoderConfig, PolyRecCrossEncoder, exist_ok=True)

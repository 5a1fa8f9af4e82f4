"""`pipeline("recommendation", model=...)`: transformers' shortest way from a name on the Hub to recommendations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoProcessor, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from polyrec.core.rules import Rules
from polyrec.core.settings import check_keys, shown
from polyrec.data.remote_requests import check_history, check_text, check_values
from polyrec.data.request_reader import read_scalar
from polyrec.inference.recommender import Recommender
from polyrec.inference.user_requests import OWN_RULES, REQUEST
from polyrec.models.polyrec.configuration_polyrec import PolyRecConfig
from polyrec.models.polyrec.modeling_polyrec import PolyRecForRecommendation
from polyrec.models.polyrec.processing_polyrec import PolyRecProcessor

TASK = "recommendation"


class RecommendationPipeline(Pipeline):
    """Recommends items, or finds them by a query, for one user or several.

    A user is a dict with any of `history`, `user_id`, `user`, `context`, `time`, `query`, `candidates`, `exclude` and
    `where`, see
    [`~polyrec.inference.recommender.Recommender.recommend`]; a list of them gives a list of results. Requests may come
    from strangers: a history is a list of item ids or of events, never the name of a file, and sizes are bounded.

    Args:
        model: a name on the Hub or a folder, or a [`PolyRecForRecommendation`].
        processor: its [`PolyRecProcessor`]; default: the one saved with the model.
        k: recommendations per user.
        rank_by: the task that ranks; default: the model's first one that needs no query.
        exclude_seen: leave out items of the history; default: as `recommend` and `search` have it.
        rules: what lists may hold and in which order, as of `Recommender.recommend`; a user may have `candidates`,
            `exclude` and `where` of their own.
        reasons: also say why, by `model.explain`: each row gets its `reason` and the `events` that speak for it.

    Example:
        >>> from transformers import pipeline
        >>> recommender = pipeline("recommendation", model="user/model")     # doctest: +SKIP
        >>> recommender({"history": [318, 858], "user": {"age": 33}}, k=10)  # doctest: +SKIP
    """

    _load_processor = False  # transformers' AutoProcessor knows its own kinds only
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, model: PolyRecForRecommendation, processor: PolyRecProcessor | None = None, **options: Any):
        super().__init__(model=model, **options)
        if processor is None:
            processor = PolyRecProcessor.from_pretrained(model.name_or_path, revision=model.hub_commit)
        self.processor: PolyRecProcessor = processor
        self.recommender = Recommender(self.model, processor)

    def _sanitize_parameters(
        self,
        k: int | None = None,
        rank_by: str | None = None,
        exclude_seen: bool | None = None,
        reasons: bool | None = None,
        rules: Rules | Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if reasons is not None:
            reasons = read_scalar("reasons", reasons)
        given = {"k": k, "task": rank_by, "exclude_seen": exclude_seen, "reasons": reasons, "rules": Rules.of(rules)}
        return {}, {name: value for name, value in given.items() if value is not None}, {}

    def preprocess(self, request: Any) -> dict[str, Any]:
        """A user as the arguments of a request; refuses unknown keys, names of files and what would fill the memory."""
        if not isinstance(request, Mapping):
            raise ValueError(f"a user is a dict such as {{'history': [item ids]}}, not {shown(request)}")
        check_keys(request, (*REQUEST, *OWN_RULES), "a request")
        check_history(request.get("history"))
        for name in ("user", "context"):
            if request.get(name) is not None:
                check_values(request[name], name)
        if request.get("query") is not None:
            check_text(request["query"], "query")
        check_values({name: request.get(name) for name in ("time", *OWN_RULES)}, "request")
        return {"request": dict(request)}

    def _forward(self, inputs: dict[str, Any], reasons: bool = False, **options: Any) -> dict[str, Any]:
        request = {name: value for name, value in inputs["request"].items() if value is not None}
        history = request.pop("history", None)
        if "query" in request:
            if reasons:
                raise ValueError("reasons are only for recommendations: leave out the query, or reasons=True")
            found = self.model.search(self.processor, request.pop("query"), history, **request, **options)
        else:
            found = self.recommender.recommend(history, **request, **options)
        if reasons and found:
            items, task = [row["item"] for row in found], options.get("task")
            events = {name: value for name, value in request.items() if name in REQUEST}
            reasons_of = self.model.explain(self.processor, history, items, task=task, **events)
            found = [
                row | {name: why[name] for name in ("reason", "events")}
                for row, why in zip(found, reasons_of, strict=True)
            ]
        return {"found": found}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows as `model.recommend` gives them."""
        return outputs["found"]


AutoProcessor.register(PolyRecConfig, PolyRecProcessor, exist_ok=True)
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(TASK, RecommendationPipeline, pt_model=PolyRecForRecommendation, type="text")

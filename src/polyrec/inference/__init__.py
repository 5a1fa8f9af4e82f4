"""Using a trained model: recommend, search, rerank, explain, transfer, and the pipeline.

All of it is imported at once, because models offer some of it as methods, see `polyrec.core.offers`.
"""

from polyrec.inference import check, explanation, pipeline, recommender, reranking, search, transfer

__all__ = ["check", "explanation", "pipeline", "recommender", "reranking", "search", "transfer"]

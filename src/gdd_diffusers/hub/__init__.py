"""Loading pipelines from the Hub, and publishing them with their model cards."""

from .model_card import Result, markdown_table, model_card
from .publishing import build_model, build_repo, check_repo, publish, upload_repo


__all__ = [
    "Result",
    "build_model",
    "build_repo",
    "check_repo",
    "markdown_table",
    "model_card",
    "publish",
    "upload_repo",
]

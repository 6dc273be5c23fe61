"""What an unknown model is made of, found without weights and without a record, and a draft of its record."""

from genkit.pipelines.explain.build import models_in
from genkit.pipelines.explain.draft import draft
from genkit.pipelines.explain.watch import Explanation, explain_model

__all__ = ["Explanation", "draft", "explain_model", "models_in"]

"""A model run from token embeddings: what attribution varies in place of token ids."""

from typing import Any

from jaxtyping import Array, Float, Int

from jaxcore.transforms import intervene


def output_from_embeddings(
    model: Any,
    params: Any,
    embeddings: Float[Array, "batch time dim"],
    input_ids: Int[Array, "batch time"],
    attention_mask: Array | None = None,
    **options: Any,
) -> Any:
    """The model's output with these token embeddings in place of those it looks up for `input_ids`.

    Whatever else the model makes of the ids (positions, token types, padding) stays.

    Args:
        model: a linen module whose program names its ``token_embeddings``.
        params: its parameters.
        embeddings: in the dtype of the model's own.
        input_ids, attention_mask, options: as for ``model.apply({"params": params}, ...)``.

    Raises:
        ValueError: embeddings of another shape or dtype than the model's own, a model that names none.
    """

    def run(params: Any) -> Any:
        return model.apply({"params": params}, input_ids, attention_mask, **options)

    return intervene(run, {"token_embeddings": embeddings})(params)

"""What the attribution benchmarks explain: the token embeddings of a BERT classifier of any size, random weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcore.attribution import scores
from jaxcore.models.classifier import ClassifierConfig, EncoderClassifier
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.transforms import intervene


@dataclasses.dataclass(frozen=True)
class BertTokens:
    """A classifier and the shape of a batch of texts; BERT-base by default."""

    batch: int = 8
    length: int = 128
    num_layers: int = 12
    hidden_size: int = 768
    scan_layers: bool = True

    @property
    def model(self) -> EncoderClassifier:
        encoder = EncoderConfig(
            num_layers=self.num_layers, hidden_size=self.hidden_size, num_heads=max(self.hidden_size // 64, 1),
            intermediate_size=4 * self.hidden_size, attention_implementation="explicit", scan_layers=self.scan_layers,
        )  # fmt: skip
        return EncoderClassifier(ClassifierConfig(encoder))

    def params(self) -> Any:
        """Fresh parameters."""
        return jax.jit(self._initialize)(jax.random.key(0))

    def abstract_params(self) -> Any:
        """Their shapes."""
        return jax.eval_shape(self._initialize, jax.random.key(0))

    def _initialize(self, key: Any) -> Any:
        import flax.linen as nn

        return nn.meta.unbox(self.model.init(key, jnp.zeros((1, 2), jnp.int32))["params"])

    def ids(self) -> np.ndarray:
        """Random token ids."""
        return np.random.default_rng(0).integers(1000, 30000, (self.batch, self.length)).astype(np.int32)

    def abstract_ids(self) -> Any:
        return jax.ShapeDtypeStruct((self.batch, self.length), jnp.int32)

    def score(self, params: Any, ids: Any) -> Callable[[Any], Any]:
        """Word embeddings -> the logit of class 1."""

        def predict(embeddings: Any) -> Any:
            run = intervene(lambda: self.model.apply({"params": params}, ids), {"token_embeddings": embeddings})
            return run().logits  # type: ignore[union-attr]

        return scores.logit(predict, 1)

    def embeddings(self, params: Any, ids: Any) -> tuple[Any, Any]:
        """Word embeddings [batch, length, hidden] of the texts, and of padding, [hidden]: the baseline."""
        words = params["encoder"]["embeddings"]["word"]
        return words[ids], words[0]

"""Networks as Flax linen modules, each with a config dataclass, and published weights for them.

Map of the room
    encoder.py, encoder_config.py       the transformer encoder family (BERT, RoBERTa, DistilBERT, MiniLM)
    attention.py                        the one function through which transformers attend
    affine.py, activations.py, dropout.py   linear layers, norms and pointwise parts
    recurrent.py                        a BiLSTM with attention that classifies texts and pairs of texts
    recurrent_directory.py, class_labels.py         such a model in a directory; names of classes in config.json
    attention_normalisers.py            softmax, sparsemax and 1.5-entmax, masked, along any axis
    bag_of_words.py                     a perceptron on token counts that stands in for an Encoder
    word_vectors.py                     a linear map of the mean of frozen word vectors, another stand-in
    convolutional_text.py               convolutions with k-max pooling whose word table also embeds labels
    decoder.py, decoder_config.py       the transformer decoder families (GPT-2, Llama, Mistral, Qwen), on top of
        key_value_cache.py                  what a decoder has seen, as a pytree; shared prefixes
        grouped_attention.py                causal attention over caches, prefixes and a call's own tokens
        causal_masks.py, rotary.py          who may look at whom; rotary positions and their scalings
    layer_states.py                     hidden states of a decoder's layer, by its name
    layer_stack.py, token_table.py      blocks as one scan, tables of word vectors: what both trunks share
    lora.py                             low-rank adapters of decoders, exchanged with PEFT
    pretrained.py                       `load_pretrained`, `save_pretrained`, on top of
        encoder_directory.py, decoder_directory.py      one kind of model each
        huggingface_layout.py, decoder_layout.py        transformers' config keys and tensor names
        sentence_transformers_layout.py     module lists of sentence-transformers directories
        parameter_layout.py                 which stored tensors make up a parameter
        stored_parameters.py                parameters out of files into shards, and back
        checkpoint_files.py, model_directories.py       safetensors files slice by slice; whole directories
    from_embeddings.py                  a model run from token embeddings, which attribution varies
    parameters.py                       counting

Named activations of an Encoder, for `jaxcore.transforms.capture` and `intervene`; B texts, T tokens, H heads,
D hidden, F intermediate. Those of the blocks come stacked, with a leading axis of layers.
    token_embeddings   (B, T, D)       word vectors as looked up; what integrated gradients interpolates
    embeddings         (B, T, D)       plus position and token type, normalised: input of the first block
    attention_weights  (B, H, T, T)    per block, after softmax, before dropout; only where weights are
                                       formed: `attention_implementation` "explicit", or "auto" on CPU or
                                       while weight dropout is in force
    attention_heads    (B, T, H, D/H)  per block, each head's weighted sum of values, before the output
    projection attention_output   (B, T, D)       per block, what attention adds to the residual
    mlp_hidden         (B, T, F)       per block, after the nonlinearity
    mlp_output         (B, T, D)       per block, what the feed-forward network adds to the residual
    layer_output       (B, T, D)       per block, after its last norm
    pooled             (B, D)          the text's vector (absent with pooler "none")
Those of a Decoder are the same but for `pooled`, and before softmax there are
    attention_scores   (B, H, T, S)    per block, float32, before the mask
where S = T without a cache, and with one the slots of its prefixes and its own; `attention_weights` has this S too.
They are there in prefill and decode alike, or (`attention_implementation` "fused") in neither.
A BagOfWordsEncoder names `token_features` (B, vocabulary), `mlp_hidden` and `pooled`.

Parameters carry logical axis names, in boxes that `model.init` returns and `flax.linen.meta.unbox` removes:
    vocab, position  rows of the embedding tables     heads  (key-value) heads of q, k, v; rows of the output projection
    embed            the residual stream              mlp    the feed-forward width
    norm             scales and biases of norms       layers the stacked axis of the blocks
`jaxcore.distributed` maps them to mesh axes; None marks an axis that is never sharded.
"""

from jaxcore.models.activations import ACTIVATIONS
from jaxcore.models.attention import attend
from jaxcore.models.bag_of_words import BagOfWordsConfig, BagOfWordsEncoder, count_tokens
from jaxcore.models.decoder import Decoder, DecoderOutput, unstack_layers
from jaxcore.models.decoder_config import DECODER_FAMILIES, DecoderConfig, RopeScaling
from jaxcore.models.dropout import dropout
from jaxcore.models.encoder import Encoder, EncoderOutput, masked_mean
from jaxcore.models.encoder_config import EncoderConfig
from jaxcore.models.from_embeddings import output_from_embeddings
from jaxcore.models.key_value_cache import (
    KeyValueCache,
    adopt,
    fork,
    repeat_rows,
    resize,
    rewind,
    take_rows,
    token_counts,
    total_capacity,
    unstack_cache,
)
from jaxcore.models.parameters import count_parameters
from jaxcore.models.pretrained import load_pretrained, read_config, save_pretrained
from jaxcore.models.word_vectors import WordVectorConfig, WordVectorEncoder

__all__ = [
    "ACTIVATIONS",
    "DECODER_FAMILIES",
    "BagOfWordsConfig",
    "BagOfWordsEncoder",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "Encoder",
    "EncoderConfig",
    "EncoderOutput",
    "KeyValueCache",
    "RopeScaling",
    "WordVectorConfig",
    "WordVectorEncoder",
    "adopt",
    "attend",
    "count_parameters",
    "count_tokens",
    "dropout",
    "fork",
    "load_pretrained",
    "masked_mean",
    "output_from_embeddings",
    "read_config",
    "repeat_rows",
    "resize",
    "rewind",
    "save_pretrained",
    "take_rows",
    "token_counts",
    "total_capacity",
    "unstack_cache",
    "unstack_layers",
]

"""From requests to spans, by both ways of reading, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution.span_localisation import localise_tokens
from jaxcore.attribution.text_spans import Span
from jaxcore.data import train_tokenizer
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.span_localiser import (
    LocaliserConfig,
    Request,
    decoder_localiser_step,
    localise_texts,
    localise_with_decoder,
    localiser_step,
)
from jaxcore.evaluation.token_states import HashedWordReader
from jaxcore.models import Decoder, DecoderConfig
from jaxcore.models.layer_states import layer_states

DOCUMENTS = {
    "a": "Storms closed the old bridge in May. Nobody was hurt by the falling stones.",
    "b": "Trains cross the river slowly.",
}
SOURCES = (Span("b", 0, 30), Span("a", 0, 36), Span("a", 37, 75))
QUERY = "The old bridge was closed by storms, and trains cross slowly."
REQUESTS = [
    Request(SOURCES, DOCUMENTS, QUERY, ((4, 14),)),
    Request(SOURCES, DOCUMENTS, QUERY, ((41, 60),)),
    Request(SOURCES[:1], DOCUMENTS, QUERY, ((4, 14),)),
    Request((), DOCUMENTS, QUERY, ((4, 14),)),
]


def words(found):
    return [DOCUMENTS[span.document][span.start : span.end] for span in found.spans]


@pytest.fixture(scope="module")
def located():
    def locate(mesh, **options):
        reader = HashedWordReader(list(DOCUMENTS.values()), seed=0, dim=256, mesh=mesh)
        step = localiser_step(LocaliserConfig(**options), mesh)
        return localise_texts(REQUESTS, reader, step, threshold=0.6, mesh=mesh)

    return locate(make_mesh(MeshConfig(), jax.devices()[:1])), locate(make_mesh(MeshConfig(data=4, fsdp=2)))


def test_spans_follow_the_highlight_and_stay_in_the_sources(located):
    bridge, trains, elsewhere, nothing = located[0]
    assert words(bridge) == ["the old bridge"] and bridge.best_source == 1
    assert words(trains)[0].startswith("Trains cross") and trains.best_source == 0
    assert elsewhere.spans == () and elsewhere.best_source == 0
    assert nothing == ((), -1, 0)


def test_eight_devices_find_the_same(located):
    assert located[0] == located[1]


def test_a_query_without_tokens_in_its_spans_is_refused():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    reader = HashedWordReader(["x"], seed=0, dim=8, mesh=mesh)
    request = REQUESTS[0]._replace(query_spans=((3, 4),))
    with pytest.raises(ValueError, match="no token of the query 'The old bridge"):
        localise_texts([request], reader, None, threshold=0.5, mesh=mesh)


@pytest.fixture(scope="module")
def decoder():
    tokenizer = train_tokenizer(list(DOCUMENTS.values()), vocab_size=300, kind="bpe")
    config = DecoderConfig(
        vocab_size=300, num_layers=2, hidden_size=16, num_heads=2, num_key_value_heads=2, head_size=8,
        intermediate_size=16, max_positions=256, attention_implementation="explicit", initializer_range=0.5,
    )  # fmt: skip
    model = Decoder(config)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"], tokenizer


def test_a_decoder_s_spans_are_those_of_its_states_without_padding(decoder):
    model, params, tokenizer = decoder
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step = decoder_localiser_step(LocaliserConfig(), model, mesh, layer=1)
    found = localise_with_decoder(
        REQUESTS[:3], params, tokenizer, step, threshold=0.7, max_length=256, mesh=mesh, bos_token_id=2
    )
    assert any(located.spans for located in found)
    read = jax.jit(lambda params, row: layer_states(model, params, row, jnp.ones_like(row), layer=1))
    locate = jax.jit(functools.partial(localise_tokens, threshold=0.7))
    encode = lambda text: tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)  # noqa: E731
    for request, located in zip(REQUESTS, found, strict=False):
        ids, pieces, places = [2], [-1], [(0, 0)]
        for number, (document, start, end) in enumerate(request.sources):
            part = encode(DOCUMENTS[document][start:end])
            joint = encode("\n")["input_ids"]
            ids += part["input_ids"] + joint
            pieces += [number] * len(part["input_ids"]) + [-1] * len(joint)
            places += part["offset_mapping"] + [(0, 0)] * len(joint)
        query = encode(request.query)
        [(begin, stop)] = request.query_spans
        asked = [len(ids) + i for i, (a, b) in enumerate(query["offset_mapping"]) if a < stop and b > begin]
        row = jnp.asarray([ids + query["input_ids"]])
        states = read(params, row)[0]
        source, query = states[: len(ids)], states[jnp.asarray(asked)]
        kept = locate(source, jnp.asarray(pieces), query, jnp.ones(len(asked), bool)).kept
        covered = {
            (request.sources[pieces[i]].document, request.sources[pieces[i]].start + place)
            for i in np.flatnonzero(kept)
            for place in range(*places[i])
        }
        spans = {(s.document, place) for s in located.spans for place in range(s.start, s.end)}
        assert {(d, p) for d, p in covered if not DOCUMENTS[d][p].isspace()} == {
            (d, p) for d, p in spans if not DOCUMENTS[d][p].isspace()
        }


def test_attention_and_rows_that_are_too_short(decoder):
    model, params, tokenizer = decoder
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = LocaliserConfig(method="attention", min_run=1)
    step = decoder_localiser_step(config, model, mesh, layer=2)
    options = {"threshold": 0.0, "mesh": mesh}
    found = localise_with_decoder(REQUESTS[:2], params, tokenizer, step, max_length=256, **options)
    assert all(located.spans and located.best_source >= 0 for located in found)
    size = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (DOCUMENTS["b"], "\n", QUERY))
    [short] = localise_with_decoder(REQUESTS[:1], params, tokenizer, step, max_length=size, **options)
    assert {span.document for span in short.spans} == {"b"}  # the first source alone fits
    [none] = localise_with_decoder(REQUESTS[:1], params, tokenizer, step, max_length=size - 1, **options)
    assert none == ((), -1, 3) and short.left_out == 2 and found[0].left_out == 0
    with pytest.raises(ValueError, match="a row 10: raise it"):
        localise_with_decoder(REQUESTS[:1], params, tokenizer, step, max_length=10, **options)
    with pytest.raises(ValueError, match="'attention' needs a decoder"):
        localiser_step(config, mesh)


@pytest.mark.parametrize("fields", [{"min_run": 0}, {"threshold": 1.5}, {"max_gap": -1}])
def test_options_are_checked(fields):
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(LocaliserConfig(), **fields)

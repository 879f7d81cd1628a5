"""Entailment by a tiny random classifier of each family, against transformers; cutting; labels by name."""

import numpy as np
import pytest

from jaxcore.data import train_tokenizer
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation.entailment import EntailmentModel, entailment_class

WORDS = "red cats sleep on the old wall while birds sing and dogs bark at passing trains"
PREMISES = ["red cats sleep on the old wall", "dogs bark", "birds sing while dogs bark at trains"]
HYPOTHESES = ["cats sleep", "birds sing and dogs bark", "trains"]
LABELS = ("CONTRADICTION", "Entailment", "not_entailment")


def save_nli_model(folder, family="bert", labels=LABELS, positions=64):
    """A random classifier of transformers with its tokenizer."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = train_tokenizer([WORDS], vocab_size=120, kind="word")
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family == "distilbert":
        sizes |= {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": positions}
    else:
        offset = tokenizer.pad_token_id + 1 if family == "roberta" else 0
        sizes |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        sizes |= {"type_vocab_size": 1 if family == "roberta" else 2, "max_position_embeddings": positions + offset}
    config = transformers.AutoConfig.for_model(family, id2label=dict(enumerate(labels)), **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_pairs_are_scored_as_transformers_scores_them_one_by_one(family, tmp_path):
    torch = pytest.importorskip("torch")
    model, tokenizer = save_nli_model(tmp_path, family)
    found = EntailmentModel(tmp_path, mesh=make_mesh(MeshConfig(data=4, fsdp=2)))(PREMISES, HYPOTHESES)
    expected = []
    for pair in zip(PREMISES, HYPOTHESES, strict=True):
        encoded = tokenizer(*pair, return_tensors="pt", return_token_type_ids=family == "bert")
        with torch.no_grad():
            expected.append(model(**encoded).logits.softmax(-1)[0].numpy())
    np.testing.assert_allclose(found.probability, np.stack(expected)[:, 1], atol=1e-5)
    assert found.entails.tolist() == (np.argmax(expected, -1) == 1).tolist() and not found.cut.any()
    assert np.ptp(found.probability) > 1e-3, "the pairs are told apart"


def test_the_end_of_a_long_premise_is_left_out_and_a_hypothesis_never(tmp_path):
    _, tokenizer = save_nli_model(tmp_path)
    entailment = EntailmentModel(tmp_path, mesh=make_mesh(MeshConfig()), max_length=20)
    words = WORDS.split()
    long = entailment([" ".join([*words, *words])], ["cats sleep"])
    room = 20 - len(tokenizer("", "cats sleep")["input_ids"])
    kept = " ".join([*words, *words][:room])
    short = entailment([kept], ["cats sleep"])
    assert long.cut.tolist() == [True] and short.cut.tolist() == [False]
    np.testing.assert_allclose(long.probability, short.probability, atol=1e-6)
    with pytest.raises(ValueError, match="leaves the premise no room in 20 tokens"):
        entailment(["cats"], [" ".join([*words, *words])])


def test_one_class_is_entailment_by_name():
    assert entailment_class(("contradiction", "neutral", "ENTAILMENT")) == 2
    for labels in (("LABEL_0", "LABEL_1"), ("not_entailment", "neutral"), ("entailment", "Entailment")):
        with pytest.raises(ValueError, match=f"m: expected one class labelled 'entailment', got {labels[0]}"):
            entailment_class(labels, "m")


def test_pairs_that_are_none_are_refused(tmp_path):
    save_nli_model(tmp_path)
    entailment = EntailmentModel(tmp_path, mesh=make_mesh(MeshConfig()))
    with pytest.raises(ValueError, match="as many premises as hypotheses: got 1, 2"):
        entailment(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="must not be empty"):
        entailment([" "], ["cats"])
    assert len(entailment([], []).entails) == 0


def test_a_model_without_named_classes_is_refused_when_it_is_read(tmp_path):
    save_nli_model(tmp_path, labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(ValueError, match="labelled 'entailment', got LABEL_0, LABEL_1: name the classes in id2label"):
        EntailmentModel(tmp_path, mesh=make_mesh(MeshConfig()))

"""Corpora for language models: rows hold the documents, prompts go on as the documents do, stored prompts, refusals."""

import dataclasses
import json
import tarfile

import numpy as np
import pytest

from jaxcore.data.embedded_prose import embedded_prose, split_documents
from jaxcore.data.language_model_corpus import LanguageModelDataConfig, open_language_model_corpus, text_rows

CONFIG = LanguageModelDataConfig(
    sources=("python",), vocab_size=600, length=20, num_prompts=12, prefix_tokens=6, new_tokens=10
)


@pytest.fixture(scope="module")
def corpus():
    return open_language_model_corpus(CONFIG)


def test_rows_are_the_documents_of_their_part(corpus):
    split = split_documents(embedded_prose(("python",)), validation=0.05, test=0.1)
    for rows, documents in zip((corpus.train, corpus.validation, corpus.test), split, strict=True):
        ids, mask = rows["input_ids"], rows["attention_mask"].astype(bool)
        assert ids.shape == mask.shape and ids.shape[1] == 20
        texts = [corpus.tokenizer(document.text).input_ids for document in documents]
        kept = [text[:-1] if len(text) % 20 == 1 else text for text in texts]  # a row of one token predicts nothing
        assert ids[mask].tolist() == [token for text in kept for token in text]
    assert 256 < len(corpus.tokenizer) <= 600 and "12 prompts" in corpus.description


def test_prompts_go_on_as_the_test_documents_do(corpus):
    test = split_documents(embedded_prose(("python",)), validation=0.05, test=0.1).test
    text = "\n\n".join(document.text for document in test)
    assert len(corpus.prefixes) == len(corpus.references) == 12
    whole = [[*a, *b] for a, b in zip(corpus.prefixes, corpus.references, strict=True)]
    assert all(len(a) == 6 for a in corpus.prefixes) and all(len(x) == 16 for x in whole)
    assert all(corpus.tokenizer.decode(x) in text for x in whole)
    assert len({tuple(x) for x in whole}) == 12


def test_the_texts_are_always_the_same(corpus):
    again = open_language_model_corpus(CONFIG)
    np.testing.assert_array_equal(again.train["input_ids"], corpus.train["input_ids"])
    assert again.prefixes == corpus.prefixes


def test_a_file_and_stored_prompts(corpus, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(f"document {n} says that {n} is {n + 1} less one" for n in range(40)))
    stored = [{"prefix_text": f"document {n}", "reference_text": " says that it is so, it is"} for n in range(3)]
    (tmp_path / "contrastive_result.json").write_text(json.dumps(stored))
    with tarfile.open(tmp_path / "prompts.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "contrastive_result.json", "results/contrastive_result.json")
    corpus.tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = dataclasses.replace(
        CONFIG, path=str(tmp_path / "texts.txt"), tokenizer=str(tmp_path / "tokenizer"), num_prompts=2, new_tokens=3
    )
    for prompts in ("contrastive_result.json", "prompts.tar.gz"):
        found = open_language_model_corpus(dataclasses.replace(config, prompts=str(tmp_path / prompts)))
        assert [found.tokenizer.decode(ids) for ids in found.prefixes] == ["document 0", "document 1"]
        assert all(len(ids) == 3 for ids in found.references)
        assert len(found.train["input_ids"]) > len(found.test["input_ids"])
    with pytest.raises(ValueError, match="has 3 prompts, not 9"):
        open_language_model_corpus(dataclasses.replace(config, prompts=str(tmp_path / "prompts.tar.gz"), num_prompts=9))
    (tmp_path / "other.json").write_text("[{}]")
    with pytest.raises(ValueError, match="prefix_text and reference_text"):
        open_language_model_corpus(dataclasses.replace(config, prompts=str(tmp_path / "other.json")))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="is too small"):
        LanguageModelDataConfig(length=1)
    with pytest.raises(ValueError, match="/does/not/exist"):
        open_language_model_corpus(LanguageModelDataConfig(path="/does/not/exist"))
    with pytest.raises(ValueError, match="or raise"):
        open_language_model_corpus(dataclasses.replace(CONFIG, num_prompts=100_000))
    with pytest.raises(ValueError, match="two tokens"):
        text_rows([[1]], length=4, pad_id=0)

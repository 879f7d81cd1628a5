"""Reading intents: both layouts, the real Banking77 files where they are, and files that do not fit."""

import pytest

from jaxcore.data.intents import read_intents


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


FOLDERS = {
    "train/seq.in": "lost my card\nwhat rate\nmy card is gone\n",
    "train/label": "card_lost\nrate\ncard_lost\n",
    "train_1/seq.in": "what rate\nlost my card\n",
    "train_1/label": "rate\ncard_lost\n",
    "test/seq.in": "card lost\n",
    "test/label": "card_lost\n",
    "valid/seq.in": "unread\n",
}
CSV = {
    "bank_train.csv": 'text,category\n"lost my\n card",card_lost\nwhat rate,rate\n',
    "bank_test.csv": "text,category\nrate?,rate\n",
}


def test_folders_with_a_published_few_shot_split(tmp_path):
    corpus = read_intents(write(tmp_path, FOLDERS))
    assert corpus.names == ("card_lost", "rate")
    assert corpus.training.texts[1] == "what rate" and corpus.training.labels.tolist() == [0, 1, 0]
    assert corpus.few_shot[1].labels.tolist() == [1, 0] and corpus.test.labels.tolist() == [0]


def test_csv_with_line_breaks_inside_utterances(tmp_path):
    corpus = read_intents(write(tmp_path, CSV))
    assert corpus.training.texts == ("lost my card", "what rate")
    assert corpus.test.labels.tolist() == [1] and corpus.few_shot == {}


def test_the_real_banking77(shared_data):
    corpus = read_intents(shared_data / "intents")
    assert len(corpus.names) == 77 and len(corpus.training.texts) == 10003 and len(corpus.test.texts) == 3080
    assert corpus.names[corpus.training.labels[0]] == "card_arrival"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must hold one file \\*train.csv"),
        ({**FOLDERS, "train/label": "rate\n"}, "seq.in has 3 lines, label 1"),
        ({**FOLDERS, "test/label": "unknown\n"}, "'unknown', which train does not have"),
        ({**FOLDERS, "test/seq.in": "\n"}, "line 1 of .*seq.in is empty"),
        ({k: v for k, v in FOLDERS.items() if "test" not in k}, "none called test"),
        ({"x_train.csv": CSV["bank_train.csv"], "y_train.csv": CSV["bank_train.csv"]}, "x_train.csv, y_train.csv"),
    ],
)
def test_files_that_do_not_fit_are_named(files, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_intents(write(tmp_path, files))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no folder at"):
        read_intents(tmp_path / "nothing")

"""A few sentences about three public documents, with what in the documents supports each highlighted part.

The Gettysburg Address (1863, Bliss copy; without its last two sentences), the second paragraph of the Declaration of
Independence (1776; its beginning) and the preamble of the Constitution of the United States (1787), all in the public
domain; the output and the alignments are this project's.
"""

from jaxcore.attribution.text_spans import Offsets, Span, merge_spans, overlap
from jaxcore.data.grounded_texts import GroundedText, source_document, split_sentences
from jaxcore.data.highlight_queries import HighlightQuery

_GETTYSBURG = """\
Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and \
dedicated to the proposition that all men are created equal.
Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived and so dedicated, can \
long endure. We are met on a great battle-field of that war. We have come to dedicate a portion of that field, as a \
final resting place for those who here gave their lives that that nation might live. It is altogether fitting and \
proper that we should do this.
But, in a larger sense, we can not dedicate -- we can not consecrate -- we can not hallow -- this ground. The brave \
men, living and dead, who struggled here, have consecrated it, far above our poor power to add or detract. The world \
will little note, nor long remember what we say here, but it can never forget what they did here."""
_DECLARATION = """\
We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator with \
certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness. That to secure these \
rights, Governments are instituted among Men, deriving their just powers from the consent of the governed."""
_PREAMBLE = """\
We the People of the United States, in Order to form a more perfect Union, establish Justice, insure domestic \
Tranquility, provide for the common defence, promote the general Welfare, and secure the Blessings of Liberty to \
ourselves and our Posterity, do ordain and establish this Constitution for the United States of America."""

_OUTPUT = (
    "Lincoln recalled that the fathers brought forth a new nation dedicated to the proposition that all men are "
    "created equal. The great civil war was testing whether that nation could long endure. He said that the brave"
    " men who struggled there had consecrated the ground, and that the world would never forget what they did. "
    "Governments derive their just powers from the consent of the governed, and they are instituted to secure "
    "unalienable rights. The people ordained the Constitution to form a more perfect union and to secure the "
    "blessings of liberty."
)

_ALIGNED: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "the fathers brought forth a new nation",
        (("gettysburg", "our fathers brought forth"), ("gettysburg", "a new nation")),
    ),
    (
        "dedicated to the proposition that all men are created equal",
        (("gettysburg", "dedicated to the proposition that all men are created equal"),),
    ),
    ("The great civil war", (("gettysburg", "we are engaged in a great civil war"),)),
    (
        "testing whether that nation could long endure",
        (("gettysburg", "testing whether that nation"), ("gettysburg", "can long endure")),
    ),
    (
        "the brave men who struggled there had consecrated the ground",
        (("gettysburg", "The brave men"), ("gettysburg", "who struggled here, have consecrated it")),
    ),
    (
        "the world would never forget what they did",
        (("gettysburg", "The world"), ("gettysburg", "it can never forget what they did here")),
    ),
    (
        "Governments derive their just powers from the consent of the governed",
        (
            ("declaration", "Governments"),
            ("declaration", "deriving their just powers from the consent of the governed"),
        ),
    ),
    (
        "they are instituted to secure unalienable rights",
        (
            ("declaration", "certain unalienable Rights"),
            ("declaration", "to secure these rights, Governments are instituted"),
        ),
    ),
    ("to form a more perfect union", (("preamble", "to form a more perfect Union"),)),
    ("to secure the blessings of liberty", (("preamble", "secure the Blessings of Liberty"),)),
)


def grounded_example() -> list[HighlightQuery]:
    """Ten queries on one output. Candidates are the source sentences that support anything of the output's sentence.

    The preamble is one sentence, so the two highlights about it have to be told apart within it.
    """
    documents = (
        source_document("gettysburg", _GETTYSBURG),
        source_document("declaration", _DECLARATION),
        source_document("preamble", _PREAMBLE),
    )
    text = GroundedText("founding documents", documents, _OUTPUT, split_sentences(_OUTPUT))
    gold = {highlight: tuple(merge_spans(_find(text, *quoted) for quoted in found)) for highlight, found in _ALIGNED}
    queries = []
    for highlight, spans in gold.items():
        begin = _OUTPUT.index(highlight)
        place = (begin, begin + len(highlight))
        sentence = next(sentence for sentence in text.output_sentences if overlap(sentence, place))
        same = [found for other, found in gold.items() if overlap(_place(other), sentence)]
        candidates = [
            source
            for document in documents
            for source in document.spans()
            if any(_within(span, source) for found in same for span in found)
        ]
        queries.append(HighlightQuery(text, (place,), sentence, tuple(candidates), spans))
    return queries


def _place(highlight: str) -> Offsets:
    begin = _OUTPUT.index(highlight)
    return begin, begin + len(highlight)


def _find(text: GroundedText, document: str, words: str) -> Span:
    begin = text.texts()[document].index(words)
    return Span(document, begin, begin + len(words))


def _within(span: Span, source: Span) -> bool:
    return span.document == source.document and overlap(span[1:], source[1:])

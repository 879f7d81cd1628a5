"""The English words in which the generated-author world is rendered: names only, no statistics.

The world of `author_world` is defined over word *indices*; these lists give the indices readable names, so
that a report of attributed words can be read. Sizes follow eavae.md section 8 (F = 40, K = 24, C = 160 = 20 x
8).
"""

FUNCTION_WORDS: tuple[str, ...] = (
    *(
        "the",
        "of",
        "and",
        "to",
        "a",
        "in",
        "that",
        "it",
        "is",
        "was",
        "i",
        "for",
        "on",
        "you",
        "he",
        "be",
        "with",
    ),
    *(
        "as",
        "by",
        "at",
        "have",
        "are",
        "this",
        "not",
        "but",
        "had",
        "his",
        "they",
        "from",
        "she",
        "which",
        "or",
    ),
    *("we", "an", "there", "were", "been", "their", "so", "if"),
)

SYNONYM_PAIRS: tuple[tuple[str, str], ...] = (
    ("big", "large"),
    ("small", "little"),
    ("begin", "start"),
    ("quick", "fast"),
    ("buy", "purchase"),
    ("help", "assist"),
    ("maybe", "perhaps"),
    ("often", "frequently"),
    ("show", "demonstrate"),
    ("need", "require"),
    ("use", "employ"),
    ("get", "obtain"),
    ("end", "finish"),
    ("try", "attempt"),
    ("happy", "glad"),
    ("sad", "unhappy"),
    ("smart", "clever"),
    ("shut", "close"),
    ("speak", "talk"),
    ("ask", "inquire"),
    ("almost", "nearly"),
    ("enough", "sufficient"),
    ("kids", "children"),
    ("mistake", "error"),
)

THEMES: dict[str, tuple[str, ...]] = {
    "sea": ("harbour", "sail", "anchor", "tide", "captain", "wave", "vessel", "lighthouse"),
    "kitchen": ("recipe", "oven", "flour", "butter", "simmer", "spoon", "pepper", "bake"),
    "garden": ("rose", "soil", "hedge", "prune", "seed", "blossom", "orchard", "spade"),
    "music": ("melody", "violin", "chorus", "rhythm", "concert", "piano", "singer", "drum"),
    "law": ("court", "judge", "witness", "verdict", "appeal", "statute", "lawyer", "jury"),
    "medicine": ("doctor", "fever", "surgery", "nurse", "dose", "symptom", "clinic", "vaccine"),
    "sport": ("goal", "coach", "stadium", "referee", "league", "tackle", "sprint", "trophy"),
    "money": ("bank", "loan", "profit", "market", "invest", "tax", "budget", "debt"),
    "weather": ("storm", "cloud", "thunder", "frost", "breeze", "drizzle", "forecast", "snow"),
    "travel": ("passport", "luggage", "hotel", "airport", "journey", "ticket", "border", "map"),
    "school": ("teacher", "lesson", "exam", "pupil", "homework", "chalk", "essay", "library"),
    "farm": ("barn", "cattle", "plough", "harvest", "sheep", "tractor", "wheat", "fence"),
    "space": ("planet", "orbit", "rocket", "comet", "telescope", "galaxy", "astronaut", "crater"),
    "war": ("soldier", "trench", "cannon", "siege", "army", "treaty", "march", "fortress"),
    "art": ("canvas", "sculptor", "gallery", "portrait", "sketch", "pigment", "museum", "marble"),
    "computing": ("keyboard", "server", "compile", "network", "software", "pixel", "algorithm", "database"),
    "forest": ("oak", "moss", "deer", "timber", "fern", "owl", "trail", "fox"),
    "city": ("tram", "pavement", "mayor", "traffic", "tower", "bridge", "subway", "crowd"),
    "clothing": ("wool", "button", "tailor", "sleeve", "velvet", "collar", "stitch", "coat"),
    "theatre": ("actor", "stage", "curtain", "rehearse", "audience", "costume", "drama", "script"),
}


def extend_names(names: tuple[str, ...], count: int) -> list[str]:
    """The first `count` names; past the end the list is repeated with a number: harbour, ..., harbour2, ..."""
    rounds = range(count // max(len(names), 1) + 1)
    return [name if turn == 0 else f"{name}{turn + 1}" for turn in rounds for name in names][:count]

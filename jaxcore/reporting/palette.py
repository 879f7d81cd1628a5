"""The colours of reports: every colour once, as it is in light and in dark.

Text reaches a contrast of 4.5 on everything it stands on, the strongest heatmap colours included, and lines
of charts reach 3 (WCAG 2.2, 1.4.3 and 1.4.11). Orange and blue stay apart under every common colour-vision
deficiency.
"""

PALETTE: dict[str, tuple[str, str]] = {
    "page": ("#f6f6f3", "#131519"),
    "surface": ("#ffffff", "#1b1e24"),
    "sunken": ("#f0f1ed", "#242830"),
    "rule": ("#dcded8", "#353a44"),
    "text": ("#1b1f25", "#e9ebee"),
    "muted": ("#565e69", "#a6aeba"),
    "accent": ("#1b5e8c", "#86bfe8"),
    "pass": ("#0a6247", "#62d3a8"),
    "pass-tint": ("#e2f3ec", "#15332a"),
    "fail": ("#a02c18", "#ff9f8a"),
    "fail-tint": ("#fbe9e5", "#41201a"),
    "positive": ("#f3a055", "#a04c06"),
    "negative": ("#7db3ea", "#1f5fa6"),
    "grid": ("#e4e6e1", "#31363f"),
    "reference": ("#6a717c", "#98a1ae"),
    "series-1": ("#0b62a8", "#6cb4f0"),
    "series-2": ("#c4500a", "#f59e5b"),
    "series-3": ("#00795a", "#4fcf9f"),
    "series-4": ("#a2417a", "#e696c4"),
    "series-5": ("#75660a", "#d6c452"),
    "series-6": ("#584cb3", "#aaa2f5"),
}
SERIES = tuple(name for name in PALETTE if name.startswith("series-"))


def palette_css() -> str:
    """Custom properties `--name` and, for mixing with transparency, `--name-rgb`.

    Light is the rule. Dark applies on screens only (paper is light), when the system asks for it and the
    reader has not chosen light, or when the reader has chosen dark.
    """
    light, dark = (_declarations(mode) for mode in (0, 1))
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n"
        "@media screen and (prefers-color-scheme:dark){"
        f":root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
    )


def _declarations(mode: int) -> str:
    parts = []
    for name, colours in PALETTE.items():
        red, green, blue = bytes.fromhex(colours[mode][1:])
        parts.append(f"--{name}:{colours[mode]};--{name}-rgb:{red} {green} {blue};")
    return "".join(parts)

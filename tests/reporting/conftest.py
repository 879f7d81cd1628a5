"""What the reporting tests share: a report with realistic content, and headless Chromium where installed."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcore.reporting import (
    Block,
    Curves,
    Headline,
    KeyValues,
    Paragraph,
    Report,
    Section,
    Table,
    TokenHeatmap,
    TokenHeatmaps,
    VerdictTable,
    format_interval,
)

_FUNCTION_WORDS = (
    "the",
    "of",
    "whilst",
    "upon",
    "to",
    "a",
    "in",
    "which",
    "although",
    "hence",
    "rather",
    "quite",
    "and",
)
_TOPIC_WORDS = ("harbour", "engine", "ledger", "orchard", "storm", "violin", "market", "glacier", "senator")


def authorship_heatmaps(count: int = 6, length: int = 128) -> list[TokenHeatmap]:
    """Documents of readable words whose markers carry most of the attribution, as a STAR run yields them."""
    rng = np.random.default_rng(7)
    heatmaps = []
    for document in range(count):
        markers = set(rng.choice(_FUNCTION_WORDS, size=4, replace=False).tolist())
        words = [
            str(rng.choice(_FUNCTION_WORDS if rng.random() < 0.55 else _TOPIC_WORDS)) + ("," * (i % 17 == 16))
            for i in range(length)
        ]
        marked = [word.strip(",") in markers for word in words]
        values = rng.normal(0, 0.008, length) + np.where(marked, rng.normal(0.03, 0.015, length), 0.0)
        caption = f"Document {document + 1}, author {rng.integers(200)}: similarity 0.83, runner-up 0.61"
        heatmaps.append(TokenHeatmap(words, values, caption=caption, marked=marked))
    return heatmaps


def claim_verdicts() -> list[dict[str, Any]]:
    claims = [
        ("Training beats the untrained encoder by at least 0.35 at S = 8", 0.521, 1e-4, True),
        ("Training beats the cosine of raw counts by at least 0.25", 0.396, 1e-4, True),
        ("Accuracy rises with every doubling of the support texts", 0.392, None, True),
        ("Eight views beat two views by at least 0.02", 0.012, 0.081, False),
    ]
    return [
        {
            "name": f"star-{i}",
            "statement": statement,
            "effect": effect,
            "low": effect - 0.02,
            "high": effect + 0.02,
            "p_value": p,
            "test": "paired bootstrap over seeds, one-sided",
            "passed": passed,
            "source": "star.md, section 8 A",
        }
        for i, (statement, effect, p, passed) in enumerate(claims, start=1)
    ]


def training_curves() -> Curves:
    rng = np.random.default_rng(3)
    steps = np.arange(1, 401)
    every = steps[24::25]
    return Curves(
        {
            "training loss": (steps, 2.1 + 3.2 * np.exp(-steps / 70) + rng.normal(0, 0.05, 400)),
            "validation loss": (every, 2.3 + 3.0 * np.exp(-every / 80)),
        },
        x_label="step",
        y_label="supervised contrastive loss, nats",
        caption="Loss over 400 steps of 512 texts",
        reference={"uniform guess, log 511": float(np.log(511))},
    )


def accuracy_blocks() -> list[Block]:
    """The N x S grid of accuracies as a table, and as curves with bands."""
    support = np.array([1, 2, 4, 8])
    grid = {
        "SupCon, 8 views": np.array([0.174, 0.320, 0.440, 0.566]),
        "SupCon, 2 views": np.array([0.160, 0.291, 0.399, 0.524]),
        "Raw count cosine": np.array([0.032, 0.059, 0.117, 0.170]),
        "Untrained encoder": np.array([0.016, 0.020, 0.028, 0.045]),
    }
    rows = [[name, 200, *(format_interval(v, v - 0.018, v + 0.018) for v in values)] for name, values in grid.items()]
    columns = ["Model", "Authors", *(f"S = {count}" for count in support)]
    return [
        Paragraph("Support texts come from topics 0 to 9, queries from topics 10 to 19."),
        Table(columns, rows, caption="Top-1 accuracy with 95 % intervals over 10 draws"),
        Curves(
            {name: (support, values) for name, values in grid.items()},
            x_label="support texts of each author",
            y_label="top-1 accuracy",
            caption="Accuracy against the number of support texts, 200 authors",
            bands={name: (values - 0.018, values + 0.018) for name, values in grid.items()},
            reference={"chance": 0.005},
        ),
    ]


def verification_table() -> Table:
    rows: list[list[Any]] = [
        ["SupCon, 8 views", 0.941, 0.868, 0.861, 0.902],
        ["Raw count cosine", 0.713, 0.655, 0.640, 0.781],
        ["Untrained encoder", 0.562, 0.540, 0.531, None],
    ]
    return Table(["Model", "AUC", "c@1", "F0.5u", "Brier complement"], rows, caption="Pairs of texts: 5,000")


CONFIGURATION = {
    "preset": "cpu",
    "seed": 0,
    "model": {"num_layers": 2, "width": 128, "heads": 4, "dropout": 0.1, "pooling": "masked_mean"},
    "loss": {"name": "supervised_contrastive", "temperature": 0.1, "variant": "out"},
    "optimizer": {"name": "adamw", "learning_rate": 2e-3, "warmup_steps": 20, "weight_decay": 1e-4},
    "data": {
        "authors": 400,
        "views": 8,
        "authors_per_batch": 64,
        "path": None,
        "support_sizes": (1, 2, 4, 8),
    },
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
}


def authorship_report() -> Report:
    """A STAR authorship run: 400 steps, the N x S grid, verification, claims, six heatmaps, configuration."""
    return Report(
        title="STAR: writing style from supervised contrastive pre-training",
        subtitle="Does an encoder trained on 400 authors tell 200 unseen ones apart on new topics?",
        facts={
            "Experiment": "star",
            "Preset": "cpu",
            "Seed": "0",
            "Device": "CPU, 2 cores",
            "Steps": "400",
            "Duration": "3 min 41 s",
            "Versions": "jax 0.10.2, flax 0.12.1",
        },
        headline=[
            Headline("Accuracy, 200 authors, 8 texts", "0.566", "95 % interval 0.548 to 0.584; chance 0.005"),
            Headline("Verification AUC", "0.941", "95 % interval 0.932 to 0.950; chance 0.5"),
            Headline("Clustering BCubed F", "0.612", "95 % interval 0.590 to 0.633; untrained 0.214"),
            Headline("Markers found, AUPRC", "0.784", "95 % interval 0.741 to 0.822; chance 0.121"),
        ],
        sections=[
            Section("Claims", [VerdictTable(claim_verdicts(), caption="Claims of the paper, over 3 seeds.")]),
            Section(
                "Training",
                [training_curves()],
                note="64 authors with 8 views each in every batch; topics are independent of the author.",
            ),
            Section("Attribution of unseen authors", accuracy_blocks()),
            Section("Verification", [verification_table()]),
            Section(
                "Which words gave the author away",
                [TokenHeatmaps(authorship_heatmaps())],
                note="Integrated gradients of the similarity to the author's support texts.",
            ),
            Section("Configuration", [KeyValues(CONFIGURATION)]),
        ],
    )


@pytest.fixture(scope="session")
def sample_report() -> Report:
    return authorship_report()


class Page:
    """A page of headless Chromium, spoken to over a pipe in the DevTools protocol."""

    def __init__(self, process: subprocess.Popen[bytes], write_end: int, read_end: int):
        self._process = process
        self._to = os.fdopen(write_end, "wb", buffering=0)
        self._from = os.fdopen(read_end, "rb")
        self._sent = 0
        self._session: str | None = None
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        return self._read(lambda reply: reply.get("id") == self._sent)

    def _read(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            raw = bytearray()
            while (byte := self._from.read(1)) != b"\0":
                if not byte:
                    raise RuntimeError("chromium closed the pipe")
                raw += byte
            reply = json.loads(raw)
            if reply.get("method") == "Network.requestWillBeSent":
                self.requests.append(reply["params"]["request"]["url"])
            if wanted(reply):
                if "error" in reply:
                    raise RuntimeError(reply["error"])
                return reply.get("result", {})

    def open(self, path: Path, *, width: int, height: int = 900, scheme: str = "light", media: str = "") -> None:
        """Load a file at this width, in this colour scheme, and wait until it is laid out."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.requests.clear()
        self.call("Page.navigate", url=path.as_uri())
        ready = (
            "new Promise(done => { const go = () => setTimeout(() => done(1), 60);"
            " document.readyState === 'complete' ? go() : addEventListener('load', go); })"
        )
        self.evaluate(ready)

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description", result))
        return result["result"].get("value")

    def close(self) -> None:
        try:
            self._session = None
            self.call("Browser.close")
        finally:
            self._to.close()
            self._from.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Headless Chromium without network; skips where it is not installed."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("chromium is not installed")
    command_read, command_write = os.pipe()
    reply_read, reply_write = os.pipe()

    def wire_pipes() -> None:
        # Chromium reads commands from descriptor 3 and answers on 4; copy via high numbers lest they collide.
        high_read, high_write = os.dup2(command_read, 103), os.dup2(reply_write, 104)
        os.dup2(high_read, 3)
        os.dup2(high_write, 4)

    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
        "--remote-debugging-pipe"
    )
    process = subprocess.Popen(
        [executable, *flags.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=wire_pipes,
    )
    os.close(command_read)
    os.close(reply_write)
    watchdog = threading.Timer(120, process.kill)  # A browser that hangs must not hang the tests.
    watchdog.start()
    opened = Page(process, command_write, reply_read)
    yield opened
    opened.close()
    watchdog.cancel()

"""Make the pictures of the pages from what the scripts print on a terminal, on a private node:

    python -m tools.pictures

docs/terminales.svg has two consumers that get the same events, docs/watch.svg is
`setup_queues.py --watch`. POSIX only: it needs a pseudo-terminal.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from xml.sax.saxutils import escape

from common import cli, console
from common.config import DEFAULTS, ROOT
from tools.command import own_group
from tools.node import Node

COLUMNS, ROWS = 84, 24
CHARACTER, LINE, MARGIN, TITLE = 9, 20, 14, 30  # in units of the picture
WAIT_S = 60
COLOUR = re.compile(r"\x1b\[([\d;]*)m")
# The console's colours (common/console.py), lighter on the dark background of the picture.
FILLS = {"1;38;5;28": "#5fd787", "1;38;5;130": "#ffaf5f", "1;38;5;196": "#ff8787"}


class Screen:
    """A script on a terminal of its own; `lines` is what it shows now."""

    def __init__(self, broker: dict[str, str], state: Path, command: str):
        import pty  # not available on Windows

        self.command = command
        self._output = b""
        self._reading, terminal = pty.openpty()
        script, *arguments = command.split()
        environment = os.environ | DEFAULTS | {
            **broker, "STATE_DIR": str(state), "COLUMNS": str(COLUMNS),
            "LINES": str(ROWS), "TERM": "xterm-256color", "PYTHONUTF8": "1"}
        environment.pop("NO_COLOR", None)
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments], cwd=state, env=environment,
            stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, **own_group())
        os.close(terminal)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._reading, 65536):
                self._output += part
        except OSError:  # the script has ended
            pass

    @property
    def lines(self) -> list[str]:
        text = self._output.decode("utf-8", "replace")
        text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:5672", text)
        if "\x1b[J" in text:  # the last frame that is complete
            text = text.rpartition("\x1b[J")[0].rpartition("\x1b[H")[2]
        return text.replace("\x1b[K", "").replace("\r", "").splitlines()

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not re.search(words, COLOUR.sub("", "\n".join(self.lines))):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.command}: {words!r}\n" + "\n".join(self.lines))
            time.sleep(0.05)

    def end(self) -> int:
        code = self._process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self.end()
        os.close(self._reading)


class Scene:
    """Screens on one broker; on exit all are closed."""

    def __init__(self, broker: dict[str, str]):
        self._broker = broker
        self._folder = tempfile.TemporaryDirectory(prefix="kit-pictures-")
        self._screens: list[Screen] = []

    def start(self, command: str, words: str) -> Screen:
        """Start a script and wait until it shows the words."""
        self._screens.append(Screen(self._broker, Path(self._folder.name), command))
        self._screens[-1].wait_for(words)
        return self._screens[-1]

    def run(self, command: str) -> None:
        assert self.start(command, "").end() == 0, command

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *_: object) -> None:
        for screen in self._screens:
            screen.close()
        self._folder.cleanup()


def two_consumers(broker: dict[str, str]) -> list[tuple[str, list[str]]]:
    with Scene(broker) as scene:
        screens = [scene.start(f"{name}_consumer_simple.py", "escucha")
                   for name in ("email", "loyalty")]
        for name in ("Juan", "Ana", "Zoe"):
            scene.run(f"events_publisher_levels.py --level 3 --nombre {name}"
                      f" --email {name.lower()}@eco.com")
            for screen in screens:
                screen.wait_for(f"(?i)(a|para) {name}")
        return [(f"Terminal {number}", [f"$ python {screen.command}", *screen.lines])
                for number, screen in enumerate(screens, start=1)]


def flow(broker: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Events that wait for a consumer, retries under way, dead letters."""
    with Scene(broker) as scene:
        scene.run("setup_queues.py")
        for name in ("email", "loyalty"):
            scene.start(f"{name}_consumer_simple.py", "escucha")
        screen = scene.start("setup_queues.py --watch", "user_events")
        scene.run("simulate_fail_publisher.py --mode permanent --consumer loyalty --count 2")
        scene.run("simulate_fail_publisher.py --consumer email --count 5")
        screen.wait_for(r"retry\.30s +5 .*vuelve")
        scene.run("simulate_fail_publisher.py --consumer email --count 3")
        screen.wait_for(r"retry\.5s +3 +0 .*vuelve")
        return [("python setup_queues.py --watch", screen.lines)]


def svg(terminals: list[tuple[str, list[str]]]) -> str:
    """The terminals one below the other: dark, so readable on a light and on a dark page."""
    width, parts, top = COLUMNS * CHARACTER + 2 * MARGIN, [], 0
    for title, lines in terminals:
        height = TITLE + len(lines) * LINE + MARGIN
        parts += [f'<rect x="1" y="{top + 1}" width="{width - 2}" height="{height}" rx="8"'
                  ' fill="#1c1f26" stroke="#8a8f98"/>',
                  f'<text x="{MARGIN}" y="{top + 21}" fill="#9aa0aa">{escape(title)}</text>']
        for number, line in enumerate(lines, start=1):
            parts.append(_line(line, top + TITLE + number * LINE - 4))
        top += height + MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top - MARGIN + 2}"'
        ' font-family="Consolas, Menlo, DejaVu Sans Mono, monospace" font-size="15"'
        ' xml:space="preserve">', *parts, "</svg>\n"])


def _line(line: str, y: int) -> str:
    text, fill, shown, x = COLOUR.split(line), "#e6e8ec", "", MARGIN
    for number, part in enumerate(text):
        if number % 2:
            fill = FILLS.get(part, "#e6e8ec")
        elif part:  # the width is fixed, so that columns are aligned in any font
            length = len(part) * CHARACTER
            shown += (f'<text x="{x}" y="{y}" fill="{fill}" textLength="{length}"'
                      f' lengthAdjust="spacingAndGlyphs">{escape(part)}</text>')
            x += length
    return shown


def make(url: str, management_url: str, folder: Path) -> None:
    """Write the pictures; the queues at `url` must not exist yet."""
    broker = {"RABBITMQ_URL": url, "RABBITMQ_MANAGEMENT_URL": management_url}
    for name, scene in (("terminales.svg", two_consumers), ("watch.svg", flow)):
        (folder / name).write_text(svg(scene(broker)), encoding="utf-8")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="kit-node-") as folder, Node(Path(folder)) as node:
        node.start()
        make(node.url, node.management_url, ROOT / "docs")
    console.print_line("docs/terminales.svg, docs/watch.svg", "ok")
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)

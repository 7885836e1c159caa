"""Draw performance.json as performance.svg in the same folder: python plot.py FOLDER.

It needs matplotlib, which benchmarks/requirements.txt installs.
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from report import KIT

TITLES = {"flow": "everything at once", "work": "consuming, the same work",
          "outbox": "publishing, with an outbox", "publish": "publishing, without",
          "consume": "consuming: the kit works, the others only ack"}

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "kit",
                        "font.family": "sans-serif", "font.size": 10}


def main(folder: Path) -> None:
    results = json.loads((folder / "performance.json").read_text(encoding="utf-8"))
    shown = {part: title for part, title in TITLES.items() if part in results}
    if not shown:
        return
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(8, sum(
        1 + 0.28 * len(results[part]) for part in shown)), facecolor="white", squeeze=False,
        height_ratios=[1 + 0.28 * len(results[part]) for part in shown])
    for axis, (part, title) in zip(axes.flat, shown.items()):
        rates = {name: one["events_per_s"] for name, one in results[part].items()}
        names = sorted(rates, key=rates.__getitem__)
        bars = axis.barh(names, [rates[name] for name in names],
                         color=["#d9480f" if name == KIT else "#adb5bd" for name in names])
        axis.bar_label(bars, padding=3)
        axis.set_title(f"{title}, events/s", loc="left")
        axis.margins(x=0.18)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.xaxis.set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "performance.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

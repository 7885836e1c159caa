"""Draw performance.json as performance.svg in the same folder: python plot.py FOLDER.

It needs matplotlib, which benchmarks/requirements.txt installs.
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from report import KIT

TITLES = {"publish": "publish, confirmed\nevents/s", "consume": "consume\nevents/s"}

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "kit",
                        "font.family": "sans-serif", "font.size": 10}


def main(folder: Path) -> None:
    results = json.loads((folder / "performance.json").read_text(encoding="utf-8"))
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), facecolor="white")
    for axis, (part, title) in zip(axes, TITLES.items()):
        rates = {name: one["events_per_s"] for name, one in results[part].items()
                 if not name.endswith("multiple acks")}
        names = sorted(rates, key=rates.__getitem__)
        bars = axis.barh(names, [rates[name] for name in names],
                         color=["#d9480f" if name == KIT else "#adb5bd" for name in names])
        axis.bar_label(bars, padding=3)
        axis.set_title(title)
        axis.margins(x=0.18)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.xaxis.set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "performance.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

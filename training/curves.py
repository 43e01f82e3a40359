"""Plot the logs of the trainers: one panel for each figure of each log, over the step.

python -m training.codec ... | tee decoder.log
python -m training.curves decoder.log --out training/curves.png
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

Curves = dict[str, list[tuple[int, float]]]

_STEP = re.compile(r"^(?:step |\| )(\d+)\b")
_FIGURE = re.compile(r"\b([a-z]+) (-?\d+\.\d+)")
HELD = " (held out)"
SMOOTH = 5
"""Lines of a log over which figures of single batches are averaged."""


def read(log: str) -> Curves:
    """Every figure of a log by its name. Figures in tables are held-out and get that suffix."""
    curves: Curves = {}
    for line in log.splitlines():
        if not (found := _STEP.match(line)):
            continue
        mark = HELD if line.startswith("|") else ""
        for name, value in _FIGURE.findall(line):
            curves.setdefault(name + mark, []).append((int(found[1]), float(value)))
    return curves


def smooth(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The moving average over the last `SMOOTH` points."""
    parts = [curve[max(0, end - SMOOTH) : end] for end in range(1, len(curve) + 1)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def panels(paths: list[Path], left_out: list[str]) -> list[tuple[str, Curves]]:
    """The title and curves of each panel: one figure of one log, training and held-out."""
    out = []
    for path in paths:
        curves = read(path.read_text())
        for name in dict.fromkeys(name.removesuffix(HELD) for name in curves):
            lines = {n: curve for n, curve in curves.items() if n.removesuffix(HELD) == name}
            if name not in left_out:
                out.append((f"{path.stem}: {name}", lines))
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("logs", type=Path, nargs="+", help="output of the trainers")
    parser.add_argument("--leave-out", nargs="*", default=["loss", "mean", "commitment", "phone"],
                        help="figures that are not plotted")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("training/work/curves.png"))
    args = parser.parse_args()
    from matplotlib import pyplot

    drawn = panels(args.logs, args.leave_out)
    _, places = pyplot.subplots(1, len(drawn), squeeze=False, figsize=(3.6 * len(drawn), 3.0))
    for (title, lines), place in zip(drawn, places[0], strict=True):
        for name, curve in lines.items():
            points = curve if name.endswith(HELD) else smooth(curve)
            mark = "o" if len(points) < 10 else ""
            place.plot(*zip(*points, strict=True), marker=mark, label=name)
        place.set_title(title)
        place.set_xlabel("step")
        place.grid(alpha=0.3)
        place.legend()
    pyplot.tight_layout()
    pyplot.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()

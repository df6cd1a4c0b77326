"""Pictures of the README: pages of real runs, photographed in Chromium, light and dark.

python scripts/pictures.py

Trains and evaluates a CNN on the digits, tunes a network's learning rate and plans a run, about two minutes on two
cores, and writes docs/pictures/{run,tune,plan}-{light,dark}.png. The picture of the benchmark is that of
scripts/bench.py.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Of each picture: the commands of an experiment script, the page that they leave, and how much of it is shown.
PICTURES = {
    "run": (
        "digits_cnn.py",
        ("train --workdir {out} --quiet", "evaluate --workdir {out} --quiet"),
        "report.html",
        815,
    ),
    "tune": ("digits_mlp.py", ("tune learning_rate --epochs 20 --workdir {out} --quiet",), "report.html", 790),
    "plan": (
        "digits_cnn.py",
        ("plan --batch-size 1024 --targets v5e,v5e:2x2,a100,h100 --workdir {out} --quiet",),
        "plan.html",
        690,
    ),
}
WIDTH = 1100  # pixels


def photograph(page: Path, out: Path, height: int, *, dark: bool) -> None:
    """Write the upper part of a page as a PNG file.

    Args:
        page: HTML file.
        out: File to write.
        height: Pixels.
        dark: Whether the browser prefers dark colours.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("error: there is no chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={profile}", f"--window-size={WIDTH},{height}", "--virtual-time-budget=3000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--screenshot={out}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Make the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], help="pictures; all of them where none is named")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        script, commands, page, height = PICTURES[name]
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / name
            for command in commands:
                words = [word.format(out=out) for word in command.split()]
                subprocess.run([sys.executable, ROOT / "experiments" / script, *words], check=True, stdout=sys.stderr)
            for scheme in ("light", "dark"):
                file = arguments.out / f"{name}-{scheme}.png"
                photograph(out / page, file, height, dark=scheme == "dark")
                print(file)


if __name__ == "__main__":
    main()

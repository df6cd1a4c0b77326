"""The page of a plan: whole, closed, escaped, and looked at in a real browser."""

import itertools
import re

import numpy as np
import pytest

from accelnet.planning.page import plan_page
from accelnet.planning.plan import plan
from tests.pages import Page, needs_browser, shows
from tests.planning.conftest import make_experiment
from tests.planning.page_samples import HOSTILE, convolution, kernel, point, replaced, sample, target


def test_the_page_is_whole_and_needs_nothing_from_elsewhere():
    text = plan_page(sample())
    page = Page(text)
    assert not [a for _, a in page.elements if {"src", "href", "srcset", "style"} & set(a)]
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|url\(|@import|//[a-z]", text)
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(page.all("title")) > 1  # the page's, and those of its pictures


def test_sections_come_in_the_order_in_which_they_are_asked_for():
    headings = re.findall("<h2>(.*?)</h2>", plan_page(sample()))
    assert headings == [
        "What to rent", "Targets", "Memory of a device", "Rooflines", "Where the time of a step goes", "More devices",
        "What would make it fit", "Details", "Where the numbers come from",
    ]  # fmt: skip


def test_every_target_is_told_with_where_its_numbers_come_from():
    text = Page(plan_page(sample())).text
    for words in (
        "112,600 steps of 1,024 examples, 12.50 TFLOP a step", "v5e:2x2", "rtx4090", "h1000", "✓ fits",
        "✗ does not fit", "? failed", "9.2 GiB of 15.8 GiB", "41.2 GiB of 22.4 GiB", "11 ms to 27 ms", "41\u00a0%",
        "modelled: compiled kernels, stated rates", "modelled: modelled kernels, measured rates", "list price",
        "is no target that is known", "compiled are memory", "counted them: v5e:2x2.", "timed: rtx4090.",
        "on demand, us-central1, 2026-09-17", "0.62 times", "precision='bfloat16'", "batch_size=128",
        "802,816 × 576 by 576 × 64, bfloat16", "all-reduce", "no compiler for CUDA",
        "compile 41 s + train 1.5 h + evaluation 30 s", "The run leaves out checkpoints.", "MFU of steps",
    ):  # fmt: skip
        assert words in text, words
    assert "microbatch_size" not in text


def test_pictures_say_in_words_what_they_show():
    page = Page(plan_page(sample()))
    pictures = re.findall(r"<svg.*?</svg>", plan_page(sample()))
    assert len(pictures) == len(page.all("svg")) > 10
    assert all("<title>" in picture and "<desc>" in picture for picture in pictures)
    assert all(a["role"] == "img" for a in page.all("svg"))
    assert all(a.get("aria-label") and a.get("tabindex") == "0" for a in page.all("div", "scroll"))


def test_text_stands_out_from_what_is_behind_it():
    schemes = re.findall(r":root\{(.*?)\}", plan_page(sample()), re.DOTALL)
    assert len(schemes) == 2

    def luminance(color):
        color = color if len(color) == 6 else "".join(2 * digit for digit in color)
        parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for scheme in schemes:
        colors = {name: luminance(color) for name, color in re.findall(r"--(\w+):#([0-9a-f]+)", scheme)}
        for ink, paper in itertools.product(("ink", "soft", "good", "bad"), ("paper", "card")):
            light, dark = sorted((colors[ink], colors[paper]), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)  # WCAG 2, level AA


def test_what_comes_from_outside_is_escaped():
    text = plan_page(replaced(sample(), HOSTILE))
    page = Page(text)
    assert not page.all("script") + page.all("blink")
    assert HOSTILE not in text
    assert page.text.count(HOSTILE) > 30


@pytest.mark.parametrize(
    "total", [9_900_000_000, 7_000_000_000, 600_000_000, 30_000_000_000], ids=["rest", "less", "least", "too much"]
)
def test_the_parts_of_a_memory_bar_add_up_to_the_total(total):
    values = sample()
    values["targets"] = values["targets"][:1]
    values["targets"][0]["memory"]["total_bytes"] = total
    picture = re.search(r"Memory of v5e.*?</svg>", plan_page(values))[0]
    limit = values["targets"][0]["memory"]["limit_bytes"]
    # Positions are rounded to tenths of a thousandth.
    assert sum(map(float, re.findall(r'width="(.*?)"', picture))) == pytest.approx(
        1000 * total / max(total, limit), abs=0.5
    )
    mark = float(re.search(r'd="M(\S+) ', picture)[1])
    assert mark == pytest.approx(1000 * limit / max(total, limit), abs=0.1)


def test_a_kernel_at_both_peaks_stands_in_the_corner_of_the_roof():
    values = sample()
    made = values["targets"][0]
    made["kernels"] = [
        kernel("a", "product", 1, 1e-3, "compute", 197e9, 819e6, (1, 1, 1, 1, "bfloat16")),
        kernel("b", "elementwise", 1, 1e-3, "memory", 0, 819e6),
        kernel("c", "elementwise", 1, 1e-3, "memory", 0, 819e5),
    ]
    text = plan_page(values | {"targets": [made]})
    picture = re.search(r"Roofline of.*?</svg>", text)[0]
    path = re.search(r'd="M([^"]*)" class="roof"', picture)[1]
    (x0, y0), corner, (x1, _) = (tuple(map(float, place.split())) for place in path.split("L"))
    circles = [tuple(map(float, place)) for place in re.findall(r'cx="(.*?)" cy="(.*?)"', picture)]
    assert circles[0] == corner
    # What moves bytes alone lies on the slope at the full bandwidth, and below it at a tenth of it.
    slope = (corner[1] - y0) / (corner[0] - x0)
    assert circles[1][1] == pytest.approx(y0 + slope * (circles[1][0] - x0), abs=0.2)
    assert circles[2][1] > circles[1][1] + 5
    assert x0 < circles[1][0] < corner[0] < x1


def test_equal_kernels_are_one_point():
    values = sample()
    one = values["targets"][0]["kernels"][0]
    values["targets"][0]["kernels"] = [one] * 5
    picture = re.search(r"Roofline of.*?</svg>", plan_page(values))[0]
    assert picture.count("<circle") == 1


def test_ideals_are_beside_what_is_expected_of_more_devices():
    text = plan_page(sample())
    picture = re.search(r"<title>Time of a step.*?</svg>", text)[0]
    (falling, level) = (
        [float(place.split()[1]) for place in path.split("L")]
        for path in re.findall(r'd="M([^"]*)" class="ideal"', picture)
    )
    assert np.all(np.diff(falling) > 10)
    assert len(set(level)) == 1
    # 4 of 1,024 examples on each of 256 devices: far fewer than exchanges need to hide behind.
    assert "exchanges take longer than the work with 64 to 256 devices" in text


def without(values, *names, **changes):
    """Clear fields of every target."""
    empty = target("")
    targets = [made | {name: empty[name] for name in names} for made in values["targets"]]
    return values | {"targets": targets} | changes


EDGES = {
    "failures alone": lambda v: v | {"targets": v["targets"][2:], "scaling": [], "choice": None},
    "one target": lambda v: v | {"targets": v["targets"][:1], "choice": None},
    "no targets": lambda v: v | {"targets": [], "scaling": [], "choice": None},
    "no prices": lambda v: without(v, "usd_per_run", "usd_per_hour", "price", choice=None),
    "nothing within the limits": lambda v: v | {"choice": v["choice"] | {"cheapest": None, "fastest": None}},
    "no front": lambda v: v | {"choice": v["choice"] | {"cheapest": None, "fastest": None, "pareto": []}},
    "no kernels": lambda v: without(v, "kernels"),
    "no peaks": lambda v: without(v, "peaks"),
    "no remedies": lambda v: without(v, "remedies"),
    "one size": lambda v: v | {"scaling": [v["scaling"][0] | {"points": [point(1)]}]},
    "fewer examples than devices": lambda v: v | {
        "scaling": [v["scaling"][0] | {"points": [{k: x for k, x in point(8).items() if k != "fixed_global"}]}]
    },
}  # fmt: skip


@pytest.mark.parametrize("edge", EDGES)
def test_a_plan_that_lacks_something_is_a_page(edge):
    values = EDGES[edge](sample())
    page = Page(plan_page(values))
    assert all(made["name"] in page.text for made in values["targets"])
    assert not re.search(r"\bnan\b|\binf\b|None\b(?! is known)", page.text)


def test_an_empty_step_is_a_page():
    values = sample()
    for made in values["targets"][:2]:
        made["kernels"] = []
        made["step_seconds"] |= {"bound": 0.0, "expected": 0.0, "limits": {}, "labels": {}}
    Page(plan_page(values))


def test_a_single_targets_details_are_open():
    values = sample()
    assert Page(plan_page(values)).all("details") == [{}] * 3
    assert Page(plan_page(values | {"targets": values["targets"][:1]})).all("details") == [{"open": ""}]


def test_ten_targets_with_all_their_kernels_are_a_small_page():
    values = sample()
    rows = [
        convolution(f"model/blocks/{number}/convolution", 100_000 - 400 * number, 64 + number, 640, 1e-3 / (1 + number))
        for number in range(200)
    ]
    values["targets"] = [values["targets"][0] | {"name": f"v{n}", "title": f"T{n}", "kernels": rows} for n in range(10)]
    values["scaling"] = [
        values["scaling"][0] | {"accelerator": f"v{number}", "points": [point(2**power) for power in range(12)]}
        for number in range(10)
    ]
    assert len(plan_page(values).encode()) < 300_000


def test_the_page_of_a_real_plan():
    names = ["v5e:2x2", "h100", "cpu", "h1000"]
    made = plan(make_experiment(), names, compile=False, progress=False, budget_usd=5.0)
    page = Page(plan_page(made.to_dict()))
    assert all(name in page.text for name in names)
    assert len(page.all("figure")) >= 9  # memory, three rooflines, three times, two families


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_it_in_light_and_dark(browser, tmp_path):
    # Among the colours are those of the memory bars.
    shows(browser, plan_page(sample()), tmp_path, colors=((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)))


@needs_browser
@pytest.mark.parametrize("width", [1200, 360, 320])
def test_no_page_scrolls_sideways(browser, width):
    values = sample()
    values["targets"][0] |= {
        "name": "v5e" + 40 * "x",
        "reason": 300 * "y",
        "missing": 300 * "z",
        "bottleneck": 90 * "b",
    }
    values["targets"][2] |= {"reason": 300 * "y"}
    values["experiment"] = 120 * "e"
    assert browser(plan_page(values), (width,), False, "--dump-dom").title == f"{width} wide, asks for nothing"


def test_time_stands_against_cost_within_the_limits_and_beyond():
    made = sample()
    dear = made["targets"][0] | {"name": "v5e:4x4", "usd_per_run": 90.0, "run_seconds": 1000.0}
    text = plan_page(made | {"targets": [*made["targets"], dear]})
    (drawn,) = (part for part in text.split("<figure") if "Time against cost" in part)
    assert drawn.count('<circle class="c0"') == drawn.count('<circle class="c7"') == 1
    assert drawn.count('class="ideal"') == 1  # the budget; the deadline lies beyond both times

"""The pages in a real browser: `pytest -m browser` installs one where it is missing."""

import time

import pytest
from browser import browser
from run_files import HOSTILE, write_run

from fedbayes.report.comparison import compare
from fedbayes.report.comparison_page import write_comparison
from fedbayes.report.measures import MEASURES
from fedbayes.report.run_page import write_html
from fedbayes.storage.run_dir import write_json

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]
METHODS = [f"method{i}" for i in range(9)] + [HOSTILE]
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A comparison of ten methods with three seeds each, and a run."""
    folder = tmp_path_factory.mktemp("pages")
    for i, method in enumerate(METHODS):
        for seed in range(3):
            write_run(folder / "runs" / f"{i}-{seed}", method=method, seed=seed, rounds=30)
    table = compare(sorted((folder / "runs").iterdir()), "final", MEASURES)
    run = folder / "runs" / "0-0"
    image = {"png": DOT, "attention": DOT, "label": "a", "predicted": "b", "domain": "ink", "partition": 0}
    codes = {"points": [[0, 0, 0], [1, 1, 0]], "domains": ["ink"], "partition": 0}
    write_json(run / "gallery.json", {"images": {"mistakes": [image]}, "codes": codes})
    return {"comparison": write_comparison(table, folder / "comparison.html"), "run": write_html(run)}


@pytest.fixture
def visit(chromium):
    """Opens a page and gives it with the errors on its console and what it asked the network for."""
    contexts = []

    def visit(path, width=1280, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page, errors, asked = context.new_page(), [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page, errors, [url for url in asked if not url.startswith("data:") and url != path.as_uri()]

    yield visit
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["comparison", "run"])
def test_a_page_has_no_error_no_request_nothing_cut_off_and_nothing_that_axe_objects_to(
    visit, pages, name, width, scheme
):
    from axe_playwright_python.sync_playwright import Axe

    page, errors, asked = visit(pages[name], width, scheme)
    for closed in page.locator("details").all():
        closed.evaluate("one => one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert (errors, asked) == ([], [])


@pytest.mark.parametrize("width", [360, 390, 480, 900, 1280])
@pytest.mark.parametrize("name", ["comparison", "run"])
def test_no_letter_of_a_chart_is_smaller_than_ten_pixels(visit, pages, name, width):
    page, *_ = visit(pages[name], width)
    shown = page.evaluate("""() => [...document.querySelectorAll("svg.chart text")]
        .filter((one) => one.checkVisibility())
        .map((one) => {
            const {a, b} = one.getScreenCTM();
            return parseFloat(getComputedStyle(one).fontSize) * Math.hypot(a, b);
        })""")
    assert len(shown) > 50
    assert min(shown) >= 10


@pytest.mark.parametrize("name", ["comparison", "run"])
def test_on_a_phone_captions_and_facts_are_in_sight_and_what_is_wider_scrolls_by_keyboard(visit, pages, name):
    page, *_ = visit(pages[name], 390)
    for closed in page.locator("details").all():
        closed.evaluate("one => one.open = true")
    facts = page.locator("table.facts td").all() if name == "run" else []
    assert bool(facts) == (name == "run")
    seen = [*facts, *page.locator("caption:not(.hidden) span").all()]
    assert max(box["x"] + box["width"] for one in seen if (box := one.bounding_box())) <= 390
    wide = [one for one in page.locator(".scroll").all() if one.evaluate("one => one.scrollWidth > one.clientWidth")]
    assert wide
    wide[0].focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("one => one.scrollLeft > 0", arg=wide[0].element_handle())


def test_tables_of_domains_and_clients_sort_by_the_numbers_they_show(visit, pages):
    page, errors, _ = visit(pages["run"])
    page.get_by_text("3 clients", exact=True).click()
    table = page.locator("table.sortable").filter(has_text="Each client on its test images")
    table.get_by_role("button", name="accuracy").click()
    shown = [float(text) for text in table.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert shown == sorted(shown)
    shades = page.locator("table.heat").first
    shades.get_by_role("button", name="ink").press("Enter")
    values = [float(cell.get_attribute("data-value")) for cell in shades.locator("tbody td:nth-child(2)").all()]
    assert values == sorted(values)
    assert errors == []


def test_a_comparison_of_thirty_runs_opens_in_two_seconds(visit, pages):
    started = time.perf_counter()
    page, *_ = visit(pages["comparison"])
    assert page.locator("#headline-table tbody tr").count() == 10
    assert time.perf_counter() - started < 2


def test_a_comparison_of_runs_with_seeds_shows_all_columns_at_1280_pixels(visit, pages):
    page, *_ = visit(pages["comparison"])
    table = page.locator(".scroll", has=page.locator("#headline-table"))
    assert table.evaluate("box => box.scrollWidth - box.clientWidth") <= 0


def test_the_table_sorts_by_click_and_by_keyboard_and_says_so(visit, pages):
    page, errors, _ = visit(pages["comparison"])
    heads = page.locator("#headline-table thead th").all_inner_texts()
    column = next(i for i, name in enumerate(heads) if name.startswith("accuracy"))
    head = page.locator("#headline-table thead th").nth(column)

    def values():
        cells = f"#headline-table tbody tr td:nth-child({column + 1})"
        return [float(cell.get_attribute("data-value")) for cell in page.locator(cells).all()]

    assert head.get_attribute("aria-sort") is None
    head.locator("button").click()  # more is better, so the best comes first
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    page.locator("#headline-table thead th button").nth(0).press("Space")
    assert head.get_attribute("aria-sort") is None
    assert page.locator("#headline-table thead th[aria-sort]").count() == 1
    assert errors == []


def test_the_filter_leaves_rows_lines_and_dots_of_one_method(visit, pages):
    page, errors, _ = visit(pages["comparison"])
    page.get_by_label("Show only").fill("METHOD3")
    assert page.locator("#headline-table tbody tr:visible").count() == 1
    assert page.locator("#count").inner_text() == "1 of 10 shown"
    drawn = page.locator("svg [data-group]").all()
    shown = {one.get_attribute("data-group") for one in drawn if "off" not in (one.get_attribute("class") or "")}
    row = page.locator("#headline-table tbody tr:visible")
    assert shown == {row.get_attribute("data-group")}
    assert page.locator("svg.chart.narrow:visible").count() == 1  # its reliability diagram
    assert page.get_by_text("Clients and domains:").locator("visible=true").all_inner_texts() == [
        f"Clients and domains: {int(row.get_attribute('data-group')) + 1} method3"
    ]
    page.get_by_label("Show only").fill("")
    assert page.locator("#headline-table tbody tr:visible").count() == 10
    assert errors == []

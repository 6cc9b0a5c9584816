"""The page of a trace, in a real browser without a window."""

import json
import re

import pytest
from playwright.sync_api import expect
from typer.testing import CliRunner

import browser
from unmask.cli import app
from unmask.traceview.reader import read

pytestmark = browser.NEEDED
SUDOKU = "Solve the sudoku:\n0214\n4132\n1420\n0340"
QUESTION = "Tom has 3 apples. He buys 4 more, and then 5 more. How many apples does Tom have?"
CONTRAST = """() => {
  const light = (c) => c.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (el) => {
    const back = parse(getComputedStyle(el).backgroundColor);
    return back.length < 4 || back[3] === 1 ? back.slice(0, 3) : behind(el.parentElement);
  };
  const skipped = "script, noscript, option, [hidden], .hidden, .skip, .mask";
  const found = [];
  for (const el of document.querySelectorAll("body *")) {
    const own = [...el.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || el.closest(skipped) || !el.getClientRects().length) continue;
    const [a, b] = [parse(getComputedStyle(el).color).slice(0, 3), behind(el)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, el.className || el.tagName, el.textContent.slice(0, 20)]);
  }
  return found;
}"""


def run(*args):
    result = CliRunner().invoke(app, list(map(str, args)), prog_name="unmask")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Traces of the shipped model and their pages."""
    where = tmp_path_factory.mktemp("pages")
    (where / "in.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (QUESTION, SUDOKU)))
    slowfast = ("-p", "slowfast(block_length=16)", "-c", "dllm(kp=4,kr=3)")
    run(
        "generate",
        "--batch",
        where / "in.jsonl",
        "-n",
        48,
        *slowfast,
        "--trace",
        where / "batch.jsonl",
        "-o",
        where / "out.jsonl",
    )
    run("generate", QUESTION, "-n", 48, "-p", "vanilla", "-c", "dual", "--trace", where / "vanilla.jsonl")
    wino = "wino(tau_in=0.2,tau_out=1,block_length=16)"
    run("generate", QUESTION, "-n", 16, "-p", wino, "--trace", where / "wino.jsonl")
    for name in ("batch", "vanilla", "wino"):
        run("trace", "view", where / f"{name}.jsonl", "-o", where / f"{name}.html")
    run("trace", "view", where / "batch.jsonl", where / "vanilla.jsonl", "-o", where / "two.html")
    return where


@pytest.fixture(scope="module")
def pages():
    with browser.started() as found:
        yield found


@pytest.fixture
def show(pages):
    """Open a page; at the end it must have said nothing and asked for nothing."""
    pages.said.clear()
    pages.asked.clear()
    shown = []

    def opened(path, *look, **more):
        shown.append(path)
        return pages.open(path.as_uri(), *look, **more)

    opened.said = pages.said
    yield opened
    pages.take_back()
    assert pages.said == []
    assert [url for url in pages.asked if not url.startswith(("file:", "data:", "about:"))] == []
    assert len(pages.asked) >= len(shown)


def count(page):
    return page.locator("#count").text_content()


def chips(page, panel=0):
    """Kind, text and number below of every position."""
    script = "ts => ts.map(t => [t.classList[1], t.textContent, t.dataset.n])"
    return page.locator(".panel").nth(panel).locator(".canvas .t").evaluate_all(script)


def replayed(run_, row, t):
    """What the page shall show of a row after t forwards: (committed by, text) or None for a mask."""
    found, lost = {}, {}
    for i, forward in enumerate(run_.rows[row].forwards[:t]):
        for position, token, _ in forward.committed:
            shown = "∎" if token in run_.eos else run_.pieces[token].replace("\n", "⏎")
            found[position] = (i + 1, shown)
        for position in forward.remasked:
            was = found.pop(position)
            if i + 1 == t:
                lost[position] = was[1]
    return found, lost


# --- what it shows


def test_every_step_is_what_the_trace_says(show, folder):
    page, trace = show(folder / "batch.html"), read(folder / "batch.jsonl")
    row = trace.rows[0]
    assert count(page) == f"{len(row.forwards)} / {len(row.forwards)}"
    for t in range(len(row.forwards), -1, -1):
        assert count(page) == f"{t} / {len(row.forwards)}"
        found, _ = replayed(trace, 0, t)
        for at, (kind, text, number) in enumerate(chips(page)):
            committed = found.get(len(row.prompt) + at)
            expected = ["mask", "·", ""] if committed is None else ["token", committed[1], str(committed[0])]
            assert [kind, text, number] == expected
        fresh = page.locator(".canvas .fresh").count()
        assert fresh == (len(row.forwards[t - 1].committed) if t else 0)
        page.keyboard.press("ArrowLeft")
    assert "all masks" in page.locator(".now").text_content()


def test_the_end_is_the_result(show, folder):
    page = show(folder / "batch.html")
    for result in lines(folder / "out.jsonl"):
        page.select_option("#row", str(result["index"]))
        shown = "".join(text for _, text, _ in chips(page))
        assert shown.split("∎")[0] == result["text"].replace("\n", "⏎")
        steps = [int(number) - 1 for kind, _, number in chips(page) if kind == "token"]
        assert steps == [s for s in result["steps"] if s >= 0]
        facts = page.locator(".facts").text_content()
        assert f"{result['stats']['tokens']} tokens in {result['stats']['nfe']} forward" in facts


def test_rows_are_chosen(show, folder, tmp_path):
    page = show(folder / "batch.html")
    options = page.locator("#row option").all_text_contents()
    assert [o.partition(":")[0] for o in options] == ["0", "1"]
    assert "Tom has 3 apples" in options[0]
    before = chips(page)
    page.select_option("#row", "1")
    assert chips(page) != before
    assert "sudoku" in page.locator("#prompt").text_content()
    run("trace", "view", folder / "batch.jsonl", "--row", 1, "-o", tmp_path / "one.html")
    one = show(tmp_path / "one.html")
    assert not one.locator("#row-field").is_visible()
    assert chips(one) == chips(page)
    assert "Tom" not in (tmp_path / "one.html").read_text()


def test_phases_and_spans(show, folder):
    page, trace = show(folder / "batch.html"), read(folder / "batch.jsonl")
    row = trace.rows[0]
    for t in range(len(row.forwards), 0, -1):
        notes = row.forwards[t - 1].notes
        assert page.locator(".now .phase").text_content() == ("fast" if notes["fast"] else "slow")
        span = [p for p in range(int(notes["start"]), int(notes["end"])) if p < len(row.prompt) + len(chips(page))]
        inside = page.locator(".canvas .in").evaluate_all("ts => ts.map(t => Number(t.dataset.p))")
        assert inside == span
        page.keyboard.press("ArrowLeft")
    assert page.locator(".now .phase").count() == 0


def test_revoked_tokens_are_marked(show, folder):
    page, trace = show(folder / "wino.html"), read(folder / "wino.jsonl")
    row = trace.rows[0]
    revoked = [t + 1 for t, f in enumerate(row.forwards) if f.remasked]
    assert revoked, "the trace has none"
    page.keyboard.press("Home")
    for _ in range(revoked[0]):
        page.keyboard.press("ArrowRight")
    _, lost = replayed(trace, 0, revoked[0])
    marked = [
        [int(p), text]
        for p, text in page.locator(".canvas .lost").evaluate_all("ts => ts.map(t => [t.dataset.p, t.textContent])")
    ]
    assert marked == [list(pair) for pair in sorted(lost.items())]
    assert f"{len(lost)} revoked" in page.locator(".now").text_content()
    line = page.locator(".canvas .lost").first.evaluate("t => getComputedStyle(t).textDecorationLine")
    assert line == "line-through"
    page.keyboard.press("End")
    assert page.locator(".canvas .lost").count() == len(row.forwards[-1].remasked)
    again = page.locator(".canvas .token.again").first
    assert again.get_attribute("data-n").startswith("↺")
    again.click()
    assert "revoked by forward" in page.locator(".readout").text_content()


def test_maps_have_the_colours_of_their_values(show, folder):
    page, trace = show(folder / "batch.html"), read(folder / "batch.jsonl")
    row, lead = trace.rows[0], len(trace.rows[0].prompt)
    script = """([name, p, t, value]) => {
      const figure = [...document.querySelectorAll("figure")].find((f) => f.textContent.startsWith(name));
      const canvas = figure.querySelector("canvas"), { low, high } = canvas.dataset;
      const cell = canvas.width / state.panels[0].columns(), tall = canvas.height / (high - low);
      const pixel = canvas.getContext("2d").getImageData((t - 0.8) * cell, (p - low + 0.5) * tall, 1, 1).data;
      return [[...pixel].slice(0, 3), (name === "Confidence" ? colours.heat : colours.work)(value)];
    }"""
    told = {"Confidence": [], "Computed": []}
    for t, forward in enumerate(row.forwards, start=1):
        for first, values in forward.confidence:
            told["Confidence"] += [(first + i, t, value) for i, value in enumerate(values) if 0 < i < len(values) - 1]
        for first, last, layers in forward.computed:
            told["Computed"] += [(p, t, layers / trace.layers) for p in range(first, last) if abs(p - lead + 0.5) > 1]
    for name, values in told.items():
        assert len({value for *_, value in values}) > 1
        for p, t, value in values[:: max(1, len(values) // 30)]:
            drawn, expected = page.evaluate(script, [name, p, t, value])
            assert max(abs(a - b) for a, b in zip(drawn, expected, strict=True)) <= 4, (name, p, t, value)


# --- how it is used


def test_keys_and_buttons(show, folder):
    page = show(folder / "vanilla.html")
    most = int(page.locator("#step").get_attribute("max"))
    assert most > 20
    for key, expected in (
        ("Home", 0),
        ("ArrowLeft", 0),
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("End", most),
        ("ArrowRight", most),
    ):
        page.keyboard.press(key)
        assert count(page) == f"{expected} / {most}"
    for button, expected in (("#first", 0), ("#next", 1), ("#next", 2), ("#back", 1), ("#last", most)):
        page.click(button)
        assert count(page) == f"{expected} / {most}"
    page.locator("#step").fill("7")
    assert count(page) == f"7 / {most}"
    assert page.locator("#step").get_attribute("aria-valuetext") == f"forward 7 of {most}"
    page.focus("#step")
    page.keyboard.press("ArrowRight")
    assert count(page) == f"8 / {most}"
    page.focus("#speed")
    page.keyboard.press("ArrowDown")  # belongs to the list
    assert count(page) == f"8 / {most}"


def test_play_and_pause(show, folder):
    page = show(folder / "vanilla.html")
    most = int(page.locator("#step").get_attribute("max"))
    page.select_option("#speed", "64")
    page.focus("body")
    page.keyboard.press(" ")  # at the end: from the start again
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play", timeout=20_000)
    assert count(page) == f"{most} / {most}"
    page.select_option("#speed", "1")
    page.locator("#step").fill("3")
    page.click("#play")
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    assert page.locator("#play").get_attribute("aria-pressed") == "true"
    expect(page.locator("#count")).to_have_text(f"4 / {most}")
    page.keyboard.press(" ")  # the button has the focus; it must not play twice
    at = count(page)
    assert page.locator("#play").get_attribute("aria-label") == "Play"
    page.wait_for_timeout(1200)
    assert count(page) == at


def test_tab_order_and_focus(show, folder):
    page = show(folder / "batch.html")
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
        style = page.evaluate(
            "(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))"
        )
        assert style[0] != "none" and style[1] >= 1, order[-1]
    assert order == [
        "skip",
        "row",
        "first",
        "back",
        "play",
        "next",
        "last",
        "step",
        "speed",
        "SUMMARY",
        "canvas",
        "CANVAS",
    ]
    page.keyboard.press("ArrowDown")  # the map: up and down choose a position
    page.keyboard.press("ArrowDown")
    lead = len(read(folder / "batch.jsonl").rows[0].prompt)
    assert page.evaluate("document.activeElement.getAttribute('aria-valuenow')") == str(lead + 1)
    assert page.locator(".readout").text_content().startswith(f"position {lead + 1} · ")
    assert page.locator(".canvas .chosen").get_attribute("data-p") == str(lead + 1)


def test_everything_has_a_name(show, folder):
    page = show(folder / "two.html")
    script = """es => es.filter(e => !(e.getAttribute("aria-label") || e.labels?.[0]?.textContent.trim()))
      .map(e => e.outerHTML.slice(0, 80))"""
    assert page.locator("button, input, select, figure canvas, section, .canvas").evaluate_all(script) == []


def test_map_answers_to_the_pointer(show, folder):
    page = show(folder / "batch.html")
    canvas = page.locator("figure canvas[role=slider]")
    box = canvas.bounding_box()
    canvas.hover(position={"x": 5, "y": box["height"] / 2})
    assert re.search(r"forward 1 · slow · position \d+ · .*confidence", page.locator("#tip").text_content())
    canvas.click(position={"x": 5, "y": box["height"] / 2})
    assert count(page).startswith("1 / ")
    assert page.locator(".canvas .chosen").count() == 1


# --- two traces


def test_two_traces_in_step(show, folder):
    page = show(folder / "two.html")
    one, other = (read(folder / f"{name}.jsonl").rows[0] for name in ("batch", "vanilla"))
    short, most = sorted((len(one.forwards), len(other.forwards)))
    assert len(one.forwards) == short < most
    assert count(page) == f"{most} / {most}"
    left, right = page.locator(".panel").nth(0), page.locator(".panel").nth(1)
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    assert f"finished after {short} forwards" in left.locator(".now").text_content()
    page.locator("#step").fill("2")
    for panel in (left, right):
        assert "forward 2" in panel.locator(".now").text_content()
    assert [c[0] for c in chips(page, 1)].count("token") == sum(len(f.committed) for f in other.forwards[:2])
    page.set_checked("#scale", True)
    wide = page.evaluate("state.panels.map(p => p.columns())")
    assert wide[0] == wide[1] == most
    page.set_checked("#scale", False)
    assert page.evaluate("state.panels[0].columns()") < most
    page.select_option("#row", "1")  # which the other trace does not have
    assert "vanilla.jsonl has no row 1" in page.locator(".panel").nth(1).text_content()


# --- how it looks


@pytest.mark.parametrize("name", ["batch", "wino", "two"])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_contrast(show, folder, scheme, name):
    """WCAG 2.1 AA, 4.5 to 1, of every text, in the middle of the decoding and at its end."""
    page = show(folder / f"{name}.html", scheme, motion="reduce")
    for t in (page.locator("#step").get_attribute("max"), "3"):
        page.locator("#step").fill(t)
        found = page.evaluate(CONTRAST)
        assert len(found) > 30
        assert [f for f in found if f[0] < 4.5] == []


def test_theme_follows_the_system(show, folder):
    page = show(folder / "batch.html", "dark")
    look = """() => [getComputedStyle(document.body).backgroundColor,
      document.querySelector("figure canvas[role=slider]").getContext("2d").getImageData(3, 3, 1, 1).data.join()]"""
    dark = page.evaluate(look)
    page.emulate_media(color_scheme="light")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    light = page.evaluate(look)
    assert dark[0] != light[0]
    assert dark[1] != light[1]


@pytest.mark.parametrize("name", ["batch", "two", "wino"])
def test_narrow(show, folder, name):
    page = show(folder / f"{name}.html", width=360, height=740, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in page.locator("#bar button").all():
        assert button.bounding_box()["width"] >= 36
    page.tap("#first")
    assert count(page).startswith("0 / ")


# --- what it must bear

EVIL = [
    "</script><script>window.hacked = 1</script>",
    "<b>bold</b>",
    "<img src=x onerror='window.hacked = 1'>",
    "&lt;",
    "\u202egnp",
    "\u2028",
    "${1}`",
    "<!--",
    "\ud800",
]


def crafted(path):
    """A trace of a model without manners."""
    pieces = {str(i + 2): text for i, text in enumerate(EVIL)}
    header = {
        "trace": 1, "policy": EVIL[0], "cache": EVIL[2], "model": EVIL[1], "mask": 0, "eos": [1], "layers": 1,
        "rows": [{"row": 0, "prompt": [2, 3, 4], "gen_length": 20, "seed": 0}], "pieces": pieces,
    }  # fmt: skip
    steps = [
        {
            "index": i, "rows": [0], "forward": [i], "window": [[[3, 23]]],
            "committed": [[0, 3 + i, 2 + i, 0.5]], "remasked": [],
            "confidence": [[[3 + i, [0.5] * (20 - i)]]], "work": [23], "computed": [[[0, 23, 1]]],
            "notes": {EVIL[0]: [True], EVIL[1]: [3]}, "seconds": 0, "finished": [],
        }
        for i in range(len(EVIL))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(v) + "\n" for v in (header, *steps)))
    return path


def test_no_text_becomes_markup(show, tmp_path):
    file = crafted(tmp_path / "<i>evil&.jsonl")
    run("trace", "view", file, "-o", tmp_path / "page.html")
    page = show(tmp_path / "page.html")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main b:has-text('bold'), img, main i").count() == 0
    assert page.locator("script").count() == 2
    texts = [text for _, text, _ in chips(page)]
    assert texts[:4] == EVIL[:4]
    assert texts[4:6] == ["\ufffdgnp", "\ufffd"]
    assert texts[6:9] == ["${1}`", "<!--", "\ufffd"]
    assert EVIL[0] in page.locator("h2").text_content()
    assert EVIL[0] in page.locator("#prompt pre").text_content()
    assert "the trace ends before row 0 was finished" in page.locator("#notices").text_content()
    # even markup that got in would run nothing
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 2'}))"
    )
    assert page.evaluate("window.hacked") is None
    assert len(show.said) == 1 and "Content Security Policy" in show.said.pop()


def test_killed_runs_old_traces_and_empty_ones(show, folder, tmp_path):
    content = (folder / "vanilla.jsonl").read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(content[:-30])
    header, *steps = lines(folder / "vanilla.jsonl")
    del header["layers"]
    for step in steps:
        del step["confidence"], step["computed"], step["notes"]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(v) + "\n" for v in (header, *steps)))
    (tmp_path / "head.jsonl").write_text(json.dumps(header) + "\n")
    for name, *words in (
        ("cut", "cut off", "before row 0 was finished"),
        ("old", "earlier version"),
        ("head", "before row 0 was finished"),
    ):
        run("trace", "view", tmp_path / f"{name}.jsonl", "-o", tmp_path / f"{name}.html")
        page = show(tmp_path / f"{name}.html")
        assert all(word in page.locator("#notices").text_content() for word in words)
        page.keyboard.press("Home")
        page.keyboard.press(" ")
        page.locator(".canvas .t").first.click()
        assert page.locator("figure").count() == {"cut": 4, "old": 3, "head": 0}[name]


@pytest.mark.slow
def test_large_traces(show, tmp_path):
    """1024 positions, 256 forwards."""
    n, forwards, lead = 1024, 256, 30
    header = {
        "trace": 1, "policy": "p", "cache": "c", "model": "m", "mask": 0, "eos": [1], "layers": 32,
        "rows": [{"row": 0, "prompt": [3] * lead, "gen_length": n, "seed": 0}], "pieces": {"5": " word"},
    }  # fmt: skip
    steps = [
        {
            "index": i, "rows": [0], "forward": [i], "window": [[[lead, lead + n]]], "remasked": [],
            "committed": [[0, lead + 4 * i + j, 5, 0.9] for j in range(4)],
            "confidence": [[[lead + 4 * i, [0.5] * (n - 4 * i)]]], "work": [n], "computed": [[[0, lead + n, 32]]],
            "notes": {"slow": [i % 2 == 0], "fast": [i % 2 == 1], "start": [lead + 4 * i], "end": [lead + n]},
            "seconds": 0.1, "finished": [0] * (i + 1 == forwards),
        }
        for i in range(forwards)
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(v) + "\n" for v in (header, *steps)))
    run("trace", "view", tmp_path / "t.jsonl", "-o", tmp_path / "p.html")
    assert (tmp_path / "p.html").stat().st_size < 2_000_000
    page = show(tmp_path / "p.html")
    assert len(chips(page)) == n
    box = page.locator(".canvas").bounding_box()
    assert box["height"] <= 800
    page.locator("#step").fill("100")
    assert [c[0] for c in chips(page)].count("token") == 400
    assert page.locator("figure canvas[role=slider]").bounding_box()["height"] <= 800

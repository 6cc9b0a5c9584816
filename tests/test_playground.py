"""The page that a server shows at /, in a real browser without a window."""

import json
import re
import threading
import time
from itertools import pairwise
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

pytest.importorskip("fastapi")
import uvicorn
from playwright.sync_api import expect

import browser
import unmask
from test_trace_page import CONTRAST
from unmask import Step, registry, viz
from unmask.server import Settings, app
from unmask.server.run import listen

pytestmark = [pytest.mark.slow, browser.NEEDED]
QUESTION = "Tom has 3 apples. He buys 4 more, and then 5 more. How many apples does Tom have?"
SUDOKU = "Solve the sudoku:\n0214\n4132\n1420\n0340"
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def lm():
    return unmask.load(dtype="float32")


def serving(lm, **more):
    """A server in a thread of its own."""
    settings = Settings(port=0, **more)
    listener, made = listen(settings), app(lm, settings)
    server = uvicorn.Server(uvicorn.Config(made, log_config=None, lifespan="on", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    yield SimpleNamespace(url=url, service=made.state.service)
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def server(lm):
    yield from serving(lm)


@pytest.fixture(scope="module")
def locked(lm):
    yield from serving(lm, keys=(KEY,))


@pytest.fixture(scope="module")
def pages():
    with browser.started() as found:
        yield found


@pytest.fixture
def show(pages, server):
    """Open the page with what is asked in its address; at the end it must have said nothing and asked nobody else."""
    pages.said.clear()
    pages.asked.clear()

    def opened(at=None, ready=True, look=None, **asks):
        url = (at or server).url + (f"#{urlencode(asks, quote_via=quote)}" if asks else "")
        page = pages.open(url, **(look or {}))
        if ready:
            expect(page.locator("#run")).to_be_enabled()
        return page

    opened.said = pages.said
    yield opened
    pages.take_back()
    assert pages.said == []
    hosts = {urlsplit(url).netloc for url in pages.asked if not url.startswith(("data:", "about:"))}
    assert all(host.startswith("127.0.0.1:") for host in hosts)
    assert hosts


def run(page, panels=1):
    """Run and wait for the end."""
    page.click("#run")
    for at in range(panels):
        expect(page.locator(".panel").nth(at).locator(".stats div").first).to_be_visible(timeout=60_000)


def chips(page, panel=0):
    """Kind, text and number below of every position that is shown."""
    script = "ts => ts.filter(t => !t.hidden).map(t => [t.classList[1], t.textContent, t.dataset.n])"
    return page.locator(".panel").nth(panel).locator(".canvas .t").evaluate_all(script)


def stats(page, panel=0):
    panel = page.locator(".panel").nth(panel)
    names, values = panel.locator("dt").all_text_contents(), panel.locator("dd").all_text_contents()
    return dict(zip(names, values, strict=True))


def shown(lm, token):
    """A token as the canvas shows it."""
    return "∎" if token in lm.denoiser.spec.eos else lm.text.pieces([token])[0].replace("\n", "⏎")


def seek(page, t, panel=0):
    page.locator(".walk input").nth(panel).fill(str(t))


def bodies(page, reply=None):
    """Keep what is asked of the server; answer it with ``reply``, or a refusal."""
    found = []

    def answer(route):
        found.append(route.request.post_data_json)
        refusal = {"error": {"message": "not today", "type": "x", "param": None, "code": "x"}}
        route.fulfill(**(reply or {"status": 200, "body": f"data: {json.dumps(refusal)}\n\n"}))

    page.route(re.compile("/v1/(chat/completions|completions|infill)$"), answer)
    return found


def sent(page, found):
    """Run, and the body that is sent for it."""
    before = len(found)
    page.click("#run")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator(".problem").first).to_be_visible()
    return found[before]


# --- what it shows


@pytest.mark.parametrize(
    ("policy", "cache"),
    [
        ("slowfast(tau_high=0.95,window=1,block_length=16)", "dllm(kp=2,kr=1)"),
        ("wino(tau_in=0.2,tau_out=1,block_length=16)", "none"),
    ],
)
def test_every_forward_pass_is_what_the_engine_did(show, lm, policy, cache):
    name, _, values = policy.rstrip(")").partition("(")
    asks = {"a.policy": name} | {f"a.policy.{k}": v for k, _, v in (p.partition("=") for p in values.split(","))}
    if cache != "none":
        asks |= {"a.cache": "dllm", "a.cache.kp": 2, "a.cache.kr": 1}
    page = show(mode="chat", prompt=QUESTION, length=32, pace=0, **asks)
    run(page)
    [request] = lm.requests([QUESTION], 32, policy, cache)
    steps = [event for event in lm.run([request]) if isinstance(event, Step)]
    begin, count, held = len(request.prompt), len(chips(page)), [None] * 32
    assert page.locator(".walk output").text_content() == f"{len(steps)} / {len(steps)}"
    revoked = 0
    for t, step in enumerate(steps, 1):
        seek(page, t)
        lost = {position - begin for _, position in step.remasked()}
        for commit in step.committed():
            held[commit.position - begin] = (shown(lm, commit.token), str(t))
        for at in lost:
            held[at] = None
        seen = chips(page)
        for at in range(count):
            kind, text, number = seen[at]
            if at in lost:
                assert (kind, number) == ("lost", "✕")
            elif held[at] is None:
                assert kind in ("mask", "guess") and number == ""
                asked = step.confidence[0, begin + at] > float("-inf")
                assert kind == ("guess" if asked else "mask")
            else:
                assert (kind, text, number.lstrip("↺")) == ("token", *held[at])
        now = page.locator(".now").text_content()
        assert f"{len(step.committed())} committed" in now
        assert (f"{len(lost)} revoked" in now) == bool(lost)
        phases = [one for one, value in step.notes().items() if value.dtype.is_floating_point is False and value[0]]
        if "slow" in step.notes():
            assert page.locator(".now .phase").text_content() in phases
        revoked += len(lost)
    assert bool(revoked) == policy.startswith("wino")


def test_the_end_is_the_result(show, lm):
    page = show(mode="chat", prompt=SUDOKU, length=64, **{"a.policy": "threshold", "a.policy.tau": 0.95})
    run(page)
    [result] = lm.generate(SUDOKU, 64, "threshold(tau=0.95)")
    assert page.locator(".answer").text_content() == result.text
    found = stats(page)
    assert found["forward passes (NFE)"] == str(result.stats.nfe)
    assert found["tokens"] == str(result.stats.tokens)
    assert float(found["tokens per forward pass"]) == pytest.approx(result.stats.tpf, abs=0.01)
    assert found["ended by"] == "end of text"
    assert float(found["tokens/s"].replace(",", "")) > 0
    assert len(chips(page)) == result.stats.tokens + 1  # the end of text is shown, what is behind it is not
    assert f"{64 - result.stats.tokens - 1} positions" in page.locator(".rest").text_content()
    assert "tokens in" in page.locator("#notice").text_content()
    assert page.locator("h2").text_content() == "threshold(tau=0.95) + none"


def test_provisional_tokens_are_faint_and_revoked_ones_struck(show):
    page = show(mode="chat", prompt=QUESTION, length=32, pace=0, **{
        "a.policy": "wino", "a.policy.tau_in": 0.2, "a.policy.tau_out": 1, "a.policy.block_length": 16})  # fmt: skip
    run(page)
    seek(page, 1)
    look = "e => [getComputedStyle(e).opacity, getComputedStyle(e).textDecorationLine]"
    assert 0.2 < float(page.locator(".canvas .guess").first.evaluate(look)[0]) < 0.7
    assert page.locator(".canvas .token").first.evaluate(look) == ["1", "none"]
    for t in range(1, 9):
        seek(page, t)
        if page.locator(".canvas .lost").count():
            break
    assert page.locator(".canvas .lost").first.evaluate(look) == ["1", "line-through"]
    page.locator(".canvas .lost").first.click()
    assert f"revoked by forward pass {t}" in page.locator(".story").text_content()


def test_tokens_have_the_colours_of_their_pass(show):
    page = show(mode="chat", prompt=QUESTION, length=32, pace=0, **{"a.policy": "vanilla"})
    run(page)
    nfe = int(stats(page)["forward passes (NFE)"])
    script = "ts => ts.map(t => [Number(t.dataset.n), getComputedStyle(t).backgroundColor])"
    for number, back in page.locator(".canvas .token").evaluate_all(script):
        ours = viz.colour(number - 1, nfe)
        expected = [int(ours[i : i + 2], 16) for i in (1, 3, 5)]
        assert list(map(int, re.findall(r"\d+", back))) == pytest.approx(expected, abs=1)


def test_it_fills_live(show, server):
    """While the server decodes, passes are shown; Escape ends the request there and here."""
    page = show(mode="chat", prompt=QUESTION, length=1024, pace=0, **{
        "a.policy": "vanilla", "a.policy.block_length": "none"})  # fmt: skip
    page.keyboard.press("Control+Enter")
    expect(page.locator(".now")).to_contain_text(re.compile(r"forward pass ([2-9]|\d\d)"), timeout=60_000)
    expect(page.locator(".canvas .token").nth(1)).to_be_attached()  # two at least; the line above may be ahead of it
    assert server.service.open == 1
    expect(page.locator("#run")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.locator(".now .lost")).to_have_text("stopped")
    expect(page.locator("#run")).to_be_enabled()
    ends = time.monotonic() + 30
    while server.service.open and time.monotonic() < ends:
        time.sleep(0.05)
    assert server.service.open == 0
    at = int(page.locator(".walk input").get_attribute("max"))
    assert 2 <= at < 1024
    seek(page, 1)
    assert page.locator(".canvas .token").count() == 1


def test_the_pace_is_held(show):
    """Two passes a second: the second is not there at once, though the server has long sent all."""
    page = show(mode="chat", prompt=SUDOKU, length=32, pace=2, **{"a.policy": "vanilla", "a.policy.steps": 4})
    page.evaluate("""() => { window.seen = []; new MutationObserver(() => {
      const n = document.querySelector(".now b")?.textContent, last = window.seen.at(-1);
      if (n && last?.[0] !== n) window.seen.push([n, performance.now()]);
    }).observe(document.getElementById("panels"), { subtree: true, childList: true, characterData: true }); }""")
    run(page)
    seen = page.evaluate("window.seen")
    assert [n for n, _ in seen] == [str(i + 1) for i in range(len(seen))]
    assert len(seen) > 1
    assert all(b - a >= 400 for (_, a), (_, b) in pairwise(seen))


def test_infill_and_prompt(show, lm):
    text = "3+4=[MASK]\n7+[MASK]=[MASK*2]\nAnswer: 12"
    page = show(mode="infill", system=QUESTION, prompt=text, **{"a.policy": "threshold"})
    assert page.locator("#length").is_hidden()
    run(page)
    [result] = lm.infill(text, "threshold", prompts=QUESTION)
    assert page.locator(".answer").text_content() == result.text
    kinds = [kind for kind, _, _ in chips(page)]
    assert kinds.count("token") == 4
    assert kinds.count("given") == len(kinds) - 4
    assert "3+4=" in "".join(page.locator(".lead").all_text_contents())
    page = show(mode="completion", prompt="3+4=", length=16, **{"a.policy": "vanilla"})
    assert page.locator("#system").is_hidden()
    run(page)
    [plain] = lm.generate("3+4=", 16, "vanilla", chat=False)
    assert page.locator(".answer").text_content() == plain.text


# --- settings


WRITE_OUT = """fields => fields.every(field => {
  field.value = field.placeholder === "required" ? "dual" : field.placeholder;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  return field.checkVisibility() && !field.disabled && !field.readOnly;
})"""


@pytest.mark.parametrize("kind", ["policy", "cache"])
def test_all_of_the_schemas_can_be_chosen(show, kind):
    """Each with its defaults written out: what is sent builds the same object."""
    page = show(mode="chat", prompt="Hi")
    found = bodies(page)
    select = page.locator(f"#a-{kind}")
    names = select.locator("option").evaluate_all("os => os.map(o => o.value)")
    assert set(names) == {"", *registry.table(kind)}
    choice = page.locator(".choice").nth(0 if kind == "policy" else 1)
    for name in filter(None, names):
        select.select_option(name)
        if (details := choice.locator("details")).is_visible():
            details.locator("summary").click()
        assert choice.locator(".parameter input").evaluate_all(WRITE_OUT)
        spec = sent(page, found)["unmask"][kind]
        made, plain = getattr(registry, kind)(spec), f"{name}(dual)" if name == "every" else name
        assert str(made) == str(getattr(registry, kind)(plain))
        assert spec.partition("(")[0] == name


def test_parameters_are_sent_as_they_stand(show):
    page = show(mode="chat", prompt="Hi", length=9, temperature=0.5, seed=7, system="Be brief.")
    found = bodies(page)
    page.locator("#a-policy").select_option("slowfast")
    page.locator("#a-policy-preset").select_option("reference")
    assert page.locator("#a-policy-tau_high").get_attribute("placeholder") == "0.9"  # the preset's
    page.locator("#a-policy-preset").select_option("")
    assert page.locator("#a-policy-tau_high").get_attribute("placeholder") == "0.85"
    page.locator("#a-policy-tau_high").fill("0.95")
    page.locator("#a-policy-block_length").fill("none")
    page.locator("#a-cache").select_option("every")
    page.locator("#a-cache-cache").fill("dllm(kp=2,kr=1)")
    assert sent(page, found) == {
        "stream": True, "max_tokens": 9, "temperature": 0.5, "seed": 7,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "unmask": {
            "policy": "slowfast(tau_high=0.95,block_length=none)", "cache": "every(cache=dllm(kp=2,kr=1))",
            "stream": "steps",
        },
    }  # fmt: skip
    page.locator("#a-policy").select_option("")
    page.locator("#a-cache").select_option("")
    assert sent(page, found)["unmask"] == {"stream": "steps"}


def test_what_cannot_be_is_not_sent(show):
    page = show(mode="chat", prompt="Hi")
    found = bodies(page)
    for policy, label, value in (
        ("threshold", "tau", "7"), ("threshold", "tau", "much"), ("threshold", "block_length", "1.5"),
        ("threshold", "block_length", "0"), ("lookahead", "policy", "vanilla("), ("lookahead", "positions", "none"),
        ("", "Most tokens", "99999"), ("", "Most tokens", "0"), ("", "Temperature", "-1"), ("", "Seed", "x"),
    ):  # fmt: skip
        page.locator("#a-policy").select_option(policy)
        field = page.get_by_label(label, exact=True).locator("visible=true")
        field.fill(value)
        assert field.get_attribute("aria-invalid") is not None, (label, value)
        page.click("#run")
        assert page.evaluate("document.activeElement.matches(':invalid')"), (label, value)
        assert found == [], (label, value)
        field.fill("")
        assert field.get_attribute("aria-invalid") is None, (label, value)
        sent(page, found)
        found.clear()


def test_nothing_to_decode(show):
    page = show(mode="chat", prompt="  ")
    found = bodies(page)
    page.click("#run")
    assert page.locator("#notice").text_content()
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert found == []


def test_two_settings_side_by_side(show, lm):
    page = show(mode="chat", prompt=SUDOKU, length=32, compare=1, turns=1, pace=0, **{
        "a.policy": "vanilla", "b.policy": "threshold", "b.cache": "dual"})  # fmt: skip
    run(page, panels=2)
    left, right = (page.locator(".panel").nth(i).bounding_box() for i in range(2))
    assert left["y"] == right["y"] and left["x"] < right["x"]
    for panel, (policy, cache) in enumerate([("vanilla", "none"), ("threshold", "dual")]):
        [result] = lm.generate(SUDOKU, 32, policy, cache)
        assert stats(page, panel)["forward passes (NFE)"] == str(result.stats.nfe)
        assert page.locator(".answer").nth(panel).text_content() == result.text
        assert page.locator("h2").nth(panel).text_content() == f"{policy} + {cache}"
    notice = page.locator("#notice").text_content()
    assert "Setting A" in notice and "Setting B" in notice
    page.uncheck("#compare")
    assert page.locator(".setting").nth(1).is_hidden()
    run(page)
    assert page.locator(".panel").count() == 1


def test_one_after_the_other(show):
    """The second is asked for when the first has ended."""
    page, held = show(mode="chat", prompt=SUDOKU, compare=1, turns=1), []
    page.route("**/v1/chat/completions", lambda route: held.append(route))  # noqa: PLW0108
    refusal = {"status": 200, "body": 'data: {"error": {"message": "no"}}\n\n'}
    page.click("#run")
    expect(page.locator(".panel")).to_have_count(2)
    page.wait_for_timeout(300)
    assert len(held) == 1
    held[0].fulfill(**refusal)
    expect(page.locator(".problem").first).to_be_visible()
    page.wait_for_timeout(300)
    assert len(held) == 2
    held[1].fulfill(**refusal)
    expect(page.locator("#run")).to_be_enabled()
    page.uncheck("#turns")
    page.click("#run")
    page.wait_for_timeout(300)
    assert len(held) == 4
    page.keyboard.press("Escape")
    expect(page.locator("#run")).to_be_enabled()


# --- links, examples


def test_a_link_holds_all_of_it(show):
    page = show(look={"allow": ["clipboard-read", "clipboard-write"]}, mode="completion", prompt="a b\nc & d=#", pace=4)
    page.fill("#temperature", "0.25")
    page.check("#compare")
    page.locator("#b-policy").select_option("threshold")
    page.locator("#b-policy-tau").fill("0.8")
    page.click("#share")
    expect(page.locator("#notice")).to_contain_text("clipboard")
    url = page.evaluate("navigator.clipboard.readText()")
    assert page.url == url
    assert parse_qs(urlsplit(url).fragment) == {
        "mode": ["completion"], "prompt": ["a b\nc & d=#"], "temperature": ["0.25"], "pace": ["4"], "compare": ["1"],
        "b.policy": ["threshold"], "b.policy.tau": ["0.8"],
    }  # fmt: skip
    other = show()
    other.goto(url)  # a change of the fragment alone
    expect(other.locator("#prompt")).to_have_value("a b\nc & d=#")
    assert other.locator("input[value=completion]").is_checked()
    assert other.locator("#b-policy-tau").input_value() == "0.8"
    assert other.locator("#temperature").input_value() == "0.25"
    assert other.locator(".panel").count() == 0  # a link runs nothing


def test_a_link_without_a_clipboard(show):
    page = show(mode="chat", prompt="Hi")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    page.click("#share")
    assert page.locator("#link").input_value() == page.url
    assert "prompt=Hi" in page.url


def test_an_odd_link_does_no_harm(show):
    page = show(
        **{"mode": "dance", "pace": "x", "a.policy": "nope", "a.policy.tau": "1", "b.cache": "<b>", "length": "-3"}
    )
    assert page.locator("input[value=chat]").is_checked()
    assert page.locator("#a-policy").input_value() == ""
    assert page.locator("#pace").input_value() == "16"
    assert page.locator("#length").get_attribute("aria-invalid") is not None


def test_examples(show, lm):
    page = show()
    [result] = lm.generate(page.locator("#prompt").input_value())
    run(page)
    assert page.locator(".answer").text_content() == result.text
    page.select_option("#examples", "infill")
    assert page.locator("input[value=infill]").is_checked()
    run(page)
    assert page.locator(".answer").text_content() == "3+4=7\n7+5=12\nAnswer: 12"


# --- what goes wrong


def test_a_refusal_is_shown(show):
    page = show(mode="infill", prompt="3+4=[MASK]\nAnswer: 12", **{"a.policy": "apd"})
    page.click("#run")
    expect(page.locator(".problem")).to_contain_text("apd")
    assert page.locator(".problem").get_attribute("role") == "alert"
    expect(page.locator("#run")).to_be_enabled()
    assert len(show.said) == 1 and "400" in show.said.pop()


def test_a_key_is_asked_for(show, locked):
    page = show(at=locked, ready=False, mode="chat", prompt=SUDOKU, length=32)
    expect(page.locator("#key")).to_be_focused()
    assert page.locator("#run").is_disabled()
    page.fill("#key", "wrong")
    page.keyboard.press("Tab")
    expect(page.locator("#notice")).to_contain_text("key")
    page.fill("#key", KEY)
    page.keyboard.press("Tab")
    expect(page.locator("#run")).to_be_enabled()
    run(page)
    page.click("#share")
    expect(page.locator("#notice")).to_contain_text("link", ignore_case=True)
    assert KEY not in page.url and KEY not in page.locator("#link").input_value()
    assert {"401"} == {re.findall(r"\d{3}", said)[0] for said in show.said}
    show.said.clear()


FULL = {"status": 429, "headers": {"retry-after": "7"}, "json": {"error": {"message": "the queue is full"}}}


@pytest.mark.parametrize(
    ("reply", "words", "loud"),
    [
        (FULL, "the queue is full Try again in 7 s", 1),
        ({"status": 502, "body": "<html>"}, "502", 1),
        ({"status": 200, "body": ": ping\n\n"}, "broke off", 0),
        ({"status": 200, "body": 'data: {"error": {"message": "it failed", "type": "x"}}\n\n'}, "it failed", 0),
    ],
)  # fmt: skip
def test_what_servers_do(show, reply, words, loud):
    page = show(mode="chat", prompt="Hi")
    bodies(page, reply)
    page.click("#run")
    expect(page.locator(".problem")).to_contain_text(words)
    expect(page.locator("#stop")).to_be_hidden()
    assert len(show.said) == loud
    show.said.clear()


def test_a_server_that_is_gone(show):
    page = show(mode="chat", prompt="Hi")
    page.route("**/v1/**", lambda route: route.abort())
    page.click("#run")
    expect(page.locator(".problem")).to_contain_text("cannot be reached")
    show.said.clear()


EVIL = ["</script><script>window.hacked = 1</script>", "<b>bold</b>", "<img src=x onerror='window.hacked = 1'>", "\u202egnp"]  # fmt: skip  # noqa: E501


def streamed(*events):
    """A reply with keep-alives, events that are cut anywhere, and all three ends of a line."""
    ends = ["\n\n", "\r\n\r\n", "\r\n: ping\r\n\r\n"]
    lines = [f"data: {json.dumps({'choices': [one]})}{ends[i % 3]}" for i, one in enumerate(events)]
    return {"status": 200, "body": ": ping\n\n" + "".join(lines) + "data: [DONE]\n\n"}


def test_no_text_becomes_markup(show):
    token = [{"at": i, "id": i, "text": text, "p": 0.5} for i, text in enumerate(EVIL)]
    start = {"event": "start", "prompt": EVIL, "length": 6, "fixed": [{"at": 5, "id": 1, "text": EVIL[1]}],
             "policy": EVIL[0], "cache": EVIL[2], "seed": 1}  # fmt: skip
    step = {"event": "step", "step": 0, "committed": token[:2], "remasked": [], "provisional": token[2:], "masked": 3,
            "phases": [EVIL[1]], "notes": {EVIL[0]: 1}}  # fmt: skip
    end = {"event": "end", "finish_reason": EVIL[2], "nfe": 1, "tpf": 2, "tokens": 2, "positions": 6, "seed": 1,
           "seconds": 0, "first_token_seconds": None, "canvas": []}  # fmt: skip
    page = show(mode="completion", prompt="x")
    bodies(page, streamed({"unmask": start, "text": EVIL[0]}, {"unmask": step, "text": EVIL[1]}, {"unmask": end}))
    run(page)
    assert page.locator("#panels script, #panels img, #panels .canvas b, #panels i").count() == 0
    assert [text for _, text, _ in chips(page)] == [*EVIL[:3], "\ufffdgnp", "·", EVIL[1]]
    assert page.locator(".answer").text_content() == EVIL[0] + EVIL[1]
    assert EVIL[0] in page.locator("h2").text_content()
    assert stats(page)["tokens/s"] == "0"
    # even markup that got in would run nothing
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 2'}))"
    )
    assert page.evaluate("window.hacked") is None
    assert len(show.said) == 1 and "Content Security Policy" in show.said.pop()


# --- how it is used


def test_tab_order_and_focus(show):
    page = show(mode="chat", prompt=SUDOKU, length=32, compare=1)
    run(page, panels=2)
    order = []
    page.locator(".skip").focus()
    for _ in range(24):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "(e => [e.id || e.name || e.className || e.type || e.tagName, getComputedStyle(e).outlineStyle])"
            "(document.activeElement)"
        )
        if found[0] == "BODY":
            break
        assert found[1] != "none", found
        order.append(found[0])
    first = ["mode", "examples", "system", "prompt", "length", "temperature", "seed", "pace", "compare", "turns"]
    assert order[:10] == first
    assert order[10:14] == ["a-policy", "a-cache", "b-policy", "b-cache"]
    assert order[14:] == ["run", "share", *["canvas", "range"] * 2]


def test_canvas_and_slider_by_keyboard(show):
    page = show(mode="chat", prompt=SUDOKU, length=32, **{"a.policy": "vanilla"})
    run(page)
    page.locator(".canvas").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".story").text_content().startswith("position 1 · ")
    assert page.locator(".t.chosen").get_attribute("data-at") == "1"
    page.locator(".walk input").focus()
    page.keyboard.press("Home")
    assert "all positions are masked" in page.locator(".now").text_content()
    assert {kind for kind, _, _ in chips(page)} == {"mask"}
    page.keyboard.press("ArrowRight")
    assert page.locator(".walk input").get_attribute("aria-valuetext").startswith("forward pass 1 of ")


def test_everything_has_a_name(show):
    page = show(mode="chat", prompt=SUDOKU, length=32, compare=1, **{"a.policy": "slowfast", "b.cache": "every"})
    bodies(page)
    page.click("#run")
    script = """es => es.filter(e => !(e.getAttribute("aria-label") || e.labels?.[0]?.textContent.trim()
      || (e.tagName === "BUTTON" && e.textContent.trim()) || e.querySelector("legend")))
      .map(e => e.outerHTML.slice(0, 80))"""
    assert page.locator("button, input, select, textarea, section, fieldset, .canvas").evaluate_all(script) == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_contrast(show, scheme):
    """WCAG 2.1 AA, 4.5 to 1, of every text but provisional tokens, which are faint on purpose."""
    look = {"scheme": scheme, "motion": "reduce"}
    page = show(look=look, mode="chat", prompt=QUESTION, length=32, compare=1, pace=0, **{
        "a.policy": "wino", "a.policy.tau_in": 0.2, "a.policy.tau_out": 1, "a.policy.block_length": 16,
        "b.policy": "slowfast"})  # fmt: skip
    run(page, panels=2)
    expect(page.locator("#run")).to_be_enabled()
    for t in ("99", "2"):
        for panel in range(2):
            seek(page, min(int(t), int(page.locator(".walk input").nth(panel).get_attribute("max"))), panel)
        found = [one for one in page.evaluate(CONTRAST) if "guess" not in one[1]]
        assert len(found) > 60
        assert [one for one in found if one[0] < 4.5] == []


def test_theme_follows_the_system(show):
    page = show(look={"scheme": "dark"}, mode="chat", prompt="Hi")
    look = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(look)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(look) != dark


def test_narrow(show):
    page = show(look={"width": 360, "height": 740}, mode="chat", prompt=QUESTION, length=64, compare=1, pace=0, **{
        "a.policy": "slowfast", "b.policy": "lookahead"})  # fmt: skip
    run(page, panels=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    upper, lower = (page.locator(".panel").nth(i).bounding_box() for i in range(2))
    assert upper["x"] == lower["x"] and upper["y"] < lower["y"]
    for control in page.locator("button:visible, input[type=text]:visible, select:visible").all():
        assert control.bounding_box()["height"] >= 30


def test_nothing_but_these_files(server):
    """Each is within the package; none names another host; the page has no script or style of its own."""
    from importlib.resources import files

    folder = files("unmask.server") / "static"
    names = sorted(one.name for one in folder.iterdir())
    assert names == ["canvas.js", "index.html", "page.css", "page.js", "settings.js", "stream.js"]
    for name in names:
        text = (folder / name).read_text(encoding="utf-8")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text)
        assert len(text.splitlines()) < 400
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=\"page.js\"></script>)", html)

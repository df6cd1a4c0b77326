"""A whole HTML page that needs nothing else: no scripts, fonts or pictures from elsewhere."""

import base64
import hashlib
from collections.abc import Iterable

from accelnet.report.markup import Markup, tag

NUM_COLORS = 8  # classes c0 to c7
# The palette of Okabe and Ito, which colour-blind people can distinguish; every area has an outline too.
_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f5f6f8;--ink:#1b1f24;--soft:#555d67;--line:#c9ced6;
--good:#00664b;--bad:#a33b00}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1d2127;--ink:#e8eaed;--soft:#a9b1bb;--line:#434b55;
--good:#4fd6ab;--bad:#ff9d66}}*{box-sizing:border-box}
.c0{--c:#0072b2}.c1{--c:#e69f00}.c2{--c:#009e73}.c3{--c:#cc79a7}.c4{--c:#56b4e9}.c5{--c:#d55e00}.c6{--c:#f0e442}
.c7,.rest{--c:#999}
body{margin:0 auto;padding:.75rem;max-width:75rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}h1{margin:.2em 0;font-size:1.7rem;line-height:1.2}
h2{margin:2em 0 .5em;font-size:1.3rem}h3,h4{margin:0 0 .4em;font-size:1rem}h4{font-size:.9rem}
p{max-width:48rem;margin:.5em 0}.verdict{max-width:none;margin:.4em 0 .6em;padding-left:.7em;font-size:1.15rem;
font-weight:600;border-left:.25rem solid #0072b2}
section{display:flex;flex-wrap:wrap;gap:0 1.5rem;align-items:flex-start}section>*{flex:0 0 100%;min-width:0}
@media(min-width:40rem){section>figure:not(:has(.bar,.grid)){flex:0 1 27rem}}
section>.table{flex:0 1 auto;min-width:min(100%,18rem)}.table{max-width:100%}.table .caption{width:0;min-width:100%}
small,figcaption,.caption{color:var(--soft);font-size:.85rem}
small{display:block;font-weight:400}.good{color:var(--good)}.bad{color:var(--bad)}.good,.bad{font-weight:600}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem;margin-bottom:1rem}
figure{margin:0 0 1rem;padding:.75rem;min-width:0;background:var(--card);border-radius:.5rem}.grid figure{margin:0}
figcaption{max-width:48rem;margin-top:.6em}ol{margin:.3em 0;padding-left:1.5em}.row{margin:.6em 0;font-size:.9rem}
.row b{margin-right:.6em}.scroll{overflow-x:auto;margin:.4em 0 1em}
table{border-collapse:collapse;font-size:.9rem;overflow-wrap:normal}
th,td{padding:.35em .9em .35em 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{color:var(--soft)}.n{text-align:right}td.n,.good,.bad{white-space:nowrap}
td small{width:max-content;max-width:9rem;white-space:normal}td.n small{margin-left:auto}
th[scope=row]{position:sticky;left:0;background:var(--paper)}:is(figure,details) th[scope=row]{background:var(--card)}
tbody th{min-width:8rem}
.long{display:block;min-width:14rem}td.w{overflow-wrap:break-word}td.w:not(:has(.good,.bad),:empty){min-width:11rem}
.legend{display:flex;flex-wrap:wrap;gap:.2em 1.2em;margin:.5em 0;padding:0;list-style:none;font-size:.85rem}
i{display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em;background:var(--c);
border:1px solid var(--ink)}i.mark{width:3px;height:1.1em;background:var(--ink);border:0}
i.ideal{height:0;border:0;border-top:2px dashed var(--soft);vertical-align:.25em}
svg{display:block;width:100%;max-width:27rem;overflow:visible}text{fill:var(--soft);font-size:12px}
.name{fill:var(--ink);font-weight:700;stroke:var(--card);stroke-width:3px;paint-order:stroke}
.bar{height:1.1rem;max-width:none;margin:.2em 0;background:var(--paper);outline:1px solid var(--line)}
.row .label{height:.5rem}rect,circle{fill:var(--c);stroke:var(--ink);stroke-width:.7;vector-effect:non-scaling-stroke}
circle{fill-opacity:.7}path{fill:none;stroke:var(--line);stroke-width:.6;vector-effect:non-scaling-stroke}
path.roof,path.mark{stroke:var(--ink);stroke-width:2}path.mark{stroke-width:3}
path.line{stroke:var(--c);stroke-width:2.5}path.ideal{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4}
.cell{stroke:var(--line)}img{max-width:100%;border-radius:.25rem;background:var(--paper)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.75rem}
.pictures figure{margin:0;font-size:.85rem}.pictures img{display:block;width:100%;image-rendering:pixelated}
pre{white-space:pre-wrap;margin:.3em 0;font-size:.85rem}mark{color:inherit;background:none;font-weight:700}
:focus-visible{outline:2px solid #0072b2}
details{margin:.5rem 0;padding:.6rem .75rem;background:var(--card);border-radius:.5rem}
summary{cursor:pointer;font-weight:600}@media(max-width:30rem){text{font-size:13px}}
@media print{html{font-size:65%}body{max-width:none;padding:0;print-color-adjust:exact}
figure,tr,.row{break-inside:avoid}h2,.caption{break-after:avoid}.scroll{overflow:visible}}
"""


def document(title: str, body: Iterable[str], style: str = "", script: str = "") -> str:
    """Return a page to read, in light and dark, on a screen and on a phone.

    Args:
        title: Title in the browser's tab.
        body: Parts of the page; text that is not markup is escaped.
        style: CSS beside that of all pages, such as the colours of classes: `.weights{--c:#0072b2}`.
        script: JavaScript that runs at the end, for a page that asks its own server.

    Returns:
        A whole HTML document. Its policy lets a browser fetch nothing; with a script, from its own server alone.

    Example:
        >>> "<body><main>1 &lt; 2</main></body>" in document("Less", ["1 < 2"])
        True
    """
    allowed = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    end = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed += f"; script-src 'sha256-{digest}'; connect-src 'self'"
        end = f"<script>{script}</script>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">\n'
        f"{tag('title', title)}\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"{tag('body', tag('main', *body), Markup(end))}\n</html>\n"
    )


def piece(*body: str) -> Markup:
    """Return parts of a page for a notebook: with the style of all pages, which reaches nothing outside of them.

    Args:
        *body: Parts; text that is not markup is escaped.

    Example:
        >>> piece(tag("p", "1 < 2")).endswith("<p>1 &lt; 2</p></div>")
        True
    """
    return tag("div", tag("style", Markup(f"@scope{{{_scoped(_STYLE)}}}")), *body, class_="accelnet")


def embedded(page: str) -> Markup:
    """Return a page of `document` as a part of a notebook, like `piece`.

    Example:
        >>> embedded(document("Less", ["1 < 2"])).endswith("1 &lt; 2</div>")
        True
    """
    style, body = page.split("<style>", 1)[1].split("</style>", 1)
    body = body.split("<main>", 1)[1].rsplit("</main>", 1)[0]
    return tag("div", tag("style", Markup(f"@scope{{{_scoped(style)}}}")), Markup(body), class_="accelnet")


def _scoped(style: str) -> str:
    return style.replace(":root", ":scope").replace("body{margin:0 auto;padding:.75rem;", ":scope{")

"""The HTML skeleton and its CSS, for light and dark screens, paper and phones. The page loads no other resource."""

from isoflop.report import words

# The page uses no scripts and no external resources. The policy blocks any that untrusted text might bring in.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

LIGHT = """
--page:#ffffff; --panel:#f5f7f9; --line:#dde2e7; --ink:#48525d; --text:#161b22; --muted:#77818c; --grid:#b9c1ca;
--train:#2f6db3; --heldout:#d9480f; --expected:#15805d; --mark:#7a45c8; --good:#15805d; --bad:#c0262d;
--run-0:#2f6db3; --run-1:#d9480f; --run-2:#15805d; --run-3:#7a45c8; --run-4:#9a7b00; --run-5:#c2317c;
    --run-6:#1d7f96; --run-7:#5b6570;
"""
DARK = """
--page:#0f1419; --panel:#181f27; --line:#2b343f; --ink:#aeb8c4; --text:#e9eef4; --muted:#8793a0; --grid:#4a5663;
--train:#74aef0; --heldout:#ff8a4c; --expected:#43c59a; --mark:#b48cf2; --good:#43c59a; --bad:#ff7b80;
--run-0:#74aef0; --run-1:#ff8a4c; --run-2:#43c59a; --run-3:#b48cf2; --run-4:#e0c04c; --run-5:#f27db8;
    --run-6:#5cc3da; --run-7:#a2adb9;
"""
CSS = (
    f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
@media print {{ :root {{ color-scheme: light; {LIGHT} }} }}
"""
    + """
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 24px 64px; }
h1, h2, h3, p { margin: 0; }
h1 { color: var(--text); font-size: 1.35rem; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; font-weight: 650; margin: 56px 0 4px; padding-top: 18px; border-top: 2px solid var(--text); }
h3 { font-size: 1rem; font-weight: 650; margin: 26px 0 8px; }
.lead { color: var(--muted); margin-bottom: 16px; max-width: 70ch; }
.top { display: flex; gap: 12px; align-items: center; flex-wrap: wrap; color: var(--muted); }
.badge { font-size: .8rem; font-weight: 650; padding: 2px 11px; border-radius: 99px; border: 1.5px solid; }
.finished { color: var(--good); } .running { color: var(--train); } .stopped { color: var(--bad); }
.verdict { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 460px); gap: 8px 40px;
    align-items: center; margin: 22px 0 14px; }
.big { font-size: clamp(4rem, 14vw, 7.5rem); line-height: 1; font-weight: 700; letter-spacing: -.04em;
    font-variant-numeric: tabular-nums; }
.unit { font-size: 1.15rem; color: var(--muted); }
.judgement { font-size: 1.5rem; font-weight: 650; line-height: 1.25; }
.inside, .better { color: var(--good); } .worse { color: var(--bad); } .open { color: var(--train); }
.story { font-size: 1.12rem; max-width: 68ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(205px, 1fr)); gap: 12px; margin: 28px 0 0;
    padding: 0; }
.tile { background: var(--panel); border-radius: 10px; padding: 13px 16px; break-inside: avoid; }
.tile dt { color: var(--muted); font-size: .88rem; }
.tile dd { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.3; letter-spacing: -.01em;
    font-variant-numeric: tabular-nums; }
.tile dd.note { font-size: .86rem; font-weight: 400; line-height: 1.4; color: var(--ink); letter-spacing: 0; }
figure { margin: 14px 0 0; break-inside: avoid; }
svg { display: block; width: 100%; height: auto; font-variant-numeric: tabular-nums; }
.narrow { display: none; }
figcaption { font-size: .9rem; color: var(--ink); display: flex; flex-wrap: wrap; gap: 2px 20px; margin-top: 4px; }
figcaption.above { margin: 0 0 4px; font-weight: 650; color: var(--text); }
.key::before { content: ""; display: inline-block; width: 20px; height: 4px; border-radius: 2px; margin-right: 7px;
    vertical-align: .2em; background: var(--key); }
.key.band::before { height: 13px; width: 11px; vertical-align: -.1em; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 6px 32px;
    align-items: start; }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); gap: 6px 20px; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 10px 20px; }
.side pre { margin-top: 4px; max-height: 26em; overflow: auto; }
.warning { border-left: 4px solid var(--bad); background: var(--panel); border-radius: 0 8px 8px 0; padding: 12px 18px;
    margin: 18px 0; } .warning ul { margin: 6px 0; padding-left: 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: .86rem; }
th, td { padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr { break-inside: avoid; }
.n { text-align: right; white-space: nowrap; }
td.any { overflow-wrap: break-word; max-width: 42em; min-width: 5.5em; }
td code { white-space: nowrap; }
.chosen td { font-weight: 650; background: var(--panel); }
small { color: var(--muted); }
.bar { height: 12px; background: var(--panel); border-radius: 3px; position: relative; min-width: 90px;
    margin-top: 6px; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--train); }
.bar b { position: absolute; top: -4px; bottom: -4px; width: 3px; margin-left: -1.5px; background: var(--heldout); }
.stack { display: flex; height: 30px; border-radius: 6px; overflow: hidden; gap: 2px; margin: 14px 0 8px; }
.stack + figcaption { margin-bottom: 14px; }
.stack i { background: var(--key); min-width: 2px; }
.prompt { font-weight: 650; overflow-wrap: anywhere; }
.steps { display: grid; grid-template-columns: 96px minmax(0, 1fr); gap: 10px 18px; margin-top: 10px; }
.at { color: var(--muted); font-size: .86rem; font-variant-numeric: tabular-nums; padding-top: 2px; }
.at b { display: block; color: var(--text); font-weight: 650; font-size: .95rem; }
pre { margin: 0; font: .88rem/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap;
    overflow-wrap: anywhere; unicode-bidi: isolate; tab-size: 4; }
pre.early { color: var(--ink); padding-left: 14px; border-left: 3px solid var(--line); max-height: 13.5em;
    overflow: auto; }
pre.last { background: var(--panel); border-left: 4px solid var(--heldout); border-radius: 0 8px 8px 0;
    padding: 14px 18px; font-size: 1rem; }
pre em { font-style: normal; font-weight: 700; color: var(--heldout); }
pre.box { background: var(--panel); border-radius: 8px; padding: 12px 16px; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--ink); margin-bottom: 8px; }
footer { margin-top: 56px; padding-top: 14px; border-top: 1px solid var(--line); font-size: .88rem;
    color: var(--muted); }
@media (max-width: 640px) {
  main { padding: 18px 14px 40px; }
  .verdict { grid-template-columns: minmax(0, 1fr); }
  .wide { display: none; } .narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; } .tile { padding: 10px 12px; } .tile dd { font-size: 1.28rem; }
  .steps { grid-template-columns: minmax(0, 1fr); gap: 2px 0; } .steps pre { margin-bottom: 12px; }
  th, td { padding-right: 8px; } td.any { min-width: 4.5em; } table { font-size: .84rem; }
}
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  .wide { display: block; } .narrow { display: none; } pre.early { max-height: none; }
  .wide svg { max-height: 8.6cm; } .pair { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; }
  .pair table { font-size: .8rem; } th, td { padding-right: 8px; } section { margin-top: 0; } h2 { margin-top: 24px; }
  .lead, h3 { break-after: avoid; }
  .tiles { grid-template-columns: repeat(4, 1fr); } .tile dd { font-size: 1.25rem; } h2 { break-after: avoid;
    margin-top: 32px; }
}
"""
)


def document(title: str, body: str) -> str:
    """A complete HTML file. `title` is any text; `body` is HTML."""
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{words.text(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(head: list[str], rows: list[list[str]], numeric: set[int] | None = None, marked: int | None = None) -> str:
    """A table of HTML cells. Columns in `numeric` are right-aligned; row `marked` is highlighted."""
    numeric = numeric or set()

    def cell(tag: str, index: int, inner: str) -> str:
        return f'<{tag} class="{"n" if index in numeric else "any"}">{inner}</{tag}>'

    def line(tag: str, cells: list[str], extra: str = "") -> str:
        return f"<tr{extra}>" + "".join(cell(tag, index, inner) for index, inner in enumerate(cells)) + "</tr>"

    body = "\n".join(line("td", row, ' class="chosen"' if index == marked else "") for index, row in enumerate(rows))
    header = f"<thead>{line('th', head)}</thead>\n" if head else ""
    return f'<div class="scroll"><table>\n{header}<tbody>\n{body}\n</tbody></table></div>'


def key(color: str, label: str, band: bool = False) -> str:
    """A legend entry: a swatch of the CSS variable `color` and HTML text."""
    return f'<span class="key{" band" if band else ""}" style="--key:var(--{color})">{label}</span>'


def section(title: str, lead: str, body: str) -> str:
    lead = f'<p class="lead">{lead}</p>\n' if lead else ""
    return f"<section>\n<h2>{title}</h2>\n{lead}{body}\n</section>"


def stack(parts: list[tuple[str, float, str]]) -> str:
    """A stacked bar of parts (colour variable, amount, HTML label) with a legend. Parts of amount 0 are left out."""
    shown = [(color, amount, label) for color, amount, label in parts if amount > 0]
    total = sum(amount for _, amount, _ in shown)
    if not shown:
        return ""
    cells = "".join(
        f'<i style="--key:var(--{color});width:{100 * amount / total:.2f}%"></i>' for color, amount, _ in shown
    )
    keys = "".join(key(color, label, band=True) for color, _, label in shown)
    return f'<figure><div class="stack">{cells}</div><figcaption>{keys}</figcaption></figure>'

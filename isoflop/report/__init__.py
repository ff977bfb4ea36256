"""A run as one page to look at: figures (plain arrays in, SVG out) and a self-contained HTML file. No torch.

page.py       write_report, where they meet
facts.py      what a run says, with everything possibly missing
verdict.py    the answer on top   · sections.py  learning and plan   · account.py  samples, data, costs
history.py    what happened, in order
compare.py    several runs side by side
figures.py    what is drawn   · drawing.py  what drawing stands on
words.py      numbers and foreign text, as words that are safe in HTML
style.py      the page's skeleton and its CSS
"""

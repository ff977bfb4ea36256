"""A run as one page to look at: figures (plain arrays in, SVG out) and a self-contained HTML file. No torch.

figures.py    what is drawn
words.py      numbers and foreign text, as words that are safe in HTML
facts.py      what a run says, with everything possibly missing
sections.py   the verdict, the learning and the plan   · account.py  samples, data, costs, history
compare.py    several runs side by side
style.py      the page's skeleton and its CSS
page.py       write_report, where they meet
"""

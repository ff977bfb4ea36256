"""The report of a run: one self-contained HTML file with SVG figures. Nothing here imports torch.

page.py       write_report: assembles the page
facts.py      the facts about a run, any of which may be missing
verdict.py    the top of the page   · sections.py  loss and plan   · account.py  samples, data, costs
history.py    the events of a run, in order
compare.py    several runs compared with the first
figures.py    arrays in, SVG out   · drawing.py  palette, axes, SVG clean-up
words.py      numbers and untrusted text, formatted for HTML
style.py      the HTML skeleton and its CSS
"""

"""A ladder: runs of several sizes and lengths on the user's own text, and the scaling law that they give.

rungs      which sizes and lengths a budget pays for      · pace      how fast they train here, and how many at once
runs       makes the runs of one size                     · rates     whether the best learning rate stays where it is
store      the folder of a ladder                         · fit       from runs to a law, stored for later plans
begin      planned for its target, or opened again       · targets   what larger budgets should reach
climb      all of it as one call                          · messages    the lines printed before and after
page       the page with its figures
"""

"""The search over plans: recorded frames in, plans with measured cost and measured error out.

    streams     recorded frames as a closed loop would meet them
    work        what a plan computes, counted
    space       which plans there are
    judge       one plan over the streams: error and work
    search      many plans, chosen by Optuna
    front       which of them are worth measuring, and which one is wanted
    finalists   their latency here, their error on frames that the search did not see
    played      the chosen one in a simulator
    evidence    what a preset says about itself
    report      all of it as a page

Importing this package imports neither Optuna nor matplotlib (extra `tune`).
"""

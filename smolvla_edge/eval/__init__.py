"""How good a policy is: closed loop in a public simulator, open loop over recorded frames.

tasks.py        the ten tasks of the demo policy: instruction, layout, what is marked
metaworld.py    one episode of one task: pictures and state in, actions out, success
episode.py      a policy in an episode: what happened, as one line of JSON
runner.py       many episodes on several processes, resumable
intervals.py    success rates with intervals, paired comparisons
"""

"""Where a call goes: `smolvla-edge profile`.

measure.py   calls a policy with the engine's recording on
records.py   what was recorded, as operations in stages
summary.py   the numbers of the tables, which add up to the call's wall time
page.py      one HTML file: timeline.py draws the lanes, tables.py the tables
"""

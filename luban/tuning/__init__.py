"""Searching settings (`luban tune`), and what more rows or a larger network would bring (`luban curve`).

search.py    tune: the search itself; its signature is the schema of a recipe's `tune`
curve.py     curve: one recipe at several row counts and sizes; verdicts.py: what that says
study.py     which settings come next, what came out so far: Optuna over a journal that a killed search goes on from
jobs.py      one training on the rows it may see, judged on validation rows
workers.py   where jobs run: in this process, in several (worker.py), through Ray (on_ray.py)
page.py      the section of the report
"""

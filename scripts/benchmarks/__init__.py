"""Benchmarks: dlpool against the tools that a user would pick instead.

Read in this order: ``measuring`` (one run of a tool, and rounds of runs), ``servers``, ``peers`` (the commands of the
tools), ``rows`` (what is measured, and what is asked), ``jobs`` and ``uploads`` (rows with servers of their own),
``flat`` (cost for each unit of work), ``report`` (docs/benchmarks.md and its chart), ``__main__`` (the command line).
"""

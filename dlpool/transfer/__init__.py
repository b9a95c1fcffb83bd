"""One URL becomes one file. No Redis, no processes, no logging set-up.

Read in this order: ``transfer`` (rounds until done), ``round`` (one round: checkpoints,
verify, publish), ``opening`` (the first request), ``lane`` (a connection thread),
``board`` and ``chunks`` (who fetches what), ``answer`` (what an answer is worth),
``place`` (the local files and the order of writes).
"""

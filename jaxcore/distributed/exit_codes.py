"""Exit codes of a training process: the whole contract between a run and whatever restarts it.

| code | meaning                                                     | restart?
|
|------|-------------------------------------------------------------|-----------------------------------------|
| 0    | finished                                                    | no | | 2    | the command line or the
input cannot be used                | no | | 75   | checkpoint committed after a preemption notice
| yes, free of charge | | 76   | watchdog: no progress                                       | yes, counts
against the budget | | 77   | numbers went bad (NaN guard)                                | no | | 78   | bad
configuration, data, or processes that do not match     | no | | 134  | SIGABRT: the runtime ended us because
a peer died           | yes; blame the peer | | 137  | killed (out of memory, or the machine is gone)
| yes if the machine is gone, else once |

Anything else is a crash. 134 and 137 come from the operating system and are not raised here.
"""

import enum

__all__ = ["ExitCode"]


class ExitCode(enum.IntEnum):
    """What the process returns to the shell; see the table above."""

    FINISHED = 0
    USAGE = 2
    PREEMPTED = 75
    WATCHDOG = 76
    NUMBERS_BAD = 77
    BAD_CONFIG = 78

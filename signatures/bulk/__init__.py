"""Work on a list: in this process, in processes of this machine, or on the machines of a Ray cluster.

``work`` is the seam: a task, items, and workers that carry it out. ``journal`` remembers what was done, so that a run
that was killed goes on where it stopped.
"""

"""Everything that shares a process with train.py: the untrusted side.

Nothing said here is believed by the referee.
"""

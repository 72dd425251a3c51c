"""A filter of system calls for what Landlock has no rule for, as a classic BPF program.

refused (EPERM)     sockets of every family, System V and POSIX queues, kernel keys: they reach
                    others, or outlive a run; owners and attributes of files; other processes'
                    memory, limits and priorities; namespaces
refused (ENOSYS)    io_uring, whose operations a filter does not see
without effect      modes and times of files, also those that cannot be opened: compilers and
(returns 0)         copying functions set them, and would stop at an error

The filter is inherited and stays. socketpair and inherited sockets work.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _NOT_LESS, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32_BIT = 0x40000000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_REFUSED = {  # name: (x86_64, aarch64); -1 where there is no such call
    "socket": (41, 198),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "unshare": (272, 97),
    "setns": (308, 268),
}
_UNKNOWN = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_WITHOUT_EFFECT = {
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
}
_ON_ITSELF = {"prlimit64": (302, 261)}  # the first argument is a process: itself or 0
_SIGNALS_TO_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}
_OTHER_SIGNALS = {
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}


def problem() -> str:
    """Why there is no filter for this machine; "" where there is."""
    machine = platform.machine()
    return "" if machine in ARCHITECTURES else f"system calls of {machine} are not known here"


def program(machine: str, pid: int, *, only_own_signals: bool) -> bytes:
    """The filter for a process `pid` of `machine`, as the kernel's array of instructions."""
    column = list(ARCHITECTURES).index(machine)
    refused = _REFUSED | (_OTHER_SIGNALS if only_own_signals else {})
    guarded = _ON_ITSELF | (_SIGNALS_TO_ITSELF if only_own_signals else {})
    lines = [(_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, ARCHITECTURES[machine])]
    lines += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_LOAD, 0, 0, _NUMBER_AT)]
    if machine == "x86_64":
        lines += [(_NOT_LESS, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for calls, code in ((refused, errno.EPERM), (_UNKNOWN, errno.ENOSYS), (_WITHOUT_EFFECT, 0)):
        for numbers in calls.values():
            if numbers[column] >= 0:
                lines += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERRNO | code)]
    for numbers in guarded.values():
        lines += [(_EQUAL, 0, 5, numbers[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
        lines += [(_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, pid)]
        lines += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def install(pid: int, *, only_own_signals: bool) -> None:
    """Filter this process and all that it starts; it must have given up new privileges before.

    Raises:
        OSError: the kernel has no such filters.
    """
    code = program(platform.machine(), pid, only_own_signals=only_own_signals)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), header, zero, zero):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")

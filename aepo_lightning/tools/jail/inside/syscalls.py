"""The system calls that jailed code may make: numbers on x86_64 and on aarch64.

Everything that is not listed is refused: new processes and programs, signals to others, sockets, mounts, namespaces,
tracing, keys, shared memory segments, message queues, locks on files, io_uring and whatever kernels add in the future.

The numbers are those of `asm/unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64) of Linux.
"""

X86_64 = {
    "read": 0, "write": 1, "readv": 19, "writev": 20, "pread64": 17, "pwrite64": 18, "preadv": 295, "pwritev": 296,
    "preadv2": 327, "pwritev2": 328, "open": 2, "openat": 257, "close": 3, "close_range": 436, "creat": 85, "stat": 4,
    "fstat": 5, "lstat": 6, "newfstatat": 262, "statx": 332, "statfs": 137, "fstatfs": 138, "lseek": 8, "access": 21,
    "faccessat": 269, "faccessat2": 439, "readlink": 89, "readlinkat": 267, "getdents": 78, "getdents64": 217,
    "getcwd": 79, "chdir": 80, "fchdir": 81, "mkdir": 83, "mkdirat": 258, "rmdir": 84, "unlink": 87, "unlinkat": 263,
    "rename": 82, "renameat": 264, "renameat2": 316, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266,
    "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "umask": 95, "utimensat": 280, "truncate": 76,
    "ftruncate": 77, "fallocate": 285, "fsync": 74, "fdatasync": 75, "dup": 32, "dup2": 33, "dup3": 292,
    "pipe": 22, "pipe2": 293, "fcntl": 72, "poll": 7, "ppoll": 271, "select": 23, "pselect6": 270,
    "epoll_create": 213, "epoll_create1": 291, "epoll_ctl": 233, "epoll_wait": 232, "epoll_pwait": 281,
    "epoll_pwait2": 441, "eventfd": 284, "eventfd2": 290, "sendfile": 40, "copy_file_range": 326, "fadvise64": 221,
    "getxattr": 191, "lgetxattr": 192, "fgetxattr": 193, "listxattr": 194, "llistxattr": 195, "flistxattr": 196,
    "mmap": 9, "munmap": 11, "mremap": 25, "mprotect": 10, "madvise": 28, "msync": 26, "brk": 12, "futex": 202,
    "futex_waitv": 449, "set_robust_list": 273, "get_robust_list": 274, "set_tid_address": 218, "rseq": 334,
    "sched_yield": 24, "sched_getaffinity": 204, "sched_getparam": 143, "sched_getscheduler": 145,
    "sched_get_priority_max": 146, "sched_get_priority_min": 147, "getcpu": 309, "membarrier": 324, "clone": 56,
    "clone3": 435, "exit": 60, "exit_group": 231, "wait4": 61, "waitid": 247, "gettid": 186, "getpid": 39,
    "getppid": 110, "getuid": 102, "geteuid": 107, "getgid": 104, "getegid": 108, "getresuid": 118, "getresgid": 120,
    "getgroups": 115, "getpgrp": 111, "getpgid": 121, "getsid": 124, "getpriority": 140, "getrlimit": 97,
    "prlimit64": 302, "prctl": 157, "getrusage": 98, "sysinfo": 99, "uname": 63, "times": 100, "capget": 125,
    "getrandom": 318, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "nanosleep": 35,
    "gettimeofday": 96, "time": 201, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "rt_sigpending": 127, "rt_sigsuspend": 130, "rt_sigtimedwait": 128, "sigaltstack": 131, "alarm": 37,
    "setitimer": 38, "getitimer": 36, "pause": 34, "restart_syscall": 219, "ioctl": 16,
}  # fmt: skip

AARCH64 = {
    "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "preadv": 69, "pwritev": 70,
    "preadv2": 286, "pwritev2": 287, "openat": 56, "close": 57, "close_range": 436, "fstat": 80, "newfstatat": 79,
    "statx": 291, "statfs": 43, "fstatfs": 44, "lseek": 62, "faccessat": 48, "faccessat2": 439, "readlinkat": 78,
    "getdents64": 61, "getcwd": 17, "chdir": 49, "fchdir": 50, "mkdirat": 34, "unlinkat": 35, "renameat": 38,
    "renameat2": 276, "linkat": 37, "symlinkat": 36, "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "umask": 166,
    "utimensat": 88, "truncate": 45, "ftruncate": 46, "fallocate": 47, "fsync": 82, "fdatasync": 83,
    "dup": 23, "dup3": 24, "pipe2": 59, "fcntl": 25, "ppoll": 73, "pselect6": 72, "epoll_create1": 20,
    "epoll_ctl": 21, "epoll_pwait": 22, "epoll_pwait2": 441, "eventfd2": 19, "sendfile": 71, "copy_file_range": 285,
    "fadvise64": 223, "getxattr": 8, "lgetxattr": 9, "fgetxattr": 10, "listxattr": 11, "llistxattr": 12,
    "flistxattr": 13, "mmap": 222, "munmap": 215, "mremap": 216, "mprotect": 226, "madvise": 233, "msync": 227,
    "brk": 214, "futex": 98, "futex_waitv": 449, "set_robust_list": 99, "get_robust_list": 100, "set_tid_address": 96,
    "rseq": 293, "sched_yield": 124, "sched_getaffinity": 123, "sched_getparam": 121, "sched_getscheduler": 120,
    "sched_get_priority_max": 125, "sched_get_priority_min": 126, "getcpu": 168, "membarrier": 283, "clone": 220,
    "clone3": 435, "exit": 93, "exit_group": 94, "wait4": 260, "waitid": 95, "gettid": 178, "getpid": 172,
    "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "getresuid": 148, "getresgid": 150,
    "getgroups": 158, "getpgid": 155, "getsid": 156, "getpriority": 141, "getrlimit": 163, "prlimit64": 261,
    "prctl": 167, "getrusage": 165, "sysinfo": 179, "uname": 160, "times": 153, "capget": 90, "getrandom": 278,
    "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "nanosleep": 101, "gettimeofday": 169,
    "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "rt_sigpending": 136, "rt_sigsuspend": 133,
    "rt_sigtimedwait": 137, "sigaltstack": 132, "setitimer": 103, "getitimer": 102, "restart_syscall": 128,
    "ioctl": 29,
}  # fmt: skip

LAST_KNOWN = 452
"""Higher numbers get ENOSYS instead of EPERM, on which libraries fall back to what they used before."""

CHECKED = frozenset({"clone", "clone3", "fcntl", "ioctl", "prctl", "prlimit64"})
"""Allowed for some arguments only."""

"""Every reason by its code: for programs, so the values stay as they are. What each means, and what
mends it, is in docs/check.md."""

from __future__ import annotations

import enum


class Code(enum.StrEnum):
    """Codes of reasons, by what they are about."""

    # What of the scenario does not fit together; the configuration finds these.
    PAGE_SIZE_IMPOSSIBLE = "page_size_impossible"
    MISALIGNED = "misaligned"
    CONTENT = "content"
    TRACE = "trace"

    # Pages.
    PAGE_SIZE_ABSENT = "page_size_absent"
    TARGET_PAGE = "target_page"
    MIXED_PAGE_SIZES = "mixed_page_sizes"
    GIGANTIC_PAGES = "gigantic_pages"
    PREEMPT_OFF = "preempt_off"

    # Pools of hugepages.
    POOL_SMALL = "pool_small"
    POOL_NEVER = "pool_never"
    POOL_TAKEN = "pool_taken"
    POOL_LIMITED = "pool_limited"

    # Files of blocks.
    PATH_MISSING = "path_missing"
    PATH_FILESYSTEM = "path_filesystem"
    PATH_PAGE_SIZE = "path_page_size"
    PATH_FULL = "path_full"
    PATH_EXISTS = "path_exists"
    PATH_DIRECTORY = "path_directory"
    PATH_NOT_WRITABLE = "path_not_writable"

    # Memory and limits.
    MEMORY = "memory"
    MEMORY_NEVER = "memory_never"
    MEMORY_TIGHT = "memory_tight"
    MEMLOCK = "memlock"
    LOCKED = "locked"
    OPEN_FILES = "open_files"
    FILE_SIZE = "file_size"
    TIME_LIMIT = "time_limit"
    CPUS = "cpus"

    # The scenario itself.
    NO_EFFECT = "no_effect"

    # Features of the kernel.
    USERFAULTFD = "userfaultfd"
    USER_MODE_ONLY = "user_mode_only"
    FEATURE = "feature"
    DIRTY_TRACKING = "dirty_tracking"
    COLLAPSE = "collapse"

    # Proofs by doing.
    PROOF = "proof"
    UNPROVEN = "unproven"

    # The two ends.
    MACHINE = "machine"
    BASE_PAGE_DIFFERS = "base_page_differs"
    PAGE_SIZE_DIFFERS = "page_size_differs"

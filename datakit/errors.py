"""Every error the suite raises on purpose, named by what the caller does about it.

    KitError
      UsageError            exit 2: the message ends with the command to type
      DataError             exit 3: input or protocol refused
        BadManifest         a table, list or TOML that cannot be read as what it should be
        HashMismatch        bytes are not the bytes that were recorded
        NotComparable       two score sets that must not stand side by side
        CropError           a crop that does not fit into the frame
        CheckpointError     a checkpoint that is unknown, incomplete or not safe to load
      ToolMissing           exit 4: a program or package is not there
      ItemError             one item failed: recorded in the journal, the run goes on
        Retryable           may work on the next run (time-out, short read, disk full)
          RateLimited       the server wants a pause; says nothing about the item
        Gone                deleted, private, blocked: not asked for again unless --retry-gone
        NeedsLogin          the server wants an account (--cookies) or another address (--proxy) first
        BadArchive          an archive that is cut short, broken, incomplete, or tries to do harm
        Missing             the list names it, the source does not have it
        Unreadable          no picture can be decoded
        Damaged             decodes in part
        Refused             readable, but a rule of the variant says no (HDR, whole video instead of a clip)
        WorkerDied          the process that worked on it was killed

This module imports nothing, so every package may import it.
"""

from __future__ import annotations


class KitError(Exception):
    exit_code = 1


class UsageError(KitError):
    exit_code = 2


class DataError(KitError):
    exit_code = 3


class BadManifest(DataError):
    pass


class HashMismatch(DataError):
    pass


class NotComparable(DataError):
    pass


class CropError(DataError):
    pass


class CheckpointError(DataError):
    pass


class ToolMissing(KitError):
    exit_code = 4


class ItemError(KitError):
    exit_code = 3


class Retryable(ItemError):
    pass


class RateLimited(Retryable):
    pass


class Gone(ItemError):
    pass


class NeedsLogin(ItemError):
    pass


class BadArchive(ItemError):
    pass


class Missing(ItemError):
    pass


class Unreadable(ItemError):
    pass


class Damaged(ItemError):
    pass


class Refused(ItemError):
    pass


class WorkerDied(ItemError):
    pass


EXIT_DONE = 0
EXIT_BUG = 1
EXIT_SOME_FAILED = 5
EXIT_INTERRUPTED = 130

"""What recordings can't say and what is left out of them, and what that means for a replay."""

from __future__ import annotations

MEANING = {
    "times": "no times: replayed in order, as fast as possible or at a rate, not at recorded times",
    "exact_times": "times are known now and then: an access has that of the last one before it",
    "threads": "threads are not told apart: all accesses are one stream, dealt to vCPUs in parts",
    "order": "the order within a sample is not known: its pages come in the order of addresses",
    "sizes": "sizes are not known: each access touches one byte",
    "writes": "reads and writes are not told apart: all are replayed as reads",
    "modifies": "a load and a store of the same bytes show as two accesses",
    "repeats": "only first touches are recorded, or one an interval, not the load between them",
    "every_access": "accesses were sampled, one in several: most of them are not in it",
    "pages": "which pages of an accessed region were touched is not known: all of them are",
    "cached": "only accesses that missed in the recorder's filter cache are recorded",
    "rom_places": "QEMU 7.2 tells a ROM's address by its block, above 4 GiB: it needs a region",
    "instruction_fetches": "no instruction fetches: code pages are touched as data only",
}
"""By key of ``missing``, in the order in which they are told."""

LEFT_OUT = {
    "io": "to devices, which are no RAM",
    "kernel": "in the recorded kernel, which has addresses of its own",
    "kernel_address": "faults on the kernel's own memory",
    "no_address": "faults without an address",
    "other_event": "of another event than the first, which may show the same",
    "no_guest_physical_address": "without a guest-physical address, as others have",
    "fetches_at_virtual_addresses": "instruction fetches, at virtual addresses as no data are",
    "logged_twice": "logged twice, as request and as blocktime",
    "other_processes": "faults of other processes than the guest",
    "lost_by_qemu": "records of any event that QEMU lost",
    "repeats": "that can't fault, as their page was touched as strongly before",
}
"""By key of ``dropped``: which accesses they are."""

/*
 * What a run tells of itself while it runs, to whoever maps it: a memfd named "vmemu-status" that
 * is read from outside, also when nothing in the process moves any more. Offsets are bytes from the
 * start. A reader looks at the magic number, which is set last, and at the version.
 *
 *   struct vm_status
 *   struct vm_status_block  [blocks]   at block_at
 *   struct vm_status_client [clients]  at client_at
 *   struct vm_waiting       [vcpus]    at waiting_at: the guest's first, then those of each client
 */
#ifndef VM_STATUS_H
#define VM_STATUS_H

#include <stdint.h>

#include "ram.h"

#define VM_STATUS_MAGIC UINT64_C(0x535554415453564d) /* "MVSTATUS" */

enum { VM_STATUS_VERSION = 2, VM_STATUS_GUEST = 0xFFFFFFFF };

/*
 * Where a vCPU waits, in a cache line of its own: others write to theirs as often. Only its thread
 * writes; since_ns is set last and cleared first, so whoever reads the same one before and after
 * the rest, each by itself, has read what belongs together.
 */
struct vm_waiting {
    uint64_t since_ns; /* CLOCK_MONOTONIC; 0: not in a touch that may fault */
    uint64_t offset;   /* of the touch, in the block */
    uint32_t block;    /* of a client always 0: it knows only its own */
    uint32_t tid;      /* its thread while it runs, else 0 */
    uint32_t vcpu;     /* its number in the guest, or in the client */
    uint32_t client;   /* index, or VM_STATUS_GUEST */
    uint64_t unused[4];
};

struct vm_status_block {
    char name[VM_NAME_MAX + 1];
    uint64_t host; /* address of the mapping */
    uint64_t size;
    uint64_t received, requested; /* addresses of the bitmaps in the process; 0: not yet there */
    uint32_t page_shift, unused;
};

struct vm_status_client {
    char name[VM_NAME_MAX + 1];
    uint32_t block;
    uint32_t vcpus;
};

struct vm_status {
    uint64_t magic;
    uint32_t version;
    uint32_t pid;
    uint64_t size; /* of all of it */
    uint32_t blocks, clients, vcpus, unused;
    uint64_t block_at, client_at, waiting_at;
    char phase[16];
    /* How far it is, as its owner's thread says a few times a second; times are CLOCK_MONOTONIC. */
    uint64_t phase_ns;     /* when the phase began */
    uint64_t hugepages_ns; /* since when it waits for hugepages; 0: it does not */
    uint64_t moved_ns;     /* when anything below changed last */
    uint64_t accesses, accesses_total, pages, pages_total, checked, messages;
};

#endif

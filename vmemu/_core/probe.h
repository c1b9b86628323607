/*
 * Proof by doing: whether faults of one kind reach a userfaultfd for one kind of memory, are
 * served, and how long that takes. The caller maps the memory and opens the userfaultfd; here it is
 * registered, touched by a thread of its own, served, and unregistered on every way out.
 */
#ifndef VM_PROBE_H
#define VM_PROBE_H

#include <stdint.h>

#include "error.h"

enum vm_probe_kind {
    VM_PROBE_MISSING,      /* a page that is nowhere is touched: UFFDIO_COPY */
    VM_PROBE_MINOR,        /* one that only the page cache has: UFFDIO_CONTINUE */
    VM_PROBE_WRITE_PROTECT /* one that is protected is written: UFFDIO_WRITEPROTECT */
};

enum vm_probe_outcome {
    VM_PROBE_FAILED,      /* a system call failed on the way */
    VM_PROBE_WORKS,       /* every page was served */
    VM_PROBE_REFUSED,     /* the memory can't be registered for this, or not served */
    VM_PROBE_SILENT,      /* a page was touched, and no message came */
    VM_PROBE_STUCK,       /* a page was served, and whoever touched it did not go on */
    VM_PROBE_OTHER_FAULT, /* a message came that tells of another kind of fault, or another page */
    VM_PROBE_WRONG_DATA   /* the touch went on, and what is there is something else */
};

struct vm_probe {
    int uffd; /* after its handshake, and nobody else reads it */
    enum vm_probe_kind kind;
    uint64_t address, page_size, pages; /* each page is touched once and served as a whole */
    uint64_t wait_ns;                   /* how long a fault may take until it counts as lost */
    uint64_t *took_ns;                  /* out: of each page, from the touch until it went on */
    enum vm_probe_outcome outcome;      /* out */
};

/* Make every page of the range present and writable. A shortage fails here and is no SIGBUS. */
int vm_probe_populate(uint64_t address, uint64_t length, struct vm_error *err);

/* Write what minor and write-protect probes expect to find in the pages. */
void vm_probe_stamp(uint64_t address, uint64_t page_size, uint64_t pages);

/*
 * The memory must be unpopulated for VM_PROBE_MISSING; populated and stamped through another
 * mapping of the same file for VM_PROBE_MINOR; populated and stamped for VM_PROBE_WRITE_PROTECT.
 * Never waits longer than wait_ns for a fault. After a failure the memory may have been replaced
 * by an anonymous mapping: unmap it.
 */
int vm_probe(struct vm_probe *p, struct vm_error *err);

#endif

/*
 * Prefetch: where the faults of a vCPU are going. Pages ahead of one that goes on as before come
 * along with the page that it waits for.
 *
 * A vCPU that finds its pages there does not fault, so nobody sees where it is: the next fault is
 * the one behind the window, and it shows that all of the window was used. The window then doubles,
 * as that of the kernel's readahead does. A vCPU that jumps begins anew and is sent nothing. It may
 * walk several places in turn, as a copy does, so several are remembered. A long stride shows when
 * it comes twice in a row, and a short one among others too.
 */
#ifndef VM_PREFETCH_H
#define VM_PREFETCH_H

#include <stdint.h>

#include "ram.h"

/* One place that a vCPU walks. */
struct vm_walk {
    uint64_t used;   /* number of the fault that it saw last; 0: none yet */
    uint64_t last;   /* page of that fault */
    int64_t stride;  /* pages; 0: not known yet */
    uint32_t window; /* pages that came along; 0: not sure of the stride yet */
    uint32_t block;
};

enum { VM_WALKS = 8 };

/* What is known of a vCPU. */
struct vm_walker {
    uint32_t busy; /* a fault thread is at it */
    uint64_t faults;
    uint64_t previous; /* page of the last fault */
    int64_t step;      /* from the one before it, pages */
    uint32_t previous_block;
    struct vm_walk walk[VM_WALKS];
};

/* The vCPU waits for a page of a block: how many further pages are to come along, and their stride.
 */
uint32_t vm_walker_ahead(struct vm_walker *w, const struct vm_block *block, uint32_t index,
                         uint64_t page, int64_t *stride);

#endif

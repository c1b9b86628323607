/*
 * What goes along with the answer to a request: pages that nobody waits for yet and that the guest
 * is likely to touch next. They leave on the channel of the answer, behind it, a short message at a
 * time, and the source looks for further requests between two messages: so whoever waits for a page
 * waits for one such message at most.
 *
 * Pages are claimed when they are sent and not when they are planned. One that is asked for
 * meanwhile so goes at once, as any other.
 */
#ifndef VM_CARRY_H
#define VM_CARRY_H

#include <stdint.h>

#include "source.h"

/* The longest message of pages that nobody waits for, unless one page is longer. */
#define VM_CARRY_BYTES (UINT32_C(128) << 10)
/* The longest window of fault-around. */
#define VM_AROUND_BYTES (UINT64_C(1) << 20)

struct vm_window {
    uint64_t next; /* page */
    uint64_t left; /* pages */
    int64_t stride;
    uint32_t block;
    uint16_t flags; /* VM_FLAG_AROUND or VM_FLAG_AHEAD */
};

enum { VM_WINDOWS = 128 };

struct vm_carry {
    uint32_t first, count; /* a ring */
    struct vm_window window[VM_WINDOWS];
};

/* Plan pages of a block. All of them have to be in it; without room they are left to the push. */
void vm_carry_plan(struct vm_carry *c, struct vm_window window);
/* Plan what is around a page: those behind it up to the end of its window, then those before it. */
void vm_carry_around(struct vm_carry *c, const struct vm_source *s, uint32_t block, uint64_t page);
/* Send one message of what is planned, or find that nothing of it is left. 0, or -1. */
int vm_carry_some(struct vm_carry *c, struct vm_source *s, int fd, struct vm_error *err);

#endif

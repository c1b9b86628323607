/*
 * A growing set of 4 KiB pages, fed with accesses, that turns into a sorted dictionary.
 *
 * Pages are kept 64 neighbours a group: dense memory takes 24 bytes for 256 KiB of it, and a page
 * that is alone takes as much. The number of groups is limited, so that memory is.
 */
#ifndef VM_PAGESET_H
#define VM_PAGESET_H

#include <stdbool.h>
#include <stdint.h>

enum { VM_PAGESET_MAX_STREAMS = 4096 };

struct vm_pageset;

/* Some accesses; kinds (enum vm_access_kind) may be NULL where nobody asks for writes. */
struct vm_accesses {
    const uint64_t *addresses; /* of the first byte */
    const uint16_t *sizes;     /* bytes, 1 to 4096; none runs over the end of the address space */
    const uint8_t *kinds;
    uint64_t count;
};

/* At most so many groups; NULL without memory. */
struct vm_pageset *vm_pageset_create(uint64_t limit);
void vm_pageset_destroy(struct vm_pageset *set);

/*
 * Add the pages of the first bytes, and of the last bytes too with `both`. Returns how many
 * accesses were taken: fewer than there are when the next one would go over the limit, or -1
 * without memory.
 */
int64_t vm_pageset_add(struct vm_pageset *set, const struct vm_accesses *accesses, bool both);

/*
 * Mark in keep[i] the accesses that touch a page, with their first or their last byte, for the
 * first time in their stream (a number below VM_PAGESET_MAX_STREAMS), or are the first to write it
 * there: dropping the others leaves every first touch and every first write where it was. Returns
 * as vm_pageset_add does. A set that was used for this is of no other use.
 */
int64_t vm_pageset_mark_firsts(struct vm_pageset *set, uint32_t stream,
                               const struct vm_accesses *accesses, uint8_t *keep);

/* Put the set in order, once, behind the last access; what follows needs it. */
void vm_pageset_sort(struct vm_pageset *set);

struct vm_page_counts {
    uint64_t pages, written, huge; /* huge: pages of 2 MiB that hold one of them */
    uint64_t first, last;          /* of the pages; meaningless when there are none */
};

/* Count the pages with numbers from first to last, both inclusive. */
void vm_pageset_count(const struct vm_pageset *set, uint64_t first, uint64_t last,
                      struct vm_page_counts *counts);

/*
 * Write the next pages of the sorted set, at most room (64 or more) of them. *group is 0 before the
 * first call and goes on by itself. Returns how many were written; 0: that was all.
 */
uint64_t vm_pageset_pages(const struct vm_pageset *set, uint64_t *group, uint64_t *pages,
                          uint64_t room);

/* Number the pages in their order; what the set knew of writes is lost. */
void vm_pageset_rank(struct vm_pageset *set);

/*
 * The column "where" (access.h) of accesses to pages of a ranked set, u32 or, if wide, u64. False
 * if a page is not in the set.
 */
bool vm_pageset_where(struct vm_pageset *set, const uint64_t *addresses, uint64_t count,
                      void *where, bool wide);

#endif

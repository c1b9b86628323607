/*
 * Which pages were written, as the kernel saw it: memory that is registered with a userfaultfd of
 * UFFD_FEATURE_WP_ASYNC is write-protected, the kernel itself lets each first write go on and
 * remembers it, and PAGEMAP_SCAN tells which pages those were. Nothing stands in the way of a write
 * but that one fault, and no write is missed whoever makes it.
 */
#ifndef VM_PAGEMAP_H
#define VM_PAGEMAP_H

#include <stdint.h>

#include "error.h"

/*
 * Set in map the bit of every target page (4 KiB) of [start, start + length) that was written since
 * it was protected last, and protect it again, page by page in one step: a write is either in this
 * map or in the next one. When it returns, no CPU writes through an older, unprotected entry.
 * pagemap: /proc/self/pagemap. 0, or -1: then some of what was written may be in the map and some
 * lost.
 */
int vm_pagemap_harvest(int pagemap, uint64_t start, uint64_t length, uint64_t *map,
                       struct vm_error *err);

/* How many bytes of [start, start + length) are mapped as hugepages, of whatever kind. 0, or -1. */
int vm_pagemap_huge(int pagemap, uint64_t start, uint64_t length, uint64_t *bytes,
                    struct vm_error *err);

#endif

/*
 * Regions of a block that are there throughout made into transparent hugepages, while the rest
 * still arrives: pages come as fast as small ones do, and the guest ends on large ones.
 *
 * The thread finds them in the received bitmaps, which whoever places pages sets after placing
 * them, and is told by nobody: so it costs the path of a fault nothing. It must never collapse a
 * region with a page missing, since MADV_COLLAPSE may fill a hole with zeros.
 */
#ifndef VM_COLLAPSE_H
#define VM_COLLAPSE_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "incoming.h"

#define VM_COLLAPSE_SHIFT 21 /* log2 of the bytes of a region */

/* Why a region stays in small pages. */
enum vm_collapse_reason {
    VM_COLLAPSE_AGAIN,   /* somebody had one of its pages, at every try */
    VM_COLLAPSE_MEMORY,  /* no free hugepage, and none could be made */
    VM_COLLAPSE_BUSY,    /* a control group gives no memory for it, or a page was missing */
    VM_COLLAPSE_REFUSED, /* the kernel does not do this here */
    VM_COLLAPSE_REASONS
};

struct vm_collapse_block {
    uint32_t block; /* its number in the table of blocks */
    bool anonymous;
    uint64_t regions;                     /* whole ones, from the start of the block */
    uint8_t *state;                       /* a region each, zeros at first; the thread's own */
    uint64_t collapsed;                   /* regions that are hugepages now */
    uint64_t failed[VM_COLLAPSE_REASONS]; /* regions that stay as they are */
    uint64_t took_ns;                     /* in all attempts */
    uint64_t longest_ns; /* the longest of them: what a fault had to wait at worst */
};

struct vm_collapse {
    struct vm_incoming *incoming;
    uint32_t count;
    struct vm_collapse_block *block;
};

/* 0 when every region is a hugepage or given up, or when told to quit; -1 on failure. */
int vm_collapse_loop(struct vm_collapse *c, struct vm_error *err);

#endif

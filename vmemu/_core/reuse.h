/*
 * How pages are used again: for each page of each stream its first and last access and their
 * number, and for each access how long ago the one before was, counted in accesses of its stream.
 *
 * Memory is bounded as in SHARDS (Waldspurger and others, FAST 2015): when there are too many
 * pages, only those are watched whose hash is below a threshold, which is lowered as often as it
 * must be. A page that is watched at the end was watched from its first access on. Until the
 * threshold is lowered for the first time, all figures are exact.
 */
#ifndef VM_REUSE_H
#define VM_REUSE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    VM_REUSE_STREAMS = 4096,
    VM_REUSE_WINDOWS = 7, /* of 10^3, 10^4, ... accesses */
    VM_REUSE_FIRST_WINDOW = 1000,
    VM_REUSE_STEPS = 64,        /* buckets for each doubling */
    VM_REUSE_BUCKETS = 64 * 60, /* see vm_reuse_bucket */
};

struct vm_reuse_entry {
    uint64_t key;         /* stream << 52 | page */
    uint64_t first, last; /* accesses of the stream before it */
    uint64_t count;
};

struct vm_reuse {
    struct vm_reuse_entry *entries;
    uint64_t count, limit;
    uint64_t watched_below;            /* hashes of pages that are watched: all at the beginning */
    double weight;                     /* pages there are for each that is watched */
    double times[VM_REUSE_BUCKETS];    /* weighted number of reuses, by time */
    double covered[VM_REUSE_WINDOWS];  /* weighted sum of min(time, window) */
    uint64_t length[VM_REUSE_STREAMS]; /* accesses */
    uint32_t *index;
    uint64_t mask;
};

/* Watches at most so many pages of streams, 2 * VM_REUSE_STREAMS or more; NULL without memory. */
struct vm_reuse *vm_reuse_create(uint64_t limit);
void vm_reuse_destroy(struct vm_reuse *reuse);

/* The next accesses of a stream, below VM_REUSE_STREAMS. */
void vm_reuse_add(struct vm_reuse *reuse, uint32_t stream, const uint64_t *addresses,
                  uint64_t count);

/*
 * The bucket of a time: up to 2 * VM_REUSE_STEPS each has one of its own, behind them each doubling
 * is cut into VM_REUSE_STEPS of the same width.
 */
uint32_t vm_reuse_bucket(uint64_t time);

#endif

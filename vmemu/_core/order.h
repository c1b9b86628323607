/*
 * The order of a vCPU's accesses: how its lanes are taken in turn, and how a part of them is gone
 * through. It depends on the lanes and on nothing that happens: who replays the first part of it
 * and who goes on at another place of the world agree on what comes next.
 */
#ifndef VM_ORDER_H
#define VM_ORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "access.h"
#include "error.h"
#include "lane.h"

struct vm_vcpu;

/* Some accesses of one lane that follow each other. */
struct vm_slice {
    const void *where;
    const uint8_t *what;
    const uint64_t *times; /* or NULL */
    const uint16_t *sizes;
    uint64_t base;          /* what is added to each where: the lane's first page */
    uint64_t earlier;       /* what is taken off each time: then it is that of the guest */
    uint64_t first, stride; /* without a column of places: see vm_for_each_slice */
    uint32_t count;
    bool wide;
};

static inline uint64_t vm_where_of(const struct vm_slice *s, uint32_t i, bool wide)
{
    return (wide ? ((const uint64_t *)s->where)[i] : ((const uint32_t *)s->where)[i]) + s->base;
}

/* The guest's time at which an access is due, ns from the begin of the trace; 0 without times. */
static inline uint64_t vm_time_of(const struct vm_slice *s, uint32_t i)
{
    return s->times ? s->times[i] - s->earlier : 0;
}

/* The slice without its first accesses. */
static inline struct vm_slice vm_slice_from(struct vm_slice s, uint32_t first)
{
    s.first += first * s.stride;
    s.where = s.where ? (const uint8_t *)s.where + (uint64_t)first * (s.wide ? 8 : 4) : NULL;
    s.what += first;
    s.times = s.times ? s.times + first : NULL;
    s.count -= first;
    return s;
}

/*
 * Hand the accesses [begin, end) of a vCPU's lanes to a function that returns how many it did.
 * Lanes are taken in turn, some thousand accesses of each, as a scheduler would deal a CPU; with
 * the pace of a recording, each access comes at its time. Ends early when v->stop is set. 0, or -1
 * without memory.
 *
 * evenly: accesses that are made, all of one kind, in aligned words and each a stride behind the
 * one before it, come without a column of places: where is NULL, they begin at first.
 */
int vm_for_each_slice(struct vm_vcpu *v, uint64_t begin, uint64_t end, bool evenly,
                      uint32_t (*use)(void *context, const struct vm_slice *s), void *context,
                      struct vm_error *err);

/*
 * List up to count accesses from v->begin on, without touching memory. times: of the guest, 0 where
 * a lane has none. Each array may be NULL. The number listed, or -1 without memory.
 */
int64_t vm_vcpu_list(struct vm_vcpu *v, uint64_t *where, uint8_t *what, uint64_t *times,
                     uint64_t count, struct vm_error *err);

#endif

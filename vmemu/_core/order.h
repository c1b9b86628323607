/* The order of a vCPU's accesses: where they come from, and how a part of them is gone through. */
#ifndef VM_ORDER_H
#define VM_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include "replay.h"

/* Some accesses that follow each other: a part of a stream, or freshly made. */
struct vm_slice {
    const void *where;
    const uint8_t *what;
    uint32_t count;
    bool wide;
};

static inline uint64_t vm_where_of(const struct vm_slice *s, uint32_t i, bool wide)
{
    return wide ? ((const uint64_t *)s->where)[i] : ((const uint32_t *)s->where)[i];
}

/*
 * Hand the accesses [begin, end) of the streams, taken in turn as a scheduler would deal a CPU, or
 * of the generator, to a function that returns how many it did. Ends early when v->stop is set. 0,
 * or -1 without memory.
 */
int vm_for_each_slice(struct vm_vcpu *v, const struct vm_work *work, uint64_t begin, uint64_t end,
                      uint32_t (*use)(void *context, const struct vm_slice *s), void *context,
                      struct vm_error *err);

#endif

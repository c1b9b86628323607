#include "order.h"

#include <errno.h>
#include <stdlib.h>

#include "util.h"

enum { SLICE = 4096 };

/* Where slices come from: the streams in turn, as a scheduler would deal a CPU, or the generator.
 */
struct order {
    struct vm_stream *stream;
    uint32_t streams, turn;
    struct vm_synthetic *synthetic;
    uint64_t where[SLICE];
    uint8_t what[SLICE];
};

static bool next_made(struct order *o, struct vm_slice *slice)
{
    *slice = (struct vm_slice){o->where, o->what, 0, true};
    slice->count = vm_synthetic_fill(o->synthetic, o->where, o->what, SLICE);
    return slice->count > 0;
}

static bool next_slice(struct order *o, struct vm_slice *slice)
{
    if (o->synthetic) {
        return next_made(o, slice);
    }
    for (uint32_t tried = 0; tried < o->streams; tried++) {
        struct vm_stream *s = &o->stream[o->turn++ % o->streams];

        if (s->count > 0) {
            *slice = (struct vm_slice){s->where, s->what, SLICE, s->wide};
            if (s->count < SLICE) {
                slice->count = (uint32_t)s->count;
            }
            s->where = (const uint8_t *)s->where + (uint64_t)slice->count * (s->wide ? 8 : 4);
            s->what += slice->count;
            s->count -= slice->count;
            return true;
        }
    }
    return false;
}

/* Cut away what lies outside [begin, end) when the slice starts at position at. */
static struct vm_slice cut(struct vm_slice s, uint64_t at, uint64_t begin, uint64_t end)
{
    uint64_t low = begin > at ? begin - at : 0, high = end > at ? end - at : 0;

    low = low < s.count ? low : s.count;
    high = high < s.count ? high : s.count;
    s.where = (const uint8_t *)s.where + low * (s.wide ? 8 : 4);
    s.what += low;
    s.count = high > low ? (uint32_t)(high - low) : 0;
    return s;
}

int vm_for_each_slice(struct vm_vcpu *v, const struct vm_work *work, uint64_t begin, uint64_t end,
                      uint32_t (*use)(void *context, const struct vm_slice *s), void *context,
                      struct vm_error *err)
{
    struct order *o = calloc(1, sizeof(*o)); /* too large for a thread's stack to be sure of */
    struct vm_slice slice;
    uint64_t at = 0;

    if (!o) {
        errno = ENOMEM;
        return vm_fail_errno(err, "memory for the accesses of a vCPU", 0);
    }
    o->stream = work->stream;
    o->streams = work->streams;
    o->synthetic = work->synthetic;
    vm_set(&v->position, begin);
    while (at < end && !vm_get(&v->stop) && next_slice(o, &slice)) {
        struct vm_slice part = cut(slice, at, begin, end);

        at += slice.count;
        if (part.count > 0) {
            vm_add(&v->position, use(context, &part));
        }
    }
    free(o);
    return 0;
}

#include "first_touch.h"

#include <errno.h>
#include <stdlib.h>

#include "order.h"

struct touches {
    struct vm_vcpu *vcpu;
    uint64_t *seen; /* a bit a page; of one thread */
    uint64_t *page, *at;
    uint64_t listed, done;
    bool by_time;
};

static uint32_t list_first(void *context, const struct vm_slice *s)
{
    struct touches *t = context;

    for (uint32_t i = 0; i < s->count; i++) {
        uint64_t page = vm_where_of(s, i, s->wide) >> VM_PAGE_SHIFT;
        uint64_t bit = UINT64_C(1) << (page & 63);

        if (!(t->seen[page >> 6] & bit)) {
            t->seen[page >> 6] |= bit;
            t->page[t->listed] = page;
            t->at[t->listed++] = t->by_time ? vm_time_of(s, i) : t->done + i;
        }
    }
    t->done += s->count;
    if (t->listed == t->vcpu->guest->pages) {
        t->vcpu->stop = 1; /* nothing is left to be touched, however long the trace goes on */
    }
    return s->count;
}

int64_t vm_first_touches(struct vm_vcpu *v, uint64_t *page, uint64_t *at, struct vm_error *err)
{
    struct touches t = {
        .vcpu = v,
        .seen = calloc(v->guest->pages / 64 + 1, sizeof(uint64_t)),
        .page = page,
        .at = at,
        .done = v->begin,
        .by_time = v->guest->pace && v->guest->pace->kind == VM_PACE_RECORDED,
    };
    int rc;

    if (!t.seen) {
        errno = ENOMEM;
        return vm_fail_errno(err, "memory for the first touches of a vCPU", 0);
    }
    rc = vm_for_each_slice(v, v->begin, v->end, false, list_first, &t, err);
    free(t.seen);
    return rc < 0 ? -1 : (int64_t)t.listed;
}

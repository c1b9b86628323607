#include "limiter.h"

/* What was not used is not saved for longer than this: a pause must not be followed by a flood. */
enum { BURST_NS = 10 * 1000 * 1000 };

uint64_t vm_limiter_delay(struct vm_limiter *l, uint64_t now_ns)
{
    if (!l->bytes_per_second || l->free_at_ns <= now_ns) {
        return 0;
    }
    l->waits++;
    return l->free_at_ns - now_ns;
}

void vm_limiter_charge(struct vm_limiter *l, uint64_t now_ns, uint64_t bytes)
{
    uint64_t earliest = now_ns > BURST_NS ? now_ns - BURST_NS : 0;

    if (!l->bytes_per_second) {
        return;
    }
    if (l->free_at_ns < earliest) {
        l->free_at_ns = earliest;
    }
    l->free_at_ns += (uint64_t)((unsigned __int128)bytes * 1000000000u / l->bytes_per_second);
}

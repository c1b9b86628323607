#include "push_order.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "source.h"
#include "util.h"

static uint32_t block_at(uint64_t place)
{
    return (uint32_t)(place >> VM_CURSOR_SHIFT);
}

static uint64_t page_at(uint64_t place)
{
    return place & ((UINT64_C(1) << VM_CURSOR_SHIFT) - 1);
}

int vm_push_order_set(struct vm_source *s, uint32_t order, const uint64_t *list, uint64_t count,
                      struct vm_error *err)
{
    for (uint64_t i = 0; i < count; i++) {
        if (block_at(list[i]) >= s->count ||
            page_at(list[i]) >= s->image[block_at(list[i])].pages) {
            errno = EINVAL;
            return vm_fail_errno(err, "a page of the recorded order that no block has", list[i]);
        }
    }
    free(s->recorded);
    s->recorded = count ? malloc(count * sizeof(*list)) : NULL;
    if (count && !s->recorded) {
        errno = ENOMEM;
        return vm_fail_errno(err, "memory for the recorded order", 0);
    }
    if (count) {
        memcpy(s->recorded, list, count * sizeof(*list));
    }
    s->recorded_count = count;
    s->recorded_at = 0;
    s->push_order = order;
    return 0;
}

/* No run is longer; and all that lies side by side, looked at for each of its runs, would cost the
 * square of its pages. */
enum { MOST_SIDE_BY_SIDE = 256 };

/* Of what is listed. Listed pages that lie side by side travel together. */
static bool next_recorded(struct vm_source *s, uint32_t *block, uint64_t *page, uint64_t *end)
{
    for (; s->recorded_at < s->recorded_count; s->recorded_at++) {
        uint64_t place = s->recorded[s->recorded_at], behind = 1;

        if (vm_bit_test(s->image[block_at(place)].sent, page_at(place))) {
            continue;
        }
        while (behind < MOST_SIDE_BY_SIDE && s->recorded_at + behind < s->recorded_count &&
               s->recorded[s->recorded_at + behind] == place + behind) {
            behind++;
        }
        *block = block_at(place);
        *page = page_at(place);
        *end = *page + behind;
        return true;
    }
    return false;
}

/* The first free page at or after the cursor, round all blocks. */
static bool next_at_cursor(struct vm_source *s, uint32_t *block, uint64_t *page, uint64_t *end)
{
    uint64_t cursor = vm_get(&s->cursor);

    for (uint32_t step = 0; step <= s->count; step++) {
        uint32_t at = (block_at(cursor) + step) % s->count;
        const struct vm_image *image = &s->image[at];

        for (uint64_t p = step ? 0 : page_at(cursor); p < image->pages; p++) {
            if (vm_get(&image->sent[p >> 6]) == UINT64_MAX) {
                p |= 63; /* a whole word of sent pages */
            } else if (!vm_bit_test(image->sent, p)) {
                *block = at;
                *page = p;
                *end = image->pages;
                return true;
            }
        }
    }
    return false;
}

bool vm_push_next(struct vm_source *s, uint32_t *block, uint64_t *page, uint64_t *end)
{
    s->cursor_seen = vm_get(&s->cursor);
    return next_recorded(s, block, page, end) || next_at_cursor(s, block, page, end);
}

void vm_push_passed(struct vm_source *s, uint32_t block, uint64_t end)
{
    uint64_t before = s->cursor_seen;

    if (s->recorded_at < s->recorded_count) {
        return; /* what the list has next is looked for from where it stands */
    }
    /* A request that came meanwhile has moved the cursor to where the guest is now: then leave it
     * there. */
    __atomic_compare_exchange_n(&s->cursor, &before, (uint64_t)block << VM_CURSOR_SHIFT | end,
                                false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* What the guest needs next is likely to lie behind what it needed now. */
void vm_push_asked(struct vm_source *s, uint32_t block, uint64_t end)
{
    if (s->push_order == VM_PUSH_AROUND_FAULTS) {
        vm_set(&s->cursor, (uint64_t)block << VM_CURSOR_SHIFT | end);
    }
}

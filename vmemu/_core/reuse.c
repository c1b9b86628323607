#include "reuse.h"

#include <stdlib.h>

#include "access.h"
#include "content.h"

enum { PAGE_BITS = 64 - VM_PAGE_SHIFT, STEP_SHIFT = 6 };

static const uint64_t page_mask = (UINT64_C(1) << PAGE_BITS) - 1;

/* Not the hash that the index is ordered by: pages that are watched would crowd in one part of it.
 */
static uint64_t page_hash(uint64_t page)
{
    return vm_mix(page ^ VM_CONTENT_STEP);
}

static void index_entry(struct vm_reuse *reuse, uint64_t position)
{
    uint64_t at = vm_mix(reuse->entries[position].key) & reuse->mask;

    while (reuse->index[at]) {
        at = (at + 1) & reuse->mask;
    }
    reuse->index[at] = (uint32_t)(position + 1);
}

struct vm_reuse *vm_reuse_create(uint64_t limit)
{
    struct vm_reuse *reuse = calloc(1, sizeof(*reuse));
    uint64_t size = 1;

    if (!reuse) {
        return NULL;
    }
    while (size < 2 * limit) {
        size *= 2;
    }
    reuse->limit = limit;
    reuse->mask = size - 1;
    reuse->weight = 1;
    reuse->watched_below = UINT64_MAX;
    reuse->entries = calloc(limit, sizeof(*reuse->entries));
    reuse->index = calloc(size, sizeof(*reuse->index));
    if (!reuse->entries || !reuse->index) {
        vm_reuse_destroy(reuse);
        return NULL;
    }
    return reuse;
}

void vm_reuse_destroy(struct vm_reuse *reuse)
{
    if (reuse) {
        free(reuse->entries);
        free(reuse->index);
        free(reuse);
    }
}

/* Watches half of the pages only. */
static void halve(struct vm_reuse *reuse)
{
    uint64_t kept = 0;

    reuse->watched_below /= 2;
    reuse->weight *= 2;
    for (uint64_t i = 0; i < reuse->count; i++) {
        if (page_hash(reuse->entries[i].key & page_mask) <= reuse->watched_below) {
            reuse->entries[kept++] = reuse->entries[i];
        }
    }
    reuse->count = kept;
    for (uint64_t i = 0; i <= reuse->mask; i++) {
        reuse->index[i] = 0;
    }
    for (uint64_t i = 0; i < kept; i++) {
        index_entry(reuse, i);
    }
}

/* The entry of a page that is watched, new if need be; NULL for another page. */
static struct vm_reuse_entry *entry_of(struct vm_reuse *reuse, uint64_t key)
{
    uint64_t page = key & page_mask;

    if (page_hash(page) > reuse->watched_below) {
        return NULL;
    }
    for (uint64_t at = vm_mix(key) & reuse->mask; reuse->index[at]; at = (at + 1) & reuse->mask) {
        struct vm_reuse_entry *entry = &reuse->entries[reuse->index[at] - 1];

        if (entry->key == key) {
            return entry;
        }
    }
    while (reuse->count == reuse->limit) {
        halve(reuse);
    }
    if (page_hash(page) > reuse->watched_below) {
        return NULL;
    }
    reuse->entries[reuse->count] = (struct vm_reuse_entry){.key = key};
    index_entry(reuse, reuse->count);
    return &reuse->entries[reuse->count++];
}

uint32_t vm_reuse_bucket(uint64_t time)
{
    unsigned shift;

    if (time < 2 * VM_REUSE_STEPS) {
        return (uint32_t)time;
    }
    shift = 63 - STEP_SHIFT - (unsigned)__builtin_clzll(time);
    return (uint32_t)((shift << STEP_SHIFT) + (time >> shift));
}

static void note_times(struct vm_reuse *reuse, uint64_t time, uint64_t times)
{
    double weight = reuse->weight * (double)times;
    uint64_t window = VM_REUSE_FIRST_WINDOW;

    reuse->times[vm_reuse_bucket(time)] += weight;
    for (int i = 0; i < VM_REUSE_WINDOWS; i++, window *= 10) {
        reuse->covered[i] += weight * (double)(time < window ? time : window);
    }
}

void vm_reuse_add(struct vm_reuse *reuse, uint32_t stream, const uint64_t *addresses,
                  uint64_t count)
{
    uint64_t position = reuse->length[stream];

    for (uint64_t i = 0, next; i < count; i = next) {
        uint64_t page = addresses[i] >> VM_PAGE_SHIFT;
        struct vm_reuse_entry *entry = entry_of(reuse, (uint64_t)stream << PAGE_BITS | page);

        /* Accesses that follow each other are mostly to one page. */
        for (next = i + 1; next < count && addresses[next] >> VM_PAGE_SHIFT == page;) {
            next++;
        }
        if (!entry) {
            continue;
        }
        if (entry->count) {
            note_times(reuse, position + i - entry->last, 1);
        } else {
            entry->first = position + i;
        }
        if (next > i + 1) {
            note_times(reuse, 1, next - i - 1);
        }
        entry->count += next - i;
        entry->last = position + next - 1;
    }
    reuse->length[stream] = position + count;
}

#include "pageset.h"

#include <stdlib.h>

#include "access.h"
#include "content.h"

enum {
    GROUP_SHIFT = 6, /* pages of a group, as a power of two: as many as a word has bits */
    HUGE_SHIFT = 3,  /* groups of 2 MiB */
    NUMBER_BITS = 64 - VM_PAGE_SHIFT - GROUP_SHIFT, /* of a group's number; a stream lies above */
    FIRST_CAPACITY = 1 << 10,
};

struct group {
    uint64_t number; /* page >> GROUP_SHIFT */
    uint64_t touched;
    union {
        uint64_t written; /* until the set is ranked */
        uint64_t rank;    /* of its first page */
    };
};

struct vm_pageset {
    struct group *groups;
    uint32_t *index; /* by hash of the number: position in groups + 1, or 0 */
    uint64_t count, capacity, limit;
    uint64_t mask; /* of the index, which has at least a quarter of its places free */
    uint64_t last; /* position of the group that was found last */
};

static uint64_t index_size(uint64_t capacity)
{
    uint64_t size = 1;

    while (size - size / 4 < capacity) {
        size *= 2;
    }
    return size;
}

static void index_group(struct vm_pageset *set, uint64_t position)
{
    uint64_t at = vm_mix(set->groups[position].number) & set->mask;

    while (set->index[at]) {
        at = (at + 1) & set->mask;
    }
    set->index[at] = (uint32_t)(position + 1);
}

/* A new index over all groups. The old one goes first: both together would be the peak. */
static bool index_all(struct vm_pageset *set)
{
    uint64_t size = index_size(set->capacity);

    free(set->index);
    set->index = calloc(size, sizeof(*set->index));
    if (!set->index) {
        return false;
    }
    set->mask = size - 1;
    for (uint64_t i = 0; i < set->count; i++) {
        index_group(set, i);
    }
    return true;
}

static bool grow(struct vm_pageset *set)
{
    uint64_t capacity = set->capacity ? set->capacity * 2 : FIRST_CAPACITY;
    struct group *groups;

    capacity = capacity < set->limit ? capacity : set->limit;
    groups = realloc(set->groups, capacity * sizeof(*groups));
    if (!groups) {
        return false;
    }
    set->groups = groups;
    set->capacity = capacity;
    return index_all(set);
}

struct vm_pageset *vm_pageset_create(uint64_t limit)
{
    struct vm_pageset *set = calloc(1, sizeof(*set));

    if (!set) {
        return NULL;
    }
    set->limit = limit;
    if (!grow(set)) {
        vm_pageset_destroy(set);
        return NULL;
    }
    return set;
}

void vm_pageset_destroy(struct vm_pageset *set)
{
    if (set) {
        free(set->groups);
        free(set->index);
        free(set);
    }
}

static struct group *find(struct vm_pageset *set, uint64_t number)
{
    if (set->last < set->count && set->groups[set->last].number == number) {
        return &set->groups[set->last];
    }
    for (uint64_t at = vm_mix(number) & set->mask; set->index[at]; at = (at + 1) & set->mask) {
        uint64_t position = set->index[at] - 1;

        if (set->groups[position].number == number) {
            set->last = position;
            return &set->groups[position];
        }
    }
    return NULL;
}

/* NULL over the limit or without memory. */
static struct group *find_or_add(struct vm_pageset *set, uint64_t number)
{
    struct group *group = find(set, number);

    if (group) {
        return group;
    }
    if (set->count == set->capacity && (set->count == set->limit || !grow(set))) {
        return NULL;
    }
    group = &set->groups[set->count];
    *group = (struct group){.number = number};
    index_group(set, set->count);
    set->last = set->count++;
    return group;
}

/* 1 if this is new, the first touch of the page or its first write; 0 if not; -1: no room. */
static int note(struct vm_pageset *set, uint64_t page, uint64_t above, bool write)
{
    struct group *group = find_or_add(set, above | page >> GROUP_SHIFT);
    uint64_t bit = UINT64_C(1) << (page & 63), written = write ? bit : 0;
    bool fresh;

    if (!group) {
        return -1;
    }
    fresh = !(group->touched & bit) || (written & ~group->written);
    group->touched |= bit;
    group->written |= written;
    return fresh;
}

/* What to return when access i found no room. */
static int64_t refused(const struct vm_pageset *set, uint64_t i)
{
    return set->count == set->limit ? (int64_t)i : -1;
}

static bool writes(const struct vm_accesses *accesses, uint64_t i)
{
    return accesses->kinds && (accesses->kinds[i] == VM_STORE || accesses->kinds[i] == VM_MODIFY);
}

static uint64_t last_page(const struct vm_accesses *accesses, uint64_t i)
{
    return (accesses->addresses[i] + (accesses->sizes[i] - 1u)) >> VM_PAGE_SHIFT;
}

int64_t vm_pageset_add(struct vm_pageset *set, const struct vm_accesses *accesses, bool both)
{
    for (uint64_t i = 0; i < accesses->count; i++) {
        uint64_t page = accesses->addresses[i] >> VM_PAGE_SHIFT;
        bool write = writes(accesses, i);

        if (note(set, page, 0, write) < 0) {
            return refused(set, i);
        }
        if (both && last_page(accesses, i) != page && note(set, page + 1, 0, write) < 0) {
            return refused(set, i);
        }
    }
    return (int64_t)accesses->count;
}

int64_t vm_pageset_mark_firsts(struct vm_pageset *set, uint32_t stream,
                               const struct vm_accesses *accesses, uint8_t *keep)
{
    uint64_t above = (uint64_t)stream << NUMBER_BITS;

    for (uint64_t i = 0; i < accesses->count; i++) {
        uint64_t page = accesses->addresses[i] >> VM_PAGE_SHIFT;
        bool write = writes(accesses, i), over = last_page(accesses, i) != page;
        int first = note(set, page, above, write);
        int second = over ? note(set, page + 1, above, write) : 0;

        if (first < 0 || second < 0) {
            return refused(set, i);
        }
        keep[i] = first | second;
    }
    return (int64_t)accesses->count;
}

static void sift_down(struct group *groups, uint64_t at, uint64_t count)
{
    struct group moved = groups[at];
    uint64_t child;

    while ((child = 2 * at + 1) < count) {
        child += child + 1 < count && groups[child].number < groups[child + 1].number;
        if (groups[child].number <= moved.number) {
            break;
        }
        groups[at] = groups[child];
        at = child;
    }
    groups[at] = moved;
}

/* A heap sort: qsort of glibc takes as much memory again as it sorts. */
void vm_pageset_sort(struct vm_pageset *set)
{
    for (uint64_t at = set->count / 2; at-- > 0;) {
        sift_down(set->groups, at, set->count);
    }
    for (uint64_t end = set->count; end > 1; end--) {
        struct group largest = set->groups[0];

        set->groups[0] = set->groups[end - 1];
        set->groups[end - 1] = largest;
        sift_down(set->groups, 0, end - 1);
    }
    for (uint64_t i = 0; i <= set->mask; i++) {
        set->index[i] = 0;
    }
    for (uint64_t i = 0; i < set->count; i++) {
        index_group(set, i);
    }
    set->last = 0;
}

/* Position of the first group whose number is not below. */
static uint64_t lower_bound(const struct vm_pageset *set, uint64_t number)
{
    uint64_t low = 0, high = set->count;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (set->groups[middle].number < number) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void vm_pageset_count(const struct vm_pageset *set, uint64_t first, uint64_t last,
                      struct vm_page_counts *counts)
{
    uint64_t huge = UINT64_MAX;

    *counts = (struct vm_page_counts){.pages = 0};
    for (uint64_t i = lower_bound(set, first >> GROUP_SHIFT); i < set->count; i++) {
        const struct group *group = &set->groups[i];
        uint64_t within = UINT64_MAX, start = group->number << GROUP_SHIFT, touched;

        if (group->number > last >> GROUP_SHIFT) {
            break;
        }
        if (first > start) {
            within &= UINT64_MAX << (first & 63);
        }
        if (last - start < 63) {
            within &= UINT64_MAX >> (63 - (last & 63));
        }
        touched = group->touched & within;
        if (!touched) {
            continue;
        }
        if (!counts->pages) {
            counts->first = start + (uint64_t)__builtin_ctzll(touched);
        }
        counts->last = start + 63 - (uint64_t)__builtin_clzll(touched);
        counts->pages += (uint64_t)__builtin_popcountll(touched);
        counts->written += (uint64_t)__builtin_popcountll(group->written & within);
        counts->huge += group->number >> HUGE_SHIFT != huge;
        huge = group->number >> HUGE_SHIFT;
    }
}

uint64_t vm_pageset_pages(const struct vm_pageset *set, uint64_t *group, uint64_t *pages,
                          uint64_t room)
{
    uint64_t filled = 0;

    for (; *group < set->count && filled + 64 <= room; ++*group) {
        const struct group *next = &set->groups[*group];

        for (uint64_t left = next->touched; left; left &= left - 1) {
            pages[filled++] = next->number << GROUP_SHIFT | (uint64_t)__builtin_ctzll(left);
        }
    }
    return filled;
}

void vm_pageset_rank(struct vm_pageset *set)
{
    uint64_t rank = 0;

    for (uint64_t i = 0; i < set->count; i++) {
        set->groups[i].rank = rank;
        rank += (uint64_t)__builtin_popcountll(set->groups[i].touched);
    }
}

bool vm_pageset_where(struct vm_pageset *set, const uint64_t *addresses, uint64_t count,
                      void *where, bool wide)
{
    uint64_t known = UINT64_MAX, index = 0;

    for (uint64_t i = 0; i < count; i++) {
        uint64_t page = addresses[i] >> VM_PAGE_SHIFT, value;

        if (page != known) {
            const struct group *group = find(set, page >> GROUP_SHIFT);
            uint64_t bit = UINT64_C(1) << (page & 63);

            if (!group || !(group->touched & bit)) {
                return false;
            }
            index = group->rank + (uint64_t)__builtin_popcountll(group->touched & (bit - 1));
            known = page;
        }
        value = index << VM_PAGE_SHIFT | (addresses[i] & (VM_PAGE_SIZE - 1));
        if (wide) {
            ((uint64_t *)where)[i] = value;
        } else {
            ((uint32_t *)where)[i] = (uint32_t)value;
        }
    }
    return true;
}

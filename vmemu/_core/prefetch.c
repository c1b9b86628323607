#include "prefetch.h"

#include <stdbool.h>

#include "util.h"

enum {
    FIRST_WINDOW = 4,
    LARGEST_WINDOW = 128,
    NEAR = 64, /* pages: what lies closer together may belong together */
};

/* Pages ahead that may be on the urgent channel for one vCPU, unless one page is larger. */
#define AHEAD_BYTES (UINT64_C(512) << 10)
/* A page that is larger takes so long that nobody is made to wait for it on a guess. */
#define LARGEST_PAGE (UINT64_C(4) << 20)

static bool all_received(const struct vm_block *block, uint64_t from, int64_t stride,
                         uint64_t count)
{
    for (; count > 0; count--, from += (uint64_t)stride) {
        if (!vm_bit_test(block->received, from)) {
            return false;
        }
    }
    return true;
}

static uint64_t distance(int64_t pages)
{
    return (uint64_t)(pages < 0 ? -pages : pages);
}

/*
 * Whether a fault is the next one of a walk: in its window, where the page is still on its way,
 * behind it, or further on when all between have come in another way.
 */
static bool continues(const struct vm_walk *w, const struct vm_block *block, uint32_t index,
                      uint64_t page)
{
    int64_t moved = (int64_t)(page - w->last);
    uint64_t steps;

    if (!w->used || w->block != index || w->stride == 0 || moved % w->stride != 0 ||
        moved / w->stride <= 0) {
        return false;
    }
    steps = (uint64_t)(moved / w->stride);
    if (steps <= w->window + 1u) {
        return true;
    }
    return steps <= w->window + NEAR &&
           all_received(block, w->last + (uint64_t)w->stride * (w->window + 1u), w->stride,
                        steps - w->window - 1);
}

static bool is_near(const struct vm_walk *w, uint32_t index, uint64_t page)
{
    return w->used && w->block == index && page != w->last &&
           distance((int64_t)(page - w->last)) <= NEAR;
}

/* Two faults close together: where pages between them are missing, the vCPU has left them out. */
static void take_stride(struct vm_walk *w, const struct vm_block *block, uint64_t page)
{
    int64_t moved = (int64_t)(page - w->last), way = moved < 0 ? -1 : 1;
    bool side_by_side = all_received(block, w->last + (uint64_t)way, way, distance(moved) - 1);

    w->stride = side_by_side ? way : moved;
    w->window = side_by_side ? FIRST_WINDOW : 0; /* one step of any length proves nothing */
}

static void go_on(struct vm_walk *w)
{
    w->window = w->window ? w->window * 2 : FIRST_WINDOW;
    w->window = w->window < LARGEST_WINDOW ? w->window : LARGEST_WINDOW;
}

/* Whether the vCPU has come here by two steps of one length. */
static bool is_second_step(const struct vm_walker *v, uint32_t index, uint64_t page)
{
    return v->faults > 1 && v->previous_block == index && v->step != 0 &&
           (int64_t)(page - v->previous) == v->step;
}

/* The walk that a fault belongs to: one that it continues, or else the last one that is near, or
 * else a new one in the place of the one that was not used for longest. */
static struct vm_walk *find_walk(struct vm_walker *v, const struct vm_block *block, uint32_t index,
                                 uint64_t page)
{
    struct vm_walk *near = NULL, *oldest = &v->walk[0];

    for (struct vm_walk *w = v->walk; w < v->walk + VM_WALKS; w++) {
        if (continues(w, block, index, page)) {
            go_on(w);
            return w;
        }
        if (is_near(w, index, page) && (!near || w->used > near->used)) {
            near = w;
        }
        oldest = w->used < oldest->used ? w : oldest;
    }
    if (is_second_step(v, index, page)) {
        *oldest = (struct vm_walk){.block = index, .stride = v->step, .window = FIRST_WINDOW};
        return oldest;
    }
    if (near) {
        take_stride(near, block, page);
        return near;
    }
    *oldest = (struct vm_walk){.block = index};
    return oldest;
}

/* Pages from one on to the end of the block that it walks to. */
static uint64_t room(const struct vm_walk *w, const struct vm_block *block, uint64_t page)
{
    return w->stride > 0 ? (block->pages - 1 - page) / (uint64_t)w->stride
                         : page / distance(w->stride);
}

static uint32_t limited(const struct vm_walk *w, const struct vm_block *block, uint64_t page)
{
    uint64_t ahead = w->window, most = AHEAD_BYTES >> block->page_shift;

    if (ahead == 0 || UINT64_C(1) << block->page_shift > LARGEST_PAGE) {
        return 0;
    }
    most = most ? most : 1;
    ahead = ahead < most ? ahead : most;
    most = room(w, block, page);
    return (uint32_t)(ahead < most ? ahead : most);
}

/* With several fault threads two may read faults of one vCPU at once, when the push has let it go
 * on in between. The second of them does without. */
uint32_t vm_walker_ahead(struct vm_walker *v, const struct vm_block *block, uint32_t index,
                         uint64_t page, int64_t *stride)
{
    struct vm_walk *w;
    uint32_t ahead;

    if (__atomic_exchange_n(&v->busy, 1, __ATOMIC_ACQUIRE)) {
        return 0;
    }
    w = find_walk(v, block, index, page);
    w->used = ++v->faults;
    w->last = page;
    v->step = v->previous_block == index ? (int64_t)(page - v->previous) : 0;
    v->previous = page;
    v->previous_block = index;
    ahead = limited(w, block, page);
    w->window = ahead ? ahead : w->window;
    *stride = w->stride;
    vm_set_release(&v->busy, 0);
    return ahead;
}

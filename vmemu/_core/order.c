#include "order.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "replay.h"
#include "util.h"

enum { SLICE = 4096, LET_GO = 1 << 20 /* accesses at a time */ };

/* How far a lane is. A generator is a copy, so that several may go through the same lanes. */
struct cursor {
    uint64_t at, loop;
    uint64_t let_go;  /* the columns before this access were let go of */
    uint64_t next_ns; /* when its next access is due; UINT64_MAX: it has none (by time only) */
    struct vm_synthetic made;
};

struct order {
    const struct vm_lane *lane;
    uint32_t lanes, turn;
    bool by_time, evenly;
    struct cursor *cursor;
    struct vm_slice rest; /* of a slice that was not used up */
    uint64_t where[SLICE];
    uint8_t what[SLICE];
};

/* ---- lanes in turn ---- */

/* What is even ends where a pass does: so few that others would have their turn earlier. */
static bool even_slice(struct order *o, struct vm_synthetic *made, struct vm_slice *slice)
{
    uint8_t what;

    slice->count =
        o->lanes == 1 ? vm_synthetic_even(made, SLICE, &slice->first, &slice->stride, &what) : 0;
    if (slice->count > 0) {
        slice->where = NULL;
        memset(o->what, what, slice->count);
    }
    return slice->count > 0;
}

static bool made_slice(struct order *o, uint32_t index, struct vm_slice *slice)
{
    const struct vm_lane *lane = &o->lane[index];
    struct vm_synthetic *made = &o->cursor[index].made;

    *slice = (struct vm_slice){.where = o->where,
                               .what = o->what,
                               .sizes = lane->sizes,
                               .base = lane->first_page << VM_PAGE_SHIFT,
                               .wide = true};
    if (o->evenly && even_slice(o, made, slice)) {
        return true;
    }
    slice->count = vm_synthetic_fill(made, o->where, o->what, SLICE);
    return slice->count > 0;
}

/* The pages that a column fills with its values [from, to), but for the last one if it is used
 * further. */
static void let_column_go(const void *column, uint64_t from, uint64_t to, unsigned width)
{
    uintptr_t in_page = (uintptr_t)sysconf(_SC_PAGESIZE) - 1, at = (uintptr_t)column;
    uintptr_t begin = (at + from * width) & ~in_page, end = (at + to * width) & ~in_page;

    if (column && end > begin) {
        madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
}

/*
 * What was looked at of a mapped file counts as memory of this process for as long as it is mapped;
 * a long trace would fill a control group's limit with it. The page cache keeps what it likes, and
 * others who use the same columns find it there.
 */
static void let_go(const struct vm_lane *lane, struct cursor *c)
{
    if (lane->mapped && c->at >= c->let_go + LET_GO) {
        let_column_go(lane->where, c->let_go, c->at, lane->wide ? 8 : 4);
        let_column_go(lane->what, c->let_go, c->at, 1);
        let_column_go(lane->times, c->let_go, c->at, 8);
        c->let_go = c->at;
    }
}

/* Up to most accesses of the columns, none of them beyond the end of a loop. */
static bool column_slice(struct order *o, uint32_t index, uint64_t most, struct vm_slice *slice)
{
    const struct vm_lane *lane = &o->lane[index];
    struct cursor *c = &o->cursor[index];
    uint64_t left = lane->count - c->at;

    if (c->loop == lane->loops || lane->count == 0) {
        return false;
    }
    let_go(lane, c);
    *slice = (struct vm_slice){
        .where = (const uint8_t *)lane->where + c->at * (lane->wide ? 8 : 4),
        .what = lane->what + c->at,
        .times = lane->times ? lane->times + c->at : NULL,
        .sizes = lane->sizes,
        .base = lane->first_page << VM_PAGE_SHIFT,
        .earlier = lane->origin_ns - c->loop * lane->duration_ns,
        .count = (uint32_t)(left < most ? left : most),
        .wide = lane->wide,
    };
    c->at += slice->count;
    if (c->at == lane->count) {
        c->at = c->let_go = 0;
        c->loop++;
    }
    return true;
}

static bool next_in_turn(struct order *o, struct vm_slice *slice)
{
    for (uint32_t tried = 0; tried < o->lanes; tried++) {
        uint32_t index = o->turn;

        o->turn = index + 1 < o->lanes ? index + 1 : 0;
        if (o->lane[index].synthetic ? made_slice(o, index, slice)
                                     : column_slice(o, index, SLICE, slice)) {
            return true;
        }
    }
    return false;
}

/* ---- lanes by time: a merge of what ascends, the first lane first when two are due at once ----
 */

/* When access number i of all loops is due. */
static uint64_t due_ns(const struct vm_lane *lane, uint64_t i)
{
    uint64_t recorded = lane->times ? lane->times[i % lane->count] - lane->origin_ns : 0;

    return recorded + i / lane->count * lane->duration_ns;
}

/* How many accesses of a lane, among its first end ones from begin on, come before that time, or at
 * it. */
static uint64_t count_until(const struct vm_lane *lane, uint64_t begin, uint64_t end,
                            uint64_t time_ns, bool inclusive)
{
    uint64_t low = begin;

    while (low < end) {
        uint64_t middle = low + (end - low) / 2, due = due_ns(lane, middle);

        if (due < time_ns || (inclusive && due == time_ns)) {
            low = middle + 1;
        } else {
            end = middle;
        }
    }
    return low - begin;
}

/* How many accesses of a lane, the one at begin included, come before that time, or at it; at most
 * most. Quick where they are few, as they are when lanes alternate. */
static uint64_t count_run(const struct vm_lane *lane, uint64_t begin, uint64_t most,
                          uint64_t time_ns, bool inclusive)
{
    uint64_t passed = 1, reach = 2;

    while (reach <= most &&
           count_until(lane, begin + reach - 1, begin + reach, time_ns, inclusive)) {
        passed = reach;
        reach *= 2;
    }
    reach = reach < most ? reach : most;
    return passed + count_until(lane, begin + passed, begin + reach, time_ns, inclusive);
}

static uint64_t total_of(const struct vm_lane *lane)
{
    return lane->count * lane->loops;
}

static void set_cursor(struct order *o, uint32_t index, uint64_t done)
{
    const struct vm_lane *lane = &o->lane[index];
    struct cursor *c = &o->cursor[index];
    bool over = done == total_of(lane);

    c->at = over ? 0 : done % lane->count;
    c->loop = over ? lane->loops : done / lane->count;
    c->next_ns = over ? UINT64_MAX : due_ns(lane, done);
}

static bool next_by_time(struct order *o, struct vm_slice *slice)
{
    uint32_t first = 0, second = 0;
    uint64_t first_ns = UINT64_MAX, second_ns = UINT64_MAX, done, left;

    for (uint32_t i = 0; i < o->lanes; i++) {
        uint64_t next_ns = o->cursor[i].next_ns;

        if (next_ns < first_ns) {
            second = first;
            second_ns = first_ns;
            first = i;
            first_ns = next_ns;
        } else if (next_ns < second_ns) {
            second = i;
            second_ns = next_ns;
        }
    }
    if (first_ns == UINT64_MAX) {
        return false;
    }
    done = o->cursor[first].loop * o->lane[first].count + o->cursor[first].at;
    left = total_of(&o->lane[first]) - done;
    left = left < SLICE ? left : SLICE;
    column_slice(o, first, count_run(&o->lane[first], done, left, second_ns, first < second),
                 slice);
    set_cursor(o, first, done + slice->count);
    return true;
}

/* How many accesses of all lanes are due before that time, or at it. */
static uint64_t count_all(const struct order *o, uint64_t time_ns, bool inclusive)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < o->lanes; i++) {
        count += count_until(&o->lane[i], 0, total_of(&o->lane[i]), time_ns, inclusive);
    }
    return count;
}

/*
 * Stand where the merge stands after that many accesses, without going through them: a guest that
 * comes to the destination late in a long trace must not be kept waiting for it.
 */
static void seek_by_time(struct order *o, uint64_t position)
{
    uint64_t low = 0, high = UINT64_MAX - 1, rest;

    while (low < high) { /* the time at which the access at that position is due */
        uint64_t middle = low + (high - low) / 2;

        if (count_all(o, middle, true) > position) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    rest = position - count_all(o, low, false);
    for (uint32_t i = 0; i < o->lanes; i++) {
        uint64_t total = total_of(&o->lane[i]);
        uint64_t before = count_until(&o->lane[i], 0, total, low, false);
        uint64_t at_once = count_until(&o->lane[i], before, total, low, true);
        uint64_t taken = rest < at_once ? rest : at_once;

        set_cursor(o, i, before + taken);
        rest -= taken;
    }
}

/* ---- both ---- */

static bool next_slice(struct order *o, uint64_t most, struct vm_slice *slice)
{
    bool found = o->rest.count > 0;

    if (found) {
        *slice = o->rest;
    } else {
        found = o->by_time ? next_by_time(o, slice) : next_in_turn(o, slice);
    }
    o->rest.count = 0;
    if (found && slice->count > most) {
        o->rest = vm_slice_from(*slice, (uint32_t)most);
        slice->count = (uint32_t)most;
    }
    return found;
}

static void seek(struct order *o, uint64_t position, const uint32_t *stop)
{
    struct vm_slice passed;

    if (o->by_time) {
        seek_by_time(o, position);
        return;
    }
    while (position > 0 && !vm_get(stop) && next_slice(o, position, &passed)) {
        position -= passed.count;
    }
}

static void destroy(struct order *o)
{
    if (!o) {
        return;
    }
    for (uint32_t i = 0; o->cursor && i < o->lanes; i++) {
        vm_synthetic_release(&o->cursor[i].made);
    }
    free(o->cursor);
    free(o);
}

static bool copy_generators(struct order *o)
{
    for (uint32_t i = 0; i < o->lanes; i++) {
        const struct vm_synthetic *made = o->lane[i].synthetic;

        if (made && !vm_synthetic_copy(&o->cursor[i].made, made)) {
            return false;
        }
    }
    return true;
}

static struct order *create(const struct vm_vcpu *v, bool evenly, struct vm_error *err)
{
    struct order *o = calloc(1, sizeof(*o)); /* too large for a thread's stack to be sure of */

    if (o) {
        o->lane = v->lane;
        o->lanes = v->lanes;
        o->evenly = evenly;
        o->by_time = v->guest->pace && v->guest->pace->kind == VM_PACE_RECORDED;
        o->cursor = calloc(v->lanes + 1, sizeof(*o->cursor));
    }
    if (!o || !o->cursor || !copy_generators(o)) {
        destroy(o);
        errno = ENOMEM;
        vm_fail_errno(err, "memory for the accesses of a vCPU", 0);
        return NULL;
    }
    return o;
}

int vm_for_each_slice(struct vm_vcpu *v, uint64_t begin, uint64_t end, bool evenly,
                      uint32_t (*use)(void *context, const struct vm_slice *s), void *context,
                      struct vm_error *err)
{
    struct order *o = create(v, evenly, err);
    struct vm_slice slice;

    if (!o) {
        return -1;
    }
    vm_set(&v->position, begin);
    seek(o, begin, &v->stop);
    vm_set(&v->started_ns, vm_now_ns());
    for (uint64_t at = begin; at < end && !vm_get(&v->stop) && next_slice(o, end - at, &slice);
         at += slice.count) {
        vm_add(&v->position, use(context, &slice));
    }
    destroy(o);
    return 0;
}

struct list {
    uint64_t *where, *times;
    uint8_t *what;
    uint64_t listed;
};

static uint32_t list_slice(void *context, const struct vm_slice *s)
{
    struct list *l = context;

    for (uint32_t i = 0; i < s->count; i++, l->listed++) {
        if (l->where) {
            l->where[l->listed] = vm_where_of(s, i, s->wide);
        }
        if (l->what) {
            l->what[l->listed] = s->what[i];
        }
        if (l->times) {
            l->times[l->listed] = vm_time_of(s, i);
        }
    }
    return s->count;
}

int64_t vm_vcpu_list(struct vm_vcpu *v, uint64_t *where, uint8_t *what, uint64_t *times,
                     uint64_t count, struct vm_error *err)
{
    struct list l = {where, times, what, 0};

    if (vm_for_each_slice(v, v->begin, v->begin + count, false, list_slice, &l, err) < 0) {
        return -1;
    }
    return (int64_t)l.listed;
}

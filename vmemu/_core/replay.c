#include "replay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "access.h"
#include "order.h"
#include "pace.h"
#include "piece.h"
#include "plain.h"
#include "util.h"

enum {
    AHEAD = 48,    /* accesses between asking for a line and its use */
    TOGETHER = 16, /* accesses from one that is not plain on, */
    MANY = 128,    /* and where there are several such */
};

struct replay {
    struct vm_vcpu *v;
    const struct vm_guest *guest;
    uint64_t *host;      /* this vCPU's own: the tag of the first touch goes away */
    uint64_t kinds[4];   /* accesses of each kind that were made and are not counted yet */
    uint64_t dropped[4]; /* accesses of each kind in this slice that lie outside, or in part */
    bool waited;         /* the last access that was made has waited for its page */
    struct vm_pacer pacer;
};

/* ---- accesses ---- */

static VM_ALWAYS_INLINE void read_expected(struct vm_vcpu *v, const struct vm_piece *p)
{
    uint64_t at = (uint64_t)(uintptr_t)&v->guest->expected[p->where];
    uint64_t expected = vm_load_sized(at, p->size), found;

    __atomic_thread_fence(__ATOMIC_ACQUIRE); /* see vm_mark_written */
    found = vm_load_sized(p->host, p->size);
    if (VM_UNLIKELY(found != expected)) {
        vm_judge_unexpected(v, p, expected, found);
    }
}

static VM_ALWAYS_INLINE void read_marked(struct vm_vcpu *v, const struct vm_piece *p, unsigned tags)
{
    const struct vm_guest *g = v->guest;
    uint64_t found, expected;
    uint8_t mark, bits = vm_piece_marks(p);

    /* The mark is read before the value, and set after it is written: a marked byte must have its
     * new value. */
    mark = vm_get_acquire(&g->marks[p->where >> 3]) & bits;
    found = vm_load_sized(p->host, p->size) << (p->where % 8 * 8);
    if (VM_LIKELY((mark == 0 || mark == bits) && !(tags & VM_REF_FILE))) {
        /* Without a branch: whether a word was written before is as good as random. */
        expected = tags & VM_REF_ZERO ? 0 : vm_seeded_word(g, p);
        expected = mark ? vm_written_word(g, p) : expected;
    } else {
        expected = vm_mixed_word(g, p, mark);
    }
    if (VM_UNLIKELY((found ^ expected) & vm_piece_mask(p))) {
        vm_judge_read(v, p, mark, found);
    }
}

/* How a read is checked. */
enum check { NOT, BY_MARKS, BY_IMAGE };

static enum check check_of(const struct vm_guest *g)
{
    return !g->check_reads ? NOT : g->expected ? BY_IMAGE : BY_MARKS;
}

static VM_ALWAYS_INLINE void access_piece(struct vm_vcpu *v, const struct vm_piece *p,
                                          unsigned tags, unsigned kind, enum check check)
{
    if (kind != VM_STORE) {
        switch (check) {
        case BY_IMAGE:
            read_expected(v, p);
            break;
        case BY_MARKS:
            read_marked(v, p, tags);
            break;
        default:
            vm_load_sized(p->host, p->size);
        }
    }
    if (kind == VM_STORE || kind == VM_MODIFY) {
        vm_write_piece(v->guest, p, vm_written_value(v->guest, p));
    }
}

/* An access that lies in one page of the dictionary. */
static void access_page(struct vm_vcpu *v, uint64_t host, uint64_t where, unsigned size,
                        unsigned kind)
{
    enum check check = check_of(v->guest);
    struct vm_piece p = {
        .host = (host & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE,
        .where = where,
    };

    while (size > 0) {
        unsigned room = 8 - (unsigned)(p.where % 8);

        p.size = size < room ? size : room;
        access_piece(v, &p, host & VM_REF_TAGS, kind, check);
        p.host += p.size;
        p.where += p.size;
        size -= p.size;
    }
}

/* With the very times of the record, so that blocktime made from either is the same. */
static void log_fault(const struct vm_vcpu *v, const struct vm_fault_record *fault)
{
    uint64_t page = fault->offset >> v->guest->ram->block[fault->block].page_shift
                                         << v->guest->ram->block[fault->block].page_shift;
    uint64_t cpu = vm_event_cpu((int32_t)v->id, false);

    vm_event_at(v->log, fault->start_ns, VM_EVENT_BLOCKTIME_BEGIN, fault->block, page, cpu);
    vm_event_at(v->log, fault->end_ns, VM_EVENT_BLOCKTIME_END, fault->block, page, cpu);
}

static void record_fault(struct vm_vcpu *v, struct vm_fault_record fault)
{
    vm_count(&v->faults, 1);
    vm_count(&v->blocktime_ns, fault.end_ns - fault.start_ns);
    if (v->records == v->record_capacity) {
        uint64_t capacity = v->record_capacity ? 2 * v->record_capacity : 1024;
        void *grown = realloc(v->record, capacity * sizeof(*v->record));

        if (!grown) {
            return; /* counted, but without its times: records < faults says so */
        }
        v->record = grown;
        v->record_capacity = capacity;
    }
    v->record[v->records++] = fault;
    log_fault(v, &fault);
}

/*
 * This vCPU's first touch of a page. Only such a touch can fault, so only it is timed; it was a
 * fault if the fault thread has read one of this thread meanwhile, else the page came between the
 * look and the touch.
 */
static void touch_first(struct replay *r, uint64_t where, unsigned size, unsigned kind)
{
    struct vm_vcpu *v = r->v;
    uint64_t *page = &r->host[where >> VM_PAGE_SHIFT],
             host = (*page & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE, seen = vm_get(v->seen);
    struct vm_fault_record fault = {.write = kind == VM_STORE || kind == VM_MODIFY};
    const struct vm_block *block;

    fault.block = vm_block_of(v->guest, host, &fault.offset);
    block = &v->guest->ram->block[fault.block];
    if (vm_bit_test(block->received, fault.offset >> block->page_shift)) {
        access_page(v, *page, where, size, kind);
    } else {
        fault.start_ns = vm_now_ns();
        /* A release store orders only what is before it: the last wait is cleared first. */
        __atomic_thread_fence(__ATOMIC_RELEASE);
        vm_set(&v->waiting->block, fault.block);
        vm_set(&v->waiting->offset, fault.offset);
        vm_set_release(&v->waiting->since_ns, fault.start_ns);
        access_page(v, *page, where, size, kind);
        fault.end_ns = vm_now_ns();
        vm_set_release(&v->waiting->since_ns, 0);
        r->waited = true; /* time has passed: what is due is to be looked at anew */
        if (vm_get(v->seen) != seen) {
            record_fault(v, fault);
        }
    }
    *page &= ~(uint64_t)(VM_REF_FIRST | VM_REF_SPECIAL);
}

/* A part of an access that lies in one page of the dictionary, whatever the page; false: outside.
 */
static bool access_tagged(struct replay *r, uint64_t where, unsigned size, unsigned kind)
{
    uint64_t host = r->host[where >> VM_PAGE_SHIFT];

    if (host & VM_REF_OUTSIDE) {
        return false;
    }
    if (host & VM_REF_ALIAS) {
        where = vm_alias_of(host, where);
        host = r->host[where >> VM_PAGE_SHIFT];
    }
    if (host & VM_REF_FIRST) {
        touch_first(r, where, size, kind);
    } else {
        access_page(r->v, host, where, size, kind);
    }
    return true;
}

/* An access whose rest lies on the next page of the address space, which is the next one of the
 * dictionary. What lies inside is touched also when the rest does not; false: not all does. */
static bool access_straddling(struct replay *r, uint64_t where, unsigned size, unsigned kind)
{
    unsigned here = VM_PAGE_SIZE - (unsigned)(where % VM_PAGE_SIZE);
    bool inside = access_tagged(r, where, here, kind);

    for (size -= here; size > 0; size -= here) {
        where = (where | (VM_PAGE_SIZE - 1)) + 1;
        here = size < VM_PAGE_SIZE ? size : VM_PAGE_SIZE;
        inside &= access_tagged(r, where, here, kind);
    }
    return inside;
}

/* An access that is not of one word of a page that was touched before. */
static void access_any(struct replay *r, uint64_t where, unsigned size, unsigned kind)
{
    if (where % VM_PAGE_SIZE + size > VM_PAGE_SIZE) {
        r->dropped[kind] += !access_straddling(r, where, size, kind);
    } else {
        r->dropped[kind] += !access_tagged(r, where, size, kind);
    }
}

static void count_made(struct replay *r)
{
    uint64_t *kinds = r->kinds, reads;

    for (unsigned kind = 0; kind < 4; kind++) {
        kinds[kind] -= r->dropped[kind];
        vm_count(&r->v->dropped, r->dropped[kind]);
        vm_count(&r->v->accesses, kinds[kind]);
    }
    reads = kinds[VM_LOAD] + kinds[VM_MODIFY] + kinds[VM_FETCH];
    vm_count(&r->v->writes, kinds[VM_STORE] + kinds[VM_MODIFY]);
    vm_count(&r->v->reads, reads);
    vm_count(&r->v->reads_checked, r->guest->check_reads ? reads : 0);
    memset(r->kinds, 0, sizeof(r->kinds));
    memset(r->dropped, 0, sizeof(r->dropped));
}

/*
 * An access says nothing of where the next one lies, but a trace does. A CPU that waits for one
 * that its caches miss has no room for all the instructions until the next miss, so each line is
 * asked for some accesses before. Nothing is touched by that: a page that is missing stays so, and
 * what is no address, of a page that lies nowhere, is passed over.
 */
static VM_ALWAYS_INLINE void look_ahead(const uint64_t *hosts, const struct vm_guest *g,
                                        uint64_t where)
{
    uint64_t host = hosts[where >> VM_PAGE_SHIFT] & ~(uint64_t)VM_REF_TAGS;

    __builtin_prefetch((const void *)(uintptr_t)(host + where % VM_PAGE_SIZE));
    __builtin_prefetch(&g->key[where >> VM_PAGE_SHIFT]);
    if (g->expected) {
        __builtin_prefetch(&g->expected[where]);
    } else if (g->marks) {
        __builtin_prefetch(&g->marks[where >> 3]);
    }
}

/*
 * Accesses [i, end) of the slice, whatever they are: the first one that was not made, as the one
 * before it may have stopped. Only an access that may stop is followed by a look at whether it
 * waited and at v->stop: the others of a slice take some microseconds together.
 */
static VM_ALWAYS_INLINE uint32_t replay_as(struct replay *r, const struct vm_slice *s, uint32_t i,
                                           uint32_t end, bool wide, enum check check)
{
    const uint16_t *sizes = s->sizes;
    const uint8_t *what = s->what;
    const uint64_t *hosts = r->host;
    const struct vm_guest g = *r->guest;

    for (; i < end; i++) {
        uint64_t where = vm_where_of(s, i, wide);
        uint64_t host = hosts[where >> VM_PAGE_SHIFT];
        unsigned size = sizes[what[i] >> 2], kind = what[i] & 3;

        if (VM_LIKELY(i + AHEAD < s->count)) {
            look_ahead(hosts, &g, vm_where_of(s, i + AHEAD, wide));
        }
        if (VM_UNLIKELY((host & VM_REF_SPECIAL) || where % 8 + size > 8)) {
            access_any(r, where, size, kind);
            if (r->waited || vm_get(&r->v->stop)) {
                return i + 1;
            }
        } else {
            struct vm_piece p = {
                .host = (host & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE,
                .where = where,
                .size = size,
            };

            access_piece(r->v, &p, host & VM_REF_TAGS, kind, check);
        }
    }
    return end;
}

static uint32_t replay_any(struct replay *r, const struct vm_slice *s, uint32_t i, uint32_t end)
{
    switch (check_of(r->guest)) {
    case BY_IMAGE:
        return s->wide ? replay_as(r, s, i, end, true, BY_IMAGE)
                       : replay_as(r, s, i, end, false, BY_IMAGE);
    case BY_MARKS:
        return s->wide ? replay_as(r, s, i, end, true, BY_MARKS)
                       : replay_as(r, s, i, end, false, BY_MARKS);
    default:
        return s->wide ? replay_as(r, s, i, end, true, NOT) : replay_as(r, s, i, end, false, NOT);
    }
}

/* What lies evenly apart, to the same end: page by page, but for those that are not plain. */
static uint32_t replay_evenly(struct replay *r, const struct vm_slice *s)
{
    unsigned kind = s->what[0] & 3, size = s->sizes[s->what[0] >> 2];
    uint32_t done = 0;

    while (done < s->count && !r->waited && (done == 0 || !vm_get(&r->v->stop))) {
        struct vm_slice rest = vm_slice_from(*s, done);

        done += vm_replay_evenly(r->v, r->host, &rest, r->kinds);
        if (done < s->count) {
            access_any(r, s->first + done * s->stride + s->base, size, kind);
            r->kinds[kind]++;
            done++;
        }
    }
    count_made(r);
    return done;
}

/*
 * Up to the end of the slice, or an access that waited for its page, or a stop: how many were done.
 * What is not plain is seldom alone, so it is not looked at again for some accesses.
 */
static uint32_t replay_part(struct replay *r, const struct vm_slice *s)
{
    uint32_t done = 0, plain, end;

    r->waited = false;
    if (!s->where) {
        return replay_evenly(r, s);
    }
    do {
        struct vm_slice rest = vm_slice_from(*s, done);

        plain = done + vm_replay_plain(r->v, r->host, &rest, r->kinds);
        end = plain + (plain - done < TOGETHER ? MANY : TOGETHER);
        end = end < s->count ? end : s->count;
        done = replay_any(r, s, plain, end);
        vm_count_kinds(s->what + plain, done - plain, r->kinds);
    } while (done < s->count && done == end && !r->waited);
    count_made(r);
    return done;
}

static uint32_t replay_slice(void *context, const struct vm_slice *s)
{
    struct replay *r = context;
    uint32_t done = 0;

    while (done < s->count && !vm_get(&r->v->stop)) {
        struct vm_slice part = vm_slice_from(*s, done);

        done += replay_part(r, &part);
    }
    return done;
}

static uint32_t replay_paced(void *context, const struct vm_slice *s)
{
    struct replay *r = context;
    uint64_t begin = vm_get(&r->v->position);
    uint32_t done = 0;

    /* Not before there is something to do: to go where the vCPU begins in accesses that are made
     * from a seed takes time, in which nothing would be done that is due. */
    if (!r->pacer.v) {
        vm_pacer_start(&r->pacer, r->v, r->guest->pace);
    }
    while (done < s->count) {
        struct vm_slice part = vm_slice_from(*s, done);
        uint32_t now_done;

        part.count = vm_pacer_wait(&r->pacer, &part, begin + done);
        now_done = replay_part(r, &part);
        if (now_done == 0) {
            break; /* stopped */
        }
        vm_pacer_note(&r->pacer, &part, begin + done, now_done, r->waited);
        done += now_done;
    }
    return done;
}

/* Of what a page is made matters only to who checks reads without an image. */
static uint64_t *own_table(const struct vm_guest *g)
{
    uint64_t unused = check_of(g) == BY_MARKS ? 0 : VM_REF_ZERO | VM_REF_FILE;
    uint64_t *host = malloc(g->pages * sizeof(*host));

    for (uint64_t i = 0; host && i < g->pages; i++) {
        host[i] = (g->host[i] & ~unused) | VM_REF_SPECIAL; /* none is touched yet */
    }
    return host;
}

int vm_vcpu_run(struct vm_vcpu *v, struct vm_error *err)
{
    const struct vm_guest *g = v->guest;
    struct replay r = {.v = v, .guest = g};
    int rc;

    r.host = own_table(g);
    if (!r.host) {
        errno = ENOMEM;
        return vm_fail_errno(err, "memory for the page table of a vCPU", 0);
    }
    v->thread = (uint32_t)syscall(SYS_gettid);
    vm_set(&v->waiting->tid, v->thread);
    vm_set_release(v->tid, v->thread);
    if (v->delivery) {
        vm_delivery_enter(v->delivery);
    }
    rc = vm_for_each_slice(v, v->begin, v->end, check_of(g) != BY_MARKS,
                           g->pace ? replay_paced : replay_slice, &r, err);
    if (v->delivery) {
        vm_delivery_leave();
    }
    vm_set_release(v->tid, 0);
    vm_set(&v->waiting->tid, 0); /* the kernel may give it to another thread */
    free(r.host);
    return rc;
}

void vm_vcpu_release(struct vm_vcpu *v)
{
    free(v->record);
    v->record = NULL;
    v->records = v->record_capacity = 0;
}

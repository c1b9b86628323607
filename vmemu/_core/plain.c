#include "plain.h"

#include "access.h"
#include "content.h"
#include "piece.h"
#include "util.h"

/*
 * A guest of NEAR pages lies in a CPU's caches; of a larger one lines are asked for AHEAD accesses
 * before their use, as only so many are on their way at once.
 */
enum { NEAR = 1024, AHEAD = 32 };

/* What an access does besides. Each has loops of its own, in which nothing is decided. */
enum mode {
    BARE,    /* nothing */
    NOTED,   /* what is written is marked, or noted as dirty, or both */
    CHECKED, /* the same, and what is read is compared with what is expected */
};

/* A slice. What is kept of pages begins where its dictionary does. */
struct columns {
    const struct vm_guest *guest;
    const void *where;
    const uint8_t *what;
    const uint64_t *host;
    const struct vm_page_key *key;
    const uint8_t *marks, *expected;
    uint64_t *written; /* of the guest: from its first page on */
    uint64_t base;     /* of the slice */
    uint32_t count;
};

static VM_ALWAYS_INLINE uint64_t place(const void *where, uint64_t i, bool wide)
{
    return wide ? ((const uint64_t *)where)[i] : ((const uint32_t *)where)[i];
}

/* ---- their number ---- */

/* Away from the accesses: the loops have no counters to carry. A byte counts what a vector register
 * holds many of. */
void vm_count_kinds(const uint8_t *what, uint32_t count, uint64_t kinds[4])
{
    for (uint32_t i = 0; i < count;) {
        uint32_t begin = i, end = count - i > UINT8_MAX ? i + UINT8_MAX : count, all = end - i;
        uint8_t odd = 0, fetches = 0, modifies = 0, seen = 0;

        for (; i < end; i++) {
            odd += what[i] & 1;
            seen |= what[i];
        }
        for (i = begin; seen & 2 && i < end; i++) {
            fetches += (what[i] & 3) == VM_FETCH;
            modifies += (what[i] & 3) == VM_MODIFY;
        }
        i = end;
        kinds[VM_LOAD] += all - odd - modifies;
        kinds[VM_STORE] += odd - fetches;
        kinds[VM_MODIFY] += modifies;
        kinds[VM_FETCH] += fetches;
    }
}

/* ---- one access ---- */

static VM_ALWAYS_INLINE struct vm_piece piece_of(const struct columns *c, uint64_t where,
                                                 uint64_t host, unsigned size)
{
    return (struct vm_piece){.host = host, .where = where + c->base, .size = size};
}

static void judge(struct vm_vcpu *v, const struct columns *c, uint64_t where, uint64_t host,
                  unsigned size, uint64_t expected, uint64_t found)
{
    struct vm_piece p = piece_of(c, where, host, size);

    vm_judge_unexpected(v, &p, expected, found);
}

static void note(const struct columns *c, uint64_t where, unsigned size, uint64_t value)
{
    struct vm_piece p = piece_of(c, where, 0, size);

    vm_mark_written(c->guest, &p, value);
}

static VM_ALWAYS_INLINE uint64_t load_expected(const struct columns *c, uint64_t where,
                                               unsigned size)
{
    return vm_load_sized((uint64_t)(uintptr_t)(c->expected + where), size);
}

static VM_ALWAYS_INLINE void read_plain(struct vm_vcpu *v, const struct columns *c, uint64_t where,
                                        uint64_t host, unsigned size, enum mode mode)
{
    uint64_t expected, found;

    if (mode != CHECKED) {
        vm_load_sized(host, size);
        return;
    }
    expected = load_expected(c, where, size);
    __atomic_thread_fence(__ATOMIC_ACQUIRE); /* see vm_mark_written */
    found = vm_load_sized(host, size);
    if (VM_UNLIKELY(found != expected)) {
        judge(v, c, where, host, size, expected, found);
    }
}

static VM_ALWAYS_INLINE bool is_noted(const struct columns *c, uint64_t where, unsigned size,
                                      enum mode mode)
{
    /* In aligned words: the compiler knows no more of them. */
    uint8_t bits = (uint8_t)(size == 8 ? 0xFF : ((1u << size) - 1) << where % 8);

    return (mode == NOTED && !c->marks) || vm_is_marked(c->marks, where, bits);
}

static VM_ALWAYS_INLINE void write_plain(const struct columns *c, uint64_t where, uint64_t host,
                                         unsigned size, enum mode mode)
{
    uint64_t in_page = where % VM_PAGE_SIZE;
    uint64_t value = c->key[where >> VM_PAGE_SHIFT].written + in_page / 8 * VM_CONTENT_STEP;

    value = size == 8 ? value : value >> where % 8 * 8;
    vm_store_sized(host, size, value);
    if (mode == BARE) {
        return;
    }
    if (VM_UNLIKELY(!is_noted(c, where, size, mode))) {
        note(c, where, size, value);
    }
    if (VM_UNLIKELY(c->written != NULL)) {
        vm_note_written(c->written, (where + c->base) >> VM_PAGE_SHIFT);
    }
}

/* ---- many ---- */

/* Whether an access is not plain by the tag of its page, or since it is not aligned. address: with
 * the tag. */
static VM_ALWAYS_INLINE bool is_special(uint64_t address, uint64_t tag, unsigned size)
{
    return size == 1 ? tag & VM_REF_SPECIAL : address & (size - 1);
}

/*
 * From access i up to the first one that is not plain, or of another size: which that is. load:
 * what a load of their size is; simple: all are to be loads or stores. Each is looked at when it
 * is made: to look at many before takes longer, as the columns come from memory.
 */
static VM_ALWAYS_INLINE uint32_t make(struct vm_vcpu *v, const struct columns *columns, uint64_t i,
                                      unsigned load, unsigned size, bool wide, enum mode mode,
                                      bool simple, bool far)
{
    const struct columns c = *columns; /* what is stored in the guest does not change it */

#pragma GCC unroll 4
    for (; i < c.count; i++) {
        uint64_t where = place(c.where, i, wide);
        uint64_t page = c.host[where >> VM_PAGE_SHIFT], host = page | where % VM_PAGE_SIZE;
        unsigned kind = c.what[i] ^ load;

        if (far && i + AHEAD < c.count) {
            uint64_t next = place(c.where, i + AHEAD, wide);

            __builtin_prefetch(
                (const void *)(uintptr_t)(c.host[next >> VM_PAGE_SHIFT] + next % VM_PAGE_SIZE));
            if (mode == CHECKED) {
                __builtin_prefetch(&c.expected[next]);
            }
        }
        if (VM_UNLIKELY(is_special(host, page, size))) {
            break;
        }
        if (kind == VM_LOAD) {
            read_plain(v, &c, where, host, size, mode);
        } else if (kind == VM_STORE) {
            write_plain(&c, where, host, size, mode);
        } else if (simple || kind > VM_FETCH) {
            break;
        } else {
            read_plain(v, &c, where, host, size, mode);
            if (kind == VM_MODIFY) {
                write_plain(&c, where, host, size, mode);
            }
        }
    }
    return (uint32_t)i;
}

static VM_ALWAYS_INLINE uint32_t make_in(struct vm_vcpu *v, const struct columns *c, unsigned load,
                                         unsigned size, bool wide, enum mode mode)
{
    bool far = v->guest->pages > NEAR;
    uint32_t done = far ? make(v, c, 0, load, size, wide, mode, true, true)
                        : make(v, c, 0, load, size, wide, mode, true, false);

    if (done < c->count && (c->what[done] & 3) > VM_STORE) {
        done = far ? make(v, c, done, load, size, wide, mode, false, true)
                   : make(v, c, done, load, size, wide, mode, false, false);
    }
    return done;
}

/*
 * Those of a slice that lie evenly apart, page by page. The same place of the next page is asked
 * for meanwhile: a CPU that fetches what comes next by itself does so within a page.
 */
static VM_ALWAYS_INLINE uint32_t make_evenly(struct vm_vcpu *v, const struct columns *columns,
                                             const struct vm_slice *s, unsigned size,
                                             enum mode mode, bool store)
{
    const struct columns c = *columns;
    uint64_t where = s->first, stride = s->stride, end = where + s->count * stride;

    while (where < end) {
        uint64_t begin = where & ~(uint64_t)(VM_PAGE_SIZE - 1), page_end = begin + VM_PAGE_SIZE;
        const uint64_t *page = &c.host[where >> VM_PAGE_SHIFT];
        uint64_t to_host = *page - begin, to_next = page_end <= end - stride ? page[1] : *page;

        if (VM_UNLIKELY(*page & VM_REF_SPECIAL)) {
            return s->count - (uint32_t)((end - where) / stride);
        }
        to_next = (to_next & ~(uint64_t)VM_REF_TAGS) - begin;
        page_end = page_end < end ? page_end : end;
#pragma GCC unroll 4
        for (; where < page_end; where += stride) {
            __builtin_prefetch((const void *)(uintptr_t)(where + to_next), 0, 2);
            if (store) {
                write_plain(&c, where, where + to_host, size, mode);
            } else {
                read_plain(v, &c, where, where + to_host, size, mode);
            }
        }
    }
    return s->count;
}

static enum mode mode_of(const struct vm_guest *g)
{
    return g->check_reads ? CHECKED : g->marks || g->written ? NOTED : BARE;
}

/* The loops for one size and mode; functions of their own, so that each has all registers. */
struct loops {
    uint32_t (*any)(struct vm_vcpu *v, const struct columns *c, unsigned load, bool wide);
    uint32_t (*evenly)(struct vm_vcpu *v, const struct columns *c, const struct vm_slice *s);
};

#define LOOPS(size, mode)                                                                          \
    static __attribute__((noinline)) uint32_t any_##size##_##mode(                                 \
        struct vm_vcpu *v, const struct columns *c, unsigned load, bool wide)                      \
    {                                                                                              \
        return wide ? make_in(v, c, load, size, true, mode)                                        \
                    : make_in(v, c, load, size, false, mode);                                      \
    }                                                                                              \
    static __attribute__((noinline)) uint32_t evenly_##size##_##mode(                              \
        struct vm_vcpu *v, const struct columns *c, const struct vm_slice *s)                      \
    {                                                                                              \
        return (s->what[0] & 3) == VM_STORE ? make_evenly(v, c, s, size, mode, true)               \
                                            : make_evenly(v, c, s, size, mode, false);             \
    }
#define LOOPS_OF_SIZE(size) LOOPS(size, BARE) LOOPS(size, NOTED) LOOPS(size, CHECKED)

LOOPS_OF_SIZE(1)
LOOPS_OF_SIZE(2)
LOOPS_OF_SIZE(4)
LOOPS_OF_SIZE(8)

#define ENTRY(size, mode) {any_##size##_##mode, evenly_##size##_##mode}
#define ENTRIES(size)     {ENTRY(size, BARE), ENTRY(size, NOTED), ENTRY(size, CHECKED)}

/* NULL: there are none. */
static const struct loops *loops_of(const struct vm_guest *g, unsigned size)
{
    static const struct loops table[][3] = {ENTRIES(1), ENTRIES(2), ENTRIES(4), ENTRIES(8)};

    if (!size || size > 8 || size & (size - 1) || (g->check_reads && !g->expected)) {
        return NULL;
    }
    return &table[__builtin_ctz(size)][mode_of(g)];
}

static struct columns columns_of(const struct vm_guest *g, const uint64_t *host,
                                 const struct vm_slice *s)
{
    return (struct columns){
        .guest = g,
        .where = s->where,
        .what = s->what,
        .host = host + (s->base >> VM_PAGE_SHIFT),
        .key = g->key + (s->base >> VM_PAGE_SHIFT),
        .marks = g->marks ? g->marks + (s->base >> 3) : NULL,
        .expected = g->expected ? g->expected + s->base : NULL,
        .written = g->written,
        .base = s->base,
        .count = s->count,
    };
}

uint32_t vm_replay_plain(struct vm_vcpu *v, const uint64_t *host, const struct vm_slice *s,
                         uint64_t kinds[4])
{
    struct columns c = columns_of(v->guest, host, s);
    const struct loops *loops = loops_of(v->guest, s->sizes[s->what[0] >> 2]);
    uint32_t done = loops ? loops->any(v, &c, s->what[0] & ~3u, s->wide) : 0;

    vm_count_kinds(s->what, done, kinds);
    return done;
}

uint32_t vm_replay_evenly(struct vm_vcpu *v, const uint64_t *host, const struct vm_slice *s,
                          uint64_t kinds[4])
{
    struct columns c = columns_of(v->guest, host, s);
    const struct loops *loops = loops_of(v->guest, s->sizes[s->what[0] >> 2]);
    uint32_t done = loops ? loops->evenly(v, &c, s) : 0;

    kinds[s->what[0] & 3] += done;
    return done;
}

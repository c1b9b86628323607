#include "replay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "access.h"
#include "util.h"

enum { SLICE = 4096, MARKS_PER_PAGE = VM_PAGE_SIZE / 8 };

struct replay {
    struct vm_vcpu *v;
    const struct vm_guest *guest;
    struct vm_page_ref *refs; /* this vCPU's own: the tag of the first touch goes away */
    uint64_t dropped[4]; /* accesses of each kind in this slice whose first byte lies outside */
    uint16_t sizes[VM_SIZES];
};

void vm_refs_fill(struct vm_page_ref *refs, uint64_t pages, const int32_t *block,
                  const uint64_t *offset, const struct vm_ram *ram,
                  const struct vm_content *content)
{
    for (uint64_t i = 0; i < pages; i++) {
        const struct vm_content *c;

        if (block[i] < 0) {
            refs[i] = (struct vm_page_ref){.host = VM_REF_OUTSIDE};
            continue;
        }
        c = &content[block[i]];
        refs[i].host = (ram->block[block[i]].host + offset[i]) | VM_REF_FIRST;
        refs[i].base = vm_content_base(c, offset[i]);
        if (c->file) {
            refs[i].host |= VM_REF_FILE;
        } else if (vm_content_page_is_zero(c, offset[i] >> c->page_shift)) {
            refs[i].host |= VM_REF_ZERO;
        }
    }
}

void vm_marks_gather(uint8_t *block_marks, uint32_t index, uint64_t pages, const int32_t *block,
                     const uint64_t *offset, const uint8_t *marks)
{
    for (uint64_t i = 0; i < pages; i++) {
        uint8_t *to;

        if (block[i] != (int32_t)index) {
            continue;
        }
        to = block_marks + offset[i] / 8;
        for (unsigned word = 0; word < MARKS_PER_PAGE; word++) {
            if (marks[i * MARKS_PER_PAGE + word]) { /* what was not written stays unallocated */
                to[word] |= marks[i * MARKS_PER_PAGE + word];
            }
        }
    }
}

/* Where a host address lies; only called for addresses inside a block. */
static uint32_t block_of(const struct vm_guest *g, uint64_t host, uint64_t *offset)
{
    uint32_t block = (uint32_t)vm_ram_find(g->ram, host);

    *offset = host - g->ram->block[block].host;
    return block;
}

/* ---- one load or store of the recorded size: what really touches guest memory ---- */

/* A recorded access may lie anywhere; the compiler must not think otherwise. */
typedef uint64_t __attribute__((aligned(1))) unaligned_u64;
typedef uint32_t __attribute__((aligned(1))) unaligned_u32;
typedef uint16_t __attribute__((aligned(1))) unaligned_u16;

static inline uint64_t load_sized(uint64_t host, unsigned size)
{
    const volatile uint8_t *byte;
    uint64_t value = 0;

    switch (size) {
    case 8:
        return *(const volatile unaligned_u64 *)(uintptr_t)host;
    case 4:
        return *(const volatile unaligned_u32 *)(uintptr_t)host;
    case 2:
        return *(const volatile unaligned_u16 *)(uintptr_t)host;
    case 1:
        return *(const volatile uint8_t *)(uintptr_t)host;
    default: /* a part of a larger or crooked access */
        byte = (const volatile uint8_t *)(uintptr_t)host;
        for (unsigned i = 0; i < size; i++) {
            value |= (uint64_t)byte[i] << (i * 8);
        }
        return value;
    }
}

static inline void store_sized(uint64_t host, unsigned size, uint64_t value)
{
    volatile uint8_t *byte;

    switch (size) {
    case 8:
        *(volatile unaligned_u64 *)(uintptr_t)host = value;
        return;
    case 4:
        *(volatile unaligned_u32 *)(uintptr_t)host = (uint32_t)value;
        return;
    case 2:
        *(volatile unaligned_u16 *)(uintptr_t)host = (uint16_t)value;
        return;
    case 1:
        *(volatile uint8_t *)(uintptr_t)host = (uint8_t)value;
        return;
    default:
        byte = (volatile uint8_t *)(uintptr_t)host;
        for (unsigned i = 0; i < size; i++) {
            byte[i] = (uint8_t)(value >> (i * 8));
        }
    }
}

/* ---- checking what was read ---- */

/* A part of an access that lies in one aligned word. */
struct piece {
    uint64_t host;  /* address of its first byte */
    uint64_t base;  /* of the page */
    uint64_t where; /* in the dictionary, with its offset in the page */
    unsigned size;  /* 1 to 8; never past the end of the word */
    unsigned tags;
};

static uint64_t initial_word(const struct vm_guest *g, const struct piece *p)
{
    uint64_t offset;

    if (p->tags & VM_REF_FILE) {
        uint32_t block = block_of(g, p->host, &offset);

        return vm_content_initial(&g->content[block], offset & ~UINT64_C(7));
    }
    if (p->tags & VM_REF_ZERO) {
        return 0;
    }
    return vm_mix(p->base + (p->where % VM_PAGE_SIZE / 8) * VM_CONTENT_STEP);
}

static uint64_t written_word(const struct piece *p)
{
    return vm_mix(p->base + VM_CONTENT_WRITTEN + (p->where % VM_PAGE_SIZE / 8) * VM_CONTENT_STEP);
}

static uint64_t piece_mask(const struct piece *p)
{
    return (p->size == 8 ? ~UINT64_C(0) : (UINT64_C(1) << (p->size * 8)) - 1) << (p->where % 8 * 8);
}

/*
 * The value is not the one that the marks seen before the load promise. A byte that was marked must
 * be the written one: if it is the initial one, a write was lost. A byte that was not may have been
 * written meanwhile.
 */
static void judge_read(struct vm_vcpu *v, const struct piece *p, uint8_t mark, uint64_t found)
{
    uint64_t written = written_word(p), initial = initial_word(v->guest, p);
    uint64_t marked = vm_mark_mask(mark);
    uint64_t wrong = 0, offset;

    for (unsigned byte = 0; byte < 8; byte++) {
        uint64_t mask = UINT64_C(0xFF) << (byte * 8);
        bool as_written = !((found ^ written) & mask), as_initial = !((found ^ initial) & mask);

        if (!as_written && (!as_initial || (marked & mask))) {
            wrong |= mask;
        }
    }
    wrong &= piece_mask(p);
    /* A stopped run lets go of its faults by unregistering: what is read then is not the guest's
     * memory. */
    if (!wrong || vm_get_acquire(&v->stop)) {
        return;
    }
    v->reads_wrong++;
    if (v->noted < sizeof(v->mismatch) / sizeof(v->mismatch[0])) {
        unsigned first = (unsigned)__builtin_ctzll(wrong) / 8;
        uint32_t block = block_of(v->guest, p->host & ~UINT64_C(7), &offset);
        uint64_t expected = (marked >> (first * 8) & 0xFF) ? written : initial;

        v->mismatch[v->noted++] = (struct vm_mismatch){
            .offset = offset + first,
            .block = block,
            .expected = (uint8_t)(expected >> (first * 8)),
            .found = (uint8_t)(found >> (first * 8)),
        };
    }
}

static inline void read_piece(struct vm_vcpu *v, const struct piece *p)
{
    const struct vm_guest *g = v->guest;
    uint64_t found, expected;
    uint8_t mark;

    if (!g->check_reads) {
        load_sized(p->host, p->size);
        return;
    }
    /* The mark is read before the value, and set after it is written: a marked byte must have its
     * new value. */
    mark = vm_get_acquire(&g->marks[p->where >> 3]);
    found = load_sized(p->host, p->size) << (p->where % 8 * 8);
    expected = VM_LIKELY(!(p->tags & (VM_REF_ZERO | VM_REF_FILE)))
                   ? vm_mix(p->base + (p->where % VM_PAGE_SIZE / 8) * VM_CONTENT_STEP)
                   : initial_word(g, p);
    if (mark) {
        uint64_t mask = vm_mark_mask(mark);

        expected = (expected & ~mask) | (written_word(p) & mask);
    }
    if (VM_UNLIKELY((found ^ expected) & piece_mask(p))) {
        judge_read(v, p, mark, found);
    }
}

static void note_written(uint64_t *written, uint64_t page)
{
    /*
     * The store has to be seen before the bit is looked at. A CPU may keep the store back for a
     * moment: the bit could still be found set, be taken, and the page be sent without the store.
     */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!vm_bit_test(written, page)) {
        vm_bit_test_and_set(written, page);
    }
}

static inline void write_piece(struct vm_vcpu *v, const struct piece *p)
{
    uint8_t *marks = v->guest->marks;
    uint8_t bits = (uint8_t)(((1u << p->size) - 1) << (p->where % 8));

    store_sized(p->host, p->size, written_word(p) >> (p->where % 8 * 8));
    /* Most writes are to where one was before: look before paying for a locked operation. */
    if (marks && (vm_get(&marks[p->where >> 3]) & bits) != bits) {
        __atomic_fetch_or(&marks[p->where >> 3], bits, __ATOMIC_RELEASE);
    }
    /* After the store: whoever takes the bit and sends the page then sends what was stored. */
    if (VM_UNLIKELY(v->guest->written != NULL)) {
        note_written(v->guest->written, p->where >> VM_PAGE_SHIFT);
    }
}

/* ---- accesses ---- */

/* An access that lies in one page of the dictionary. */
static inline void access_page(struct vm_vcpu *v, const struct vm_page_ref *ref, uint64_t where,
                               unsigned size, unsigned kind)
{
    struct piece p = {
        .host = (ref->host & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE,
        .base = ref->base,
        .where = where,
        .tags = ref->host & VM_REF_TAGS,
    };

    while (size > 0) {
        unsigned room = 8 - (unsigned)(p.where % 8);

        p.size = size < room ? size : room;
        if (kind != VM_STORE) {
            read_piece(v, &p);
        }
        if (kind == VM_STORE || kind == VM_MODIFY) {
            write_piece(v, &p);
        }
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
    v->faults++;
    v->blocktime_ns += fault.end_ns - fault.start_ns;
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
static void touch_first(struct vm_vcpu *v, struct vm_page_ref *ref, uint64_t where, unsigned size,
                        unsigned kind)
{
    uint64_t host = (ref->host & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE,
             seen = vm_get(v->seen);
    struct vm_fault_record fault = {.write = kind == VM_STORE || kind == VM_MODIFY};
    const struct vm_block *block;

    fault.block = block_of(v->guest, host, &fault.offset);
    block = &v->guest->ram->block[fault.block];
    if (vm_bit_test(block->received, fault.offset >> block->page_shift)) {
        access_page(v, ref, where, size, kind);
    } else {
        fault.start_ns = vm_now_ns();
        vm_set(&v->waiting_at, host);
        vm_set(&v->waiting_since_ns, fault.start_ns);
        access_page(v, ref, where, size, kind);
        fault.end_ns = vm_now_ns();
        vm_set(&v->waiting_since_ns, 0);
        if (vm_get(v->seen) != seen) {
            record_fault(v, fault);
        }
    }
    ref->host &= ~(uint64_t)VM_REF_FIRST;
}

static void access_tagged(struct vm_vcpu *v, struct vm_page_ref *ref, uint64_t where, unsigned size,
                          unsigned kind)
{
    if (ref->host & VM_REF_OUTSIDE) {
        return;
    }
    if (ref->host & VM_REF_FIRST) {
        touch_first(v, ref, where, size, kind);
    } else {
        access_page(v, ref, where, size, kind);
    }
}

/* An access whose rest lies on the next page of the address space, which is the next one of the
 * dictionary. */
static void access_straddling(struct replay *r, uint64_t where, unsigned size, unsigned kind)
{
    uint64_t page = where >> VM_PAGE_SHIFT;
    unsigned here = VM_PAGE_SIZE - (unsigned)(where % VM_PAGE_SIZE);

    access_tagged(r->v, &r->refs[page], where, here, kind);
    for (size -= here; size > 0; size -= here) {
        page++;
        here = size < VM_PAGE_SIZE ? size : VM_PAGE_SIZE;
        access_tagged(r->v, &r->refs[page], page << VM_PAGE_SHIFT, here, kind);
    }
}

static inline void access_any(struct replay *r, uint64_t where, unsigned size, unsigned kind)
{
    struct vm_page_ref *ref = &r->refs[where >> VM_PAGE_SHIFT];

    if (VM_UNLIKELY(ref->host & VM_REF_OUTSIDE)) {
        r->dropped[kind]++;
    } else if (VM_UNLIKELY(where % VM_PAGE_SIZE + size > VM_PAGE_SIZE)) {
        access_straddling(r, where, size, kind);
    } else if (VM_UNLIKELY(ref->host & VM_REF_FIRST)) {
        access_tagged(r->v, ref, where, size, kind);
    } else {
        access_page(r->v, ref, where, size, kind);
    }
}

/* Counted a slice at a time, and away from the accesses: the inner loop has no counters to carry.
 */
static void count_slice(struct replay *r, const uint8_t *what, uint32_t done)
{
    uint64_t kinds[4] = {0}, reads;

    for (uint32_t i = 0; i < done; i++) {
        kinds[what[i] & 3]++;
    }
    for (unsigned kind = 0; kind < 4; kind++) {
        kinds[kind] -= r->dropped[kind];
        vm_add(&r->v->dropped, r->dropped[kind]);
        r->dropped[kind] = 0;
        vm_add(&r->v->accesses, kinds[kind]);
    }
    reads = kinds[VM_LOAD] + kinds[VM_MODIFY] + kinds[VM_FETCH];
    vm_add(&r->v->writes, kinds[VM_STORE] + kinds[VM_MODIFY]);
    vm_add(&r->v->reads, reads);
    vm_add(&r->v->reads_checked, r->guest->check_reads ? reads : 0);
}

/* ---- the order of accesses ---- */

/* Some accesses that follow each other: a part of a stream, or freshly made. */
struct slice {
    const void *where;
    const uint8_t *what;
    uint32_t count;
    bool wide;
};

/* Where slices come from: the streams in turn, as a scheduler would deal a CPU, or the generator.
 */
struct order {
    struct vm_stream *stream;
    uint32_t streams, turn;
    struct vm_synthetic *synthetic;
    uint64_t where[SLICE];
    uint8_t what[SLICE];
};

static bool next_made(struct order *o, struct slice *slice)
{
    *slice = (struct slice){o->where, o->what, 0, true};
    slice->count = vm_synthetic_fill(o->synthetic, o->where, o->what, SLICE);
    return slice->count > 0;
}

static bool next_slice(struct order *o, struct slice *slice)
{
    if (o->synthetic) {
        return next_made(o, slice);
    }
    for (uint32_t tried = 0; tried < o->streams; tried++) {
        struct vm_stream *s = &o->stream[o->turn++ % o->streams];

        if (s->count > 0) {
            *slice = (struct slice){s->where, s->what, SLICE, s->wide};
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
static struct slice cut(struct slice s, uint64_t at, uint64_t begin, uint64_t end)
{
    uint64_t low = begin > at ? begin - at : 0, high = end > at ? end - at : 0;

    low = low < s.count ? low : s.count;
    high = high < s.count ? high : s.count;
    s.where = (const uint8_t *)s.where + low * (s.wide ? 8 : 4);
    s.what += low;
    s.count = high > low ? (uint32_t)(high - low) : 0;
    return s;
}

/* Hand the accesses [begin, end) to a function that returns how many it did. */
static void for_each_slice(struct replay *r, struct order *o, uint64_t begin, uint64_t end,
                           uint32_t (*use)(struct replay *r, const struct slice *s))
{
    struct slice slice;
    uint64_t at = 0;

    vm_set(&r->v->position, begin);
    while (at < end && !vm_get(&r->v->stop) && next_slice(o, &slice)) {
        struct slice part = cut(slice, at, begin, end);

        at += slice.count;
        if (part.count > 0) {
            vm_add(&r->v->position, use(r, &part));
        }
    }
}

static inline uint64_t where_of(const struct slice *s, uint32_t i, bool wide)
{
    return wide ? ((const uint64_t *)s->where)[i] : ((const uint32_t *)s->where)[i];
}

static inline __attribute__((always_inline)) uint32_t replay_as(struct replay *r,
                                                                const struct slice *s, bool wide)
{
    uint32_t i;

    for (i = 0; i < s->count && !vm_get(&r->v->stop); i++) {
        access_any(r, where_of(s, i, wide), r->sizes[s->what[i] >> 2], s->what[i] & 3);
    }
    return i;
}

static uint32_t replay_slice(struct replay *r, const struct slice *s)
{
    uint32_t done = s->wide ? replay_as(r, s, true) : replay_as(r, s, false);

    count_slice(r, s->what, done);
    return done;
}

/* Mark the bytes of one write; a write that goes on on the next page does so in the dictionary too.
 */
static void mark_write(const struct replay *r, uint64_t where, unsigned size)
{
    uint8_t *marks = r->guest->marks;

    for (uint64_t byte = where; byte < where + size; byte++) {
        if (!(r->guest->refs[byte >> VM_PAGE_SHIFT].host & VM_REF_OUTSIDE)) {
            __atomic_fetch_or(&marks[byte >> 3], (uint8_t)(1u << (byte & 7)), __ATOMIC_RELEASE);
        }
    }
}

static uint32_t mark_slice(struct replay *r, const struct slice *s)
{
    for (uint32_t i = 0; i < s->count; i++) {
        unsigned kind = s->what[i] & 3;
        uint64_t where = where_of(s, i, s->wide);
        /* An access whose first byte lies outside was dropped as a whole. */
        bool dropped = r->guest->refs[where >> VM_PAGE_SHIFT].host & VM_REF_OUTSIDE;

        if ((kind == VM_STORE || kind == VM_MODIFY) && !dropped) {
            mark_write(r, where, r->sizes[s->what[i] >> 2]);
        }
    }
    return s->count;
}

static struct order *order_create(struct vm_stream *stream, uint32_t streams,
                                  struct vm_synthetic *synthetic)
{
    struct order *o = calloc(1, sizeof(*o));

    if (o) {
        o->stream = stream;
        o->streams = streams;
        o->synthetic = synthetic;
    }
    return o;
}

int vm_vcpu_run(struct vm_vcpu *v, struct vm_stream *stream, uint32_t streams,
                struct vm_synthetic *synthetic, struct vm_error *err)
{
    const struct vm_guest *g = v->guest;
    struct replay r = {.v = v, .guest = g};
    struct order *order = order_create(stream, streams, synthetic);

    r.refs = malloc(g->pages * sizeof(*r.refs));
    if (!r.refs || !order) {
        free(order);
        free(r.refs);
        errno = ENOMEM;
        return vm_fail_errno(err, "memory for the page table of a vCPU", 0);
    }
    memcpy(r.refs, g->refs, g->pages * sizeof(*r.refs));
    memcpy(r.sizes, g->sizes, sizeof(r.sizes));
    v->thread = (uint32_t)syscall(SYS_gettid);
    vm_set_release(v->tid, v->thread);
    for_each_slice(&r, order, v->begin, v->end, replay_slice);
    vm_set(v->tid, 0);
    free(order);
    free(r.refs);
    return 0;
}

int vm_vcpu_mark(struct vm_vcpu *v, struct vm_stream *stream, uint32_t streams,
                 struct vm_synthetic *synthetic, struct vm_error *err)
{
    struct replay r = {.v = v, .guest = v->guest};
    struct order *order = order_create(stream, streams, synthetic);

    if (!order) {
        errno = ENOMEM;
        return vm_fail_errno(err, "memory for marking", 0);
    }
    memcpy(r.sizes, v->guest->sizes, sizeof(r.sizes));
    for_each_slice(&r, order, 0, v->begin, mark_slice);
    free(order);
    return 0;
}

void vm_vcpu_release(struct vm_vcpu *v)
{
    free(v->record);
    v->record = NULL;
    v->records = v->record_capacity = 0;
}

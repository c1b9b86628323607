#include "plain.h"

#include "access.h"
#include "content.h"
#include "piece.h"
#include "util.h"

/*
 * What is computed for a batch takes vectors where the CPU multiplies vectors of 64 bits; the
 * loader chooses.
 */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "default")))
#else
#define FOR_EACH_CPU
#endif

/* Nothing of these is plain. A page from a file is while nobody checks what is read. */
enum {
    SPECIAL = VM_REF_FIRST | VM_REF_OUTSIDE | VM_REF_ALIAS,
    SPECIAL_CHECKED = SPECIAL | VM_REF_FILE,
};

/*
 * A guest of NEAR pages lies in a CPU's caches, so a line that is asked for is there soon; of a
 * larger one lines are asked for AHEAD accesses before their use, as only so many are on their way
 * at once.
 */
enum { NEAR = 1024, AHEAD = 32 };

/* Accesses of one size. refs and marks begin where the dictionary of the slice does. */
struct batch {
    const void *where;
    const uint8_t *what;
    const struct vm_page_ref *refs;
    const uint8_t *marks;
    uint64_t base; /* of the slice */
    uint32_t count;
    uint64_t host[VM_BATCH];
    /* Only when reads are checked: */
    struct vm_page_ref ref[VM_BATCH];
    uint64_t value[VM_BATCH]; /* what is stored, or must be found */
    uint8_t mark[VM_BATCH];   /* as seen before any access of the batch */
};

static VM_ALWAYS_INLINE uint64_t place(const void *where, uint32_t i, bool wide)
{
    return wide ? ((const uint64_t *)where)[i] : ((const uint32_t *)where)[i];
}

static VM_ALWAYS_INLINE void ask_for(uint64_t host)
{
    __builtin_prefetch((const void *)(uintptr_t)host);
}

static VM_ALWAYS_INLINE bool writes(unsigned kind)
{
    return (kind + 1) & 2; /* a store or a modification */
}

/* ---- which accesses are plain ---- */

/* All in aligned words and of the same size: without a branch, so that it takes vectors. */
static VM_ALWAYS_INLINE bool all_alike(const void *where, const uint8_t *what, uint32_t count,
                                       unsigned size, bool wide)
{
    uint64_t low = 0;
    uint32_t low_narrow = 0;
    uint8_t differs = 0;

    for (uint32_t i = 0; i < count; i++) {
        differs |= what[i] ^ what[0];
    }
    if (differs & ~3u) {
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (wide) {
            low |= ((const uint64_t *)where)[i];
        } else {
            low_narrow |= ((const uint32_t *)where)[i];
        }
    }
    return !((low | low_narrow) & (size - 1));
}

/* Look up where the accesses lie, up to the first one that is not plain: how many are. */
static VM_ALWAYS_INLINE uint32_t look_up(struct batch *b, bool wide, bool far)
{
    const struct vm_page_ref *refs = b->refs;
    const void *places = b->where;
    uint32_t count = b->count;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t where = place(places, i, wide), host = refs[where >> VM_PAGE_SHIFT].host;

        if (VM_UNLIKELY(host & SPECIAL)) {
            return i;
        }
        b->host[i] = (host & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE;
        if (!far || i < AHEAD) {
            ask_for(b->host[i]);
        }
    }
    return count;
}

/* The same; and the marks, which are read before the values. */
static VM_ALWAYS_INLINE uint32_t look_up_checked(struct batch *b, bool wide)
{
    const struct vm_page_ref *refs = b->refs;
    const uint8_t *marks = b->marks;
    const void *places = b->where;
    uint32_t count = b->count;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t where = place(places, i, wide);
        const struct vm_page_ref *ref = &refs[where >> VM_PAGE_SHIFT];

        if (VM_UNLIKELY(ref->host & SPECIAL_CHECKED)) {
            return i;
        }
        b->ref[i] = *ref;
        ask_for((ref->host & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE);
        b->mark[i] = vm_get_acquire(&marks[where >> 3]);
    }
    return count;
}

/* ---- what they store, or must find ---- */

static VM_ALWAYS_INLINE void compute(struct batch *b, unsigned size, bool wide)
{
    uint64_t mask = size == 8 ? ~UINT64_C(0) : (UINT64_C(1) << size * 8) - 1;
    unsigned bits = (1u << size) - 1;

    for (uint32_t i = 0; i < b->count; i++) {
        uint64_t in_page = place(b->where, i, wide) % VM_PAGE_SIZE, host = b->ref[i].host;
        uint64_t shift = size == 8 ? 0 : in_page % 8;
        bool written = ((uint64_t)b->mark[i] >> shift & bits) | ((b->what[i] & 3) == VM_STORE);
        uint64_t word = b->ref[i].base + in_page / 8 * VM_CONTENT_STEP;

        word = vm_mix(word + (written ? VM_CONTENT_WRITTEN : 0));
        word = !written && host & VM_REF_ZERO ? 0 : word;
        b->value[i] = word >> shift * 8 & mask;
        b->host[i] = (host & ~(uint64_t)VM_REF_TAGS) + in_page;
    }
}

FOR_EACH_CPU static void compute_words(struct batch *b)
{
    compute(b, 8, false);
}

FOR_EACH_CPU static void compute_any(struct batch *b, unsigned size, bool wide)
{
    if (wide) {
        compute(b, size, true);
    } else {
        compute(b, size, false);
    }
}

/* ---- the accesses ---- */

static VM_ALWAYS_INLINE struct vm_piece piece_of(const struct batch *b, uint32_t i, unsigned size,
                                                 bool wide)
{
    uint64_t where = place(b->where, i, wide);
    const struct vm_page_ref *ref = &b->refs[where >> VM_PAGE_SHIFT];

    if (where % size) {
        __builtin_unreachable(); /* they are aligned: see all_alike */
    }
    return (struct vm_piece){
        .host = b->host[i],
        .base = ref->base,
        .where = where + b->base / VM_PAGE_SIZE * VM_PAGE_SIZE,
        .size = size,
        .tags = ref->host & VM_REF_TAGS,
    };
}

static VM_ALWAYS_INLINE void make_unchecked(const struct vm_guest *guest, const struct batch *b,
                                            unsigned size, bool wide, bool far)
{
    const struct vm_guest g = *guest;
    const uint8_t *what = b->what;
    uint32_t count = b->count;

    for (uint32_t i = 0; i < count; i++) {
        unsigned kind = what[i] & 3;

        if (far && i + AHEAD < count) {
            ask_for(b->host[i + AHEAD]);
        }
        if (kind != VM_STORE) {
            vm_load_sized(b->host[i], size);
        }
        if (writes(kind)) {
            struct vm_piece p = piece_of(b, i, size, wide);

            vm_write_piece(&g, &p, vm_written_value(&p));
        }
    }
}

static void judge(struct vm_vcpu *v, const struct batch *b, uint32_t i, unsigned size, bool wide,
                  uint8_t mark, uint64_t found)
{
    struct vm_piece p = piece_of(b, i, size, wide);

    vm_judge_read(v, &p, mark & vm_piece_marks(&p), found << p.where % 8 * 8);
}

/*
 * A load is compared with what the marks promised that were read before the batch. That is before
 * the load, as it has to be; but once the batch itself has marked something, or somebody else has
 * marked what it writes too, later loads may be promised more: they look at their marks anew.
 */
static VM_ALWAYS_INLINE void read_checked(struct vm_vcpu *v, const struct batch *b, uint32_t i,
                                          unsigned size, bool wide, bool anew)
{
    uint8_t mark = anew ? vm_get_acquire(&b->marks[place(b->where, i, wide) >> 3]) : b->mark[i];
    uint64_t found = vm_load_sized(b->host[i], size);

    if (VM_UNLIKELY(found != b->value[i] || (anew && mark != b->mark[i]))) {
        judge(v, b, i, size, wide, mark, found);
    }
}

/* Accesses from i on; unless marks are looked at anew, up to the first write of what was not marked
 * before. The first one that was not made. */
static VM_ALWAYS_INLINE uint32_t make_checked(struct vm_vcpu *v, const struct batch *b, uint32_t i,
                                              unsigned size, bool wide, bool anew)
{
    const struct vm_guest g = *v->guest;
    const uint8_t *what = b->what;
    uint32_t count = b->count;
    bool marked = false;

    for (; i < count && !marked; i++) {
        unsigned kind = what[i] & 3;

        if (kind != VM_STORE) {
            read_checked(v, b, i, size, wide, anew);
        }
        if (writes(kind)) {
            struct vm_piece p = piece_of(b, i, size, wide);
            uint8_t bits = vm_piece_marks(&p);

            vm_write_piece(&g, &p, kind == VM_STORE ? b->value[i] : vm_written_value(&p));
            marked = !anew && (b->mark[i] & bits) != bits;
        }
    }
    return i;
}

/* ---- a batch ---- */

static VM_ALWAYS_INLINE uint32_t replay_unchecked(const struct vm_guest *g, struct batch *b,
                                                  unsigned size, bool wide, bool far)
{
    b->count = look_up(b, wide, far);
    make_unchecked(g, b, size, wide, far);
    return b->count;
}

static VM_ALWAYS_INLINE uint32_t replay_checked(struct vm_vcpu *v, struct batch *b, unsigned size,
                                                bool wide)
{
    uint32_t done;

    b->count = look_up_checked(b, wide);
    if (size == 8 && !wide) {
        compute_words(b);
    } else {
        compute_any(b, size, wide);
    }
    done = make_checked(v, b, 0, size, wide, false);
    return make_checked(v, b, done, size, wide, true);
}

static VM_ALWAYS_INLINE uint32_t replay_alike(struct vm_vcpu *v, struct batch *b, unsigned size,
                                              bool wide)
{
    bool far = v->guest->pages > NEAR;

    if (!all_alike(b->where, b->what, b->count, size, wide)) {
        return 0;
    }
    if (v->guest->check_reads) {
        return replay_checked(v, b, size, wide);
    }
    return far ? replay_unchecked(v->guest, b, size, wide, true)
               : replay_unchecked(v->guest, b, size, wide, false);
}

static VM_ALWAYS_INLINE uint32_t replay_sized(struct vm_vcpu *v, struct batch *b, unsigned size,
                                              bool wide)
{
    switch (size) {
    case 8:
        return replay_alike(v, b, 8, wide);
    case 4:
        return replay_alike(v, b, 4, wide);
    case 2:
        return replay_alike(v, b, 2, wide);
    case 1:
        return replay_alike(v, b, 1, wide);
    default:
        return 0;
    }
}

uint32_t vm_replay_plain(struct vm_vcpu *v, const struct vm_page_ref *refs,
                         const struct vm_slice *s)
{
    const struct vm_guest *g = v->guest;
    struct batch b;

    /* Marks that miss the caches too would be waited for one by one. */
    if (g->check_reads && g->pages > NEAR) {
        return 0;
    }
    b.where = s->where;
    b.what = s->what;
    b.refs = refs + (s->base >> VM_PAGE_SHIFT);
    b.marks = g->marks ? g->marks + (s->base >> 3) : NULL;
    b.base = s->base;
    b.count = s->count < VM_BATCH ? s->count : VM_BATCH;
    return s->wide ? replay_sized(v, &b, s->sizes[s->what[0] >> 2], true)
                   : replay_sized(v, &b, s->sizes[s->what[0] >> 2], false);
}

#include "synthetic.h"

#include <stdlib.h>
#include <string.h>

#include "access.h"
#include "content.h"
#include "util.h"

enum { ROUNDS = 4 };

static VM_ALWAYS_INLINE uint64_t next_random(uint64_t *random)
{
    *random += VM_CONTENT_STEP;
    return vm_mix(*random);
}

/* Without a branch: which of the two it is can't be predicted, where this is used. */
static VM_ALWAYS_INLINE uint64_t choose(bool first, uint64_t one, uint64_t other)
{
    return other ^ ((one ^ other) & -(uint64_t)first);
}

static VM_ALWAYS_INLINE bool chance(uint64_t *random, uint64_t below)
{
    if (below == 0) {
        *random += VM_CONTENT_STEP; /* what is drawn does not matter, only that it is */
        return false;
    }
    return below == UINT64_MAX || next_random(random) < below;
}

/*
 * A number in [0, n), n > 0: the high half of a product is as even as n is small beside 2^64. The
 * low half is even too, and serves as a random number once more: rest.
 */
static VM_ALWAYS_INLINE uint64_t scale(uint64_t number, uint64_t n, uint64_t *rest)
{
    unsigned __int128 product = (unsigned __int128)number * n;

    *rest = (uint64_t)product;
    return (uint64_t)(product >> 64);
}

/* ---- shuffled orders ---- */

/*
 * A Feistel network over the smallest even number of bits that holds n; a result outside [0, n) is
 * put through again, which must end as the network is a bijection and the way began inside.
 */
uint64_t vm_permute(uint64_t i, uint64_t n, uint64_t seed)
{
    unsigned half = 1;
    uint64_t mask;

    while (half < 32 && UINT64_C(1) << (2 * half) < n) {
        half++;
    }
    mask = (UINT64_C(1) << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;

        for (uint64_t round = 0; round < ROUNDS; round++) {
            uint64_t next = left ^ (vm_mix(seed + round * VM_CONTENT_STEP + right) & mask);

            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

/*
 * The numbers lie in a table of 2^column_bits columns and about as many rows. In turn a number
 * moves to another row, by as much as its column says, and to another column, by as much as its row
 * says: each step is a bijection. Only the last row has places outside [0, n), so hardly any number
 * is put through again, which spares a branch that can't be predicted.
 */
void vm_shuffle_init(struct vm_shuffle *s, uint64_t n, uint64_t seed)
{
    unsigned bits = 0;

    while (bits < 64 && (n - 1) >> bits) {
        bits++;
    }
    s->n = n;
    s->column_bits = (bits + 1) / 2;
    s->rows = ((n - 1) >> s->column_bits) + 1;
    s->key = vm_mix(seed);
    s->known = 0;
}

/* Half of vm_mix: the high bits are good, and they are what is used. */
static VM_ALWAYS_INLINE uint64_t hash(uint64_t x, uint64_t key)
{
    x = (x + key) * UINT64_C(0xBF58476D1CE4E5B9);
    return (x ^ x >> 32) * UINT64_C(0x94D049BB133111EB);
}

static VM_ALWAYS_INLINE uint64_t shuffle(const struct vm_shuffle *s, uint64_t i)
{
    unsigned bits = s->column_bits;
    uint64_t mask = (UINT64_C(1) << bits) - 1;

    do {
        uint64_t row = i >> bits, column = i & mask, key = s->key, rest;

        for (unsigned round = 0; round < 2; round++) {
            row += scale(hash(column, key), s->rows, &rest);
            row -= choose(row >= s->rows, s->rows, 0);
            column = (column + (hash(row, key + VM_CONTENT_STEP) >> 32)) & mask;
            key += 2 * VM_CONTENT_STEP;
        }
        i = row << bits | column;
    } while (VM_UNLIKELY(i >= s->n));
    return i;
}

uint64_t vm_shuffle(const struct vm_shuffle *s, uint64_t i)
{
    return i < s->known ? s->table[i] : shuffle(s, i);
}

void vm_shuffle_remember(struct vm_shuffle *s, uint32_t *table, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        table[i] = (uint32_t)shuffle(s, i);
    }
    s->table = table;
    s->known = count;
}

/* ---- where the next access of a pattern goes, in bytes of RAM ---- */

/* An aligned access anywhere in some bytes, which are multiples of its size; number: a random one.
 */
static VM_ALWAYS_INLINE uint64_t place_within(uint64_t begin, uint64_t length, uint64_t number,
                                              uint64_t size)
{
    uint64_t rest;

    return begin + (scale(number, length, &rest) & ~(size - 1));
}

static VM_ALWAYS_INLINE uint64_t place_uniform(struct vm_pattern *p, uint64_t *random)
{
    return place_within(p->begin, p->end - p->begin, next_random(random), p->size);
}

/* The place whose turn it is in the vCPU's part of the round. */
static VM_ALWAYS_INLINE uint64_t next_turn(struct vm_pattern *p)
{
    uint64_t at = p->at++;

    if (p->at == p->high) {
        p->at = p->low;
        p->round++;
    }
    return at;
}

static VM_ALWAYS_INLINE uint64_t place_permuted(struct vm_pattern *p, uint64_t *random)
{
    uint64_t order = p->order_seed + p->round;
    const uint64_t *begin = &p->place[vm_permute(next_turn(p), p->places, order)];

    return place_within(begin[0], begin[1] - begin[0], next_random(random), p->size);
}

/* Multiplications are what bounds the speed of these: where powers of two will do there is none. */
static VM_ALWAYS_INLINE uint64_t place_in_unit(const struct vm_pattern *p, uint64_t unit,
                                               uint64_t number)
{
    uint64_t begin, offset;

    unit = p->shuffle ? vm_shuffle(p->shuffle, unit) : unit;
    begin = p->begin + (unit << p->unit_shift);
    offset = number >> (64 - p->unit_shift);
    if (VM_UNLIKELY(offset >= p->end - begin)) {
        return place_within(begin, p->end - begin, number, p->size);
    }
    return begin + (offset & ~(p->size - 1));
}

static VM_ALWAYS_INLINE uint64_t place_zipf(struct vm_pattern *p, uint64_t *random)
{
    uint64_t number = next_random(random), rest = number << p->column_bits;
    uint64_t column = number >> (64 - p->column_bits);
    uint64_t bucket = choose(rest < p->alias[column].below, column, p->alias[column].other);
    uint64_t first = p->rank[bucket], ranks = p->rank[bucket + 1] - first;
    uint64_t unit = first + scale(next_random(random), ranks, &rest);

    return place_in_unit(p, unit, rest);
}

static VM_ALWAYS_INLINE uint64_t place_hot_cold(struct vm_pattern *p, uint64_t *random)
{
    bool hot = chance(random, p->hot_below);
    uint64_t rest;
    uint64_t unit = scale(next_random(random), choose(hot, p->hot, p->units - p->hot), &rest);

    unit += p->moved + choose(hot, 0, p->hot);
    unit -= choose(unit >= p->units, p->units, 0);
    p->elapsed += p->pace;
    if (VM_UNLIKELY(p->elapsed >= p->period)) { /* by no more periods than there are vCPUs */
        p->moved = (p->moved + p->elapsed / p->period * p->hot) % p->units;
        p->elapsed %= p->period;
    }
    return place_in_unit(p, unit, rest);
}

static VM_ALWAYS_INLINE uint64_t place_chased(struct vm_pattern *p, uint64_t *random)
{
    (void)random;
    return p->begin + (vm_shuffle(p->shuffle, next_turn(p)) << p->unit_shift);
}

/* ---- accesses ---- */

/*
 * A loop for each kind. It has a pattern of its own in registers: `what` may point anywhere, so the
 * compiler would have to store and load the real one with each access.
 */
static VM_ALWAYS_INLINE void make(struct vm_pattern *pattern, uint64_t *random, uint64_t *where,
                                  uint8_t *what, uint32_t count,
                                  uint64_t (*place)(struct vm_pattern *p, uint64_t *random))
{
    struct vm_pattern p = *pattern;
    uint64_t state = *random;

    for (uint32_t i = 0; i < count; i++) {
        where[i] = place(&p, &state);
        what[i] =
            (uint8_t)(p.size_index << 2 | (chance(&state, p.write_below) ? VM_STORE : VM_LOAD));
    }
    pattern->at = p.at;
    pattern->round = p.round;
    pattern->moved = p.moved;
    pattern->elapsed = p.elapsed;
    *random = state;
}

/* Go on by so many accesses, or up to the end of the pass: how many. first: of them. */
static uint32_t walk(struct vm_pattern *p, uint32_t count, uint64_t *first)
{
    uint64_t last = p->end - p->begin - p->size, left = (last - p->at) / p->stride + 1;
    uint32_t part = left < count ? (uint32_t)left : count;

    *first = p->begin + p->at;
    p->at += part * p->stride;
    if (p->at > last) {
        p->round += p->shift;
        if (p->round >= p->stride || p->round > last) {
            p->round = 0;
        }
        p->at = p->round;
    }
    return part;
}

static uint32_t place_sequential(struct vm_pattern *p, uint64_t *where, uint32_t count)
{
    uint64_t first, stride = p->stride;
    uint32_t part = walk(p, count, &first);

    for (uint32_t i = 0; i < part; i++) {
        where[i] = first + i * stride;
    }
    return part;
}

/* They are stores or loads by chance alone, which needs no place: both take vectors. */
static void make_sequential(struct vm_pattern *p, uint64_t *random, uint64_t *where, uint8_t *what,
                            uint32_t count)
{
    uint8_t load = (uint8_t)(p->size_index << 2 | VM_LOAD);

    for (uint32_t made = 0; made < count;) {
        made += place_sequential(p, where + made, count - made);
    }
    if (p->write_below == 0) {
        memset(what, load, count);
        *random += count * VM_CONTENT_STEP; /* see chance */
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        what[i] = load | (chance(random, p->write_below) ? VM_STORE : VM_LOAD);
    }
}

static void make_any(struct vm_pattern *p, uint64_t *random, uint64_t *where, uint8_t *what,
                     uint32_t count)
{
    switch (p->kind) {
    case VM_SEQUENTIAL:
        make_sequential(p, random, where, what, count);
        break;
    case VM_UNIFORM:
        make(p, random, where, what, count, place_uniform);
        break;
    case VM_PERMUTATION:
        make(p, random, where, what, count, place_permuted);
        break;
    case VM_ZIPF:
        make(p, random, where, what, count, place_zipf);
        break;
    case VM_HOT_COLD:
        make(p, random, where, what, count, place_hot_cold);
        break;
    default:
        make(p, random, where, what, count, place_chased);
    }
}

/* Each access is of a pattern chosen anew. */
static void make_mixed(struct vm_synthetic *s, const struct vm_phase *phase, uint64_t *where,
                       uint8_t *what, uint32_t count)
{
    const struct vm_pattern *pattern = &s->pattern[phase->first];

    for (uint32_t i = 0; i < count; i++) {
        uint64_t number = next_random(&s->random);
        uint32_t chosen = 0;

        while (chosen + 1 < phase->patterns && number >= pattern[chosen].chosen_below) {
            chosen++;
        }
        make_any(&s->pattern[phase->first + chosen], &s->random, &where[i], &what[i], 1);
    }
}

/* The phase that is under way; the next one that has accesses when it is over. */
static const struct vm_phase *current_phase(struct vm_synthetic *s)
{
    while (s->left == 0) {
        s->left = s->phase[s->next].accesses;
        s->next = s->next + 1 < s->phases ? s->next + 1 : 0;
    }
    return &s->phase[s->next > 0 ? s->next - 1 : s->phases - 1];
}

uint32_t vm_synthetic_fill(struct vm_synthetic *s, uint64_t *where, uint8_t *what, uint32_t count)
{
    uint32_t made = 0;

    while (made < count && s->done < s->accesses) {
        const struct vm_phase *phase = current_phase(s);
        uint32_t part = s->left < count - made ? (uint32_t)s->left : count - made;

        if (phase->patterns == 1) {
            make_any(&s->pattern[phase->first], &s->random, where + made, what + made, part);
        } else {
            make_mixed(s, phase, where + made, what + made, part);
        }
        made += part;
        s->done += part;
        s->left -= part;
    }
    return made;
}

uint32_t vm_synthetic_even(struct vm_synthetic *s, uint32_t count, uint64_t *first,
                           uint64_t *stride, uint8_t *what)
{
    const struct vm_phase *phase = s->done < s->accesses ? current_phase(s) : NULL;
    struct vm_pattern *p = phase ? &s->pattern[phase->first] : NULL;
    uint64_t left = s->accesses - s->done < s->left ? s->accesses - s->done : s->left;
    bool stores = p && p->write_below == UINT64_MAX;

    if (!p || phase->patterns > 1 || p->kind != VM_SEQUENTIAL || (p->write_below && !stores) ||
        p->size > 8 || (p->begin | p->at | p->stride) & (p->size - 1)) {
        return 0;
    }
    *stride = p->stride;
    *what = (uint8_t)(p->size_index << 2 | (stores ? VM_STORE : VM_LOAD));
    count = walk(p, left < count ? (uint32_t)left : count, first);
    s->random += stores ? 0 : count * VM_CONTENT_STEP; /* see chance */
    s->done += count;
    s->left -= count;
    return count;
}

bool vm_synthetic_copy(struct vm_synthetic *to, const struct vm_synthetic *from)
{
    const struct vm_phase *last = &from->phase[from->phases - 1];
    size_t patterns = last->first + last->patterns;

    *to = *from;
    to->pattern = malloc(patterns * sizeof(*to->pattern));
    if (to->pattern) {
        memcpy(to->pattern, from->pattern, patterns * sizeof(*to->pattern));
    }
    return to->pattern;
}

void vm_synthetic_release(struct vm_synthetic *copy)
{
    free(copy->pattern);
    copy->pattern = NULL;
}

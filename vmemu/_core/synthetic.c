#include "synthetic.h"

#include "access.h"
#include "content.h"
#include "util.h"

enum { WORD = 8, ROUNDS = 4 };

static uint64_t next_random(struct vm_synthetic *s)
{
    s->random += VM_CONTENT_STEP;
    return vm_mix(s->random);
}

/* A number in [0, n), n > 0: the high half of a product is as even as n is small beside 2^64. */
static uint64_t random_below(struct vm_synthetic *s, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)next_random(s) * n) >> 64);
}

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

static uint64_t place_sequential(struct vm_synthetic *s)
{
    uint64_t steps = (s->end - s->begin + s->stride - 1) / s->stride;

    return s->begin + s->done % steps * s->stride;
}

static uint64_t place_uniform(struct vm_synthetic *s)
{
    return s->begin + random_below(s, (s->end - s->begin) / WORD) * WORD;
}

static uint64_t place_permuted(struct vm_synthetic *s)
{
    uint64_t number = s->first + s->done;
    uint64_t unit = vm_permute(number % s->units, s->units, s->order_seed + number / s->units);
    uint64_t words = (s->unit[unit + 1] - s->unit[unit]) / WORD;

    return s->unit[unit] + random_below(s, words) * WORD;
}

static uint64_t place(struct vm_synthetic *s)
{
    switch (s->kind) {
    case VM_SEQUENTIAL:
        return place_sequential(s);
    case VM_UNIFORM:
        return place_uniform(s);
    default:
        return place_permuted(s);
    }
}

uint32_t vm_synthetic_fill(struct vm_synthetic *s, uint64_t *where, uint8_t *what, uint32_t count)
{
    uint32_t made = 0;

    if (s->done == 0) {
        s->random = s->seed;
    }
    while (made < count && s->done < s->accesses) {
        bool write;

        where[made] = place(s);
        write = s->write_below == UINT64_MAX || next_random(s) < s->write_below;
        what[made] = write ? VM_STORE : VM_LOAD; /* size index 0: the table's first size is 8 */
        s->done++;
        made++;
    }
    return made;
}

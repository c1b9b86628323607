/*
 * Accesses that are made from a seed instead of being read from a file, a share a vCPU: phases one
 * after the other, and in each a choice of patterns that walk a range of RAM.
 */
#ifndef VM_SYNTHETIC_H
#define VM_SYNTHETIC_H

#include <stdbool.h>
#include <stdint.h>

enum vm_pattern_kind {
    VM_SEQUENTIAL = 0,
    VM_UNIFORM = 1,
    VM_PERMUTATION = 2,
    VM_ZIPF = 3,
    VM_HOT_COLD = 4,
    VM_POINTER_CHASE = 5,
};

/* A shuffled order of [0, n): see vm_shuffle_init. */
struct vm_shuffle {
    uint64_t n;
    uint64_t rows;
    unsigned column_bits;
    uint64_t key;
    const uint32_t *table; /* the first `known` positions */
    uint64_t known;
};

/* A column of an alias table: this bucket when a random number is below, else the other one. */
struct vm_alias {
    uint64_t below;
    uint64_t other;
};

/*
 * One walk over bytes [begin, end) of RAM, in which all blocks lie one behind the other. An access
 * has `size` bytes, a power of two. "below": chosen when a random number is below, share * 2^64;
 * UINT64_MAX: always.
 */
struct vm_pattern {
    uint32_t kind;
    uint32_t size_index; /* see access.h */
    uint64_t size;
    uint64_t chosen_below; /* of a phase with several: the sum of the shares up to this one */
    uint64_t write_below;
    uint64_t begin, end;

    /* Sequential: offsets from begin. */
    uint64_t stride;
    uint64_t shift; /* how much later than the pass before it a pass begins; modulo stride */

    /* Zipf, hot and cold, pointer chase: the range in units, numbered from 0. */
    unsigned unit_shift; /* log2 of its bytes; the last one may be cut off by the end */
    uint64_t units;
    const struct vm_shuffle *shuffle; /* hot units: NULL: they follow each other */

    /* Zipf: ranks in buckets, each rank of one as likely as the others. */
    unsigned column_bits;         /* log2 of the columns of the alias table, at least 1 */
    const struct vm_alias *alias; /* which bucket */
    const uint64_t *rank; /* the first rank of each bucket, and of what is behind the last */

    /* Hot and cold: units [moved, moved + hot) of the range, as of a ring, are hot. */
    uint64_t hot;
    uint64_t hot_below;
    uint64_t period; /* elapsed time after which the hot ones are those next to them */
    uint64_t pace;   /* elapsed time of an access */

    /* Permutation: host pages of the range; and pointer chase: units. */
    uint64_t places;       /* how many */
    const uint64_t *place; /* places + 1 entries: where each begins in RAM, and the end */
    uint64_t order_seed;   /* of the first round; each has the next one */
    uint64_t low, high;    /* this vCPU's part of each round */

    /* Where it is; begins as given. */
    uint64_t at;    /* sequential: offset of the next access; permutation, chase: number in the
                       round */
    uint64_t round; /* permutation: rounds done; sequential: offset of the pass */
    uint64_t moved; /* hot and cold */
    uint64_t elapsed;
};

struct vm_phase {
    uint64_t accesses; /* of this vCPU; a phase may have none */
    uint32_t first, patterns;
};

struct vm_synthetic {
    uint64_t accesses;            /* of all phases, repeated: how many this vCPU makes */
    const struct vm_phase *phase; /* gone through again and again until all are made */
    uint32_t phases;
    struct vm_pattern *pattern; /* goes on where it was when its phase comes again */
    uint64_t random;            /* state of the generator; the seed at first, one a vCPU */
    uint64_t done;              /* accesses made so far */
    uint64_t left;              /* of the phase that is under way */
    uint32_t next;              /* phase behind that */
};

/* Make up to count accesses; returns how many, 0 at the end. where and what: see access.h. */
uint32_t vm_synthetic_fill(struct vm_synthetic *s, uint64_t *where, uint8_t *what, uint32_t count);

/*
 * The next accesses, up to count of them, if they are all of one kind, in aligned words of 8 bytes
 * or less, and each is a stride behind the one before it: how many. 0: they aren't, or none is
 * left.
 */
uint32_t vm_synthetic_even(struct vm_synthetic *s, uint32_t count, uint64_t *first,
                           uint64_t *stride, uint8_t *what);

/* A generator at the same place that goes on by itself; false without memory. Released when zero,
 * too.
 */
bool vm_synthetic_copy(struct vm_synthetic *to, const struct vm_synthetic *from);
void vm_synthetic_release(struct vm_synthetic *copy);

/* Position i of [0, n) in a shuffled order that is made from the seed alone. */
uint64_t vm_permute(uint64_t i, uint64_t n, uint64_t seed);

/* The same with less work a position, and of less quality; n > 0. */
void vm_shuffle_init(struct vm_shuffle *s, uint64_t n, uint64_t seed);
uint64_t vm_shuffle(const struct vm_shuffle *s, uint64_t i);

/* Look the first count positions up from now on; n may be 2^32 at most. The table must live as
 * long. */
void vm_shuffle_remember(struct vm_shuffle *s, uint32_t *table, uint64_t count);

#endif

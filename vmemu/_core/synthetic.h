/* Accesses that are made from a seed instead of being read from a file, a share a vCPU. */
#ifndef VM_SYNTHETIC_H
#define VM_SYNTHETIC_H

#include <stdint.h>

enum vm_synthetic_kind { VM_SEQUENTIAL = 0, VM_UNIFORM = 1, VM_PERMUTATION = 2 };

struct vm_synthetic {
    uint32_t kind;
    uint64_t seed;       /* differs from vCPU to vCPU, but for the order of a permutation */
    uint64_t order_seed; /* the same for all vCPUs */
    uint64_t accesses;   /* how many this vCPU makes */
    uint64_t first;      /* number of its first access among those of all vCPUs (permutation) */
    uint64_t
        write_below; /* a write when a random number is below: share * 2^64; UINT64_MAX: always */
    uint64_t begin,
        end;         /* bytes of RAM that this vCPU walks (sequential), that all use (uniform) */
    uint64_t stride; /* bytes (sequential) */
    uint64_t units;  /* host pages of all blocks (permutation) */
    const uint64_t *unit; /* units + 1 entries: where each begins in RAM, and the end */
    uint64_t done;        /* accesses made so far */
    uint64_t random;      /* state of the generator */
};

/* Make up to count accesses of 8 bytes, aligned to 8; returns how many, 0 at the end. size_index:
 * see access.h. */
uint32_t vm_synthetic_fill(struct vm_synthetic *s, uint64_t *where, uint8_t *what, uint32_t count);

/* Position i of [0, n) in a shuffled order that is made from the seed alone. */
uint64_t vm_permute(uint64_t i, uint64_t n, uint64_t seed);

#endif

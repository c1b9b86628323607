/* Small things that every part of the core needs. */
#ifndef VM_UTIL_H
#define VM_UTIL_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define VM_LIKELY(x)   __builtin_expect(!!(x), 1)
#define VM_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* For loops that are made once for each case, with what never changes in it left out. */
#define VM_ALWAYS_INLINE inline __attribute__((always_inline))

/*
 * Counters and flags that another thread reads are plain integers for cffi's sake and are touched
 * only through these. Relaxed is enough for figures; the pairs that order memory say so by name.
 */
#define vm_get(p)            __atomic_load_n((p), __ATOMIC_RELAXED)
#define vm_set(p, v)         __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define vm_add(p, v)         __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define vm_get_acquire(p)    __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define vm_set_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
/* Adds to what the calling thread alone writes, without a locked operation. */
#define vm_count(p, v) vm_set((p), vm_get(p) + (v))

static inline uint64_t vm_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now); /* the same clock in every process of the machine */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline bool vm_bit_test(const uint64_t *map, uint64_t bit)
{
    return vm_get_acquire(&map[bit >> 6]) >> (bit & 63) & 1;
}

/* Sets the bit and tells whether it was set already: exactly one of several threads is told "no".
 */
static inline bool vm_bit_test_and_set(uint64_t *map, uint64_t bit)
{
    uint64_t mask = UINT64_C(1) << (bit & 63);

    return __atomic_fetch_or(&map[bit >> 6], mask, __ATOMIC_ACQ_REL) & mask;
}

#endif
